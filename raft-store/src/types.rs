//! openraft's type configuration, and the only place where its generics get names.
//!
//! Leaders are identified the standard way, at most one per term: a takeover names the term whose leader judged the
//! lease expired, which would say nothing if a term could have two leaders.

use std::fmt;

use bytes::Bytes;
use fabric::ids::NodeId;
use fabric::rpc::Refusal;
use openraft::alias::{EntryOf, LogIdOf, PayloadOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use openraft::impls::leader_id_std;
use openraft_rt::deterministic_rng::DeterministicRng;
use openraft_rt_tokio::TokioRuntime;

use crate::command::Outcome;

/// A node as openraft knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Member(pub(crate) NodeId);

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

/// What is proposed: a framed envelope. It is framed once, by the leader, and then written to the log and to the wire
/// as it is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What applying an entry gave; none for entries of Raft's own.
pub(crate) type Reply = Option<Result<Outcome, Refusal>>;

openraft::declare_raft_types!(
    /// The ledger's types.
    pub(crate) TC:
        D = Proposal,
        R = Reply,
        NodeId = Member,
        Node = String,
        LeaderId = leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = DeterministicRng<TokioRuntime>,
);

pub(crate) type LogId = LogIdOf<TC>;
pub(crate) type Vote = VoteOf<TC>;
pub(crate) type Entry = EntryOf<TC>;
pub(crate) type Payload = PayloadOf<TC>;
pub(crate) type Membership = openraft::Membership<Member, String>;
pub(crate) type StoredMembership = StoredMembershipOf<TC>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<TC>;
pub(crate) type Snapshot = SnapshotOf<TC, SnapshotData>;
pub(crate) type Raft = openraft::Raft<TC, crate::store::StateMachine>;

/// A snapshot's framed records, in chunks of at most `CHUNK_BYTES`. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SnapshotData {
    pub(crate) chunks: Vec<Bytes>,
}

impl SnapshotData {
    /// Bytes in all.
    pub(crate) fn len(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }

    /// blake3 over all chunks: names the snapshot while it travels.
    pub(crate) fn digest(&self) -> fabric::ids::Digest {
        let mut hasher = blake3::Hasher::new();
        for chunk in &self.chunks {
            hasher.update(chunk);
        }
        fabric::ids::Digest(*hasher.finalize().as_bytes())
    }
}

/// The log id of `index` in `term`.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

/// The term of a log id.
pub(crate) fn term_of(id: &LogId) -> u64 {
    **id.committed_leader_id()
}
