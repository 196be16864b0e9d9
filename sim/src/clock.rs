//! The clocks of one boot of a host: world time, as a clock that drifts and may have been stopped or set sees it.
//!
//! The world's time is microseconds since the run began. A host's monotonic clock is its paused tokio runtime's; this
//! maps between the two, so that a packet or a deadline means the same moment on both sides.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::seams::Clock;
use tokio::time::Instant;

/// Wall time at which every run begins, since the Unix epoch.
pub const EPOCH: Duration = Duration::from_secs(1_800_000_000);

#[derive(Debug)]
struct Dial {
    /// The runtime's clock at world time `origin_us`.
    base: Instant,
    origin_us: u64,
    /// How much faster than the world it goes, in millionths.
    drift_ppm: i64,
    /// The step under way. Times told to the world stay inside it, since tokio rounds timers up to its milliseconds.
    step: (u64, u64),
    /// What somebody set the wall clock off by, in microseconds.
    wall_offset_us: i64,
    /// What `CLOCK_BOOTTIME` says at `base`: differs between boots, as the origin is arbitrary.
    boot_origin: Duration,
}

/// The clocks of one boot.
#[derive(Debug, Clone)]
pub struct HostClock {
    dial: Arc<Mutex<Dial>>,
}

impl HostClock {
    /// Clocks that start at world time `now_us`; must be called inside the boot's runtime.
    pub fn start(now_us: u64, drift_ppm: i64, wall_offset_us: i64, boot_origin: Duration) -> Self {
        let base = Instant::now();
        let dial = Dial { base, origin_us: now_us, drift_ppm, step: (now_us, now_us), wall_offset_us, boot_origin };
        HostClock { dial: Arc::new(Mutex::new(dial)) }
    }

    fn dial(&self) -> MutexGuard<'_, Dial> {
        self.dial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime's time at world time `world_us`.
    pub fn local(&self, world_us: u64) -> Instant {
        self.dial().local(world_us)
    }

    /// `CLOCK_BOOTTIME` at world time `world_us`; needs no runtime.
    pub fn boottime_at(&self, world_us: u64) -> Duration {
        let dial = self.dial();
        dial.boot_origin + dial.local(world_us).saturating_duration_since(dial.base)
    }

    /// World time now, within the step under way.
    pub fn world_us(&self) -> u64 {
        self.dial().world_us()
    }

    /// Begins a step.
    pub fn begin_step(&self, from_us: u64, to_us: u64) {
        self.dial().step = (from_us, to_us);
    }

    /// The host's monotonic clock stood still for so long.
    pub fn stood_still(&self, length_us: u64) {
        self.dial().origin_us += length_us;
    }

    /// Somebody set the wall clock: off by so much from the truth.
    pub fn set_wall_offset(&self, offset_us: i64) {
        self.dial().wall_offset_us = offset_us;
    }
}

impl Dial {
    fn local(&self, world_us: u64) -> Instant {
        let elapsed = i128::from(world_us.saturating_sub(self.origin_us));
        let nanos = elapsed * 1000 + elapsed * i128::from(self.drift_ppm) / 1000;
        self.base + Duration::from_nanos(nanos as u64)
    }

    /// Time on the runtime's clock since the boot. Outside the runtime (a handle dropped late) the step's begin.
    fn elapsed(&self) -> Duration {
        let now = match tokio::runtime::Handle::try_current() {
            Ok(_) => Instant::now(),
            Err(_) => self.local(self.step.0),
        };
        now.saturating_duration_since(self.base)
    }

    fn world_us(&self) -> u64 {
        let nanos = self.elapsed().as_nanos() as i128;
        let elapsed_us = nanos * 1000 / (1_000_000 + i128::from(self.drift_ppm));
        (self.origin_us + elapsed_us as u64).clamp(self.step.0, self.step.1)
    }
}

impl Clock for HostClock {
    fn boottime(&self) -> Duration {
        let dial = self.dial();
        dial.boot_origin + dial.elapsed()
    }

    fn wall(&self) -> Duration {
        let dial = self.dial();
        let true_us = dial.origin_us as i128 + dial.elapsed().as_micros() as i128;
        let shown_us = EPOCH.as_micros() as i128 + true_us + i128::from(dial.wall_offset_us);
        Duration::from_micros(shown_us.max(0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_runtime<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(work)
    }

    #[test]
    fn a_fast_clock_gains_and_maps_back() {
        in_runtime(async {
            let clock = HostClock::start(5_000, 1_000, 0, Duration::from_secs(7));
            let second_later = clock.local(1_005_000);
            clock.begin_step(1_004_000, 1_006_000);
            tokio::time::advance(second_later - Instant::now()).await;
            assert_eq!(clock.boottime(), Duration::from_micros(7_000_000 + 1_001_000));
            assert!(clock.world_us().abs_diff(1_005_000) <= 1, "{}", clock.world_us());
        });
    }

    #[test]
    fn a_clock_that_stood_still_lags_and_a_set_one_shows_it() {
        in_runtime(async {
            let clock = HostClock::start(0, 0, 0, Duration::ZERO);
            let before = clock.local(1_000_000);
            clock.stood_still(400_000);
            assert_eq!(clock.local(1_000_000), before - Duration::from_micros(400_000));
            let true_wall = clock.wall();
            clock.set_wall_offset(-3_600_000_000);
            assert_eq!(clock.wall(), true_wall - Duration::from_secs(3600));
        });
    }

    #[test]
    fn times_told_to_the_world_stay_inside_the_step() {
        in_runtime(async {
            let clock = HostClock::start(0, 0, 0, Duration::ZERO);
            clock.begin_step(10, 20);
            assert_eq!(clock.world_us(), 10);
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(clock.world_us(), 20);
        });
    }
}
