//! Tests of the state machine, one file for each kind of command, and one that tries everything at random.

mod audit;
mod authorize;
mod cluster;
mod machines;
mod moving;
mod nodes;
mod placing;
mod random;
mod tenants;

use fabric::ids::*;
use fabric::model::*;
use fabric::rpc::Refusal;

use super::*;
use crate::command::*;

pub const GIB: u64 = 1 << 30;

pub fn key(n: u8) -> [u8; 32] {
    [n; 32]
}

pub fn node_id(n: u8) -> NodeId {
    NodeId::of_public_key(&key(n))
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn node(n: u8) -> NodeRecord {
    NodeRecord {
        id: node_id(n),
        name: name(&format!("n{n}")),
        public_key: key(n),
        role: Role::Voter,
        zone: String::new(),
        labels: Labels::new(),
        capacity: Capacity { cpu_millis: 4000, memory_bytes: 8 * GIB, disk_bytes: 100 * GIB },
        address: format!("127.0.0.1:{}", 7000 + u16::from(n)),
        cordoned: false,
        draining: false,
        absent_until_ms: None,
        admitted_ms: 0,
        revision: 0,
    }
}

pub fn ca(n: u8) -> Ca {
    Ca { cert_der: vec![n; 100], key_pkcs8: vec![n; 48] }
}

pub fn spec(memory_bytes: u64) -> MachineSpec {
    MachineSpec {
        image: name("shell"),
        command: vec!["/bin/sh".into()],
        env: vec![],
        resources: Resources { memory_bytes, ..Resources::default() },
        publish: vec![],
        labels: Labels::new(),
        exclusive: false,
        restart: Restart::Always,
        pinned: None,
    }
}

pub fn machine_id(n: u8) -> MachineId {
    MachineId([n; 16])
}

pub fn tombstone(n: u8) -> Tombstone {
    Tombstone { node: node_id(n), removed_ms: 0, ca: Digest::default(), signature: vec![0; 64] }
}

/// A ledger and the log position that it has reached.
pub struct World {
    pub state: State,
    pub index: u64,
    pub term: u64,
    pub at_ms: u64,
}

impl World {
    pub fn empty() -> Self {
        World { state: State::default(), index: 0, term: 1, at_ms: 1_000_000 }
    }

    /// A cluster of the voter-role nodes 1, 2 and 3 and the worker 4, with an image `shell`.
    pub fn new() -> Self {
        let mut world = World::empty();
        world.ok(init(1));
        world.ok(Command::CreateToken {
            id: TokenId([1; 8]),
            secret_hash: Digest([1; 32]),
            role: Role::Voter,
            uses: 10,
            ttl_ms: 3_600_000,
        });
        world.ok(Command::CreateToken {
            id: TokenId([2; 8]),
            secret_hash: Digest([2; 32]),
            role: Role::Worker,
            uses: 10,
            ttl_ms: 3_600_000,
        });
        for n in [2, 3] {
            world.ok(admit(1, n));
        }
        world.ok(admit(2, 4));
        world.ok(put_image("default", "shell", 1));
        world
    }

    /// Applies a command of `actor` and checks every invariant.
    pub fn ask_as(
        &mut self,
        actor: Actor,
        idempotency: Option<IdempotencyKey>,
        command: Command,
    ) -> Result<Outcome, Refusal> {
        self.index += 1;
        let envelope = Envelope { actor, idempotency, at_ms: self.at_ms, command };
        let entry = EntryContext::of(self.index, self.term, &envelope);
        let before = self.state.clone();
        let result = self.state.apply(entry, &envelope);
        self.state.check_invariants().unwrap();
        if let Err(refusal) = &result {
            assert!(!refusal.code.is_empty() && !refusal.message.is_empty());
            assert_eq!(without_history(&self.state), without_history(&before), "{refusal:?} changed the state");
        }
        result
    }

    pub fn ask(&mut self, command: Command) -> Result<Outcome, Refusal> {
        self.ask_as(Actor::fabric(node_id(1)), None, command)
    }

    pub fn ask_from(&mut self, n: u8, command: Command) -> Result<Outcome, Refusal> {
        self.ask_as(Actor::fabric(node_id(n)), None, command)
    }

    pub fn ok(&mut self, command: Command) -> Outcome {
        self.ask(command).unwrap()
    }

    pub fn ok_from(&mut self, n: u8, command: Command) -> Outcome {
        self.ask_from(n, command).unwrap()
    }

    /// The code of the refusal that must come.
    pub fn no(&mut self, command: Command) -> String {
        self.ask(command).unwrap_err().code
    }

    pub fn no_from(&mut self, n: u8, command: Command) -> String {
        self.ask_from(n, command).unwrap_err().code
    }

    /// Creates machine `n` as `m<n>`.
    pub fn create(&mut self, n: u8, spec: MachineSpec) {
        let (tenant, name) = (name("default"), name(&format!("m{n}")));
        self.ok(Command::CreateMachine {
            id: machine_id(n),
            tenant,
            name,
            spec: Box::new(spec),
            desired: Desired::Running,
        });
    }

    /// Creates machine `n`, places it on node `on` and has it confirmed.
    pub fn run(&mut self, n: u8, spec: MachineSpec, on: u8) {
        self.create(n, spec);
        let placed = self.place(n, &[on]);
        assert!(matches!(placed, PlaceResult::Placed { node, .. } if node == node_id(on)), "{placed:?}");
        let epoch = self.machine(n).epoch;
        self.ok_from(on, Command::Confirm { machine: machine_id(n), epoch });
    }

    pub fn place(&mut self, n: u8, candidates: &[u8]) -> PlaceResult {
        let expected_epoch = self.machine(n).epoch;
        match self.ok(Command::Place { items: vec![item(n, expected_epoch, candidates)] }) {
            Outcome::Placed { items } => items.into_iter().next().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub fn takeover(&mut self, n: u8, from: u8, candidates: &[u8], judged_term: u64) -> Result<PlaceResult, Refusal> {
        let epoch = self.machine(n).epoch;
        let command = takeover(n, epoch, from, candidates, judged_term);
        self.ask(command).map(|outcome| match outcome {
            Outcome::Placed { items } => items.into_iter().next().unwrap(),
            other => panic!("{other:?}"),
        })
    }

    pub fn machine(&self, n: u8) -> &MachineRecord {
        &self.state.machines[&machine_id(n)]
    }

    pub fn placement(&self, n: u8) -> Placement {
        self.machine(n).placement.unwrap()
    }
}

/// The state without what every entry may change.
fn without_history(state: &State) -> State {
    let mut state = state.clone();
    state.audit.clear();
    state.idempotency.clear();
    state.idempotency_order.clear();
    state.settings = Settings { feature_level: state.settings.feature_level, ..Settings::default() };
    state
}

pub fn init(n: u8) -> Command {
    Command::InitCluster {
        cluster_id: ClusterId([9; 16]),
        feature_level: 1,
        ca: ca(1),
        node: Box::new(node(n)),
        tenant: name("default"),
    }
}

pub fn admit(token: u8, n: u8) -> Command {
    Command::AdmitNode { token: TokenId([token; 8]), secret_hash: Digest([token; 32]), node: Box::new(node(n)) }
}

pub fn put_image(tenant: &str, image: &str, content: u8) -> Command {
    Command::PutImage {
        tenant: name(tenant),
        name: name(image),
        digest: Digest([content; 32]),
        size_bytes: 1000,
        expected_revision: None,
    }
}

pub fn item(n: u8, expected_epoch: u64, candidates: &[u8]) -> PlaceItem {
    let candidates = candidates.iter().map(|n| node_id(*n)).collect();
    PlaceItem { machine: machine_id(n), expected_epoch, candidates, reason: None }
}

pub fn takeover(n: u8, epoch: u64, from: u8, candidates: &[u8], judged_term: u64) -> Command {
    Command::Takeover {
        machine: machine_id(n),
        epoch,
        from: node_id(from),
        candidates: candidates.iter().map(|n| node_id(*n)).collect(),
        judged_term,
        reason: "its owner died".into(),
    }
}

pub fn desire(n: u8, desired: Desired) -> Command {
    Command::SetDesired { machine: machine_id(n), desired, over: None, expected_revision: None }
}

pub fn remove(n: u8, force: bool) -> Command {
    Command::RemoveNode { node: node_id(n), tombstone: tombstone(n), force, expected_revision: None }
}

pub fn patch(n: u8, patch: NodePatch) -> Command {
    Command::UpdateNode { node: node_id(n), patch: Box::new(patch), expected_revision: None }
}

pub fn cordon(n: u8) -> Command {
    patch(n, NodePatch { cordoned: Some(true), ..NodePatch::default() })
}

pub fn move_begin(n: u8, from_epoch: u64, id: u8, to: u8) -> Command {
    Command::MoveBegin { machine: machine_id(n), from_epoch, id: MoveId([id; 16]), to: node_id(to) }
}

pub fn move_switch(n: u8, from_epoch: u64, id: u8) -> Command {
    Command::MoveSwitch { machine: machine_id(n), id: MoveId([id; 16]), from_epoch }
}

pub fn move_abort(n: u8, from_epoch: u64, id: u8) -> Command {
    Command::MoveAbort { machine: machine_id(n), id: MoveId([id; 16]), from_epoch }
}
