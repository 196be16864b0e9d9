use super::*;

fn create(n: u8, text: &str, spec: MachineSpec) -> Command {
    Command::CreateMachine {
        id: machine_id(n),
        tenant: name("default"),
        name: name(text),
        spec: Box::new(spec),
        desired: Desired::Running,
    }
}

#[test]
fn a_machine_may_be_made_stopped() {
    let mut world = World::new();
    let made = |desired| Command::CreateMachine {
        id: machine_id(1),
        tenant: name("default"),
        name: name("web"),
        spec: Box::new(spec(GIB)),
        desired,
    };
    assert_eq!(world.no(made(Desired::Deleted)), codes::INVALID);
    world.ok(made(Desired::Stopped));
    assert_eq!((world.machine(1).desired, world.state.unplaced().count()), (Desired::Stopped, 0));
    world.ok(desire(1, Desired::Running));
    assert_eq!(world.state.unplaced().count(), 1);
}

#[test]
fn a_machine_is_made_once() {
    let mut world = World::new();
    assert!(matches!(world.ok(create(1, "web", spec(GIB))), Outcome::Created { id, .. } if id == machine_id(1)));
    assert_eq!(world.state.machine_by_name(&name("default"), &name("web")).unwrap().id, machine_id(1));
    let machine = world.machine(1);
    assert_eq!((machine.desired, machine.epoch, machine.placement), (Desired::Running, 0, None));
    let refusal = world.ask(create(2, "web", spec(GIB))).unwrap_err();
    assert_eq!((&*refusal.code, &*refusal.message), (codes::EXISTS, "tenant default has a machine web already"));
    assert_eq!(world.no(create(1, "other", spec(GIB))), codes::EXISTS);
    assert_eq!(world.state.unplaced().count(), 1);
}

#[test]
fn a_machine_needs_what_it_names() {
    let mut world = World::new();
    assert_eq!(world.no(create(1, "web", MachineSpec { image: name("none"), ..spec(GIB) })), codes::NOT_FOUND);
    assert_eq!(world.no(create(1, "web", MachineSpec { pinned: Some(node_id(9)), ..spec(GIB) })), codes::NOT_FOUND);
    assert_eq!(world.no(create(1, "web", spec(1))), codes::INVALID);
    let tenant = name("nobody");
    let nobody = Command::CreateMachine {
        id: machine_id(1),
        tenant,
        name: name("web"),
        spec: Box::new(spec(GIB)),
        desired: Desired::Running,
    };
    assert_eq!(world.no(nobody), codes::NOT_FOUND);
}

#[test]
fn the_wanted_state_changes_and_deleted_is_final() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    world.ok(desire(1, Desired::Stopped));
    assert_eq!(world.placement(1).node, node_id(2), "its disk and its room stay");
    assert_eq!(
        world.no(Command::RestartMachine { machine: machine_id(1), expected_revision: None }),
        codes::NOT_WANTED
    );
    world.ok(desire(1, Desired::Running));
    world.ok(Command::RestartMachine { machine: machine_id(1), expected_revision: None });
    assert_eq!(world.machine(1).restarts, 2, "a start is a request to run anew, as a restart is");
    let revision = world.machine(1).revision;
    assert_eq!(world.ok(desire(1, Desired::Running)), Outcome::Done { revision });
    world.ok(desire(1, Desired::Deleted));
    world.ok(desire(1, Desired::Deleted));
    assert_eq!(world.no(desire(1, Desired::Running)), codes::DELETED);
    assert_eq!(world.no(desire(9, Desired::Running)), codes::NOT_FOUND);
}

#[test]
fn a_deleted_machine_goes_when_its_owner_has_destroyed_it() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    let forget = |epoch| Command::Forget { machine: machine_id(1), epoch };
    assert_eq!(world.no_from(2, forget(1)), codes::NOT_DELETED);
    world.ok(desire(1, Desired::Deleted));
    assert_eq!(world.no_from(2, forget(2)), codes::STALE_EPOCH);
    assert_eq!(world.no_from(3, forget(1)), codes::DENIED);
    assert_eq!(world.ok_from(2, forget(1)), Outcome::Removed);
    assert_eq!(world.ok_from(2, forget(1)), Outcome::Removed, "idempotent");
    assert_eq!(world.state.free(node_id(2)), world.state.nodes[&node_id(2)].capacity);
    // Without an owner there is nothing to destroy.
    world.create(2, spec(GIB));
    assert_eq!(world.ok(desire(2, Desired::Deleted)), Outcome::Removed);
}

#[test]
fn labels_are_patched_within_their_bounds() {
    let mut world = World::new();
    world.create(1, spec(GIB));
    let update = |set: &[(&str, &str)], remove: &[&str], expected_revision| Command::UpdateLabels {
        machine: machine_id(1),
        patch: LabelPatch {
            set: set.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            remove: remove.iter().map(|k| (*k).into()).collect(),
        },
        expected_revision,
    };
    world.ok(update(&[("a", "1"), ("b", "2")], &[], None));
    world.ok(update(&[("c", "3")], &["a", "none"], None));
    let labels: Vec<_> = world.machine(1).spec.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["b=2", "c=3"]);
    let revision = world.machine(1).revision;
    assert_eq!(world.ok(update(&[("c", "3")], &[], Some(revision))), Outcome::Done { revision });
    assert_eq!(world.no(update(&[("c", "4")], &[], Some(revision - 1))), codes::REVISION);
    assert_eq!(world.no(update(&[("bad key", "")], &[], None)), codes::INVALID);
    let many: Vec<String> = (0..31).map(|n| format!("k{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|k| (k.as_str(), "")).collect();
    assert_eq!(world.no(update(&many, &[], None)), codes::INVALID);
}

fn ended(n: u8, epoch: u64, restarts: u64, code: i32) -> Command {
    Command::Ended { machine: machine_id(n), epoch, restarts, code }
}

#[test]
fn a_machine_that_has_ended_is_wanted_stopped_and_is_not_taken_over() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    world.ok_from(2, ended(1, 1, 0, 3));
    let machine = world.machine(1);
    assert_eq!((machine.desired, machine.ended, machine.restarts), (Desired::Stopped, Some(3), 0));
    assert_eq!(world.no(takeover(1, 1, 2, &[3], 1)), codes::NOT_WANTED);
    // Moved, it stays so.
    world.ok(move_begin(1, 1, 7, 3));
    world.ok_from(2, move_switch(1, 1, 7));
    assert_eq!((world.machine(1).desired, world.machine(1).ended), (Desired::Stopped, Some(3)));
    world.ok(desire(1, Desired::Running));
    assert_eq!((world.machine(1).ended, world.machine(1).restarts), (None, 1), "a new run");
}

#[test]
fn a_run_that_is_over_is_followed_by_one_that_was_asked_for_once() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    let start =
        |over| Command::SetDesired { machine: machine_id(1), desired: Desired::Running, over, expected_revision: None };
    world.ok(start(None));
    assert_eq!(world.machine(1).restarts, 0, "it runs");
    world.ok(start(Some(0)));
    world.ok(start(Some(0)));
    assert_eq!(world.machine(1).restarts, 1, "two saw the same run end");
    assert_eq!(world.ask_from(2, ended(1, 1, 0, 0)).unwrap_err().code, codes::REVISION, "of the run before");
    world.ok_from(2, ended(1, 1, 1, 0));
    world.ok(start(Some(1)));
    assert_eq!((world.machine(1).restarts, world.machine(1).ended), (2, None), "the end was told in between");
}

#[test]
fn only_the_owner_tells_of_an_end_and_only_of_the_run_that_is_wanted() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    let no = |world: &mut World, from, command| world.ask_from(from, command).unwrap_err().code;
    assert_eq!(no(&mut world, 3, ended(1, 1, 0, 0)), codes::DENIED);
    assert_eq!(no(&mut world, 2, ended(1, 2, 0, 0)), codes::STALE_EPOCH);
    world.ok(Command::RestartMachine { machine: machine_id(1), expected_revision: None });
    assert_eq!(no(&mut world, 2, ended(1, 1, 0, 0)), codes::REVISION, "somebody has asked for another run since");
    world.ok(desire(1, Desired::Stopped));
    assert_eq!(no(&mut world, 2, ended(1, 1, 1, 0)), codes::NOT_WANTED);
    assert_eq!(world.machine(1).ended, None);
    world.ok(desire(1, Desired::Running));
    assert_eq!(no(&mut world, 2, ended(1, 1, 1, 0)), codes::REVISION);
    world.ok_from(2, ended(1, 1, 2, 0));
    assert_eq!(no(&mut world, 2, ended(1, 1, 2, 0)), codes::NOT_WANTED, "told twice");
}
