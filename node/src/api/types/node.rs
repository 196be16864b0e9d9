//! Nodes.

use std::collections::BTreeMap;

use fabric::model;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::backend::{self, NodeView};

/// What a node was admitted as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// May vote, stand by and hold the CA key.
    #[default]
    Voter,
    /// Runs machines and never votes.
    Worker,
}

/// Whether membership believes a node alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It has not answered for a while.
    Suspect,
    /// It is taken for dead.
    Down,
    /// Not seen since the node that was asked started.
    Unknown,
}

/// A node's part in Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RaftRole {
    /// Leads.
    Leader,
    /// Votes.
    Voter,
    /// Follows without a vote.
    Standby,
    /// Outside Raft.
    Spare,
}

/// Cores, memory and disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub disk_bytes: u64,
}

/// What a node last told of itself by gossip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeGossip {
    /// Version of its program.
    pub version: String,
    /// Memory that is really available.
    pub memory_available_bytes: u64,
    /// Runnable tasks, in thousandths per core.
    pub load_millis: u32,
    /// Machines by state: running, frozen, stopped, failed.
    pub machines_by_state: [u32; 4],
    /// Images that it has, at most 64 of them counted.
    pub images: u32,
    /// Its part in Raft.
    pub raft: RaftRole,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it was admitted as.
    pub role: Role,
    /// Failure domain; empty when the operator named none.
    pub zone: String,
    /// Operator's labels.
    pub labels: BTreeMap<String, String>,
    /// `ip:port` at which it was last known to listen.
    pub address: String,
    /// Whether it lives.
    pub liveness: Liveness,
    /// Since when.
    pub liveness_since_ms: u64,
    /// No new machines.
    pub cordoned: bool,
    /// Machines are being moved away.
    pub draining: bool,
    /// Planned absence until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent_until_ms: Option<u64>,
    /// What it offers.
    pub capacity: Capacity,
    /// What is not guaranteed to machines.
    pub free: Capacity,
    /// Machines placed there.
    pub machines: u32,
    /// What it last told of itself; absent when it has not been heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gossip: Option<NodeGossip>,
    /// When it was admitted.
    pub admitted_ms: u64,
    /// Its revision, as in the ETag.
    pub revision: u64,
}

impl From<Role> for model::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Voter => model::Role::Voter,
            Role::Worker => model::Role::Worker,
        }
    }
}

impl From<model::Role> for Role {
    fn from(role: model::Role) -> Self {
        match role {
            model::Role::Voter => Role::Voter,
            model::Role::Worker => Role::Worker,
        }
    }
}

impl From<model::RaftRole> for RaftRole {
    fn from(role: model::RaftRole) -> Self {
        match role {
            model::RaftRole::Leader => RaftRole::Leader,
            model::RaftRole::Voter => RaftRole::Voter,
            model::RaftRole::Standby => RaftRole::Standby,
            model::RaftRole::Spare => RaftRole::Spare,
        }
    }
}

impl From<backend::Liveness> for Liveness {
    fn from(liveness: backend::Liveness) -> Self {
        match liveness {
            backend::Liveness::Alive => Liveness::Alive,
            backend::Liveness::Suspect => Liveness::Suspect,
            backend::Liveness::Down => Liveness::Down,
            backend::Liveness::Unknown => Liveness::Unknown,
        }
    }
}

impl From<model::Capacity> for Capacity {
    fn from(capacity: model::Capacity) -> Self {
        Capacity {
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
            disk_bytes: capacity.disk_bytes,
        }
    }
}

impl From<NodeView> for Node {
    fn from(view: NodeView) -> Self {
        let record = view.record;
        Node {
            id: record.id.to_string(),
            name: record.name.to_string(),
            role: record.role.into(),
            zone: record.zone,
            labels: record.labels,
            address: record.address,
            liveness: view.liveness.into(),
            liveness_since_ms: view.liveness_since_ms,
            cordoned: record.cordoned,
            draining: record.draining,
            absent_until_ms: record.absent_until_ms,
            capacity: record.capacity.into(),
            free: view.free.into(),
            machines: view.machines,
            gossip: view.state.map(|state| NodeGossip {
                version: state.version,
                memory_available_bytes: state.memory_available_bytes,
                load_millis: state.load_millis,
                machines_by_state: state.machines,
                images: state.images.len() as u32,
                raft: state.raft.into(),
            }),
            admitted_ms: record.admitted_ms,
            revision: record.revision,
        }
    }
}
