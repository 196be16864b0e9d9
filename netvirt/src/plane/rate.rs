//! How much one port may send to all at once: a bucket that fills with time (RFC 2697's, of one color).

use std::time::Duration;

/// What is left to a port.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    per_second: u32,
    burst: u32,
    /// In thousandths of a frame.
    left_milli: u64,
    at: Duration,
}

impl Bucket {
    /// A full one that fills by so many frames a second, up to `burst`.
    pub fn new(per_second: u32, burst: u32) -> Self {
        Bucket { per_second, burst, left_milli: u64::from(burst) * 1_000, at: Duration::ZERO }
    }

    /// Takes one frame out, at a time that never goes back; `false` when there is none left.
    pub fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.at).as_millis().min(u128::from(u32::MAX)) as u64;
        if passed > 0 {
            // What is less than a millisecond counts the next time.
            self.at += Duration::from_millis(passed);
            let filled = self.left_milli + passed * u64::from(self.per_second);
            self.left_milli = filled.min(u64::from(self.burst) * 1_000);
        }
        let some = self.left_milli >= 1_000;
        if some {
            self.left_milli -= 1_000;
        }
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let mut bucket = Bucket::new(100, 10);
        let passes =
            |bucket: &mut Bucket, ms: u64| (0..1_000).filter(|_| bucket.take(Duration::from_millis(ms))).count();
        assert_eq!(passes(&mut bucket, 50), 10);
        assert_eq!((passes(&mut bucket, 60), passes(&mut bucket, 75), passes(&mut bucket, 80)), (1, 1, 1));
        assert_eq!(passes(&mut bucket, 10_000), 10, "no more than a burst is kept");
        assert_eq!(passes(&mut bucket, 9_000), 0, "time that goes back fills nothing");
    }
}
