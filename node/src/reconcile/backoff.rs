//! When a machine is started again whose supervisor was killed: pure.
//!
//! A program that ends is the supervisor's to start again, with its own back-off (`runtime::policy`). A supervisor that
//! dies can do nothing, so the node starts the machine anew, by the same rule: at once the first time, nearly, and ever
//! later when it happens again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fabric::ids::MachineId;
use fabric::model::Restart;

use super::Local;
use crate::runtime::limits::BACKOFF_FIRST;
use crate::runtime::policy::{self, Next};

/// A machine that has lost its supervisor, perhaps several times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Which start after a loss it waits for, or had last.
    pub attempt: u32,
    /// Not before this, on `CLOCK_BOOTTIME`.
    pub not_before: Duration,
    /// The wait after the next loss.
    next_wait: Duration,
    /// When it was started after the last loss; none while it waits for that.
    started: Option<Duration>,
}

/// All of them on this node.
pub type Retries = BTreeMap<MachineId, Retry>;

/// Brings `retries` up to what is observed at `now`: `lost` are the machines that are to be started again and whose
/// supervisor was killed.
pub fn look(retries: &mut Retries, now: Duration, locals: &BTreeMap<MachineId, Local>, lost: &BTreeSet<MachineId>) {
    retries.retain(|id, retry| {
        let up = locals.get(id).is_some_and(|local| local.runs());
        let ran = retry.started.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        lost.contains(id) || (up && ran < crate::runtime::limits::BACKOFF_RESET)
    });
    for id in lost {
        let known = retries.get(id).copied();
        let (attempt, ran, wait) = match known {
            None => (0, Duration::ZERO, BACKOFF_FIRST),
            Some(Retry { started: Some(since), attempt, next_wait, .. }) => {
                (attempt, now.saturating_sub(since), next_wait)
            }
            // It waits already.
            Some(_) => continue,
        };
        // Whether its policy wants it again was asked before; what counts here is the wait.
        let Next::Restart { wait, next_wait } = policy::after(Restart::Always, 128 + 9, ran, wait) else { continue };
        retries.insert(*id, Retry { attempt: attempt + 1, not_before: now + wait, next_wait, started: None });
    }
}

/// A machine is being started at `now`.
pub fn started(retries: &mut Retries, id: MachineId, now: Duration) {
    if let Some(retry) = retries.get_mut(&id) {
        retry.started = Some(now);
    }
}

/// Machines that must wait, and how long until the first of them need not.
pub fn waiting(retries: &Retries, now: Duration) -> (BTreeSet<MachineId>, Option<Duration>) {
    let waiting = || retries.iter().filter(|(_, retry)| retry.started.is_none() && retry.not_before > now);
    let first = waiting().map(|(_, retry)| retry.not_before - now).min();
    (waiting().map(|(id, _)| *id).collect(), first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::Phase;
    use crate::runtime::limits::{BACKOFF_MAX, BACKOFF_RESET};

    const ID: MachineId = MachineId([1; 16]);

    fn locals(phase: Phase) -> BTreeMap<MachineId, Local> {
        BTreeMap::from([(ID, Local { epoch: 1, restarts: 0, phase })])
    }

    #[test]
    fn the_waits_double_while_it_is_lost_again_and_again() {
        let (mut retries, lost) = (Retries::new(), BTreeSet::from([ID]));
        let mut now = Duration::from_secs(5);
        let mut waits = vec![];
        for attempt in 1..=11 {
            look(&mut retries, now, &locals(Phase::Lost), &lost);
            let (who, wait) = waiting(&retries, now);
            let wait = wait.expect("it waits");
            assert_eq!((who, retries[&ID].attempt), (lost.clone(), attempt));
            // Looking again changes nothing.
            look(&mut retries, now + wait / 2, &locals(Phase::Lost), &lost);
            now += wait;
            assert_eq!(waiting(&retries, now), (BTreeSet::new(), None));
            waits.push(wait.as_millis());
            started(&mut retries, ID, now);
        }
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[10], BACKOFF_MAX.as_millis());
    }

    #[test]
    fn a_long_run_or_an_ordinary_end_is_a_new_beginning() {
        let (mut retries, lost) = (Retries::new(), BTreeSet::from([ID]));
        let second = Duration::from_secs(1);
        look(&mut retries, second, &locals(Phase::Lost), &lost);
        started(&mut retries, ID, second * 2);
        look(&mut retries, second * 3, &locals(Phase::Up), &BTreeSet::new());
        assert_eq!(retries[&ID].attempt, 1, "still remembered");
        look(&mut retries, second * 2 + BACKOFF_RESET, &locals(Phase::Up), &BTreeSet::new());
        assert!(retries.is_empty());
        look(&mut retries, second, &locals(Phase::Lost), &lost);
        look(&mut retries, second, &locals(Phase::Ended), &BTreeSet::new());
        assert!(retries.is_empty());
    }
}
