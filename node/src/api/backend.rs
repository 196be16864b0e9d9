//! What the admin port needs from the node. The API's handlers know this trait and nothing else of it, so that their
//! tests need no cluster and the node needs no HTTP.
//!
//! Values are the domain's (`fabric::model`) or plain views of it; JSON lives in `types`. Names have been checked
//! before a method is called, rights of the path's tenant too; what depends on the ledger's state is the backend's.

use async_trait::async_trait;
use fabric::ids::{ClusterId, IdempotencyKey, MachineId, NodeId, OperationId, TokenId};
use fabric::model::{
    Capacity, Desired, ImageRecord, Labels, MachineRecord, MachineSpec, MachineState, MachineStatus, Name, NodeRecord,
    NodeState, Quota, RaftRole, Role, TenantRecord,
};
use fabric::rpc::Refusal;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::failure::Failure;

/// The outcome of everything here.
pub type Result<T> = std::result::Result<T, Failure>;

/// What a caller may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rights {
    /// Everything.
    Operator,
    /// Everything of one tenant and the tenants below it.
    Tenant(Name),
    /// Reads of the cluster, and writes about this node alone: root on a worker.
    Node(NodeId),
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// For the audit trail: `root@n1`, `token 0a1b2c3d4e`.
    pub subject: String,
    /// What it may do.
    pub rights: Rights,
}

/// How to read.
#[derive(Debug, Clone)]
pub struct Read {
    /// Who asks.
    pub caller: Caller,
    /// The answer reflects every write acknowledged before the request; otherwise it may be `staleness_ms` old.
    pub linearizable: bool,
}

/// How to write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Who asks.
    pub caller: Caller,
    /// A request with a known key is not done again: its first outcome is the answer.
    pub idempotency: Option<IdempotencyKey>,
    /// The revision that the object must have (`If-Match`), else `revision`.
    pub if_revision: Option<u64>,
    /// Check everything and answer as if it were done, but change nothing.
    pub dry_run: bool,
}

/// Which part of a list.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Items whose key (name, or id for tokens and operations) is greater.
    pub after: Option<String>,
    /// At most this many, 1 to `API_LIST_MAX`.
    pub limit: usize,
    /// Every one must be there; a value of none means any value.
    pub labels: Vec<(String, Option<String>)>,
    /// Observed state of machines.
    pub state: Option<MachineState>,
    /// Name or id of the owning node.
    pub node: Option<String>,
}

/// A part of a list, in the order of its keys.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// There are further ones.
    pub more: bool,
    /// How old the answer may be.
    pub staleness_ms: u64,
    /// Nodes that did not tell what they observe.
    pub unreachable: Vec<Name>,
    /// This node is a worker: it knows what concerns itself, so others may be missing.
    pub partial: bool,
}

/// One thing, and how old the answer may be.
#[derive(Debug, Clone)]
pub struct One<T> {
    /// It.
    pub item: T,
    /// How old the answer may be.
    pub staleness_ms: u64,
    /// Nodes that did not tell what they observe.
    pub unreachable: Vec<Name>,
}

/// Whether membership believes a node alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It has not answered for a while.
    Suspect,
    /// It is taken for dead.
    Down,
    /// Never seen since this node started.
    Unknown,
}

/// A node, as this one sees it.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its record in the ledger.
    pub record: NodeRecord,
    /// What membership says.
    pub liveness: Liveness,
    /// Since when, Unix milliseconds.
    pub liveness_since_ms: u64,
    /// What it gossips.
    pub state: Option<NodeState>,
    /// What is not guaranteed to machines, by the ledger.
    pub free: Capacity,
    /// Machines placed there.
    pub machines: u32,
}

/// A machine: record, owner, observed status.
#[derive(Debug, Clone)]
pub struct MachineView {
    /// Its record in the ledger.
    pub record: MachineRecord,
    /// Name of the owner.
    pub node: Option<Name>,
    /// Name of a pinned node.
    pub pinned: Option<Name>,
    /// Name of the destination of a move under way.
    pub moving_to: Option<Name>,
    /// What the owner observes; none when it has no owner or the owner did not answer.
    pub status: Option<MachineStatus>,
}

/// A voter, as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoterView {
    /// Its name.
    pub name: Name,
    /// Membership believes it alive.
    pub alive: bool,
}

/// This node and the cluster as it sees it.
#[derive(Debug, Clone)]
pub struct StatusView {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Where peers reach it.
    pub address: String,
    /// What it was admitted as.
    pub role: Role,
    /// Its part in Raft.
    pub raft: RaftRole,
    /// The leader it knows.
    pub leader: Option<Name>,
    /// Raft's term.
    pub term: u64,
    /// Index that it has applied.
    pub applied: u64,
    /// Cluster epoch.
    pub epoch: u64,
    /// Voters that may be lost before writes stop, counting only live ones.
    pub tolerance: u32,
    /// The same for people, with what to do about it.
    pub tolerance_words: String,
    /// The voters.
    pub voters: Vec<VoterView>,
    /// The standbys.
    pub standbys: Vec<Name>,
    /// Admitted nodes by liveness: alive, suspect, down (and unknown).
    pub nodes: [u32; 3],
    /// Machines in the ledger, and those without an owner.
    pub machines: [u32; 2],
    /// Why no machine can run on this node, with what to do about it.
    pub no_machines: Option<String>,
    /// Feature level of the cluster.
    pub feature_level: u32,
    /// When this daemon started, Unix milliseconds.
    pub started_ms: u64,
    /// How old the answer may be.
    pub staleness_ms: u64,
}

/// A machine to be made.
#[derive(Debug, Clone)]
pub struct NewMachine {
    /// Its name.
    pub name: Name,
    /// Its spec; `pinned` is already resolved.
    pub spec: MachineSpec,
    /// State to begin with.
    pub desired: Desired,
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// What it admits as.
    pub role: Role,
    /// Valid this long.
    pub ttl_ms: u64,
    /// Admits this many nodes.
    pub uses: u32,
}

/// A new token: the only time its secret is seen.
#[derive(Debug, Clone)]
pub struct MadeToken {
    /// Its public half.
    pub view: TokenView,
    /// The whole token.
    pub token: String,
    /// Addresses of up to three peers for the join command.
    pub peers: Vec<String>,
}

/// A token, without its secret.
#[derive(Debug, Clone)]
pub struct TokenView {
    /// Its id.
    pub id: TokenId,
    /// What it admits as.
    pub role: Role,
    /// When it expires, Unix milliseconds.
    pub expires_ms: u64,
    /// Admissions left.
    pub uses_left: u32,
    /// When it was made, Unix milliseconds.
    pub created_ms: u64,
}

/// Where long work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationState {
    /// Under way.
    Running,
    /// Done.
    Done,
    /// Failed; `error` says why.
    Failed,
    /// Cancelled.
    Cancelled,
}

/// Long work that a client may follow.
#[derive(Debug, Clone)]
pub struct OperationView {
    /// Its id.
    pub id: OperationId,
    /// `move`, `drain`.
    pub kind: String,
    /// Tenant of what it is about; none for the cluster's own.
    pub tenant: Option<Name>,
    /// Name of what it is about.
    pub subject: String,
    /// Where it is.
    pub state: OperationState,
    /// Its present phase: `preflight`, `sync`, ...
    pub phase: String,
    /// 0 to 1000.
    pub progress_permille: u32,
    /// Predicted outage of a move.
    pub predicted_outage_ms: Option<u64>,
    /// When it began, Unix milliseconds.
    pub created_ms: u64,
    /// When it last changed, Unix milliseconds.
    pub updated_ms: u64,
    /// Why it failed.
    pub error: Option<Refusal>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventView {
    /// Resume after this event with it, on any node; without spaces or line ends, at most 80 bytes.
    pub cursor: String,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// Stable, in kebab-case: `machine-created`, `node-down`.
    pub kind: String,
    /// Tenant of what it is about; none for the cluster's own.
    pub tenant: Option<Name>,
    /// Name of what it is about.
    pub subject: String,
    /// Whose credential caused it; none for what this node alone saw.
    pub actor: Option<String>,
    /// For people.
    pub message: String,
}

/// A line that a machine printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When, Unix milliseconds; 0 when unknown.
    pub at_ms: u64,
    /// It came from standard error.
    pub stderr: bool,
    /// The line without its end.
    pub text: String,
}

/// Which lines of a log.
#[derive(Debug, Clone, Copy)]
pub struct LogQuery {
    /// The last this many; none means all that is kept.
    pub tail: Option<usize>,
    /// Go on with new lines.
    pub follow: bool,
}

/// A program to run inside a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecQuery {
    /// Program and arguments, not empty.
    pub argv: Vec<String>,
    /// Standard input is sent; otherwise it is empty.
    pub stdin: bool,
}

/// A two-way byte stream.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}
/// A two-way byte stream to somewhere.
pub type Duplex = Box<dyn Bytes>;

/// The node, as its admin port uses it.
///
/// Methods with [`Write`] answer once the ledger has acknowledged, within `WRITE_TIMEOUT`.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// The rights of root at this node's own socket: operator on a voter, itself alone on a worker.
    fn root(&self) -> Caller;
    /// Who holds this bearer token; `unauthenticated` when nobody does.
    async fn authenticate(&self, token: &str) -> Result<Caller>;
    /// `tenant` is `root` or below it in the tree.
    fn is_below(&self, tenant: &Name, root: &Name) -> bool;
    /// The same words, with nodes by their names where this node knows them: what failed in between knows ids alone.
    fn in_names(&self, words: &str) -> String;
    /// Grows with everything that a waiting client could wait for (ledger applied, membership changed, an operation's
    /// phase). A wake-up carries no data.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Ready: joined, the ledger reachable, able to serve. The refusal says what is missing.
    async fn ready(&self) -> Result<()>;
    /// This node and the cluster.
    async fn status(&self, read: &Read) -> Result<StatusView>;
    /// Metrics of the node in OpenMetrics text, without the final `# EOF`.
    async fn metrics(&self) -> Result<String>;

    /// Stops the daemon after the answer has been sent; its machines go on. `absence_ms` is announced to the cluster.
    async fn stop(&self, caller: &Caller, absence_ms: u64) -> Result<()>;
    /// Takes this node out of the cluster for good: drains it, removes it, and with `purge` deletes its data; the
    /// daemon then stops.
    async fn leave(&self, write: &Write, purge: bool) -> Result<OperationView>;

    /// Makes a join token.
    async fn create_token(&self, write: &Write, token: NewToken) -> Result<MadeToken>;
    /// Live tokens.
    async fn list_tokens(&self, read: &Read, query: &Query) -> Result<Page<TokenView>>;
    /// Revokes a token.
    async fn revoke_token(&self, write: &Write, id: TokenId) -> Result<()>;

    /// Admitted nodes by name; uses `after`, `limit` and `labels`.
    async fn list_nodes(&self, read: &Read, query: &Query) -> Result<Page<NodeView>>;
    /// One node, by name, id or unambiguous beginning of its id (at least 6 digits).
    async fn node(&self, read: &Read, node: &str) -> Result<One<NodeView>>;
    /// Cordons or uncordons (which also ends draining).
    async fn cordon(&self, write: &Write, node: &str, cordoned: bool) -> Result<One<NodeView>>;
    /// Cordons and moves every machine away.
    async fn drain(&self, write: &Write, node: &str) -> Result<OperationView>;
    /// Removes a node: its certificate is void everywhere. Refused (`in-use`) while it owns machines, unless forced.
    async fn remove_node(&self, write: &Write, node: &str, force: bool) -> Result<()>;

    /// Makes a tenant.
    async fn create_tenant(
        &self,
        write: &Write,
        name: Name,
        parent: Option<Name>,
        quota: Quota,
    ) -> Result<TenantRecord>;
    /// Tenants by name.
    async fn list_tenants(&self, read: &Read, query: &Query) -> Result<Page<TenantRecord>>;
    /// One tenant.
    async fn tenant(&self, read: &Read, name: &Name) -> Result<One<TenantRecord>>;
    /// Deletes an empty tenant.
    async fn delete_tenant(&self, write: &Write, name: &Name) -> Result<()>;

    /// Makes a machine and proposes a place for it.
    async fn create_machine(&self, write: &Write, tenant: &Name, machine: NewMachine) -> Result<MachineView>;
    /// A tenant's machines by name.
    async fn list_machines(&self, read: &Read, tenant: &Name, query: &Query) -> Result<Page<MachineView>>;
    /// One machine.
    async fn machine(&self, read: &Read, tenant: &Name, name: &Name) -> Result<One<MachineView>>;
    /// Starts, stops or (`Deleted`) deletes.
    async fn set_desired(&self, write: &Write, tenant: &Name, name: &Name, desired: Desired) -> Result<MachineView>;
    /// Replaces the labels.
    async fn update_labels(&self, write: &Write, tenant: &Name, name: &Name, labels: Labels) -> Result<MachineView>;
    /// Stops and starts it once.
    async fn restart(&self, write: &Write, tenant: &Name, name: &Name) -> Result<MachineView>;
    /// Moves it, to `to` (name or id of a node) or to the best node.
    async fn move_machine(&self, write: &Write, tenant: &Name, name: &Name, to: Option<&str>) -> Result<OperationView>;
    /// Its log, from its owner.
    async fn logs(
        &self,
        read: &Read,
        tenant: &Name,
        name: &Name,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine>>>;
    /// Runs a program in it. The stream carries [`super::frames`]: input and its end towards the machine; output,
    /// error output and at last the exit code from it. Dropping it ends the program.
    async fn exec(&self, read: &Read, tenant: &Name, name: &Name, query: ExecQuery) -> Result<Duplex>;
    /// Connects to a TCP port inside it.
    async fn connect(&self, read: &Read, tenant: &Name, name: &Name, port: u16) -> Result<Duplex>;

    /// Packs programs and files of this host with their libraries into an image.
    async fn image_from_host(
        &self,
        write: &Write,
        tenant: &Name,
        name: Name,
        paths: Vec<String>,
    ) -> Result<ImageRecord>;
    /// A tenant's images by name.
    async fn list_images(&self, read: &Read, tenant: &Name, query: &Query) -> Result<Page<ImageRecord>>;
    /// Deletes an image that no machine uses.
    async fn delete_image(&self, write: &Write, tenant: &Name, name: &Name) -> Result<()>;

    /// One operation of this node.
    async fn operation(&self, read: &Read, id: OperationId) -> Result<OperationView>;
    /// Operations of this node, those under way and the last ones.
    async fn list_operations(&self, read: &Read, query: &Query) -> Result<Page<OperationView>>;
    /// Asks an operation to stop; refused (`conflict`) where it cannot any more.
    async fn cancel_operation(&self, write: &Write, id: OperationId) -> Result<OperationView>;

    /// Events after `since` (all that are kept, without it), then new ones as they come when `follow`.
    /// `expired-cursor` when those after `since` are no longer kept.
    async fn events(
        &self,
        read: &Read,
        since: Option<String>,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<EventView>>>;
}

impl MachineView {
    /// Id of the machine.
    pub fn id(&self) -> MachineId {
        self.record.id
    }
}
