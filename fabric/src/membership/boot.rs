//! The boot stamp: a number that grows with every start of the daemon, whatever the wall clock does.

use std::io;

use crate::seams::{Clock, Disk};

/// File that holds the last stamp, in decimal.
/// Its name in the data directory.
pub const FILE: &str = "boot";

/// Draws this start's stamp: the wall clock in milliseconds, or the last stamp plus one when the clock went back. It is on
/// disk when this returns, so that no peer ever sees a stamp twice. Once per start of the daemon.
///
/// # Errors
/// When the disk fails, or the file holds no number (it is then damaged, and guessing could mute this node).
pub fn boot_stamp(disk: &dyn Disk, clock: &dyn Clock) -> io::Result<u64> {
    let last = match disk.read(FILE)? {
        None => 0,
        Some(bytes) => std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("file {FILE:?} holds no boot stamp")))?,
    };
    let stamp = (clock.wall().as_millis() as u64).max(last.saturating_add(1));
    disk.write(FILE, stamp.to_string().as_bytes())?;
    Ok(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seams::real::Directory;
    use std::time::Duration;

    #[derive(Debug)]
    struct Stuck(u64);
    impl Clock for Stuck {
        fn boottime(&self) -> Duration {
            Duration::ZERO
        }
        fn wall(&self) -> Duration {
            Duration::from_millis(self.0)
        }
    }

    #[test]
    fn stamps_grow_even_when_the_clock_goes_back() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Directory::open(directory.path()).unwrap();
        let stamps = [5_000, 5_000, 10, 9_000].map(|wall| boot_stamp(&disk, &Stuck(wall)).unwrap());
        assert_eq!(stamps, [5_000, 5_001, 5_002, 9_000]);
        disk.write(FILE, b"nonsense").unwrap();
        assert!(boot_stamp(&disk, &Stuck(1)).unwrap_err().to_string().contains("boot"));
    }
}
