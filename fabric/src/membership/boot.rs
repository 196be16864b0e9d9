//! The boot stamp: a number that grows with every start of the daemon, whatever the wall clock does.

use std::io;

use rkyv::{Archive, Deserialize, Serialize};

use crate::records;
use crate::seams::{Clock, Disk};
use crate::wire;

/// File that holds the last stamp: its name in the data directory.
pub const FILE: &str = "boot";

/// The last stamp. A frame, and no plain number: one flipped bit of a number is another number, and a node whose stamp lies
/// in the far future is refused by all others.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootV1 {
    /// Unix milliseconds, or more where the clock had gone back.
    pub stamp: u64,
}

records!(BootV1 = (37, 1));

/// Draws this start's stamp: the wall clock in milliseconds, or the last stamp plus one when the clock went back. It is on
/// disk when this returns, so that no peer ever sees a stamp twice. Once per start of the daemon.
///
/// # Errors
/// When the disk fails, or the file is damaged (guessing could mute this node).
pub fn boot_stamp(disk: &dyn Disk, clock: &dyn Clock) -> io::Result<u64> {
    let last = match disk.read(FILE)? {
        None => 0,
        Some(bytes) => {
            let damaged = |cause| io::Error::new(io::ErrorKind::InvalidData, format!("file {FILE:?}: {cause}"));
            wire::decode::<BootV1>(&bytes).map_err(damaged)?.stamp
        }
    };
    let stamp = (clock.wall().as_millis() as u64).max(last.saturating_add(1));
    disk.write(FILE, &wire::encode(&BootV1 { stamp }))?;
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
        let good = disk.read(FILE).unwrap().unwrap();
        for at in 0..good.len() {
            let mut rotten = good.clone();
            rotten[at] ^= 1 << (at % 8);
            disk.write(FILE, &rotten).unwrap();
            let error = boot_stamp(&disk, &Stuck(1)).expect_err("a flipped bit is noticed");
            assert!(error.kind() == io::ErrorKind::InvalidData && error.to_string().contains("boot"), "{error}");
        }
    }
}
