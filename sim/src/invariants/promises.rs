//! I4: guarantees placed on a node never exceed its declared capacity, and no tenant exceeds its quota.
//!
//! Source: design section 14. Counted anew from the machines' own records, without what the ledger keeps on the side: a
//! machine counts on the node that owns it, and while it moves or comes back, on the other one too. The ledger's own
//! check of itself (names, indexes, bounds) runs with it.

use std::collections::BTreeMap;

use fabric::ids::NodeId;
use fabric::model::{MachineRecord, NodeRecord};
use raft_store::state::State;

use crate::invariants::addresses;

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    cpu_millis: u64,
    memory_bytes: u64,
    machines: u32,
}

impl Sum {
    fn add(&mut self, machine: &MachineRecord) {
        self.cpu_millis += u64::from(machine.spec.resources.cpu_millis);
        self.memory_bytes += machine.spec.resources.memory_bytes;
        self.machines += 1;
    }

    fn fits(&self, node: &NodeRecord) -> bool {
        self.cpu_millis <= u64::from(node.capacity.cpu_millis) && self.memory_bytes <= node.capacity.memory_bytes
    }
}

/// What does not hold, in words.
pub fn check(state: &State) -> Option<String> {
    over_capacity(state).or_else(|| over_quota(state)).or_else(|| state.check_invariants().err())
}

fn over_capacity(state: &State) -> Option<String> {
    let mut promised: BTreeMap<NodeId, Sum> = BTreeMap::new();
    for machine in state.machines.values() {
        let Some(placement) = machine.placement else { continue };
        let to = placement.moving.map(|moving| moving.to);
        for node in [Some(placement.node), to].into_iter().flatten() {
            promised.entry(node).or_default().add(machine);
        }
    }
    promised.into_iter().find_map(|(id, sum)| {
        let node = state.nodes.get(&id)?;
        (!sum.fits(node)).then(|| format!("I4: {} has promised {sum:?} and has {:?}", node.name, node.capacity))
    })
}

fn over_quota(state: &State) -> Option<String> {
    let mut used: BTreeMap<_, Sum> = BTreeMap::new();
    for machine in state.machines.values() {
        used.entry(&machine.tenant).or_default().add(machine);
    }
    used.into_iter().find_map(|(name, sum)| {
        let quota = state.tenants.get(name)?.quota;
        let over = quota.cpu_millis.is_some_and(|most| sum.cpu_millis > most)
            || quota.memory_bytes.is_some_and(|most| sum.memory_bytes > most)
            || quota.machines.is_some_and(|most| sum.machines > most);
        over.then(|| format!("I4: tenant {name} uses {sum:?}, its quota is {quota:?}"))
    })
}

/// Whether a machine without an owner fits a node, as far as the records tell: there is room, and its ports are free.
pub fn fits_somewhere(state: &State, machine: &MachineRecord) -> bool {
    let mut promised: BTreeMap<NodeId, Sum> = BTreeMap::new();
    for other in state.machines.values() {
        for node in addresses::places(other) {
            promised.entry(node).or_default().add(other);
        }
    }
    state.nodes.values().any(|node| {
        let mut sum = promised.get(&node.id).copied().unwrap_or_default();
        sum.add(machine);
        sum.fits(node) && addresses::is_free(state, machine, node.id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_state_promises_nothing() {
        assert_eq!(check(&State::default()), None);
    }
}
