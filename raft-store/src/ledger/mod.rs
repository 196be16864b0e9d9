//! The ledger as the rest of the node sees it: write from anywhere, read the state, know who leads.
//!
//! Every node runs an instance. A node that the voters have taken in follows the log and reads its own copy; a spare's
//! instance stays empty and idle, writes through the leader, and reads a copy that it fetches from a voter. No lock is
//! held across an await, and nothing that a peer relies on is answered before it is on disk.

mod error;
mod feeding;
mod leasing;
mod messages;
mod reading;
mod serving;
mod status;
mod ticking;
mod voting;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use fabric::ids::{Digest, NodeId};
use fabric::model::Role;
use fabric::rpc::{Router, Rpc};
use fabric::seams::{Clock, Disk, Entropy, Seams, draw};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::RaftError;
use openraft::metrics::RaftServerMetrics;
use openraft_rt::deterministic_rng::DeterministicRng;
use openraft_rt_tokio::TokioRuntime;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

pub use error::{LedgerError, StartError};

/// What the ledger keeps in the data directory: its database with the journal, the note of which one that is, a spare's
/// view.
pub const FILES: [&str; 4] = [crate::store::FILE, crate::store::JOURNAL, crate::store::NOTE, crate::feed::FILE];
/// Those of [`FILES`] that hold secrets.
pub const SECRETS: [&str; 3] = [crate::store::FILE, crate::store::JOURNAL, crate::feed::FILE];

pub use leasing::Renewal;
#[cfg(test)]
pub(crate) use messages::feed_decoders;
pub use status::{LedgerStatus, Part};
pub use writing::Applied;

use crate::command::{Actor, Command};
use crate::feed::{Blobs, Mine};
use crate::network::{Network, Server};
use crate::state::State;
use crate::store::{AppliedEntry, LogStore, Shared, StateMachine, Store};
use crate::time::ClusterClock;
use crate::tuning::{self, CLOSE_TIMEOUT, FORWARD_QUEUE, FORWARDS_IN_FLIGHT};
use crate::types::{Member, Raft, TC};

/// What the ledger is told once.
#[derive(Debug, Clone)]
pub struct LedgerConfig {
    /// This node.
    pub node: NodeId,
    /// Where it listens, for the members' list.
    pub address: String,
    /// What it was admitted as: a worker gets no copy of the whole state, and reads what concerns itself.
    pub role: Role,
    /// This node has begun its ledger in an earlier life: without it there is no start.
    pub begun: bool,
}

/// What membership and gossip know. Hints for routing, and nominations for the voters; never an authority.
pub trait Surroundings: Send + Sync {
    /// Nodes that membership holds alive now, this one included.
    fn alive(&self) -> BTreeSet<NodeId>;
    /// Nodes that say they lead, vote or stand by, the likeliest leader first.
    fn ledger_nodes(&self) -> Vec<NodeId>;
}

/// A ledger that answers its peers' requests once it is started.
#[derive(Default, Clone)]
pub struct Registration {
    slot: Arc<OnceLock<Weak<Inner>>>,
    snapshot_every: Option<u64>,
}

/// The ledger. Clones share it; the last one that goes stops it.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger({:?})", self.inner.me)
    }
}

/// What all parts of the ledger share.
struct Inner {
    me: NodeId,
    raft: Raft,
    server: Server,
    shared: Arc<Shared>,
    /// Synced transactions of the database.
    syncs: Arc<AtomicU64>,
    /// Closes once nobody writes the log any more.
    writer: watch::Receiver<()>,
    rpc: Arc<dyn Rpc>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    surroundings: Arc<dyn Surroundings>,
    address: String,
    role: Role,
    /// The last stamp, given or applied.
    time: Mutex<ClusterClock>,
    /// When a leader was last heard, and who a peer last said it is.
    heard: Mutex<Heard>,
    forward: mpsc::Sender<writing::Pending>,
    forwards: Arc<Semaphore>,
    /// Whom to ask next when nobody is known to lead.
    turn: AtomicUsize,
    tasks: Mutex<JoinSet<()>>,
    disk: Arc<dyn Disk>,
    /// What a spare was told of the records that concern it.
    view: watch::Sender<Arc<Mine>>,
    /// Held while a newer view replaces that one, on disk and here.
    taking: Mutex<()>,
    /// A spare's copy of the whole state, for reads.
    replica: Mutex<Option<Arc<Replica>>>,
    /// What `view` says, as a state.
    fed: Mutex<Option<Arc<Replica>>>,
    fetching: Semaphore,
    /// What is served to spares, page by page.
    blobs: Mutex<Blobs>,
    /// When a copy of the whole state was last made for spares, and its digest.
    full: Mutex<Option<(Instant, Digest)>>,
    /// The newest index that a reader here can see.
    seen: watch::Sender<u64>,
    /// Nodes that are about to be removed, and until when this node, if it leads, passes them over among the voters.
    leaving: Mutex<BTreeMap<NodeId, Instant>>,
}

/// A spare's copy of the state, without CA keys.
struct Replica {
    at: (u64, u64),
    digest: Digest,
    fetched: Instant,
    state: Arc<State>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Heard {
    /// A leader's append.
    at: Option<Instant>,
    /// A member's answer to this spare's feed.
    feed: Option<Instant>,
    hint: Option<NodeId>,
}

impl Registration {
    /// Makes a snapshot every so many entries and keeps half as many behind it; none means the usual number.
    pub fn snapshot_every(mut self, entries: impl Into<Option<u64>>) -> Self {
        self.snapshot_every = entries.into();
        self
    }

    /// Opens the database and joins in.
    ///
    /// # Errors
    /// When the database cannot be used; nothing is running then.
    pub async fn start(
        self,
        config: LedgerConfig,
        seams: &Seams,
        rpc: Arc<dyn Rpc>,
        surroundings: Arc<dyn Surroundings>,
    ) -> Result<Ledger, StartError> {
        let store = Store::open(&*seams.disk, &*seams.entropy, config.begun)?;
        let machine = StateMachine::load(store.clone(), seams.clock.clone())?;
        let shared = machine.shared.clone();
        let log = LogStore::new(store.clone(), seams.disk.clone(), shared.halt.clone());
        let writer = log.ended();
        let network = Network::new(config.node, rpc.clone());
        // openraft's randomness is task-local and seeded here, so that the simulator owns it. Its later calls draw none
        // in the caller's task.
        let seed = u64::from_le_bytes(draw::<8>(&*seams.entropy));
        let starting = Raft::new(
            Member(config.node),
            Arc::new(tuning::raft(self.snapshot_every.unwrap_or_else(|| tuning::snapshot_every(config.node)))),
            network,
            log,
            machine,
        );
        let started = DeterministicRng::<TokioRuntime>::scope(seed, starting).await;
        let raft = started.map_err(|error| match shared.halt.reason() {
            Some(reason) => StartError::Halted(reason),
            None => StartError::Halted(error.to_string()),
        })?;
        let view = Mine::load(&*seams.disk, config.node).unwrap_or_default();
        let seen = view.at.1.max(shared.read().applied_index());
        let (forward, queue) = mpsc::channel(FORWARD_QUEUE);
        let inner = Arc::new(Inner {
            me: config.node,
            server: Server::new(raft.clone(), shared.halt.clone()),
            raft,
            syncs: store.syncs_counter(),
            writer,
            shared,
            rpc,
            clock: seams.clock.clone(),
            entropy: seams.entropy.clone(),
            surroundings,
            address: config.address,
            role: config.role,
            time: Mutex::default(),
            heard: Mutex::default(),
            forward,
            forwards: Arc::new(Semaphore::new(FORWARDS_IN_FLIGHT)),
            turn: AtomicUsize::new(0),
            tasks: Mutex::default(),
            disk: seams.disk.clone(),
            view: watch::Sender::new(Arc::new(view)),
            taking: Mutex::default(),
            replica: Mutex::default(),
            fed: Mutex::default(),
            fetching: Semaphore::new(1),
            blobs: Mutex::default(),
            full: Mutex::default(),
            seen: watch::Sender::new(seen),
            leaving: Mutex::default(),
        });
        inner.keep_fed(&inner.view.borrow());
        let weak = Arc::downgrade(&inner);
        inner.spawn(writing::forwarder(weak.clone(), queue));
        inner.drive(&weak);
        let _ = self.slot.set(weak);
        Ok(Ledger { inner })
    }
}

impl Ledger {
    /// Adds the ledger's requests to a router; they are answered after [`Registration::start`].
    pub fn register(router: &mut Router) -> Registration {
        let registration = Registration::default();
        serving::register(router, &registration.slot);
        registration
    }

    /// Runs `look` on the state. It must be short: entries wait for it.
    ///
    /// On a spare that is the copy fetched last (see [`Ledger::refresh`]); on a node that never was in Raft and has fetched
    /// none, as workers never do, it is a state that knows only what concerns this node. Before anything is given up because
    /// it is missing: [`Ledger::linearizable`].
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.read_at(|_, state| look(state))
    }

    /// [`Ledger::read`] with the index of the very state that is shown. It may fall behind [`Ledger::changed`] for a while,
    /// when a node enters Raft and its own log is still on its way: who decides by a lease compares this one.
    pub fn read_at<T>(&self, look: impl FnOnce(u64, &State) -> T) -> T {
        let fetched = self.inner.replica().clone();
        let fed = self.inner.fed();
        let machine = self.inner.shared.read();
        // What is fed is a part of the state: a node with a whole one shows that, though it may be older.
        match fetched.or(fed.filter(|_| machine.applied.is_none())) {
            Some(copy) if copy.at > machine.at() => {
                drop(machine);
                look(copy.at.1, &copy.state)
            }
            _ => look(machine.applied_index(), &machine.state),
        }
    }

    /// How often this node's ledger has synced its disk since it started.
    pub fn syncs(&self) -> u64 {
        self.inner.syncs.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.inner.me
    }

    /// The newest index that [`Ledger::read`] or [`Ledger::mine`] show here, as it grows. A wake-up, not an order.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.seen.subscribe()
    }

    /// Commands as they are applied here. A subscriber that lags too far behind is told how many it lost.
    pub fn subscribe(&self) -> broadcast::Receiver<AppliedEntry> {
        self.inner.shared.events.subscribe()
    }

    /// Whether this node has ever been part of a ledger: it was initialised here, or a leader has sent it something.
    pub async fn is_initialized(&self) -> bool {
        self.inner.raft.is_initialized().await.unwrap_or(false)
    }

    /// Makes the cluster, once, on its first node: a ledger with one voter whose first entry is `command`. Repeating it
    /// after a crash finishes what was begun.
    ///
    /// # Errors
    /// See [`LedgerError`]; a ledger of another cluster refuses.
    pub async fn init(&self, actor: Actor, command: Command) -> Result<Applied, LedgerError> {
        let members = BTreeMap::from([(Member(self.inner.me), self.inner.address.clone())]);
        match self.inner.raft.initialize(members).await {
            // Not allowed: it was initialised before, and the first entry tells whether as the same cluster.
            Ok(()) | Err(RaftError::APIError(_)) => {}
            Err(RaftError::Fatal(error)) => {
                self.inner.shared.halt.because(&error);
                return Err(LedgerError::Halted { reason: error.to_string() });
            }
        }
        self.write(actor, None, command).await
    }

    /// Stops taking part. What was acknowledged is on disk.
    pub async fn close(&self) {
        self.inner.tasks().abort_all();
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "the ledger did not stop cleanly");
        }
        // Whoever starts next on these files finds them closed.
        let mut writer = self.inner.writer.clone();
        if timeout(CLOSE_TIMEOUT, async { while writer.changed().await.is_ok() {} }).await.is_err() {
            tracing::warn!("the ledger's file is being written still");
        }
    }
}

impl Inner {
    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task that ends with the ledger.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks().spawn(task);
    }

    /// Starts what goes on as long as the ledger does.
    fn drive(&self, weak: &Weak<Self>) {
        self.spawn(status::watch_halt(weak.clone()));
        self.spawn(voting::drive(weak.clone()));
        self.spawn(ticking::drive(weak.clone()));
        self.spawn(leasing::drive(weak.clone()));
        self.spawn(feeding::tell(weak.clone()));
        self.spawn(feeding::follow(weak.clone()));
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard_feed(&self) {
        self.heard().feed = Some(Instant::now());
    }

    fn replica(&self) -> MutexGuard<'_, Option<Arc<Replica>>> {
        self.replica.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fed(&self) -> Option<Arc<Replica>> {
        self.fed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a state of the newest view.
    fn keep_fed(&self, view: &Mine) {
        let Some(state) = view.to_state().filter(|_| view.at != (0, 0)) else { return };
        let copy = Replica { at: view.at, digest: Digest::default(), fetched: Instant::now(), state: Arc::new(state) };
        *self.fed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(copy));
    }

    fn blobs(&self) -> MutexGuard<'_, Blobs> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something as new as `index` can be read here.
    fn saw(&self, index: u64) {
        self.seen.send_if_modified(|seen| {
            let news = index > *seen;
            *seen = index.max(*seen);
            news
        });
    }

    fn server_metrics(&self) -> RaftServerMetrics<TC> {
        self.raft.server_metrics().borrow_watched().clone()
    }

    fn halted(&self) -> Option<String> {
        self.shared.halt.reason()
    }

    /// Whether this node leads, as far as it knows.
    fn leads(&self) -> bool {
        self.halted().is_none() && self.raft.is_leader()
    }
}
