//! The second guard of exclusive machines: the daemon fences those whose supervisor lets the lease deadline go by.
//!
//! The supervisor freezes in time by itself, and kills what does not freeze. One that hangs (it was stopped, or waits for
//! a disk) does neither, while its machine runs on and another node may take it over. The daemon knows the deadline that
//! the supervisor last confirmed, and needs no answer of it to kill it together with its machine. It does so up to its end: a
//! daemon that stops takes some seconds over it.

use std::sync::Arc;
use std::time::Duration;

use fabric::ids::MachineId;
use fabric::limits::LEASE_TTL;
use tokio::task::JoinSet;

use super::context::Context;
use crate::runtime::Observed;

/// A machine is fenced this long before its deadline: later than its supervisor kills (`LEASE_KILL_MARGIN`), so that one
/// that does its work is left to it, and early enough for the signals to arrive.
const FENCE_MARGIN: Duration = Duration::from_millis(250);
/// Without a change the machines are looked at this often: a new deadline, or a clock that stood still, is seen in time.
const LOOK: Duration = Duration::from_millis(LEASE_TTL.as_millis() as u64 / 3);
/// One that was fenced and is still up is fenced again after this.
const AGAIN: Duration = Duration::from_millis(100);
/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(20);

/// What is to be done at a moment.
#[derive(Debug, PartialEq, Eq)]
struct Watch {
    /// Their deadline is all but over: nothing of them may run.
    fence: Vec<MachineId>,
    /// Look again after this.
    next: Duration,
}

/// Decides at `now`, on `CLOCK_BOOTTIME`. A machine that says that it is held is fenced too, for its supervisor may have
/// hung between saying so and the kernel's word; the runtime spares it when nothing of it runs.
fn decide(machines: &[Observed], now: Duration) -> Watch {
    let mut watch = Watch { fence: vec![], next: LOOK };
    for machine in machines.iter().filter(|machine| machine.exclusive && machine.is_up()) {
        let Some(deadline) = machine.lease_deadline else { continue };
        let left = deadline.saturating_sub(FENCE_MARGIN).saturating_sub(now);
        let held = machine.frozen.by_lease || machine.frozen.by_order;
        if left.is_zero() {
            watch.fence.push(machine.id);
        }
        // What is held for good is looked at in passing.
        watch.next = match (left.is_zero(), held) {
            (true, true) => watch.next,
            (true, false) => watch.next.min(AGAIN),
            (false, _) => watch.next.min(left),
        };
    }
    watch
}

/// Guards as long as it is let.
pub async fn run(context: Arc<Context>) {
    let mut changed = context.runtime.watch();
    loop {
        let next = match context.runtime.list().await {
            Ok(machines) => {
                let watch = decide(&machines, context.seams.clock.boottime());
                fence(&context, watch.fence).await;
                watch.next
            }
            // The reconciler tells.
            Err(_) => AGAIN,
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep(next) => {}
            gone = changed.changed() => {
                if gone.is_err() {
                    return;
                }
                tokio::time::sleep(GATHER).await;
            }
        }
    }
}

/// All at once: no machine's end waits for another's.
async fn fence(context: &Context, machines: Vec<MachineId>) {
    let mut fences = JoinSet::new();
    for machine in machines {
        let runtime = context.runtime.clone();
        fences.spawn(async move {
            match runtime.fence(machine).await {
                Ok(false) => {}
                Ok(true) => tracing::error!(
                    machine = %machine.short(),
                    "killed: its supervisor did not hold it before its lease ended"
                ),
                Err(error) => tracing::error!(machine = %machine.short(), reason = %error, "cannot be fenced"),
            }
        });
    }
    while fences.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use fabric::limits::{LEASE_FREEZE_MARGIN, LEASE_KILL_MARGIN};
    use fabric::model::MachineState;

    use super::*;
    use crate::fixtures;
    use crate::runtime::Frozen;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn machine(number: u8, deadline_ms: u64) -> Observed {
        let id = MachineId([number; 16]);
        Observed {
            id,
            image: None,
            epoch: 1,
            requested_restarts: 0,
            exclusive: true,
            frozen: Frozen::default(),
            lease_deadline: Some(at(deadline_ms)),
            lost: false,
            status: fixtures::status(id, MachineState::Running),
        }
    }

    fn fenced(machine: Observed, now: u64) -> bool {
        !decide(&[machine], at(now)).fence.is_empty()
    }

    #[test]
    fn the_guard_sleeps_until_the_first_deadline_is_all_but_over() {
        let two = [machine(1, 10_000), machine(2, 11_000)];
        assert_eq!(decide(&two, at(0)), Watch { fence: vec![], next: LOOK });
        assert_eq!(decide(&two, at(9_000)), Watch { fence: vec![], next: at(750) });
        assert_eq!(decide(&two, at(9_750)), Watch { fence: vec![two[0].id], next: AGAIN });
        // Its deadline has moved meanwhile.
        assert_eq!(decide(&[machine(1, 16_000)], at(9_750)).fence, []);
        assert_eq!(decide(&[], at(9_750)), Watch { fence: vec![], next: LOOK });
    }

    #[test]
    fn who_does_its_work_comes_first_and_a_held_machine_is_looked_at_in_passing() {
        assert!(FENCE_MARGIN < LEASE_KILL_MARGIN && LEASE_KILL_MARGIN < LEASE_FREEZE_MARGIN);
        let mut held = machine(1, 10_000);
        held.frozen.by_lease = true;
        held.status.state = MachineState::Frozen;
        assert_eq!(decide(&[held.clone()], at(99_000)), Watch { fence: vec![held.id], next: LOOK });
    }

    #[test]
    fn what_is_down_or_not_exclusive_is_no_concern_of_it() {
        assert!(fenced(machine(1, 10_000), 10_000));
        assert!(!fenced(Observed { exclusive: false, ..machine(1, 10_000) }, 10_000));
        assert!(!fenced(Observed { lease_deadline: None, ..machine(1, 10_000) }, 10_000));
        let mut down = machine(1, 10_000);
        down.status.state = MachineState::Failed;
        assert!(!fenced(down, 10_000));
    }
}
