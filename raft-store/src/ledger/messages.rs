//! What ledgers ask each other beyond Raft itself.

use fabric::ids::{Digest, NodeId};
use fabric::records;
use fabric::rpc::{Kind, Refusal};
use rkyv::{Archive, Deserialize, Serialize};

use crate::command::Outcome;
use crate::lease::GrantV1;

/// Writes for the leader, many at once.
pub(crate) const FORWARD: Kind = 105;
/// A follower asks the leader which index a linearizable read needs.
pub(crate) const READ_INDEX: Kind = 106;

/// A node asks the leader to renew its lease.
pub(crate) const RENEW: Kind = 107;
/// A caretaker asks the leader about an owner's lease.
pub(crate) const JUDGE: Kind = 108;

/// A spare asks for a page of what it may know.
pub(crate) const PAGE: Kind = 109;

/// Writes for the leader from a node that it does not answer, through another member.
pub(crate) const RELAY: Kind = 110;
/// [`READ_INDEX`] from a node that the leader does not answer, through another member.
pub(crate) const RELAY_READ_INDEX: Kind = 111;
/// [`RENEW`] from a node that the leader does not answer, through another member.
pub(crate) const RELAY_RENEW: Kind = 112;

/// Framed envelopes for the leader, whose actor is the sender.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardV1 {
    pub(crate) envelopes: Vec<Vec<u8>>,
}

/// Framed envelopes for the leader, whose actor is `origin`. The origin sends them to a member, which passes them on
/// to the leader as they are; nobody passes on what comes from another than its origin, so there is no second hop.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelayV1 {
    pub(crate) origin: NodeId,
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

/// A lease was granted.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RenewAnswerV1 {
    pub(crate) grant: GrantV1,
}

/// Asks for the lease of `origin`, who sends it to a member, which passes it on to the leader. No second hop.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelayRenewV1 {
    pub(crate) origin: NodeId,
}

/// May a machine of `owner` be taken over?
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JudgeV1 {
    pub(crate) owner: NodeId,
    pub(crate) exclusive: bool,
}

/// The leader's answer to a [`JudgeV1`].
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VerdictV1 {
    Expired { term: u64 },
    Held { left_ms: u64 },
    Unknown,
}

records!(ForwardV1 = (154, 1), ForwardAnswerV1 = (155, 1), ReadIndexV1 = (156, 1), EmptyV1 = (157, 1));
records!(RenewAnswerV1 = (158, 1), JudgeV1 = (159, 1), VerdictV1 = (160, 1));

/// What a page is of.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubjectV1 {
    /// The records that concern the asking node.
    Mine,
    /// The whole state without CA keys.
    State,
}

/// Asks for a page.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRequestV1 {
    pub(crate) subject: SubjectV1,
    /// The newest (cluster epoch, index) that the asker has: older answers are of no use.
    pub(crate) known: (u64, u64),
    /// Digest of what the asker has, whole (offset zero) or up to the offset.
    pub(crate) have: Option<Digest>,
    /// The answer has to have applied so much.
    pub(crate) min_index: u64,
    /// How long to wait for news.
    pub(crate) wait_ms: u64,
    pub(crate) offset: u64,
}

/// A page. Without data at offset zero: nothing is new.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageV1 {
    pub(crate) at: (u64, u64),
    /// Stamp of the last entry that was applied then.
    pub(crate) at_ms: u64,
    pub(crate) digest: Digest,
    pub(crate) total: u64,
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
}

records!(PageRequestV1 = (163, 1), PageV1 = (164, 1), RelayV1 = (165, 1), RelayRenewV1 = (166, 1));

/// Feeds any body to every decoder of this file, in a frame with a good checksum.
#[cfg(test)]
pub(crate) fn feed_decoders(body: &[u8]) {
    use crate::codec::tests::framed;
    use fabric::wire::decode;
    macro_rules! feed {
        ($($record:ty),+ $(,)?) => { $( let _ = decode::<$record>(&framed::<$record>(body)); )+ };
    }
    feed!(ForwardV1, RelayV1, ForwardAnswerV1, ReadIndexV1, EmptyV1, RenewAnswerV1, JudgeV1, VerdictV1);
    feed!(PageRequestV1, PageV1, RelayRenewV1);
}
