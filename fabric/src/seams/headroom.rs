//! A database's file with room on the disk that nobody else can take.
//!
//! Others write to the same file system, and one of them may fill it between two looks of whoever watches. So the blocks
//! that the file will need next are allocated ahead: it can go on for a while on a full disk. On a file system that cannot
//! do that, or has no room for it, the file is what it would be without.

use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::limits::{HEADROOM_BYTES_MAX, HEADROOM_DISK_BYTES_MIN, HEADROOM_DIVISOR};

/// Headroom of a file on a disk of `total` bytes; none on a small one.
pub(super) fn headroom(total: u64) -> u64 {
    if total < HEADROOM_DISK_BYTES_MIN { 0 } else { (total / HEADROOM_DIVISOR).min(HEADROOM_BYTES_MAX) }
}

#[derive(Debug)]
pub(super) struct Headroom {
    inner: FileBackend,
    file: File,
    bytes: u64,
    allocated: Mutex<Allocated>,
}

#[derive(Debug, Default)]
struct Allocated {
    /// Up to here the file has its blocks.
    to: u64,
    /// There was no room: it is tried again once the file has grown past this. Each try may take what little there is.
    refused_to: u64,
}

impl Headroom {
    /// Takes a file that is open for writing.
    ///
    /// # Errors
    /// When another process has it open, or it cannot be used.
    pub(super) fn new(file: File, bytes: u64) -> io::Result<Self> {
        let ours = file.try_clone()?;
        let inner = FileBackend::new(file).map_err(io::Error::other)?;
        let length = ours.metadata()?.len();
        let headroom = Headroom { inner, file: ours, bytes, allocated: Mutex::default() };
        // The holes of the file as it is count as well.
        headroom.ahead(&mut headroom.allocated(), length);
        Ok(headroom)
    }

    fn allocated(&self) -> MutexGuard<'_, Allocated> {
        // Nothing panics under it.
        self.allocated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that there is room behind `end`, if there can be.
    fn ahead(&self, allocated: &mut Allocated, end: u64) {
        let enough = end.saturating_add(self.bytes) <= allocated.to;
        if self.bytes == 0 || enough || end < allocated.refused_to {
            return;
        }
        // More than is needed now, so that not every write asks for more.
        let target = end.saturating_add(2 * self.bytes);
        let (Ok(at), Ok(length)) = (i64::try_from(allocated.to), i64::try_from(target - allocated.to)) else { return };
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, length) {
            Ok(()) => allocated.to = target,
            // It never can.
            Err(Errno::EOPNOTSUPP) => allocated.to = u64::MAX,
            Err(_) => allocated.refused_to = end.saturating_add(self.bytes),
        }
    }
}

impl StorageBackend for Headroom {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let before = self.inner.len()?;
        self.inner.set_len(len)?;
        if len <= before {
            // What lay behind the new end is given back.
            let mut allocated = self.allocated();
            allocated.to = allocated.to.min(len);
            allocated.refused_to = 0;
            self.ahead(&mut allocated, len);
        }
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.ahead(&mut self.allocated(), offset.saturating_add(data.len() as u64));
        self.inner.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const MIB: u64 = 1 << 20;

    #[test]
    fn small_disks_have_none_and_large_ones_a_bounded_one() {
        assert_eq!([8 * MIB, 128 * MIB, 1 << 45].map(headroom), [0, 4 * MIB, HEADROOM_BYTES_MAX]);
    }

    #[test]
    fn blocks_are_there_before_they_are_written() {
        let file = tempfile::tempfile().unwrap();
        let look = file.try_clone().unwrap();
        let ahead = Headroom::new(file, MIB).unwrap();
        let blocks = || look.metadata().unwrap().blocks() * 512;
        assert!(blocks() > 0, "the temporary directory's file system cannot allocate ahead: TMPDIR=PATH names another");
        ahead.set_len(64 * MIB).unwrap();
        assert!(blocks() >= MIB && blocks() < 8 * MIB, "a hole is not filled before its time");
        ahead.write(10 * MIB, &[1; 4096]).unwrap();
        assert!(blocks() >= 11 * MIB);
        ahead.set_len(4 * MIB).unwrap();
        assert_eq!((ahead.len().unwrap(), blocks() >= 5 * MIB), (4 * MIB, true));
    }
}
