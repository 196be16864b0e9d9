//! One authenticated connection: what arrives on it, and its keep-alive while it is in use.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, ConnectionError, VarInt};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};

use super::data::{self, POKE};
use super::{Class, Shared, fault, request};
use crate::limits::{IDLE_TIMEOUT, SILENCE, STREAMS_OPEN_MAX};
use crate::rpc::Peer;

/// First byte of a datagram with content.
const DATAGRAM_CONTENT: u8 = 1;
/// So many looks in a row that found silence end a connection.
const LOOKS: u32 = 4;

/// A connection with an authenticated peer.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) peer: Peer,
    pub(super) class: Class,
    /// This node dialled; otherwise the peer did.
    pub(super) dialled: bool,
    pub(super) since: Instant,
    /// The peer's certificate, to be judged again when trust changes.
    pub(super) certificate: Vec<u8>,
    /// Requests and streams of this node under way on it.
    uses: AtomicUsize,
    /// Something was sent since the keep-alive looked, which is told of it.
    spoke: AtomicBool,
    spoken: Notify,
    /// Datagrams that were taken.
    taken: AtomicU64,
    /// Places for streams that the peer holds open on it.
    pub(super) streams: Arc<Semaphore>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({:?} {:?} dialled={})", self.peer.id, self.class, self.dialled)
    }
}

/// Keeps a connection alive as long as it lives.
#[derive(Debug)]
pub(super) struct InUse(Arc<Link>);

impl InUse {
    pub(super) fn of(link: &Arc<Link>) -> Self {
        link.uses.fetch_add(1, Ordering::Relaxed);
        link.touch();
        InUse(link.clone())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.uses.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    pub(super) fn new(connection: Connection, peer: Peer, class: Class, dialled: bool, certificate: Vec<u8>) -> Self {
        let (uses, spoke, spoken, taken) = Default::default();
        if class == Class::Data {
            // Nobody would accept one.
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(0));
            connection.set_max_concurrent_uni_streams(VarInt::from_u32(0));
        }
        let streams = Arc::new(Semaphore::new(STREAMS_OPEN_MAX));
        let since = Instant::now();
        Link { connection, peer, class, dialled, since, certificate, uses, spoke, spoken, taken, streams }
    }

    /// Makes the keep-alive look whether the peer answers.
    pub(super) fn touch(&self) {
        if !self.spoke.swap(true, Ordering::Relaxed) {
            self.spoken.notify_one();
        }
    }

    /// How long a peer that is talked to may acknowledge nothing. What goes over the control connection may be asked again
    /// on a new one, and others wait for it, as machines do for frames; a move or a session is lost with its connection.
    fn patience(&self) -> Duration {
        match self.class {
            Class::Control | Class::Data => SILENCE,
            Class::Bulk | Class::Session => IDLE_TIMEOUT,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    pub(super) fn is_used(&self) -> bool {
        self.uses.load(Ordering::Relaxed) > 0
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    pub(super) fn close(&self, code: VarInt, reason: &str) {
        self.connection.close(code, reason.as_bytes());
    }

    /// Sends something that the peer has to acknowledge, unless something waits to be sent anyway: that would give way.
    pub(super) fn poke(&self) {
        if self.connection.datagram_send_buffer_space() > 0 {
            let _ = self.connection.send_datagram(Bytes::from_static(&[POKE]));
        }
    }

    /// A datagram was taken.
    pub(super) fn took(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Sends a datagram, or drops it.
    pub(super) fn send_datagram(&self, content: &[u8]) {
        let mut datagram = BytesMut::with_capacity(1 + content.len());
        datagram.put_u8(DATAGRAM_CONTENT);
        datagram.put_slice(content);
        self.touch();
        if let Err(error) = self.connection.send_datagram(datagram.freeze()) {
            tracing::trace!(peer = ?self.peer.id, %error, "a datagram was dropped");
        }
    }

    /// While something is sent or waited for: makes the peer acknowledge something when nothing has come for a look, and
    /// gives the connection up when nothing comes back. QUIC alone waits three times as long as its last measured round trip
    /// suggests (RFC 9000, 10.1): minutes, when the link was crowded then.
    async fn keep_alive<T>(&self) -> T {
        let (mut silence, patience) = (Silence::default(), self.patience());
        let pause = patience / LOOKS;
        loop {
            if !self.is_used() {
                self.spoken.notified().await;
            }
            self.spoke.store(false, Ordering::Relaxed);
            let before = self.connection.stats().udp_rx.datagrams;
            sleep(pause).await;
            let heard = self.connection.stats().udp_rx.datagrams != before;
            if silence.lasts(heard, pause, patience) {
                self.close(fault::CLOSE_SILENT, "no answer");
            }
            if !heard {
                self.poke();
            }
        }
    }

    /// Serves what arrives until the connection ends, and says why it did.
    async fn serve(self: &Arc<Self>, shared: &Arc<Shared>) -> ConnectionError {
        let keep_alive = self.keep_alive::<ConnectionError>();
        tokio::pin!(keep_alive);
        loop {
            // A peer that floods must not keep this task from yielding.
            tokio::task::coop::consume_budget().await;
            tokio::select! {
                biased;
                reason = self.connection.closed() => return reason,
                stream = self.connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        tokio::spawn(request::serve(shared.clone(), self.clone(), send, recv));
                    }
                    Err(reason) => return reason,
                },
                stream = self.connection.accept_uni() => match stream {
                    Ok(recv) => {
                        tokio::spawn(request::receive_message(shared.clone(), self.clone(), recv));
                    }
                    Err(reason) => return reason,
                },
                datagram = self.connection.read_datagram() => match datagram {
                    Ok(datagram) => self.take_datagram(shared, datagram),
                    Err(reason) => return reason,
                },
                never = &mut keep_alive => return never,
            }
        }
    }

    /// The same for one that carries nothing but frames of overlay networks.
    async fn serve_data(&self, shared: &Shared) -> ConnectionError {
        tokio::select! {
            biased;
            reason = data::receive(self, shared) => reason,
            never = self.keep_alive() => never,
        }
    }

    fn take_datagram(&self, shared: &Shared, mut datagram: Bytes) {
        if self.class != Class::Control || datagram.first() != Some(&DATAGRAM_CONTENT) {
            return;
        }
        let _ = datagram.split_to(1);
        if shared.datagrams.try_send((self.peer.id, datagram)).is_err() {
            tracing::trace!(peer = ?self.peer.id, "a datagram was dropped: nobody takes them");
        }
    }
}

/// Returns when the peer of a connection has acknowledged nothing for `SILENCE`, though it was made to all the time.
pub(super) async fn silent(connection: &Connection) {
    let (mut silence, pause) = (Silence::default(), SILENCE / LOOKS);
    loop {
        let before = connection.stats().udp_rx.datagrams;
        let _ = connection.send_datagram(Bytes::from_static(&[POKE]));
        sleep(pause).await;
        if silence.lasts(connection.stats().udp_rx.datagrams != before, pause, SILENCE) {
            return;
        }
    }
}

/// For how long looks in a row found that nothing had come.
#[derive(Default)]
struct Silence(Duration);

impl Silence {
    /// Notes a look after a `pause`; whether the peer has been silent for `patience`.
    fn lasts(&mut self, heard: bool, pause: Duration, patience: Duration) -> bool {
        self.0 = if heard { Duration::ZERO } else { self.0 + pause };
        self.0 >= patience
    }
}

/// Runs a connection that was installed in the pool.
pub(super) async fn run(shared: Arc<Shared>, link: Arc<Link>) {
    let reason = match link.class {
        Class::Data => link.serve_data(&shared).await,
        _ => link.serve(&shared).await,
    };
    if fault::says_removed(&reason) {
        shared.expelled.send_replace(true);
    }
    shared.pool().remove(&link);
    tracing::debug!(peer = ?link.peer.id, class = ?link.class, reason = fault::text(&reason), "connection ended");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_given_up_after_looks_that_all_found_silence() {
        let mut silence = Silence::default();
        let pause = SILENCE / LOOKS;
        for _ in 1..LOOKS {
            assert!(!silence.lasts(false, pause, SILENCE));
        }
        assert!(silence.lasts(false, pause, SILENCE));
        assert!(!silence.lasts(true, pause, SILENCE) && !silence.lasts(false, pause, SILENCE));
    }
}
