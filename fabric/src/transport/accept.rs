//! Who dials in: handshakes are bounded in time and number, in all and by address, so that half-open ones and floods take
//! nothing from the others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::{Connection, Incoming};
use tokio::time::timeout;

use super::dial::identify;
use super::fault::{self, CLOSE_REFUSED};
use super::link::Link;
use super::{Alpn, Class, Shared, join};
use crate::limits::{HANDSHAKE_REMAINS, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX};

/// Handshakes under way, by the address that they come from.
#[derive(Debug, Default)]
pub(super) struct Doors(Mutex<BTreeMap<IpAddr, usize>>);

/// One handshake's share; given back when it is dropped.
struct Door {
    doors: Arc<Doors>,
    from: IpAddr,
}

impl Doors {
    fn open(self: &Arc<Self>, from: IpAddr) -> Option<Door> {
        let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = doors.get(&from).copied().unwrap_or(0);
        if of_address >= HANDSHAKES_PER_ADDRESS_MAX || doors.values().sum::<usize>() >= HANDSHAKES_MAX {
            return None;
        }
        doors.insert(from, of_address + 1);
        Some(Door { doors: self.clone(), from })
    }

    pub(super) fn are_busy(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum::<usize>() >= HANDSHAKES_MAX / 2
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let mut doors = self.doors.0.lock().unwrap_or_else(PoisonError::into_inner);
        match doors.get_mut(&self.from) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(doors.remove(&self.from)),
        }
    }
}

/// Takes what dials in, until the endpoint is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        // When handshakes pile up, an address must first prove that it exists: forged ones cannot take the rest.
        if shared.doors.are_busy() && !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let Some(door) = shared.doors.open(incoming.remote_address().ip()) else {
            // It asks again by itself in a second.
            incoming.ignore();
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            match accept_one(&shared, incoming).await {
                Some((connection, alpn)) => welcome(shared, connection, alpn, door).await,
                None => {
                    // QUIC keeps what is left of it for a while: a burst of broken handshakes must not be free.
                    tokio::time::sleep(HANDSHAKE_REMAINS).await;
                    drop(door);
                }
            }
        });
    }
}

async fn accept_one(shared: &Shared, incoming: Incoming) -> Option<(Connection, Alpn)> {
    let from = incoming.remote_address();
    let connection = match timeout(HANDSHAKE_TIMEOUT, incoming.into_future()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%from, me = ?shared.me.id, reason = fault::text(&error), "a handshake failed");
            return None;
        }
        Err(_) => return None,
    };
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    let alpn = Alpn::ALL.into_iter().find(|alpn| data.protocol.as_deref() == Some(alpn.name()))?;
    Some((connection, alpn))
}

/// Serves a connection by its protocol.
async fn welcome(shared: Arc<Shared>, connection: Connection, alpn: Alpn, door: Door) {
    let class = match alpn {
        Alpn::Join | Alpn::Renew => {
            // It counts as a handshake until it is served: strangers may ask here.
            join::serve(&shared, connection, alpn == Alpn::Renew).await;
            return drop(door);
        }
        Alpn::Control => Class::Control,
        Alpn::Bulk => Class::Bulk,
        Alpn::Session => Class::Session,
        Alpn::Data => Class::Data,
    };
    match identify(&shared, &connection) {
        Ok((peer, _)) if peer.id == shared.me.id => connection.close(CLOSE_REFUSED, b"it is this node itself"),
        Ok((peer, certificate)) => shared.install(Link::new(connection, peer, class, false, certificate)),
        Err(cause) => {
            tracing::info!(from = %connection.remote_address(), cause, "a peer was refused");
            connection.close(CLOSE_REFUSED, cause.as_bytes());
        }
    }
}
