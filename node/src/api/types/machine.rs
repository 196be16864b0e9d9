//! Machines and images.

use std::collections::BTreeMap;

use fabric::model::{self, check};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::parse_name;
use crate::api::backend::{MachineView, NewMachine};
use crate::api::failure::Failure;
use crate::limits::IMAGE_PATHS_MAX;

/// When a machine that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// A port of the owner's host that leads to a port of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Address of the host; none means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// TCP port of the host.
    pub host_port: u16,
    /// TCP port of the machine.
    pub machine_port: u16,
}

/// The state that the tenant wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// Up.
    #[default]
    Running,
    /// Down, disk kept.
    Stopped,
    /// Gone.
    Deleted,
}

/// What the owner observes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
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
    /// Its owner does not answer.
    Unknown,
}

/// What is asked of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Name of an image of the tenant.
    pub image: String,
    /// Program and arguments; empty means the image's own.
    #[serde(default)]
    pub command: Vec<String>,
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Guaranteed thousandths of a core.
    #[serde(default = "cpu_millis")]
    pub cpu_millis: u32,
    /// Guaranteed bytes of memory.
    #[serde(default = "memory_bytes")]
    pub memory_bytes: u64,
    /// Cap in thousandths of a core; none means the node's capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_cpu_millis: Option<u32>,
    /// Cap in bytes; none means the node's capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_memory_bytes: Option<u64>,
    /// Most processes and threads.
    #[serde(default = "pids_max")]
    pub pids_max: u32,
    /// Published ports.
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Never runs twice, even in a partition: bound to its node's lease.
    #[serde(default)]
    pub exclusive: bool,
    /// Restart policy.
    #[serde(default)]
    pub restart: Restart,
    /// Run on this node only: its name, or its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

fn cpu_millis() -> u32 {
    model::Resources::default().cpu_millis
}
fn memory_bytes() -> u64 {
    model::Resources::default().memory_bytes
}
fn pids_max() -> u32 {
    model::Resources::default().pids_max
}

impl MachineSpec {
    /// The defaults with an image.
    pub fn with_image(image: impl Into<String>) -> Self {
        MachineSpec {
            image: image.into(),
            command: vec![],
            env: BTreeMap::new(),
            cpu_millis: cpu_millis(),
            memory_bytes: memory_bytes(),
            burst_cpu_millis: None,
            burst_memory_bytes: None,
            pids_max: pids_max(),
            publish: vec![],
            labels: BTreeMap::new(),
            exclusive: false,
            restart: Restart::default(),
            node: None,
        }
    }
}

/// A machine to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateMachine {
    /// Its name: 1 to 63 of a-z, 0-9 and -, unique within the tenant.
    pub name: String,
    /// What is asked of it.
    pub spec: MachineSpec,
    /// State to begin with.
    #[serde(default)]
    pub desired: Desired,
}

impl CreateMachine {
    /// The domain's form with its limits checked; `spec.node` has been resolved to `pinned`.
    ///
    /// # Errors
    /// `invalid`, with the field.
    pub fn into_domain(self, pinned: Option<fabric::ids::NodeId>) -> Result<NewMachine, Failure> {
        let spec = self.spec;
        let publish = spec.publish.into_iter().map(TryInto::try_into).collect::<Result<_, Failure>>()?;
        let spec = model::MachineSpec {
            image: parse_name("image", &spec.image)?,
            command: spec.command,
            env: spec.env.into_iter().collect(),
            resources: model::Resources {
                cpu_millis: spec.cpu_millis,
                memory_bytes: spec.memory_bytes,
                burst_cpu_millis: spec.burst_cpu_millis,
                burst_memory_bytes: spec.burst_memory_bytes,
                pids_max: spec.pids_max,
            },
            publish,
            labels: spec.labels,
            exclusive: spec.exclusive,
            restart: spec.restart.into(),
            pinned,
        };
        check::spec(&spec)?;
        let desired = match self.desired {
            Desired::Running => model::Desired::Running,
            Desired::Stopped => model::Desired::Stopped,
            Desired::Deleted => return Err(Failure::invalid("desired", "deleted", "running or stopped")),
        };
        Ok(NewMachine { name: parse_name("name", &self.name)?, spec, desired })
    }
}

/// Changes to a machine; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateMachine {
    /// Replaces all labels.
    pub labels: BTreeMap<String, String>,
}

/// A move to be begun.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveMachine {
    /// Name or id of the destination; absent means the best node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Which node owns a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    /// Name of the owner; its id while the name is unknown here.
    pub node: String,
    /// Id of the owner.
    pub node_id: String,
    /// Grows at every change of owner.
    pub epoch: u64,
    /// When it began.
    pub since_ms: u64,
    /// The owner has said that the machine runs in this epoch.
    pub confirmed: bool,
    /// It began from the image: the disk was its dead owner's.
    pub fresh: bool,
    /// Name or id of the destination of a move under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<String>,
}

/// What the owner observes of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineStatus {
    /// What it is doing.
    pub state: MachineState,
    /// Process id on the owner's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Since when it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// How often its restart policy started it again.
    pub restarts: u32,
    /// What it last ended with: exit code, or 128 + signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why it is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// CPU time used, microseconds.
    pub cpu_micros: u64,
    /// Memory in use.
    pub memory_bytes: u64,
    /// `guaranteed`, or `best-effort` where the host has no memory floor.
    pub memory_floor: String,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// Its id.
    pub id: String,
    /// Its tenant.
    pub tenant: String,
    /// Its name.
    pub name: String,
    /// What was asked for.
    pub spec: MachineSpec,
    /// Digest of its image.
    pub image_digest: String,
    /// What state it should be in.
    pub desired: Desired,
    /// Its owner; absent while it waits for a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// What the owner observes.
    pub status: MachineStatus,
    /// Why it has no place or did not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// When it was made.
    pub created_ms: u64,
    /// Its revision, as in the ETag.
    pub revision: u64,
}

impl TryFrom<Publish> for model::Publish {
    type Error = Failure;
    fn try_from(port: Publish) -> Result<Self, Failure> {
        let ip = port.ip.map(|ip| ip.parse().map_err(|_| Failure::invalid("publish.ip", &ip, "an IP address")));
        Ok(model::Publish { ip: ip.transpose()?, host_port: port.host_port, machine_port: port.machine_port })
    }
}

impl From<model::Publish> for Publish {
    fn from(port: model::Publish) -> Self {
        Publish { ip: port.ip.map(|ip| ip.to_string()), host_port: port.host_port, machine_port: port.machine_port }
    }
}

impl From<Restart> for model::Restart {
    fn from(restart: Restart) -> Self {
        match restart {
            Restart::Always => model::Restart::Always,
            Restart::OnFailure => model::Restart::OnFailure,
            Restart::Never => model::Restart::Never,
        }
    }
}

impl From<model::Restart> for Restart {
    fn from(restart: model::Restart) -> Self {
        match restart {
            model::Restart::Always => Restart::Always,
            model::Restart::OnFailure => Restart::OnFailure,
            model::Restart::Never => Restart::Never,
        }
    }
}

impl From<model::Desired> for Desired {
    fn from(desired: model::Desired) -> Self {
        match desired {
            model::Desired::Running => Desired::Running,
            model::Desired::Stopped => Desired::Stopped,
            model::Desired::Deleted => Desired::Deleted,
        }
    }
}

impl From<model::MachineState> for MachineState {
    fn from(state: model::MachineState) -> Self {
        match state {
            model::MachineState::Pending => MachineState::Pending,
            model::MachineState::Preparing => MachineState::Preparing,
            model::MachineState::Running => MachineState::Running,
            model::MachineState::Frozen => MachineState::Frozen,
            model::MachineState::Restarting => MachineState::Restarting,
            model::MachineState::Stopped => MachineState::Stopped,
            model::MachineState::Exited => MachineState::Exited,
            model::MachineState::Failed => MachineState::Failed,
        }
    }
}

fn spec_of(spec: model::MachineSpec, pinned: Option<String>) -> MachineSpec {
    MachineSpec {
        image: spec.image.to_string(),
        command: spec.command,
        env: spec.env.into_iter().collect(),
        cpu_millis: spec.resources.cpu_millis,
        memory_bytes: spec.resources.memory_bytes,
        burst_cpu_millis: spec.resources.burst_cpu_millis,
        burst_memory_bytes: spec.resources.burst_memory_bytes,
        pids_max: spec.resources.pids_max,
        publish: spec.publish.into_iter().map(Into::into).collect(),
        labels: spec.labels,
        exclusive: spec.exclusive,
        restart: spec.restart.into(),
        node: spec.pinned.map(|id| pinned.unwrap_or_else(|| id.to_string())),
    }
}

fn status_of(status: Option<model::MachineStatus>, placed: bool) -> MachineStatus {
    match status {
        Some(status) => MachineStatus {
            state: status.state.into(),
            pid: status.pid,
            started_ms: status.started_ms,
            restarts: status.restarts,
            exit_code: status.exit_code,
            reason: status.reason,
            cpu_micros: status.cpu_micros,
            memory_bytes: status.memory_bytes,
            memory_floor: status.memory_floor,
        },
        None => MachineStatus {
            state: if placed { MachineState::Unknown } else { MachineState::Pending },
            pid: None,
            started_ms: None,
            restarts: 0,
            exit_code: None,
            reason: None,
            cpu_micros: 0,
            memory_bytes: 0,
            memory_floor: String::new(),
        },
    }
}

impl From<MachineView> for Machine {
    fn from(view: MachineView) -> Self {
        let record = view.record;
        let moving_to = view.moving_to.map(|name| name.to_string());
        let owner = view.node.map(|name| name.to_string());
        let placed = record.placement.is_some();
        let placement = record.placement.map(|placement| Placement {
            node: owner.unwrap_or_else(|| placement.node.to_string()),
            node_id: placement.node.to_string(),
            epoch: placement.epoch,
            since_ms: placement.since_ms,
            confirmed: placement.confirmed,
            fresh: placement.fresh,
            moving_to: placement.moving.map(|moving| moving_to.unwrap_or_else(|| moving.to.to_string())),
        });
        Machine {
            id: record.id.to_string(),
            tenant: record.tenant.to_string(),
            name: record.name.to_string(),
            spec: spec_of(record.spec, view.pinned.map(|name| name.to_string())),
            image_digest: record.image.to_string(),
            desired: record.desired.into(),
            placement,
            status: status_of(view.status, placed),
            waiting: record.waiting,
            created_ms: record.created_ms,
            revision: record.revision,
        }
    }
}

/// An image to be packed from files of the node's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateImage {
    /// Its name, unique within the tenant.
    pub name: String,
    /// Absolute paths on the host of the node that is asked; shared libraries come along.
    pub from_host: Vec<String>,
}

impl CreateImage {
    /// Checks the limits.
    ///
    /// # Errors
    /// `invalid`, with the field.
    pub fn check(self) -> Result<(model::Name, Vec<String>), Failure> {
        let name = parse_name("name", &self.name)?;
        if self.from_host.is_empty() || self.from_host.len() > IMAGE_PATHS_MAX {
            let rule = format!("1 to {IMAGE_PATHS_MAX} paths");
            return Err(Failure::invalid("from_host", self.from_host.len(), rule));
        }
        match self.from_host.iter().find(|path| !path.starts_with('/') || path.contains('\0')) {
            Some(path) => Err(Failure::invalid("from_host", path, "an absolute path")),
            None => Ok((name, self.from_host)),
        }
    }
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its tenant.
    pub tenant: String,
    /// Its name.
    pub name: String,
    /// blake3 of its manifest.
    pub digest: String,
    /// Bytes of all its chunks.
    pub size_bytes: u64,
    /// When it was made.
    pub created_ms: u64,
    /// Its revision, as in the ETag.
    pub revision: u64,
}

impl From<model::ImageRecord> for Image {
    fn from(record: model::ImageRecord) -> Self {
        Image {
            tenant: record.tenant.to_string(),
            name: record.name.to_string(),
            digest: record.digest.to_string(),
            size_bytes: record.size_bytes,
            created_ms: record.created_ms,
            revision: record.revision,
        }
    }
}
