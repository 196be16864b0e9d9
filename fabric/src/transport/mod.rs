//! Everything between nodes: QUIC with mutual TLS 1.3 on one UDP port.
//!
//! Six protocols share the port. `control` (membership, gossip, Raft, requests), `bulk` (images, moves), `session` (streams
//! that people hold open) and `data` (overlay networks) need a live member on both ends and never share a connection, so
//! that none of them can use up what another needs; `join` authenticates the server alone; `renew` also lets an expired certificate in. A peer is dialled at its address in the book and must prove the NodeId that was wanted.
//! Connections are made when needed and end when unused. quinn's types stay inside.

mod accept;
pub mod data;
mod dial;
mod endpoint;
mod fault;
pub mod join;
mod link;
mod pool;
mod request;
mod stream;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quinn::Endpoint;
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::identity::{Credentials, IdentityError, NodeKey, SharedTrust};
use crate::ids::NodeId;
use crate::limits::*;
use crate::rpc::{CallError, Kind, Peer, Router, Rpc};
use crate::seams::Seams;
use data::DataService;
use fault::{CLOSE_REFUSED, CLOSE_REMOVED, CLOSE_SHUTDOWN};
use join::{JoinHandler, RenewHandler};
use link::{InUse, Link};
use pool::{Pool, Way};
use request::{AskError, Tag};

pub use stream::{Stream, StreamReader, StreamRequest, StreamRouter, StreamWriter};

/// TLS of a client of an admin port on another host: any node of role voter of these CAs will do.
pub fn admin_client_tls(clock: Arc<dyn crate::seams::Clock>, cas: crate::identity::Trust) -> Arc<rustls::ClientConfig> {
    Arc::new(tls::admin_client(clock, cas))
}

/// Which of a peer's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Membership, gossip, Raft, requests: small and urgent. No streams.
    Control,
    /// Images and moves, from asking for one to its data: large, patient, and over some day.
    Bulk,
    /// Logs, programs, forwarded ports: open as long as somebody looks, so nothing that must get on may wait for them.
    Session,
    /// Frames of overlay networks. No streams.
    Data,
}

impl Class {
    /// Every one.
    const ALL: [Class; 4] = [Class::Control, Class::Bulk, Class::Session, Class::Data];
}

/// The protocols of the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alpn {
    Join,
    Control,
    Bulk,
    Session,
    Data,
    Renew,
}

impl Alpn {
    const ALL: [Alpn; 6] = [Alpn::Join, Alpn::Control, Alpn::Bulk, Alpn::Session, Alpn::Data, Alpn::Renew];

    fn name(self) -> &'static [u8] {
        match self {
            Alpn::Join => b"smartnode-join/1",
            Alpn::Control => b"smartnode-control/1",
            Alpn::Bulk => b"smartnode-bulk/1",
            Alpn::Session => b"smartnode-session/1",
            Alpn::Data => b"smartnode-data/1",
            Alpn::Renew => b"smartnode-renew/1",
        }
    }

    fn of(class: Class) -> Self {
        match class {
            Class::Control => Alpn::Control,
            Class::Bulk => Alpn::Bulk,
            Class::Session => Alpn::Session,
            Class::Data => Alpn::Data,
        }
    }
}

/// Where a node listens.
#[derive(Debug, Clone)]
pub struct TransportConfig {
    /// Address to bind; port 0 takes a free one.
    pub listen: SocketAddr,
}

/// Who serves what peers ask.
#[derive(Default, Clone)]
pub struct Handlers {
    /// Requests.
    pub router: Router,
    /// Streams and one-way messages.
    pub streams: StreamRouter,
    /// Joins; without it they are refused.
    pub join: Option<JoinHandler>,
    /// Renewals of certificates; without it they are refused.
    pub renew: Option<RenewHandler>,
    /// Datagrams of overlay networks; without it they are dropped.
    pub data: Option<Arc<dyn DataService>>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers").field("router", &self.router).field("streams", &self.streams).finish_non_exhaustive()
    }
}

/// Why the transport cannot start.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The socket cannot be had.
    #[error("cannot listen on {listen}")]
    Bind {
        /// The address.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Peers' datagrams with their senders.
pub type Datagrams = mpsc::Receiver<(NodeId, Bytes)>;

/// An open connection, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConnection {
    /// The peer.
    pub peer: Peer,
    /// Its address.
    pub address: SocketAddr,
    /// What the connection is for.
    pub class: Class,
    /// Whether this node dialled.
    pub dialled: bool,
    /// Smoothed round-trip time.
    pub rtt: Duration,
}

struct Shared {
    me: Peer,
    seams: Seams,
    endpoint: Endpoint,
    trust: SharedTrust,
    shown: Arc<tls::Shown>,
    clients: dial::Clients,
    key: NodeKey,
    router: Router,
    streams: StreamRouter,
    join: Option<JoinHandler>,
    renew: Option<RenewHandler>,
    pool: Mutex<Pool>,
    datagrams: mpsc::Sender<(NodeId, Bytes)>,
    data: Option<Arc<dyn DataService>>,
    /// Memory for requests of peers, in units of `request::PERMIT_BYTES`.
    memory: Arc<Semaphore>,
    /// Handshakes of peers under way, by address.
    doors: Arc<accept::Doors>,
    joins: Arc<Semaphore>,
    /// A member has said that this node was removed.
    expelled: watch::Sender<bool>,
}

impl Shared {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_removed(&self, node: NodeId) -> bool {
        self.trust.read().unwrap_or_else(PoisonError::into_inner).is_removed(node)
    }

    /// Takes in a connection and runs it; says so to the peer when it cannot.
    fn install(self: &Arc<Self>, link: Link) {
        let link = Arc::new(link);
        let installed = self.pool().install(&link);
        match installed {
            Ok(waiting) => {
                waiting.iter().for_each(|datagram| link.send_datagram(datagram));
                tokio::spawn(link::run(self.clone(), link));
            }
            Err(pool::Refused::Removed) => link.close(CLOSE_REFUSED, "removed from the cluster, or shutting down"),
            Err(pool::Refused::Full) => link.close(CLOSE_REFUSED, "this node has too many connections"),
        }
    }
}

/// A node's end of the fabric. Clones share it.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    received: Arc<Mutex<Option<Datagrams>>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({:?})", self.shared.me.id)
    }
}

impl Transport {
    /// Binds the port and serves peers from now on.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(
        config: &TransportConfig,
        seams: &Seams,
        credentials: &Credentials,
        trust: SharedTrust,
        handlers: Handlers,
    ) -> Result<Self, TransportError> {
        let shown = Arc::new(tls::Shown::new(credentials));
        let server = tls::server(seams.clock.clone(), trust.clone(), shown.clone());
        let endpoint = endpoint::bind(seams, config.listen, &credentials.key, Some(server))
            .map_err(|source| TransportError::Bind { listen: config.listen, source })?;
        let (datagrams, received) = mpsc::channel(DATAGRAMS_RECEIVED_MAX);
        let me = Peer { id: credentials.id(), role: credentials.role() };
        let Handlers { router, streams, join, renew, data } = handlers;
        let shared = Arc::new(Shared {
            me,
            seams: seams.clone(),
            endpoint,
            clients: dial::Clients::new(seams, &trust, &shown),
            trust,
            shown,
            key: credentials.key.clone(),
            router,
            streams,
            join,
            renew,
            pool: Mutex::new(Pool::new(me.id)),
            datagrams,
            data,
            memory: Arc::new(Semaphore::new(request::PERMITS)),
            doors: Arc::default(),
            joins: Arc::new(Semaphore::new(JOINS_MAX)),
            expelled: watch::Sender::new(false),
        });
        tokio::spawn(accept::run(shared.clone()));
        Ok(Transport { shared, received: Arc::new(Mutex::new(Some(received))) })
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the socket does not tell.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.shared.me.id
    }

    /// Shows another certificate from now on (after a renewal). Open connections stay.
    pub fn set_credentials(&self, credentials: &Credentials) {
        self.shared.shown.replace(credentials);
    }

    /// TLS for an admin port that other hosts reach. It follows [`Transport::set_credentials`].
    pub fn admin_tls(&self) -> Arc<rustls::ServerConfig> {
        Arc::new(tls::admin_server(self.shared.seams.clock.clone(), self.shared.shown.clone()))
    }

    /// Remembers where a node listens; the latest address counts for the next dial.
    pub fn learn(&self, node: NodeId, addr: SocketAddr) {
        self.shared.pool().learn(node, addr);
    }

    /// Where a node listens, as far as this one knows.
    pub fn address_of(&self, node: NodeId) -> Option<SocketAddr> {
        self.shared.pool().address_of(node)
    }

    /// The receiver of peers' datagrams: handed out once, none afterwards.
    pub fn datagrams(&self) -> Option<Datagrams> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Sends a datagram of at most `DATAGRAM_BYTES_MAX`, or drops it: when it is too large, when the peer cannot be
    /// reached, when too many wait for the connection that is being made.
    pub fn send_datagram(&self, to: NodeId, datagram: Bytes) {
        if datagram.len() > DATAGRAM_BYTES_MAX {
            tracing::debug!(peer = ?to, bytes = datagram.len(), "a datagram was too large");
            return;
        }
        let mut pool = self.shared.pool();
        match pool.way(to, Class::Control) {
            Way::Ready(link) => {
                drop(pool);
                link.send_datagram(&datagram);
            }
            Way::Wait(..) => pool.wait(to, datagram),
            Way::Dial(attempt, address, _) => {
                pool.wait(to, datagram);
                drop(pool);
                tokio::spawn(dial::dial(self.shared.clone(), to, Class::Control, attempt, address));
            }
            Way::None(cause) => tracing::trace!(peer = ?to, cause, "a datagram was dropped"),
        }
    }

    /// Sends a one-way message of at most `GOSSIP_MESSAGE_BYTES_MAX`; success means that it was handed to QUIC.
    ///
    /// # Errors
    /// [`CallError::Unreachable`] when it was not sent.
    pub async fn send_uni(&self, to: NodeId, kind: Kind, body: &[u8], timeout: Duration) -> Result<(), CallError> {
        self.bounded(to, body, GOSSIP_MESSAGE_BYTES_MAX)?;
        let deadline = Instant::now() + timeout;
        let attempt = |link: Arc<Link>| async move {
            let _in_use = InUse::of(&link);
            request::send_message(&link.connection, kind, body, deadline).await
        };
        self.with_link(to, Class::Control, timeout, deadline, attempt).await
    }

    /// Opens a stream with a header of at most `STREAM_HEADER_BYTES_MAX`, and waits until the peer has accepted it. Never
    /// on the control connection: what stays open would take the place of what must not wait.
    ///
    /// # Errors
    /// As of a call; the peer refuses with `busy` when it serves `STREAMS_OPEN_MAX` on the connection already.
    pub async fn open(
        &self,
        to: NodeId,
        class: Class,
        kind: Kind,
        header: Vec<u8>,
        timeout: Duration,
    ) -> Result<Stream, CallError> {
        self.bounded(to, &header, STREAM_HEADER_BYTES_MAX)?;
        let deadline = Instant::now() + timeout;
        let header = &header[..];
        let attempt = |link: Arc<Link>| async move {
            let in_use = InUse::of(&link);
            let (send, mut recv) = request::open(&link.connection, Tag::Stream, kind, header, deadline).await?;
            request::read_answer(&mut recv, deadline, 0, false).await?;
            Ok(Stream::new(send, recv, Some(in_use)))
        };
        self.with_link(to, class, timeout, deadline, attempt).await
    }

    /// Asks a member for a new certificate; works with one that has expired.
    ///
    /// # Errors
    /// As of a call.
    pub async fn renew(&self, to: NodeId, timeout: Duration) -> Result<join::RenewAnswer, CallError> {
        join::renew(&self.shared, to, timeout).await
    }

    /// Returns once a member, whose certificate is good, has said that this node was removed from the cluster.
    pub async fn expelled(&self) {
        let mut news = self.shared.expelled.subscribe();
        // The sender lives as long as `self`.
        let _ = news.wait_for(|expelled| *expelled).await;
    }

    /// Closes everything of a removed peer, and refuses it at once.
    pub fn cut(&self, node: NodeId) {
        self.shared.pool().cut(node);
    }

    /// Judges every open connection again, after trust has changed.
    pub fn enforce_trust(&self) {
        let now = self.shared.seams.clock.wall();
        let links = self.shared.pool().links();
        for link in links {
            let judged =
                self.shared.trust.read().unwrap_or_else(PoisonError::into_inner).verify(&link.certificate, now);
            if let Err(error) = judged {
                let removed = matches!(error, IdentityError::Removed(_));
                link.close(if removed { CLOSE_REMOVED } else { CLOSE_REFUSED }, &error.to_string());
                self.shared.pool().remove(&link);
            }
            if self.shared.is_removed(link.peer.id) {
                self.cut(link.peer.id);
            }
        }
    }

    /// The open connections, in order of peer and class.
    pub fn peers(&self) -> Vec<PeerConnection> {
        let describe = |link: Arc<Link>| PeerConnection {
            peer: link.peer,
            address: link.address(),
            class: link.class,
            dialled: link.dialled,
            rtt: link.connection.rtt(),
        };
        let links = self.shared.pool().links();
        links.into_iter().filter(|link| link.is_live()).map(describe).collect()
    }

    /// Round-trip times to the peers that are connected now.
    pub fn round_trips(&self) -> BTreeMap<NodeId, Duration> {
        let control = self.peers().into_iter().filter(|open| open.class == Class::Control);
        control.map(|open| (open.peer.id, open.rtt)).collect()
    }

    /// Tells the peers that this node goes, and waits a moment until they know.
    pub async fn close(&self) {
        self.shared.pool().close();
        self.shared.endpoint.close(CLOSE_SHUTDOWN, b"the node shuts down");
        let _ = timeout(Duration::from_secs(1), self.shared.endpoint.wait_idle()).await;
    }

    fn bounded(&self, to: NodeId, body: &[u8], bytes_max: usize) -> Result<(), CallError> {
        let cause = || format!("{} bytes were to be sent, at most {bytes_max} are allowed", body.len());
        if body.len() <= bytes_max { Ok(()) } else { Err(CallError::Unreachable { node: to, cause: cause() }) }
    }

    /// Runs `attempt` on a connection; a second time on another one if the first had died before it carried anything.
    async fn with_link<T, F, Fut>(
        &self,
        to: NodeId,
        class: Class,
        timeout: Duration,
        deadline: Instant,
        attempt: F,
    ) -> Result<T, CallError>
    where
        F: Fn(Arc<Link>) -> Fut,
        Fut: Future<Output = Result<T, AskError>>,
    {
        let mut again = true;
        loop {
            let link = dial::connect(&self.shared, to, class, deadline).await;
            let link = link.map_err(|cause| CallError::Unreachable { node: to, cause })?;
            match attempt(link).await {
                Ok(done) => return Ok(done),
                Err(AskError::NotSent { dead: true, .. }) if again => again = false,
                Err(error) => return Err(call_error(to, timeout, error)),
            }
        }
    }
}

fn call_error(node: NodeId, after: Duration, error: AskError) -> CallError {
    match error {
        AskError::NotSent { cause, .. } => CallError::Unreachable { node, cause },
        AskError::Late => CallError::Timeout { node, after },
        AskError::Broken(cause) => CallError::Broken { node, cause },
        AskError::Refused(refusal) => CallError::Refused(refusal),
        AskError::Garbled(cause) => CallError::Garbled { node, cause },
    }
}

#[async_trait]
impl Rpc for Transport {
    async fn call(&self, to: NodeId, kind: Kind, body: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, CallError> {
        self.bounded(to, &body, FRAME_BYTES_MAX)?;
        let deadline = Instant::now() + timeout;
        if to == self.shared.me.id {
            let served = timeout_at(deadline, self.shared.router.serve(self.shared.me, kind, body)).await;
            return served.map_err(|_| CallError::Timeout { node: to, after: timeout })?.map_err(CallError::Refused);
        }
        let body = &body[..];
        let attempt = |link: Arc<Link>| async move {
            let _in_use = InUse::of(&link);
            request::ask(&link.connection, kind, body, deadline).await
        };
        self.with_link(to, Class::Control, timeout, deadline, attempt).await
    }
}

#[cfg(test)]
mod tests;
