//! What membership and gossip ask of the transport, and no more: their tests need no QUIC. And the transport's answer.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::ids::NodeId;
use crate::rpc::{CallError, Kind};
use crate::transport::Transport;

/// Kind of the one-way messages that gossip sends.
pub const GOSSIP: Kind = 20;
/// A gossip message that is not with QUIC by then is given up: the next round carries the same.
pub const GOSSIP_SEND_TIMEOUT: Duration = Duration::from_secs(2);

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

impl Datagrams for Transport {
    fn send(&self, to: NodeId, address: SocketAddr, bytes: Bytes) {
        // Membership hears first when a node has moved.
        if self.address_of(to) != Some(address) {
            self.learn(to, address);
        }
        self.send_datagram(to, bytes);
    }
}

#[async_trait]
impl Uni for Transport {
    async fn send(&self, to: NodeId, bytes: Bytes) -> Result<(), CallError> {
        self.send_uni(to, GOSSIP, &bytes, GOSSIP_SEND_TIMEOUT).await
    }
}
