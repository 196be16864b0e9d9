use fabric::model::{MoveV1, Placement};

use super::*;
use crate::fixtures;

const ME: NodeId = NodeId([1; 32]);
const THERE: NodeId = NodeId([2; 32]);
const MOVE: MoveId = MoveId([3; 16]);

fn record(node: NodeId, epoch: u64, moving: Option<MoveId>) -> MachineRecord {
    let moving = moving.map(|id| MoveV1 { id, to: THERE, since_ms: 0 });
    fixtures::machine(9, Some(Placement { moving, ..fixtures::placed(node, epoch) }))
}

#[test]
fn the_first_of_switch_and_abort_decides() {
    let verdict = |record: &MachineRecord| super::verdict(Some(record), ME, MOVE, 4);
    assert_eq!(verdict(&record(ME, 4, Some(MOVE))), Verdict::Open);
    assert_eq!(verdict(&record(ME, 4, None)), Verdict::Aborted);
    assert_eq!(verdict(&record(ME, 4, Some(MoveId([8; 16])))), Verdict::Aborted);
    assert_eq!(verdict(&record(THERE, 5, None)), Verdict::Switched);
}

#[test]
fn a_source_that_lost_its_epoch_never_starts_the_machine() {
    assert_eq!(verdict(Some(&record(ME, 6, None)), ME, MOVE, 4), Verdict::Switched);
    assert_eq!(verdict(None, ME, MOVE, 4), Verdict::Switched);
}

#[test]
fn only_a_switch_of_the_source_moves_a_machine_away() {
    let from = |node, epoch| Some(fabric::model::PreviousV1 { node, epoch });
    let with = |placement| super::moved_away(Some(&fixtures::machine(9, Some(placement))), ME, 4);
    let switched = Placement { confirmed: false, previous: from(ME, 4), ..fixtures::placed(THERE, 5) };
    assert!(with(switched));
    assert!(!with(Placement { fresh: true, ..switched }), "taken over");
    assert!(!with(Placement { previous: None, confirmed: true, ..switched }), "nobody knows any more");
    assert!(!with(Placement { previous: from(THERE, 4), ..switched }));
    assert!(!with(Placement { epoch: 6, ..switched }));
    assert!(!super::moved_away(None, ME, 4));
}

#[test]
fn the_disk_is_where_the_move_has_left_it() {
    let note = marker::MarkerV1 { machine: fabric::ids::MachineId([9; 16]), id: MOVE, epoch: 4 };
    assert_eq!(disk(Some(&note), true, None, 5), Disk::Staged);
    assert_eq!(disk(Some(&note), true, Some(2), 5), Disk::Staged, "beside an old copy");
    assert_eq!(disk(Some(&note), true, Some(5), 5), Disk::Staged, "cut short while it was adopted");
    assert_eq!(disk(Some(&note), false, Some(5), 5), Disk::InPlace, "cut short after that");
    assert_eq!(disk(Some(&note), false, Some(2), 5), Disk::Lost, "an old copy is not the machine's disk");
    assert_eq!(disk(Some(&note), false, None, 5), Disk::Lost);
    assert_eq!(disk(None, false, None, 5), Disk::Lost);
    assert_eq!(disk(None, false, Some(4), 6), Disk::InPlace, "back at the source");
    assert_eq!(
        disk(Some(&marker::MarkerV1 { epoch: 1, ..note }), true, Some(4), 6),
        Disk::InPlace,
        "a note of long ago"
    );
    assert_eq!(disk(None, false, Some(5), 7), Disk::InPlace, "and back again");
}

#[test]
fn a_reservation_that_a_note_names_is_not_given_back() {
    let of = |number| marker::MarkerV1 { machine: fabric::ids::MachineId([number; 16]), id: MOVE, epoch: 4 };
    assert_eq!(stale(vec![of(1), of(2)], &[of(2)]), [of(1)]);
    assert_eq!(stale(vec![of(1)], &[]), [of(1)]);
}
