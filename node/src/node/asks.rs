//! What nodes ask each other about machines and trust, as framed messages.
//!
//! Request kinds of this package are 300-349, kinds of streams 350-399. Only voter-role peers may reach into machines:
//! a worker speaks for itself alone (design section 4).

use fabric::ids::{Digest, MachineId, NodeId};
use fabric::model::{MachineStatus, Tombstone};
use fabric::records;
use fabric::rpc::{Kind, Refusal};
use fabric::wire::{self, Record};
use rkyv::{Archive, Deserialize, Serialize};

/// Ask a node what it observes of machines.
pub const STATUS: Kind = 300;
/// Ask a node for all tombstones that it holds.
pub const TOMBSTONES: Kind = 301;
/// Ask a voter for a certificate.
pub const ISSUE: Kind = 302;
/// Ask a voter to sign a tombstone; answered as [`TOMBSTONES`] is.
pub const BURY: Kind = 303;
/// Ask a voter where a machine could move: a worker does not know the other nodes.
pub const ROOM: Kind = 304;

/// Ask a voter which images the ledger names: a worker is told of none.
pub const NAMED: Kind = 305;

/// A stream to a program in a machine: frames of `api::frames`.
pub const EXEC: Kind = 350;
/// A stream of a machine's log lines.
pub const LOGS: Kind = 351;
/// A stream to a TCP port of a machine.
pub const CONNECT: Kind = 352;
/// A stream of an image's chunks.
pub const IMAGE: Kind = 353;
/// A stream that asks the owner of a machine to move it, and tells how it goes.
pub const MOVE: Kind = 355;
/// A stream that carries a machine's writable layer.
pub const LAYER: Kind = 354;

/// Most digests in one [`NAMED`] question.
pub const NAMED_IMAGES_MAX: usize = 1024;
/// Most machines in one [`STATUS`] question.
pub const STATUS_MACHINES_MAX: usize = 4096;

/// [`STATUS`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct StatusAskV1 {
    /// At most [`STATUS_MACHINES_MAX`].
    pub machines: Vec<MachineId>,
}

/// The answer to [`STATUS`]: those of the asked machines that the node has.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct StatusAnswerV1 {
    /// One for each.
    pub statuses: Vec<MachineStatus>,
}

/// The answer to [`TOMBSTONES`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TombstonesV1 {
    /// Every one is verified by who gets it.
    pub tombstones: Vec<Tombstone>,
}

/// [`ISSUE`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct IssueAskV1 {
    /// Raw Ed25519 key of an admitted node.
    pub public_key: [u8; 32],
}

/// The answer to [`ISSUE`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct IssueAnswerV1 {
    /// DER.
    pub certificate: Vec<u8>,
    /// The CA that signed it, DER.
    pub ca: Vec<u8>,
}

/// [`BURY`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct BuryAskV1 {
    /// The node to be removed.
    pub node: NodeId,
}

/// [`ROOM`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct RoomAskV1 {
    /// A machine of the node that asks.
    pub machine: MachineId,
}

/// The answer to [`ROOM`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct RoomAnswerV1 {
    /// The best node for it, other than its owner.
    pub node: NodeId,
}

/// [`NAMED`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct NamedAskV1 {
    /// At most [`NAMED_IMAGES_MAX`].
    pub images: Vec<Digest>,
}

/// The answer to [`NAMED`]: those of the asked images that an image's name or a machine names.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct NamedAnswerV1 {
    /// By a linearizable read.
    pub images: Vec<Digest>,
}

/// Header of [`EXEC`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ExecAskV1 {
    /// The machine.
    pub machine: MachineId,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Standard input is sent.
    pub stdin: bool,
}

/// Header of [`LOGS`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct LogsAskV1 {
    /// The machine.
    pub machine: MachineId,
    /// The last this many lines.
    pub tail: Option<u32>,
    /// Go on.
    pub follow: bool,
}

/// One line on a [`LOGS`] stream.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct LogLineV1 {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// From standard error.
    pub stderr: bool,
    /// Without its end.
    pub text: String,
}

/// Header of [`CONNECT`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ConnectAskV1 {
    /// The machine.
    pub machine: MachineId,
    /// TCP port inside it.
    pub port: u16,
}

records!(
    StatusAskV1 = (361, 1),
    StatusAnswerV1 = (362, 1),
    TombstonesV1 = (363, 1),
    IssueAskV1 = (364, 1),
    IssueAnswerV1 = (365, 1),
    ExecAskV1 = (366, 1),
    LogsAskV1 = (367, 1),
    LogLineV1 = (368, 1),
    ConnectAskV1 = (369, 1),
    BuryAskV1 = (370, 1),
    RoomAskV1 = (374, 1),
    RoomAnswerV1 = (375, 1),
    NamedAskV1 = (376, 1),
    NamedAnswerV1 = (377, 1),
);

/// Reads a peer's question.
///
/// # Errors
/// `garbled`: it is not the message that its kind promises.
pub fn read<T: Record>(frame: &[u8]) -> Result<T, Refusal>
where
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, rkyv::rancor::Error>>
        + rkyv::Deserialize<T, rkyv::api::high::HighDeserializer<rkyv::rancor::Error>>,
{
    wire::decode(frame)
        .map_err(|error| Refusal::new("garbled", error.to_string()).hint("do all nodes run one version?"))
}

/// Refuses peers that only speak for themselves.
///
/// # Errors
/// `denied` for a worker.
pub fn operator(peer: fabric::rpc::Peer) -> Result<(), Refusal> {
    match peer.role {
        fabric::model::Role::Voter => Ok(()),
        fabric::model::Role::Worker => Err(Refusal::new("denied", "a worker reaches no machines of other nodes")
            .hint("run the command on a node that was admitted as voter")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::images::manifest::{ImageAskV1, ImageManifestV1, ImageWantV1};
    use crate::moving::driver::{MoveAskV1, MoveNewsV1};
    use crate::moving::marker::MarkersV1;
    use crate::node::dir::ClusterFileV1;

    /// A frame of type `T` with a good checksum around any body: what a hostile peer can make.
    fn framed<T: Record>(body: &[u8]) -> Vec<u8> {
        let mut head = wire::MAGIC.to_vec();
        for word in [wire::PROTOCOL, T::TYPE, T::VERSION, 0] {
            head.extend_from_slice(&word.to_le_bytes());
        }
        head.extend_from_slice(&(body.len() as u32).to_le_bytes());
        let sum = *blake3::Hasher::new().update(&head).update(body).finalize().as_bytes();
        [&head[..], &sum, body].concat()
    }

    fn feed_all(body: &[u8]) {
        macro_rules! feed {
            ($($record:ty),+ $(,)?) => { $( let _ = read::<$record>(&framed::<$record>(body)); )+ };
        }
        feed!(StatusAskV1, StatusAnswerV1, TombstonesV1, IssueAskV1, IssueAnswerV1, ExecAskV1, LogsAskV1, LogLineV1);
        feed!(
            ConnectAskV1,
            BuryAskV1,
            MoveAskV1,
            MoveNewsV1,
            MarkersV1,
            ClusterFileV1,
            ImageAskV1,
            ImageManifestV1,
            ImageWantV1,
            RoomAskV1,
            NamedAskV1,
            NamedAnswerV1
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            feed_all(&body);
        }

        /// Small changes of a valid message get further than noise does.
        #[test]
        fn no_changed_message_panics(at in any::<prop::sample::Index>(), bits in 1u8..) {
            let valid = ExecAskV1 { machine: MachineId([3; 16]), argv: vec!["a".into(), "long".repeat(9)], stdin: true };
            let mut body = wire::encode(&valid)[wire::HEADER_BYTES..].to_vec();
            let at = at.index(body.len());
            body[at] ^= bits;
            feed_all(&body);
        }
    }
}
