//! What a node does about its machines: a pure function from desired and observed to actions.
//!
//! Wake-ups carry no data: each run compares everything, so that the happy path, a restart of the daemon and the mending
//! after a crash are one path (design section 6). A machine is stopped or destroyed only on a positive record that names
//! another owner or asks for it, never because a record is absent: what no record names is asked about first.
//!
//! A copy that the node owns no more is destroyed only when this node itself has moved it away, or when the machine is to
//! be deleted. Any other may hold what its machine has lost: it is kept aside. A disk whose age cannot be told (its launch
//! record is damaged) is neither started nor taken for a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fabric::ids::{MachineId, NodeId};
use fabric::model::{Desired, MachineRecord, Placement, Restart};

use crate::room::Room;

pub mod backoff;
pub mod driver;
pub mod held;
pub mod publish;

/// What this node has of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A disk and no process.
    Down,
    /// Its supervisor lives: it runs, or waits for its next start by the restart policy.
    Up,
    /// Its supervisor lives and holds it frozen.
    Frozen,
    /// Its program has ended with this, for good by its restart policy.
    Exited(i32),
    /// It cannot run, or was killed since its lease ended and its policy does not want it again.
    Ended,
    /// Killed with its supervisor or its host: its program has not ended by itself, and its restart policy was never asked.
    Lost,
    /// Down, and its launch record is damaged: of which epoch its disk is cannot be told.
    Damaged,
    /// Its supervisor lives, and its launch record is damaged: of which epoch it is cannot be told.
    Unrecorded,
}

/// A machine as the runtime found it on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// The epoch at which it was last started here.
    pub epoch: u64,
    /// The requested restarts that it has seen.
    pub restarts: u64,
    /// What it is doing.
    pub phase: Phase,
}

/// What this node goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Since its daemon began it has not learnt how things are: its copy of the ledger may be of before its machines were
    /// stopped, deleted, moved or taken over.
    Unknown,
    /// The same, and nobody could be asked: it goes by its own copy, as far as what lies here agrees.
    Own,
    /// Its view has been current.
    Current,
}

/// Everything that the decision needs.
#[derive(Debug)]
pub struct Facts<'a> {
    /// This node.
    pub me: NodeId,
    /// Records that name this node as owner, former owner or destination, and others that were asked for.
    pub records: &'a BTreeMap<MachineId, MachineRecord>,
    /// What the runtime holds.
    pub locals: &'a BTreeMap<MachineId, Local>,
    /// Machines that an action or a move works on now: left alone.
    pub busy: &'a BTreeSet<MachineId>,
    /// Machines of which a linearizable read has said that no record exists.
    pub known_absent: &'a BTreeSet<MachineId>,
    /// Machines that lost their supervisor and are to wait before their next start.
    pub waiting: &'a BTreeSet<MachineId>,
    /// Copies that this node has moved away itself, by machine and epoch: the destination has their disk.
    pub moved: &'a BTreeSet<(MachineId, u64)>,
    /// What the host's disk has room for.
    pub room: &'a Room,
    /// This node holds a lease whose revision covers the records: exclusive machines may start.
    pub leased: bool,
    /// What this node goes by.
    pub view: View,
    /// The cluster's time, Unix milliseconds: what has failed is not tried again before its back-off is over.
    pub now_ms: u64,
}

/// One step. Each is idempotent: the next run looks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Prepare the disk and start at this epoch. `clean` means: what lies here from an earlier epoch is quarantined first.
    Start {
        /// The machine.
        machine: MachineId,
        /// The epoch to start at.
        epoch: u64,
        /// Quarantine what is here first.
        clean: bool,
    },
    /// Tell the ledger that it runs.
    Confirm(MachineId, u64),
    /// Tell the ledger that its program has ended and is not to run again, wherever the machine goes.
    Ended {
        /// The machine.
        machine: MachineId,
        /// The epoch at which it ran.
        epoch: u64,
        /// The requested restarts that it had seen.
        restarts: u64,
        /// What it ended with.
        code: i32,
    },
    /// Stop and start again, on request.
    Restart(MachineId),
    /// Stop, keep the disk.
    Stop(MachineId),
    /// Stop, destroy the disk, then tell the ledger so.
    Destroy(MachineId, u64),
    /// The user deleted it: nothing is left here, tell the ledger.
    Forget(MachineId, u64),
    /// Another node owns it: stop it, keep its disk aside.
    Quarantine(MachineId),
    /// Moved away from here and running there, or to be deleted: the copy here is not needed any more.
    Discard(MachineId),
    /// No record names it: ask the ledger, linearizably.
    Ask(MachineId),
    /// The lease names this owner again: let it run.
    Thaw(MachineId),
}

/// Compares and decides.
pub fn decide(facts: &Facts<'_>) -> Vec<Action> {
    if facts.view == View::Unknown {
        return Vec::new();
    }
    let ids: BTreeSet<_> = facts.records.keys().chain(facts.locals.keys()).copied().collect();
    ids.into_iter().filter(|id| !facts.busy.contains(id)).filter_map(|id| one(facts, id)).collect()
}

fn one(facts: &Facts<'_>, id: MachineId) -> Option<Action> {
    let local = facts.locals.get(&id);
    let Some(record) = facts.records.get(&id) else {
        // Nothing is known. Only a linearizable "there is none" lets the copy go, and then it is kept aside for a while.
        local?;
        return Some(if facts.known_absent.contains(&id) { Action::Quarantine(id) } else { Action::Ask(id) });
    };
    match &record.placement {
        Some(placement) if placement.node == facts.me => own(facts, record, placement, local),
        Some(placement) => foreign(facts, record, placement, *local?),
        // Between two owners: the former one stops at the record that released it.
        None => (*local?).stale(record.epoch).then_some(Action::Stop(id)),
    }
}

impl Local {
    fn runs(self) -> bool {
        matches!(self.phase, Phase::Up | Phase::Frozen | Phase::Unrecorded)
    }
    fn stale(self, epoch: u64) -> bool {
        self.runs() && self.epoch <= epoch
    }
}

fn own(facts: &Facts<'_>, record: &MachineRecord, placement: &Placement, local: Option<&Local>) -> Option<Action> {
    let id = record.id;
    if facts.moved.range((id, placement.epoch)..=(id, u64::MAX)).next().is_some() {
        return None; // our view is older than the SWITCH by which it left: wait for the record
    }
    if record.desired == Desired::Deleted {
        return Some(match local {
            Some(_) => Action::Destroy(id, placement.epoch),
            None => Action::Forget(id, placement.epoch),
        });
    }
    let leased = !record.spec.exclusive || facts.leased;
    let may_try = leased && record.not_before_ms <= facts.now_ms;
    match (local, record.desired) {
        (Some(Local { phase: Phase::Damaged, .. }), _) => {
            // It stays as it is, unless a move brings the machine's disk: this one is an old copy then, and is kept aside.
            let take = match record.desired {
                Desired::Stopped => Action::Confirm(id, placement.epoch),
                _ => Action::Start { machine: id, epoch: placement.epoch, clean: false },
            };
            (brought(facts, placement) && !placement.fresh && may_try).then_some(take)
        }
        (Some(local), Desired::Stopped) if local.runs() => Some(Action::Stop(id)),
        // A stopped machine is settled too: whoever waits for a move or a placement learns it.
        (_, Desired::Stopped) if !placement.confirmed && may_try => Some(Action::Confirm(id, placement.epoch)),
        (_, Desired::Stopped) => None,
        // It would write where nothing can be written.
        (Some(local), _) if facts.room.holds(id) => local.runs().then_some(Action::Stop(id)),
        // Whoever brings it here learns that there is no room.
        // Its disk is not here: it may have been deleted, and destroyed, since our copy was written.
        (None, _) if facts.view == View::Own => None,
        (None, _) => may_try.then_some(Action::Start { machine: id, epoch: placement.epoch, clean: false }),
        (Some(local), _) => kept(facts, record, placement, *local, leased),
    }
}

/// A move from elsewhere brings the machine here: what lies here already is an old copy.
fn brought(facts: &Facts<'_>, placement: &Placement) -> bool {
    !placement.confirmed && placement.previous.is_some_and(|previous| previous.node != facts.me)
}

/// A machine that is to run here, and has a disk here.
fn kept(
    facts: &Facts<'_>,
    record: &MachineRecord,
    placement: &Placement,
    local: Local,
    leased: bool,
) -> Option<Action> {
    let id = record.id;
    let may_start = leased && !facts.room.full && record.not_before_ms <= facts.now_ms;
    let start = |clean| may_start.then_some(Action::Start { machine: id, epoch: placement.epoch, clean });
    if local.phase == Phase::Unrecorded {
        // It goes on: what is not known of it is no reason to stop it.
        return brought(facts, placement).then_some(Action::Stop(id));
    }
    if local.epoch < placement.epoch {
        return match local.runs() {
            true => Some(Action::Stop(id)),
            // The same for the disk that it would begin with.
            false if placement.fresh && facts.view == View::Own => None,
            false => start(placement.fresh),
        };
    }
    match local.phase {
        Phase::Up | Phase::Frozen if local.restarts < record.restarts => Some(Action::Restart(id)),
        Phase::Down => start(false),
        Phase::Lost if restarts_when_lost(record) && !facts.waiting.contains(&id) => start(false),
        Phase::Exited(_) | Phase::Ended | Phase::Lost if local.restarts < record.restarts => start(false),
        Phase::Frozen if leased && placement.moving.is_none() => Some(Action::Thaw(id)),
        Phase::Up | Phase::Exited(_) | Phase::Ended | Phase::Lost if !placement.confirmed => {
            Some(Action::Confirm(id, placement.epoch))
        }
        // It runs: what it waited for (its node, or a new place, in its node's absence) is over.
        Phase::Up if record.waiting.is_some() => Some(Action::Confirm(id, placement.epoch)),
        Phase::Exited(code) => Some(Action::Ended { machine: id, epoch: local.epoch, restarts: local.restarts, code }),
        _ => None,
    }
}

/// Its policy wants it back when it was killed with its supervisor.
fn restarts_when_lost(record: &MachineRecord) -> bool {
    record.spec.restart != Restart::Never
}

/// Machines that lost their supervisor and are to be started again here.
fn lost(facts: &Facts<'_>) -> BTreeSet<MachineId> {
    let is_lost = |id: &MachineId, local: &Local| {
        let record = facts.records.get(id).filter(|record| record.desired == Desired::Running);
        let here = |placement: Placement| placement.node == facts.me && placement.epoch == local.epoch;
        local.phase == Phase::Lost
            && record.is_some_and(|record| restarts_when_lost(record) && record.placement.is_some_and(here))
    };
    facts.locals.iter().filter(|(id, local)| is_lost(id, local)).map(|(id, _)| *id).collect()
}

/// How long until the first of this node's machines that have failed may be tried again.
fn backed_off(records: &BTreeMap<MachineId, MachineRecord>, me: NodeId, now_ms: u64) -> Option<Duration> {
    let mine = |record: &&MachineRecord| record.placement.is_some_and(|placement| placement.node == me);
    let left_ms = |record: &MachineRecord| record.not_before_ms.checked_sub(now_ms).filter(|left_ms| *left_ms > 0);
    records.values().filter(mine).filter_map(left_ms).min().map(Duration::from_millis)
}

fn foreign(facts: &Facts<'_>, record: &MachineRecord, placement: &Placement, local: Local) -> Option<Action> {
    let id = record.id;
    if placement.moving.is_some_and(|moving| moving.to == facts.me) {
        return None; // prepared here, not ours yet: the move's own driver decides
    }
    if local.epoch >= placement.epoch {
        return None; // our view is older than what runs here: wait for the record
    }
    if local.runs() {
        return Some(Action::Stop(id));
    }
    match placement.previous {
        // The new owner has not said that it runs: the disk here may still be the only good one.
        Some(previous) if previous.node == facts.me && !placement.confirmed && !placement.fresh => None,
        _ if record.desired == Desired::Deleted => Some(Action::Discard(id)),
        // The disk that left here lived on, as far as the ledger says.
        _ if !placement.fresh && facts.moved.contains(&(id, local.epoch)) => Some(Action::Discard(id)),
        _ => Some(Action::Quarantine(id)),
    }
}

#[cfg(test)]
mod tests;
