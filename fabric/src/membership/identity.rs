//! Who takes part, as foca sees it, and the guard at foca's door.
//!
//! foca believes what its codec decodes, so the guard sits in the codec: a datagram counts only when its header names the
//! node that the transport authenticated, and statements about nodes that were removed, that would exceed the bound, or
//! that carry an incarnation from the far future (which would shut a node out until then) are replaced by one that says
//! nothing. Such a datagram's other statements still count: gossip about a removed node is no offence of its carrier.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, PostcardCodec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::NodeId;
use crate::limits::NODES_MAX;

/// Incarnations are boot stamps in milliseconds; one this far ahead of our clock is refused.
const FUTURE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A node, where it listens, and which of its lives this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    #[serde(with = "raw")]
    pub node: NodeId,
    pub address: SocketAddr,
    pub incarnation: u64,
}

/// 32 bytes instead of 64 digits: a datagram holds twice as many members.
mod raw {
    use super::NodeId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(id: &NodeId, s: S) -> Result<S::Ok, S::Error> {
        id.0.serialize(s)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<NodeId, D::Error> {
        <[u8; 32]>::deserialize(d).map(NodeId)
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Identity { incarnation: self.incarnation.saturating_add(1), ..self.clone() })
    }
    fn addr(&self) -> NodeId {
        self.node
    }
    fn win_addr_conflict(&self, other: &Self) -> bool {
        // The address only makes the order total, so that every node keeps the same one.
        (self.incarnation, self.address) > (other.incarnation, other.address)
    }
}

/// Why a datagram was refused. None of it was used.
#[derive(Debug, Error)]
pub(super) enum CodecError {
    #[error("malformed: {0}")]
    Malformed(#[from] postcard_error::Error),
    #[error("names another sender than the one that sent it")]
    Forged,
    #[error("comes from or concerns a node that may not take part")]
    Refused,
}

/// foca names its codec's error only as an associated type.
mod postcard_error {
    pub type Error = <foca::PostcardCodec as foca::Codec<super::Identity>>::Error;
}

/// What the guard knows; shared between foca's codec and the core that owns both.
#[derive(Debug)]
pub(super) struct Guard {
    /// Our identity, as of the last message we sent.
    pub own: Identity,
    /// Our suspicion counter, as of the last message we sent: it grows when we refute.
    pub own_counter: foca::Incarnation,
    /// Who sent the datagram at hand, as the transport authenticated it.
    pub sender: NodeId,
    /// Wall clock at the datagram at hand, Unix milliseconds.
    pub wall_ms: u64,
    /// Members that foca has or is about to have.
    pub known: BTreeSet<NodeId>,
    /// How many of them there may be.
    pub room: usize,
    /// Nodes that take no part any more.
    pub removed: BTreeSet<NodeId>,
    /// Statements that were decoded since somebody looked.
    pub told: Vec<(Identity, foca::State)>,
    /// Statements replaced so far.
    pub refused: u64,
}

impl Guard {
    fn admits(&mut self, id: &Identity) -> bool {
        let plausible = id.incarnation <= self.wall_ms.saturating_add(FUTURE_MAX.as_millis() as u64);
        let room = self.known.len() < self.room || self.known.contains(&id.node);
        plausible && room && !self.removed.contains(&id.node)
    }
}

/// The codec: postcard behind the guard.
#[derive(Debug, Clone)]
pub(super) struct Guarded(Arc<Mutex<Guard>>);

impl Guarded {
    pub fn new(own: Identity) -> Self {
        let guard = Guard {
            sender: own.node,
            own,
            own_counter: 0,
            wall_ms: 0,
            known: BTreeSet::new(),
            room: NODES_MAX,
            removed: BTreeSet::new(),
            told: Vec::new(),
            refused: 0,
        };
        Guarded(Arc::new(Mutex::new(guard)))
    }
    pub fn lock(&self) -> MutexGuard<'_, Guard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Codec<Identity> for Guarded {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Identity>, buf: impl BufMut) -> Result<(), CodecError> {
        let mut guard = self.lock();
        if guard.own != header.src {
            guard.own = header.src.clone();
        }
        guard.own_counter = header.src_incarnation;
        Ok(PostcardCodec.encode_header(header, buf)?)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, CodecError> {
        let header: Header<Identity> = PostcardCodec.decode_header(buf)?;
        let mut guard = self.lock();
        if header.src.node != guard.sender {
            return Err(CodecError::Forged);
        }
        let relayed = match &header.message {
            Message::PingReq { target: other, .. }
            | Message::IndirectPing { origin: other, .. }
            | Message::IndirectAck { target: other, .. }
            | Message::ForwardedAck { origin: other, .. } => Some(other.node),
            _ => None,
        };
        // We relay between members only, or a peer could make us knock at any door.
        if relayed.is_some_and(|other| !guard.known.contains(&other)) || !guard.admits(&header.src) {
            return Err(CodecError::Refused);
        }
        guard.known.insert(header.src.node);
        Ok(header)
    }

    fn encode_member(&mut self, member: &Member<Identity>, buf: impl BufMut) -> Result<(), CodecError> {
        Ok(PostcardCodec.encode_member(member, buf)?)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Identity>, CodecError> {
        let member: Member<Identity> = PostcardCodec.decode_member(buf)?;
        let mut guard = self.lock();
        if guard.admits(member.id()) {
            guard.known.insert(member.id().node);
            guard.told.push((member.id().clone(), member.state()));
            return Ok(member);
        }
        guard.refused += 1;
        // "We are alive" is what foca does nothing about.
        Ok(Member::alive(guard.own.clone()))
    }
}
