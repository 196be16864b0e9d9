use fabric::ids::MoveId;
use fabric::model::{MoveV1, PreviousV1};

use super::*;
use crate::fixtures::{self, placed};

const ME: NodeId = NodeId([1; 32]);
const OTHER: NodeId = NodeId([2; 32]);
const ID: MachineId = MachineId([9; 16]);

fn record(placement: Option<Placement>) -> MachineRecord {
    fixtures::machine(9, placement)
}

fn local(epoch: u64, phase: Phase) -> Local {
    Local { epoch, restarts: 0, phase }
}

fn facts<'a>(
    records: &'a BTreeMap<MachineId, MachineRecord>,
    locals: &'a BTreeMap<MachineId, Local>,
    waiting: &'a BTreeSet<MachineId>,
    leased: bool,
) -> Facts<'a> {
    static NONE: BTreeSet<MachineId> = BTreeSet::new();
    Facts { me: ME, records, locals, busy: &NONE, known_absent: &NONE, waiting, leased }
}

fn decided(record: Option<MachineRecord>, local: Option<Local>, leased: bool) -> Vec<Action> {
    let records = record.into_iter().map(|r| (ID, r)).collect();
    let locals = local.into_iter().map(|l| (ID, l)).collect();
    let none = BTreeSet::new();
    decide(&facts(&records, &locals, &none, leased))
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

#[test]
fn a_machine_that_lost_its_supervisor_waits_its_turn_and_no_longer_than_it_is_wanted() {
    let (mine, lost, waits) = (record(Some(placed(ME, 1))), local(1, Phase::Lost), BTreeSet::from([ID]));
    let locals = BTreeMap::from([(ID, lost)]);
    let decide_for = |record: MachineRecord, waiting: &BTreeSet<MachineId>| {
        let records = BTreeMap::from([(ID, record)]);
        let facts = facts(&records, &locals, waiting, true);
        (decide(&facts), super::lost(&facts).contains(&ID))
    };
    let start = Action::Start { machine: ID, epoch: 1, clean: false };
    assert_eq!(decide_for(mine.clone(), &waits), (vec![], true));
    assert_eq!(decide_for(mine.clone(), &BTreeSet::new()), (vec![start.clone()], true));
    // Deleting it, or asking for a restart, is not held up.
    let gone = MachineRecord { desired: Desired::Deleted, ..mine.clone() };
    assert_eq!(decide_for(gone, &waits), (vec![Action::Destroy(ID, 1)], false));
    assert_eq!(decide_for(MachineRecord { restarts: 1, ..mine.clone() }, &waits), (vec![start], true));
    let mut never = mine;
    never.spec.restart = Restart::Never;
    assert_eq!(decide_for(never, &BTreeSet::new()), (vec![], false));
}
