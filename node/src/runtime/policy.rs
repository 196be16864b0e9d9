//! What follows when a machine's program has ended: pure.

use std::time::Duration;

use fabric::model::Restart;

use super::limits::{BACKOFF_FIRST, BACKOFF_MAX, BACKOFF_RESET};

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Start it again after this wait; the second is the wait to give next time.
    Restart {
        /// How long to wait now.
        wait: Duration,
        /// What [`after`] is given as `wait` next time.
        next_wait: Duration,
    },
    /// Leave it.
    End,
}

/// Decides after a program that ran for `uptime` ended with `code` (128 + signal when killed by one).
///
/// `wait` is the current back-off: [`BACKOFF_FIRST`] at the beginning.
pub fn after(policy: Restart, code: i32, uptime: Duration, wait: Duration) -> Next {
    let again = match policy {
        Restart::Always => true,
        Restart::OnFailure => code != 0,
        Restart::Never => false,
    };
    if !again {
        return Next::End;
    }
    let wait = if uptime >= BACKOFF_RESET { BACKOFF_FIRST } else { wait };
    Next::Restart { wait, next_wait: (wait * 2).min(BACKOFF_MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_differ_in_what_they_start_again() {
        let again = |policy, code| after(policy, code, Duration::ZERO, BACKOFF_FIRST) != Next::End;
        assert!(again(Restart::Always, 0) && again(Restart::Always, 137));
        assert!(!again(Restart::OnFailure, 0) && again(Restart::OnFailure, 1));
        assert!(!again(Restart::Never, 0) && !again(Restart::Never, 1));
    }

    #[test]
    fn the_wait_doubles_to_its_bound_and_a_long_run_resets_it() {
        let mut wait = BACKOFF_FIRST;
        let mut waits = vec![];
        for _ in 0..12 {
            let Next::Restart { wait: now, next_wait } = after(Restart::Always, 1, Duration::ZERO, wait) else {
                panic!("always means always");
            };
            waits.push(now.as_millis());
            wait = next_wait;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000]);
        let reset = after(Restart::Always, 1, BACKOFF_RESET, wait);
        assert_eq!(reset, Next::Restart { wait: BACKOFF_FIRST, next_wait: BACKOFF_FIRST * 2 });
    }
}
