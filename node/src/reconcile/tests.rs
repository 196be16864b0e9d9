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
    static NOTHING: BTreeSet<(MachineId, u64)> = BTreeSet::new();
    static ROOM: Room = Room { full: false, held: BTreeSet::new() };
    Facts {
        me: ME,
        records,
        locals,
        busy: &NONE,
        known_absent: &NONE,
        waiting,
        moved: &NOTHING,
        view: View::Current,
        room: &ROOM,
        leased,
        now_ms: 1000,
    }
}

/// What is decided about a copy that this node has moved away at `moved`.
fn decided_after(moved: u64, record: MachineRecord, local: Local) -> Vec<Action> {
    let (records, locals) = (BTreeMap::from([(ID, record)]), BTreeMap::from([(ID, local)]));
    let (none, moved) = (BTreeSet::new(), BTreeSet::from([(ID, moved)]));
    decide(&Facts { moved: &moved, ..facts(&records, &locals, &none, true) })
}

/// What is decided on a disk that is nearly full.
fn decided_in(room: &Room, record: MachineRecord, local: Option<Local>) -> Vec<Action> {
    let (records, locals) = (BTreeMap::from([(ID, record)]), local.into_iter().map(|l| (ID, l)).collect());
    let none = BTreeSet::new();
    decide(&Facts { room, ..facts(&records, &locals, &none, true) })
}

fn previous(node: NodeId, epoch: u64) -> Option<PreviousV1> {
    Some(PreviousV1 { node, epoch })
}

fn decided(record: Option<MachineRecord>, local: Option<Local>, leased: bool) -> Vec<Action> {
    let records = record.into_iter().map(|r| (ID, r)).collect();
    let locals = local.into_iter().map(|l| (ID, l)).collect();
    let none = BTreeSet::new();
    decide(&facts(&records, &locals, &none, leased))
}

#[test]
fn nothing_is_done_by_a_view_that_may_be_of_before_the_restart() {
    let (records, locals) = (BTreeMap::from([(ID, record(Some(placed(ME, 1))))]), BTreeMap::new());
    let none = BTreeSet::new();
    assert_eq!(decide(&Facts { view: View::Unknown, ..facts(&records, &locals, &none, true) }), []);
    assert_eq!(decide(&facts(&records, &locals, &none, true)).len(), 1);
}

#[test]
fn a_node_that_is_alone_starts_what_has_its_disk_here_and_begins_no_other() {
    let decided = |record: MachineRecord, local: Option<Local>| {
        let (records, locals) = (BTreeMap::from([(ID, record)]), local.into_iter().map(|l| (ID, l)).collect());
        let none = BTreeSet::new();
        decide(&Facts { view: View::Own, ..facts(&records, &locals, &none, true) })
    };
    let start = |epoch| [Action::Start { machine: ID, epoch, clean: false }];
    assert_eq!(decided(record(Some(placed(ME, 1))), Some(local(1, Phase::Down))), start(1));
    assert_eq!(decided(record(Some(placed(ME, 1))), None), [], "it may have been deleted since");
    let anew = Placement { fresh: true, ..placed(ME, 3) };
    assert_eq!(decided(record(Some(anew)), Some(local(1, Phase::Down))), [], "the same");
}

#[test]
fn what_was_moved_away_is_not_started_by_an_older_view() {
    let down = local(2, Phase::Down);
    assert_eq!(decided_after(2, record(Some(placed(ME, 2))), down), []);
    assert_eq!(decided_after(4, record(Some(placed(ME, 2))), down), [], "it has come back and left again since");
    let start = Action::Start { machine: ID, epoch: 3, clean: false };
    assert_eq!(decided_after(2, record(Some(placed(ME, 3))), local(3, Phase::Down)), [start]);
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
    let down = local(1, Phase::Down);
    assert_eq!(decided_after(1, record(Some(switched)), down), []);
    let running = Placement { confirmed: true, previous: None, ..switched };
    assert_eq!(decided_after(1, record(Some(running)), down), [Action::Discard(ID)]);
    // And on from there.
    assert_eq!(decided_after(1, record(Some(placed(OTHER, 7))), down), [Action::Discard(ID)]);
    // Should the destination have lost it, the copy here is the best that is left.
    let lost = Placement { fresh: true, ..placed(OTHER, 3) };
    assert_eq!(decided_after(1, record(Some(lost)), down), [Action::Quarantine(ID)]);
}

#[test]
fn a_copy_that_this_node_did_not_move_away_is_kept_aside_wherever_the_machine_went_since() {
    let down = local(1, Phase::Down);
    let kept =
        |placement| assert_eq!(decided(Some(record(Some(placement))), Some(down), true), [Action::Quarantine(ID)]);
    // Taken over at 2, then moved at 3 by its new owner: whether that has been confirmed or not.
    kept(Placement { confirmed: false, previous: previous(NodeId([3; 32]), 2), ..placed(OTHER, 3) });
    kept(placed(OTHER, 3));
    // A move of another epoch's copy proves nothing of this one.
    assert_eq!(decided_after(4, record(Some(placed(OTHER, 5))), down), [Action::Quarantine(ID)]);
}

#[test]
fn what_was_moved_here_again_takes_the_place_of_the_old_copy() {
    // Taken over from here at 2, moved back at 3: the move's own driver keeps the old copy aside and takes the new disk.
    let back = Placement { confirmed: false, previous: previous(OTHER, 2), ..placed(ME, 3) };
    let start = |clean| Action::Start { machine: ID, epoch: 3, clean };
    assert_eq!(decided(Some(record(Some(back))), Some(local(1, Phase::Down)), true), [start(false)]);
    // Taken over from there too: its disk is lost, and the old one is not taken for it.
    let again = Placement { fresh: true, ..back };
    assert_eq!(decided(Some(record(Some(again))), Some(local(1, Phase::Down)), true), [start(true)]);
}

#[test]
fn the_copy_of_a_deleted_machine_goes_and_one_of_another_machine_does_not() {
    let mut gone = record(Some(placed(OTHER, 4)));
    gone.desired = Desired::Deleted;
    assert_eq!(decided(Some(gone.clone()), Some(local(2, Phase::Up)), true), [Action::Stop(ID)]);
    assert_eq!(decided(Some(gone), Some(local(2, Phase::Down)), true), [Action::Discard(ID)]);
    // Made anew under its name it is another machine: of the first one nothing is known here, and it is kept aside.
    let again = MachineRecord { id: MachineId([8; 16]), ..record(Some(placed(ME, 1))) };
    let (records, locals) = (BTreeMap::from([(again.id, again)]), BTreeMap::from([(ID, local(2, Phase::Down))]));
    let none = BTreeSet::new();
    let start = Action::Start { machine: MachineId([8; 16]), epoch: 1, clean: false };
    let asking = facts(&records, &locals, &none, true);
    assert_eq!(decide(&asking), [start.clone(), Action::Ask(ID)]);
    let absent = BTreeSet::from([ID]);
    assert_eq!(decide(&Facts { known_absent: &absent, ..asking }), [start, Action::Quarantine(ID)]);
}

#[test]
fn a_disk_of_unknown_age_is_neither_started_nor_taken_for_a_new_one() {
    let damaged = Some(local(0, Phase::Damaged));
    for fresh in [false, true] {
        for confirmed in [false, true] {
            let mine = Placement { fresh, confirmed, ..placed(ME, 3) };
            assert_eq!(decided(Some(record(Some(mine))), damaged, true), []);
        }
    }
    let mut stopped = record(Some(Placement { confirmed: false, ..placed(ME, 3) }));
    stopped.desired = Desired::Stopped;
    assert_eq!(decided(Some(stopped), damaged, true), []);
    // It gives way to the disk that a move brings, and is kept aside where the machine is another node's.
    let brought = Placement { confirmed: false, previous: previous(OTHER, 2), ..placed(ME, 3) };
    let start = Action::Start { machine: ID, epoch: 3, clean: false };
    assert_eq!(decided(Some(record(Some(brought))), damaged, true), [start]);
    assert_eq!(decided(Some(record(Some(placed(OTHER, 3)))), damaged, true), [Action::Quarantine(ID)]);
    assert_eq!(decided(None, damaged, true), [Action::Ask(ID)]);
    let mut gone = record(Some(placed(ME, 3)));
    gone.desired = Desired::Deleted;
    assert_eq!(decided(Some(gone), damaged, true), [Action::Destroy(ID, 3)]);
}

#[test]
fn what_runs_goes_on_though_its_launch_record_is_damaged() {
    let up = Some(local(0, Phase::Unrecorded));
    for confirmed in [false, true] {
        for restarts in [0, 3] {
            let mine = MachineRecord { restarts, ..record(Some(Placement { confirmed, ..placed(ME, 3) })) };
            assert_eq!(decided(Some(mine.clone()), up, true), []);
            assert_eq!(decided(Some(mine), up, false), []);
        }
    }
    assert_eq!(decided(None, up, true), [Action::Ask(ID)]);
    // What a record asks for is done all the same, and another's machine does not run here.
    let wanted = |desired| MachineRecord { desired, ..record(Some(placed(ME, 3))) };
    assert_eq!(decided(Some(wanted(Desired::Stopped)), up, true), [Action::Stop(ID)]);
    assert_eq!(decided(Some(wanted(Desired::Deleted)), up, true), [Action::Destroy(ID, 3)]);
    assert_eq!(decided(Some(record(Some(placed(OTHER, 3)))), up, true), [Action::Stop(ID)]);
    let brought = Placement { confirmed: false, previous: previous(OTHER, 2), ..placed(ME, 3) };
    assert_eq!(decided(Some(record(Some(brought))), up, true), [Action::Stop(ID)]);
}

#[test]
fn on_a_full_disk_nothing_starts_and_who_filled_it_stops() {
    let (mine, start) = (record(Some(placed(ME, 1))), Action::Start { machine: ID, epoch: 1, clean: false });
    let full = Room { full: true, held: BTreeSet::new() };
    for phase in [Phase::Down, Phase::Lost] {
        assert_eq!(decided_in(&full, mine.clone(), Some(local(1, phase))), []);
        assert_eq!(decided_in(&Room::default(), mine.clone(), Some(local(1, phase))), std::slice::from_ref(&start));
    }
    assert_eq!(decided_in(&full, mine.clone(), Some(local(1, Phase::Up))), []);
    // One that has nothing here yet is tried, so that it is refused and goes elsewhere.
    assert_eq!(decided_in(&full, mine.clone(), None), [start]);
    let held = Room { full: true, held: BTreeSet::from([ID]) };
    assert_eq!(decided_in(&held, mine.clone(), Some(local(1, Phase::Up))), [Action::Stop(ID)]);
    assert_eq!(decided_in(&held, mine.clone(), Some(local(1, Phase::Down))), []);
    let gone = MachineRecord { desired: Desired::Deleted, ..mine };
    assert_eq!(decided_in(&held, gone, Some(local(1, Phase::Down))), [Action::Destroy(ID, 1)]);
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
fn a_machine_killed_with_its_supervisor_starts_again_unless_its_policy_is_never_and_has_not_ended() {
    let mut owned = record(Some(placed(ME, 1)));
    let again = Action::Start { machine: ID, epoch: 1, clean: false };
    assert_eq!(decided(Some(owned.clone()), Some(local(1, Phase::Lost)), true), [again]);
    owned.spec.restart = Restart::Never;
    assert_eq!(decided(Some(owned.clone()), Some(local(1, Phase::Lost)), true), []);
    // Who asks for it has it, and so has whom it is moved to.
    let again = Action::Start { machine: ID, epoch: 1, clean: false };
    let asked = MachineRecord { restarts: 1, ..owned.clone() };
    assert_eq!(decided(Some(asked), Some(local(1, Phase::Lost)), true), [again]);
    owned.placement = Some(Placement { previous: previous(OTHER, 1), confirmed: false, ..placed(ME, 2) });
    let there = Action::Start { machine: ID, epoch: 2, clean: false };
    assert_eq!(decided(Some(owned), None, true), [there]);
}

#[test]
fn what_runs_waits_for_nothing_any_more() {
    // A takeover in its node's absence found no place for it, and the placement stays confirmed.
    let waits = MachineRecord { waiting: Some("its node does not answer".into()), ..record(Some(placed(ME, 1))) };
    assert_eq!(decided(Some(waits.clone()), Some(local(1, Phase::Up)), true), [Action::Confirm(ID, 1)]);
    // What does not run waits still, whatever the ledger says it waits for.
    assert_eq!(decided(Some(waits.clone()), Some(local(1, Phase::Frozen)), true), [Action::Thaw(ID)]);
    assert_eq!(decided(Some(waits.clone()), Some(local(1, Phase::Ended)), true), []);
    assert_eq!(decided(Some(MachineRecord { waiting: None, ..waits }), Some(local(1, Phase::Up)), true), []);
}

#[test]
fn an_end_is_told_until_the_ledger_shows_it_and_no_later_run_is_taken_for_it() {
    let (mine, exited) = (record(Some(placed(ME, 1))), Some(local(1, Phase::Exited(3))));
    let ended = Action::Ended { machine: ID, epoch: 1, restarts: 0, code: 3 };
    assert_eq!(decided(Some(mine.clone()), exited, true), std::slice::from_ref(&ended));
    assert_eq!(decided(Some(mine.clone()), exited, false), [ended]);
    let told = MachineRecord { desired: Desired::Stopped, ended: Some(3), ..mine.clone() };
    assert_eq!(decided(Some(told), exited, true), []);
    // Whoever waits for the placement learns first that it is here.
    let fresh = record(Some(Placement { confirmed: false, ..placed(ME, 1) }));
    assert_eq!(decided(Some(fresh), exited, true), [Action::Confirm(ID, 1)]);
    let start = |epoch| Action::Start { machine: ID, epoch, clean: false };
    assert_eq!(decided(Some(MachineRecord { restarts: 1, ..mine }), exited, true), [start(1)]);
    // What ended here was of an older placement, or waits for its policy, or cannot run.
    let again = Placement { previous: previous(OTHER, 2), ..placed(ME, 3) };
    assert_eq!(decided(Some(record(Some(again))), exited, true), [start(3)]);
    for phase in [Phase::Up, Phase::Frozen, Phase::Ended, Phase::Lost] {
        let decided = decided(Some(record(Some(placed(ME, 1)))), Some(local(1, phase)), true);
        assert!(!decided.iter().any(|action| matches!(action, Action::Ended { .. })), "{phase:?}");
    }
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

#[test]
fn what_has_failed_here_is_not_tried_before_its_back_off_is_over() {
    let after = |not_before_ms| MachineRecord { not_before_ms, ..record(Some(placed(ME, 1))) };
    let start = Action::Start { machine: ID, epoch: 1, clean: false };
    for here in [None, Some(local(1, Phase::Down)), Some(local(1, Phase::Lost))] {
        assert_eq!(decided(Some(after(1001)), here, true), []);
        assert_eq!(decided(Some(after(1000)), here, true), std::slice::from_ref(&start));
    }
    // Taking the disk of a stopped one may fail as well.
    let mut stopped = MachineRecord { desired: Desired::Stopped, ..after(1001) };
    stopped.placement = Some(Placement { confirmed: false, ..placed(ME, 1) });
    assert_eq!(decided(Some(stopped.clone()), None, true), []);
    assert_eq!(decided(Some(MachineRecord { not_before_ms: 0, ..stopped }), None, true), [Action::Confirm(ID, 1)]);
    // What runs is confirmed, stopped and destroyed at once.
    let fresh = MachineRecord { placement: Some(Placement { confirmed: false, ..placed(ME, 1) }), ..after(1001) };
    assert_eq!(decided(Some(fresh), Some(local(1, Phase::Up)), true), [Action::Confirm(ID, 1)]);
    let gone = MachineRecord { desired: Desired::Deleted, ..after(1001) };
    assert_eq!(decided(Some(gone), Some(local(1, Phase::Down)), true), [Action::Destroy(ID, 1)]);
    let first = |record: MachineRecord| backed_off(&BTreeMap::from([(ID, record)]), ME, 1000);
    assert_eq!((first(after(1250)), first(after(1000))), (Some(Duration::from_millis(250)), None));
    assert_eq!(first(MachineRecord { placement: Some(placed(OTHER, 1)), ..after(1250) }), None, "another's to try");
}
