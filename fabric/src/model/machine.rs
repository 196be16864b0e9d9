//! Machines: desired state (spec), ownership (placement), and what their node observes (status).

use std::net::IpAddr;

use rkyv::{Archive, Deserialize, Serialize};

use super::{Labels, Name};
use crate::ids::{Digest, MachineId, MoveId, NodeId};
use crate::records;

/// What a machine is guaranteed and how far it may burst.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ResourcesV1 {
    /// Guaranteed thousandths of a core.
    pub cpu_millis: u32,
    /// Guaranteed bytes of memory.
    pub memory_bytes: u64,
    /// Cap in thousandths of a core; none means the node's capacity.
    pub burst_cpu_millis: Option<u32>,
    /// Cap in bytes; none means the node's capacity.
    pub burst_memory_bytes: Option<u64>,
    /// Most processes and threads.
    pub pids_max: u32,
}
/// Current version of resources.
pub type Resources = ResourcesV1;

impl Default for ResourcesV1 {
    fn default() -> Self {
        ResourcesV1 {
            cpu_millis: 100,
            memory_bytes: 64 << 20,
            burst_cpu_millis: None,
            burst_memory_bytes: None,
            pids_max: 1024,
        }
    }
}

/// A port of the owner's host that leads to a port of the machine.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishV1 {
    /// Address of the host; none means all.
    pub ip: Option<IpAddr>,
    /// TCP port of the host.
    pub host_port: u16,
    /// TCP port of the machine.
    pub machine_port: u16,
}
/// Current version of a published port.
pub type Publish = PublishV1;

/// When a machine that ended is started again.
#[derive(
    Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Whatever it ended with.
    #[default]
    Always,
    /// Only when it failed.
    OnFailure,
    /// Never.
    Never,
}

/// What the tenant asks for.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct MachineSpecV1 {
    /// Name of an image of the tenant.
    pub image: Name,
    /// Program and arguments; empty means the image's own.
    pub command: Vec<String>,
    /// Environment, `(name, value)`.
    pub env: Vec<(String, String)>,
    /// Guarantees and caps.
    pub resources: Resources,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// Tenant's labels.
    pub labels: Labels,
    /// Never runs twice, even in a partition: bound to its node's lease.
    pub exclusive: bool,
    /// Restart policy.
    pub restart: Restart,
    /// Run on this node only.
    pub pinned: Option<NodeId>,
}
/// Current version of a machine's spec.
pub type MachineSpec = MachineSpecV1;

/// The state that the tenant wants.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// Up.
    Running,
    /// Down, disk kept.
    Stopped,
    /// Gone: the record leaves the ledger once the owner has destroyed it.
    Deleted,
}

/// Who had a machine before; kept until the new owner reports it running.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreviousV1 {
    /// The former owner.
    pub node: NodeId,
    /// The epoch it owned.
    pub epoch: u64,
}

/// A move that has been announced and not yet decided.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveV1 {
    /// The move.
    pub id: MoveId,
    /// Its destination.
    pub to: NodeId,
    /// When it was announced, Unix milliseconds.
    pub since_ms: u64,
}

/// Which node owns a machine.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementV1 {
    /// The owner.
    pub node: NodeId,
    /// Grows at every change of owner.
    pub epoch: u64,
    /// When it began, Unix milliseconds.
    pub since_ms: u64,
    /// The owner has said that the machine runs in this epoch.
    pub confirmed: bool,
    /// The machine's disk did not come along (its former owner died): the new owner starts from the image.
    pub fresh: bool,
    /// The owner before, until `confirmed`.
    pub previous: Option<PreviousV1>,
    /// A move under way.
    pub moving: Option<MoveV1>,
}
/// Current version of a placement.
pub type Placement = PlacementV1;

/// A machine as the ledger knows it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct MachineRecordV1 {
    /// Its id.
    pub id: MachineId,
    /// Its tenant.
    pub tenant: Name,
    /// Unique within the tenant.
    pub name: Name,
    /// What was asked for.
    pub spec: MachineSpec,
    /// Digest of the image, resolved when it was created.
    pub image: Digest,
    /// What state it should be in.
    pub desired: Desired,
    /// Grows at every requested restart.
    pub restarts: u64,
    /// The last epoch given out, so that epochs never repeat.
    pub epoch: u64,
    /// The owner; none while it waits for a place.
    pub placement: Option<Placement>,
    /// Placements that failed in a row, for back-off.
    pub failures: u32,
    /// Neither placed nor tried again before this time, Unix milliseconds.
    pub not_before_ms: u64,
    /// Why it has no place or did not start, in the user's words.
    pub waiting: Option<String>,
    /// What its program ended with by itself, for good: exit code, or 128 + signal. It is wanted stopped since then. What was
    /// killed, with its supervisor or by its lease, has not ended.
    pub ended: Option<i32>,
    /// When it was created, Unix milliseconds.
    pub created_ms: u64,
    /// Ledger index of the last change.
    pub revision: u64,
}
/// Current version of a machine record.
pub type MachineRecord = MachineRecordV1;

/// What the owning node observes.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// No owner yet.
    Pending,
    /// The image is fetched or the disk prepared.
    Preparing,
    /// Its process runs.
    Running,
    /// Paused by the fabric: a lease ran out, or it moves.
    Frozen,
    /// Ended, and to be started again after a back-off.
    Restarting,
    /// Not running, as desired.
    Stopped,
    /// Ended for good by its restart policy.
    Exited,
    /// Cannot run; the reason says why.
    Failed,
}

/// A machine's status as its owner tells it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct MachineStatusV1 {
    /// The machine.
    pub id: MachineId,
    /// The epoch this speaks of.
    pub epoch: u64,
    /// What it is doing.
    pub state: MachineState,
    /// Process id on the owner's host.
    pub pid: Option<u32>,
    /// Since when it runs, Unix milliseconds.
    pub started_ms: Option<u64>,
    /// How often it was started again by the restart policy.
    pub restarts: u32,
    /// The requested restarts that its last run had seen.
    pub requested_restarts: u64,
    /// What it last ended with: exit code, or 128 + signal.
    pub exit_code: Option<i32>,
    /// Why, in the user's words.
    pub reason: Option<String>,
    /// CPU time used, microseconds.
    pub cpu_micros: u64,
    /// Memory in use, bytes.
    pub memory_bytes: u64,
    /// `guaranteed` or `best-effort` (cgroup v1 has no memory floor).
    pub memory_floor: String,
}
/// Current version of a machine's status.
pub type MachineStatus = MachineStatusV1;

/// An image that a tenant may name.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ImageRecordV1 {
    /// Its tenant.
    pub tenant: Name,
    /// Unique within the tenant.
    pub name: Name,
    /// blake3 of its manifest.
    pub digest: Digest,
    /// Bytes of all its chunks.
    pub size_bytes: u64,
    /// When it was made, Unix milliseconds.
    pub created_ms: u64,
    /// Ledger index of the last change.
    pub revision: u64,
}
/// Current version of an image record.
pub type ImageRecord = ImageRecordV1;

/// What a tenant may guarantee to its machines in all; `None` means no limit.
#[derive(
    Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct QuotaV1 {
    /// Thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Machines.
    pub machines: Option<u32>,
}
/// Current version of a quota.
pub type Quota = QuotaV1;

/// An owner of machines and images.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TenantRecordV1 {
    /// Its name, unique in the cluster.
    pub name: Name,
    /// The tenant above it; tenants form a tree.
    pub parent: Option<Name>,
    /// Its limits.
    pub quota: Quota,
    /// When it was made, Unix milliseconds.
    pub created_ms: u64,
    /// Ledger index of the last change.
    pub revision: u64,
}
/// Current version of a tenant record.
pub type TenantRecord = TenantRecordV1;

records!(MachineRecordV1 = (20, 1), MachineStatusV1 = (21, 1), ImageRecordV1 = (22, 1), TenantRecordV1 = (23, 1));
