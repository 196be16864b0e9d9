//! Records for the tests of the invariants.

use fabric::ids::{Digest, MachineId, NodeId};
use fabric::model::{
    Capacity, Desired, Labels, MachineRecord, MachineSpec, NodeRecord, Placement, Publish, Resources, Restart, Role,
};
use raft_store::state::State;

/// A node's id.
pub fn node(n: u8) -> NodeId {
    NodeId([n; 32])
}

/// A machine that publishes port 8000, owned by a node.
pub fn machine(n: u8, owner: u8) -> MachineRecord {
    let publish = vec![Publish { ip: None, host_port: 8_000, machine_port: 80 }];
    let placement = Placement {
        node: node(owner),
        epoch: 1,
        since_ms: 0,
        confirmed: true,
        fresh: false,
        previous: None,
        moving: None,
    };
    MachineRecord {
        id: MachineId([n; 16]),
        tenant: "default".parse().unwrap(),
        name: format!("m{n}").parse().unwrap(),
        spec: MachineSpec {
            image: "shell".parse().unwrap(),
            command: vec![],
            env: vec![],
            resources: Resources::default(),
            publish,
            labels: Labels::new(),
            exclusive: false,
            restart: Restart::Always,
            pinned: None,
        },
        image: Digest([0; 32]),
        desired: Desired::Running,
        restarts: 0,
        epoch: 1,
        placement: Some(placement),
        failures: 0,
        not_before_ms: 0,
        waiting: None,
        ended: None,
        created_ms: 0,
        revision: 1,
    }
}

/// These machines and nothing else.
pub fn state(machines: [MachineRecord; 2]) -> State {
    let mut state = State::default();
    state.machines = machines.map(|machine| (machine.id, machine)).into();
    state
}

/// A node with room for one machine.
pub fn node_record(n: u8) -> NodeRecord {
    let Resources { cpu_millis, memory_bytes, .. } = Resources::default();
    NodeRecord {
        id: node(n),
        name: format!("n{n}").parse().unwrap(),
        public_key: [n; 32],
        role: Role::Voter,
        zone: String::new(),
        labels: Labels::new(),
        capacity: Capacity { cpu_millis, memory_bytes, disk_bytes: 0 },
        address: String::new(),
        cordoned: false,
        draining: false,
        absent_until_ms: None,
        admitted_ms: 0,
        revision: 1,
    }
}
