//! Coming to a connection: one that is there, or a new one. All who want the same peer wait for the same attempt.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use quinn::Connection;
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, timeout, timeout_at};

use super::fault::{self, CLOSE_REFUSED};
use super::link::Link;
use super::pool::{Pool, Way};
use super::{Alpn, Class, Shared, endpoint, tls};
use crate::identity::{SharedTrust, server_name};
use crate::ids::NodeId;
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::rpc::Peer;
use crate::seams::Seams;

/// Settings of the connections that a member dials, by protocol.
pub(super) struct Clients {
    control: quinn::ClientConfig,
    bulk: quinn::ClientConfig,
    session: quinn::ClientConfig,
    data: quinn::ClientConfig,
    renew: quinn::ClientConfig,
}

impl Clients {
    pub(super) fn new(seams: &Seams, trust: &SharedTrust, shown: &Arc<tls::Shown>) -> Self {
        let client =
            |alpn| endpoint::dialling(seams, tls::client(seams.clock.clone(), trust.clone(), shown.clone(), alpn));
        Clients {
            control: client(Alpn::Control),
            bulk: client(Alpn::Bulk),
            session: client(Alpn::Session),
            data: client(Alpn::Data),
            renew: client(Alpn::Renew),
        }
    }

    fn of(&self, alpn: Alpn) -> quinn::ClientConfig {
        match alpn {
            Alpn::Control => &self.control,
            Alpn::Bulk => &self.bulk,
            Alpn::Session => &self.session,
            Alpn::Data => &self.data,
            Alpn::Join | Alpn::Renew => &self.renew,
        }
        .clone()
    }
}

/// A connection to a peer: one that is there, or a new one. The error is the cause for people.
pub(super) async fn connect(
    shared: &Arc<Shared>,
    to: NodeId,
    class: Class,
    deadline: Instant,
) -> Result<Arc<Link>, String> {
    let mut waited_for = None;
    loop {
        let way = shared.pool().way(to, class);
        let (attempt, mut news) = match way {
            Way::Ready(link) => return Ok(link),
            Way::None(cause) => return Err(cause),
            Way::Wait(attempt, news) => (attempt, news),
            Way::Dial(attempt, address, news) => {
                tokio::spawn(dial(shared.clone(), to, class, attempt, address));
                (attempt, news)
            }
        };
        let first = *waited_for.get_or_insert(attempt);
        let changed = timeout_at(deadline, news.changed()).await;
        if changed.is_err() {
            return Err("no connection in time".into());
        }
        if let Some(cause) = Pool::failure(first, &news) {
            // An inbound connection may have come in the same moment.
            return shared.pool().ready(to, class).ok_or(cause);
        }
    }
}

/// Dials and reports to the pool.
pub(super) async fn dial(shared: Arc<Shared>, to: NodeId, class: Class, attempt: u64, address: SocketAddr) {
    match timeout(HANDSHAKE_TIMEOUT, handshake(&shared, to, Alpn::of(class), address)).await {
        Ok(Ok(connection)) => match identify(&shared, &connection) {
            Ok((peer, certificate)) if peer.id == to => {
                shared.install(Link::new(connection, peer, class, true, certificate));
                // Without effect if it was installed; otherwise those who wait are told.
                shared.pool().failed(to, class, attempt, "no room for its connection".into());
            }
            Ok((peer, _)) => {
                connection.close(CLOSE_REFUSED, b"another node was wanted");
                shared.pool().failed(to, class, attempt, format!("node {:?} answers at {address}", peer.id));
            }
            Err(cause) => {
                connection.close(CLOSE_REFUSED, cause.as_bytes());
                shared.pool().failed(to, class, attempt, cause);
            }
        },
        Ok(Err(cause)) => shared.pool().failed(to, class, attempt, format!("{address}: {cause}")),
        Err(_) => {
            shared.pool().failed(to, class, attempt, format!("{address}: no answer within {HANDSHAKE_TIMEOUT:?}"))
        }
    }
}

pub(super) async fn handshake(
    shared: &Shared,
    to: NodeId,
    alpn: Alpn,
    address: SocketAddr,
) -> Result<Connection, String> {
    let config = shared.clients.of(alpn);
    let connecting = shared.endpoint.connect_with(config, address, &server_name(to));
    connecting.map_err(|error| error.to_string())?.await.map_err(|error| fault::text(&error))
}

/// Who is at the other end, if its certificate is good now.
pub(super) fn identify(shared: &Shared, connection: &Connection) -> Result<(Peer, Vec<u8>), String> {
    let certificate = shown_by(connection).ok_or("it showed no certificate")?;
    let now = shared.seams.clock.wall();
    let trust = shared.trust.read().unwrap_or_else(PoisonError::into_inner);
    let peer = trust.verify(&certificate, now).map_err(|error| error.to_string())?;
    Ok((peer, certificate))
}

pub(super) fn shown_by(connection: &Connection) -> Option<Vec<u8>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().map(|certificate| certificate.to_vec())
}
