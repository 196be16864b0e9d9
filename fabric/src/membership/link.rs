//! What membership and gossip ask of the transport, and no more: their tests need no QUIC.

use std::fmt::Debug;
use std::net::SocketAddr;

use async_trait::async_trait;
use bytes::Bytes;

use crate::ids::NodeId;
use crate::rpc::CallError;

/// Unreliable messages of at most `DATAGRAM_BYTES_MAX` to an authenticated peer.
///
/// What comes in arrives on a bounded channel of `(authenticated sender, bytes)`; when it is full the transport drops.
pub trait Datagrams: Debug + Send + Sync {
    /// Sends, or drops: never waits. Dials `address` when there is no connection to `to`; whoever answers there must prove
    /// to be `to`.
    fn send(&self, to: NodeId, address: SocketAddr, bytes: Bytes);
}

/// One-way reliable messages of at most `GOSSIP_MESSAGE_BYTES_MAX` to an authenticated peer.
#[async_trait]
pub trait Uni: Debug + Send + Sync {
    /// Sends and returns when the message is handed over; the caller bounds how long that may take.
    async fn send(&self, to: NodeId, bytes: Bytes) -> Result<(), CallError>;
}
