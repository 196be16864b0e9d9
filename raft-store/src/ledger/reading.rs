//! Linearizable reads: the leader confirms that it leads, then this node waits until it has applied as much.

use std::time::Duration;

use fabric::model::Role;
use fabric::rpc::{CallError, Peer, Refusal};
use fabric::wire;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::messages::{EmptyV1, READ_INDEX, RELAY_READ_INDEX, ReadIndexV1};
use super::{Inner, Ledger, LedgerError, Part};
use crate::codes;
use crate::tuning::{READ_INDEX_TIMEOUT, READ_TIMEOUT, RETRY_MAX, RETRY_MIN};

impl Ledger {
    /// Returns once this node's copy has everything that was acknowledged before the call. On a worker that is its view of
    /// what concerns itself: what is missing there is not this node's, and may be another's.
    ///
    /// # Errors
    /// When no leader confirms it, or this node cannot catch up, within 5 s.
    pub async fn linearizable(&self) -> Result<(), LedgerError> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let index = self.inner.read_index(deadline).await?;
        self.inner.wait_visible(index, deadline).await
    }

    /// Returns once [`Ledger::read`] shows everything up to `index` here.
    ///
    /// # Errors
    /// When that takes longer than 5 s, or the ledger has stopped.
    pub async fn wait_applied(&self, index: u64) -> Result<(), LedgerError> {
        self.inner.wait_visible(index, Instant::now() + READ_TIMEOUT).await
    }
}

impl Inner {
    /// The index that a read begun now has to wait for.
    pub(super) async fn read_index(&self, deadline: Instant) -> Result<u64, LedgerError> {
        let mut pause = RETRY_MIN;
        loop {
            let found = timeout_at(deadline, self.try_read_index()).await;
            if let Ok(Some(index)) = found {
                return Ok(index);
            }
            if Instant::now() + pause >= deadline {
                return Err(match self.halted() {
                    Some(reason) => LedgerError::Halted { reason },
                    None => LedgerError::NoLeader { after: READ_TIMEOUT, unreachable: self.unreachable_voters() },
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn try_read_index(&self) -> Option<u64> {
        if self.leads() {
            return match self.own_read_index().await {
                Ok(index) => Some(index),
                Err(hint) => {
                    self.learn_leader(hint);
                    None
                }
            };
        }
        let target = self.leader_target()?;
        let answer = self.rpc.call(target, READ_INDEX, wire::encode(&EmptyV1), READ_INDEX_TIMEOUT).await;
        let answer = answer.and_then(|bytes| {
            wire::decode::<ReadIndexV1>(&bytes)
                .map_err(|error| CallError::Garbled { node: target, cause: error.to_string() })
        });
        match answer {
            Ok(ReadIndexV1::Index(index)) => Some(index),
            Ok(ReadIndexV1::NotLeader(hint)) => {
                self.learn_leader(hint);
                None
            }
            Err(_) => {
                self.forget_leader(target);
                // It may be this node alone that the leader does not answer.
                let relay = self.relay(target)?;
                let body = wire::encode(&EmptyV1);
                let answer = self.rpc.call(relay, RELAY_READ_INDEX, body, 2 * READ_INDEX_TIMEOUT).await.ok()?;
                match wire::decode(&answer) {
                    Ok(ReadIndexV1::Index(index)) => Some(index),
                    Ok(ReadIndexV1::NotLeader(_)) | Err(_) => None,
                }
            }
        }
    }

    /// As the leader: an index confirmed by a round of heartbeats begun now.
    ///
    /// # Errors
    /// Who leads instead, if that is known.
    pub(super) async fn own_read_index(&self) -> Result<u64, Option<fabric::ids::NodeId>> {
        match timeout(READ_INDEX_TIMEOUT, self.raft.get_read_log_id(ReadPolicy::ReadIndex)).await {
            Ok(Ok((id, _))) => Ok(id.index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                Err(forward.leader_id.map(|leader| leader.0))
            }
            Ok(Err(RaftError::Fatal(error))) => {
                self.shared.halt.because(error);
                Err(None)
            }
            Ok(Err(_)) | Err(_) => Err(None),
        }
    }

    async fn wait_visible(&self, index: u64, deadline: Instant) -> Result<(), LedgerError> {
        if self.part() == Part::Spare && self.shared.read().applied_index() < index {
            match self.role {
                Role::Worker => self.wait_fed(index, deadline).await?,
                Role::Voter => self.refresh(Duration::MAX, index).await?,
            }
        } else {
            self.wait_applied(index, deadline).await?;
        }
        // From here on nobody decides by an older one, see `Ledger::changed`.
        self.saw(index);
        Ok(())
    }

    pub(super) async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<(), LedgerError> {
        if *self.shared.applied.borrow() >= index {
            return Ok(());
        }
        let mut applied = self.shared.applied.subscribe();
        let mut halted = self.shared.halt.subscribe();
        tokio::select! { biased;
            reached = timeout_at(deadline, applied.wait_for(|applied| *applied >= index)) => match reached {
                Ok(_) => Ok(()),
                Err(_) => Err(LedgerError::Timeout { after: READ_TIMEOUT }),
            },
            reason = halted.wait_for(Option::is_some) => Err(LedgerError::Halted {
                reason: reason.ok().and_then(|reason| reason.clone()).unwrap_or_default(),
            }),
        }
    }

    /// Serves [`READ_INDEX`].
    pub(super) async fn serve_read_index(&self, _peer: Peer, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let EmptyV1 = wire::decode(body).map_err(|error| Refusal::new(codes::INVALID, error.to_string()))?;
        let answer = match self.own_read_index().await {
            Ok(index) => ReadIndexV1::Index(index),
            Err(hint) => ReadIndexV1::NotLeader(hint),
        };
        Ok(wire::encode(&answer))
    }

    /// Serves [`RELAY_READ_INDEX`]: asks the leader, who answers for itself alone.
    pub(super) async fn serve_relayed_read_index(&self, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let EmptyV1 = wire::decode(body).map_err(|error| Refusal::new(codes::INVALID, error.to_string()))?;
        let unknown = || wire::encode(&ReadIndexV1::NotLeader(None));
        if self.leads() {
            return Ok(self
                .own_read_index()
                .await
                .map_or_else(|_| unknown(), |at| wire::encode(&ReadIndexV1::Index(at))));
        }
        let Some(leader) = self.other_leader() else { return Ok(unknown()) };
        let answer = self.rpc.call(leader, READ_INDEX, wire::encode(&EmptyV1), READ_INDEX_TIMEOUT).await;
        Ok(answer.unwrap_or_else(|_| unknown()))
    }
}
