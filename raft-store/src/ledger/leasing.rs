//! Drives the lease book: who leads, what is granted, when a takeover may be proposed (design section 7).
//!
//! The book is pure and lives beside the state, so that every applied entry reaches it in order. A renewal is answered
//! only after a ReadIndex round begun after it arrived. A takeover is judged here, in the step in which it is proposed,
//! and carries the term of that judgement; until its outcome is applied its owner is granted nothing.

use std::sync::Weak;
use std::time::Duration;

use fabric::ids::{MachineId, NodeId};
use fabric::model::Role;
use fabric::rpc::{CallError, Peer, Refusal};
use fabric::wire;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{Instant, timeout};

use super::messages::{EmptyV1, JUDGE, JudgeV1, RELAY_RENEW, RENEW, RelayRenewV1, RenewAnswerV1, VerdictV1};
use super::{Inner, Ledger, LedgerError};
use crate::codes;
use crate::command::{Command, Envelope};
use crate::lease::{Grant, Verdict};
use crate::tuning::{READ_INDEX_TIMEOUT, RELAY_AFTER, RENEW_TIMEOUT};
use crate::types::term_of;

/// A lease that was granted, and when it was asked for: the holder counts from then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// `Clock::boottime` of this node just before the request was sent.
    pub sent: Duration,
    /// What the leader granted.
    pub grant: Grant,
}

impl Ledger {
    /// Renews this node's lease with the leader: one try, within 1.5 s. The caller tries again.
    ///
    /// # Errors
    /// When no leader granted it; nothing is known then.
    pub async fn renew_lease(&self) -> Result<Renewal, LedgerError> {
        let ledger = &self.inner;
        let sent = ledger.clock.boottime();
        let renewing = ledger.ask_renewal();
        match timeout(RENEW_TIMEOUT, renewing).await {
            Ok(grant) => Ok(Renewal { sent, grant: grant? }),
            Err(_) => Err(LedgerError::Timeout { after: RENEW_TIMEOUT }),
        }
    }

    /// The leader's judgement of an owner: whether its machine may be taken over now. It is a forecast, since the leader
    /// judges again when a takeover is proposed.
    ///
    /// # Errors
    /// When no leader could be asked within 1.5 s.
    pub async fn judge(&self, owner: NodeId, exclusive: bool) -> Result<Verdict, LedgerError> {
        let ledger = &self.inner;
        if ledger.leads() {
            return Ok(ledger.shared.leases().judge(ledger.clock.boottime(), owner, exclusive));
        }
        let body = wire::encode(&JudgeV1 { owner, exclusive });
        let bytes = ledger.ask_leader(JUDGE, body).await?;
        let verdict: VerdictV1 = wire::decode(&bytes).map_err(|_| ledger.no_leader())?;
        Ok(match verdict {
            VerdictV1::Expired { term } => Verdict::Expired { term },
            // The leader's clock means nothing here: only what is left does.
            VerdictV1::Held { left_ms } => {
                Verdict::Held { until: ledger.clock.boottime() + Duration::from_millis(left_ms) }
            }
            VerdictV1::Unknown => Verdict::Unknown,
        })
    }
}

impl Inner {
    fn no_leader(&self) -> LedgerError {
        LedgerError::NoLeader { after: RENEW_TIMEOUT, unreachable: self.unreachable_voters() }
    }

    /// Asks whoever leads, following one hint. Only what may be asked twice: an answer that was lost with its connection is
    /// asked for again, and one that did not come in time has used up the caller's patience.
    async fn ask_leader(&self, kind: fabric::rpc::Kind, body: Vec<u8>) -> Result<Vec<u8>, LedgerError> {
        for _ in 0..2 {
            let Some(target) = self.leader_target() else { return Err(self.no_leader()) };
            match self.rpc.call(target, kind, body.clone(), RENEW_TIMEOUT).await {
                Ok(bytes) => {
                    // Only a leader answers this. A worker hears of it in no other way, and its writes would ask around.
                    self.learn_leader(Some(target));
                    return Ok(bytes);
                }
                Err(CallError::Refused(refusal)) if refusal.code == codes::NOT_LEADER => {
                    let hint = refusal.value.and_then(|value| value.parse().ok());
                    self.learn_leader(hint);
                }
                Err(CallError::Refused(refusal)) => return Err(refusal.into()),
                Err(CallError::Timeout { after, .. }) => {
                    self.forget_leader(target);
                    return Err(LedgerError::Timeout { after });
                }
                Err(_) => self.forget_leader(target),
            }
        }
        Err(self.no_leader())
    }

    async fn ask_renewal(&self) -> Result<Grant, LedgerError> {
        if self.leads() {
            return Ok(self.renew(self.me).await?);
        }
        let direct = self.ask_leader(RENEW, wire::encode(&EmptyV1));
        tokio::pin!(direct);
        // It may be this node alone that the leader does not answer. The caller counts from before the first try.
        let bytes = match timeout(RELAY_AFTER, direct.as_mut()).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(LedgerError::Refused(refusal))) => return Err(refusal.into()),
            Ok(Err(_)) => self.ask_renewal_through_another().await?,
            Err(_) => {
                let relayed = self.ask_renewal_through_another();
                tokio::pin!(relayed);
                // The first good answer; an error only when both have failed.
                tokio::select! { biased;
                    first = direct.as_mut() => if let Ok(bytes) = first { bytes } else { relayed.await? },
                    first = relayed.as_mut() => if let Ok(bytes) = first { bytes } else { direct.await? },
                }
            }
        };
        let answer: RenewAnswerV1 = wire::decode(&bytes).map_err(|_| self.no_leader())?;
        Ok(answer.grant)
    }

    async fn ask_renewal_through_another(&self) -> Result<Vec<u8>, LedgerError> {
        let relay = self.leader_target().and_then(|leader| self.relay(leader)).ok_or_else(|| self.no_leader())?;
        let body = wire::encode(&RelayRenewV1 { origin: self.me });
        match self.rpc.call(relay, RELAY_RENEW, body, RENEW_TIMEOUT).await {
            Ok(bytes) => Ok(bytes),
            Err(CallError::Refused(refusal)) => Err(refusal.into()),
            Err(_) => Err(self.no_leader()),
        }
    }

    fn not_leader(&self) -> Refusal {
        let refusal = Refusal::new(codes::NOT_LEADER, "this node does not lead the ledger");
        match self.server_metrics().current_leader.map(|leader| leader.0).filter(|leader| *leader != self.me) {
            Some(leader) => Refusal { field: Some("leader".into()), value: Some(leader.to_string()), ..refusal },
            None => refusal,
        }
    }

    /// Grants as the leader.
    async fn renew(&self, holder: NodeId) -> Result<Grant, Refusal> {
        self.shared.leases().heard(self.clock.boottime(), holder);
        {
            let machine = self.shared.read();
            let state = &machine.state;
            if !state.nodes.contains_key(&holder) || state.tombstones.contains_key(&holder) {
                return Err(Refusal::new(codes::NODE_REMOVED, "this node is not part of the cluster"));
            }
        }
        let index = self.own_read_index().await.map_err(|_| self.not_leader())?;
        let caught_up = self.wait_applied(index, Instant::now() + READ_INDEX_TIMEOUT).await;
        caught_up.map_err(|error| Refusal::new(codes::NOT_LEADER, error.to_string()))?;
        let revision = self.shared.read().state.placed_on(holder);
        let granted = self.shared.leases().grant(self.clock.boottime(), holder, revision);
        granted.map_err(|why| Refusal::new(codes::NO_GRANT, why.to_string()))
    }

    /// Serves [`RENEW`].
    pub(super) async fn serve_renew(&self, peer: Peer, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let EmptyV1 = wire::decode(body).map_err(|error| Refusal::new(codes::INVALID, error.to_string()))?;
        if !self.leads() {
            return Err(self.not_leader());
        }
        let grant = self.renew(peer.id).await?;
        Ok(wire::encode(&RenewAnswerV1 { grant }))
    }

    /// Serves [`RELAY_RENEW`]: what comes from its origin is passed on to the leader, what was passed on is granted as
    /// if it had come directly, after a ReadIndex round of its own. A voter is believed about who asks, see `serve_relay`:
    /// a grant that nobody asked for could only hold a takeover back.
    pub(super) async fn serve_relayed_renew(&self, peer: Peer, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let asked: RelayRenewV1 =
            wire::decode(body).map_err(|error| Refusal::new(codes::INVALID, error.to_string()))?;
        let first_hop = peer.id == asked.origin;
        if !first_hop && peer.role != Role::Voter {
            return Err(Refusal::new(codes::DENIED, "a worker speaks for itself alone"));
        }
        if self.leads() {
            let grant = self.renew(asked.origin).await?;
            return Ok(wire::encode(&RenewAnswerV1 { grant }));
        }
        let leader = self.other_leader().filter(|_| first_hop).ok_or_else(|| self.not_leader())?;
        match self.rpc.call(leader, RELAY_RENEW, body.to_vec(), RENEW_TIMEOUT).await {
            Ok(answer) => Ok(answer),
            Err(CallError::Refused(refusal)) => Err(refusal),
            Err(_) => Err(self.not_leader()),
        }
    }

    /// Serves [`JUDGE`].
    pub(super) fn serve_judge(&self, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let asked: JudgeV1 = wire::decode(body).map_err(|error| Refusal::new(codes::INVALID, error.to_string()))?;
        if !self.leads() {
            return Err(self.not_leader());
        }
        let now = self.clock.boottime();
        let verdict = match self.shared.leases().judge(now, asked.owner, asked.exclusive) {
            Verdict::Expired { term } => VerdictV1::Expired { term },
            Verdict::Held { until } => VerdictV1::Held { left_ms: until.saturating_sub(now).as_millis() as u64 },
            Verdict::Unknown => VerdictV1::Unknown,
        };
        Ok(wire::encode(&verdict))
    }

    /// Takes note of an owner's sign of life. Lets a node that votes not be removed. Judges a takeover that is about to be proposed, and puts the term of the
    /// judgement into it: from there on the owner is granted nothing until the proposal is turned down or its entry applied.
    pub(super) fn admit(&self, envelope: &mut Envelope) -> Result<(), Refusal> {
        if let Command::Confirm { .. } = envelope.command {
            // An owner that writes lives, though its leader may hear it through others alone. Without this the word that a
            // machine runs and the takeover that finds no place for it could take turns, as fast as both can write.
            self.shared.leases().heard(self.clock.boottime(), envelope.actor.node);
        }
        if let Command::RemoveNode { node, .. } = envelope.command {
            return self.gives_up_seat(node);
        }
        let Command::Takeover { machine, from, judged_term, .. } = &mut envelope.command else { return Ok(()) };
        let exclusive = self.is_exclusive(*machine);
        let now = self.clock.boottime();
        *judged_term = self.shared.leases().begin_takeover(now, *from, exclusive).map_err(|verdict| match verdict {
            Verdict::Held { until } => {
                let left = until.saturating_sub(now);
                Refusal::new(codes::LEASE_HELD, format!("its owner may run it for another {left:.1?}"))
                    .field("from", from)
                    .hint("it is tried again by itself")
            }
            Verdict::Expired { .. } | Verdict::Unknown => {
                Refusal::new(codes::LEASE_UNKNOWN, "the leader is too new to judge its owner's lease")
                    .field("from", from)
                    .hint("it is tried again by itself")
            }
        })?;
        Ok(())
    }

    fn is_exclusive(&self, machine: MachineId) -> bool {
        // An unknown machine's takeover is refused by apply; until then the stricter rule holds.
        self.shared.read().state.machines.get(&machine).is_none_or(|record| record.spec.exclusive)
    }

    /// Once in a while, on the leader: what Raft's followers acknowledged counts as hearing from them.
    fn note_followers(&self) {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let now = self.clock.boottime();
        let mut leases = self.shared.leases();
        for (member, acknowledged) in metrics.heartbeat.iter().flatten() {
            if let Some(at) = acknowledged {
                leases.heard(now.saturating_sub(at.elapsed()), member.0);
            }
        }
        leases.sweep(now);
    }
}

/// The judged takeover in an envelope: its term and owner.
pub(super) fn takeover_of(envelope: &Envelope) -> Option<(u64, NodeId)> {
    match &envelope.command {
        Command::Takeover { from, judged_term, .. } => Some((*judged_term, *from)),
        _ => None,
    }
}

/// Tells the book who leads.
pub(super) async fn drive(inner: Weak<Inner>) {
    let Some(mut metrics) = inner.upgrade().map(|ledger| ledger.raft.server_metrics()) else { return };
    loop {
        let Some(ledger) = inner.upgrade() else { return };
        let (leading, term) = {
            let metrics = metrics.borrow_watched();
            (metrics.state.is_leader(), metrics.vote.leader_id.term)
        };
        let now = ledger.clock.boottime();
        if leading {
            let applied = ledger.shared.read().applied;
            let mut leases = ledger.shared.leases();
            leases.lead(term);
            // The first entry of the term may have been applied before this.
            if let Some(applied) = applied {
                leases.applied(now, term_of(&applied));
            }
            drop(leases);
            ledger.note_followers();
        } else {
            ledger.shared.leases().step_down();
        }
        drop(ledger);
        let changed =
            if leading { timeout(READ_INDEX_TIMEOUT, metrics.changed()).await } else { Ok(metrics.changed().await) };
        if matches!(changed, Ok(Err(_))) {
            return;
        }
    }
}
