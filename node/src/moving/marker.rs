//! Notes about moves under way, on disk before anything depends on them.
//!
//! The source notes that a SWITCH may have been proposed: before the proposal, until the verdict. The destination notes
//! which move brings a machine: before it takes the first byte, until the disk is the machine's own.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
/// The source's notes of moves that are done: the machine is not started here by an older view of the ledger, and the copy
/// is not needed once the destination runs it. The oldest give way; a copy without its note is kept aside.
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

/// A node's notes.
#[derive(Debug)]
pub struct Notes {
    /// [`OUT`].
    pub out: Note,
    /// [`IN`].
    pub coming: Note,
    /// [`DONE`].
    pub done: Note,
}

impl Notes {
    /// Those on this disk. Nothing is read yet.
    pub fn new(disk: &Arc<dyn Disk>) -> Self {
        Notes { out: Note::new(disk, OUT), coming: Note::new(disk, IN), done: Note::new(disk, DONE) }
    }
}

/// One of the files. Nobody else writes it while the node runs, so it is read once: the reconciler asks at every look.
#[derive(Debug)]
pub struct Note {
    disk: Arc<dyn Disk>,
    file: &'static str,
    /// What is in the file; none before the first read, and after a write that failed.
    known: Mutex<Option<Vec<MarkerV1>>>,
    /// Moves of different machines begin and end at the same time, and each changes the file. Readers do not wait for a
    /// write: until it is on disk, they see what was there before. Only the first one, and the first one after a write that
    /// failed, waits for the file to be read.
    changing: Mutex<()>,
}

impl Note {
    fn new(disk: &Arc<dyn Disk>, file: &'static str) -> Self {
        Note { disk: disk.clone(), file, known: Mutex::default(), changing: Mutex::default() }
    }

    /// Its name in the data directory.
    pub fn file(&self) -> &'static str {
        self.file
    }

    fn known(&self) -> MutexGuard<'_, Option<Vec<MarkerV1>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is noted. A damaged note is an error: guessing could run a machine twice.
    ///
    /// # Errors
    /// When the disk fails or the note is damaged.
    pub fn load(&self) -> io::Result<Vec<MarkerV1>> {
        let mut known = self.known();
        if let Some(markers) = &*known {
            return Ok(markers.clone());
        }
        let damaged = |error: WireError| format!("{} in the data directory is damaged: {error}", self.file);
        let markers = match self.disk.read(self.file)? {
            None => Vec::new(),
            Some(content) => {
                let markers: Result<MarkersV1, _> = wire::decode(&content);
                markers.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, damaged(error)))?.markers
            }
        };
        Ok(known.insert(markers).clone())
    }

    /// Changes the note, if `change` says so; it is on disk when this returns.
    fn change(&self, change: impl FnOnce(&mut Vec<MarkerV1>) -> io::Result<bool>) -> io::Result<()> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut markers = match self.load() {
            // What is lost there costs only that copies are kept aside.
            Err(error) if error.kind() == io::ErrorKind::InvalidData && self.file == DONE => Vec::new(),
            loaded => loaded?,
        };
        if !change(&mut markers)? {
            return Ok(());
        }
        let content = wire::encode(&MarkersV1 { markers: markers.clone() });
        let written = self.disk.write(self.file, &content);
        // Whether a failed one is there is not known.
        *self.known() = written.is_ok().then_some(markers);
        written
    }

    /// Adds a marker; it is on disk when this returns.
    ///
    /// # Errors
    /// When the disk fails or too many moves are under way: the SWITCH must not be proposed then.
    pub fn add(&self, marker: MarkerV1) -> io::Result<()> {
        self.change(|markers| {
            if markers.len() >= MARKERS_MAX {
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, format!("{MARKERS_MAX} moves are under way")));
            }
            markers.retain(|other| other.machine != marker.machine);
            markers.push(marker);
            Ok(true)
        })
    }

    /// Removes a marker; one of another move of the same machine stays.
    ///
    /// # Errors
    /// When the disk fails; the marker is asked about again at the next start then.
    pub fn remove(&self, marker: MarkerV1) -> io::Result<()> {
        self.retain(|other| *other != marker)
    }

    /// Adds a marker in the place of the oldest when there are too many: for moves that are done.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn push(&self, marker: MarkerV1) -> io::Result<()> {
        self.change(|markers| {
            markers.retain(|other| other.machine != marker.machine);
            markers.push(marker);
            let over = markers.len().saturating_sub(MARKERS_MAX);
            markers.drain(..over);
            Ok(true)
        })
    }

    fn retain(&self, keep: impl FnMut(&MarkerV1) -> bool) -> io::Result<()> {
        self.change(|markers| {
            let before = markers.len();
            markers.retain(keep);
            Ok(markers.len() != before)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::seams::real::Directory;

    fn disk() -> (tempfile::TempDir, Arc<dyn Disk>) {
        let temporary = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(Directory::open(temporary.path()).unwrap());
        (temporary, disk)
    }

    #[test]
    fn a_marker_is_there_until_it_is_removed_and_damage_is_told() {
        let (_temporary, disk) = disk();
        let marker = MarkerV1 { machine: MachineId([1; 16]), id: MoveId([2; 16]), epoch: 3 };
        let out = Notes::new(&disk).out;
        out.add(marker).unwrap();
        out.add(marker).unwrap();
        assert_eq!(out.load().unwrap(), [marker]);
        out.remove(MarkerV1 { id: MoveId([3; 16]), ..marker }).unwrap();
        assert_eq!(Notes::new(&disk).out.load().unwrap(), [marker], "another move's");
        out.remove(marker).unwrap();
        assert_eq!((out.load().unwrap(), Notes::new(&disk).out.load().unwrap()), (vec![], vec![]));
        disk.write(OUT, b"garbage").unwrap();
        let out = Notes::new(&disk).out;
        for error in [out.load().unwrap_err(), out.add(marker).unwrap_err()] {
            assert!(error.to_string().starts_with("moves-out in the data directory is damaged"));
        }
    }

    #[test]
    fn of_moves_that_are_done_the_latest_are_known() {
        let (_temporary, disk) = disk();
        disk.write(DONE, b"garbage").unwrap();
        let of = |number: usize| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(number as u64).to_le_bytes());
            MarkerV1 { machine: MachineId(id), id: MoveId([2; 16]), epoch: 3 }
        };
        let done = Notes::new(&disk).done;
        (0..=MARKERS_MAX).for_each(|number| done.push(of(number)).unwrap());
        let known = Notes::new(&disk).done.load().unwrap();
        assert_eq!((known.len(), known[0], known[MARKERS_MAX - 1]), (MARKERS_MAX, of(1), of(MARKERS_MAX)));
    }

    /// A disk that counts reads, and whose writes wait or fail as told.
    #[derive(Debug)]
    struct Odd {
        below: Arc<dyn Disk>,
        reads: std::sync::atomic::AtomicUsize,
        fails: std::sync::atomic::AtomicBool,
        gate: Mutex<()>,
    }

    impl Disk for Odd {
        fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
            self.reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            self.below.read(name)
        }
        fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
            let _open = self.gate.lock().unwrap();
            if self.fails.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(io::Error::other("no"));
            }
            self.below.write(name, content)
        }
        fn remove(&self, name: &str) -> io::Result<()> {
            self.below.remove(name)
        }
        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.below.rename(from, to)
        }
        fn exists(&self, name: &str) -> io::Result<bool> {
            self.below.exists(name)
        }
        fn storage(&self, name: &str, grows: bool) -> io::Result<Box<dyn redb::StorageBackend>> {
            self.below.storage(name, grows)
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a writer that waits for its disk")]
    fn the_file_is_read_once_and_readers_do_not_wait_for_the_disk() {
        use std::sync::atomic::Ordering::SeqCst;
        let (_temporary, below) = disk();
        let odd = Arc::new(Odd { below, reads: 0.into(), fails: false.into(), gate: Mutex::default() });
        let disk: Arc<dyn Disk> = odd.clone();
        let notes = Arc::new(Notes::new(&disk));
        let marker = MarkerV1 { machine: MachineId([1; 16]), id: MoveId([2; 16]), epoch: 3 };
        notes.done.push(marker).unwrap();
        (0..5).for_each(|_| assert_eq!(notes.done.load().unwrap(), [marker]));
        assert_eq!(odd.reads.load(SeqCst), 1);
        let gate = odd.gate.lock().unwrap();
        let (pushed, later) = (notes.clone(), MarkerV1 { epoch: 4, ..marker });
        let writer = std::thread::spawn(move || pushed.done.push(later));
        while notes.done.changing.try_lock().is_ok() {
            std::thread::yield_now();
        }
        assert_eq!(notes.done.load().unwrap(), [marker], "what is on disk");
        drop(gate);
        writer.join().unwrap().unwrap();
        assert_eq!(notes.done.load().unwrap(), [later]);
        // What a failed write has left is read again.
        odd.fails.store(true, SeqCst);
        notes.done.push(MarkerV1 { epoch: 9, ..later }).unwrap_err();
        assert_eq!((notes.done.load().unwrap(), odd.reads.load(SeqCst)), (vec![later], 2));
    }
}
