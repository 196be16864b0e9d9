use fabric::model::{Capacity, Placement, PreviousV1};

use super::*;
use crate::fixtures;
use crate::schedule::Candidate;

const ME: NodeId = NodeId([1; 32]);
const OWNER: NodeId = NodeId([2; 32]);

fn machine(number: u8, owner: Option<NodeId>) -> MachineRecord {
    fixtures::machine(number, owner.map(|node| fixtures::placed(node, 4)))
}

fn swept(machines: &[MachineRecord], owner: Owner) -> Sweep {
    sweep(ME, 1000, machines.iter(), &BTreeSet::from([ME]), &BTreeMap::from([(OWNER, owner)]))
}

#[test]
fn only_a_confirmed_death_takes_a_machine_away() {
    let machines = [machine(1, Some(OWNER))];
    assert_eq!(swept(&machines, Owner::Alive), Sweep::default());
    assert_eq!(swept(&machines, Owner::Excused), Sweep::default());
    assert_eq!(swept(&machines, Owner::Dead).take, [(MachineId([1; 16]), OWNER, 4)]);
}

#[test]
fn a_homeless_machine_is_placed_when_its_back_off_is_over() {
    let mut waiting = machine(1, None);
    waiting.not_before_ms = 1001;
    assert_eq!(swept(&[waiting.clone()], Owner::Alive), Sweep::default());
    waiting.not_before_ms = 1000;
    assert_eq!(swept(&[waiting], Owner::Alive).place, [MachineId([1; 16])]);
}

#[test]
fn what_is_deleted_on_a_dead_node_is_forgotten() {
    let mut gone = machine(1, Some(OWNER));
    gone.desired = Desired::Deleted;
    assert_eq!(swept(&[gone.clone()], Owner::Dead).forget, [(MachineId([1; 16]), 4)]);
    assert_eq!(swept(&[gone], Owner::Alive), Sweep::default());
}

#[test]
fn a_stopped_machine_is_taken_from_nobody() {
    let mut stopped = machine(1, Some(OWNER));
    stopped.desired = Desired::Stopped;
    for owner in [Owner::Alive, Owner::Excused, Owner::Dead, Owner::Removed] {
        assert_eq!(swept(&[stopped.clone()], owner), Sweep::default());
    }
}

#[test]
fn a_dead_zone_does_not_stampede() {
    let machines: Vec<_> = (0..=255).map(|number| machine(number, Some(OWNER))).collect();
    assert_eq!(swept(&machines, Owner::Dead).take.len(), TAKEOVERS_IN_FLIGHT_MAX);
}

#[test]
fn every_machine_has_exactly_one_caretaker_and_they_share_the_work() {
    let caretakers: BTreeSet<_> = (1..=3).map(|number| NodeId([number; 32])).collect();
    let mut shares = BTreeMap::new();
    for number in 0..=255 {
        *shares.entry(caretaker(MachineId([number; 16]), &caretakers).unwrap()).or_insert(0) += 1;
    }
    assert!(shares.len() == 3 && shares.values().all(|share| *share > 40), "{shares:?}");
}

#[test]
fn the_ends_of_an_unsettled_move_are_proposed_whether_they_take_new_machines_or_not() {
    let source = NodeId([3; 32]);
    let room = Capacity { cpu_millis: 4000, memory_bytes: 8 << 30, disk_bytes: 8 << 30 };
    let node = |id: NodeId, alive, closed| Candidate {
        id,
        name: format!("n{}", id.0[0]).parse().unwrap(),
        zone: String::new(),
        declared: room,
        free: room,
        alive,
        full: closed,
        taken: None,
        closed,
        has_image: false,
        load_millis: 0,
        siblings: 0,
        zone_siblings: 0,
    };
    let mut nodes = Inventory::from([
        (ME, node(ME, true, false)),
        (OWNER, node(OWNER, false, false)),
        (source, node(source, true, true)),
    ]);
    let switched = Placement {
        confirmed: false,
        previous: Some(PreviousV1 { node: source, epoch: 3 }),
        ..fixtures::placed(OWNER, 4)
    };
    let moved = fixtures::machine(1, Some(switched));
    assert_eq!(
        candidates(&moved, &nodes),
        (vec![source], None),
        "draining, its disk nearly full, and alone in having it"
    );
    assert_eq!(candidates(&machine(1, Some(OWNER)), &nodes).0, [ME], "a settled one goes where there is room");
    let anew = fixtures::machine(1, Some(Placement { fresh: true, ..switched }));
    assert_eq!(candidates(&anew, &nodes).0, [ME], "its disk is lost");
    nodes.get_mut(&source).unwrap().alive = false;
    assert_eq!(candidates(&moved, &nodes), (vec![], None));
    nodes.remove(&source);
    assert_eq!(candidates(&moved, &nodes).0, [ME], "a removed source binds nobody");
}
