//! A cluster of ledgers in one process: an in-memory network that can be cut, disks that can lose power.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use disk::MemoryDisk;
use fabric::ids::{ClusterId, Digest, MachineId, NodeId, TokenId};
use fabric::model::{Capacity, MachineSpec, Name, NodeRecord, Quota, Resources, Restart, Role};
use fabric::rpc::{CallError, Kind, Peer, Router, Rpc};
use fabric::seams::real::{HostUdp, KernelClock};
use fabric::seams::{Clock, Entropy, Seams};
use raft_store::command::{Actor, Ca, Command, PlaceItem};
use raft_store::ledger::{
    Ledger, LedgerConfig, LedgerError, LedgerStatus, Part, Registration, StartError, Surroundings,
};
use raft_store::state::State;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test on one thread in real time.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

/// Lets a moment pass between two looks.
pub async fn poll_pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Waits until `look` gives something.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        poll_pause().await;
    }
}

/// The network. Calls from or to a node that is down, or across a cut, are not answered at all.
#[derive(Default)]
pub struct Net {
    routers: Mutex<BTreeMap<NodeId, Router>>,
    roles: Mutex<BTreeMap<NodeId, Role>>,
    /// One-way cuts.
    cut: Mutex<BTreeSet<(NodeId, NodeId)>>,
    /// Calls of a kind that a node makes in vain.
    pub muted: Mutex<BTreeSet<(NodeId, Kind)>>,
    /// Who was called with which kind.
    pub called: Mutex<BTreeSet<(NodeId, Kind)>>,
    /// Bytes of calls by kind.
    pub traffic: Mutex<BTreeMap<Kind, (u64, u64)>>,
}

impl Net {
    fn route(&self, from: NodeId, to: NodeId) -> Option<Router> {
        if self.cut.lock().unwrap().contains(&(from, to)) {
            return None;
        }
        self.routers.lock().unwrap().get(&to).cloned()
    }

    /// Cuts all links between `one` and the others.
    pub fn isolate(&self, one: NodeId, others: &[NodeId]) {
        let mut cut = self.cut.lock().unwrap();
        for other in others.iter().filter(|other| **other != one) {
            cut.insert((one, *other));
            cut.insert((*other, one));
        }
    }

    /// Cuts one direction.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.cut.lock().unwrap().insert((from, to));
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }
}

/// The network as one node sees it.
pub struct Link {
    pub net: Arc<Net>,
    pub me: NodeId,
}

#[async_trait]
impl Rpc for Link {
    async fn call(&self, to: NodeId, kind: Kind, body: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, CallError> {
        let lost = || CallError::Timeout { node: to, after: timeout };
        let serve = async {
            let muted = || self.net.muted.lock().unwrap().contains(&(self.me, kind));
            let Some(router) = self.net.route(self.me, to).filter(|_| !muted()) else {
                return std::future::pending().await;
            };
            self.net.called.lock().unwrap().insert((to, kind));
            {
                let mut traffic = self.net.traffic.lock().unwrap();
                let count = traffic.entry(kind).or_default();
                *count = (count.0 + 1, count.1 + body.len() as u64);
            }
            tokio::task::yield_now().await;
            let role = self.net.roles.lock().unwrap().get(&self.me).copied().unwrap_or(Role::Voter);
            // A handler runs on although its caller gave up, as it does behind a real network.
            let peer = Peer { id: self.me, role };
            let answer = tokio::spawn(async move { router.serve(peer, kind, body).await }).await;
            // The answer travels, too.
            if muted() || self.net.route(to, self.me).is_none() {
                return std::future::pending().await;
            }
            answer.map_err(|_| lost())?.map_err(CallError::Refused)
        };
        tokio::time::timeout(timeout, serve).await.unwrap_or_else(|_| Err(lost()))
    }
}

/// Entropy from a seed.
#[derive(Debug)]
struct Seeded(Mutex<SmallRng>);

impl Entropy for Seeded {
    fn fill(&self, out: &mut [u8]) {
        self.0.lock().unwrap().fill_bytes(out);
    }
}

struct Around {
    net: Arc<Net>,
}

impl Surroundings for Around {
    fn alive(&self) -> BTreeSet<NodeId> {
        self.net.routers.lock().unwrap().keys().copied().collect()
    }
    fn ledger_nodes(&self) -> Vec<NodeId> {
        self.alive().into_iter().collect()
    }
}

/// One host.
pub struct Host {
    pub id: NodeId,
    pub disk: MemoryDisk,
    pub ledger: Option<Ledger>,
    pub role: Role,
    pub seed: u64,
    /// So far behind is its wall clock, from its next start on.
    pub behind: Duration,
}

/// A wall clock that is wrong.
#[derive(Debug)]
struct Behind(Duration);

impl Clock for Behind {
    fn boottime(&self) -> Duration {
        KernelClock.boottime()
    }
    fn wall(&self) -> Duration {
        KernelClock.wall() - self.0
    }
}

/// The cluster.
pub struct Cluster {
    pub net: Arc<Net>,
    pub hosts: Vec<Host>,
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn record(number: u8, role: Role) -> NodeRecord {
    // The state checks that an id belongs to its key.
    let public_key = key_of(number);
    NodeRecord {
        id: NodeId::of_public_key(&public_key),
        name: name(&format!("n{number}")),
        public_key,
        role,
        zone: String::new(),
        labels: BTreeMap::new(),
        capacity: Capacity { cpu_millis: 64_000, memory_bytes: 64 << 30, disk_bytes: 1 << 40 },
        address: format!("10.0.0.{number}:7420"),
        cordoned: false,
        draining: false,
        absent_until_ms: None,
        admitted_ms: 0,
        revision: 0,
    }
}

fn key_of(number: u8) -> [u8; 32] {
    [number; 32]
}

pub fn id_of(number: u8) -> NodeId {
    NodeId::of_public_key(&key_of(number))
}

pub fn init_command(number: u8) -> Command {
    Command::InitCluster {
        cluster_id: ClusterId([7; 16]),
        feature_level: 1,
        ca: Ca { cert_der: vec![1; 64], key_pkcs8: vec![2; 64] },
        node: Box::new(record(number, Role::Voter)),
        tenant: name("default"),
    }
}

pub fn tenant(number: usize) -> Command {
    Command::CreateTenant { name: name(&format!("t{number}")), parent: None, quota: Quota::default() }
}

pub fn machine_id(number: u8) -> MachineId {
    MachineId([number; 16])
}

/// The commands that make an image and a machine of it.
pub fn machine(number: u8, exclusive: bool) -> [Command; 2] {
    let image = Command::PutImage {
        tenant: name("default"),
        name: name("web"),
        digest: Digest([9; 32]),
        size_bytes: 1,
        expected_revision: None,
    };
    let spec = MachineSpec {
        image: name("web"),
        command: vec!["run".into()],
        env: Vec::new(),
        resources: Resources::default(),
        publish: Vec::new(),
        labels: BTreeMap::new(),
        exclusive,
        restart: Restart::Always,
        pinned: None,
    };
    let create = Command::CreateMachine {
        id: machine_id(number),
        tenant: name("default"),
        name: name(&format!("m{number}")),
        spec: Box::new(spec),
        desired: fabric::model::Desired::Running,
    };
    [image, create]
}

pub fn place(machine: MachineId, expected_epoch: u64, on: NodeId) -> Command {
    Command::Place { items: vec![PlaceItem { machine, expected_epoch, candidates: vec![on], reason: None }] }
}

impl Cluster {
    /// `count` hosts (numbered from 1) that are up and know of each other; nothing is initialised.
    pub async fn new(count: u8) -> Self {
        Cluster::of_roles(&vec![Role::Voter; count.into()]).await
    }

    async fn of_roles(roles: &[Role]) -> Self {
        let mut cluster = Cluster { net: Arc::default(), hosts: Vec::new() };
        for (number, role) in (1..).zip(roles) {
            let seed = u64::from(number);
            let disk = MemoryDisk::new(seed);
            cluster.hosts.push(Host {
                id: id_of(number),
                disk,
                ledger: None,
                role: *role,
                seed,
                behind: Duration::ZERO,
            });
        }
        for at in 0..cluster.hosts.len() {
            cluster.start(at).await.unwrap();
        }
        cluster
    }

    /// The same with a cluster made by the first host and all the others admitted.
    pub async fn made(count: u8) -> Self {
        let cluster = Cluster::new(count).await;
        cluster.init().await;
        for number in 2..=count {
            cluster.admit(number, Role::Voter).await;
        }
        cluster
    }

    /// Three voters and a worker (the last host), which is never taken into Raft.
    pub async fn with_worker() -> Self {
        let cluster = Cluster::of_roles(&[Role::Voter, Role::Voter, Role::Voter, Role::Worker]).await;
        cluster.init().await;
        for number in 2..=3 {
            cluster.admit(number, Role::Voter).await;
        }
        cluster.admit(4, Role::Worker).await;
        cluster.voters(3).await;
        cluster
    }

    pub async fn init(&self) {
        let first = self.ledger(0);
        first.init(Actor::fabric(first.node()), init_command(1)).await.unwrap();
    }

    pub async fn admit(&self, number: u8, role: Role) {
        self.net.roles.lock().unwrap().insert(id_of(number), role);
        let first = self.ledger(0);
        let token = TokenId([number; 8]);
        let secret_hash = fabric::ids::Digest([number; 32]);
        let actor = Actor::fabric(first.node());
        let create = Command::CreateToken { id: token, secret_hash, role, uses: 1, ttl_ms: 60_000 };
        first.write(actor.clone(), None, create).await.unwrap();
        let admit = Command::AdmitNode { token, secret_hash, node: Box::new(record(number, role)) };
        first.write(actor, None, admit).await.unwrap();
    }

    pub fn ledger(&self, at: usize) -> &Ledger {
        self.hosts[at].ledger.as_ref().expect("the host is up")
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.hosts.iter().map(|host| host.id).collect()
    }

    pub fn isolate(&self, at: usize) {
        self.net.isolate(self.hosts[at].id, &self.ids());
    }

    /// Starts a host on what its disk holds.
    pub async fn start(&mut self, at: usize) -> Result<(), StartError> {
        let net = self.net.clone();
        let host = &mut self.hosts[at];
        host.disk = host.disk.reboot();
        host.seed += 1_000;
        let seams = Seams {
            clock: Arc::new(Behind(host.behind)),
            entropy: Arc::new(Seeded(Mutex::new(SmallRng::seed_from_u64(host.seed)))),
            disk: Arc::new(host.disk.clone()),
            udp: Arc::new(HostUdp),
        };
        let mut router = Router::default();
        let registration: Registration = Ledger::register(&mut router).snapshot_every(300);
        net.routers.lock().unwrap().insert(host.id, router);
        let config =
            LedgerConfig { node: host.id, address: format!("10.0.0.{}:7420", at + 1), role: host.role, begun: false };
        let rpc = Arc::new(Link { net: net.clone(), me: host.id });
        let started = registration.start(config, &seams, rpc, Arc::new(Around { net: net.clone() })).await;
        match started {
            Ok(ledger) => {
                host.ledger = Some(ledger);
                Ok(())
            }
            Err(error) => {
                net.routers.lock().unwrap().remove(&host.id);
                Err(error)
            }
        }
    }

    /// Ends a host as SIGKILL does: what it had not synced stays in the kernel, so nothing is lost.
    pub async fn kill(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        self.net.routers.lock().unwrap().remove(&host.id);
        if let Some(ledger) = host.ledger.take() {
            ledger.close().await;
        }
    }

    /// The one that leads, seen by itself and by a majority's answers.
    pub async fn leader(&self) -> usize {
        eventually("somebody leads", || self.leads()).await
    }

    fn leads(&self) -> Option<usize> {
        let mut best = None;
        for (at, host) in self.hosts.iter().enumerate() {
            let Some(ledger) = &host.ledger else { continue };
            let status = ledger.status();
            if status.leader == Some(host.id) && best.is_none_or(|(_, term)| term < status.term) {
                best = Some((at, status.term));
            }
        }
        best.map(|(at, _)| at)
    }

    /// Waits until `count` nodes vote, as the leader sees it.
    pub async fn voters(&self, count: usize) {
        eventually(&format!("{count} voters"), || {
            let mut up = self.hosts.iter().filter_map(|host| host.ledger.as_ref()).map(Ledger::status);
            let settled = |status: &LedgerStatus| !status.changing && status.voters.len() == count;
            up.all(|status| status.part == Part::Spare || settled(&status)).then_some(())?;
            let status = self.hosts[self.leads()?].ledger.as_ref()?.status();
            settled(&status).then_some(())
        })
        .await;
    }

    pub async fn write(&self, at: usize, command: Command) -> Result<u64, LedgerError> {
        let ledger = self.ledger(at);
        ledger.write(Actor::fabric(ledger.node()), None, command).await.map(|applied| applied.index)
    }

    pub fn read<T>(&self, at: usize, look: impl FnOnce(&State) -> T) -> T {
        self.ledger(at).read(look)
    }
}
