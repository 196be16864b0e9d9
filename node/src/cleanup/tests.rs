use fabric::ids::{MachineId, MoveId};
use fabric::model::{MoveV1, Placement, PreviousV1};

use super::*;
use crate::fixtures;

const ME: NodeId = NodeId([1; 32]);
const OTHER: NodeId = NodeId([2; 32]);
const NOTE: MarkerV1 = MarkerV1 { machine: MachineId([9; 16]), id: MoveId([3; 16]), epoch: 4 };

fn needed(placement: Placement) -> bool {
    is_needed(&NOTE, Some(&fixtures::machine(9, Some(placement))), ME)
}

#[test]
fn a_staged_layer_is_kept_while_its_move_is_open() {
    let moving = |id| Some(MoveV1 { id, to: ME, since_ms: 0 });
    assert!(needed(Placement { moving: moving(NOTE.id), ..fixtures::placed(OTHER, 4) }));
    assert!(!needed(Placement { moving: moving(MoveId([8; 16])), ..fixtures::placed(OTHER, 4) }), "another move");
    assert!(!needed(fixtures::placed(OTHER, 4)), "given up");
    assert!(!is_needed(&NOTE, None, ME), "the machine is deleted");
    assert!(!is_needed(&NOTE, Some(&fixtures::machine(9, None)), ME));
}

#[test]
fn a_staged_layer_is_kept_until_the_machine_runs_somewhere() {
    let from = |node| Some(PreviousV1 { node, epoch: 4 });
    let here = Placement { confirmed: false, previous: from(OTHER), ..fixtures::placed(ME, 5) };
    assert!(needed(here), "switched, not yet adopted");
    assert!(!needed(Placement { confirmed: true, ..here }), "it runs here, on the adopted disk");
    // It failed here and went back: should the source die now, it may only come here again.
    let back = Placement { confirmed: false, previous: from(ME), ..fixtures::placed(OTHER, 6) };
    assert!(needed(back));
    assert!(!needed(Placement { fresh: true, ..back }), "its disk was given up");
}

#[test]
fn an_image_goes_when_nothing_has_needed_it_for_the_whole_grace() {
    let [a, b] = [1, 2].map(|n| Digest([n; 32]));
    let (held, none) = (BTreeSet::from([a, b]), BTreeSet::new());
    let (at, grace) = (Duration::from_secs, Duration::from_secs(30));
    let mut images = Unneeded::default();
    assert_eq!(images.look(at(0), grace, &held, &BTreeSet::from([b])), []);
    assert_eq!(images.look(at(29), grace, &held, &none), []);
    assert_eq!(images.look(at(30), grace, &held, &none), [a]);
    assert!(images.is_unwanted(&a));
    // A machine was made of it at the last moment.
    images.wanted(&a);
    assert!(!images.is_unwanted(&a));
    assert_eq!(images.look(at(59), grace, &held, &none), [b], "a's time begins anew");
    assert_eq!(images.look(at(100), grace, &BTreeSet::from([a]), &none), [a], "what is gone is forgotten");
    assert_eq!(images, Unneeded { since: BTreeMap::from([(a, at(59))]) });
}
