//! Carries out what `voters::plan` names: on the leader only, one change at a time, and only while the effective
//! members' list is also the committed one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, Weak};

use fabric::ids::NodeId;
use fabric::rpc::Refusal;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, Instant as _, RaftMetrics};
use tokio::time::{Instant, sleep, timeout};

use super::Inner;
use crate::codes;
use crate::tuning::{CATCH_UP_ENTRIES, CHANGE_TIMEOUT, LEAVING, VOTERS_PERIOD};
use crate::types::{Member, TC};
use crate::voters::{self, Candidate, Change};

type Members = ChangeMembers<Member, String>;

/// Runs until the ledger goes.
pub(super) async fn drive(inner: Weak<Inner>) {
    let Some(mut metrics) = inner.upgrade().map(|ledger| ledger.raft.server_metrics()) else { return };
    loop {
        let Some(ledger) = inner.upgrade() else { return };
        if ledger.leads() {
            ledger.improve_members().await;
            drop(ledger);
            sleep(VOTERS_PERIOD).await;
        } else {
            drop(ledger);
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Inner {
    async fn improve_members(&self) {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let effective = &metrics.membership_config;
        if effective.log_id() != metrics.committed_membership_config.log_id() {
            return;
        }
        if effective.membership().get_joint_config().len() > 1 {
            // A change was cut off between its two steps, perhaps under another leader: finish it.
            return self.change("finishing a change of voters", ChangeMembers::AddVoterIds(BTreeSet::new())).await;
        }
        let membership = voters::Membership {
            leader: self.me,
            voters: effective.membership().voter_ids().map(|member| member.0).collect(),
            learners: effective.membership().learner_ids().map(|member| member.0).collect(),
        };
        let candidates = self.candidates(&metrics);
        let Some(change) = voters::plan(&membership, &candidates, &voters::Config::default()) else { return };
        tracing::info!(?change, "the ledger's members change");
        match change {
            Change::AddLearner(node) => {
                let address = self.shared.read().state.nodes.get(&node).map(|record| record.address.clone());
                let nodes = BTreeMap::from([(Member(node), address.unwrap_or_default())]);
                self.change("adding a standby", ChangeMembers::AddNodes(nodes)).await;
            }
            Change::RemoveLearner(node) => {
                self.change("removing a standby", ChangeMembers::RemoveNodes(BTreeSet::from([Member(node)]))).await;
            }
            Change::ReplaceVoters(set) => {
                let set = set.into_iter().map(Member).collect();
                self.change("replacing voters", ChangeMembers::ReplaceAllVoters(set)).await;
            }
            Change::TransferLeadership(node) => {
                if let Err(error) = self.raft.trigger().transfer_leader(Member(node)).await {
                    tracing::warn!(%error, "the leadership could not be handed over");
                }
            }
        }
    }

    /// As the leader, before the removal of a node is proposed: whoever votes is replaced first, since a voter that is cut
    /// off weakens the quorum, and several of them end it. From here on the node is passed over; who asks tries again.
    pub(super) fn gives_up_seat(&self, node: NodeId) -> Result<(), Refusal> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let effective = &metrics.membership_config;
        let settled = effective.log_id() == metrics.committed_membership_config.log_id();
        if settled && !effective.membership().voter_ids().any(|member| member.0 == node) {
            return Ok(());
        }
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).insert(node, Instant::now() + LEAVING);
        let name =
            self.shared.read().state.nodes.get(&node).map_or_else(|| node.short(), |record| record.name.to_string());
        Err(Refusal::new(codes::VOTES, format!("{name} votes still: another one takes its seat first"))
            .field("node", name)
            .hint("try again; if it stays so, too few voters are alive to change them: `smartnode status`"))
    }

    /// Whether a node is passed over, since it is about to be removed.
    fn is_leaving(&self, node: NodeId) -> bool {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.get(&node).is_some_and(|until| *until > Instant::now())
    }

    /// One change. A failure (another one in progress, a leader that is no more) is met by the next round.
    async fn change(&self, what: &'static str, members: Members) {
        match timeout(CHANGE_TIMEOUT, self.raft.change_membership(members, true)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(%error, what, "not done yet"),
            Err(_) => tracing::warn!(what, "not done within {CHANGE_TIMEOUT:?}"),
        }
    }

    /// What is known of every admitted node.
    fn candidates(&self, metrics: &RaftMetrics<TC>) -> Vec<Candidate> {
        let alive = self.surroundings.alive();
        let last = metrics.last_log_index.unwrap_or(0);
        let silent_for = |node: NodeId| {
            let acknowledged = metrics.heartbeat.as_ref()?.get(&Member(node))?.as_ref()?;
            Some(acknowledged.elapsed())
        };
        let caught_up = |node: NodeId| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(&Member(node)).copied().flatten());
            matched.is_some_and(|id| id.index + CATCH_UP_ENTRIES >= last)
        };
        let machine = self.shared.read();
        let nodes = machine.state.nodes.values().filter(|record| !machine.state.tombstones.contains_key(&record.id));
        nodes
            .map(|record| Candidate {
                id: record.id,
                role: record.role,
                zone: record.zone.clone(),
                alive: record.id == self.me || alive.contains(&record.id),
                silent_for: silent_for(record.id),
                caught_up: caught_up(record.id),
                leaving: self.is_leaving(record.id),
                admitted_ms: record.admitted_ms,
            })
            .collect()
    }
}
