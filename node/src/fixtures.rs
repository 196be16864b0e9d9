//! Records that the tests of several modules start from.

use fabric::ids::{Digest, MachineId, NodeId};
use fabric::model::{
    Desired, Labels, MachineRecord, MachineSpec, MachineState, MachineStatus, Placement, Resources, Restart,
};

/// A settled placement.
pub fn placed(node: NodeId, epoch: u64) -> Placement {
    Placement { node, epoch, since_ms: 0, confirmed: true, fresh: false, previous: None, moving: None }
}

/// A machine that is to run, with nothing special about it.
pub fn machine(number: u8, placement: Option<Placement>) -> MachineRecord {
    MachineRecord {
        id: MachineId([number; 16]),
        tenant: "default".parse().unwrap(),
        name: format!("m{number}").parse().unwrap(),
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
        epoch: placement.map_or(0, |placement| placement.epoch),
        placement,
        failures: 0,
        not_before_ms: 0,
        waiting: None,
        ended: None,
        created_ms: 0,
        revision: 1,
    }
}

/// What an owner observes of a machine that has never ended.
pub fn status(id: MachineId, state: MachineState) -> MachineStatus {
    MachineStatus {
        id,
        epoch: 1,
        state,
        pid: None,
        started_ms: None,
        restarts: 0,
        requested_restarts: 0,
        exit_code: None,
        reason: None,
        cpu_micros: 0,
        memory_bytes: 0,
        memory_floor: String::new(),
    }
}
