//! Datagrams of overlay networks: one connection for each peer that carries nothing else, since datagrams go before streams
//! and a tenant's traffic must not delay the fabric's own.
//!
//! Sending waits for room: quinn drops the oldest datagram of a full buffer, and a TCP inside would take that for congestion
//! of a path that has none. What arrives is taken by the connection's own task, in order; when that is too slow quinn drops the
//! oldest, which [`PathState::dropped`] tells.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use quinn::{ConnectionError, SendDatagramError};
use thiserror::Error;
use tokio::time::{Instant, timeout};

use super::link::{InUse, Link};
use super::{Class, Shared, Transport, dial, fault};
use crate::ids::NodeId;
use crate::limits::DATA_BURST;
use crate::rpc::CallError;

/// First byte of a datagram that only keeps a connection alive: no taker gets it.
pub const POKE: u8 = 0;

/// Who takes what peers send of overlay networks.
pub trait DataService: Send + Sync {
    /// Somebody for one connection with this peer, as long as it lasts.
    fn taker(&self, peer: NodeId) -> Box<dyn DataTaker>;
}

/// Takes the datagrams of one connection.
pub trait DataTaker: Send {
    /// One has come. Must not wait: nothing else of this connection is read meanwhile.
    fn take(&mut self, datagram: Bytes);
    /// What had come is taken. When it wants to be asked again though nothing more comes, after this time.
    fn rest(&mut self) -> Option<Duration>;
}

/// Why a datagram was not sent.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum DataError {
    /// The path has become too narrow for it.
    #[error("the datagram is larger than the path takes")]
    TooBig,
    /// The connection has ended, in words.
    #[error("the data connection has ended: {0}")]
    Ended(String),
}

impl From<SendDatagramError> for DataError {
    fn from(error: SendDatagramError) -> Self {
        match error {
            SendDatagramError::TooLarge => DataError::TooBig,
            SendDatagramError::ConnectionLost(error) => DataError::Ended(fault::text(&error)),
            other => DataError::Ended(other.to_string()),
        }
    }
}

/// What a data connection looks like from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathState {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Bytes of the largest datagram that fits now.
    pub datagram_bytes: usize,
    /// Packets sent since the connection began.
    pub sent: u64,
    /// Those of them that got lost.
    pub lost: u64,
    /// Datagrams that came and that nobody took in time.
    pub dropped: u64,
}

/// A data connection with a peer. Clones share it.
#[derive(Debug, Clone)]
pub struct DataPath {
    link: Arc<Link>,
    /// Keeps it from being closed for want of room for others.
    _in_use: Arc<InUse>,
}

impl DataPath {
    fn on(link: Arc<Link>) -> Self {
        let in_use = Arc::new(InUse::of(&link));
        DataPath { link, _in_use: in_use }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> NodeId {
        self.link.peer.id
    }

    /// Whether it can be used still.
    pub fn is_live(&self) -> bool {
        self.link.is_live()
    }

    /// Bytes of the largest datagram that fits now: it grows while the path is measured, and shrinks when it gets narrower.
    pub fn datagram_bytes(&self) -> usize {
        self.link.connection.max_datagram_size().unwrap_or(0)
    }

    /// What it looks like now.
    pub fn state(&self) -> PathState {
        let stats = self.link.connection.stats();
        let datagram_bytes = self.datagram_bytes();
        PathState {
            rtt: stats.path.rtt,
            datagram_bytes,
            sent: stats.path.sent_packets,
            lost: stats.path.lost_packets,
            dropped: stats.frame_rx.datagram.saturating_sub(self.link.taken()),
        }
    }

    /// Sends a datagram whose first byte is not [`POKE`], as soon as there is room.
    ///
    /// # Errors
    /// See [`DataError`].
    pub async fn send(&self, datagram: Bytes) -> Result<(), DataError> {
        self.link.touch();
        let connection = &self.link.connection;
        // Waiting costs a future and its wakers: most of the time there is room.
        if connection.datagram_send_buffer_space() >= datagram.len() {
            return Ok(connection.send_datagram(datagram)?);
        }
        Ok(connection.send_datagram_wait(datagram).await?)
    }
}

impl Transport {
    /// The data connection with a peer: one that is there, or a new one.
    ///
    /// # Errors
    /// [`CallError::Unreachable`] when there is none `within` that time.
    pub async fn data(&self, to: NodeId, within: Duration) -> Result<DataPath, CallError> {
        let link = dial::connect(&self.shared, to, Class::Data, Instant::now() + within).await;
        link.map(DataPath::on).map_err(|cause| CallError::Unreachable { node: to, cause })
    }

    /// The data connection with a peer, if there is one now.
    pub fn data_now(&self, to: NodeId) -> Option<DataPath> {
        self.shared.pool().ready(to, Class::Data).map(DataPath::on)
    }
}

/// Gives what arrives to a taker until the connection ends, and says why it did.
pub(super) async fn receive(link: &Link, shared: &Shared) -> ConnectionError {
    let Some(service) = &shared.data else { return link.connection.closed().await };
    match take_all(link, &mut *service.taker(link.peer.id)).await {
        Err(reason) => reason,
        Ok(never) => match never {},
    }
}

async fn take_all(link: &Link, taker: &mut dyn DataTaker) -> Result<Infallible, ConnectionError> {
    let take = |datagram: Bytes, taker: &mut dyn DataTaker| {
        link.took();
        if datagram.first().is_some_and(|kind| *kind != POKE) {
            taker.take(datagram);
        }
    };
    let mut asked_again = None;
    loop {
        let next = match asked_again {
            None => link.connection.read_datagram().await?,
            Some(after) => match timeout(after, link.connection.read_datagram()).await {
                Ok(next) => next?,
                Err(_) => {
                    asked_again = taker.rest();
                    continue;
                }
            },
        };
        take(next, taker);
        let mut more = DATA_BURST - 1;
        while more > 0
            && let Some(next) = link.connection.read_datagram().now_or_never()
        {
            take(next?, taker);
            more -= 1;
        }
        asked_again = taker.rest();
        if more == 0 {
            // A peer that floods must not keep this task from yielding.
            tokio::task::yield_now().await;
        }
    }
}
