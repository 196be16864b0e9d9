//! What this host has and how busy it is: the seam in front of `/proc`.
//!
//! Offered to machines is what the host has less a reserve for itself and the fabric (design section 6).

use std::fmt::Debug;

use fabric::model::Capacity;

/// Part of the memory that is kept from machines, as a divisor.
const RESERVE_DIVISOR: u64 = 10;
/// The least memory that is kept from machines.
const RESERVE_BYTES_MIN: u64 = 512 << 20;
/// The file in the data directory that holds room in reserve.
pub const RESERVE_FILE: &str = "reserve";

/// How busy a host is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Memory that could be used without swapping.
    pub memory_available_bytes: u64,
    /// Runnable tasks, in thousandths per core.
    pub load_millis: u32,
}

/// A file system's room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// All of it.
    pub total_bytes: u64,
    /// What may still be written.
    pub free_bytes: u64,
}

/// The host, as the node sees it.
pub trait Host: Debug + Send + Sync {
    /// Everything there is.
    fn total(&self) -> Capacity;
    /// How busy it is now.
    fn pressure(&self) -> Pressure;
    /// The file system that machines write to; none when that is not known.
    fn disk(&self) -> Option<DiskSpace> {
        None
    }
    /// Whether room is held in reserve on it.
    fn has_reserve(&self) -> bool {
        false
    }
    /// Holds so many bytes of it in reserve; none gives the reserve up.
    ///
    /// # Errors
    /// When the file system refuses; nothing is held then.
    fn set_reserve(&self, bytes: u64) -> std::io::Result<()> {
        let _ = bytes;
        Ok(())
    }
}

/// What a host of `total` offers to machines.
pub fn offered(total: Capacity) -> Capacity {
    let reserve = (total.memory_bytes / RESERVE_DIVISOR).max(RESERVE_BYTES_MIN);
    let memory_bytes = total.memory_bytes.saturating_sub(reserve).max(total.memory_bytes / 4);
    Capacity { memory_bytes, disk_bytes: total.disk_bytes - total.disk_bytes / RESERVE_DIVISOR, ..total }
}

/// The real host.
#[derive(Debug)]
pub struct ThisHost {
    data_dir: std::path::PathBuf,
    /// As of the daemon's start: asking reads several files, and the load is asked for every second.
    cores: u32,
}

impl ThisHost {
    /// Disk is measured where `data_dir` lies.
    pub fn new(data_dir: &std::path::Path) -> Self {
        ThisHost { data_dir: data_dir.to_owned(), cores: cores() }
    }
}

#[expect(clippy::disallowed_methods, reason = "reads /proc: this is the seam")]
fn proc_file(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default()
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

/// A line of `/proc/meminfo` in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The one-minute load of `/proc/loadavg`, in thousandths per core.
fn load_millis(text: &str, cores: u32) -> Option<u32> {
    let load: f64 = text.split(' ').next()?.parse().ok()?;
    Some((load * 1000.0 / f64::from(cores.max(1))).clamp(0.0, 1e6) as u32)
}

impl Host for ThisHost {
    fn total(&self) -> Capacity {
        let disk = nix::sys::statvfs::statvfs(&self.data_dir);
        let disk_bytes = disk.map_or(0, |fs| fs.blocks() * fs.fragment_size());
        let memory_bytes = meminfo(&proc_file("meminfo"), "MemTotal").unwrap_or(0);
        Capacity { cpu_millis: self.cores * 1000, memory_bytes, disk_bytes }
    }

    fn pressure(&self) -> Pressure {
        Pressure {
            memory_available_bytes: meminfo(&proc_file("meminfo"), "MemAvailable").unwrap_or(0),
            load_millis: load_millis(&proc_file("loadavg"), self.cores).unwrap_or(0),
        }
    }

    fn disk(&self) -> Option<DiskSpace> {
        let fs = nix::sys::statvfs::statvfs(&self.data_dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(fs.fragment_size());
        Some(DiskSpace { total_bytes: bytes(fs.blocks()), free_bytes: bytes(fs.blocks_available()) })
    }

    fn has_reserve(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        // A crash may have left a file that holds nothing.
        std::fs::metadata(self.data_dir.join(RESERVE_FILE)).is_ok_and(|meta| meta.blocks() > 0)
    }

    #[expect(clippy::disallowed_methods, reason = "the reserve is room and no content: this is the seam")]
    fn set_reserve(&self, bytes: u64) -> std::io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.data_dir.join(RESERVE_FILE);
        let removed = match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        if bytes == 0 {
            return removed;
        }
        removed?;
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let held = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
        held.map_err(|error| {
            let _ = std::fs::remove_file(&path);
            error.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_and_nonsense_is_none() {
        assert_eq!(meminfo("MemTotal:  2048 kB\nMemFree: 1 kB\n", "MemTotal"), Some(2 << 20));
        assert_eq!(meminfo("MemTotal: x kB", "MemTotal"), None);
        assert_eq!(load_millis("0.50 0.1 0.1 1/2 3", 2), Some(250));
        assert_eq!(load_millis("", 2), None);
    }

    #[test]
    fn room_is_held_and_given_up() {
        let temporary = tempfile::tempdir().unwrap();
        let host = ThisHost::new(temporary.path());
        let disk = host.disk().unwrap();
        assert!(disk.total_bytes >= disk.free_bytes && disk.total_bytes > 0);
        host.set_reserve(0).unwrap();
        assert!(!host.has_reserve());
        for bytes in [1 << 20, 1 << 16] {
            host.set_reserve(bytes).unwrap();
            let held = std::fs::metadata(temporary.path().join(RESERVE_FILE)).unwrap();
            assert!(host.has_reserve() && std::os::unix::fs::MetadataExt::blocks(&held) * 512 >= bytes);
        }
        assert!(host.set_reserve(1 << 50).is_err());
        assert!(!host.has_reserve());
    }

    #[test]
    fn a_reserve_stays_with_the_host() {
        let offer =
            |gib: u64| offered(Capacity { cpu_millis: 1000, memory_bytes: gib << 30, disk_bytes: 0 }).memory_bytes;
        assert_eq!(offer(100), (100 << 30) - (100 << 30) / 10);
        assert_eq!(offer(2), (2 << 30) - RESERVE_BYTES_MIN);
        assert_eq!(offer(0), 0);
    }
}
