//! What this node knows about the ledger: its part, who leads, how old its copy is, what the cluster can bear to lose.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

use fabric::ids::NodeId;
use fabric::model::{RaftRole, Role};
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;

use super::{Inner, Ledger};
use crate::feed::LedgerMember;
use crate::tuning::CUT_OFF;
use crate::types::Member;
use crate::voters;

/// A node's part in Raft.
pub type Part = RaftRole;

/// A snapshot of what this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerStatus {
    /// This node's part.
    pub part: Part,
    /// Who leads, as far as it is known here.
    pub leader: Option<NodeId>,
    /// The newest term seen.
    pub term: u64,
    /// Index of the last entry applied here.
    pub applied: u64,
    /// Index of the last entry known to be committed.
    pub committed: u64,
    /// The cluster's epoch (it grows when an operator rebuilds a lost quorum).
    pub epoch: u64,
    /// Who votes; both sets while they change.
    pub voters: Vec<NodeId>,
    /// The voters are being changed: until that is committed, both the old and the new ones are needed.
    pub changing: bool,
    /// Who follows without a vote.
    pub standbys: Vec<NodeId>,
    /// Voters that membership does not hold alive.
    pub unreachable: Vec<NodeId>,
    /// How many more voters may fail before writes stop; none when they have stopped already.
    pub tolerance: Option<u32>,
    /// The same for people: `losing n1 stops writes: add a third node`.
    pub tolerance_words: String,
    /// How old this node's copy may be: time since a leader was last heard. None when it never was.
    pub staleness: Option<Duration>,
    /// Why this node's ledger stopped, if it did.
    pub halted: Option<String>,
}

impl Ledger {
    /// How old this node's copy may be, see [`LedgerStatus::staleness`].
    pub fn staleness(&self) -> Option<Duration> {
        self.inner.staleness()
    }

    /// What this node knows now.
    pub fn status(&self) -> LedgerStatus {
        self.inner.status()
    }

    /// Waits until the ledger of this node has stopped by itself, and says why.
    pub async fn halted(&self) -> String {
        let mut halt = self.inner.shared.halt.subscribe();
        let reason = halt.wait_for(Option::is_some).await.map(|reason| reason.clone());
        // The sender lives as long as `self`.
        reason.ok().flatten().unwrap_or_default()
    }
}

/// How many more of the alive voters may fail, given the sets that each need a majority; none when one set has none.
fn tolerance(configs: &[BTreeSet<Member>], alive: &BTreeSet<NodeId>) -> Option<u32> {
    let spare = |set: &BTreeSet<Member>| {
        let up = set.iter().filter(|member| alive.contains(&member.0)).count();
        up.checked_sub(set.len() / 2 + 1)
    };
    let spares: Option<Vec<usize>> = configs.iter().map(spare).collect();
    spares?.into_iter().min().map(|least| least as u32)
}

impl Inner {
    pub(super) fn status(&self) -> LedgerStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let (applied, epoch) = {
            let machine = self.shared.read();
            (machine.applied_index(), machine.state.settings.epoch)
        };
        let membership = metrics.membership_config.membership();
        let mut alive = self.surroundings.alive();
        alive.insert(self.me);
        // Copied out: a guard inside the expression below would live until its end.
        let heard = *self.heard();
        let part = self.part();
        if part == Part::Spare {
            return self.spare_status(&alive, metrics.current_term);
        }
        LedgerStatus {
            part,
            leader: metrics.current_leader.map(|leader| leader.0).or(heard.hint),
            term: metrics.current_term,
            applied,
            committed: metrics.cluster_committed.or(metrics.local_committed).map_or(0, |id| id.index).max(applied),
            epoch,
            voters: membership.voter_ids().map(|member| member.0).collect(),
            changing: membership.get_joint_config().len() > 1
                || metrics.membership_config.log_id() != metrics.committed_membership_config.log_id(),
            standbys: membership.learner_ids().map(|member| member.0).collect(),
            unreachable: self.unreachable_voters(),
            tolerance: tolerance(membership.get_joint_config(), &alive),
            tolerance_words: {
                let voters: Vec<NodeId> = membership.voter_ids().map(|member| member.0).collect();
                self.tolerance_words(&voters, &alive)
            },
            staleness: self.staleness(),
            halted: self.halted(),
        }
    }

    pub(super) fn staleness(&self) -> Option<Duration> {
        // Copied out: a guard would live until the end of the expression.
        let heard = *self.heard();
        if self.leads() {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let alone = metrics.membership_config.voter_ids().count() == 1;
            return if alone { Some(Duration::ZERO) } else { metrics.last_quorum_acked.map(|at| at.elapsed()) };
        }
        let fed = if self.part() == Part::Spare { heard.feed } else { None };
        fed.max(heard.at).map(|at| at.elapsed())
    }

    fn tolerance_words(&self, voters: &[NodeId], alive: &BTreeSet<NodeId>) -> String {
        let replica = self.replica().clone();
        let machine = self.shared.read();
        let state = match &replica {
            Some(copy) if copy.at > machine.at() => &*copy.state,
            _ => &machine.state,
        };
        let name = |node: &NodeId| state.nodes.get(node).map_or_else(|| node.short(), |record| record.name.to_string());
        let mut named: Vec<(String, bool)> = voters.iter().map(|node| (name(node), alive.contains(node))).collect();
        named.sort();
        let able = state.nodes.values().filter(|record| record.role == Role::Voter).count();
        voters::tolerance(&named, able.max(voters.len())).words
    }

    /// What a spare was told.
    fn spare_status(&self, alive: &BTreeSet<NodeId>, term: u64) -> LedgerStatus {
        let view = self.view.borrow().clone();
        let own = self.shared.read().at();
        let heard = *self.heard();
        let (voters, standbys): (Vec<NodeId>, Vec<NodeId>) = if view.at > own {
            let (voters, standbys): (Vec<_>, Vec<_>) = view.members.iter().partition(|member| member.voter);
            let ids = |members: Vec<&LedgerMember>| members.into_iter().map(|member| member.node).collect();
            (ids(voters), ids(standbys))
        } else {
            let members = self.server_metrics().membership_config;
            let ids = |members: &mut dyn Iterator<Item = Member>| members.map(|member| member.0).collect();
            (ids(&mut members.voter_ids()), ids(&mut members.membership().learner_ids()))
        };
        let set = voters.iter().copied().map(Member).collect();
        let (epoch, applied) = own.max(view.at);
        LedgerStatus {
            part: Part::Spare,
            leader: heard.hint,
            term,
            applied,
            committed: applied,
            epoch,
            unreachable: voters.iter().copied().filter(|node| !alive.contains(node)).collect(),
            tolerance: tolerance(&[set], alive),
            tolerance_words: self.tolerance_words(&voters, alive),
            voters,
            changing: false,
            standbys,
            staleness: self.staleness(),
            halted: self.halted(),
        }
    }

    /// This node's part: what the members' list says, unless it has been cut off from the leader for so long that it may
    /// have been removed without hearing of it.
    pub(super) fn part(&self) -> Part {
        let metrics = self.server_metrics();
        if self.leads() {
            return Part::Leader;
        }
        let heard = self.heard().at.is_some_and(|at| at.elapsed() < CUT_OFF);
        let membership = metrics.membership_config.membership();
        if self.halted().is_some() || !heard || membership.get_node(&Member(self.me)).is_none() {
            Part::Spare
        } else if membership.voter_ids().any(|member| member.0 == self.me) {
            Part::Voter
        } else {
            Part::Standby
        }
    }

    pub(super) fn unreachable_voters(&self) -> Vec<NodeId> {
        let alive = self.surroundings.alive();
        let voters = self.server_metrics().membership_config.voter_ids().collect::<Vec<_>>();
        voters.into_iter().map(|member| member.0).filter(|node| *node != self.me && !alive.contains(node)).collect()
    }
}

/// Keeps openraft's reason when it stops, and stops it when the store did.
pub(super) async fn watch_halt(inner: Weak<Inner>) {
    let (mut metrics, mut halted) = match inner.upgrade() {
        Some(ledger) => (ledger.raft.server_metrics(), ledger.shared.halt.subscribe()),
        None => return,
    };
    let stopped = async { while metrics.changed().await.is_ok() {} };
    let halting = async { drop(halted.wait_for(Option::is_some).await) };
    tokio::select! { biased;
        () = halting => {}
        () = stopped => {}
    }
    let Some(ledger) = inner.upgrade() else { return };
    let fatal = ledger.raft.metrics().borrow_watched().running_state.clone().err();
    if let Some(error) = fatal {
        ledger.shared.halt.because(error);
    }
    // Once the store has failed, this voter must not answer for it any more.
    let _ = ledger.raft.shutdown().await;
}
