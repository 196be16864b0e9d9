//! Notes about moves under way, on disk before anything depends on them.
//!
//! The source notes that a SWITCH may have been proposed: before the proposal, until the verdict. The destination notes
//! which move brings a machine: before it takes the first byte, until the disk is the machine's own.

use std::io;
use std::sync::{Mutex, PoisonError};

use fabric::ids::{MachineId, MoveId};
use fabric::records;
use fabric::seams::Disk;
use fabric::wire::{self, WireError};
use rkyv::{Archive, Deserialize, Serialize};

/// Most moves that a node drives at once; each has a line in the note.
pub const MARKERS_MAX: usize = 256;
/// The source's notes.
pub const OUT: &str = "moves-out";
/// The destination's notes.
pub const IN: &str = "moves-in";
/// The source's notes of moves that are done: the copy here is not needed once the destination runs the machine. The
/// oldest give way; a copy without its note is kept aside.
pub const DONE: &str = "moves-done";

/// One move: at the source, its verdict must be known before the machine is started again.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkerV1 {
    /// The machine.
    pub machine: MachineId,
    /// The move.
    pub id: MoveId,
    /// The epoch at which the source owned the machine.
    pub epoch: u64,
}

/// All of them.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct MarkersV1 {
    /// At most [`MARKERS_MAX`].
    pub markers: Vec<MarkerV1>,
}

records!(MarkersV1 = (371, 1));

/// Moves of different machines begin and end at the same time, and each changes the file.
static CHANGING: Mutex<()> = Mutex::new(());

/// Reads the note. A damaged one is an error: guessing could run a machine twice.
///
/// # Errors
/// When the disk fails or the note is damaged.
pub fn load(disk: &dyn Disk, file: &str) -> io::Result<Vec<MarkerV1>> {
    let Some(content) = disk.read(file)? else { return Ok(Vec::new()) };
    let damaged = |error: WireError| format!("{file} in the data directory is damaged: {error}");
    let markers: MarkersV1 =
        wire::decode(&content).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, damaged(error)))?;
    Ok(markers.markers)
}

/// Adds a marker; it is on disk when this returns.
///
/// # Errors
/// When the disk fails or too many moves are under way: the SWITCH must not be proposed then.
pub fn add(disk: &dyn Disk, file: &str, marker: MarkerV1) -> io::Result<()> {
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut markers = load(disk, file)?;
    if markers.len() >= MARKERS_MAX {
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, format!("{MARKERS_MAX} moves are under way")));
    }
    markers.retain(|other| other.machine != marker.machine);
    markers.push(marker);
    disk.write(file, &wire::encode(&MarkersV1 { markers }))
}

/// Removes a marker; one of another move of the same machine stays.
///
/// # Errors
/// When the disk fails; the marker is asked about again at the next start then.
pub fn remove(disk: &dyn Disk, file: &str, marker: MarkerV1) -> io::Result<()> {
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut markers = load(disk, file)?;
    let before = markers.len();
    markers.retain(|other| *other != marker);
    if markers.len() == before {
        return Ok(());
    }
    disk.write(file, &wire::encode(&MarkersV1 { markers }))
}

/// Notes a move that is done, in the place of the oldest when there are too many. A damaged note is begun anew.
///
/// # Errors
/// When the disk fails.
pub fn done(disk: &dyn Disk, marker: MarkerV1) -> io::Result<()> {
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut markers = match load(disk, DONE) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Vec::new(),
        loaded => loaded?,
    };
    markers.retain(|other| other.machine != marker.machine);
    markers.push(marker);
    let over = markers.len().saturating_sub(MARKERS_MAX);
    markers.drain(..over);
    disk.write(DONE, &wire::encode(&MarkersV1 { markers }))
}

/// Removes the notes of a machine.
///
/// # Errors
/// When the disk fails.
pub fn forget(disk: &dyn Disk, file: &str, machine: MachineId) -> io::Result<()> {
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut markers = load(disk, file)?;
    let before = markers.len();
    markers.retain(|other| other.machine != machine);
    if markers.len() == before {
        return Ok(());
    }
    disk.write(file, &wire::encode(&MarkersV1 { markers }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::seams::real::Directory;

    #[test]
    fn a_marker_is_there_until_it_is_removed_and_damage_is_told() {
        let temporary = tempfile::tempdir().unwrap();
        let disk = Directory::open(temporary.path()).unwrap();
        let marker = MarkerV1 { machine: MachineId([1; 16]), id: MoveId([2; 16]), epoch: 3 };
        add(&disk, OUT, marker).unwrap();
        add(&disk, OUT, marker).unwrap();
        assert_eq!(load(&disk, OUT).unwrap(), [marker]);
        remove(&disk, OUT, MarkerV1 { id: MoveId([3; 16]), ..marker }).unwrap();
        assert_eq!(load(&disk, OUT).unwrap(), [marker], "another move's");
        remove(&disk, OUT, marker).unwrap();
        assert_eq!(load(&disk, OUT).unwrap(), []);
        disk.write(OUT, b"garbage").unwrap();
        assert!(load(&disk, OUT).unwrap_err().to_string().starts_with("moves-out in the data directory is damaged"));
    }

    #[test]
    fn of_moves_that_are_done_the_latest_are_known() {
        let temporary = tempfile::tempdir().unwrap();
        let disk = Directory::open(temporary.path()).unwrap();
        disk.write(DONE, b"garbage").unwrap();
        let of = |number: usize| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(number as u64).to_le_bytes());
            MarkerV1 { machine: MachineId(id), id: MoveId([2; 16]), epoch: 3 }
        };
        (0..=MARKERS_MAX).for_each(|number| done(&disk, of(number)).unwrap());
        let known = load(&disk, DONE).unwrap();
        assert_eq!((known.len(), known[0], known[MARKERS_MAX - 1]), (MARKERS_MAX, of(1), of(MARKERS_MAX)));
        forget(&disk, DONE, of(1).machine).unwrap();
        assert_eq!(load(&disk, DONE).unwrap()[0], of(2));
    }
}
