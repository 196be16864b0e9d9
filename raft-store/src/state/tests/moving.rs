use super::*;

fn free(world: &World, n: u8) -> u64 {
    world.state.free(node_id(n)).memory_bytes / GIB
}

fn confirm(n: u8, epoch: u64) -> Command {
    Command::Confirm { machine: machine_id(n), epoch }
}

/// A machine of 5 GiB that moves from node 2 to node 3 and has been switched there.
fn switched() -> World {
    let mut world = World::new();
    world.run(1, spec(5 * GIB), 2);
    world.ok(move_begin(1, 1, 1, 3));
    world.ok_from(2, move_switch(1, 1, 1));
    world
}

#[test]
fn room_is_kept_at_both_ends_until_the_destination_runs() {
    let mut world = World::new();
    world.run(1, spec(5 * GIB), 2);
    world.ok(move_begin(1, 1, 1, 3));
    assert_eq!((free(&world, 2), free(&world, 3)), (3, 3));
    assert_eq!(world.state.machines_reserved_on(node_id(3)).count(), 1);
    world.create(2, spec(5 * GIB));
    assert!(matches!(world.place(2, &[3]), PlaceResult::Refused { .. }), "the room is taken");
    world.ok_from(2, move_switch(1, 1, 1));
    assert_eq!((free(&world, 2), free(&world, 3)), (3, 3), "the way back stays open");
    let placement = world.placement(1);
    assert_eq!((placement.node, placement.epoch, placement.fresh), (node_id(3), 2, false));
    assert_eq!(placement.previous.map(|p| (p.node, p.epoch)), Some((node_id(2), 1)));
    world.ok_from(3, confirm(1, 2));
    assert_eq!((free(&world, 2), free(&world, 3)), (8, 3));
}

#[test]
fn a_move_begins_once_and_only_where_it_can() {
    let mut world = World::new();
    world.run(1, spec(5 * GIB), 2);
    world.run(2, spec(5 * GIB), 1);
    assert_eq!(world.no(move_begin(1, 2, 1, 3)), codes::STALE_EPOCH);
    assert_eq!(world.no(move_begin(1, 1, 1, 2)), codes::PLACED);
    assert_eq!(world.no(move_begin(1, 1, 1, 9)), codes::NOT_FOUND);
    assert_eq!(world.no(move_begin(1, 1, 1, 1)), codes::CAPACITY);
    world.ok(cordon(4));
    assert_eq!(world.no(move_begin(1, 1, 1, 4)), codes::NO_NODE);
    let begun = world.ok(move_begin(1, 1, 1, 3));
    assert_eq!(world.ok(move_begin(1, 1, 1, 3)), begun, "idempotent");
    assert_eq!(world.no(move_begin(1, 1, 2, 3)), codes::MOVING);
    world.run(3, MachineSpec { pinned: Some(node_id(2)), ..spec(GIB) }, 2);
    assert_eq!(world.no(move_begin(3, 1, 3, 3)), codes::PINNED);
}

#[test]
fn the_first_of_switch_and_abort_decides() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    world.ok(move_begin(1, 1, 1, 3));
    assert_eq!(world.no_from(2, move_switch(1, 1, 2)), codes::NO_MOVE);
    assert_eq!(world.no_from(3, move_switch(1, 1, 1)), codes::DENIED, "only the source says so");
    world.ok_from(3, move_abort(1, 1, 1));
    world.ok_from(2, move_abort(1, 1, 1));
    assert_eq!(world.no_from(2, move_switch(1, 1, 1)), codes::NO_MOVE);
    assert_eq!(world.placement(1).epoch, 1);
    world.ok(move_begin(1, 1, 2, 3));
    assert_eq!(world.no_from(2, move_abort(1, 1, 1)), codes::NO_MOVE, "of an earlier move");
    world.ok_from(2, move_switch(1, 1, 2));
    let refusal = world.ask_from(2, move_abort(1, 1, 2)).unwrap_err();
    assert_eq!((&*refusal.code, &*refusal.message), (codes::STALE_EPOCH, "machine m1 is owned by n3 in epoch 2"));
}

#[test]
fn a_move_ends_when_the_machine_is_deleted_or_taken_over() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    world.ok(move_begin(1, 1, 1, 3));
    world.ok(desire(1, Desired::Deleted));
    assert_eq!(world.no_from(2, move_switch(1, 1, 1)), codes::NO_MOVE);
    world.run(2, spec(GIB), 2);
    world.ok(move_begin(2, 1, 2, 3));
    assert!(matches!(world.takeover(2, 2, &[1], 1), Ok(PlaceResult::Placed { .. })));
    assert_eq!(free(&world, 3), 8);
    assert_eq!(world.no_from(2, move_switch(2, 1, 2)), codes::STALE_EPOCH);
}

#[test]
fn an_unsettled_move_goes_back_to_its_source_when_the_destination_fails() {
    let mut world = switched();
    let reason = String::from("the disk is full");
    world.ok_from(3, Command::Failed { machine: machine_id(1), epoch: 2, reason, back_off_ms: 0, here: false });
    let placement = world.placement(1);
    assert_eq!((placement.node, placement.epoch, placement.fresh), (node_id(2), 3, false));
    world.ok_from(2, confirm(1, 3));
    assert_eq!((free(&world, 2), free(&world, 3)), (3, 8));
}

#[test]
fn an_unsettled_move_is_taken_over_by_either_end_only() {
    let mut world = switched();
    let elsewhere = world.takeover(1, 3, &[1, 4], 1).unwrap();
    assert!(matches!(elsewhere, PlaceResult::Refused { refusal, .. } if refusal.code == codes::NO_NODE));
    assert_eq!(world.machine(1).waiting.as_deref(), Some("its move from n2 to n3 is not settled: waiting for either"));
    assert_eq!(world.no_from(3, Command::Release { machine: machine_id(1), epoch: 2 }), codes::MOVING);
    assert_eq!(world.no(move_begin(1, 2, 2, 1)), codes::MOVING);
    // A cordon does not matter: the disk is there.
    world.ok(cordon(2));
    let back = world.takeover(1, 3, &[1, 2], 1).unwrap();
    assert_eq!(back, PlaceResult::Placed { machine: machine_id(1), node: node_id(2), epoch: 3 });
    assert_eq!(world.placement(1).previous.map(|p| (p.node, p.epoch)), Some((node_id(3), 2)));
    assert!(!world.placement(1).fresh);
    // And again, to the other end.
    assert!(matches!(world.takeover(1, 2, &[1, 3], 1), Ok(PlaceResult::Placed { epoch: 4, .. })));
    assert_eq!(world.placement(1).node, node_id(3));
}

#[test]
fn the_destination_itself_may_take_over_again() {
    let mut world = switched();
    assert!(matches!(world.takeover(1, 3, &[3], 1), Ok(PlaceResult::Placed { epoch: 3, .. })));
    assert_eq!(
        world.placement(1).previous.map(|p| (p.node, p.epoch)),
        Some((node_id(2), 1)),
        "the source's copy counts"
    );
}

#[test]
fn a_removed_source_binds_nobody() {
    let mut world = switched();
    world.ok(remove(2, true));
    assert!(matches!(world.takeover(1, 3, &[1], 1), Ok(PlaceResult::Placed { .. })));
    assert!(world.placement(1).fresh);
}

#[test]
fn a_node_s_placements_change_with_what_it_gets_and_loses_alone() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    let placed = |world: &World| [2, 3, 4].map(|n| world.state.placed_on(node_id(n)));
    let at_first = placed(&world);
    assert_eq!((at_first[1], at_first[2]), (0, 0));
    // Neither other machines nor other properties of the machine.
    world.create(2, spec(GIB));
    let labels = LabelPatch { set: Labels::from([("a".into(), "b".into())]), ..LabelPatch::default() };
    world.ok(Command::UpdateLabels { machine: machine_id(1), patch: labels, expected_revision: None });
    world.no(move_begin(1, 7, 1, 3));
    assert_eq!(placed(&world), at_first);
    // Both ends of a move hear of each of its steps, and nobody else.
    let steps: [(u8, Command); 5] = [
        (1, move_begin(1, 1, 1, 3)),
        (1, move_abort(1, 1, 1)),
        (1, move_begin(1, 1, 2, 3)),
        (2, move_switch(1, 1, 2)),
        (3, confirm(1, 2)),
    ];
    for (from, step) in steps {
        world.ok_from(from, step);
        assert_eq!(placed(&world), [world.index, world.index, 0]);
    }
    // Who has lost a machine has news, also when it is taken over.
    assert!(matches!(world.takeover(1, 3, &[4], 1), Ok(PlaceResult::Placed { .. })));
    let taken = world.index;
    assert_eq!(placed(&world)[1..], [taken, taken]);
    world.ok_from(4, confirm(1, 3));
    assert_eq!(placed(&world)[1..], [world.index, world.index], "the former owner is named no more");
    world.ok_from(4, Command::Release { machine: machine_id(1), epoch: 3 });
    assert_eq!(placed(&world)[1..], [world.index - 1, world.index]);
    let records: Vec<_> = crate::snapshot::to_records(&world.state, crate::snapshot::CaKeys::With).collect();
    assert_eq!(crate::snapshot::from_records(records).unwrap().placed, world.state.placed);
    world.ok(remove(4, true));
    assert!(!world.state.placed.contains_key(&node_id(4)));
}

/// A step of a move that a client's key asked for, by the node that owns the machine.
fn keyed(world: &mut World, n: u8, command: Command) -> Result<Outcome, Refusal> {
    world.ask_as(Actor::fabric(node_id(n)), Some(KEY), command)
}

const KEY: IdempotencyKey = IdempotencyKey([7; 16]);

fn known(world: &World) -> Option<KeyedMove> {
    world.state.keyed_move(machine_id(1), KEY)
}

fn begun(id: u8, epoch: u64) -> Result<Outcome, Refusal> {
    Ok(Outcome::Moving { id: MoveId([id; 16]), epoch })
}

#[test]
fn a_move_that_is_asked_for_again_is_known_to_every_owner() {
    let mut world = World::new();
    // From a worker, whose own keys are bound to itself, to a voter and on.
    world.run(1, spec(GIB), 4);
    assert_eq!(known(&world), None);
    assert_eq!(keyed(&mut world, 4, move_begin(1, 1, 1, 3)), begun(1, 1));
    assert_eq!(keyed(&mut world, 4, move_begin(1, 1, 2, 3)), begun(1, 1), "another id, the move of before");
    assert_eq!(known(&world), Some(KeyedMove::UnderWay));
    keyed(&mut world, 4, move_switch(1, 1, 1)).unwrap();
    assert_eq!(known(&world), Some(KeyedMove::Switched));
    assert!(keyed(&mut world, 4, move_switch(1, 1, 1)).is_ok(), "the answer was lost");
    world.ok_from(3, confirm(1, 2));
    assert_eq!(known(&world), Some(KeyedMove::Done));
    let epoch = world.machine(1).epoch;
    assert_eq!(keyed(&mut world, 3, move_begin(1, 2, 3, 2)), begun(1, 1), "its next owner begins no other");
    assert_eq!((world.machine(1).epoch, world.placement(1).moving), (epoch, None));
    // Wherever it goes since.
    world.ok(move_begin(1, 2, 4, 4));
    world.ok_from(3, move_switch(1, 2, 4));
    assert_eq!(known(&world), Some(KeyedMove::Done));
    assert_eq!(world.state.keyed_move(machine_id(1), IdempotencyKey([8; 16])), None);
    assert_eq!(world.state.keyed_move(machine_id(2), KEY), None);
}

#[test]
fn a_move_that_was_given_up_or_refused_is_not_begun_again() {
    let mut world = World::new();
    world.run(1, spec(5 * GIB), 2);
    keyed(&mut world, 2, move_begin(1, 1, 1, 3)).unwrap();
    world.ok(move_abort(1, 1, 1));
    assert_eq!(known(&world), Some(KeyedMove::GivenUp));
    assert_eq!(keyed(&mut world, 2, move_begin(1, 1, 2, 3)), begun(1, 1));
    assert_eq!(world.placement(1).moving, None);
    // SWITCH came too late.
    assert_eq!(keyed(&mut world, 2, move_switch(1, 1, 1)).unwrap_err().code, codes::NO_MOVE);
    assert_eq!(known(&world), Some(KeyedMove::GivenUp));

    let mut world = World::new();
    world.run(1, spec(5 * GIB), 2);
    world.run(2, spec(5 * GIB), 3);
    let refusal = keyed(&mut world, 2, move_begin(1, 1, 1, 3)).unwrap_err();
    assert_eq!(known(&world), Some(KeyedMove::Refused(refusal)));
}

#[test]
fn who_does_not_own_a_machine_answers_for_none_of_its_moves() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    assert_eq!(keyed(&mut world, 4, move_begin(1, 1, 1, 3)).unwrap_err().code, codes::DENIED);
    assert_eq!(known(&world), None, "a worker's word");
    assert_eq!(keyed(&mut world, 2, move_begin(1, 1, 2, 3)), begun(2, 1));
    // Nor is the move of a dead owner done because its successor has the machine.
    assert!(matches!(world.takeover(1, 2, &[3], 1), Ok(PlaceResult::Placed { .. })));
    assert_eq!(known(&world), Some(KeyedMove::GivenUp));
    world.at_ms += 24 * 3_600_000;
    assert_eq!(known(&world), Some(KeyedMove::GivenUp), "time goes on with entries");
    world.ok_from(3, confirm(1, 2));
    assert_eq!(known(&world), None, "keys are kept for a day");
}
