use super::*;
use crate::fixtures;

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
