//! Wire and disk forms of what openraft passes around: immutable `...V1` mirrors with conversions both ways.
//!
//! openraft's own types have no stable encoding (and are compiled without serde), so none of them is ever archived.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fabric::ids::{Digest, NodeId};
use fabric::records;
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::vote::RaftVote;
use rkyv::{Archive, Deserialize, Serialize};

use crate::types::{
    Entry, LogId, Member, Membership, Proposal, SnapshotMeta, StoredMembership, TC, Vote, log_id, term_of,
};

/// A position in the log.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogIdV1 {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// A vote, or a leader's authority once `committed`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VoteV1 {
    pub(crate) term: u64,
    pub(crate) node: NodeId,
    pub(crate) committed: bool,
}

/// Voters (two sets while they change) and every member's address.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct MembershipV1 {
    pub(crate) configs: Vec<Vec<NodeId>>,
    pub(crate) nodes: Vec<(NodeId, String)>,
}

/// What an entry holds.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) enum PayloadV1 {
    /// A new leader's first entry.
    Blank,
    /// A framed envelope.
    Command(Vec<u8>),
    /// A change of members.
    Membership(MembershipV1),
}

/// One entry, in the log and on the wire.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntryV1 {
    pub(crate) id: LogIdV1,
    pub(crate) payload: PayloadV1,
}

/// Entries for a follower; none is a heartbeat.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct AppendV1 {
    pub(crate) vote: VoteV1,
    pub(crate) previous: Option<LogIdV1>,
    pub(crate) committed: Option<LogIdV1>,
    pub(crate) entries: Vec<EntryV1>,
}

/// The follower's answer.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) enum AppendAnswerV1 {
    Success,
    Partial(Option<LogIdV1>),
    Conflict,
    HigherVote(VoteV1),
}

/// A candidate asks for a vote, or whether it would get one.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct VoteRequestV1 {
    pub(crate) vote: VoteV1,
    pub(crate) last: Option<LogIdV1>,
    pub(crate) transfer: bool,
}

/// The answer to a [`VoteRequestV1`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct VoteAnswerV1 {
    pub(crate) vote: VoteV1,
    pub(crate) granted: bool,
    pub(crate) last: Option<LogIdV1>,
}

/// What a snapshot covers.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotMetaV1 {
    pub(crate) last: Option<LogIdV1>,
    pub(crate) membership_at: Option<LogIdV1>,
    pub(crate) membership: MembershipV1,
}

/// A piece of a snapshot on its way. Without data it asks how far the receiver is.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotPartV1 {
    pub(crate) vote: VoteV1,
    pub(crate) meta: SnapshotMetaV1,
    /// blake3 of the whole snapshot.
    pub(crate) digest: Digest,
    /// Bytes of the whole snapshot.
    pub(crate) total: u64,
    /// Where `data` belongs.
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
}

/// How far the receiver is.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotPartAnswerV1 {
    pub(crate) vote: VoteV1,
    /// The next offset that the receiver wants.
    pub(crate) next: u64,
    /// The snapshot is installed.
    pub(crate) installed: bool,
}

/// A leader hands over.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct TransferV1 {
    pub(crate) from: VoteV1,
    pub(crate) to: NodeId,
    pub(crate) last: Option<LogIdV1>,
}

/// The answer to a [`TransferV1`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) enum TransferAnswerV1 {
    Accepted,
    VoteChanged { expected: VoteV1, actual: VoteV1 },
    LogNotFlushed { expected: Option<LogIdV1>, actual: Option<LogIdV1> },
}

/// A snapshot that is complete on disk.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotHeadV1 {
    /// First half of its chunks' keys.
    pub(crate) generation: u64,
    pub(crate) chunks: u32,
    pub(crate) digest: Digest,
    pub(crate) meta: SnapshotMetaV1,
}

/// One chunk of a snapshot on disk.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotChunkV1 {
    pub(crate) generation: u64,
    pub(crate) number: u32,
    pub(crate) data: Vec<u8>,
}

/// Version of the ledger's database.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct FormatV1 {
    pub(crate) version: u32,
}

/// Which records of the journal are of use: what an earlier head named is in the database.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JournalHeadV1 {
    /// Drawn when the store was opened, and told to nobody: what a client has put into an entry cannot be taken for a record.
    pub(crate) run: [u8; 16],
    /// Counts how often the database took the journal in since.
    pub(crate) generation: u64,
}

/// What one sync of the journal made durable.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct JournalRecordV1 {
    pub(crate) head: JournalHeadV1,
    /// Its number behind the head, from 0.
    pub(crate) number: u64,
    /// How far the log was known to be committed.
    pub(crate) committed: Option<LogIdV1>,
    pub(crate) entries: Vec<EntryV1>,
}

records!(
    EntryV1 = (140, 1),
    VoteV1 = (141, 1),
    LogIdV1 = (142, 1),
    AppendV1 = (143, 1),
    AppendAnswerV1 = (144, 1),
    VoteRequestV1 = (145, 1),
    VoteAnswerV1 = (146, 1),
    SnapshotPartV1 = (147, 1),
    SnapshotPartAnswerV1 = (148, 1),
    TransferV1 = (149, 1),
    TransferAnswerV1 = (150, 1),
    SnapshotHeadV1 = (151, 1),
    SnapshotChunkV1 = (152, 1),
    FormatV1 = (153, 1),
    JournalHeadV1 = (154, 1),
    JournalRecordV1 = (155, 1),
);

/// Why a peer's message means nothing: it decodes, yet names no valid set of members.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the membership is not valid: {0}")]
pub(crate) struct BadMembership(String);

impl From<LogId> for LogIdV1 {
    fn from(id: LogId) -> Self {
        LogIdV1 { term: term_of(&id), index: id.index }
    }
}

impl From<LogIdV1> for LogId {
    fn from(id: LogIdV1) -> Self {
        log_id(id.term, id.index)
    }
}

impl From<&Vote> for VoteV1 {
    fn from(vote: &Vote) -> Self {
        VoteV1 { term: vote.leader_id.term, node: vote.leader_id.voted_for.0, committed: vote.committed }
    }
}

impl From<VoteV1> for Vote {
    fn from(vote: VoteV1) -> Self {
        let leader = openraft::impls::leader_id_std::LeaderId { term: vote.term, voted_for: Member(vote.node) };
        Vote::from_leader_id(leader, vote.committed)
    }
}

impl From<&Membership> for MembershipV1 {
    fn from(membership: &Membership) -> Self {
        let set = |config: &BTreeSet<Member>| config.iter().map(|member| member.0).collect();
        MembershipV1 {
            configs: membership.get_joint_config().iter().map(set).collect(),
            nodes: membership.nodes().map(|(member, address)| (member.0, address.clone())).collect(),
        }
    }
}

impl TryFrom<MembershipV1> for Membership {
    type Error = BadMembership;
    fn try_from(membership: MembershipV1) -> Result<Self, BadMembership> {
        let configs = membership.configs.into_iter().map(|set| set.into_iter().map(Member).collect()).collect();
        let nodes: BTreeMap<Member, String> = membership.nodes.into_iter().map(|(id, at)| (Member(id), at)).collect();
        Membership::new(configs, nodes).map_err(|error| BadMembership(error.to_string()))
    }
}

impl From<&Entry> for EntryV1 {
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => PayloadV1::Blank,
            EntryPayload::Normal(proposal) => PayloadV1::Command(proposal.0.to_vec()),
            EntryPayload::Membership(membership) => PayloadV1::Membership(membership.into()),
        };
        EntryV1 { id: entry.log_id.into(), payload }
    }
}

impl EntryV1 {
    /// openraft's form of it. (Not `TryFrom`: the compiler takes the alias for any type at all.)
    pub(crate) fn into_entry(self) -> Result<Entry, BadMembership> {
        let payload = match self.payload {
            PayloadV1::Blank => EntryPayload::Blank,
            PayloadV1::Command(frame) => EntryPayload::Normal(Proposal(Bytes::from(frame))),
            PayloadV1::Membership(membership) => EntryPayload::Membership(membership.try_into()?),
        };
        Ok(Entry { log_id: self.id.into(), payload })
    }
}

impl From<&SnapshotMeta> for SnapshotMetaV1 {
    fn from(meta: &SnapshotMeta) -> Self {
        SnapshotMetaV1 {
            last: meta.last_log_id.map(Into::into),
            membership_at: meta.last_membership.log_id().map(Into::into),
            membership: meta.last_membership.membership().into(),
        }
    }
}

impl TryFrom<SnapshotMetaV1> for SnapshotMeta {
    type Error = BadMembership;
    fn try_from(meta: SnapshotMetaV1) -> Result<Self, BadMembership> {
        let membership = meta.membership.try_into()?;
        Ok(SnapshotMeta {
            last_log_id: meta.last.map(Into::into),
            last_membership: StoredMembership::new(meta.membership_at.map(Into::into), membership),
        })
    }
}

impl From<&AppendEntriesRequest<TC>> for AppendV1 {
    fn from(request: &AppendEntriesRequest<TC>) -> Self {
        AppendV1 {
            vote: (&request.vote).into(),
            previous: request.prev_log_id.map(Into::into),
            committed: request.leader_commit.map(Into::into),
            entries: request.entries.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<AppendV1> for AppendEntriesRequest<TC> {
    type Error = BadMembership;
    fn try_from(request: AppendV1) -> Result<Self, BadMembership> {
        Ok(AppendEntriesRequest {
            vote: request.vote.into(),
            prev_log_id: request.previous.map(Into::into),
            leader_commit: request.committed.map(Into::into),
            entries: request.entries.into_iter().map(EntryV1::into_entry).collect::<Result<_, _>>()?,
        })
    }
}

impl From<AppendEntriesResponse<TC>> for AppendAnswerV1 {
    fn from(answer: AppendEntriesResponse<TC>) -> Self {
        match answer {
            AppendEntriesResponse::Success => AppendAnswerV1::Success,
            AppendEntriesResponse::PartialSuccess(id) => AppendAnswerV1::Partial(id.map(Into::into)),
            AppendEntriesResponse::Conflict => AppendAnswerV1::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendAnswerV1::HigherVote((&vote).into()),
        }
    }
}

impl From<AppendAnswerV1> for AppendEntriesResponse<TC> {
    fn from(answer: AppendAnswerV1) -> Self {
        match answer {
            AppendAnswerV1::Success => AppendEntriesResponse::Success,
            AppendAnswerV1::Partial(id) => AppendEntriesResponse::PartialSuccess(id.map(Into::into)),
            AppendAnswerV1::Conflict => AppendEntriesResponse::Conflict,
            AppendAnswerV1::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
        }
    }
}

impl From<&VoteRequest<TC>> for VoteRequestV1 {
    fn from(request: &VoteRequest<TC>) -> Self {
        VoteRequestV1 {
            vote: (&request.vote).into(),
            last: request.last_log_id.map(Into::into),
            transfer: request.leadership_transfer,
        }
    }
}

impl From<VoteRequestV1> for VoteRequest<TC> {
    fn from(request: VoteRequestV1) -> Self {
        let mut out = VoteRequest::new(request.vote.into(), request.last.map(Into::into));
        out.leadership_transfer = request.transfer;
        out
    }
}

impl From<VoteResponse<TC>> for VoteAnswerV1 {
    fn from(answer: VoteResponse<TC>) -> Self {
        VoteAnswerV1 {
            vote: (&answer.vote).into(),
            granted: answer.vote_granted,
            last: answer.last_log_id.map(Into::into),
        }
    }
}

impl From<VoteAnswerV1> for VoteResponse<TC> {
    fn from(answer: VoteAnswerV1) -> Self {
        VoteResponse::new(Vote::from(answer.vote), answer.last.map(Into::into), answer.granted)
    }
}

impl From<&TransferLeaderRequest<TC>> for TransferV1 {
    fn from(request: &TransferLeaderRequest<TC>) -> Self {
        TransferV1 {
            from: request.from_leader().into(),
            to: request.to_node_id().0,
            last: request.last_log_id().copied().map(Into::into),
        }
    }
}

impl From<TransferV1> for TransferLeaderRequest<TC> {
    fn from(request: TransferV1) -> Self {
        TransferLeaderRequest::new(request.from.into(), Member(request.to), request.last.map(Into::into))
    }
}

impl From<TransferLeaderResponse<TC>> for TransferAnswerV1 {
    fn from(answer: TransferLeaderResponse<TC>) -> Self {
        match answer {
            Ok(()) => TransferAnswerV1::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                TransferAnswerV1::VoteChanged { expected: (&expected).into(), actual: (&actual).into() }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                TransferAnswerV1::LogNotFlushed { expected: expected.map(Into::into), actual: actual.map(Into::into) }
            }
        }
    }
}

impl From<TransferAnswerV1> for TransferLeaderResponse<TC> {
    fn from(answer: TransferAnswerV1) -> Self {
        match answer {
            TransferAnswerV1::Accepted => Ok(()),
            TransferAnswerV1::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
            }
            TransferAnswerV1::LogNotFlushed { expected, actual } => Err(TransferLeaderError::LogNotFlushed {
                expected: expected.map(Into::into),
                actual: actual.map(Into::into),
            }),
        }
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
pub(crate) mod tests;
