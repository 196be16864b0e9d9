//! I3, as far as there are addresses: a port of a node is published by one machine, and whoever gives it up gives it back.
//!
//! Source: design sections 9 and 14. Counted anew from the machines' own records, and compared with what the ledger tells a
//! machine that asks for the port. (Addresses in networks, and numbers of networks, join with the overlay.)

use std::collections::{BTreeMap, BTreeSet};

use fabric::ids::{MachineId, NodeId};
use fabric::model::{MachineRecord, Publish, check};
use raft_store::state::State;

/// The nodes that keep a machine's place: its owner, where it moves to, and where it came from until it runs.
pub fn places(machine: &MachineRecord) -> BTreeSet<NodeId> {
    let Some(placement) = machine.placement else { return BTreeSet::new() };
    let to = placement.moving.map(|moving| moving.to);
    let from = placement.previous.filter(|_| !placement.fresh).map(|previous| previous.node);
    [Some(placement.node), to, from].into_iter().flatten().collect()
}

type Held = BTreeMap<(NodeId, u16), Vec<(Publish, MachineId)>>;

fn held(state: &State) -> Held {
    let mut held = Held::new();
    for machine in state.machines.values() {
        for node in places(machine) {
            for port in &machine.spec.publish {
                held.entry((node, port.host_port)).or_default().push((*port, machine.id));
            }
        }
    }
    held
}

/// Whether a machine that publishes this port may go to a node, as far as the others' records tell.
pub fn is_free(state: &State, machine: &MachineRecord, node: NodeId) -> bool {
    let others = state.machines.values().filter(|other| other.id != machine.id && places(other).contains(&node));
    let ports = |machine: &MachineRecord| machine.spec.publish.clone();
    let meets =
        |one: &Publish, other: &Publish| one.host_port == other.host_port && check::share_address(one.ip, other.ip);
    !others.flat_map(ports).any(|other| machine.spec.publish.iter().any(|port| meets(port, &other)))
}

/// What does not hold, in words.
pub fn check(state: &State) -> Option<String> {
    let held = held(state);
    for ((node, port), holders) in &held {
        for (at, (one, first)) in holders.iter().enumerate() {
            let twice = holders[at + 1..].iter().find(|(other, _)| check::share_address(one.ip, other.ip));
            if let Some((_, second)) = twice {
                return Some(format!("I3: port {port} of {} is published by {first} and by {second}", node.short()));
            }
        }
    }
    leaked(state, &held)
}

/// A port that the ledger holds for taken on a node, and no record says so.
fn leaked(state: &State, held: &Held) -> Option<String> {
    let known: Vec<&MachineRecord> =
        state.machines.values().filter(|machine| !machine.spec.publish.is_empty()).collect();
    for machine in known {
        for node in state.nodes.keys().filter(|node| !places(machine).contains(node)) {
            let Some((port, by)) = state.taken_port(machine, *node) else { continue };
            if !held.contains_key(&(*node, port)) {
                return Some(format!(
                    "I3: port {port} of {} counts as taken by {by}, which has no place there",
                    node.short()
                ));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use fabric::ids::MoveId;
    use fabric::model::{MoveV1, Placement, PreviousV1};

    use super::*;
    use crate::invariants::fixtures::{machine, node, state};

    #[test]
    fn a_port_that_two_machines_have_on_a_node_is_told_wherever_they_keep_a_place() {
        assert_eq!(check(&state([machine(1, 1), machine(2, 2)])), None);
        assert!(check(&state([machine(1, 1), machine(2, 1)])).unwrap().contains("is published by"));
        let changed = |change: fn(&mut Placement)| {
            let mut other = machine(2, 2);
            change(other.placement.as_mut().unwrap());
            check(&state([machine(1, 1), other]))
        };
        assert!(changed(|p| p.moving = Some(MoveV1 { id: MoveId([1; 16]), to: node(1), since_ms: 0 })).is_some());
        assert!(changed(|p| p.previous = Some(PreviousV1 { node: node(1), epoch: 0 })).is_some());
        let fresh = changed(|p| (p.previous, p.fresh) = (Some(PreviousV1 { node: node(1), epoch: 0 }), true));
        assert_eq!(fresh, None, "who died keeps nothing");
    }

    #[test]
    fn a_port_is_free_where_no_record_says_otherwise() {
        let state = state([machine(1, 1), machine(2, 2)]);
        let third = MachineRecord { placement: None, ..machine(3, 3) };
        assert_eq!([1, 2, 3].map(|n| is_free(&state, &third, node(n))), [false, false, true]);
    }
}
