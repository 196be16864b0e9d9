//! Which ledger this node has written: an id in the database, and a note of it beside the database.
//!
//! What a voter has promised is in its ledger. One that has lost it and started anew could vote twice in one term, and
//! help to commit what contradicts an acknowledged write. So a node whose note names a ledger that is not there refuses to
//! start. The database comes first, under a temporary name, synced and then renamed; the note follows, and only then the
//! node takes part. A crash in between leaves a database that is noted at the next start.

use fabric::records;
use fabric::seams::{Disk, Entropy, draw};
use fabric::wire;
use redb::Database;
use rkyv::{Archive, Deserialize, Serialize};

use super::{FILE, KEY_IDENTITY, StoreError, damaged, record};

/// The note's name in the data directory.
pub(crate) const NOTE: &str = "ledger-id";

/// Names a ledger's file.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdentityV1 {
    /// Drawn when the file was made.
    id: [u8; 16],
}
records!(IdentityV1 = (125, 1));

impl IdentityV1 {
    /// The id of a file that is about to be made.
    pub(super) fn draw(entropy: &dyn Entropy) -> Self {
        IdentityV1 { id: draw(entropy) }
    }
}

fn disk_failed(action: &'static str) -> impl FnOnce(std::io::Error) -> StoreError {
    super::disk_failed(NOTE, action)
}

/// What the note says; none when this node has written no ledger yet.
pub(super) fn noted(disk: &dyn Disk) -> Result<Option<IdentityV1>, StoreError> {
    let content = disk.read(NOTE).map_err(disk_failed("reading its note"))?;
    let note = content.map(|frame| wire::decode(&frame)).transpose();
    note.map_err(|cause| StoreError::Damaged { file: NOTE, what: "the note".into(), cause: cause.to_string() })
}

/// Refuses to go on without the ledger that was written: the note says so, or whoever knows that it was `begun`, though
/// database and note are both gone.
pub(super) fn check_there(disk: &dyn Disk, note: Option<&IdentityV1>, begun: bool) -> Result<(), StoreError> {
    let there = disk.exists(FILE).map_err(disk_failed("looking for it"))?;
    if (note.is_some() || begun) && !there { Err(StoreError::Lost { file: FILE }) } else { Ok(()) }
}

/// Compares the database with the note, or notes it. Gives its id.
pub(super) fn check(database: &Database, disk: &dyn Disk, note: Option<IdentityV1>) -> Result<IdentityV1, StoreError> {
    let own: IdentityV1 =
        record(database, KEY_IDENTITY)?.ok_or_else(|| damaged("the record of its id", "it is missing"))?;
    match note {
        Some(note) if note == own => {}
        Some(_) => return Err(StoreError::Other { file: FILE }),
        None => disk.write(NOTE, &wire::encode(&own)).map_err(disk_failed("noting it"))?,
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::suite::disk::MemoryDisk;
    use super::*;
    use fabric::seams::real::KernelEntropy;

    fn open(disk: &MemoryDisk) -> Result<Store, StoreError> {
        Store::open(disk, &KernelEntropy, false)
    }

    #[test]
    fn a_ledger_that_was_written_must_be_there() {
        let disk = MemoryDisk::new(8);
        assert!(matches!(Store::open(&disk, &KernelEntropy, true), Err(StoreError::Lost { .. })));
        drop(open(&disk).unwrap());
        drop(open(&disk).unwrap());
        disk.rename(FILE, "aside").unwrap();
        for _ in 0..2 {
            let error = open(&disk).err().expect("it is missed");
            assert!(matches!(error, StoreError::Lost { .. }) && error.to_string().contains("missing"), "{error}");
        }
        drop(disk.storage(FILE, true).unwrap());
        let error = open(&disk).err().expect("an empty one is none");
        assert!(error.to_string().contains("empty"), "{error}");
        disk.remove(FILE).unwrap();
        disk.rename("aside", FILE).unwrap();
        drop(open(&disk).unwrap());
    }

    #[test]
    fn another_ledger_is_not_taken_for_it() {
        let (disk, other) = (MemoryDisk::new(9), MemoryDisk::new(10));
        drop(open(&disk).unwrap());
        drop(open(&other).unwrap());
        disk.write(NOTE, &other.read(NOTE).unwrap().unwrap()).unwrap();
        assert!(matches!(open(&disk), Err(StoreError::Other { .. })));
        disk.write(NOTE, b"nonsense").unwrap();
        assert!(matches!(open(&disk), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_crash_before_the_note_is_made_good() {
        let disk = MemoryDisk::new(11);
        drop(open(&disk).unwrap());
        let note = disk.read(NOTE).unwrap();
        disk.remove(NOTE).unwrap();
        drop(Store::open(&disk, &KernelEntropy, true).unwrap());
        assert_eq!(disk.read(NOTE).unwrap(), note, "the same ledger");
    }
}
