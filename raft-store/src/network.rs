//! Raft's messages over `fabric::rpc`: the asking side for openraft, and the answering side for the router.
//!
//! Every call is bounded, or replication could wait for ever on a peer that a partition took away. A message is only
//! believed from the node that it speaks for: appends and snapshots from the leader that they name, votes from their
//! candidate.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fabric::ids::{Digest, NodeId};
use fabric::limits::CHUNK_BYTES;
use fabric::model::Role;
use fabric::rpc::{CallError, Kind, Peer, Refusal, Rpc};
use fabric::wire::{self, Record, WireError};
use openraft::errors::{NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};

use crate::codec::{
    AppendAnswerV1, AppendV1, SnapshotMetaV1, SnapshotPartAnswerV1, SnapshotPartV1, TransferAnswerV1, TransferV1,
    VoteAnswerV1, VoteRequestV1, VoteV1,
};
use crate::store::Halt;
use crate::tuning::{APPEND_TIMEOUT, SNAPSHOT_BYTES_MAX};
use crate::types::{Member, Raft, Snapshot, SnapshotData, TC, Vote};

/// Entries or a heartbeat for a follower.
pub(crate) const APPEND: Kind = 100;
/// A candidate asks for a vote.
pub(crate) const VOTE: Kind = 101;
/// A node asks whether it would get votes.
pub(crate) const PRE_VOTE: Kind = 102;
/// A piece of a snapshot.
pub(crate) const SNAPSHOT: Kind = 103;
/// A leader hands over.
pub(crate) const TRANSFER: Kind = 104;

/// Makes openraft's clients.
pub(crate) struct Network {
    me: NodeId,
    rpc: Arc<dyn Rpc>,
}

impl Network {
    pub(crate) fn new(me: NodeId, rpc: Arc<dyn Rpc>) -> Self {
        Network { me, rpc }
    }
}

impl RaftNetworkFactory<TC> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: Member, _address: &String) -> Client {
        Client { me: self.me, target: target.0, rpc: self.rpc.clone() }
    }
}

/// One peer, as openraft talks to it.
pub(crate) struct Client {
    me: NodeId,
    target: NodeId,
    rpc: Arc<dyn Rpc>,
}

impl Client {
    async fn ask<T: Record>(
        &self,
        action: RPCTypes,
        kind: Kind,
        request: &T,
        timeout: Duration,
    ) -> Result<Vec<u8>, RPCError<TC>> {
        self.rpc.call(self.target, kind, wire::encode(request), timeout).await.map_err(|error| match error {
            CallError::Timeout { after, .. } => {
                Timeout { action, id: Member(self.me), target: Member(self.target), timeout: after }.into()
            }
            CallError::Broken { .. } | CallError::Garbled { .. } => NetworkError::new(&error).into(),
            CallError::Unreachable { .. } | CallError::Refused(_) => Unreachable::new(&error).into(),
        })
    }

    async fn ask_vote(
        &self,
        kind: Kind,
        request: &VoteRequest<TC>,
        option: &RPCOption,
    ) -> Result<VoteResponse<TC>, RPCError<TC>> {
        let bytes = self.ask(RPCTypes::Vote, kind, &VoteRequestV1::from(request), option.soft_ttl()).await?;
        Ok(wire::decode::<VoteAnswerV1>(&bytes).map_err(garbled)?.into())
    }

    async fn send_snapshot(&self, vote: &Vote, snapshot: &Snapshot, timeout: Duration) -> Result<Vote, RPCError<TC>> {
        let data = &snapshot.snapshot;
        let mut part = SnapshotPartV1 {
            vote: vote.into(),
            meta: SnapshotMetaV1::from(&snapshot.meta),
            digest: data.digest(),
            total: data.len(),
            offset: 0,
            data: Vec::new(),
        };
        // The first part is empty: its answer says how much of this snapshot the peer has from an earlier attempt. Each
        // later one moves forward by at least a byte, so this ends.
        let mut furthest = None;
        loop {
            let bytes = self.ask(RPCTypes::InstallSnapshot, SNAPSHOT, &part, timeout).await?;
            let answer: SnapshotPartAnswerV1 = wire::decode(&bytes).map_err(garbled)?;
            if answer.installed || answer.vote != part.vote {
                return Ok(answer.vote.into());
            }
            if furthest.is_some_and(|furthest| answer.next <= furthest) || answer.next > part.total {
                return Err(NetworkError::from_string("the peer lost its part of the snapshot").into());
            }
            furthest = Some(answer.next);
            part.offset = answer.next;
            part.data = piece(data, answer.next);
        }
    }
}

fn garbled(error: WireError) -> NetworkError<TC> {
    NetworkError::new(&error)
}

/// At most `CHUNK_BYTES` of a snapshot from `offset` on.
fn piece(snapshot: &SnapshotData, offset: u64) -> Vec<u8> {
    let mut skip = offset;
    for chunk in &snapshot.chunks {
        let length = chunk.len() as u64;
        if skip < length {
            return chunk[skip as usize..].to_vec();
        }
        skip -= length;
    }
    Vec::new()
}

impl RaftNetworkV2<TC> for Client {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TC>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TC>, RPCError<TC>> {
        // openraft gives an append as long as a heartbeat; one that carries entries waits for the follower's disk.
        let timeout =
            if request.entries.is_empty() { option.soft_ttl() } else { APPEND_TIMEOUT.max(option.soft_ttl()) };
        let bytes = self.ask(RPCTypes::AppendEntries, APPEND, &AppendV1::from(&request), timeout).await?;
        Ok(wire::decode::<AppendAnswerV1>(&bytes).map_err(garbled)?.into())
    }

    async fn vote(&mut self, request: VoteRequest<TC>, option: RPCOption) -> Result<VoteResponse<TC>, RPCError<TC>> {
        self.ask_vote(VOTE, &request, &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TC>,
        option: RPCOption,
    ) -> Result<VoteResponse<TC>, RPCError<TC>> {
        self.ask_vote(PRE_VOTE, &request, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TC>, StreamingError<TC>> {
        let sent = tokio::select! { biased;
            closed = cancel => return Err(closed.into()),
            sent = self.send_snapshot(&vote, &snapshot, option.soft_ttl()) => sent,
        };
        sent.map(SnapshotResponse::new).map_err(|error| match error {
            RPCError::Timeout(error) => error.into(),
            RPCError::Unreachable(error) => error.into(),
            RPCError::Network(error) => error.into(),
            RPCError::RemoteError(error) => match error.source {},
        })
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TC>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TC>, RPCError<TC>> {
        let request = TransferV1::from(&request);
        let bytes = self.ask(RPCTypes::TransferLeader, TRANSFER, &request, option.soft_ttl()).await?;
        Ok(wire::decode::<TransferAnswerV1>(&bytes).map_err(garbled)?.into())
    }
}

/// A snapshot that is being received. It lives in memory only, so a restart discards it.
#[derive(Default)]
struct Receiving {
    digest: Digest,
    data: SnapshotData,
}

/// Serves Raft's messages to this node.
pub(crate) struct Server {
    raft: Raft,
    halt: Halt,
    receiving: Mutex<Option<Receiving>>,
}

fn refuse(code: &str, error: impl ToString) -> Refusal {
    Refusal::new(code, error.to_string())
}

/// Refuses a peer that may not vote, or that speaks for another node.
fn check_speaker(peer: Peer, speaks_for: NodeId) -> Result<(), Refusal> {
    if peer.role != Role::Voter {
        return Err(refuse("denied", "a worker takes no part in Raft"));
    }
    if peer.id != speaks_for {
        return Err(refuse("denied", format!("node {:?} speaks for {speaks_for:?}", peer.id)));
    }
    Ok(())
}

impl Server {
    pub(crate) fn new(raft: Raft, halt: Halt) -> Self {
        Server { raft, halt, receiving: Mutex::default() }
    }

    /// openraft answers none but errors that ended it. Its end is noticed here first: it may be a panic, of which nobody is
    /// told.
    fn halted(&self, error: RaftError<TC>) -> Refusal {
        if let RaftError::Fatal(fatal) = &error {
            self.halt.because(fatal);
        }
        refuse("halted", error)
    }

    /// Appends; the answer also says whether `peer` was heard as the leader.
    pub(crate) async fn append(&self, peer: Peer, body: &[u8]) -> Result<(Vec<u8>, bool), Refusal> {
        let request: AppendV1 = wire::decode(body).map_err(|error| refuse("invalid", error))?;
        check_speaker(peer, request.vote.node)?;
        let request = AppendEntriesRequest::try_from(request).map_err(|error| refuse("invalid", error))?;
        let answer = self.raft.append_entries(request).await.map_err(|error| self.halted(error))?;
        let answer = AppendAnswerV1::from(answer);
        let led = !matches!(answer, AppendAnswerV1::HigherVote(_));
        Ok((wire::encode(&answer), led))
    }

    /// Votes, or says how it would.
    pub(crate) async fn vote(&self, peer: Peer, body: &[u8], pre: bool) -> Result<Vec<u8>, Refusal> {
        let request: VoteRequestV1 = wire::decode(body).map_err(|error| refuse("invalid", error))?;
        check_speaker(peer, request.vote.node)?;
        let request = VoteRequest::from(request);
        let answer = if pre { self.raft.pre_vote(request).await } else { self.raft.vote(request).await };
        let answer = answer.map_err(|error| self.halted(error))?;
        Ok(wire::encode(&VoteAnswerV1::from(answer)))
    }

    /// Takes over as the leader asks.
    pub(crate) async fn transfer(&self, peer: Peer, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let request: TransferV1 = wire::decode(body).map_err(|error| refuse("invalid", error))?;
        check_speaker(peer, request.from.node)?;
        let answer = self.raft.handle_transfer_leader(request.into()).await.map_err(|error| refuse("halted", error))?;
        Ok(wire::encode(&TransferAnswerV1::from(answer)))
    }

    /// Takes a piece of a snapshot, and installs it when it is whole.
    pub(crate) async fn snapshot(&self, peer: Peer, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let part: SnapshotPartV1 = wire::decode(body).map_err(|error| refuse("invalid", error))?;
        check_speaker(peer, part.vote.node)?;
        let (next, whole) = self.receive(&part)?;
        let (vote, installed) = match whole {
            None => (part.vote, false),
            Some(snapshot) => {
                let meta = part.meta.try_into().map_err(|error| refuse("invalid", error))?;
                let snapshot = Snapshot { meta, snapshot };
                let vote = Vote::from(part.vote);
                let answer = self.raft.install_full_snapshot(vote, snapshot).await;
                (VoteV1::from(&answer.map_err(|error| refuse("halted", error))?.vote), true)
            }
        };
        Ok(wire::encode(&SnapshotPartAnswerV1 { vote, next, installed }))
    }

    /// Adds a piece: the offset that is wanted next, and the snapshot once it is whole.
    fn receive(&self, part: &SnapshotPartV1) -> Result<(u64, Option<SnapshotData>), Refusal> {
        if part.total > SNAPSHOT_BYTES_MAX {
            return Err(refuse("invalid", format!("a snapshot of {} bytes is too large", part.total)));
        }
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        if receiving.as_ref().is_none_or(|current| current.digest != part.digest) {
            *receiving = Some(Receiving { digest: part.digest, data: SnapshotData::default() });
        }
        let Some(current) = receiving.as_mut() else { return Err(refuse("internal", "no snapshot is received")) };
        let have = current.data.len();
        if part.offset == have && !part.data.is_empty() && have + part.data.len() as u64 <= part.total {
            for piece in part.data.chunks(CHUNK_BYTES) {
                current.data.chunks.push(Bytes::copy_from_slice(piece));
            }
        }
        let have = current.data.len();
        if have < part.total {
            return Ok((have, None));
        }
        // An empty snapshot is whole at once.
        let Some(done) = receiving.take() else { return Ok((have, None)) };
        if done.data.digest() != part.digest {
            return Err(refuse("invalid", "the snapshot's digest differs from what was announced"));
        }
        Ok((have, Some(done.data)))
    }
}
