use fabric::ids::{Digest, MoveId};
use fabric::model::{Labels, MachineSpec, MoveV1, PreviousV1, Resources, Restart};

use super::*;

const ME: NodeId = NodeId([1; 32]);
const OTHER: NodeId = NodeId([2; 32]);
const ID: MachineId = MachineId([9; 16]);

fn placed(node: NodeId, epoch: u64) -> Placement {
    Placement { node, epoch, since_ms: 0, confirmed: true, fresh: false, previous: None, moving: None }
}

fn record(placement: Option<Placement>) -> MachineRecord {
    MachineRecord {
        id: ID,
        tenant: "default".parse().unwrap(),
        name: "web".parse().unwrap(),
        spec: MachineSpec {
            image: "shell".parse().unwrap(),
            command: vec![],
            env: vec![],
            resources: Resources::default(),
            publish: vec![],
            labels: Labels::new(),
            exclusive: false,
            restart: Restart::Always,
            pinned: None,
        },
        image: Digest([0; 32]),
        desired: Desired::Running,
        restarts: 0,
        epoch: placement.map_or(0, |p| p.epoch),
        placement,
        failures: 0,
        not_before_ms: 0,
        waiting: None,
        created_ms: 0,
        revision: 1,
    }
}

fn local(epoch: u64, phase: Phase) -> Local {
    Local { epoch, restarts: 0, phase }
}

fn decided(record: Option<MachineRecord>, local: Option<Local>, leased: bool) -> Vec<Action> {
    let records = record.into_iter().map(|r| (ID, r)).collect();
    let locals = local.into_iter().map(|l| (ID, l)).collect();
    let none = BTreeSet::new();
    decide(&Facts { me: ME, records: &records, locals: &locals, busy: &none, known_absent: &none, leased })
}

#[test]
fn a_new_placement_starts_and_is_confirmed() {
    let fresh = Placement { confirmed: false, ..placed(ME, 1) };
    assert_eq!(decided(Some(record(Some(fresh))), None, true), [Action::Start { machine: ID, epoch: 1, clean: false }]);
    assert_eq!(decided(Some(record(Some(fresh))), Some(local(1, Phase::Up)), true), [Action::Confirm(ID, 1)]);
    assert_eq!(decided(Some(record(Some(placed(ME, 1)))), Some(local(1, Phase::Up)), true), []);
}

#[test]
fn an_exclusive_machine_waits_for_the_lease() {
    let mut exclusive = record(Some(placed(ME, 1)));
    exclusive.spec.exclusive = true;
    assert_eq!(decided(Some(exclusive.clone()), None, false), []);
    assert_eq!(decided(Some(exclusive.clone()), Some(local(1, Phase::Frozen)), false), []);
    assert_eq!(decided(Some(exclusive), Some(local(1, Phase::Frozen)), true), [Action::Thaw(ID)]);
}

#[test]
fn a_higher_epoch_elsewhere_stops_and_keeps_the_disk_aside() {
    let taken = Placement { fresh: true, previous: Some(PreviousV1 { node: ME, epoch: 1 }), ..placed(OTHER, 2) };
    assert_eq!(decided(Some(record(Some(taken))), Some(local(1, Phase::Up)), true), [Action::Stop(ID)]);
    assert_eq!(decided(Some(record(Some(taken))), Some(local(1, Phase::Down)), true), [Action::Quarantine(ID)]);
}

#[test]
fn a_moved_machine_is_kept_until_the_destination_runs_it() {
    let switched =
        Placement { confirmed: false, previous: Some(PreviousV1 { node: ME, epoch: 1 }), ..placed(OTHER, 2) };
    assert_eq!(decided(Some(record(Some(switched))), Some(local(1, Phase::Down)), true), []);
    let running = Placement { confirmed: true, ..switched };
    assert_eq!(decided(Some(record(Some(running))), Some(local(1, Phase::Down)), true), [Action::Discard(ID)]);
}

#[test]
fn absence_alone_never_removes() {
    assert_eq!(decided(None, Some(local(1, Phase::Up)), true), [Action::Ask(ID)]);
}

#[test]
fn an_older_view_of_the_ledger_stops_nothing() {
    assert_eq!(decided(Some(record(Some(placed(OTHER, 1)))), Some(local(2, Phase::Up)), true), []);
}

#[test]
fn what_comes_back_after_a_takeover_starts_clean() {
    let again = Placement { fresh: true, confirmed: false, ..placed(ME, 5) };
    assert_eq!(decided(Some(record(Some(again))), Some(local(2, Phase::Up)), true), [Action::Stop(ID)]);
    assert_eq!(
        decided(Some(record(Some(again))), Some(local(2, Phase::Down)), true),
        [Action::Start { machine: ID, epoch: 5, clean: true }]
    );
}

#[test]
fn delete_destroys_then_forgets() {
    let mut gone = record(Some(placed(ME, 3)));
    gone.desired = Desired::Deleted;
    assert_eq!(decided(Some(gone.clone()), Some(local(3, Phase::Up)), true), [Action::Destroy(ID, 3)]);
    assert_eq!(decided(Some(gone), None, true), [Action::Forget(ID, 3)]);
}

#[test]
fn a_machine_that_is_being_received_is_left_to_the_move() {
    let moving = MoveV1 { id: MoveId([3; 16]), to: ME, since_ms: 0 };
    let coming = Placement { moving: Some(moving), ..placed(OTHER, 4) };
    assert_eq!(decided(Some(record(Some(coming))), Some(local(2, Phase::Down)), true), []);
}

#[test]
fn a_restart_on_request_happens_once() {
    let mut asked = record(Some(placed(ME, 1)));
    asked.restarts = 1;
    assert_eq!(decided(Some(asked.clone()), Some(local(1, Phase::Up)), true), [Action::Restart(ID)]);
    let done = Local { restarts: 1, ..local(1, Phase::Up) };
    assert_eq!(decided(Some(asked), Some(done), true), []);
}

#[test]
fn a_machine_killed_with_its_supervisor_starts_again_unless_its_policy_is_never() {
    let mut owned = record(Some(placed(ME, 1)));
    let again = Action::Start { machine: ID, epoch: 1, clean: false };
    assert_eq!(decided(Some(owned.clone()), Some(local(1, Phase::Lost)), true), [again]);
    owned.spec.restart = Restart::Never;
    assert_eq!(decided(Some(owned), Some(local(1, Phase::Lost)), true), []);
}
