//! I4: guarantees placed on a node never exceed its declared capacity, and no tenant exceeds its quota.
//!
//! Source: design section 14. Counted anew from the machines' own records, without what the ledger keeps on the side: a
//! machine counts on the node that owns it, and while it moves or comes back, on the other one too. The ledger's own
//! check of itself (names, indexes, bounds) runs with it.

use std::collections::BTreeMap;

use fabric::ids::NodeId;
use raft_store::state::State;

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    cpu_millis: u64,
    memory_bytes: u64,
    machines: u32,
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
            let sum = promised.entry(node).or_default();
            sum.cpu_millis += u64::from(machine.spec.resources.cpu_millis);
            sum.memory_bytes += machine.spec.resources.memory_bytes;
        }
    }
    promised.into_iter().find_map(|(id, sum)| {
        let node = state.nodes.get(&id)?;
        let over =
            sum.cpu_millis > u64::from(node.capacity.cpu_millis) || sum.memory_bytes > node.capacity.memory_bytes;
        over.then(|| format!("I4: {} has promised {sum:?} and has {:?}", node.name, node.capacity))
    })
}

fn over_quota(state: &State) -> Option<String> {
    let mut used: BTreeMap<_, Sum> = BTreeMap::new();
    for machine in state.machines.values() {
        let sum = used.entry(&machine.tenant).or_default();
        sum.cpu_millis += u64::from(machine.spec.resources.cpu_millis);
        sum.memory_bytes += machine.spec.resources.memory_bytes;
        sum.machines += 1;
    }
    used.into_iter().find_map(|(name, sum)| {
        let quota = state.tenants.get(name)?.quota;
        let over = quota.cpu_millis.is_some_and(|most| sum.cpu_millis > most)
            || quota.memory_bytes.is_some_and(|most| sum.memory_bytes > most)
            || quota.machines.is_some_and(|most| sum.machines > most);
        over.then(|| format!("I4: tenant {name} uses {sum:?}, its quota is {quota:?}"))
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
