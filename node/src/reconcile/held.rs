//! Who works on a machine, and how new a view of the ledger must be before anybody decides about it again.
//!
//! A machine is worked on by one at a time: by an action of the reconciler, or by a move. What that one has written to the
//! ledger may not be in this node's view yet when it is done; a reconciler that went by the older view would start what
//! has just been given away. So the machine stays held until a view comes that shows it: for that there is no time-out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fabric::ids::MachineId;
use raft_store::ledger::{Applied, LedgerError};
use tokio::sync::watch;

/// Who works on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// The reconciler: soon done.
    Action,
    /// A move.
    Move,
}

#[derive(Debug, Default, Clone, Copy)]
struct Hold {
    by: Option<Work>,
    /// Nobody decides on an older view than this ledger index.
    floor: u64,
}

/// The machines that are worked on. Clones share it.
#[derive(Debug, Clone)]
pub struct Held(Arc<Registry>);

#[derive(Debug)]
struct Registry {
    holds: Mutex<BTreeMap<MachineId, Hold>>,
    freed: watch::Sender<()>,
}

impl Default for Held {
    fn default() -> Self {
        Held(Arc::new(Registry { holds: Mutex::default(), freed: watch::Sender::new(()) }))
    }
}

impl Held {
    fn holds(&self) -> MutexGuard<'_, BTreeMap<MachineId, Hold>> {
        self.0.holds.lock().expect("no holder panics")
    }

    /// Machines about which nobody may decide by a view of the ledger as of `view`.
    pub fn busy(&self, view: u64) -> BTreeSet<MachineId> {
        let mut holds = self.holds();
        holds.retain(|_, hold| hold.by.is_some() || hold.floor > view);
        holds.keys().copied().collect()
    }

    fn take(&self, machine: MachineId, work: Work, view: u64) -> Option<HeldGuard> {
        let mut holds = self.holds();
        let hold = holds.entry(machine).or_default();
        if hold.by.is_some() || hold.floor > view {
            return None;
        }
        hold.by = Some(work);
        Some(HeldGuard { held: self.clone(), machine, kept: false })
    }

    /// Changes whenever someone is done with a machine.
    pub fn freed(&self) -> watch::Receiver<()> {
        self.0.freed.subscribe()
    }

    /// Whether a move of this daemon has the machine.
    pub fn is_moving(&self, machine: MachineId) -> bool {
        self.holds().get(&machine).is_some_and(|hold| hold.by == Some(Work::Move))
    }

    /// For an action that was decided by the view as of `view`: none when someone has the machine, or had it since.
    pub fn take_for_action(&self, machine: MachineId, view: u64) -> Option<HeldGuard> {
        self.take(machine, Work::Action, view)
    }

    /// For a move, or for the end of one: what it does is checked by the ledger, so any view will do. None when someone has
    /// the machine.
    pub fn take_for_move(&self, machine: MachineId) -> Option<HeldGuard> {
        self.take(machine, Work::Move, u64::MAX)
    }

    /// The same, once the action under way is done: none when that takes longer than `patience`, or another move has it.
    pub async fn wait_for_move(&self, machine: MachineId, patience: Duration) -> Option<HeldGuard> {
        let mut freed = self.freed();
        let waiting = async {
            loop {
                if let Some(guard) = self.take_for_move(machine) {
                    return Some(guard);
                }
                if self.is_moving(machine) {
                    return None;
                }
                freed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(patience, waiting).await.ok().flatten()
    }
}

/// A machine that is worked on, until this goes.
#[derive(Debug)]
pub struct HeldGuard {
    held: Held,
    machine: MachineId,
    kept: bool,
}

impl HeldGuard {
    /// The ledger has changed the machine at `index`: from now on nobody decides on an older view.
    pub fn until_seen(&self, index: u64) {
        if let Some(hold) = self.held.holds().get_mut(&self.machine) {
            hold.floor = hold.floor.max(index);
        }
    }

    /// Keeps the machine held until the process ends: what became of it is not known here.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for HeldGuard {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Some(hold) = self.held.holds().get_mut(&self.machine) {
            hold.by = None;
        }
        self.held.0.freed.send_replace(());
    }
}

/// What an answer to a write says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A view of this index shows what came of it.
    Known(u64),
    /// It was not done, and will not be.
    NotDone,
    /// A linearizable read that is begun now shows what came of it.
    Read,
    /// It may be done, now or later.
    Unknown,
}

/// Reads an answer to a write. `doubted`: the same one was asked for before, and what came of that is not known.
pub fn answer(said: &Result<Applied, LedgerError>, doubted: bool) -> Answer {
    match said {
        Ok(applied) => Answer::Known(applied.index),
        Err(LedgerError::Timeout { .. }) => Answer::Unknown,
        Err(_) if !doubted => Answer::NotDone,
        Err(LedgerError::Refused(_)) => Answer::Read,
        Err(LedgerError::NoLeader { .. } | LedgerError::Halted { .. }) => Answer::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: MachineId = MachineId([1; 16]);
    const SOON: Duration = Duration::from_millis(1);

    #[test]
    fn a_machine_is_worked_on_by_one_at_a_time() {
        let held = Held::default();
        let guard = held.take_for_move(MACHINE).unwrap();
        assert_eq!(held.busy(9), BTreeSet::from([MACHINE]));
        assert!(held.take_for_move(MACHINE).is_none() && held.take_for_action(MACHINE, 9).is_none());
        drop(guard);
        assert!(held.busy(0).is_empty());
        assert!(held.take_for_action(MACHINE, 0).is_some());
    }

    #[test]
    fn nobody_decides_by_a_view_that_lacks_what_was_written() {
        let held = Held::default();
        let guard = held.take_for_move(MACHINE).unwrap();
        guard.until_seen(7);
        guard.until_seen(5);
        drop(guard);
        assert_eq!(held.busy(6), BTreeSet::from([MACHINE]), "its source by the view of before SWITCH");
        assert!(held.take_for_action(MACHINE, 6).is_none(), "decided before, begun after");
        // The ledger checks what a move asks for.
        drop(held.take_for_move(MACHINE).unwrap());
        assert!(held.take_for_action(MACHINE, 6).is_none());
        assert!(held.busy(7).is_empty());
        assert!(held.take_for_action(MACHINE, 7).is_some());
    }

    #[test]
    fn a_kept_machine_is_held_for_good() {
        let held = Held::default();
        held.take_for_move(MACHINE).unwrap().keep();
        assert_eq!(held.busy(u64::MAX), BTreeSet::from([MACHINE]));
    }

    #[test]
    fn a_write_without_an_answer_stays_in_doubt_until_there_is_one() {
        use raft_store::command::Outcome;
        let (after, done) = (SOON, Applied { index: 7, outcome: Outcome::Removed });
        let none = || LedgerError::NoLeader { after, unreachable: vec![] };
        let refused = || LedgerError::Refused(fabric::rpc::Refusal::new("stale-epoch", "another owns it"));
        assert_eq!(answer(&Err(LedgerError::Timeout { after }), false), Answer::Unknown);
        assert_eq!((answer(&Err(none()), false), answer(&Err(none()), true)), (Answer::NotDone, Answer::Unknown));
        assert_eq!((answer(&Err(refused()), false), answer(&Err(refused()), true)), (Answer::NotDone, Answer::Read));
        assert_eq!((answer(&Ok(done.clone()), false), answer(&Ok(done), true)), (Answer::Known(7), Answer::Known(7)));
    }

    #[test]
    fn who_is_done_with_a_machine_tells_so() {
        let held = Held::default();
        let freed = held.freed();
        let guard = held.take_for_move(MACHINE).unwrap();
        assert!(held.is_moving(MACHINE) && !freed.has_changed().unwrap());
        drop(guard);
        assert!(!held.is_moving(MACHINE) && freed.has_changed().unwrap());
        let _action = held.take_for_action(MACHINE, 0).unwrap();
        assert!(!held.is_moving(MACHINE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_move_waits_for_an_action_and_for_no_other_move() {
        let held = Held::default();
        let action = held.take_for_action(MACHINE, 0).unwrap();
        assert!(held.wait_for_move(MACHINE, SOON).await.is_none());
        let (found, ()) = tokio::join!(held.wait_for_move(MACHINE, SOON), async { drop(action) });
        let moving = found.expect("the action is done");
        assert!(held.wait_for_move(MACHINE, Duration::MAX).await.is_none(), "at once");
        drop(moving);
    }
}
