//! What a supervisor does about its lease deadline: pure, so that every instant can be tested.
//!
//! The order of events is the safety of exclusive machines (design section 7): frozen 1.5 s before the lease ends, killed
//! 0.5 s before it if the kernel has not confirmed the freeze, so that nothing runs when another node may take over.

use std::time::Duration;

use fabric::limits::{LEASE_FREEZE_MARGIN, LEASE_KILL_MARGIN};

use super::limits::FREEZE_RECHECK;

/// How far the freeze is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// Not asked for.
    No,
    /// Asked for; some process may still run.
    Asked,
    /// The kernel says that nothing runs.
    Confirmed,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Nothing before this time.
    Wait(Duration),
    /// Freeze.
    Freeze,
    /// Kill: the freeze did not come in time.
    Kill,
    /// Nothing runs; wait for the daemon.
    Hold,
}

/// Decides at `now` for a machine whose lease ends at `deadline` (both on `CLOCK_BOOTTIME`).
pub fn decide(now: Duration, deadline: Duration, freeze: Freeze) -> Act {
    let freeze_at = deadline.saturating_sub(LEASE_FREEZE_MARGIN);
    let kill_at = deadline.saturating_sub(LEASE_KILL_MARGIN);
    match freeze {
        _ if now < freeze_at => Act::Wait(freeze_at),
        Freeze::Confirmed => Act::Hold,
        _ if now >= kill_at => Act::Kill,
        Freeze::No => Act::Freeze,
        Freeze::Asked => Act::Wait((now + FREEZE_RECHECK).min(kill_at)),
    }
}

/// Whether a machine may (re)start at `now`: never in the time in which it would have to be frozen.
pub fn may_start(now: Duration, deadline: Duration) -> bool {
    now < deadline.saturating_sub(LEASE_FREEZE_MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_waits_freezes_and_holds() {
        let deadline = at(10_000);
        assert_eq!(decide(at(0), deadline, Freeze::No), Act::Wait(at(8_500)));
        assert_eq!(decide(at(8_500), deadline, Freeze::No), Act::Freeze);
        assert_eq!(decide(at(8_500), deadline, Freeze::Asked), Act::Wait(at(8_502)));
        assert_eq!(decide(at(9_499), deadline, Freeze::Asked), Act::Wait(at(9_500)));
        assert_eq!(decide(at(9_400), deadline, Freeze::Confirmed), Act::Hold);
        assert_eq!(decide(at(60_000), deadline, Freeze::Confirmed), Act::Hold);
    }

    #[test]
    fn what_is_not_frozen_in_time_is_killed() {
        for freeze in [Freeze::No, Freeze::Asked] {
            for now in [9_500, 9_999, 10_000, 99_000] {
                assert_eq!(decide(at(now), at(10_000), freeze), Act::Kill);
            }
        }
    }

    #[test]
    fn a_deadline_that_is_over_or_near_starts_nothing() {
        assert!(may_start(at(8_499), at(10_000)));
        assert!(!may_start(at(8_500), at(10_000)));
        assert!(!may_start(at(0), at(0)));
        assert_eq!(decide(at(0), at(0), Freeze::No), Act::Kill);
    }

    /// Whatever the answers of the kernel, nothing is left running once the kill margin has begun.
    #[test]
    fn every_instant_of_the_last_half_second_is_quiet() {
        for now in (0..12_000).map(at) {
            for freeze in [Freeze::No, Freeze::Asked, Freeze::Confirmed] {
                let act = decide(now, at(10_000), freeze);
                if now >= at(9_500) {
                    assert!(matches!(act, Act::Kill | Act::Hold));
                }
                if let Act::Wait(until) = act {
                    assert!(until > now && until <= at(9_500));
                }
            }
        }
    }
}
