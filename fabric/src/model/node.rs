//! Nodes as the ledger and gossip know them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rkyv::{Archive, Deserialize, Serialize};

use super::Name;
use crate::ids::{Digest, NodeId};
use crate::records;

/// Sorted labels of a node or machine.
pub type Labels = BTreeMap<String, String>;

/// What a token admits a node as (design section 4).
#[derive(
    Archive,
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May vote, stand by and hold the CA key; its root socket has operator rights.
    Voter,
    /// Runs machines and never votes; its root socket speaks for that node alone.
    Worker,
}

/// What a node offers to machines, after the host reserve.
#[derive(
    Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize,
)]
pub struct CapacityV1 {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub disk_bytes: u64,
}
/// Current version of a capacity.
pub type Capacity = CapacityV1;

/// A node admitted to the cluster.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct NodeRecordV1 {
    /// blake3 of `public_key`.
    pub id: NodeId,
    /// Unique in the cluster.
    pub name: Name,
    /// Raw Ed25519 public key.
    pub public_key: [u8; 32],
    /// What it was admitted as.
    pub role: Role,
    /// Failure domain; empty when the operator named none.
    pub zone: String,
    /// Operator's labels.
    pub labels: Labels,
    /// What it declared.
    pub capacity: Capacity,
    /// `ip:port` at which it was last known to listen.
    pub address: String,
    /// No new machines.
    pub cordoned: bool,
    /// Machines are being moved away.
    pub draining: bool,
    /// Planned absence until this time, Unix milliseconds: extends leases, holds takeovers back.
    pub absent_until_ms: Option<u64>,
    /// When it was admitted, Unix milliseconds.
    pub admitted_ms: u64,
    /// Ledger index of the last change.
    pub revision: u64,
}
/// Current version of a node record.
pub type NodeRecord = NodeRecordV1;

/// A removed node. Signed by the cluster CA, so that it holds in a partition too.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TombstoneV1 {
    /// The removed node.
    pub node: NodeId,
    /// When, Unix milliseconds.
    pub removed_ms: u64,
    /// blake3 of the CA certificate (DER) whose key signed.
    pub ca: Digest,
    /// Ed25519 over `"smartnode tombstone v1" || node || removed_ms (u64 little endian)`.
    pub signature: Vec<u8>,
}
/// Current version of a tombstone.
pub type Tombstone = TombstoneV1;

/// What a node says about its part in Raft: a routing hint, never an authority.
#[derive(
    Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum RaftRole {
    /// Leads.
    Leader,
    /// Votes.
    Voter,
    /// Follows as a learner.
    Standby,
    /// Outside Raft.
    #[default]
    Spare,
}

/// What a node gossips about itself (at most `GOSSIP_STATE_BYTES_MAX` framed and signed).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct NodeStateV1 {
    /// The node that says so.
    pub node: NodeId,
    /// Grows with every statement of this node, across restarts: older ones are refused.
    pub sequence: u64,
    /// Where it listens.
    pub address: SocketAddr,
    /// Version of its program.
    pub version: String,
    /// What it offers in all.
    pub capacity: Capacity,
    /// What no machine has been guaranteed.
    pub free: Capacity,
    /// Memory that is really available now, in bytes.
    pub memory_available_bytes: u64,
    /// Load: runnable tasks, in thousandths per core.
    pub load_millis: u32,
    /// Machines by state: running, frozen, stopped, failed.
    pub machines: [u32; 4],
    /// Digests of images it holds (the most recent ones).
    pub images: Vec<Digest>,
    /// Its part in Raft.
    pub raft: RaftRole,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// (cluster epoch, index) that it has applied.
    pub applied: (u64, u64),
    /// Digest of the tombstones it holds: a peer with another one fetches the set.
    pub tombstones: Digest,
}
/// Current version of a node's gossiped state.
pub type NodeState = NodeStateV1;

records!(NodeRecordV1 = (10, 1), TombstoneV1 = (11, 1), NodeStateV1 = (12, 1));
