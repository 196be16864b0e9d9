use super::*;

const MIB: u64 = 1 << 20;
const TOTAL: u64 = 1 << 37;
const A: MachineId = MachineId([1; 16]);
const B: MachineId = MachineId([2; 16]);

fn look(free_mib: u64, reserve: bool, stopping: bool) -> Look {
    Look { disk: DiskSpace { total_bytes: TOTAL, free_bytes: free_mib * MIB }, reserve, stopping }
}

fn room(held: &[MachineId]) -> Room {
    Room { full: true, held: held.iter().copied().collect() }
}

#[test]
fn a_tiny_disk_is_not_shared_out_and_a_large_one_only_in_bounds() {
    assert_eq!(marks(8 * MIB), Marks { reserve: 0, low: 0, high: 0 });
    let small = marks(128 * MIB);
    assert_eq!((small.reserve, small.low / MIB, small.high / MIB), (4 * MIB, 6, 20));
    assert_eq!(marks(1 << 45), Marks { reserve: 64 * MIB, low: 1024 * MIB, high: 2176 * MIB });
    // A tiny disk is never full by these rules: whoever fills it is told by the ledger.
    let tiny = Look { disk: DiskSpace { total_bytes: 8 * MIB, free_bytes: 0 }, reserve: false, stopping: false };
    assert_eq!((decide(&Room::default(), &tiny), is_full(&Room::default(), &tiny)), (Step::Rest, false));
}

#[test]
fn one_machine_is_stopped_then_the_reserve_is_given_up_then_a_further_one_only_if_it_shrinks() {
    assert_eq!(decide(&Room::default(), &look(5000, true, false)), Step::Rest);
    assert_eq!(decide(&Room::default(), &look(1000, true, false)), Step::Stop);
    assert_eq!(decide(&room(&[A]), &look(0, true, true)), Step::Rest, "it is ending");
    assert_eq!(decide(&room(&[A]), &look(0, true, false)), Step::Release);
    assert_eq!(decide(&room(&[A]), &look(64, false, false)), Step::Rest);
    assert_eq!(decide(&room(&[A]), &look(31, false, false)), Step::Stop, "another one writes");
    assert_eq!(decide(&room(&[A, B]), &look(31, false, true)), Step::Rest);
    assert_eq!(decide(&room(&[A, B]), &look(2000, false, false)), Step::Rest, "not yet");
    assert_eq!(decide(&room(&[A, B]), &look(2176, false, false)), Step::Resume);
    assert_eq!(decide(&Room::default(), &look(2176, false, false)), Step::Reserve);
    assert_eq!(decide(&Room::default(), &look(2176, true, false)), Step::Rest);
}

#[test]
fn full_begins_at_the_low_mark_and_ends_at_the_high_one() {
    let none = Room::default();
    assert!(!is_full(&none, &look(1024, true, false)) && is_full(&none, &look(1023, true, false)));
    assert!(is_full(&room(&[]), &look(2175, true, false)) && !is_full(&room(&[]), &look(2176, true, false)));
    // Neither the making nor the giving up of a reserve crosses a mark.
    for total in [64 * MIB, 128 * MIB, TOTAL, 1 << 45] {
        let marks = marks(total);
        assert!(marks.high - marks.reserve >= marks.low && marks.low + marks.reserve < marks.high, "{marks:?}");
    }
}

#[test]
fn the_largest_layer_goes_if_it_matters() {
    assert_eq!(largest(&BTreeMap::from([(A, 70 * MIB), (B, 80 * MIB)]), TOTAL), Some(B));
    assert_eq!(largest(&BTreeMap::from([(A, MIB), (B, 0)]), TOTAL), None, "others fill the disk");
    assert_eq!(largest(&BTreeMap::new(), TOTAL), None);
}

#[test]
fn layers_that_come_at_once_leave_each_other_their_room() {
    let coming = Coming::default();
    let (mut one, mut two) = (coming.claim(), coming.claim());
    assert_eq!(one.ask(70, 100), 100);
    assert_eq!(two.ask(40, 100), 30, "it has none");
    assert_eq!(one.ask(70, 100), 100, "and takes none from who has");
    // What is written is on the disk, and to come no more.
    assert_eq!((one.ask(50, 80), two.ask(30, 80)), (80, 30));
    assert_eq!(one.ask(50, 79), 49, "a machine has written, too: it is given up");
    assert_eq!(two.ask(30, 79), 79);
    drop(two);
    assert_eq!(coming.claim().ask(1, 1), 1);
    drop(one);
    assert_eq!(*coming.total(), 0);
}
