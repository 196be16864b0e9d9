//! What was appended last, in a file that is written forwards: one write and one sync make an append durable, where a
//! transaction of the database copies a path of pages in each of its trees.
//!
//! ```text
//! file     JOURNAL_BYTES: the id of the ledger, records of the current head, then whatever was there before
//! id       frame of IdentityV1, padded to a SECTOR
//! record   frame of JournalRecordV1, in pieces of LOAD bytes with a seal before each, the last one padded with zeros
//! seal     tag of the head 16 bytes, sum 8 bytes, number of the piece u16 le, pieces of the record u16 le
//! ```
//!
//! The head (run and generation) is in the database. A transaction that takes the journal in writes another head with it, so
//! that the records of the old one count no more from the same sync on, and the next record begins in front again. Nothing
//! is ever erased.
//!
//! One record is written and synced at a time, and no two share a sector, so a power cut can tear the last one only: it was
//! promised to nobody, and reading ends there. What was promised and has rotted is told from it by the seals: of the device
//! it is assumed that it writes a sector as a whole or not at all, so a sector under the tag of the head whose sum is wrong
//! was right once. It is refused, like a record that lacks a sector while others follow it. A sector of the last record that
//! is replaced as a whole, with its tag, passes for one that was never written. (Write-ahead logging; Mohan et
//! al., ARIES, ACM TODS 17:1, 1992. That a damaged end must not pass for a torn one: Alagappan et al., Protocol-Aware
//! Recovery for Consensus-Based Storage, FAST 2018.)

use std::fmt;

use fabric::seams::Disk;
use fabric::wire::{self, HEADER_BYTES};
use redb::{StorageBackend, WriteTransaction};

use super::identity::IdentityV1;
use super::log::{Taken, weight};
use super::{KEY_JOURNAL, StoreError, disk_failed, put};
use crate::codec::{EntryV1, JournalHeadV1, JournalRecordV1, LogIdV1};
use crate::tuning::JOURNAL_BYTES;
use crate::types::{Entry, LogId};

/// The file's name in the data directory.
pub(crate) const JOURNAL: &str = "ledger.journal";
/// What a disk writes as a whole, at the least.
const SECTOR: usize = 512;
/// Bytes of the head's tag in a seal, and of the whole seal.
const TAG_BYTES: usize = 16;
const SEAL_BYTES: usize = TAG_BYTES + 12;
/// Bytes of a frame that a sector holds.
const LOAD: usize = SECTOR - SEAL_BYTES;
/// A tag that differs in so few bits is the same one, and has rotted: those of two heads differ in about 64.
const ROTTEN_BITS_MAX: u32 = 8;
/// Entries of more bytes go into the database at once.
const RECORD_BYTES_MAX: usize = JOURNAL_BYTES / 4;

/// The open file, and what the database lacks of it.
pub(super) struct Journal {
    file: Box<dyn StorageBackend>,
    head: JournalHeadV1,
    /// The first head of this run, until it is in the database.
    fresh: Option<JournalHeadV1>,
    /// Records of the head, and where the next one begins.
    records: u64,
    end: usize,
    entries: Vec<Entry>,
    committed: Option<LogId>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({} records, {} bytes)", self.records, self.end)
    }
}

impl Journal {
    /// Opens the file of a ledger, and reads what was appended under `head`. Whatever is appended next comes under `fresh`,
    /// once the database has both.
    pub(super) fn open(
        disk: &dyn Disk,
        ledger: IdentityV1,
        head: JournalHeadV1,
        fresh: JournalHeadV1,
    ) -> Result<Self, StoreError> {
        let failed = || disk_failed(JOURNAL, "opening it");
        if !disk.exists(JOURNAL).map_err(failed())? {
            return Err(StoreError::Lost { file: JOURNAL });
        }
        let file = disk.storage(JOURNAL, false).map_err(failed())?;
        if file.len().map_err(failed())? != JOURNAL_BYTES as u64 {
            return Err(damaged("its length", "it was cut short or grew"));
        }
        let mut bytes = vec![0; JOURNAL_BYTES];
        file.read(0, &mut bytes).map_err(disk_failed(JOURNAL, "reading it"))?;
        match frame_at(&bytes, 0).map(wire::decode::<IdentityV1>) {
            Some(Ok(found)) if found == ledger => {}
            Some(Ok(_)) => return Err(StoreError::Other { file: JOURNAL }),
            Some(Err(cause)) => return Err(damaged("the record of its id", cause)),
            None => return Err(damaged("the record of its id", "it is missing")),
        }
        let records = scan(&bytes, head)?;
        let committed = records.last().and_then(|record| record.committed).map(LogId::from);
        let entries = records.into_iter().flat_map(|record| record.entries).map(EntryV1::into_entry);
        let entries = entries.collect::<Result<_, _>>().map_err(|cause| damaged("an entry", cause))?;
        Ok(Journal { file, head, fresh: Some(fresh), records: 0, end: SECTOR, entries, committed })
    }

    /// How far the log was known to be committed when the newest record was written.
    pub(super) fn committed(&self) -> Option<LogId> {
        self.committed
    }

    /// Makes entries durable. False when there is no room for them: then a transaction has to take everything.
    pub(super) fn append(&mut self, taken: &Taken) -> Result<bool, StoreError> {
        if taken.entries.is_empty() {
            return Ok(true);
        }
        if taken.entries.iter().map(weight).sum::<usize>() > RECORD_BYTES_MAX {
            return Ok(false);
        }
        let committed = taken.committed.map(LogIdV1::from);
        let entries = taken.entries.iter().map(EntryV1::from).collect();
        let record = JournalRecordV1 { head: self.head, number: self.records, committed, entries };
        let bytes = sealed(&tag(self.head), &wire::encode(&record));
        if self.end + bytes.len() > JOURNAL_BYTES {
            return Ok(false);
        }
        let written = self.file.write(self.end as u64, &bytes).and_then(|()| self.file.sync_data());
        written.map_err(disk_failed(JOURNAL, super::log::APPENDING))?;
        self.end += bytes.len();
        self.records += 1;
        self.entries.extend(taken.entries.iter().cloned());
        self.committed = taken.committed;
        Ok(true)
    }

    /// Writes everything into the database, with the head that is to follow: [`Journal::begin`] it after the commit.
    pub(super) fn put(&self, transaction: &WriteTransaction) -> Result<JournalHeadV1, StoreError> {
        if self.entries.is_empty() && self.fresh.is_none() {
            return Ok(self.head);
        }
        let taken = Taken::of(self.entries.clone(), self.committed);
        taken.put(transaction)?;
        let following = JournalHeadV1 { generation: self.head.generation + 1, ..self.head };
        let next = self.fresh.unwrap_or(following);
        put(transaction, KEY_JOURNAL, &next)?;
        Ok(next)
    }

    /// The database has everything: what is appended next comes under `head`.
    pub(super) fn begin(&mut self, head: JournalHeadV1) {
        (self.head, self.fresh) = (head, None);
        (self.records, self.end) = (0, SECTOR);
        self.entries.clear();
    }
}

/// Makes the file of a ledger whose database is made next, under a temporary name until it is whole.
pub(super) fn make(disk: &dyn Disk, ledger: IdentityV1) -> Result<(), StoreError> {
    let made = || {
        let fresh = format!("{JOURNAL}.new");
        disk.remove(&fresh)?;
        let file = disk.storage(&fresh, false)?;
        file.set_len(JOURNAL_BYTES as u64)?;
        // All of it, so that an append finds its blocks and its sync has nothing but them to write.
        let mut bytes = wire::encode(&ledger);
        bytes.resize(JOURNAL_BYTES, 0);
        file.write(0, &bytes)?;
        file.sync_data()?;
        file.close()?;
        drop(file);
        disk.rename(&fresh, JOURNAL)
    };
    made().map_err(disk_failed(JOURNAL, "making it"))
}

fn damaged(what: impl Into<String>, cause: impl ToString) -> StoreError {
    StoreError::Damaged { file: JOURNAL, what: what.into(), cause: cause.to_string() }
}

/// The records of `head`, in order.
fn scan(bytes: &[u8], head: JournalHeadV1) -> Result<Vec<JournalRecordV1>, StoreError> {
    let (tag, mut records, mut at) = (tag(head), Vec::new(), SECTOR);
    let rotten = |number: usize, cause: String| damaged(format!("record {number}"), cause);
    while let Some((frame, length)) = frame_in(bytes, at, &tag).map_err(|cause| rotten(records.len(), cause))? {
        let record = of_head(&frame, head).map_err(|cause| rotten(records.len(), cause))?;
        if record.number != records.len() as u64 {
            return Err(rotten(records.len(), format!("it says that it is record {}", record.number)));
        }
        records.push(record);
        at += length;
    }
    // One that has rotted was written, too.
    let behind = |at| match frame_in(bytes, at, &tag) {
        Ok(found) => found.is_some_and(|(frame, _)| of_head(&frame, head).is_ok()),
        Err(_) => true,
    };
    if (at..bytes.len()).step_by(SECTOR).any(behind) {
        return Err(rotten(records.len(), "records that were written after it are there".to_owned()));
    }
    Ok(records)
}

fn of_head(frame: &[u8], head: JournalHeadV1) -> Result<JournalRecordV1, String> {
    let record: JournalRecordV1 = wire::decode(frame).map_err(|cause| cause.to_string())?;
    if record.head == head { Ok(record) } else { Err("it is another head's".to_owned()) }
}

/// What every sector under a head bears.
fn tag(head: JournalHeadV1) -> [u8; TAG_BYTES] {
    let hash = blake3::Hasher::new().update(&head.run).update(&head.generation.to_le_bytes()).finalize();
    *hash.as_bytes().first_chunk().expect("a hash is longer")
}

/// A frame in sectors, each under its seal.
fn sealed(tag: &[u8; TAG_BYTES], frame: &[u8]) -> Vec<u8> {
    let pieces = frame.len().div_ceil(LOAD) as u16;
    let sector = |(number, piece): (usize, &[u8])| {
        let mut sector = [0; SECTOR];
        sector[..TAG_BYTES].copy_from_slice(tag);
        sector[SEAL_BYTES - 4..][..2].copy_from_slice(&(number as u16).to_le_bytes());
        sector[SEAL_BYTES - 2..][..2].copy_from_slice(&pieces.to_le_bytes());
        sector[SEAL_BYTES..][..piece.len()].copy_from_slice(piece);
        let sum = sum(&sector);
        sector[TAG_BYTES..][..sum.len()].copy_from_slice(&sum);
        sector
    };
    frame.chunks(LOAD).enumerate().flat_map(sector).collect()
}

/// The sum over a sector without the place where it stands.
fn sum(sector: &[u8]) -> [u8; 8] {
    let hash = blake3::Hasher::new().update(&sector[..TAG_BYTES]).update(&sector[TAG_BYTES + 8..]).finalize();
    *hash.as_bytes().first_chunk().expect("a hash is longer")
}

/// One sector that was written under a tag.
struct Piece<'a> {
    number: u16,
    pieces: u16,
    load: &'a [u8],
}

/// The sector at an offset, if it was written under this tag; the error says that it has rotted since.
fn piece_at<'a>(bytes: &'a [u8], at: usize, tag: &[u8; TAG_BYTES]) -> Result<Option<Piece<'a>>, String> {
    let Some(sector) = bytes.get(at..at + SECTOR) else { return Ok(None) };
    let other_bits: u32 = sector.iter().zip(tag).map(|(one, other)| (one ^ other).count_ones()).sum();
    if other_bits > ROTTEN_BITS_MAX {
        return Ok(None);
    }
    if other_bits > 0 || sector[TAG_BYTES..][..8] != sum(sector) {
        return Err(format!("the sector at byte {at} differs from what was written"));
    }
    let word = |at: usize| u16::from_le_bytes([sector[at], sector[at + 1]]);
    let (number, pieces) = (word(SEAL_BYTES - 4), word(SEAL_BYTES - 2));
    Ok(Some(Piece { number, pieces, load: &sector[SEAL_BYTES..] }))
}

/// The frame that begins at an offset and is all there, with the bytes that it takes. What a client has put into an entry
/// stands behind seals, so none can make this costly or pass for a record.
fn frame_in(bytes: &[u8], at: usize, tag: &[u8; TAG_BYTES]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let Some(first) = piece_at(bytes, at, tag)?.filter(|piece| piece.number == 0) else { return Ok(None) };
    let mut frame = first.load.to_vec();
    for number in 1..first.pieces {
        let next = piece_at(bytes, at + usize::from(number) * SECTOR, tag)?;
        let Some(piece) = next.filter(|piece| (piece.number, piece.pieces) == (number, first.pieces)) else {
            return Ok(None);
        };
        frame.extend_from_slice(piece.load);
    }
    let length = frame_at(&frame, 0).ok_or("it is no frame")?.len();
    frame.truncate(length);
    Ok(Some((frame, usize::from(first.pieces) * SECTOR)))
}

/// The frame that begins at an offset, if its length makes sense.
fn frame_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    rest.get(..wire::frame_bytes(rest.first_chunk::<HEADER_BYTES>()?).ok()?)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fabric::seams::real::KernelEntropy;
    use openraft::EntryPayload;
    use openraft::storage::IOFlushed;
    use openraft::type_config::TypeConfigExt;

    use super::super::suite::disk::MemoryDisk;
    use super::super::{FILE, Store};
    use super::*;
    use crate::types::{Proposal, TC, log_id};

    fn open(disk: &MemoryDisk) -> Result<Store, StoreError> {
        Store::open(disk, &KernelEntropy, false)
    }

    fn append(store: &Store, index: u64, content: &[u8]) {
        let payload = EntryPayload::Normal(Proposal(Bytes::copy_from_slice(content)));
        let (tell, _told) = TC::oneshot();
        store.enqueue_for_test(vec![Entry { log_id: log_id(1, index), payload }], IOFlushed::signal(tell)).unwrap();
        store.flush_for_test().unwrap();
    }

    fn bytes(disk: &MemoryDisk, name: &str) -> Vec<u8> {
        disk.read(name).unwrap().unwrap()
    }

    fn indexes(store: &Store) -> Vec<u64> {
        store.entries_for_test().unwrap().into_iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn appends_write_the_journal_alone_and_the_next_start_takes_it_in() {
        let disk = MemoryDisk::new(21);
        let store = open(&disk).unwrap();
        let before = bytes(&disk, FILE);
        (0..3).for_each(|index| append(&store, index, b"x"));
        assert!(bytes(&disk, FILE) == before, "the database was not touched");
        drop(store);
        let disk = disk.reboot();
        let store = open(&disk).unwrap();
        assert_eq!(indexes(&store), [0, 1, 2]);
        assert_eq!(store.stored_for_test().unwrap(), 3);
        append(&store, 3, b"x");
        drop(store);
        assert_eq!(indexes(&open(&disk.reboot()).unwrap()), [0, 1, 2, 3], "the old records count no more");
    }

    #[test]
    fn a_full_journal_goes_into_the_database_and_begins_anew() {
        let disk = MemoryDisk::new(22);
        let store = open(&disk).unwrap();
        let content = vec![7; RECORD_BYTES_MAX / 2];
        let many = 3 * (JOURNAL_BYTES / content.len()) as u64;
        (0..many).for_each(|index| append(&store, index, &content));
        assert!(store.stored_for_test().unwrap() > many / 2);
        append(&store, many, &vec![7; 2 * RECORD_BYTES_MAX]);
        assert_eq!(store.stored_for_test().unwrap(), many + 1, "what is too large for a record takes all along");
        drop(store);
        assert_eq!(indexes(&open(&disk.reboot()).unwrap()), Vec::from_iter(0..=many));
    }

    const HEAD: JournalHeadV1 = JournalHeadV1 { run: [5; 16], generation: 7 };

    /// A file with a record for each of these contents, and the sector where each begins.
    fn written(contents: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut begins) = (vec![0; SECTOR], Vec::new());
        for (number, length) in contents.iter().enumerate() {
            let payload = EntryPayload::Normal(Proposal(Bytes::from(vec![b'x'; *length])));
            let entries = vec![EntryV1::from(&Entry { log_id: log_id(1, number as u64), payload })];
            let record = JournalRecordV1 { head: HEAD, number: number as u64, committed: None, entries };
            begins.push(bytes.len() / SECTOR);
            bytes.extend(sealed(&tag(HEAD), &wire::encode(&record)));
        }
        bytes.resize(bytes.len() + 2 * SECTOR, 0);
        (bytes, begins)
    }

    #[test]
    fn a_record_that_lacks_a_sector_ends_the_journal_or_is_missed_by_those_behind_it() {
        let (bytes, begins) = written(&[10, 10, 3 * SECTOR]);
        assert_eq!(scan(&bytes, HEAD).unwrap().len(), 3);
        let without = |sector: usize, by: JournalHeadV1| {
            let mut bytes = bytes.clone();
            bytes[sector * SECTOR..][..SECTOR].copy_from_slice(&sealed(&tag(by), b"of before")[..]);
            scan(&bytes, HEAD).map(|records| records.len()).map_err(|error| error.to_string())
        };
        let before = JournalHeadV1 { generation: 6, ..HEAD };
        for lost in 0..4 {
            assert_eq!(without(begins[2] + lost, before), Ok(2), "sector {lost} of the last record was not written");
        }
        let error = without(begins[1], before).unwrap_err();
        assert!(error.contains("record 1") && error.contains("written after it"), "{error}");
    }

    #[test]
    fn a_flipped_bit_is_noticed_in_the_last_record_too() {
        for contents in [&[10, 10][..], &[10, 2 * SECTOR]] {
            let (bytes, begins) = written(contents);
            for at in SECTOR..bytes.len() - 2 * SECTOR {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << (at % 8);
                let number = usize::from(at >= begins[1] * SECTOR);
                let error = scan(&bytes, HEAD).expect_err("it is noticed").to_string();
                assert!(error.contains(&format!("record {number}")), "byte {at}: {error}");
            }
        }
    }

    #[test]
    fn a_damaged_record_keeps_the_voter_from_starting() {
        for (seed, content) in [(23, b"the content of 1"), (24, b"the content of 2")] {
            let disk = MemoryDisk::new(seed);
            let store = open(&disk).unwrap();
            (0..3).for_each(|index| append(&store, index, format!("the content of {index}").as_bytes()));
            drop(store);
            let disk = disk.reboot();
            assert!(disk.corrupt(JOURNAL, content, b"THE"));
            for _ in 0..2 {
                let error = open(&disk).err().expect("it is noticed").to_string();
                assert!(error.contains("differs from what was written") && error.contains(JOURNAL), "{error}");
            }
        }
    }

    #[test]
    fn what_a_quiet_ledger_has_written_is_in_the_database_where_damage_is_noticed() {
        let disk = MemoryDisk::new(25);
        let store = open(&disk).unwrap();
        append(&store, 0, b"the content of 0");
        store.settle_for_test().unwrap();
        drop(store);
        let disk = disk.reboot();
        assert!(disk.corrupt(JOURNAL, b"the content of 0", b"THE"), "an old record, which counts no more");
        assert_eq!(indexes(&open(&disk).unwrap()), [0]);
        assert!(disk.corrupt(FILE, b"the content of 0", b"THE"));
        assert!(open(&disk).err().expect("it is noticed").to_string().contains("log entry 0"));
    }

    #[test]
    fn content_that_looks_like_a_later_record_is_none() {
        // What a client sent, wherever its bytes fall, though it knew the head: it stands behind the seals of its own record.
        let later = JournalRecordV1 { head: HEAD, number: 9, committed: None, entries: Vec::new() };
        let forged = sealed(&tag(HEAD), &wire::encode(&later));
        for before in 0..SECTOR {
            let around = sealed(&tag(HEAD), &[&vec![0; LOAD + before][..], &forged, &[0; LOAD]].concat());
            let bytes = [&[0; SECTOR][..], &[0; SECTOR], &around[SECTOR..], &[0; SECTOR]].concat();
            assert_eq!(scan(&bytes, HEAD).unwrap(), [], "it lacks its first sector, and nothing was written behind it");
        }
    }

    #[test]
    fn anothers_journal_and_an_empty_one_are_refused() {
        let (disk, other) = (MemoryDisk::new(28), MemoryDisk::new(29));
        let store = open(&disk).unwrap();
        append(&store, 0, b"x");
        drop((store, open(&other).unwrap()));
        let disk = disk.reboot();
        let good = bytes(&disk, JOURNAL);
        disk.write(JOURNAL, &bytes(&other.reboot(), JOURNAL)).unwrap();
        assert!(matches!(open(&disk), Err(StoreError::Other { file: JOURNAL })));
        disk.write(JOURNAL, &vec![0; JOURNAL_BYTES]).unwrap();
        assert!(matches!(open(&disk), Err(StoreError::Damaged { file: JOURNAL, .. })));
        disk.write(JOURNAL, &good).unwrap();
        assert_eq!(indexes(&open(&disk).unwrap()), [0]);
    }

    #[test]
    fn a_journal_that_is_gone_or_cut_short_is_missed() {
        let disk = MemoryDisk::new(27);
        drop(open(&disk).unwrap());
        disk.rename(JOURNAL, "aside").unwrap();
        assert!(matches!(open(&disk), Err(StoreError::Lost { file: JOURNAL })));
        disk.write(JOURNAL, b"short").unwrap();
        assert!(matches!(open(&disk), Err(StoreError::Damaged { file: JOURNAL, .. })));
        disk.remove(JOURNAL).unwrap();
        disk.rename("aside", JOURNAL).unwrap();
        drop(open(&disk).unwrap());
    }
}
