//! I4: guarantees placed on a node never exceed its declared capacity, and no tenant exceeds its quota.
//!
//! Source: design sections 6 and 14. Counted anew from the machines' own records, without what the ledger keeps on the side:
//! a machine counts on the node that owns it, and while it moves or may come back, on the other one too; and for its tenant
//! and all above it.

use std::collections::BTreeMap;

use fabric::ids::NodeId;
use fabric::model::{MachineRecord, Name, NodeRecord};
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
    over_capacity(state).or_else(|| over_quota(state))
}

/// What every node has promised to machines.
fn promised(state: &State) -> BTreeMap<NodeId, Sum> {
    let mut promised: BTreeMap<NodeId, Sum> = BTreeMap::new();
    for machine in state.machines.values() {
        for node in addresses::places(machine) {
            promised.entry(node).or_default().add(machine);
        }
    }
    promised
}

fn over_capacity(state: &State) -> Option<String> {
    promised(state).into_iter().find_map(|(id, sum)| {
        let node = state.nodes.get(&id)?;
        (!sum.fits(node)).then(|| format!("I4: {} has promised {sum:?} and has {:?}", node.name, node.capacity))
    })
}

fn over_quota(state: &State) -> Option<String> {
    let mut used: BTreeMap<&Name, Sum> = BTreeMap::new();
    for machine in state.machines.values() {
        // No branch is longer than there are tenants.
        let above = |name: &&Name| state.tenants.get(*name)?.parent.as_ref();
        for name in std::iter::successors(Some(&machine.tenant), above).take(state.tenants.len()) {
            used.entry(name).or_default().add(machine);
        }
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
    let promised = promised(state);
    state.nodes.values().any(|node| {
        let mut sum = promised.get(&node.id).copied().unwrap_or_default();
        sum.add(machine);
        sum.fits(node) && addresses::is_free(state, machine, node.id)
    })
}

#[cfg(test)]
mod tests {
    use fabric::ids::MoveId;
    use fabric::model::{MoveV1, Placement, PreviousV1, Quota, TenantRecord};

    use super::*;
    use crate::invariants::fixtures::{machine, node, node_record, state};

    #[test]
    fn an_empty_state_promises_nothing() {
        assert_eq!(check(&State::default()), None);
    }

    #[test]
    fn a_node_that_has_promised_too_much_is_told_wherever_room_is_kept() {
        // A node has room for one.
        let judged = |change: fn(&mut Placement)| {
            let mut other = machine(2, 2);
            change(other.placement.as_mut().unwrap());
            let mut state = state([machine(1, 1), other]);
            state.nodes = [1, 2].map(|n| (node(n), node_record(n))).into();
            over_capacity(&state)
        };
        assert_eq!(judged(|_| {}), None);
        assert!(judged(|p| p.node = node(1)).unwrap().starts_with("I4: n1 has promised"));
        assert!(judged(|p| p.moving = Some(MoveV1 { id: MoveId([1; 16]), to: node(1), since_ms: 0 })).is_some());
        assert!(judged(|p| p.previous = Some(PreviousV1 { node: node(1), epoch: 0 })).is_some());
    }

    #[test]
    fn a_tenant_answers_for_those_below_it() {
        let judged = |quota_of: &str, machines: u32| {
            let mut state = state([machine(1, 1), machine(2, 2)]);
            for (name, parent) in [("default", Some("top")), ("top", None), ("other", Some("top"))] {
                let name: Name = name.parse().unwrap();
                let parent = parent.map(|parent| parent.parse().unwrap());
                let machines = (name.as_str() == quota_of).then_some(machines);
                let quota = Quota { machines, ..Quota::default() };
                let record = TenantRecord { name: name.clone(), parent, quota, created_ms: 0, revision: 1 };
                state.tenants.insert(name, record);
            }
            over_quota(&state)
        };
        assert_eq!(judged("top", 2), None);
        assert!(judged("top", 1).unwrap().starts_with("I4: tenant top uses"));
        assert!(judged("default", 1).is_some());
        assert_eq!(judged("other", 0), None);
    }
}
