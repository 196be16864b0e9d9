//! The port as clients meet it: a fake node behind a real unix socket and a real TCP port.

mod documents;
pub mod fake;
mod hostile;
mod reads;
mod streams;
mod writes;

use std::sync::Arc;

use tempfile::TempDir;

use super::client::{Address, Client};
use super::port::{AdminPort, PortConfig};
use fake::Fake;

/// A served fake node.
pub struct Served {
    pub fake: Arc<Fake>,
    pub port: AdminPort,
    directory: TempDir,
}

impl Served {
    pub async fn new() -> Served {
        let directory = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::default());
        let config = PortConfig {
            socket: Some(directory.path().join("admin.sock")),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            tls: None,
            names: vec!["n1.example".into()],
        };
        let port = AdminPort::start(config, fake.clone()).await.unwrap();
        Served { fake, port, directory }
    }

    /// Root at the socket (tests run as root in the container; elsewhere the token makes up for it).
    pub fn root(&self) -> Client {
        let token = (!nix::unistd::geteuid().is_root()).then(|| fake::OPERATOR.to_owned());
        Client::new(Address::Unix(self.socket()), token)
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("admin.sock")
    }

    pub fn tcp(&self, token: Option<&str>) -> Client {
        let address = self.port.tcp().unwrap();
        Client::new(Address::Tcp(address.to_string()), token.map(str::to_owned))
    }

    /// Sends bytes as they are and reads until the server closes or the answer's head and body are there.
    pub async fn raw(&self, request: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.port.tcp().unwrap()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The same for what the server refuses to read to its end: it may reset the connection after its answer.
    pub async fn cut_off(&self, request: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let stream = tokio::net::TcpStream::connect(self.port.tcp().unwrap()).await.unwrap();
        let (mut from, mut to) = stream.into_split();
        let request = request.to_owned();
        let writing = tokio::spawn(async move { to.write_all(request.as_bytes()).await });
        let mut answer = vec![0; 64];
        let count = from.read(&mut answer).await.unwrap_or(0);
        writing.abort();
        String::from_utf8_lossy(&answer[..count]).into_owned()
    }
}
