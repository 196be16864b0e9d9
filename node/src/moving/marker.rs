//! Notes about moves under way, on disk before anything depends on them.
//!
//! The source notes that a SWITCH may have been proposed: before the proposal, until the verdict. The destination notes
//! which move brings a machine: before it takes the first byte, until the disk is the machine's own.

use std::io;
use std::sync::{Mutex, PoisonError};

use fabric::ids::{MachineId, MoveId};
use fabric::records;
use fabric::seams::Disk;
use fabric::wire;
use rkyv::{Archive, Deserialize, Serialize};

/// Most moves that a node drives at once; each has a line in the note.
pub const MARKERS_MAX: usize = 256;
/// The source's notes.
pub const OUT: &str = "moves-out";
/// The destination's notes.
pub const IN: &str = "moves-in";

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
    let markers: MarkersV1 =
        wire::decode(&content).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
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
        assert!(load(&disk, OUT).is_err());
    }
}
