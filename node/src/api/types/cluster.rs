//! The cluster as a whole: status, version, operations.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, RaftRole, Role};
use crate::api::backend::{self, OperationView, StatusView};
use crate::api::failure::Failure;

/// Which program this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Its version.
    pub version: String,
    /// Version of this API.
    pub api: String,
    /// Newest wire protocol that it speaks.
    pub protocol: u16,
}

impl Version {
    /// Of this program.
    pub fn of_this_program() -> Self {
        Version { version: env!("CARGO_PKG_VERSION").into(), api: "v1".into(), protocol: fabric::wire::PROTOCOL }
    }
}

/// A voter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Voter {
    /// Its name.
    pub name: String,
    /// Membership believes it alive.
    pub alive: bool,
}

/// How many of something, by liveness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeCounts {
    /// They answer.
    pub alive: u32,
    /// They have not answered for a while.
    pub suspect: u32,
    /// They are taken for dead, or have not been seen.
    pub down: u32,
}

/// How many machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineCounts {
    /// In the ledger.
    pub total: u32,
    /// Without an owner.
    pub waiting: u32,
}

/// The node that was asked, and the cluster as it sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// What the loss of nodes would do, and what to do about it.
    pub summary: String,
    /// Live voters that may be lost before writes stop.
    pub tolerance: u32,
    /// Writes are possible now, as far as this node knows.
    pub writable: bool,
    /// The cluster.
    pub cluster: String,
    /// Id of the node that was asked.
    pub node_id: String,
    /// Its name.
    pub node: String,
    /// Version of its program.
    pub version: String,
    /// Where peers reach it.
    pub address: String,
    /// What it was admitted as.
    pub role: Role,
    /// Its part in Raft.
    pub raft: RaftRole,
    /// Name of the leader it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Raft's term.
    pub term: u64,
    /// Index of the ledger that it has applied.
    pub applied: u64,
    /// Cluster epoch.
    pub epoch: u64,
    /// The voters.
    pub voters: Vec<Voter>,
    /// The standbys.
    pub standbys: Vec<String>,
    /// Admitted nodes.
    pub nodes: NodeCounts,
    /// Machines.
    pub machines: MachineCounts,
    /// Why no machine can run on this node, with what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_machines: Option<String>,
    /// Feature level of the cluster.
    pub feature_level: u32,
    /// When this daemon started.
    pub started_ms: u64,
    /// How old the answer may be.
    pub staleness_ms: u64,
    /// Always empty: nothing was asked of others.
    pub unreachable: Vec<String>,
}

/// What a loss of voters would do, in one sentence: the ledger's, unless nobody leads although a majority lives.
fn summary(words: String, writable: bool, voters: &[Voter]) -> String {
    let alive = voters.iter().filter(|voter| voter.alive).count();
    if writable || alive < voters.len() / 2 + 1 { words } else { "no leader: writes wait for an election".into() }
}

impl From<StatusView> for Status {
    fn from(view: StatusView) -> Self {
        let writable = view.leader.is_some();
        let voters: Vec<Voter> =
            view.voters.iter().map(|voter| Voter { name: voter.name.to_string(), alive: voter.alive }).collect();
        Status {
            // A spare may not have been told yet who leads; that is no reason for alarm.
            summary: summary(view.tolerance_words, writable || view.raft == fabric::model::RaftRole::Spare, &voters),
            tolerance: view.tolerance,
            writable,
            cluster: view.cluster.to_string(),
            node_id: view.node.to_string(),
            node: view.name.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            address: view.address,
            role: view.role.into(),
            raft: view.raft.into(),
            leader: view.leader.map(|name| name.to_string()),
            term: view.term,
            applied: view.applied,
            epoch: view.epoch,
            voters,
            standbys: view.standbys.iter().map(ToString::to_string).collect(),
            nodes: NodeCounts { alive: view.nodes[0], suspect: view.nodes[1], down: view.nodes[2] },
            machines: MachineCounts { total: view.machines[0], waiting: view.machines[1] },
            no_machines: view.no_machines,
            feature_level: view.feature_level,
            started_ms: view.started_ms,
            staleness_ms: view.staleness_ms,
            unreachable: vec![],
        }
    }
}

/// Where long work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its id.
    pub id: String,
    /// `move`, `drain`, `leave`.
    pub kind: String,
    /// Tenant of what it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Name of what it is about.
    pub subject: String,
    /// Where it is.
    pub state: OperationState,
    /// Its present phase.
    pub phase: String,
    /// 0 to 1000.
    pub progress_permille: u32,
    /// Predicted outage of a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_outage_ms: Option<u64>,
    /// When it began.
    pub created_ms: u64,
    /// When it last changed.
    pub updated_ms: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
}

impl From<OperationView> for Operation {
    fn from(view: OperationView) -> Self {
        Operation {
            id: view.id.to_string(),
            kind: view.kind,
            tenant: view.tenant.map(|tenant| tenant.to_string()),
            subject: view.subject,
            state: match view.state {
                backend::OperationState::Running => OperationState::Running,
                backend::OperationState::Done => OperationState::Done,
                backend::OperationState::Failed => OperationState::Failed,
                backend::OperationState::Cancelled => OperationState::Cancelled,
            },
            phase: view.phase,
            progress_permille: view.progress_permille,
            predicted_outage_ms: view.predicted_outage_ms,
            created_ms: view.created_ms,
            updated_ms: view.updated_ms,
            error: view.error.map(|refusal| Problem::from(&Failure::from(refusal))),
        }
    }
}

/// The daemon is to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopNode {
    /// Announced absence: leases are extended and takeovers held back for this long.
    #[serde(default = "absence_ms")]
    pub absence_ms: u64,
}

fn absence_ms() -> u64 {
    fabric::limits::ABSENCE.as_millis() as u64
}

impl Default for StopNode {
    fn default() -> Self {
        StopNode { absence_ms: absence_ms() }
    }
}

/// This node is to leave the cluster for good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaveCluster {
    /// Delete its data, too.
    #[serde(default)]
    pub purge: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(alive: &[bool]) -> Vec<Voter> {
        alive.iter().zip(1..).map(|(alive, n)| Voter { name: format!("n{n}"), alive: *alive }).collect()
    }

    #[test]
    fn the_first_sentence_of_status_says_what_a_loss_would_do() {
        let words = || "any one of n1, n2 and n3 may fail".to_owned();
        assert_eq!(summary(words(), true, &voters(&[true; 3])), words());
        assert_eq!(summary(words(), false, &voters(&[true; 3])), "no leader: writes wait for an election");
        let stopped = || "writes have stopped".to_owned();
        assert_eq!(summary(stopped(), false, &voters(&[true, false, false])), stopped());
    }
}
