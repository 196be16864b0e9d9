use super::*;

fn refused(result: &PlaceResult) -> (&str, &str) {
    match result {
        PlaceResult::Refused { refusal, .. } => (&refusal.code, &refusal.message),
        other => panic!("{other:?}"),
    }
}

fn failed(n: u8, epoch: u64, back_off_ms: u64) -> Command {
    Command::Failed { machine: machine_id(n), epoch, reason: "no such program".into(), back_off_ms, here: false }
}

fn release(n: u8, epoch: u64) -> Command {
    Command::Release { machine: machine_id(n), epoch }
}

#[test]
fn the_first_candidate_with_room_gets_the_machine() {
    let mut world = World::new();
    world.run(1, spec(7 * GIB), 2);
    world.create(2, spec(2 * GIB));
    assert_eq!(world.place(2, &[2, 3, 1]), PlaceResult::Placed { machine: machine_id(2), node: node_id(3), epoch: 1 });
    assert_eq!(world.state.free(node_id(3)).memory_bytes, 6 * GIB);
    let owned: Vec<_> = world.state.machines_on(node_id(3)).map(|m| m.name.to_string()).collect();
    assert_eq!(owned, ["m2"]);
    assert!(!world.placement(2).fresh);
    assert_eq!(world.state.unplaced().count(), 0);
}

#[test]
fn a_refusal_says_what_is_missing() {
    let mut world = World::new();
    world.run(1, spec(7 * GIB), 1);
    world.run(2, spec(66 * GIB / 10), 2);
    world.create(3, spec(2 * GIB));
    let result = world.place(3, &[1, 2]);
    assert_eq!(refused(&result), (codes::CAPACITY, "needs 2 GiB guaranteed, the freest node n2 has 1.4 GiB"));
    assert_eq!(world.machine(3).waiting.as_deref(), Some("needs 2 GiB guaranteed, the freest node n2 has 1.4 GiB"));
    let revision = world.machine(3).revision;
    world.place(3, &[1, 2]);
    assert_eq!(world.machine(3).revision, revision, "the same reason again is no change");
    let mut hungry = spec(GIB);
    hungry.resources.cpu_millis = 4500;
    world.create(4, hungry);
    assert_eq!(refused(&world.place(4, &[3])).1, "needs 4.5 CPU guaranteed, the freest node n3 has 4 CPU");
    assert!(matches!(world.place(3, &[3]), PlaceResult::Placed { .. }));
    assert_eq!(world.machine(3).waiting, None);
}

#[test]
fn a_port_of_a_node_is_one_machines() {
    let with = |ip: Option<[u8; 4]>, host_port| {
        let publish = vec![Publish { ip: ip.map(Into::into), host_port, machine_port: 80 }];
        MachineSpec { publish, ..spec(GIB) }
    };
    let mut world = World::new();
    world.run(1, with(None, 8080), 2);
    world.create(2, with(Some([127, 0, 0, 1]), 8080));
    assert_eq!(refused(&world.place(2, &[2])), (codes::NO_NODE, "port 8080 of n2 is taken by machine m1"));
    assert_eq!(world.machine(2).waiting.as_deref(), Some("port 8080 of n2 is taken by machine m1"));
    assert_eq!(world.place(2, &[2, 3]), PlaceResult::Placed { machine: machine_id(2), node: node_id(3), epoch: 1 });
    // Another address of the same node is another port, and so is another number.
    world.create(3, with(Some([10, 0, 0, 1]), 8080));
    world.create(4, with(None, 8081));
    assert!(matches!(world.place(3, &[3]), PlaceResult::Placed { .. }));
    assert!(matches!(world.place(4, &[3]), PlaceResult::Placed { .. }));
    // The unspecified address is every one.
    world.create(6, with(Some([0, 0, 0, 0]), 8080));
    assert_eq!(refused(&world.place(6, &[3])).0, codes::NO_NODE);
    // A move keeps to it as well, from its announcement on.
    assert_eq!(world.no(move_begin(1, 1, 7, 3)), codes::NO_NODE);
    world.ok(move_begin(1, 1, 7, 1));
    world.create(5, with(None, 8080));
    assert_eq!(refused(&world.place(5, &[1])).1, "port 8080 of n1 is taken by machine m1");
    // Who goes gives its ports back.
    world.ok(move_abort(1, 1, 7));
    assert!(matches!(world.place(5, &[1]), PlaceResult::Placed { .. }));
}

#[test]
fn a_machine_bound_to_a_lost_node_says_so() {
    let mut world = World::new();
    world.run(1, MachineSpec { pinned: Some(node_id(2)), ..spec(GIB) }, 2);
    world.ok(takeover(1, 1, 2, &[], 1));
    let waiting = world.machine(1).waiting.clone().unwrap();
    assert_eq!(waiting, "pinned to n2, which does not answer: it runs again when n2 is back");
    world.ok(remove(2, true));
    world.ok(takeover(1, 1, 2, &[], 1));
    let waiting = world.machine(1).waiting.clone().unwrap();
    assert!(waiting.ends_with("which was removed from the cluster: delete it and make it anew"), "{waiting}");
}

#[test]
fn what_a_takeover_would_tell_is_known_before_it_is_asked_for() {
    let mut world = World::new();
    world.run(1, MachineSpec { pinned: Some(node_id(2)), ..spec(GIB) }, 2);
    let told = |world: &World| {
        let machine = world.machine(1);
        let waits = world.state.takeover_waits(machine, &[]).unwrap();
        machine.waiting.as_ref() == Some(&waits)
    };
    world.ok_from(2, failed(1, 1, 1000));
    assert!(!told(&world), "that its program failed is true no more");
    world.ok(takeover(1, 1, 2, &[], 1));
    assert!(told(&world));
    world.ok(remove(2, true));
    assert!(!told(&world), "its node does not come back");
    world.ok(takeover(1, 1, 2, &[], 1));
    assert!(told(&world));
    world.run(2, spec(GIB), 3);
    assert_eq!(world.state.takeover_waits(world.machine(2), &[node_id(1)]), None, "it would be taken over");
}

#[test]
fn nodes_that_may_not_take_machines_are_passed_over() {
    let mut world = World::new();
    world.create(1, MachineSpec { pinned: Some(node_id(1)), ..spec(GIB) });
    world.ok(cordon(1));
    world.ok(patch(2, NodePatch { draining: Some(true), ..NodePatch::default() }));
    world.ok(Command::PlanAbsence { node: node_id(3), for_ms: 60_000 });
    let result = world.place(1, &[1, 2, 3, 4, 9]);
    let expected = "n1 is cordoned, n2 is draining, n3 is absent as planned, \
                    n4 is not the node that it is pinned to";
    assert!(refused(&result).1.starts_with(expected), "{result:?}");
    let mut none = item(1, 0, &[]);
    none.reason = Some("no node has the label disk=ssd".into());
    world.ok(Command::Place { items: vec![none] });
    assert_eq!(world.machine(1).waiting.as_deref(), Some("no node has the label disk=ssd"));
}

#[test]
fn a_batch_is_decided_item_by_item() {
    let mut world = World::new();
    world.create(1, spec(5 * GIB));
    world.create(2, spec(5 * GIB));
    world.create(3, spec(GIB));
    world.ok(desire(3, Desired::Stopped));
    let items = vec![
        item(1, 0, &[2]),
        item(2, 0, &[2]),
        item(1, 0, &[3]),
        item(2, 7, &[3]),
        item(3, 0, &[3]),
        item(9, 0, &[3]),
    ];
    let Outcome::Placed { items } = world.ok(Command::Place { items }) else { panic!() };
    assert!(matches!(items[0], PlaceResult::Placed { .. }));
    let codes: Vec<_> = items[1..].iter().map(|item| refused(item).0).collect();
    let expected = [codes::CAPACITY, codes::PLACED, codes::STALE_EPOCH, codes::NOT_WANTED, codes::NOT_FOUND];
    assert_eq!(codes, expected);
    assert_eq!(world.no(Command::Place { items: vec![] }), codes::INVALID);
    assert_eq!(world.no(Command::Place { items: vec![item(2, 0, &[3]); 65] }), codes::INVALID);
    assert_eq!(world.no(Command::Place { items: vec![item(2, 0, &[3; 9])] }), codes::INVALID);
}

#[test]
fn a_failed_machine_waits_and_goes_elsewhere() {
    let mut world = World::new();
    world.create(1, spec(GIB));
    world.place(1, &[2]);
    assert_eq!(world.no_from(3, failed(1, 1, 0)), codes::DENIED, "only the owner knows");
    world.ok_from(2, failed(1, 1, 5_000));
    let machine = world.machine(1);
    assert_eq!((machine.failures, machine.waiting.as_deref()), (1, Some("no such program")));
    assert_eq!(refused(&world.place(1, &[3])).0, codes::TOO_EARLY);
    world.at_ms += 5_000;
    world.ok(cordon(4));
    assert_eq!(world.place(1, &[3]), PlaceResult::Placed { machine: machine_id(1), node: node_id(3), epoch: 2 });
    assert!(world.placement(1).fresh, "its disk did not come along");
    world.ok_from(3, Command::Confirm { machine: machine_id(1), epoch: 2 });
    assert_eq!((world.machine(1).failures, world.machine(1).waiting.clone()), (0, None));
    world.ok_from(3, failed(1, 2, u64::MAX));
    assert_eq!(world.machine(1).not_before_ms, world.at_ms + 3_600_000, "no back-off is for ever");
    world.ok(desire(1, Desired::Stopped));
    world.ok(desire(1, Desired::Running));
    assert_eq!(world.machine(1).not_before_ms, 0, "the user asks anew");
}

#[test]
fn a_pinned_machine_that_failed_stays_where_it_is_pinned() {
    let mut world = World::new();
    world.run(1, MachineSpec { pinned: Some(node_id(2)), ..spec(GIB) }, 2);
    world.ok_from(2, failed(1, 1, 1000));
    assert_eq!((world.placement(1).node, world.placement(1).epoch), (node_id(2), 1));
    assert_eq!(world.machine(1).failures, 1);
    assert_eq!(world.machine(1).not_before_ms, world.at_ms + 1000, "and its node waits so long");
    world.ok(Command::RestartMachine { machine: machine_id(1), expected_revision: None });
    assert_eq!((world.machine(1).failures, world.machine(1).not_before_ms), (0, 0), "the user asks anew");
}

#[test]
fn a_machine_that_has_run_stays_where_its_disk_is() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    let stays = |epoch| Command::Failed {
        machine: machine_id(1),
        epoch,
        reason: "no such program".into(),
        back_off_ms: 1000,
        here: true,
    };
    world.ok_from(2, stays(1));
    let machine = world.machine(1);
    assert_eq!(machine.placement.map(|p| (p.node, p.epoch, p.confirmed)), Some((node_id(2), 1, true)));
    assert_eq!((machine.failures, machine.not_before_ms), (1, world.at_ms + 1000), "and is tried again there");
    assert_eq!(world.state.unplaced().count(), 0);
    world.ok(takeover(1, 1, 2, &[3], 1));
    assert!(world.placement(1).fresh, "when its node dies, it goes on without it");
    world.ok_from(3, failed(1, 2, 0));
    assert_eq!(world.machine(1).placement, None, "where it has none, it is bound to nothing");
}

#[test]
fn an_owner_may_give_a_machine_up() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    assert_eq!(world.no_from(2, release(1, 2)), codes::STALE_EPOCH);
    assert_eq!(world.no_from(1, release(1, 1)), codes::DENIED);
    assert!(matches!(world.ok_from(2, release(1, 1)), Outcome::Owner { node: None, epoch: 1, .. }));
    assert_eq!(world.no_from(2, release(1, 1)), codes::NOT_PLACED);
    assert_eq!(world.state.unplaced().count(), 1);
    assert!(matches!(world.place(1, &[3]), PlaceResult::Placed { epoch: 2, .. }));
}

#[test]
fn only_the_owner_confirms_and_once() {
    let mut world = World::new();
    world.create(1, spec(GIB));
    world.place(1, &[2]);
    let confirm = |epoch| Command::Confirm { machine: machine_id(1), epoch };
    assert_eq!(world.no_from(3, confirm(1)), codes::DENIED);
    assert_eq!(world.no_from(2, confirm(0)), codes::STALE_EPOCH);
    let first = world.ok_from(2, confirm(1));
    assert_eq!(world.ok_from(2, confirm(1)), first);
    assert!(world.placement(1).confirmed);
}

#[test]
fn a_takeover_gives_the_next_epoch_and_starts_afresh() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    let result = world.takeover(1, 2, &[2, 3], 99).unwrap();
    assert_eq!(result, PlaceResult::Placed { machine: machine_id(1), node: node_id(3), epoch: 2 });
    let placement = world.placement(1);
    assert!(placement.fresh && !placement.confirmed);
    assert_eq!(placement.previous.map(|p| (p.node, p.epoch)), Some((node_id(2), 1)));
    assert_eq!(world.state.free(node_id(2)).memory_bytes, 8 * GIB, "a dead owner keeps no room");
    // A second caretaker is late: the epoch admits one.
    assert_eq!(world.no(takeover(1, 1, 2, &[1], 99)), codes::STALE_EPOCH);
    // The new owner dies before it confirms.
    assert!(matches!(world.takeover(1, 3, &[1], 99), Ok(PlaceResult::Placed { epoch: 3, .. })));
    world.ok_from(1, Command::Confirm { machine: machine_id(1), epoch: 3 });
    assert_eq!(world.placement(1).previous, None);
    assert_eq!(world.no_from(2, Command::Confirm { machine: machine_id(1), epoch: 1 }), codes::STALE_EPOCH);
}

#[test]
fn an_exclusive_machine_is_taken_only_in_the_term_that_judged() {
    let mut world = World::new();
    world.run(1, MachineSpec { exclusive: true, ..spec(GIB) }, 2);
    world.term = 5;
    assert_eq!(world.takeover(1, 2, &[3], 4).unwrap_err().code, codes::OTHER_TERM);
    assert!(world.takeover(1, 2, &[3], 5).is_ok());
}

#[test]
fn takeovers_respect_absence_desire_and_ownership() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    assert_eq!(world.takeover(1, 3, &[1], 1).unwrap_err().code, codes::DENIED, "not the owner");
    world.ok(Command::PlanAbsence { node: node_id(2), for_ms: 60_000 });
    assert_eq!(world.takeover(1, 2, &[3], 1).unwrap_err().code, codes::ABSENT);
    world.ok(Command::EndAbsence { node: node_id(2) });
    world.ok(desire(1, Desired::Stopped));
    assert_eq!(world.takeover(1, 2, &[3], 1).unwrap_err().code, codes::NOT_WANTED);
    world.ok(desire(1, Desired::Running));
    let nowhere = world.takeover(1, 2, &[2], 1).unwrap();
    assert_eq!(refused(&nowhere).0, codes::NO_NODE);
    assert_eq!(world.placement(1).epoch, 1);
    assert!(world.machine(1).waiting.is_some());
    world.create(2, spec(GIB));
    assert_eq!(world.takeover(2, 2, &[3], 1).unwrap_err().code, codes::NOT_PLACED);
}
