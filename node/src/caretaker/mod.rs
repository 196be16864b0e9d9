//! Machines without a living owner: a pure sweep that says what to place and what to take over.
//!
//! Caretakers are the live voters and standbys; each machine has one by rendezvous hash among them (design section 6).
//! Two at once are harmless, since the epoch admits one. A dead owner's exclusive machine waits for its lease; a machine
//! that is not exclusive may start elsewhere as soon as membership confirms the death. The ledger's apply judges again.

use std::collections::{BTreeMap, BTreeSet};

use fabric::ids::{MachineId, NodeId};
use fabric::limits::{PLACE_BATCH_MAX, TAKEOVERS_IN_FLIGHT_MAX};
use fabric::model::{Desired, MachineRecord, NodeRecord};
use raft_store::state::unsettled;

use crate::schedule::{self, Inventory};

pub mod driver;

/// What is known of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Membership holds it for alive.
    Alive,
    /// Membership has confirmed its death; it has no planned absence.
    Dead,
    /// It is away by plan, or only suspected: nothing is taken from it.
    Excused,
    /// It was removed from the cluster.
    Removed,
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Machines that have no owner and may be placed now.
    pub place: Vec<MachineId>,
    /// Machines to take from an owner that is dead, with that owner and its epoch.
    pub take: Vec<(MachineId, NodeId, u64)>,
    /// Deleted machines that no node holds: the record may go.
    pub forget: Vec<(MachineId, u64)>,
}

/// Whether a node is away by plan at `now_ms`, the cluster's time. What is proposed by this is judged again.
pub fn is_absent(node: &NodeRecord, now_ms: u64) -> bool {
    node.absent_until_ms.is_some_and(|until| until > now_ms)
}

/// The caretaker of a machine: the live voter or standby with the highest rendezvous hash.
pub fn caretaker(machine: MachineId, caretakers: &BTreeSet<NodeId>) -> Option<NodeId> {
    let weight = |node: &NodeId| *blake3::Hasher::new().update(&node.0).update(&machine.0).finalize().as_bytes();
    caretakers.iter().copied().max_by_key(weight)
}

/// The nodes to propose for a machine, with the reason when there is none. One whose move is not settled has its disk at
/// the two ends of that move: no other node will do, and whether these take new machines does not count.
pub fn candidates(machine: &MachineRecord, inventory: &Inventory) -> (Vec<NodeId>, Option<String>) {
    let ends = machine.placement.as_ref().and_then(unsettled);
    if let Some((owner, source)) = ends.filter(|(_, source)| inventory.contains_key(source)) {
        let alive = |node: &NodeId| inventory.get(node).is_some_and(|node| node.alive);
        return ([source, owner].into_iter().filter(alive).collect(), None);
    }
    match schedule::plan(machine.id, &machine.spec, inventory) {
        Ok(candidates) => (candidates, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    }
}

/// Decides for the machines of which `me` is the caretaker.
pub fn sweep<'a>(
    me: NodeId,
    now_ms: u64,
    machines: impl Iterator<Item = &'a MachineRecord>,
    caretakers: &BTreeSet<NodeId>,
    owners: &BTreeMap<NodeId, Owner>,
) -> Sweep {
    let mut found = Sweep::default();
    for machine in machines.filter(|machine| caretaker(machine.id, caretakers) == Some(me)) {
        match &machine.placement {
            None if machine.desired == Desired::Deleted => found.forget.push((machine.id, machine.epoch)),
            None if machine.desired == Desired::Running && machine.not_before_ms <= now_ms => {
                found.place.push(machine.id)
            }
            None => {}
            Some(placement) => match owners.get(&placement.node).copied().unwrap_or(Owner::Removed) {
                Owner::Alive | Owner::Excused => {}
                Owner::Dead | Owner::Removed if machine.desired == Desired::Deleted => {
                    found.forget.push((machine.id, placement.epoch));
                }
                // A stopped machine has nothing to fail over: its disk waits for its node, and who starts it has it placed.
                Owner::Dead | Owner::Removed if machine.desired == Desired::Stopped => {}
                Owner::Dead | Owner::Removed => found.take.push((machine.id, placement.node, placement.epoch)),
            },
        }
    }
    found.place.truncate(PLACE_BATCH_MAX);
    found.take.truncate(TAKEOVERS_IN_FLIGHT_MAX);
    found.forget.truncate(PLACE_BATCH_MAX);
    found
}

#[cfg(test)]
mod tests;
