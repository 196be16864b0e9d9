//! Images as the node uses them: have it here, pack a new one, give it to peers.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use fabric::ids::{Digest, NodeId};
use fabric::rpc::Kind;
use fabric::transport::{Class, Stream, Transport};

use super::fetch::{Dial, Fetcher, Pipe, Server};
use super::{Hold, ImageManifest, Pack, Packed, Store, StoreError, from_host};
use crate::api::failure::Failure;
use crate::node::failures::words;
use crate::transfer::frames::blocking;

/// How long a peer may take to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// An image that is here, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Its unpacked directory: never written to.
    pub rootfs: PathBuf,
    /// Program and arguments of machines that name none.
    pub command: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Its working directory; empty means `/`.
    pub workdir: String,
}

/// The images of one node.
#[async_trait]
pub trait Images: Send + Sync + Debug {
    /// Makes the image be here, from one of `holders` if need be. It stays while this node runs.
    ///
    /// # Errors
    /// When nobody gives it or the disk refuses.
    async fn ensure(&self, digest: Digest, holders: Vec<NodeId>) -> Result<Ready, Failure>;
    /// Packs programs and files of this host.
    ///
    /// # Errors
    /// When a path is missing, unreadable or too much.
    async fn pack(&self, paths: Vec<String>) -> Result<Packed, Failure>;
    /// Digests of what is here whole.
    fn held(&self) -> Vec<Digest>;
    /// Serves a peer's stream.
    async fn serve(&self, stream: Stream);
}

/// The real store, in a directory.
#[derive(Debug)]
pub struct ImageStore {
    store: Store,
    fetcher: Fetcher,
    server: Server,
    /// What machines of this node use: an image in use is not deleted under them.
    holds: Mutex<BTreeMap<Digest, Hold>>,
}

#[derive(Debug)]
struct Peers {
    transport: Transport,
    kind: Kind,
}

#[async_trait]
impl Dial for Peers {
    async fn open(&self, peer: NodeId) -> std::io::Result<Pipe> {
        let opened = self.transport.open(peer, Class::Bulk, self.kind, Vec::new(), OPEN_TIMEOUT).await;
        let stream = opened.map_err(std::io::Error::other)?;
        Ok(Pipe { reader: Box::new(stream.reader), writer: Box::new(stream.writer) })
    }
}

impl ImageStore {
    /// Opens the store in `root`, fetching by streams of `kind`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(root: &Path, transport: &Transport, kind: Kind) -> Result<Self, StoreError> {
        let store = Store::open(root)?;
        let dial = Arc::new(Peers { transport: transport.clone(), kind });
        let (fetcher, server) = (Fetcher::new(store.clone(), dial), Server::new(store.clone()));
        Ok(ImageStore { store, fetcher, server, holds: Mutex::default() })
    }

    async fn unpacked(&self, digest: Digest, manifest: ImageManifest) -> Result<Ready, Failure> {
        let store = self.store.clone();
        let done = blocking(move || Ok::<_, StoreError>((store.hold(digest)?, store.rootfs(&digest)?))).await;
        let (hold, rootfs) =
            done.map_err(|error| Failure::internal(error.to_string()))?.map_err(|error| failure(&error))?;
        self.holds.lock().expect("no holder of this lock panics").insert(digest, hold);
        Ok(Ready { rootfs, command: manifest.command, env: manifest.env, workdir: manifest.workdir })
    }
}

fn failure(error: &dyn std::error::Error) -> Failure {
    Failure::new("image", words(error))
}

#[async_trait]
impl Images for ImageStore {
    async fn ensure(&self, digest: Digest, holders: Vec<NodeId>) -> Result<Ready, Failure> {
        let manifest = self.fetcher.fetch(digest, &holders, &|_| {}).await;
        let manifest =
            manifest.map_err(|error| failure(&error).hint("is a node that has the image up? smartnode node list"))?;
        self.unpacked(digest, manifest).await
    }

    async fn pack(&self, paths: Vec<String>) -> Result<Packed, Failure> {
        let store = self.store.clone();
        let pack = Pack { paths: paths.into_iter().map(PathBuf::from).collect(), ..Pack::default() };
        let packed = blocking(move || from_host(&store, &pack)).await;
        packed.map_err(|error| Failure::internal(error.to_string()))?.map_err(|error| failure(&error))
    }

    fn held(&self) -> Vec<Digest> {
        self.store.held().map(|held| held.into_iter().collect()).unwrap_or_default()
    }

    async fn serve(&self, mut stream: Stream) {
        if let Err(error) = self.server.serve(&mut stream.reader, &mut stream.writer).await {
            tracing::debug!(%error, "an image was not given");
        }
        let _ = stream.writer.finish().await;
    }
}

/// A node whose image store cannot be used: it says why.
#[derive(Debug)]
pub struct NoImages(String);

impl NoImages {
    /// `reason` is what is wrong with the store.
    pub fn new(reason: String) -> Self {
        NoImages(reason)
    }
    fn unusable(&self) -> Failure {
        Failure::internal(format!("the image store of this node cannot be used: {}", self.0))
    }
}

#[async_trait]
impl Images for NoImages {
    async fn ensure(&self, _: Digest, _: Vec<NodeId>) -> Result<Ready, Failure> {
        Err(self.unusable())
    }
    async fn pack(&self, _: Vec<String>) -> Result<Packed, Failure> {
        Err(self.unusable())
    }
    fn held(&self) -> Vec<Digest> {
        Vec::new()
    }
    async fn serve(&self, mut stream: Stream) {
        let _ = stream.writer.finish().await;
    }
}
