//! One node: what it is made of, and how it starts and stops.
//!
//! [`Node::start`] takes seams and gives a running node; `main` builds the real seams, the simulator its own. Parts talk
//! through the ledger, membership, gossip and the runtime, never to each other.

pub mod admission;
pub mod asks;
pub mod backend;
mod chores;
pub mod context;
pub mod copies;
pub mod daemon;
pub mod dir;
pub mod failures;
pub mod founding;
mod guard;
pub mod lease;
pub mod local_token;
pub mod operations;
mod purge;
pub mod serving;
mod wiring;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use fabric::events::Events;
use fabric::gossip::{Gossip, GossipConfig};
use fabric::identity::{self, Credentials, IdentityError, NodeKey, Trust};
use fabric::ids::NodeId;
use fabric::membership::{Membership, MembershipConfig, boot_stamp};
use fabric::model::Labels;
use fabric::seams::{Disk, Seams};
use fabric::transport::{Transport, TransportConfig, TransportError};
use raft_store::command::Envelope;
use raft_store::ledger::{Ledger, LedgerConfig, StartError as LedgerStartError};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::host::{Host, offered};
use crate::images::service::Images;
use crate::moving::marker::Notes;
use crate::reconcile::held::Held;
use crate::reconcile::publish::Ports;
use crate::runtime::Runtime;
use crate::transfer::Layers;
use crate::{caretaker, cleanup, moving, reconcile, room};
use backend::NodeBackend;
use context::Context;
use dir::{ClusterFile, DirError};
use operations::Operations;

/// Makes the image store once there is a transport to fetch through.
pub type MakeImages = Box<dyn FnOnce(&Transport) -> Arc<dyn Images> + Send>;

/// What a node needs of the world besides [`Seams`].
pub struct Parts {
    /// The host's facts.
    pub host: Arc<dyn Host>,
    /// Runs machines.
    pub runtime: Arc<dyn Runtime>,
    /// Takes the layers of machines from node to node.
    pub layers: Arc<dyn Layers>,
    /// Opens published ports.
    pub ports: Arc<dyn Ports>,
    /// Makes the image store, which fetches through the transport.
    pub images: MakeImages,
}

/// How a node starts.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// UDP address to bind.
    pub listen: SocketAddr,
    /// Where peers reach it; none means as recorded.
    pub advertise: Option<SocketAddr>,
    /// Where its large files are.
    pub data_dir: PathBuf,
    /// Failure domain; none means as recorded.
    pub zone: Option<String>,
    /// Operator's labels; none means as recorded.
    pub labels: Option<Labels>,
    /// Entries of the ledger between its snapshots; none means the usual number. The simulator takes few.
    pub snapshot_every: Option<u64>,
}

/// Why a node does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The directory is no member's.
    #[error("this data directory belongs to no cluster")]
    NotMember,
    /// The directory is a member's, and has lost this file.
    #[error("{file} is missing in the data directory of a member")]
    Missing {
        /// The file.
        file: &'static str,
    },
    /// The stamp of the last start cannot be read.
    #[error("boot in the data directory is damaged")]
    Boot(#[source] std::io::Error),
    /// The notes of moves that may have been decided, or that may have brought a disk, cannot be read.
    #[error("the notes of moves are damaged")]
    Moves {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// A file that every start writes cannot be written.
    #[error("the data directory cannot be used")]
    Disk(#[from] std::io::Error),
    /// Keys, certificate or trust cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The recorded address is none.
    #[error("the recorded address {0:?} is no ip:port: name one with --advertise")]
    Address(String),
    /// The port cannot be had.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The ledger's database cannot be used.
    #[error("the ledger cannot be opened")]
    Ledger(#[from] LedgerStartError),
    /// The cluster's first entry was not written.
    #[error("the cluster could not be founded")]
    Founding(#[from] raft_store::ledger::LedgerError),
}

/// A running node. Dropping it stops its tasks; [`Node::stop`] also tells peers.
pub struct Node {
    context: Arc<Context>,
    backend: NodeBackend,
    tasks: JoinSet<()>,
    /// The guard of exclusive machines. It ends last: leases end while the others stop.
    guard: JoinSet<()>,
}

/// Everything read from the data directory.
struct Loaded {
    file: ClusterFile,
    credentials: Credentials,
    trust: Trust,
    boot: u64,
}

fn load(seams: &Seams) -> Result<Loaded, StartError> {
    let disk = &*seams.disk;
    let file = ClusterFile::load(disk)?.ok_or(StartError::NotMember)?;
    let key = NodeKey::load(disk)?.ok_or(StartError::Missing { file: identity::KEY_FILE })?;
    let credentials = Credentials::load(disk, key)?;
    check_notes(seams)?;
    let credentials = credentials.ok_or(StartError::Missing { file: identity::CERTIFICATE_FILE })?;
    let trust = trusted(disk, &credentials)?;
    let boot = boot_stamp(disk, &*seams.clock).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => StartError::Boot(error),
        _ => StartError::Disk(error),
    })?;
    Ok(Loaded { file, credentials, trust, boot })
}

/// Whom this node trusts. A list that is lost is begun anew from the CA that issued its certificate: other CAs and removed
/// nodes are in the ledger and at every peer, and come back from there.
///
/// # Errors
/// When the disk fails.
pub fn trusted(disk: &dyn Disk, credentials: &Credentials) -> Result<Trust, IdentityError> {
    let lost = match Trust::load(disk) {
        Ok(Some(trust)) => return Ok(trust),
        Ok(None) => "it is missing".to_owned(),
        Err(error @ IdentityError::Disk { .. }) => return Err(error),
        Err(error) => failures::words(&error),
    };
    tracing::warn!(reason = %lost, "the file trust is made anew from this node's certificate");
    let trust = Trust::new([credentials.ca.clone()])?;
    trust.save(disk)?;
    Ok(trust)
}

/// The member that the directory describes.
///
/// # Errors
/// When it is none's, or has lost what says so.
pub fn member(disk: &dyn Disk) -> Result<NodeId, StartError> {
    ClusterFile::load(disk)?.ok_or(StartError::NotMember)?;
    let key = NodeKey::load(disk)?.ok_or(StartError::Missing { file: identity::KEY_FILE })?;
    Ok(key.id())
}

/// Makes the cluster, if that is what this node is there for and has not done yet, and notes that its ledger is begun.
async fn found(seams: &Seams, ledger: &Ledger, file: &mut ClusterFile) -> Result<(), StartError> {
    if let Some(frame) = file.founding.take() {
        let first =
            fabric::wire::decode::<Envelope>(&frame).map_err(|source| DirError::Damaged { file: dir::FILE, source })?;
        ledger.init(first.actor, first.command).await?;
    } else if file.begun {
        return Ok(());
    }
    file.begun = true;
    Ok(file.save(&*seams.disk)?)
}

fn parse_address(text: &str) -> Result<SocketAddr, StartError> {
    text.parse().map_err(|_| StartError::Address(text.to_owned()))
}

fn known_peers(file: &ClusterFile) -> Vec<(NodeId, SocketAddr)> {
    file.peers.iter().filter_map(|(node, address)| Some((*node, address.parse().ok()?))).collect()
}

/// Reads what a former daemon noted of moves. Found out later, damage would keep the machines that it is about from
/// starting, on a node that is well otherwise.
fn check_notes(seams: &Seams) -> Result<(), StartError> {
    let notes = Notes::new(&seams.disk);
    for note in [&notes.out, &notes.coming] {
        note.load().map_err(|source| match source.kind() {
            std::io::ErrorKind::InvalidData => StartError::Moves { file: note.file(), source },
            _ => StartError::Disk(source),
        })?;
    }
    Ok(())
}

impl Node {
    /// Starts the member that the data directory describes.
    ///
    /// # Errors
    /// See [`StartError`]; nothing keeps running then.
    pub async fn start(seams: Seams, parts: Parts, config: NodeConfig) -> Result<Node, StartError> {
        let Loaded { mut file, credentials, trust, boot } = load(&seams)?;
        let me = credentials.id();
        let advertise = config.advertise.map_or_else(|| parse_address(&file.advertise), Ok)?;
        let peers = known_peers(&file);
        let said = chores::Said { zone: config.zone, labels: config.labels };
        said.note(&mut file);
        let trust = Arc::new(std::sync::RwLock::new(trust));
        let late: admission::Late = Arc::new(OnceLock::new());
        let (handlers, registration, gossip_in) = wiring::handlers(&late);
        let transport_config = TransportConfig { listen: config.listen };
        let transport = Transport::start(&transport_config, &seams, &credentials, trust.clone(), handlers)?;
        peers.iter().for_each(|(node, address)| transport.learn(*node, *address));

        let events = Events::new(seams.clock.clone(), boot);
        let membership_config = MembershipConfig { node: me, address: advertise, incarnation: boot, peers };
        let datagrams = transport.datagrams().expect("handed out once, here");
        let link = Arc::new(transport.clone());
        let membership = Membership::start(membership_config, &seams, link.clone(), datagrams, events.clone());
        let gossip_config = GossipConfig { cluster: file.cluster, key: credentials.key.clone(), boot };
        let gossip = Gossip::start(gossip_config, &seams, link, gossip_in, membership.members());

        let surroundings = Arc::new(wiring::Around::new(me, membership.clone(), gossip.clone()));
        let ledger_config =
            LedgerConfig { node: me, address: advertise.to_string(), role: file.role, begun: file.begun };
        let registration = registration.snapshot_every(config.snapshot_every);
        let ledger = registration.start(ledger_config, &seams, Arc::new(transport.clone()), surroundings).await?;
        found(&seams, &ledger, &mut file).await?;

        let room = watch::Sender::new(room::driver::first(parts.host.disk(), parts.host.has_reserve()));
        let context = Arc::new(Context {
            me,
            name: file.name.clone(),
            role: file.role,
            cluster: file.cluster,
            advertise,
            offered: offered(parts.host.total()),
            host: parts.host,
            runtime: parts.runtime,
            layers: parts.layers,
            ports: parts.ports,
            images: (parts.images)(&transport),
            ledger,
            transport,
            membership,
            gossip,
            trust,
            credentials: std::sync::RwLock::new(credentials),
            events,
            operations: Operations::new(seams.clock.clone(), seams.entropy.clone()),
            lease: watch::Sender::default(),
            absence: tokio::sync::Mutex::default(),
            lease_wanted: Notify::new(),
            retries: watch::Sender::default(),
            room,
            coming: room::Coming::default(),
            unpublished: watch::Sender::default(),
            notes: Notes::new(&seams.disk),
            held: Held::default(),
            started_ms: seams.clock.wall().as_millis() as u64,
            started: Instant::now(),
            data_dir: config.data_dir,
            left: OnceLock::new(),
            shutdown: CancellationToken::new(),
            seams,
        });
        moving::driver::resume(&context)?;
        let _ = late.set(context.clone());
        Ok(Self::run(context, file, said))
    }

    fn run(context: Arc<Context>, file: ClusterFile, said: chores::Said) -> Node {
        let mut tasks = JoinSet::new();
        tasks.spawn(reconcile::driver::run(context.clone()));
        tasks.spawn(caretaker::driver::run(context.clone()));
        tasks.spawn(lease::run(context.clone()));
        tasks.spawn(room::driver::run(context.clone()));
        tasks.spawn(chores::tell(context.clone()));
        tasks.spawn(chores::follow_trust(context.clone()));
        tasks.spawn(copies::keep(context.clone()));
        tasks.spawn(moving::driver::clear_reservations(context.clone()));
        tasks.spawn(cleanup::driver::run(context.clone()));
        tasks.spawn(chores::renew_certificate(context.clone()));
        tasks.spawn(chores::announce(context.clone(), said));
        tasks.spawn(chores::remember_peers(context.clone(), file));
        let changes = watch::Sender::new(0);
        let backend = NodeBackend::new(context.clone(), changes.subscribe());
        tasks.spawn(chores::fan_in(context.clone(), changes));
        let mut guard = JoinSet::new();
        guard.spawn(guard::run(context.clone()));
        Node { context, backend, tasks, guard }
    }

    /// The node as its admin port uses it.
    pub fn backend(&self) -> NodeBackend {
        self.backend.clone()
    }

    /// The node's handles.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Stops the node; its machines go on.
    pub async fn stop(mut self) {
        self.context.shutdown.cancel();
        // Each task ends at its next look; a second is more than any of them needs.
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), ended).await;
        self.tasks.abort_all();
        self.context.ledger.close().await;
        self.context.transport.close().await;
        self.guard.shutdown().await;
    }
}
