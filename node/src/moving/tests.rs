use fabric::ids::{Digest, MachineId};
use fabric::model::{Desired, Labels, MachineSpec, MoveV1, Placement, Resources, Restart};

use super::*;

const ME: NodeId = NodeId([1; 32]);
const THERE: NodeId = NodeId([2; 32]);
const MOVE: MoveId = MoveId([3; 16]);

fn record(node: NodeId, epoch: u64, moving: Option<MoveId>) -> MachineRecord {
    let moving = moving.map(|id| MoveV1 { id, to: THERE, since_ms: 0 });
    let placement = Placement { node, epoch, since_ms: 0, confirmed: true, fresh: false, previous: None, moving };
    MachineRecord {
        id: MachineId([9; 16]),
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
        epoch,
        placement: Some(placement),
        failures: 0,
        not_before_ms: 0,
        waiting: None,
        created_ms: 0,
        revision: 1,
    }
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
