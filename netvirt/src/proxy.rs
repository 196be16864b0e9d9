//! A TCP port of the host that leads to a port of a machine: `--publish` on the owner, the local end of `forward`.
//!
//! One listener; each connection is dialled anew through the caller's `connect`, so the port stays open while a machine
//! restarts, and a connection that cannot be dialled is closed. Half-close passes through: an end of file from one side
//! becomes one for the other, and the connection lives until both have ended.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::limits::{
    ACCEPT_PAUSE, BACKLOG, CONNECT_TIMEOUT, CONNECTIONS_PER_PORT_MAX, COPY_BYTES, DRAIN, HALF_CLOSED_IDLE_MAX,
    STALLED_MAX,
};

/// Why a port does not lead anywhere.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// Somebody else listens there.
    #[error("port {} of {} is in use on this host", .0.port(), .0.ip())]
    InUse(SocketAddr),
    /// The address is none of this host's.
    #[error("{} is no address of this host", .0.ip())]
    NotOurs(SocketAddr),
    /// The user may not listen there.
    #[error("port {} of {} may not be used without privileges", .0.port(), .0.ip())]
    Denied(SocketAddr),
    /// Another reason.
    #[error("cannot listen on {listen}")]
    Io {
        /// The address.
        listen: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What leads where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Address and port of this host; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Port of the machine, handed to `connect`.
    pub port: u16,
}

/// An open port. Dropping it closes the listener at once and lets its connections end within [`DRAIN`].
#[derive(Debug)]
pub struct Proxy {
    local: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    open: AtomicU64,
    served: AtomicU64,
    refused: AtomicU64,
}

impl Proxy {
    /// Listens, and forwards every connection through `connect`, which is given the machine's port.
    ///
    /// # Errors
    /// When the port cannot be had; nothing was started then.
    pub fn start<C, F, S>(config: ProxyConfig, connect: C) -> Result<Self, ProxyError>
    where
        C: Fn(u16) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let listener = listen(config.listen).map_err(|source| explained(config.listen, source))?;
        let local = listener.local_addr().map_err(|source| explained(config.listen, source))?;
        let (stop, stopped) = watch::channel(false);
        let counts = Arc::new(Counts::default());
        let accepting = tokio::spawn(accept(listener, config.port, Arc::new(connect), stopped, counts.clone()));
        Ok(Proxy { local, stop, accepting, counts })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Connections open now, forwarded in all, and refused because the machine did not answer.
    pub fn counts(&self) -> (u64, u64, u64) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (get(&self.counts.open), get(&self.counts.served), get(&self.counts.refused))
    }

    /// Closes the listener and waits until the port is free.
    pub async fn close(mut self) {
        self.stop.send_replace(true);
        // The task ends by itself; it can only fail when the whole program ends.
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A port whose old connections linger can be taken again; one that is listened on cannot.
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it: a client whose host vanished does not hold a slot for ever.
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn explained(address: SocketAddr, source: io::Error) -> ProxyError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ProxyError::InUse(address),
        io::ErrorKind::AddrNotAvailable => ProxyError::NotOurs(address),
        io::ErrorKind::PermissionDenied => ProxyError::Denied(address),
        _ => ProxyError::Io { listen: address, source },
    }
}

async fn accept<C, F, S>(
    listener: TcpListener,
    port: u16,
    connect: Arc<C>,
    mut stopped: watch::Receiver<bool>,
    counts: Arc<Counts>,
) where
    C: Fn(u16) -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let slots = Arc::new(Semaphore::new(CONNECTIONS_PER_PORT_MAX));
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            biased;
            // An error means that the proxy is gone.
            _ = stopped.wait_for(|stop| *stop) => return,
            next = next => next,
        };
        let client = match accepted {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, "a published port cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (connect, stopped, counts) = (connect.clone(), stopped.clone(), counts.clone());
        tokio::spawn(async move {
            let _slot = slot;
            counts.open.fetch_add(1, Ordering::Relaxed);
            serve(client, port, &*connect, stopped, &counts).await;
            counts.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn serve<C, F, S>(client: TcpStream, port: u16, connect: &C, mut stopped: watch::Receiver<bool>, counts: &Counts)
where
    C: Fn(u16) -> F,
    F: Future<Output = io::Result<S>>,
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let machine = match tokio::time::timeout(CONNECT_TIMEOUT, connect(port)).await {
        Ok(Ok(machine)) => machine,
        Ok(Err(error)) => {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            return tracing::debug!(%error, port, "the machine does not take the connection");
        }
        Err(_) => {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            return tracing::debug!(port, "the machine does not answer");
        }
    };
    counts.served.fetch_add(1, Ordering::Relaxed);
    // Small answers should not wait for more to come.
    let _ = client.set_nodelay(true);
    let over = async {
        let _ = stopped.wait_for(|stop| *stop).await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        biased;
        result = join(client, machine, Patience::DEFAULT) => {
            if let Err(error) = result {
                tracing::trace!(%error, port, "a forwarded connection broke");
            }
        }
        () = over => {}
    }
}

/// How long a connection is held that may be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// After one side has ended: the other one says nothing.
    pub silent: Duration,
    /// One side takes nothing of what waits for it.
    pub stalled: Duration,
}

impl Patience {
    /// What forwarded connections get.
    pub const DEFAULT: Patience = Patience { silent: HALF_CLOSED_IDLE_MAX, stalled: STALLED_MAX };
}

/// Copies both ways until both sides have ended. An end on one side is passed on; then the other side has some patience,
/// so that a peer which never ends does not hold the connection for ever.
///
/// # Errors
/// When either side breaks, or patience ends: both are closed.
pub async fn join<A, B>(one: A, two: B, patience: Patience) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut one_reader, mut one_writer) = tokio::io::split(one);
    let (mut two_reader, mut two_writer) = tokio::io::split(two);
    let (ended, heard) = watch::channel(false);
    let there = copy(&mut one_reader, &mut two_writer, &ended, heard.clone(), patience);
    let back = copy(&mut two_reader, &mut one_writer, &ended, heard, patience);
    tokio::try_join!(there, back).map(|_| ())
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    ended: &watch::Sender<bool>,
    mut other_ended: watch::Receiver<bool>,
    patience: Patience,
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let silent = async {
            let _ = other_ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(patience.silent).await;
        };
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read?,
            () = silent => return Err(io::ErrorKind::TimedOut.into()),
        };
        if read == 0 {
            break;
        }
        let mut left = &buffer[..read];
        while !left.is_empty() {
            let written = tokio::time::timeout(patience.stalled, to.write(left)).await;
            match written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => left = &left[written..],
            }
        }
        to.flush().await?;
    }
    to.shutdown().await?;
    ended.send_replace(true);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn any_port(port: u16) -> ProxyConfig {
        ProxyConfig { listen: (Ipv4Addr::LOCALHOST, 0).into(), port }
    }

    /// Answers with the machine's port and then, once the client has ended, with all it sent.
    async fn echo(port: u16) -> io::Result<tokio::io::DuplexStream> {
        let (near, mut far) = tokio::io::duplex(1 << 12);
        tokio::spawn(async move {
            far.write_all(format!("{port}:").as_bytes()).await.unwrap();
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            far.write_all(&all).await.unwrap();
        });
        Ok(near)
    }

    async fn until(condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("the condition within 5 s");
    }

    #[tokio::test]
    async fn an_answer_after_the_end_of_the_question_arrives() {
        let proxy = Proxy::start(any_port(8080), echo).unwrap();
        let mut client = TcpStream::connect(proxy.local_addr()).await.unwrap();
        let sent = vec![9; 300_000];
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(&got[..5], b"8080:");
        assert_eq!(&got[5..], sent);
        until(|| proxy.counts() == (0, 1, 0)).await;
    }

    #[tokio::test]
    async fn a_port_in_use_is_a_clear_error_and_a_closed_one_is_free() {
        let proxy = Proxy::start(any_port(1), echo).unwrap();
        let listen = proxy.local_addr();
        let error = Proxy::start(ProxyConfig { listen, port: 1 }, echo).unwrap_err();
        assert_eq!(error.to_string(), format!("port {} of 127.0.0.1 is in use on this host", listen.port()));
        proxy.close().await;
        Proxy::start(ProxyConfig { listen, port: 1 }, echo).unwrap().close().await;
        let foreign = ProxyConfig { listen: "192.0.2.1:9".parse().unwrap(), port: 1 };
        assert!(matches!(Proxy::start(foreign, echo), Err(ProxyError::NotOurs(_))));
    }

    #[tokio::test]
    async fn a_machine_that_refuses_closes_the_connection_and_not_the_port() {
        let refuse = |_| async { Err::<tokio::io::DuplexStream, _>(io::ErrorKind::ConnectionRefused.into()) };
        let proxy = Proxy::start(any_port(1), refuse).unwrap();
        for _ in 0..2 {
            let mut client = TcpStream::connect(proxy.local_addr()).await.unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
        }
        until(|| proxy.counts() == (0, 0, 2)).await;
    }

    #[tokio::test]
    async fn a_side_that_never_ends_is_given_up() {
        let (near, mut client) = tokio::io::duplex(64);
        let (machine, _silent) = tokio::io::duplex(64);
        client.shutdown().await.unwrap();
        let patience = Patience { silent: Duration::from_millis(20), ..Patience::DEFAULT };
        let error = join(near, machine, patience).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_side_that_takes_nothing_is_given_up_though_the_other_is_not_heard() {
        let (near, mut client) = tokio::io::duplex(64);
        let (machine, _deaf) = tokio::io::duplex(64);
        let patience = Patience { stalled: Duration::from_millis(20), ..Patience::DEFAULT };
        let joined = tokio::spawn(join(near, machine, patience));
        // More than fits anywhere on the way, so that nobody reads the end that follows it.
        let flood = tokio::spawn(async move { client.write_all(&vec![0; 4 * COPY_BYTES]).await });
        assert_eq!(joined.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(flood.await.unwrap().is_err());
    }
}
