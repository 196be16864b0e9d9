//! Writes: the leader proposes, everybody else forwards in batches.
//!
//! A write always carries an idempotency key, so that it can be sent again after an answer was lost. Writes that arrive
//! while others are on their way to the leader share the next request, as they then share its sync to disk.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use fabric::ids::{IdempotencyKey, NodeId};
use fabric::limits::{COMMAND_FRAME_BYTES_MAX, WRITE_TIMEOUT};
use fabric::model::Role;
use fabric::rpc::{CallError, Kind, Peer, Refusal};
use fabric::seams::draw;
use fabric::wire;
use futures_util::StreamExt;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::ClientWriteResponse;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::messages::{FORWARD, ForwardAnswerV1, ForwardV1, RELAY, RelayV1, WriteAnswerV1};
use super::{Inner, Ledger, LedgerError, leasing};
use crate::codes;
use crate::command::{Actor, Command, Envelope, Outcome};
use crate::store::Shared;
use crate::time::ClusterClock;
use crate::tuning::{
    FORWARD_BATCH, FORWARD_BYTES, FORWARD_TIMEOUT, RELAY_AFTER, RELAYED_TIMEOUT, RETRY_MAX, RETRY_MIN,
};
use crate::types::{Proposal, TC};

/// A write that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Index of its entry; for a repeated request, of the entry that repeated it.
    pub index: u64,
    /// What was done.
    pub outcome: Outcome,
}

/// Why one attempt gave no result.
#[derive(Debug)]
enum Attempt {
    Refused(Refusal),
    NotLeader(Option<NodeId>),
    Unreachable,
    Unknown,
}

/// A command that is ready for the log.
struct Sealed {
    proposal: Proposal,
    /// Term and owner, if it is a takeover: its application ends what its judgement began.
    takeover: Option<(u64, NodeId)>,
}

/// A write on its way to the leader.
pub(super) struct Pending {
    frame: Vec<u8>,
    reply: oneshot::Sender<Result<Applied, Attempt>>,
}

impl Ledger {
    /// Changes the ledger, from any node.
    ///
    /// Without a key one is drawn, so that losing an answer does not make the change twice.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub async fn write(
        &self,
        actor: Actor,
        key: Option<IdempotencyKey>,
        command: Command,
    ) -> Result<Applied, LedgerError> {
        let key = key.unwrap_or_else(|| IdempotencyKey(draw(&*self.inner.entropy)));
        let envelope = Envelope { actor, idempotency: Some(key), at_ms: 0, command };
        let frame = wire::encode(&envelope);
        if frame.len() > COMMAND_FRAME_BYTES_MAX {
            let message =
                format!("the request takes {} bytes, at most {COMMAND_FRAME_BYTES_MAX} are allowed", frame.len());
            return Err(Refusal::new(codes::LIMIT, message).into());
        }
        self.inner.write(envelope, frame).await
    }

    /// The cluster's time, Unix milliseconds: what the next entry may be stamped with. It goes on when no entry comes, and
    /// whether or not this node's wall clock is right: what waits for a time is looked at by this.
    pub fn now_ms(&self) -> u64 {
        let inner = &self.inner;
        let shown_ms = self.read(|state| state.settings.at_ms);
        let mut clock = inner.cluster_clock();
        clock.saw(shown_ms, inner.clock.boottime());
        clock.now(inner.clock.wall().as_millis() as u64, inner.clock.boottime())
    }
}

impl Inner {
    async fn write(self: &Arc<Self>, envelope: Envelope, frame: Vec<u8>) -> Result<Applied, LedgerError> {
        let deadline = Instant::now() + WRITE_TIMEOUT;
        let (mut unknown, mut pause) = (false, RETRY_MIN);
        loop {
            let attempt = if self.leads() {
                self.propose(envelope.clone(), deadline).await
            } else {
                self.forward(frame.clone(), deadline).await
            };
            match attempt {
                Ok(applied) => return Ok(applied),
                Err(Attempt::Refused(refusal)) => return Err(refusal.into()),
                Err(Attempt::NotLeader(hint)) => {
                    // A hint is worth asking at once; without one there is an election to wait for.
                    if self.learn_leader(hint) {
                        pause = RETRY_MIN;
                    }
                }
                Err(Attempt::Unknown) => unknown = true,
                Err(Attempt::Unreachable) => {}
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(self.gave_up(unknown));
            }
            self.leader_changes(deadline.min(now + pause)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    fn gave_up(&self, unknown: bool) -> LedgerError {
        let after = WRITE_TIMEOUT;
        if unknown {
            return LedgerError::Timeout { after };
        }
        match self.halted() {
            Some(reason) => LedgerError::Halted { reason },
            None => LedgerError::NoLeader { after, unreachable: self.unreachable_voters() },
        }
    }

    /// Keeps a hint; tells whether it is news.
    pub(super) fn learn_leader(&self, hint: Option<NodeId>) -> bool {
        let hint = hint.filter(|node| *node != self.me);
        let mut heard = self.heard();
        let news = hint.is_some() && heard.hint != hint;
        heard.hint = hint;
        news
    }

    /// Waits until another node leads, or `until`.
    async fn leader_changes(&self, until: Instant) {
        let mut metrics = self.raft.server_metrics();
        let before = metrics.borrow_watched().current_leader;
        let changed = async {
            while metrics.changed().await.is_ok() {
                if metrics.borrow_watched().current_leader != before {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! { biased;
            () = changed => {}
            () = sleep_until(until) => {}
        }
    }

    /// Waits until this node knows of a leader that is not `leader`.
    async fn succeeded(&self, leader: NodeId) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let now = metrics.borrow_watched().current_leader;
            if now.is_some_and(|now| now.0 != leader) {
                return;
            }
            if metrics.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The leader's time for the next command: never behind the one before.
    fn next_stamp(&self) -> u64 {
        let wall_ms = self.clock.wall().as_millis() as u64;
        self.cluster_clock().stamp(wall_ms, self.clock.boottime())
    }

    /// The cluster's time as far as this node has applied it.
    fn cluster_clock(&self) -> MutexGuard<'_, ClusterClock> {
        let applied_ms = self.shared.read().state.settings.at_ms;
        let mut clock = self.time.lock().unwrap_or_else(PoisonError::into_inner);
        clock.saw(applied_ms, self.clock.boottime());
        clock
    }

    /// Judges, stamps and frames a command that this leader is about to propose.
    fn seal(&self, mut envelope: Envelope) -> Result<Sealed, Refusal> {
        self.admit(&mut envelope)?;
        envelope.at_ms = self.next_stamp();
        let takeover = leasing::takeover_of(&envelope);
        Ok(Sealed { proposal: Proposal(Bytes::from(wire::encode(&envelope))), takeover })
    }

    async fn propose(&self, envelope: Envelope, deadline: Instant) -> Result<Applied, Attempt> {
        let sealed = self.seal(envelope).map_err(Attempt::Refused)?;
        let proposing = async {
            match sealed.takeover {
                None => outcome(&self.shared, self.raft.client_write(sealed.proposal).await),
                Some(_) => self.propose_apart(sealed).await.unwrap_or(Err(Attempt::Unknown)),
            }
        };
        timeout_at(deadline, proposing).await.unwrap_or(Err(Attempt::Unknown))
    }

    /// Proposes a takeover on a task of its own: who asked may give up waiting, and its owner would be granted nothing for
    /// the rest of the term if nobody heard that it was never proposed.
    fn propose_apart(&self, sealed: Sealed) -> JoinHandle<Result<Applied, Attempt>> {
        let (raft, shared) = (self.raft.clone(), self.shared.clone());
        tokio::spawn(async move {
            let attempt = outcome(&shared, raft.client_write(sealed.proposal).await);
            if let (Err(Attempt::NotLeader(_)), Some((term, owner))) = (&attempt, sealed.takeover) {
                shared.leases().end_takeover(term, owner);
            }
            attempt
        })
    }

    async fn forward(&self, frame: Vec<u8>, deadline: Instant) -> Result<Applied, Attempt> {
        let (reply, answer) = oneshot::channel();
        if timeout_at(deadline, self.forward.send(Pending { frame, reply })).await.is_err() {
            return Err(Attempt::Unreachable);
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            // The batch may be under way still.
            Ok(Err(_)) | Err(_) => Err(Attempt::Unknown),
        }
    }

    /// Whom to send a write to.
    pub(super) fn leader_target(&self) -> Option<NodeId> {
        let known = self.server_metrics().current_leader.map(|leader| leader.0);
        let hint = self.heard().hint;
        let not_me = |node: &NodeId| *node != self.me;
        hint.or(known.filter(not_me)).or_else(|| {
            // Nobody known: ask around, another node each time.
            let candidates = self.sources();
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            (!candidates.is_empty()).then(|| candidates[turn % candidates.len()])
        })
    }

    async fn send_batch(&self, target: NodeId, batch: Vec<Pending>) {
        let envelopes: Vec<_> = batch.iter().map(|pending| pending.frame.clone()).collect();
        match self.send_writes(target, envelopes).await {
            Ok(answers) if answers.len() == batch.len() => {
                for (pending, answer) in batch.into_iter().zip(answers) {
                    // The caller may have given up.
                    let _ = pending.reply.send(read_answer(answer));
                }
            }
            failed => {
                self.forget_leader(target);
                for pending in batch {
                    let _ = pending.reply.send(Err(match &failed {
                        Err(CallError::Unreachable { .. } | CallError::Refused(_)) => Attempt::Unreachable,
                        Ok(_) | Err(_) => Attempt::Unknown,
                    }));
                }
            }
        }
    }

    /// Sends writes to the leader and, when it cannot be reached or does not answer soon, through another member as well
    /// (a cut may be in one direction, or between two nodes alone). The keys of the writes make doing both harmless.
    async fn send_writes(&self, target: NodeId, envelopes: Vec<Vec<u8>>) -> Result<Vec<WriteAnswerV1>, CallError> {
        let body = wire::encode(&ForwardV1 { envelopes: envelopes.clone() });
        let direct = self.call_for_answers(target, FORWARD, body);
        tokio::pin!(direct);
        let failed = match timeout(RELAY_AFTER, direct.as_mut()).await {
            Ok(Err(error @ CallError::Unreachable { .. })) => Some(error),
            Ok(done) => return done,
            Err(_) => None,
        };
        let relay = match self.relay(target) {
            Some(relay) => relay,
            None => return if let Some(error) = failed { Err(error) } else { direct.await },
        };
        tracing::debug!(leader = %target.short(), through = %relay.short(), "the leader does not answer: asking it through another");
        let body = wire::encode(&RelayV1 { origin: self.me, envelopes });
        let relayed = self.call_for_answers(relay, RELAY, body);
        match failed {
            Some(_) => relayed.await,
            None => {
                tokio::pin!(relayed);
                // The first good answer; an error only when both have failed.
                tokio::select! { biased;
                    first = direct.as_mut() => if first.is_ok() { first } else { relayed.await },
                    first = relayed.as_mut() => if first.is_ok() { first } else { direct.await },
                }
            }
        }
    }

    /// Asks for what became of writes.
    async fn call_for_answers(
        &self,
        target: NodeId,
        kind: Kind,
        body: Vec<u8>,
    ) -> Result<Vec<WriteAnswerV1>, CallError> {
        let call = self.rpc.call(target, kind, body, FORWARD_TIMEOUT);
        let bytes = tokio::select! { biased;
            outcome = call => outcome?,
            // The leader is gone and another one leads: its answer may never come.
            () = self.succeeded(target), if kind == FORWARD => {
                return Err(CallError::Broken { node: target, cause: "it leads no longer".into() });
            }
        };
        let answer: ForwardAnswerV1 =
            wire::decode(&bytes).map_err(|error| CallError::Garbled { node: target, cause: error.to_string() })?;
        Ok(answer.answers)
    }

    /// A member to go through to the leader, another one each time. Who is none hears no leader, and a worker is believed by
    /// no leader: they are gone through only while no member is known.
    pub(super) fn relay(&self, leader: NodeId) -> Option<NodeId> {
        let alive = self.surroundings.alive();
        let members = self.members_known();
        let mut relays = if members.is_empty() { self.sources() } else { members };
        relays.retain(|node| *node != leader && alive.contains(node));
        // Whoever asks around takes a turn in between.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) / 2;
        (!relays.is_empty()).then(|| relays[turn % relays.len()])
    }

    /// Who leads, if not this node.
    pub(super) fn other_leader(&self) -> Option<NodeId> {
        self.server_metrics().current_leader.map(|leader| leader.0).filter(|node| *node != self.me)
    }

    pub(super) fn forget_leader(&self, node: NodeId) {
        let mut heard = self.heard();
        if heard.hint == Some(node) {
            heard.hint = None;
        }
    }

    /// Serves [`FORWARD`].
    pub(super) async fn serve_forward(&self, peer: Peer, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let request: ForwardV1 = wire::decode(body).map_err(|error| Refusal::new(codes::INVALID, error.to_string()))?;
        Ok(wire::encode(&self.propose_for(peer.id, &request.envelopes).await))
    }

    /// Serves [`RELAY`]: what comes from its origin is passed on to the leader, what was passed on is proposed.
    ///
    /// Who passed it on is believed about who asks if its role is voter: it may be voted for, and a leader can write
    /// any entry. A worker is not.
    pub(super) async fn serve_relay(&self, peer: Peer, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let request: RelayV1 = wire::decode(body).map_err(|error| Refusal::new(codes::INVALID, error.to_string()))?;
        let first_hop = peer.id == request.origin;
        if !first_hop && peer.role != Role::Voter {
            return Err(Refusal::new(codes::DENIED, "a worker speaks for itself alone"));
        }
        if first_hop
            && !self.leads()
            && let Some(leader) = self.other_leader()
        {
            let answer = self.rpc.call(leader, RELAY, body.to_vec(), RELAYED_TIMEOUT).await;
            let unknown = || vec![WriteAnswerV1::Unknown; request.envelopes.len()];
            return match answer {
                Ok(answer) => Ok(answer),
                Err(CallError::Refused(refusal)) => Err(refusal),
                Err(_) => Ok(wire::encode(&ForwardAnswerV1 { answers: unknown() })),
            };
        }
        Ok(wire::encode(&self.propose_for(request.origin, &request.envelopes).await))
    }

    /// Proposes what `origin` asks for, if this node leads.
    async fn propose_for(&self, origin: NodeId, envelopes: &[Vec<u8>]) -> ForwardAnswerV1 {
        let mut answers = vec![WriteAnswerV1::Unknown; envelopes.len()];
        let mut proposals = Vec::with_capacity(answers.len());
        for (at, frame) in envelopes.iter().enumerate() {
            match self.open(origin, frame) {
                Ok(proposal) => proposals.push((at, proposal)),
                Err(refusal) => answers[at] = WriteAnswerV1::Refused(refusal),
            }
        }
        // Past this time the sender has given up, too.
        let _ = timeout(FORWARD_TIMEOUT, self.propose_many(proposals, &mut answers)).await;
        ForwardAnswerV1 { answers }
    }

    /// Checks a forwarded envelope and makes it ready for the log. A node may only speak as itself.
    fn open(&self, origin: NodeId, frame: &[u8]) -> Result<Sealed, Refusal> {
        if frame.len() > COMMAND_FRAME_BYTES_MAX {
            return Err(Refusal::new(codes::LIMIT, "the request is too large"));
        }
        let envelope: Envelope =
            wire::decode(frame).map_err(|error| Refusal::new(codes::INVALID, error.to_string()))?;
        if envelope.actor.node != origin {
            let message = format!("node {} asks in the name of {}", origin.short(), envelope.actor.node.short());
            return Err(Refusal::new(codes::DENIED, message));
        }
        if let Some(cause) = envelope.command.halts() {
            return Err(Refusal::new(codes::INVALID, cause));
        }
        self.seal(envelope)
    }

    async fn propose_many(&self, proposals: Vec<(usize, Sealed)>, answers: &mut [WriteAnswerV1]) {
        if proposals.is_empty() {
            return;
        }
        let (apart, together): (Vec<_>, Vec<_>) =
            proposals.into_iter().partition(|(_, sealed)| sealed.takeover.is_some());
        let apart: Vec<_> = apart.into_iter().map(|(at, sealed)| (at, self.propose_apart(sealed))).collect();
        let places: Vec<_> = together.iter().map(|(at, _)| *at).collect();
        let proposals = together.into_iter().map(|(_, sealed)| sealed.proposal);
        let mut results = match self.raft.client_write_many(proposals).await {
            // A core that stops ends it after the first answer, and each place asks.
            Ok(results) => results.fuse(),
            Err(error) => return self.shared.halt.because(error),
        };
        for at in places {
            answers[at] = match results.next().await {
                Some(Ok(Ok(response))) => write_answer(applied(response.log_id.index, response.response)),
                Some(Ok(Err(error))) => write_answer(Err(unproposed(error))),
                Some(Err(_)) | None => WriteAnswerV1::Unknown,
            };
        }
        for (at, proposing) in apart {
            answers[at] = write_answer(proposing.await.unwrap_or(Err(Attempt::Unknown)));
        }
    }
}

/// What came of a proposal.
fn outcome(
    shared: &Shared,
    result: Result<ClientWriteResponse<TC>, RaftError<TC, ClientWriteError<TC>>>,
) -> Result<Applied, Attempt> {
    match result {
        Ok(response) => applied(response.log_id.index, response.data),
        Err(RaftError::APIError(error)) => Err(unproposed(error)),
        Err(RaftError::Fatal(error)) => {
            shared.halt.because(error);
            // It may be in the log of others already.
            Err(Attempt::Unknown)
        }
    }
}

/// Why openraft did not take a proposal. One that it did not append has no outcome to wait for.
fn unproposed(error: ClientWriteError<TC>) -> Attempt {
    match error {
        ClientWriteError::ForwardToLeader(forward) => Attempt::NotLeader(forward.leader_id.map(|leader| leader.0)),
        _ => Attempt::Unknown,
    }
}

fn applied(index: u64, reply: crate::types::Reply) -> Result<Applied, Attempt> {
    match reply {
        Some(Ok(outcome)) => Ok(Applied { index, outcome }),
        Some(Err(refusal)) => Err(Attempt::Refused(refusal)),
        // A command's entry always has an answer of its own.
        None => Err(Attempt::Unknown),
    }
}

fn write_answer(result: Result<Applied, Attempt>) -> WriteAnswerV1 {
    match result {
        Ok(applied) => WriteAnswerV1::Applied { index: applied.index, outcome: applied.outcome },
        Err(Attempt::Refused(refusal)) => WriteAnswerV1::Refused(refusal),
        Err(Attempt::NotLeader(hint)) => WriteAnswerV1::NotLeader(hint),
        Err(Attempt::Unreachable | Attempt::Unknown) => WriteAnswerV1::Unknown,
    }
}

fn read_answer(answer: WriteAnswerV1) -> Result<Applied, Attempt> {
    match answer {
        WriteAnswerV1::Applied { index, outcome } => Ok(Applied { index, outcome }),
        WriteAnswerV1::Refused(refusal) => Err(Attempt::Refused(refusal)),
        WriteAnswerV1::NotLeader(hint) => Err(Attempt::NotLeader(hint)),
        WriteAnswerV1::Unknown => Err(Attempt::Unknown),
    }
}

/// Sends what waits, a batch at a time. While all requests in flight are taken, the next batch grows.
pub(super) async fn forwarder(inner: Weak<Inner>, mut queue: mpsc::Receiver<Pending>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, FORWARD_BATCH).await > 0 {
        let Some(ledger) = inner.upgrade() else { return };
        let permits = ledger.forwards.clone();
        while !waiting.is_empty() {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            // Those that came while all requests were under way go along.
            while waiting.len() < FORWARD_BATCH
                && let Ok(pending) = queue.try_recv()
            {
                waiting.push(pending);
            }
            let batch = take_batch(&mut waiting);
            send(&ledger, batch, permit);
        }
    }
}

fn take_batch(waiting: &mut Vec<Pending>) -> Vec<Pending> {
    let mut bytes = 0;
    let fits = waiting.iter().take_while(|pending| {
        bytes += pending.frame.len();
        bytes <= FORWARD_BYTES
    });
    let count = fits.count().max(1);
    waiting.drain(..count.min(waiting.len())).collect()
}

fn send(ledger: &Arc<Inner>, batch: Vec<Pending>, permit: OwnedSemaphorePermit) {
    let Some(target) = ledger.leader_target() else {
        for pending in batch {
            let _ = pending.reply.send(Err(Attempt::Unreachable));
        }
        return;
    };
    let task = ledger.clone();
    // Short, and bounded in number by the permits.
    tokio::spawn(async move {
        task.send_batch(target, batch).await;
        drop(permit);
    });
}
