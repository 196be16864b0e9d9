//! What ledgers ask each other beyond Raft itself.

use fabric::ids::NodeId;
use fabric::records;
use fabric::rpc::{Kind, Refusal};
use rkyv::{Archive, Deserialize, Serialize};

use crate::command::Outcome;

/// Writes for the leader, many at once.
pub(crate) const FORWARD: Kind = 105;
/// A follower asks the leader which index a linearizable read needs.
pub(crate) const READ_INDEX: Kind = 106;

/// Framed envelopes for the leader, whose actor is the sender.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardV1 {
    pub(crate) envelopes: Vec<Vec<u8>>,
}

/// What became of one write.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) enum WriteAnswerV1 {
    Applied { index: u64, outcome: Outcome },
    Refused(Refusal),
    NotLeader(Option<NodeId>),
    Unknown,
}

/// One answer for each envelope, in order.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardAnswerV1 {
    pub(crate) answers: Vec<WriteAnswerV1>,
}

/// The index that a read has to wait for, or who leads.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReadIndexV1 {
    Index(u64),
    NotLeader(Option<NodeId>),
}

/// Nothing to say.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EmptyV1;

records!(ForwardV1 = (154, 1), ForwardAnswerV1 = (155, 1), ReadIndexV1 = (156, 1), EmptyV1 = (157, 1));
