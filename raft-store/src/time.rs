//! The cluster's time: what leaders stamp into entries. Pure; the clocks' readings are arguments.
//!
//! A stamp never falls behind an earlier one, whoever led then. A leader whose wall clock lies behind the last stamp (its
//! predecessor's was set ahead, then right again) would stamp the same millisecond until its own had caught up, and what
//! waits for a time would wait as long; so stamps go on at the pace of the monotonic clock instead.

use std::time::Duration;

/// The largest stamp that this node knows of, and when it learned it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ClusterClock {
    stamp_ms: u64,
    at: Duration,
}

impl ClusterClock {
    /// Takes in the stamp of an applied entry, read at `boottime`.
    pub(crate) fn saw(&mut self, stamp_ms: u64, boottime: Duration) {
        if stamp_ms > self.now(0, boottime) || self.stamp_ms == 0 {
            (self.stamp_ms, self.at) = (stamp_ms, boottime);
        }
    }

    /// The cluster's time, Unix milliseconds, by this node's clocks.
    pub(crate) fn now(&self, wall_ms: u64, boottime: Duration) -> u64 {
        let passed = boottime.saturating_sub(self.at).as_millis() as u64;
        let gone_on = if self.stamp_ms == 0 { 0 } else { self.stamp_ms.saturating_add(passed) };
        wall_ms.max(gone_on)
    }

    /// The stamp of the next entry.
    pub(crate) fn stamp(&mut self, wall_ms: u64, boottime: Duration) -> u64 {
        let now = self.now(wall_ms, boottime);
        // Only what the wall clock gave is reckoned from anew: fractions of a millisecond would be lost every time.
        if self.now(0, boottime) < now {
            (self.stamp_ms, self.at) = (now, boottime);
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_right_clock_is_followed() {
        let mut clock = ClusterClock::default();
        assert_eq!(clock.stamp(HOUR_MS, at(0)), HOUR_MS);
        assert_eq!(clock.stamp(HOUR_MS + 7, at(5)), HOUR_MS + 7);
    }

    #[test]
    fn stamps_go_on_when_the_wall_clock_was_set_back() {
        let mut clock = ClusterClock::default();
        clock.stamp(2 * HOUR_MS, at(10));
        assert_eq!(clock.stamp(HOUR_MS, at(11)), 2 * HOUR_MS + 1);
        assert_eq!(clock.stamp(HOUR_MS + 5_000, at(5_011)), 2 * HOUR_MS + 5_001);
    }

    #[test]
    fn many_stamps_in_a_millisecond_hold_time_up_no_more_than_few() {
        let mut clock = ClusterClock::default();
        clock.stamp(2 * HOUR_MS, at(0));
        let mut last = 0;
        for step in 1..=10_000 {
            let boottime = Duration::from_micros(step * 300);
            clock.saw(last, boottime);
            last = clock.stamp(HOUR_MS, boottime);
        }
        assert_eq!(last, 2 * HOUR_MS + 3_000);
    }

    #[test]
    fn a_new_leader_goes_on_from_what_it_applied() {
        let mut clock = ClusterClock::default();
        clock.saw(2 * HOUR_MS, at(100));
        assert_eq!(clock.now(HOUR_MS, at(1_100)), 2 * HOUR_MS + 1_000);
        // Seen again and later: time does not start anew.
        clock.saw(2 * HOUR_MS, at(1_100));
        assert_eq!(clock.stamp(HOUR_MS, at(1_200)), 2 * HOUR_MS + 1_100);
        clock.saw(3 * HOUR_MS, at(1_300));
        assert_eq!(clock.now(HOUR_MS, at(1_300)), 3 * HOUR_MS);
    }

    #[test]
    fn what_was_never_stamped_is_the_wall_clock() {
        assert_eq!(ClusterClock::default().now(HOUR_MS, at(9 * HOUR_MS)), HOUR_MS);
    }
}
