//! Images as the node uses them: have it here, pack a new one, give it to peers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fabric::ids::{Digest, NodeId};
use fabric::rpc::{Kind, Refusal};
use fabric::transport::{Class, Stream, Transport};

use super::fetch::{Dial, Fetcher, Pipe, Server};
use super::{ImageManifest, Pack, PackError, Packed, Store, StoreError, from_host};
use crate::api::failure::Failure;
use crate::cleanup::Unneeded;
use crate::node::failures::words;
use crate::transfer::frames::blocking;

/// How long a peer may take to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an image must have been of no use to anybody before it is removed: longer than making a machine of it takes.
const GRACE: Duration = Duration::from_secs(30);
/// Images that one call removes.
const REMOVED_MAX: usize = 8;

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
    /// Makes the image be here, from one of `holders` if need be, verified. It stays for [`Images::collect`]'s grace, and
    /// then for as long as that is told that it is needed.
    ///
    /// # Errors
    /// When nobody gives it or the disk refuses.
    async fn ensure(&self, digest: Digest, holders: Vec<NodeId>) -> Result<Ready, Failure>;
    /// Packs programs and files of this host; a rehearsal says what it would be and writes nothing.
    ///
    /// # Errors
    /// When a path is missing, unreadable, too much, or leads to a node's data.
    async fn pack(&self, paths: Vec<String>, rehearse: bool) -> Result<Packed, Failure>;
    /// Digests of what is here whole.
    fn held(&self) -> Vec<Digest>;
    /// Removes images that have not been `needed` for a while, by the clock that says `now`; a bounded number of them.
    ///
    /// # Errors
    /// When the disk refuses.
    async fn collect(&self, needed: BTreeSet<Digest>, now: Duration) -> Result<(), Failure>;
    /// Serves a peer's stream.
    async fn serve(&self, stream: Stream);
}

/// The real store, in a directory.
#[derive(Debug)]
pub struct ImageStore {
    store: Store,
    fetcher: Fetcher,
    server: Server,
    known: Arc<Mutex<Known>>,
}

/// What this daemon remembers of images.
#[derive(Debug, Default)]
struct Known {
    /// Found whole and unpacked once: a machine's start looks no further.
    ready: BTreeMap<Digest, Ready>,
    unneeded: Unneeded,
    /// What an interrupted fetch or removal of a former daemon left has been collected.
    collected: bool,
}

impl Known {
    /// Notes that it is wanted, and gives it if it is known to be ready.
    fn want(&mut self, digest: &Digest) -> Option<Ready> {
        self.unneeded.wanted(digest);
        self.ready.get(digest).cloned()
    }
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
        Ok(ImageStore { store, fetcher, server, known: Arc::default() })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    async fn unpacked(&self, digest: Digest, manifest: ImageManifest) -> Result<Ready, Failure> {
        let store = self.store.clone();
        let done = blocking(move || store.rootfs(&digest)).await;
        let rootfs = done.map_err(|error| Failure::internal(error.to_string()))?.map_err(|error| failure(&error))?;
        let ready = Ready { rootfs, command: manifest.command, env: manifest.env, workdir: manifest.workdir };
        self.known().ready.insert(digest, ready.clone());
        Ok(ready)
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    // A panic under it leaves whole entries, so its poison is no news.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets what has not been needed for the grace, then removes bytes that no image names.
fn collect(store: &Store, known: &Mutex<Known>, needed: &BTreeSet<Digest>, now: Duration) -> Result<(), StoreError> {
    let held = store.held()?;
    let (over, collected) = {
        let mut known = lock(known);
        (known.unneeded.look(now, GRACE, &held, needed), std::mem::replace(&mut known.collected, true))
    };
    if over.is_empty() && collected {
        return Ok(());
    }
    for digest in over.into_iter().take(REMOVED_MAX) {
        // In one step: whoever wants it comes before, and it stays, or after, and fetches it anew.
        let mut known = lock(known);
        if known.unneeded.is_unwanted(&digest) {
            known.ready.remove(&digest);
            store.forget(&digest)?;
            tracing::info!(image = %digest, "removed: nothing needs it");
        }
    }
    let bytes = store.collect()?;
    if bytes > 0 {
        tracing::info!(bytes, "removed what no image names");
    }
    Ok(())
}

fn failure(error: &dyn std::error::Error) -> Failure {
    Failure::new("image", words(error))
        .hint("smartnode image from-host NAME PATH... packs programs that are on this host")
}

/// The field of the request that names what is packed.
const FIELD: &str = "from_host";

fn not_packed(error: PackError) -> Failure {
    let told = |code, path: &str, hint: &str| -> Failure {
        Refusal::new(code, words(&error)).field(FIELD, path).hint(hint).into()
    };
    match &error {
        PackError::Missing { path } => told("not-found", path, "name absolute paths of this node's host"),
        PackError::Path { path, .. } => told("invalid", path, "name absolute paths of programs, files and directories"),
        PackError::Keys { path, .. } => told(
            "denied",
            path,
            "an image is given to every node and machine: name directories that hold no node's data",
        ),
        PackError::Manifest(_) => told("invalid", "", "name less, or smaller directories"),
        PackError::Io { .. } | PackError::Library { .. } | PackError::Store(_) => failure(&error),
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn ensure(&self, digest: Digest, holders: Vec<NodeId>) -> Result<Ready, Failure> {
        if let Some(ready) = self.known().want(&digest) {
            return Ok(ready);
        }
        let manifest = self.fetcher.fetch(digest, &holders, &|_| {}).await;
        let manifest =
            manifest.map_err(|error| failure(&error).hint("is a node that has the image up? smartnode node list"))?;
        self.unpacked(digest, manifest).await
    }

    async fn pack(&self, paths: Vec<String>, rehearse: bool) -> Result<Packed, Failure> {
        let store = self.store.clone();
        // The store is a part of the node's data directory.
        let keep_out = store.root().parent().map(Path::to_owned).into_iter().collect();
        let paths = paths.into_iter().map(PathBuf::from).collect();
        let pack = Pack { paths, keep_out, rehearse, ..Pack::default() };
        let packed = blocking(move || from_host(&store, &pack)).await;
        let packed = packed.map_err(|error| Failure::internal(error.to_string()))?.map_err(not_packed)?;
        if rehearse {
            return Ok(packed);
        }
        self.known().want(&packed.digest);
        if !self.store.has(&packed.digest) {
            // The same bytes were an image before, which was removed just now.
            return Err(Failure::internal("the image was removed while it was packed").hint("run the command again"));
        }
        Ok(packed)
    }

    fn held(&self) -> Vec<Digest> {
        self.store.held().map(|held| held.into_iter().collect()).unwrap_or_default()
    }

    async fn collect(&self, needed: BTreeSet<Digest>, now: Duration) -> Result<(), Failure> {
        let (store, known) = (self.store.clone(), self.known.clone());
        let collected = blocking(move || collect(&store, &known, &needed, now)).await;
        collected.map_err(|error| Failure::internal(error.to_string()))?.map_err(|error| failure(&error))
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
    async fn pack(&self, _: Vec<String>, _: bool) -> Result<Packed, Failure> {
        Err(self.unusable())
    }
    fn held(&self) -> Vec<Digest> {
        Vec::new()
    }
    async fn collect(&self, _: BTreeSet<Digest>, _: Duration) -> Result<(), Failure> {
        Ok(())
    }
    async fn serve(&self, mut stream: Stream) {
        let _ = stream.writer.finish().await;
    }
}
