//! What the parts of a node share: handles, and the few questions that several of them ask.
//!
//! It holds no state of its own that anything decides by: the ledger, membership, gossip and the runtime do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fabric::events::Events;
use fabric::gossip::{Gossip, States};
use fabric::identity::{Credentials, SharedTrust};
use fabric::ids::{ClusterId, Digest, IdempotencyKey, MachineId, NodeId};
use fabric::limits::CALL_TIMEOUT;
use fabric::membership::Membership;
use fabric::model::{Capacity, MachineRecord, Name, Role};
use fabric::rpc::{CallError, Kind, Refusal, Rpc};
use fabric::seams::Seams;
use fabric::transport::Transport;
use fabric::wire::Record;
use raft_store::command::{Actor, Command, Outcome};
use raft_store::lease::Holder;
use raft_store::ledger::{Applied, Ledger};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::operations::Operations;
use crate::api::failure::Failure;
use crate::caretaker;
use crate::host::Host;
use crate::images::service::{Images, Ready};
use crate::moving::marker::Notes;
use crate::reconcile::backoff::Retries;
use crate::reconcile::held::Held;
use crate::reconcile::publish::Ports;
use crate::room::{self, Room};
use crate::runtime::Runtime;
use crate::schedule::{self, Candidate, Inventory};
use crate::transfer::Layers;

/// A node that has just started does not call those dead whom it has not met yet.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a write waits for this node's own copy.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Pause between two questions about what the ledger has decided.
pub const DOUBT: Duration = Duration::from_millis(500);
/// A label that groups machines: they are spread over nodes.
const SERVICE_LABEL: &str = "service";

/// Handles of one node. Cheap to share, never copied.
pub struct Context {
    /// This node.
    pub me: NodeId,
    /// Its name.
    pub name: Name,
    /// What it was admitted as.
    pub role: Role,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Where peers reach it.
    pub advertise: SocketAddr,
    /// Clock, entropy, disk, UDP.
    pub seams: Seams,
    /// The host's facts.
    pub host: Arc<dyn Host>,
    /// What the host offers to machines.
    pub offered: Capacity,
    /// Runs machines.
    pub runtime: Arc<dyn Runtime>,
    /// Takes the layers of machines from node to node.
    pub layers: Arc<dyn Layers>,
    /// Opens published ports.
    pub ports: Arc<dyn Ports>,
    /// Images of this node, and how to get others.
    pub images: Arc<dyn Images>,
    /// What must never disagree.
    pub ledger: Ledger,
    /// Peers.
    pub transport: Transport,
    /// Who is alive.
    pub membership: Membership,
    /// What nodes tell of themselves.
    pub gossip: Gossip,
    /// Whom to trust.
    pub trust: SharedTrust,
    /// Key and certificate; replaced at a renewal.
    pub credentials: std::sync::RwLock<Credentials>,
    /// What happened.
    pub events: Events,
    /// Long work.
    pub operations: Arc<Operations>,
    /// The lease of this node.
    pub lease: watch::Sender<Holder>,
    /// Planned absence of this node.
    pub absence: tokio::sync::Mutex<super::lease::Absence>,
    /// Asks for a renewal now.
    pub lease_wanted: Notify,
    /// Machines of this node that lost their supervisor, for `reconcile` and for whoever asks how they are.
    pub retries: watch::Sender<Retries>,
    /// What the host's disk has room for.
    pub room: watch::Sender<Room>,
    /// Layers that come here now.
    pub coming: room::Coming,
    /// Published ports of this node's machines that could not be opened, in words.
    pub unpublished: watch::Sender<BTreeMap<MachineId, String>>,
    /// What is noted of moves.
    pub notes: Notes,
    /// Machines that are worked on.
    pub held: Held,
    /// When this daemon started, Unix milliseconds.
    pub started_ms: u64,
    /// When this daemon started.
    pub started: Instant,
    /// Where the node's files are, for what is no small file: images, machines, staged layers.
    pub data_dir: std::path::PathBuf,
    /// Set once this node has left its cluster: whether its data goes when the daemon ends.
    pub left: std::sync::OnceLock<bool>,
    /// The node is stopping.
    pub shutdown: CancellationToken,
}

impl Context {
    /// The wall clock, Unix milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.seams.clock.wall().as_millis() as u64
    }

    /// Whether this daemon has been up long enough to have met whoever is alive.
    pub fn has_settled(&self) -> bool {
        self.started.elapsed() > SETTLE
    }

    /// A ledger write by the fabric itself.
    ///
    /// # Errors
    /// The ledger's refusal, a time-out (the outcome is unknown then), or that no leader can be reached.
    pub async fn submit(&self, command: Command) -> Result<Outcome, Failure> {
        Ok(self.propose(command).await?.outcome)
    }

    /// [`Context::submit`], with the index at which the ledger has it.
    ///
    /// # Errors
    /// The same.
    pub async fn propose(&self, command: Command) -> Result<Applied, Failure> {
        self.propose_once(None, command).await
    }

    /// [`Context::propose`] for a client whose request may come again: with a key that is known it is not done again, and
    /// the outcome is that of before.
    ///
    /// # Errors
    /// The same.
    pub async fn propose_once(&self, key: Option<IdempotencyKey>, command: Command) -> Result<Applied, Failure> {
        let applied = self.ledger.write(Actor::fabric(self.me), key, command).await?;
        self.caught_up(applied.index).await;
        Ok(applied)
    }

    /// Waits until this node's view of the ledger is of `index` at least, however long that takes; false when the node
    /// stops before.
    pub async fn reached(&self, index: u64) -> bool {
        while self.ledger.wait_applied(index).await.is_err() {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return false,
                () = tokio::time::sleep(DOUBT) => {}
            }
        }
        true
    }

    /// Waits a moment until this node's copy has what was just written, so that who wrote reads it here. A copy that lags
    /// further is told by its staleness.
    pub async fn caught_up(&self, index: u64) {
        let _ = tokio::time::timeout(CATCH_UP, self.ledger.wait_applied(index)).await;
    }

    /// Asks the voters one by one what this node cannot answer itself, until one can.
    ///
    /// # Errors
    /// The first refusal that another voter would give too; that no voter can answer.
    pub async fn ask_voters<T: Record>(&self, kind: Kind, question: Vec<u8>) -> Result<T, Refusal>
    where
        T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, rkyv::rancor::Error>>
            + rkyv::Deserialize<T, rkyv::api::high::HighDeserializer<rkyv::rancor::Error>>,
    {
        for voter in self.ledger.status().voters.into_iter().filter(|voter| *voter != self.me) {
            match self.transport.call(voter, kind, question.clone(), CALL_TIMEOUT).await {
                Ok(answer) => return super::asks::read(&answer),
                // It starts, or lags behind what its peers know.
                Err(CallError::Refused(refusal)) if refusal.code != "not-ready" => return Err(refusal),
                Err(_) => {}
            }
        }
        Err(Refusal::new("unreachable", "no voter can answer this now").hint("try again when a voter is back"))
    }

    /// Makes an image be here, asking first who says to have it.
    ///
    /// # Errors
    /// When nobody gives it or the disk refuses.
    pub async fn image(&self, digest: Digest) -> Result<Ready, Failure> {
        let states = self.gossiped();
        let said: Vec<NodeId> =
            states.values().filter(|state| state.images.contains(&digest)).map(|state| state.node).collect();
        // A node tells of its latest images only, and some seconds late: the others are asked after.
        let others = self.membership.active().into_keys().filter(|node| !said.contains(node));
        let holders = said.iter().copied().chain(others).filter(|node| *node != self.me).collect();
        self.images.ensure(digest, holders).await
    }

    /// This node's view: its ledger index, the records that concern this node, and those of `others`. None while the view
    /// is older than one that was shown before: nothing is decided by it then.
    pub fn mine(&self, others: impl Iterator<Item = MachineId>) -> Option<(u64, BTreeMap<MachineId, MachineRecord>)> {
        let me = self.me;
        let shown = *self.ledger.changed().borrow();
        self.ledger.read_at(|index, state| {
            let own = state.machines_on(me).chain(state.machines_reserved_on(me));
            let named = others.filter_map(|id| state.machines.get(&id));
            let records = own.chain(named).map(|record| (record.id, record.clone()));
            (index >= shown).then(|| (index, records.collect()))
        })
    }

    /// Until when this node may run an exclusive machine in this epoch, on `CLOCK_BOOTTIME`. None when a view as new as the
    /// lease does not name this node as its owner.
    pub fn lease_deadline(&self, machine: MachineId, epoch: u64) -> Option<Duration> {
        // The lease first: the view that it is held against is then the newer one.
        let lease = self.lease.borrow().clone();
        let (index, records) = self.mine(std::iter::once(machine))?;
        let placement = records.get(&machine)?.placement?;
        let ours = placement.node == self.me && placement.epoch == epoch;
        let covered = ours && super::lease::covers(&lease, self.seams.clock.boottime(), index);
        lease.deadline().filter(|_| covered)
    }

    /// Whether the ledger gives any machine to this node.
    pub fn has_machines(&self) -> bool {
        self.ledger.read(|state| state.machines_on(self.me).next().is_some())
    }

    /// Whether the ledger gives an exclusive machine to this node.
    pub fn has_exclusive_machines(&self) -> bool {
        self.ledger.read(|state| state.machines_on(self.me).any(|record| record.spec.exclusive))
    }

    /// Whether the cluster, asked linearizably, has no record of the machine; on a worker, whether it has none for this node:
    /// the machine may be another's then.
    ///
    /// # Errors
    /// When no leader can be reached: nothing is known then.
    pub async fn is_absent(&self, machine: MachineId) -> Result<bool, Failure> {
        self.ledger.linearizable().await?;
        Ok(self.ledger.read(|state| !state.machines.contains_key(&machine)))
    }

    /// A renewed lease lets a frozen machine run again.
    ///
    /// # Errors
    /// When the machine is frozen by a move's order and its thaw fails.
    pub async fn lease_renew_now(&self, machine: MachineId) -> Result<(), Failure> {
        super::lease::extend_machines(self).await;
        self.runtime.thaw(machine).await.map_err(Failure::from)
    }

    /// Name of a node by the ledger, or its short id.
    pub fn node_name(&self, node: NodeId) -> String {
        self.ledger.read(|state| state.nodes.get(&node).map(|record| record.name.to_string())).unwrap_or(node.short())
    }

    /// What every node gossips.
    pub fn gossiped(&self) -> Arc<States> {
        self.gossip.states()
    }

    /// The nodes as the scheduler wants to see them for `machine`.
    pub fn inventory(&self, machine: &MachineRecord) -> Inventory {
        let (members, gossiped) = (self.membership.members(), self.gossiped());
        let members = members.borrow();
        let (service, now_ms) = (machine.spec.labels.get(SERVICE_LABEL), self.ledger.now_ms());
        self.ledger.read(|state| {
            let candidate = |record: &fabric::model::NodeRecord| {
                let alive = record.id == self.me
                    || members.get(&record.id).is_some_and(|m| m.state == fabric::membership::State::Alive);
                let gossip = gossiped.get(&record.id);
                let sibling = |other: &&MachineRecord| {
                    other.id != machine.id
                        && other.tenant == machine.tenant
                        && service.is_some()
                        && other.spec.labels.get(SERVICE_LABEL) == service
                };
                Candidate {
                    id: record.id,
                    name: record.name.clone(),
                    zone: record.zone.clone(),
                    declared: record.capacity,
                    free: state.free(record.id),
                    alive,
                    full: gossip.is_some_and(|said| room::says_full(said)),
                    taken: state.taken_port(machine, record.id),
                    closed: record.cordoned || record.draining || caretaker::is_absent(record, now_ms),
                    has_image: gossip.is_some_and(|said| said.images.contains(&machine.image)),
                    load_millis: gossip.map_or(0, |said| said.load_millis),
                    siblings: state.machines_on(record.id).filter(sibling).count() as u32,
                    zone_siblings: 0,
                }
            };
            let mut inventory = state.nodes.values().map(|record| (record.id, candidate(record))).collect();
            schedule::count_zones(&mut inventory);
            inventory
        })
    }
}
