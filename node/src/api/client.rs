//! The typed client of the admin API: what the command line, `demo` and tests speak with.
//!
//! One connection is kept and made anew when it broke. A write carries an idempotency key, so it is repeated once when
//! its answer was lost; a read is repeated likewise.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use axum::http::{HeaderName, HeaderValue, Method, Request, Response};
use fabric::identity::Trust;
use fabric::seams::real::{KernelClock, KernelEntropy};
use fabric::seams::{Entropy, draw};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::extract::IDEMPOTENCY_KEY;
use super::failure::Failure;
use super::handlers::streams::UPGRADE_PROTOCOL;
use super::types::Problem;
use crate::limits::{CLIENT_ANSWER_BYTES_MAX, CLIENT_CONNECT_TIMEOUT, CLIENT_LINE_BYTES_MAX, CLIENT_TIMEOUT};

/// Where an admin port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
    /// `host:port`, with TLS.
    Tls(String),
}

/// A text that is no address of an admin port.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{0:?} is no admin port: write it as unix:/path/of/admin.sock, http://127.0.0.1:7421 or https://10.0.0.1:7421")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError(text.chars().take(120).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') { Ok(Address::Unix(path.into())) } else { Err(refused()) };
        }
        let (tls, authority) = match text.strip_prefix("https://") {
            Some(authority) => (true, authority),
            None => (false, text.strip_prefix("http://").ok_or_else(refused)?),
        };
        let authority = authority.trim_end_matches('/');
        let uri: axum::http::uri::Authority = authority.parse().map_err(|_| refused())?;
        match uri.port_u16() {
            Some(_) if authority.contains('@') => Err(refused()),
            Some(_) if tls => Ok(Address::Tls(authority.to_owned())),
            Some(_) => Ok(Address::Tcp(authority.to_owned())),
            _ => Err(refused()),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(authority) => write!(f, "http://{authority}"),
            Address::Tls(authority) => write!(f, "https://{authority}"),
        }
    }
}

/// A client of one node.
#[derive(Debug)]
pub struct Client {
    address: Address,
    token: Option<String>,
    tls: Option<Arc<ClientConfig>>,
    connection: Option<SendRequest<Full<Bytes>>>,
    /// A request without a stream is given up after this.
    pub timeout: Duration,
    /// The idempotency key of what is written; none draws one for each write.
    pub idempotency_key: Option<String>,
}

/// What a request says.
#[derive(Debug, Clone)]
struct Ask {
    method: Method,
    path: String,
    body: Bytes,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// An answer that keeps coming, line by line.
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    searched: usize,
}

impl Client {
    /// A client; nothing is connected yet.
    pub fn new(address: Address, token: Option<String>) -> Self {
        Client { address, token, tls: None, connection: None, timeout: CLIENT_TIMEOUT, idempotency_key: None }
    }

    /// Whom an https address may belong to: a node of one of these CAs.
    pub fn trusting(mut self, cas: Trust) -> Self {
        self.tls = Some(fabric::transport::admin_client_tls(Arc::new(KernelClock), cas));
        self
    }

    /// Another client of the same node.
    pub fn another(&self) -> Self {
        Client { timeout: self.timeout, tls: self.tls.clone(), ..Client::new(self.address.clone(), self.token.clone()) }
    }

    /// Where it asks.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Asks for JSON.
    ///
    /// # Errors
    /// The problem that the node names; `unreachable`, `timeout`.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Failure> {
        let ask = Ask { method: Method::GET, path: path.into(), body: Bytes::new(), headers: vec![] };
        parse(&self.answer(ask).await?.1)
    }

    /// Asks for text.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_text(&mut self, path: &str) -> Result<String, Failure> {
        let ask = Ask { method: Method::GET, path: path.into(), body: Bytes::new(), headers: vec![] };
        Ok(String::from_utf8_lossy(&self.answer(ask).await?.1).into_owned())
    }

    /// Asks for JSON that may be absent (204).
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_or_gone<T: DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, Failure> {
        let ask = Ask { method: Method::GET, path: path.into(), body: Bytes::new(), headers: vec![] };
        let (status, body) = self.answer(ask).await?;
        if status == 204 { Ok(None) } else { parse(&body).map(Some) }
    }

    /// Writes, with an idempotency key.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn send<B: Serialize, T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        parse(&self.write(method, path, body).await?)
    }

    /// Writes, when nothing is to be read from the answer.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn send_only<B: Serialize>(&mut self, method: Method, path: &str, body: &B) -> Result<(), Failure> {
        self.write(method, path, body).await.map(drop)
    }

    async fn write<B: Serialize>(&mut self, method: Method, path: &str, body: &B) -> Result<Bytes, Failure> {
        let key = self.idempotency_key.clone().unwrap_or_else(|| {
            let drawn: [u8; 16] = draw(&KernelEntropy as &dyn Entropy);
            drawn.iter().map(|byte| format!("{byte:02x}")).collect()
        });
        let json = serde_json::to_vec(body).map_err(|error| Failure::internal(error.to_string()))?;
        let mut headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        headers.extend(HeaderValue::from_str(&key).ok().map(|key| (IDEMPOTENCY_KEY, key)));
        let ask = Ask { method, path: path.into(), body: json.into(), headers };
        Ok(self.answer(ask).await?.1)
    }

    /// Opens an answer that keeps coming.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn lines(&mut self, path: &str, last_event: Option<&str>) -> Result<Lines, Failure> {
        let mut headers = vec![];
        if let Some(value) = last_event.and_then(|cursor| HeaderValue::from_str(cursor).ok()) {
            headers.push((HeaderName::from_static("last-event-id"), value));
        }
        let ask = Ask { method: Method::GET, path: path.into(), body: Bytes::new(), headers };
        let response = self.within(self.timeout, ask).await?;
        // The connection belongs to the stream from now on.
        self.connection = None;
        let body =
            if response.status().is_success() { response.into_body() } else { return Err(refused(response).await) };
        Ok(Lines { body, buffer: vec![], searched: 0 })
    }

    /// Takes the connection over for a stream of bytes.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn upgrade<B: Serialize>(&mut self, path: &str, body: &B) -> Result<TokioIo<Upgraded>, Failure> {
        let json = serde_json::to_vec(body).map_err(|error| Failure::internal(error.to_string()))?;
        let headers = vec![
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (CONNECTION, HeaderValue::from_static("upgrade")),
            (UPGRADE, HeaderValue::from_static(UPGRADE_PROTOCOL)),
        ];
        let ask = Ask { method: Method::POST, path: path.into(), body: json.into(), headers };
        let response = self.within(self.timeout, ask).await?;
        self.connection = None;
        if response.status().as_u16() != 101 {
            return Err(refused(response).await);
        }
        let upgraded = hyper::upgrade::on(response).await;
        upgraded.map(TokioIo::new).map_err(|error| Failure::unreachable(format!("the connection broke: {error}")))
    }

    /// One answer, its body read whole. An answer that was lost with its connection is asked for once more.
    async fn answer(&mut self, ask: Ask) -> Result<(u16, Bytes), Failure> {
        let kept = self.connection.is_some();
        let first = self.once(ask.clone()).await;
        match first {
            Err(failure) if failure.refusal.code == LOST => {
                tracing::debug!(kept, "the answer was lost with its connection: asking again");
                self.once(ask).await
            }
            other => other,
        }
    }

    async fn once(&mut self, ask: Ask) -> Result<(u16, Bytes), Failure> {
        let response = self.within(self.timeout, ask).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(response).await);
        }
        let collected = Limited::new(response.into_body(), CLIENT_ANSWER_BYTES_MAX).collect();
        match tokio::time::timeout(self.timeout, collected).await {
            Ok(Ok(body)) => Ok((status.as_u16(), body.to_bytes())),
            Ok(Err(error)) => Err(lost(&error.to_string())),
            Err(_) => Err(Failure::timeout("the answer did not end", self.timeout)),
        }
    }

    async fn within(&mut self, timeout: Duration, ask: Ask) -> Result<Response<Incoming>, Failure> {
        let what = format!("{} {}", ask.method, ask.path);
        let asked = tokio::time::timeout(timeout, self.request(ask)).await;
        let failed = match asked {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::timeout(&what, timeout),
        };
        self.connection = None;
        Err(failed)
    }

    async fn request(&mut self, ask: Ask) -> Result<Response<Incoming>, Failure> {
        let host = match &self.address {
            Address::Unix(_) => "localhost",
            Address::Tcp(authority) | Address::Tls(authority) => authority,
        };
        let mut request = Request::builder().method(ask.method).uri(&ask.path).header(HOST, host);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(ask.body));
        let request = request.map_err(|error| Failure::invalid("request", ask.path, error.to_string()))?;
        let connection = match &mut self.connection {
            Some(connection) if !connection.is_closed() => connection,
            empty => empty.insert(connect(&self.address, self.tls.as_ref()).await?),
        };
        if connection.ready().await.is_err() {
            return Err(lost("it was closed"));
        }
        connection.send_request(request).await.map_err(|error| lost(&error.to_string()))
    }
}

/// Code of a connection that broke before the whole answer was there.
const LOST: &str = "unreachable-connection-lost";

fn lost(cause: &str) -> Failure {
    let mut failure = Failure::unreachable(format!("the connection to the daemon broke: {cause}"))
        .hint("look whether it was done before you repeat it: smartnode status");
    failure.refusal.code = LOST.into();
    failure
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::internal(format!("the node's answer is not understood: {error}"))
            .hint("do this program and the daemon have one version? smartnode version")
    })
}

async fn refused(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let body = Limited::new(response.into_body(), CLIENT_ANSWER_BYTES_MAX).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => problem.into(),
        Err(_) => Failure {
            class: super::failure::Class::of_status(status.as_u16()),
            ..Failure::internal(format!("the admin port answered {status}"))
        },
    }
}

async fn connect(address: &Address, tls: Option<&Arc<ClientConfig>>) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let failed = |cause: String| {
        Failure::unreachable(format!("no daemon answers at {address}: {cause}"))
            .hint("is it running? smartnode start, or name another one by --admin")
    };
    let connected = async {
        match address {
            Address::Unix(path) => handshake(TokioIo::new(UnixStream::connect(path).await?)).await,
            Address::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await?;
                stream.set_nodelay(true)?;
                handshake(TokioIo::new(stream)).await
            }
            Address::Tls(authority) => {
                let tls = tls.ok_or_else(|| std::io::Error::other("the cluster's CA is not known here"))?;
                let stream = TcpStream::connect(authority).await?;
                stream.set_nodelay(true)?;
                // The address proves nothing; the certificate does, whichever node's it is.
                let name = ServerName::try_from("admin.smartnode").map_err(std::io::Error::other)?;
                handshake(TokioIo::new(TlsConnector::from(tls.clone()).connect(name, stream).await?)).await
            }
        }
    };
    match tokio::time::timeout(CLIENT_CONNECT_TIMEOUT, connected).await {
        Ok(Ok(sender)) => Ok(sender),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(Failure::denied(format!("no access to {address}")).hint("run it as root, or with --token-file"))
        }
        Ok(Err(error)) => Err(match tls_error(&error) {
            Some(words) => Failure::denied(format!("no trusted node answers at {address}: {words}"))
                .hint("is it this cluster's? --ca names the file with its CA, <data-dir>/ca.pem on its nodes"),
            None => failed(error.to_string()),
        }),
        Err(_) => Err(failed(format!("no connection within {}", fabric::human::duration(CLIENT_CONNECT_TIMEOUT)))),
    }
}

/// What TLS says when it refuses a node.
fn tls_error(error: &std::io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::General(words) => Some(words.clone()),
        rustls::Error::InvalidMessage(_) => Some("it does not speak TLS (http:// would)".into()),
        other => Some(other.to_string()),
    }
}

async fn handshake<S>(stream: TokioIo<S>) -> std::io::Result<SendRequest<Full<Bytes>>>
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(stream).await.map_err(std::io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "the connection to the admin port ended");
        }
    });
    Ok(sender)
}

impl Lines {
    /// The next line without its end; none at the end.
    ///
    /// # Errors
    /// `unreachable` when the connection broke, `internal` for a line beyond its bound.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=self.searched + at).collect();
                self.searched = 0;
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > CLIENT_LINE_BYTES_MAX {
                return Err(Failure::internal("the node sent a line without an end"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(lost(&error.to_string())),
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    self.searched = 0;
                    return Ok(Some(std::mem::take(&mut self.buffer)));
                }
            }
        }
    }

    /// The data of the next server-sent event: an event, or the problem that ends the stream.
    ///
    /// # Errors
    /// As [`Lines::next`]; the problem.
    pub async fn event<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        let mut data: Vec<u8> = vec![];
        let mut problem = false;
        while let Some(line) = self.next().await? {
            if line.is_empty() && !data.is_empty() {
                return if problem { Err(parse::<Problem>(&data)?.into()) } else { parse(&data).map(Some) };
            } else if let Some(text) = line.strip_prefix(b"data:") {
                data.extend_from_slice(text.strip_prefix(b" ").unwrap_or(text));
            } else if let Some(kind) = line.strip_prefix(b"event:") {
                problem = kind.trim_ascii() == b"problem";
            }
        }
        Ok(None)
    }
}

/// A segment of a path, percent-encoded.
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        assert_eq!("unix:/run/a.sock".parse(), Ok(Address::Unix("/run/a.sock".into())));
        assert_eq!("unix:///run/a.sock".parse(), Ok(Address::Unix("/run/a.sock".into())));
        assert_eq!("http://[::1]:7421/".parse(), Ok(Address::Tcp("[::1]:7421".into())));
        assert_eq!("https://10.0.0.1:7421".parse(), Ok(Address::Tls("10.0.0.1:7421".into())));
        for bad in ["", "unix:a.sock", "https://localhost", "http://localhost", "localhost:7421", "http://a@b:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert_eq!(segment("a/b é"), "a%2Fb%20%C3%A9");
    }

    proptest::proptest! {
        #[test]
        fn no_address_panics(text in "(unix:|http://|https://)?.{0,40}") {
            let _ = text.parse::<Address>();
        }

        #[test]
        fn no_problem_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = (parse::<Problem>(&body), parse::<crate::api::types::Event>(&body));
        }
    }
}
