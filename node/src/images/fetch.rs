//! Images between nodes: the client asks for a manifest, then for the chunks it lacks; the server streams them.
//!
//! ```text
//! client                       server
//! ImageAsk                ->
//!                         <-   ImageManifest, or a refusal
//! ImageWant               ->
//!                         <-   block block ...            (and again, until the client has all)
//! ```
//!
//! The client believes nothing: the manifest must have the digest asked for, every chunk its own. A broken fetch leaves
//! the chunks that arrived, and the next one, from whichever peer, asks only for the rest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use fabric::ids::{Digest, NodeId};
use fabric::rpc::Refusal;
use fabric::wire::WireError;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::limits::*;
use super::manifest::{ImageAskV1, ImageManifest, ImageWantV1, ManifestError};
use super::store::{Session, Store, StoreError};
use crate::node::failures::words;
use crate::transfer::frames::{
    self, StreamError, blocking, read_block, read_frame, read_record, write_block, write_record,
};
use crate::transfer::limits::IDLE_MAX;

/// Refusal of a node that serves as many images as it may.
const BUSY: &str = "busy";

/// A stream's two halves.
pub struct Pipe {
    /// What the peer says.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What we say.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl From<fabric::transport::Stream> for Pipe {
    fn from(stream: fabric::transport::Stream) -> Self {
        Pipe { reader: Box::new(stream.reader), writer: Box::new(stream.writer) }
    }
}

/// Opens streams to peers' image servers.
#[async_trait]
pub trait Dial: Send + Sync {
    /// A fresh bulk stream that [`Server::serve`] answers at the other end.
    async fn open(&self, peer: NodeId) -> std::io::Result<Pipe>;
}

/// Why one peer did not give the image.
#[derive(Debug, Error)]
pub enum PeerError {
    /// The stream is of no use.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// What it sent as the manifest is not the one asked for.
    #[error("the peer sent another manifest than the one asked for")]
    OtherImage,
    /// The manifest cannot be.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It does not have a chunk of an image that it holds.
    #[error("the peer lacks chunk {0:?}")]
    Chunk(Digest),
    /// This node's own disk refused: no other peer helps.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<std::io::Error> for PeerError {
    fn from(error: std::io::Error) -> Self {
        PeerError::Stream(error.into())
    }
}

/// Why an image could not be fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    /// Nobody is known to have it.
    #[error("no node is known to hold image {0}")]
    Nowhere(Digest),
    /// All who should have it failed, each for its reason: the last one that it had.
    #[error("image {digest} could not be fetched: {}", reasons(.failures))]
    Failed {
        /// The image.
        digest: Digest,
        /// Who was tried, and why that failed.
        failures: BTreeMap<NodeId, PeerError>,
    },
    /// This node's own store failed.
    #[error("image {digest} cannot be stored")]
    Store {
        /// The image.
        digest: Digest,
        /// Why.
        #[source]
        source: StoreError,
    },
}

fn reasons(failures: &BTreeMap<NodeId, PeerError>) -> String {
    let one = |(peer, error): (&NodeId, &PeerError)| format!("from {}: {}", peer.short(), words(error));
    failures.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchProgress {
    /// Bytes of chunks that are here.
    pub bytes_done: u64,
    /// Bytes of all chunks.
    pub bytes_total: u64,
}

/// Fetches images; one fetch per image at a time, a few images at a time.
#[derive(Clone)]
pub struct Fetcher {
    store: Store,
    dial: Arc<dyn Dial>,
    slots: Arc<Semaphore>,
    flights: Arc<Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// Fetches into `store`.
    pub fn new(store: Store, dial: Arc<dyn Dial>) -> Self {
        Fetcher { store, dial, slots: Arc::new(Semaphore::new(FETCHES_MAX)), flights: Arc::default() }
    }

    fn flight(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        let slot = flights.entry(digest).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let fresh = Arc::default();
            *slot = Arc::downgrade(&fresh);
            fresh
        })
    }

    /// Makes this node hold the image, from the first of `peers` that can give it. Does nothing when it does already.
    /// Whoever asks for an image that is being fetched waits for that fetch.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(
        &self,
        digest: Digest,
        peers: &[NodeId],
        report: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<ImageManifest, FetchError> {
        let flight = self.flight(digest);
        let _alone = flight.lock().await;
        let store_error = |source| FetchError::Store { digest, source };
        let store = self.store.clone();
        let held = blocking(move || store.whole(&digest)).await;
        match held.map_err(|error| store_error(io_error(&self.store, error)))? {
            Ok(manifest) => return Ok(manifest),
            Err(StoreError::Missing(_) | StoreError::Damaged(_)) => {}
            Err(error) => return Err(store_error(error)),
        }
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let mut failures = BTreeMap::new();
        for pause in ROUNDS {
            tokio::time::sleep(pause).await;
            // Whoever says that it has no such image will not have it in a moment either; a stream that broke, or a
            // connection that a restarted peer has forgotten, is worth another try.
            let again = |peer: &&NodeId| !matches!(failures.get(*peer), Some(error) if is_final(error));
            let peers: Vec<NodeId> = peers.iter().take(PEERS_TRIED_MAX).filter(again).copied().collect();
            if peers.is_empty() {
                break;
            }
            for peer in peers {
                match self.fetch_from(digest, peer, report).await {
                    Ok(manifest) => return Ok(manifest),
                    Err(PeerError::Store(source)) => return Err(store_error(source)),
                    Err(error) => {
                        tracing::debug!(?digest, ?peer, %error, "a peer did not give the image");
                        failures.insert(peer, error);
                    }
                }
            }
        }
        match failures.is_empty() {
            true => Err(FetchError::Nowhere(digest)),
            false => Err(FetchError::Failed { digest, failures }),
        }
    }

    async fn fetch_from(
        &self,
        digest: Digest,
        peer: NodeId,
        report: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<ImageManifest, PeerError> {
        let dialled = tokio::time::timeout(DIAL_TIMEOUT, self.dial.open(peer)).await;
        let mut pipe = dialled.map_err(|_| StreamError::Idle(DIAL_TIMEOUT))??;
        write_record(&mut pipe.writer, &ImageAskV1 { digest }).await?;
        frames::flush(&mut pipe.writer).await?;
        let frame = read_frame(&mut pipe.reader, IDLE_MAX).await?;
        let frame = frame.ok_or(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        let manifest: ImageManifest = frames::decode(&frame)?;
        if Digest::of(&frame) != digest {
            return Err(PeerError::OtherImage);
        }
        manifest.check()?;

        let chunks = manifest.chunks();
        let bytes_total = chunks.values().map(|length| *length as u64).sum();
        let store = self.store.clone();
        let (mut session, lacking) = blocking(move || {
            let mut session = store.session();
            let lacking: Vec<_> = chunks.into_iter().filter(|(digest, length)| !session.has(digest, *length)).collect();
            (session, lacking)
        })
        .await?;
        let missing: u64 = lacking.iter().map(|(_, length)| *length as u64).sum();
        let mut bytes_done = bytes_total - missing;
        for want in lacking.chunks(WANT_MAX) {
            let wanted = want.iter().map(|(digest, _)| *digest).collect();
            write_record(&mut pipe.writer, &ImageWantV1 { chunks: wanted }).await?;
            frames::flush(&mut pipe.writer).await?;
            for (chunk, length) in want {
                let content = match read_block(&mut pipe.reader, chunk).await {
                    Ok(Some(content)) => content,
                    other => {
                        // What arrived stays: the next peer is asked for the rest only.
                        blocking(move || session.commit()).await??;
                        return Err(other.map_or_else(PeerError::from, |_| PeerError::Chunk(*chunk)));
                    }
                };
                session = put(session, content).await?;
                bytes_done += *length as u64;
                report(FetchProgress { bytes_done, bytes_total });
            }
        }
        // The chunks are here; whether the server hears our end changes nothing.
        let _ = frames::finish(&mut pipe.writer).await;
        let finished = manifest.clone();
        blocking(move || session.finish(&finished)).await??;
        Ok(manifest)
    }
}

/// The peer has spoken, and would say the same again.
fn is_final(error: &PeerError) -> bool {
    match error {
        PeerError::Stream(StreamError::Refused(refusal)) => refusal.code != BUSY,
        PeerError::Stream(_) => false,
        PeerError::OtherImage | PeerError::Manifest(_) | PeerError::Chunk(_) | PeerError::Store(_) => true,
    }
}

async fn put(mut session: Session, content: Vec<u8>) -> Result<Session, PeerError> {
    let (session, done) = blocking(move || {
        let done = session.put(&content);
        (session, done)
    })
    .await?;
    done?;
    Ok(session)
}

fn io_error(store: &Store, source: std::io::Error) -> StoreError {
    StoreError::Io { path: store.root().to_owned(), source }
}

/// Gives images to peers.
#[derive(Debug, Clone)]
pub struct Server {
    store: Store,
    slots: Arc<Semaphore>,
}

impl Server {
    /// Serves from `store`.
    pub fn new(store: Store) -> Self {
        Server { store, slots: Arc::new(Semaphore::new(SERVED_MAX)) }
    }

    /// Answers one stream until the peer has what it wants. Any authenticated node may have any image: placement brings
    /// tenants' machines to every node.
    ///
    /// # Errors
    /// When the stream breaks or the peer says something else.
    pub async fn serve(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), PeerError> {
        let ask: ImageAskV1 = read_record(reader, IDLE_MAX).await?;
        let Ok(_slot) = self.slots.try_acquire() else {
            return refuse(writer, Refusal::new(BUSY, "this node serves many images now")).await;
        };
        let store = self.store.clone();
        let manifest = match blocking(move || store.manifest(&ask.digest)).await? {
            Ok(manifest) => manifest,
            Err(error) => return refuse(writer, Refusal::new("image-not-here", error.to_string())).await,
        };
        write_record(writer, &manifest).await?;
        frames::flush(writer).await?;
        let chunks = manifest.chunks();
        while let Some(frame) = read_frame(reader, IDLE_MAX * 3).await? {
            let want: ImageWantV1 = frames::decode(&frame)?;
            if want.chunks.len() > WANT_MAX {
                return Err(StreamError::Wire(WireError::Body).into());
            }
            for digest in want.chunks {
                let store = self.store.clone();
                let content = match chunks.contains_key(&digest) {
                    true => blocking(move || store.chunk(&digest)).await?.ok(),
                    false => None,
                };
                write_block(writer, content.as_deref()).await?;
            }
            frames::flush(writer).await?;
        }
        Ok(frames::finish(writer).await?)
    }
}

async fn refuse(writer: &mut (impl AsyncWrite + Unpin), refusal: Refusal) -> Result<(), PeerError> {
    write_record(writer, &refusal).await?;
    Ok(frames::finish(writer).await?)
}
