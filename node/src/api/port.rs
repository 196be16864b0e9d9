//! The listeners and connections of the admin port.
//!
//! hyper serves the accepted streams directly, since `axum::serve` has no time limit on a request's head. Root's
//! connections, other users' and the TCP port's are counted apart, so that nobody can lock root out.
#![expect(clippy::disallowed_methods, reason = "binds the admin socket's file, which no seam covers")]

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fabric::rpc::Refusal;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backend::Backend;
use super::failure::Failure;
use super::gate::{Door, Gate};
use super::handlers::Shared;
use super::metrics::HttpMetrics;
use super::router::router;
use super::types::Problem;
use crate::limits::*;

/// Where to listen.
#[derive(Debug, Clone, Default)]
pub struct PortConfig {
    /// The unix socket; none for no socket.
    pub socket: Option<PathBuf>,
    /// The TCP address; none for no port.
    pub listen: Option<SocketAddr>,
    /// What other hosts are served with: needed, and used, when `listen` is no loopback address.
    pub tls: Option<Arc<ServerConfig>>,
    /// Further names that the Host header may have.
    pub names: Vec<String>,
}

/// Why the admin port cannot listen.
#[derive(Debug, Error)]
pub enum PortError {
    /// The socket's file cannot be made.
    #[error("the admin socket {path} cannot be made")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon listens there.
    #[error("another daemon serves the admin socket {path}")]
    SocketInUse {
        /// Its path.
        path: PathBuf,
    },
    /// The TCP address cannot be bound.
    #[error("the admin port cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Not a loopback address.
    #[error("the admin port cannot listen on {address}: without TLS it serves loopback addresses only")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
}

/// The admin port while it serves. Dropping it stops listening; [`AdminPort::stop`] waits for answers under way.
#[derive(Debug)]
pub struct AdminPort {
    tcp: Option<SocketAddr>,
    socket: Option<PathBuf>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl AdminPort {
    /// Listens and serves.
    ///
    /// # Errors
    /// When an address cannot be bound: nothing serves then.
    pub async fn start(config: PortConfig, backend: Arc<dyn Backend>) -> Result<AdminPort, PortError> {
        let tls = config.tls.filter(|_| config.listen.is_some_and(|address| !address.ip().is_loopback()));
        let tcp = match config.listen {
            Some(address) => Some(bind_tcp(address, tls.is_some()).await?),
            None => None,
        };
        let unix = match &config.socket {
            Some(path) => Some(bind_unix(path).await?),
            None => None,
        };
        let metrics = Arc::new(HttpMetrics::default());
        let shared = Shared::new(backend.clone(), metrics.clone());
        let gate = Arc::new(Gate { router: router(shared), backend, names: config.names, metrics });
        let port = AdminPort {
            tcp: tcp.as_ref().and_then(|listener| listener.local_addr().ok()),
            socket: config.socket,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let server = Server { gate, stop: port.stop.clone(), tasks: port.tasks.clone() };
        if let Some(listener) = tcp {
            port.tasks.spawn(server.clone().accept_tcp(listener, tls.map(Handshakes::new)));
        }
        if let Some(listener) = unix {
            port.tasks.spawn(server.accept_unix(listener));
        }
        Ok(port)
    }

    /// The TCP address, with the port that was really bound.
    pub fn tcp(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Stops listening, waits up to `API_DRAIN` for answers under way, and removes the socket.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(API_DRAIN, self.tasks.wait()).await;
        if let Some(path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for AdminPort {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn bind_tcp(address: SocketAddr, tls: bool) -> Result<TcpListener, PortError> {
    if !address.ip().is_loopback() && !tls {
        return Err(PortError::NotLoopback { address });
    }
    TcpListener::bind(address).await.map_err(|source| PortError::Tcp { address, source })
}

/// Takes over the file of a daemon that died, never that of one that answers.
async fn bind_unix(path: &Path) -> Result<UnixListener, PortError> {
    let refused = |source| PortError::Socket { path: path.to_owned(), source };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(refused)?;
    }
    if let Ok(there) = std::fs::symlink_metadata(path) {
        // Whatever is no socket is somebody's.
        if !there.file_type().is_socket() {
            return Err(refused(std::io::ErrorKind::AlreadyExists.into()));
        }
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            return Err(PortError::SocketInUse { path: path.to_owned() });
        }
        std::fs::remove_file(path).map_err(refused)?;
    }
    let listener = UnixListener::bind(path).map_err(refused)?;
    // Anyone may connect: who is not root presents a token.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(refused)?;
    Ok(listener)
}

#[derive(Clone)]
struct Server {
    gate: Arc<Gate>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    async fn accept_tcp(self, listener: TcpListener, tls: Option<Handshakes>) {
        let places = Arc::new(Semaphore::new(API_TCP_CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Small answers must not wait for more.
                    let _ = stream.set_nodelay(true);
                    match &tls {
                        None => self.admit(stream, Door::Tcp, &places),
                        Some(tls) => self.admit_tls(stream, tls, &places),
                    }
                }
                Err(error) => self.rest(&error).await,
            }
        }
    }

    async fn accept_unix(self, listener: UnixListener) {
        let roots = Arc::new(Semaphore::new(API_ROOT_CONNECTIONS_MAX));
        let users = Arc::new(Semaphore::new(API_USER_CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) => {
                        let places = if peer.uid() == 0 { &roots } else { &users };
                        self.admit(stream, Door::Unix { uid: peer.uid() }, places);
                    }
                    Err(error) => tracing::debug!(%error, "a connection without credentials was dropped"),
                },
                Err(error) => self.rest(&error).await,
            }
        }
    }

    /// Out of descriptors, most likely: accepting again at once would spin.
    async fn rest(&self, error: &io::Error) {
        tracing::warn!(%error, "the admin port cannot accept a connection");
        tokio::time::sleep(API_ACCEPT_REST).await;
    }

    /// Handshakes have places of their own and little time, so that slow ones hold nobody up who has shaken hands.
    fn admit_tls(&self, stream: TcpStream, tls: &Handshakes, places: &Arc<Semaphore>) {
        let (Ok(local), Ok(place)) = (stream.local_addr(), tls.places.clone().try_acquire_owned()) else {
            self.gate.metrics.refused.inc();
            return;
        };
        let (server, places, acceptor) = (self.clone(), places.clone(), tls.acceptor.clone());
        self.tasks.spawn(async move {
            let shaken = tokio::select! {
                biased;
                () = server.stop.cancelled() => return,
                shaken = timeout(API_HANDSHAKE_TIMEOUT, shake_hands(acceptor, stream)) => shaken,
            };
            drop(place);
            match shaken {
                Ok(Ok(Some(stream))) => server.admit(stream, Door::Tls(local.ip().to_canonical()), &places),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake at the admin port failed"),
                Err(_) => tracing::debug!("a TLS handshake at the admin port took too long"),
            }
        });
    }

    fn admit<S>(&self, stream: S, door: Door, places: &Arc<Semaphore>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(place) = places.clone().try_acquire_owned() else {
            self.gate.metrics.refused.inc();
            return;
        };
        let (gate, stop) = (self.gate.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let _place = place;
            gate.metrics.connections.inc();
            connection(gate.clone(), stop, stream, door).await;
            gate.metrics.connections.dec();
        });
    }
}

/// What the TCP port needs for TLS.
struct Handshakes {
    acceptor: TlsAcceptor,
    places: Arc<Semaphore>,
}

impl Handshakes {
    fn new(config: Arc<ServerConfig>) -> Self {
        Handshakes { acceptor: config.into(), places: Arc::new(Semaphore::new(API_HANDSHAKES_MAX)) }
    }
}

/// First byte of a TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// Shakes hands; none when the client speaks plain HTTP, which is told so in its own tongue.
async fn shake_hands(acceptor: TlsAcceptor, mut stream: TcpStream) -> io::Result<Option<TlsStream<TcpStream>>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
        let refusal = Refusal::new("tls-required", "this port speaks TLS, and plain HTTP came");
        let problem = Problem::from(&Failure::from(refusal.hint("ask https:// instead, with the cluster's CA (--ca)")));
        let body = serde_json::to_string(&Problem { status: 400, ..problem })?;
        let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nConnection: close\r\n";
        stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
        stream.shutdown().await?;
        // What the client says is read, or the answer may be lost to a reset.
        let _ = tokio::io::copy(&mut stream.take(API_HEAD_BYTES_MAX as u64), &mut tokio::io::sink()).await;
        return Ok(None);
    }
    acceptor.accept(stream).await.map(Some)
}

async fn connection<S>(gate: Arc<Gate>, stop: CancellationToken, stream: S, door: Door)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let gate = gate.clone();
        async move { Ok::<_, Infallible>(gate.serve(door, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(API_HEAD_TIMEOUT)
        .max_buf_size(API_HEAD_BYTES_MAX)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(served);
    let ended = tokio::select! {
        biased;
        ended = &mut served => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, ?door, "a connection of the admin port ended early");
    }
}
