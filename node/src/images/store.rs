//! Images on this node's disk, by content: `chunks/ab/<digest>`, `manifests/<digest>`, and the unpacked
//! `rootfs/<digest>` that machines use as the lower layer, never written to.
//!
//! A chunk is verified whenever it is read; one that is damaged is removed, so that it can be fetched again. New chunks
//! are flushed in batches before they get their names. A manifest is stored only after all its chunks, so an image that
//! is held is whole. `tmp/` is emptied at every opening: a crash leaves nothing else.
#![expect(clippy::disallowed_methods, reason = "images are files of the host, below the runtime's seam")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fabric::ids::Digest;
use fabric::limits::{CHUNK_BYTES, FRAME_BYTES_MAX};
use fabric::wire::{self, WireError};
use thiserror::Error;

use super::limits::COMMIT_BYTES;
use super::manifest::{ImageManifest, ManifestError};
use crate::transfer::limits::FLUSH_EACH_MAX;

/// Why the store did not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("{path:?} of the image store cannot be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such image, or a chunk of it is missing.
    #[error("{0} is not on this node")]
    Missing(Digest),
    /// The disk returned other bytes than were written; they were removed.
    #[error("{0} was damaged on this node's disk and has been removed: fetch the image again")]
    Damaged(Digest),
    /// The image cannot be.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest's record cannot be read.
    #[error("the image's manifest cannot be read")]
    Wire(#[from] WireError),
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    move |source| StoreError::Io { path: path.to_owned(), source }
}

/// What is in use and must not be removed.
#[derive(Debug, Default)]
struct Books {
    /// Chunks of images that are being packed or fetched.
    pinned: BTreeMap<Digest, usize>,
    /// While chunks are collected: every chunk that was pinned at any time since that began.
    recent: Option<BTreeSet<Digest>>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    books: Mutex<Books>,
    /// One unpacking at a time: they compete for the same disk, and two of one image would do the work twice.
    unpacking: Mutex<()>,
    collecting: Mutex<()>,
    temporary: AtomicU64,
}

/// The images of this node. All methods block on the disk.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

fn release(counts: &mut BTreeMap<Digest, usize>, digest: &Digest) {
    if let Some(count) = counts.get_mut(digest) {
        *count -= 1;
        if *count == 0 {
            counts.remove(digest);
        }
    }
}

impl Store {
    /// Opens or makes the store in the directory `root`, and removes what a crash left.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let inner = Inner {
            root: root.to_owned(),
            books: Mutex::default(),
            unpacking: Mutex::default(),
            collecting: Mutex::default(),
            temporary: AtomicU64::new(0),
        };
        let store = Store { inner: Arc::new(inner) };
        let tmp = root.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).map_err(failed(&tmp))?;
        }
        for name in ["chunks", "manifests", "rootfs", "tmp"] {
            make_dir(&root.join(name))?;
        }
        for unpacked in names_in(&root.join("rootfs"))? {
            store.discard_rootfs(&unpacked)?;
        }
        Ok(store)
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.inner.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One unpacking at a time.
    pub(super) fn unpacking(&self) -> MutexGuard<'_, ()> {
        self.inner.unpacking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A path in `tmp/` that nobody else uses.
    pub(super) fn temporary(&self) -> PathBuf {
        let number = self.inner.temporary.fetch_add(1, Ordering::Relaxed);
        self.inner.root.join("tmp").join(number.to_string())
    }

    fn chunk_path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.inner.root.join("chunks").join(&name[..2]).join(name)
    }

    fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("manifests").join(digest.to_string())
    }

    /// Where an image is unpacked, once it is.
    pub fn rootfs_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("rootfs").join(digest.to_string())
    }

    /// Images that this node holds whole, for gossip.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn held(&self) -> Result<BTreeSet<Digest>, StoreError> {
        names_in(&self.inner.root.join("manifests"))
    }

    /// Whether this node holds the image whole.
    pub fn has(&self, digest: &Digest) -> bool {
        self.manifest_path(digest).exists()
    }

    /// The chunk's content, verified.
    ///
    /// # Errors
    /// [`StoreError::Missing`] or [`StoreError::Damaged`].
    pub fn chunk(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.chunk_path(digest);
        let content = read_bounded(&path, CHUNK_BYTES, digest)?;
        if Digest::of(&content) != *digest {
            fs::remove_file(&path).map_err(failed(&path))?;
            return Err(StoreError::Damaged(*digest));
        }
        Ok(content)
    }

    /// The image's manifest, verified.
    ///
    /// # Errors
    /// [`StoreError::Missing`] or [`StoreError::Damaged`].
    pub fn manifest(&self, digest: &Digest) -> Result<ImageManifest, StoreError> {
        let path = self.manifest_path(digest);
        let frame = read_bounded(&path, FRAME_BYTES_MAX, digest)?;
        if Digest::of(&frame) != *digest {
            fs::remove_file(&path).map_err(failed(&path))?;
            return Err(StoreError::Damaged(*digest));
        }
        let manifest: ImageManifest = wire::decode(&frame)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest, when every chunk is here as well: one that was damaged may be gone since.
    ///
    /// # Errors
    /// [`StoreError::Missing`] or [`StoreError::Damaged`].
    pub fn whole(&self, digest: &Digest) -> Result<ImageManifest, StoreError> {
        let manifest = self.manifest(digest)?;
        let there = |chunk: &Digest, length: usize| {
            fs::metadata(self.chunk_path(chunk)).is_ok_and(|meta| meta.len() == length as u64)
        };
        match manifest.chunks().into_iter().find(|(chunk, length)| !there(chunk, *length)) {
            Some((chunk, _)) => Err(StoreError::Missing(chunk)),
            None => Ok(manifest),
        }
    }

    /// Begins to add an image.
    pub fn session(&self) -> Session {
        Session { store: self.clone(), pinned: BTreeSet::new(), fresh: BTreeMap::new(), fresh_bytes: 0, writes: true }
    }

    /// As if an image were added: everything is named, and nothing is written.
    pub fn rehearsal(&self) -> Session {
        let mut session = self.session();
        session.writes = false;
        session
    }

    /// Takes an image's name away: from now on this node does not hold it. Absence is fine. Its bytes go by
    /// [`Store::collect`]. Whoever uses it must have been asked before.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.manifest_path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
            _ => {}
        }
        sync_path(&self.inner.root.join("manifests"))
    }

    /// Removes what a forgotten image was unpacked to, unless the image is here again.
    fn discard_rootfs(&self, digest: &Digest) -> Result<(), StoreError> {
        let _one = self.unpacking();
        if self.has(digest) {
            return Ok(());
        }
        let (path, away) = (self.rootfs_path(digest), self.temporary());
        match fs::rename(&path, &away) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed(&path))?,
        }
        fs::remove_dir_all(&away).map_err(failed(&away))
    }

    /// Removes the bytes that no image which is held needs: unpacked ones, and chunks that nobody is adding. Returns the
    /// bytes of removed chunks.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn collect(&self) -> Result<u64, StoreError> {
        let held = self.held()?;
        for unpacked in names_in(&self.inner.root.join("rootfs"))?.difference(&held) {
            self.discard_rootfs(unpacked)?;
        }
        self.collect_chunks()
    }

    /// Removes chunks that no image names and nobody is adding.
    fn collect_chunks(&self) -> Result<u64, StoreError> {
        let _one = self.inner.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut books = self.books();
            books.recent = Some(books.pinned.keys().copied().collect());
        }
        let result = self.collect_unpinned();
        self.books().recent = None;
        result
    }

    fn collect_unpinned(&self) -> Result<u64, StoreError> {
        let mut named = BTreeSet::new();
        for digest in self.held()? {
            named.extend(self.manifest(&digest)?.chunks().into_keys());
        }
        let mut freed = 0;
        let shards = self.inner.root.join("chunks");
        for shard in fs::read_dir(&shards).map_err(failed(&shards))? {
            let shard = shard.map_err(failed(&shards))?.path();
            for digest in names_in(&shard)? {
                // Removed under the lock, so that nobody begins to rely on the chunk in between. An image completed
                // after `named` was read had its chunks pinned, which `recent` remembers.
                let books = self.books();
                if named.contains(&digest) || books.recent.as_ref().is_some_and(|recent| recent.contains(&digest)) {
                    continue;
                }
                let path = self.chunk_path(&digest);
                let length = fs::metadata(&path).map_or(0, |meta| meta.len());
                fs::remove_file(&path).map_err(failed(&path))?;
                freed += length;
            }
        }
        Ok(freed)
    }
}

/// Adds one image: chunks first, the manifest last. What it has put or found cannot be collected while it lives.
#[derive(Debug)]
pub struct Session {
    store: Store,
    pinned: BTreeSet<Digest>,
    fresh: BTreeMap<Digest, PathBuf>,
    fresh_bytes: usize,
    /// Not in a rehearsal.
    writes: bool,
}

impl Session {
    fn pin(&mut self, digest: Digest) {
        if self.pinned.insert(digest) {
            let mut books = self.store.books();
            *books.pinned.entry(digest).or_default() += 1;
            books.recent.as_mut().map(|recent| recent.insert(digest));
        }
    }

    /// Whether the chunk is here, with this length; it stays from now on.
    pub fn has(&mut self, digest: &Digest, length: usize) -> bool {
        self.pin(*digest);
        let there = fs::metadata(self.store.chunk_path(digest)).is_ok_and(|meta| meta.len() == length as u64);
        there || self.fresh.contains_key(digest)
    }

    /// Adds a chunk of at most `CHUNK_BYTES`.
    ///
    /// # Errors
    /// When the disk refuses.
    ///
    /// # Panics
    /// When it is larger: callers cut.
    pub fn put(&mut self, content: &[u8]) -> Result<Digest, StoreError> {
        assert!(content.len() <= CHUNK_BYTES, "a chunk of {} bytes", content.len());
        let digest = Digest::of(content);
        if !self.writes || self.has(&digest, content.len()) {
            return Ok(digest);
        }
        let path = self.store.temporary();
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed(&path))?;
        self.fresh.insert(digest, path.clone());
        file.write_all(content).map_err(failed(&path))?;
        self.fresh_bytes += content.len();
        if self.fresh_bytes >= COMMIT_BYTES {
            self.commit()?;
        }
        Ok(digest)
    }

    /// Flushes the new chunks and gives them their names: one flush for many instead of one for each.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        if self.fresh.is_empty() {
            return Ok(());
        }
        let each = self.fresh.len() <= FLUSH_EACH_MAX;
        let root = self.store.root().to_owned();
        match each {
            true => self.fresh.values().try_for_each(|path| sync_path(path))?,
            false => sync_file_system(&root)?,
        }
        let mut shards = BTreeSet::from([root.join("chunks")]);
        for (digest, path) in &self.fresh {
            let named = self.store.chunk_path(digest);
            let shard = named.parent().unwrap_or(&root);
            make_dir(shard)?;
            fs::rename(path, &named).map_err(failed(&named))?;
            shards.insert(shard.to_owned());
        }
        self.fresh.clear();
        self.fresh_bytes = 0;
        match each {
            true => shards.iter().try_for_each(|path| sync_path(path)),
            false => sync_file_system(&root),
        }
    }

    /// Stores the manifest: from now on this node holds the image. Returns its digest.
    ///
    /// # Errors
    /// When the manifest is not acceptable, names a chunk that is not here, or the disk refuses.
    pub fn finish(mut self, manifest: &ImageManifest) -> Result<Digest, StoreError> {
        manifest.check()?;
        if !self.writes {
            return Ok(manifest.framed().0);
        }
        self.commit()?;
        for (digest, length) in manifest.chunks() {
            if !self.has(&digest, length) {
                return Err(StoreError::Missing(digest));
            }
        }
        let (digest, frame) = manifest.framed();
        let (temporary, path) = (self.store.temporary(), self.store.manifest_path(&digest));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed(&temporary))?;
        file.write_all(&frame).and_then(|()| file.sync_all()).map_err(failed(&temporary))?;
        fs::rename(&temporary, &path).map_err(failed(&path))?;
        path.parent().map_or(Ok(()), sync_path)?;
        Ok(digest)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for path in self.fresh.values() {
            // What stays is removed at the next opening.
            let _ = fs::remove_file(path);
        }
        let mut books = self.store.books();
        for digest in &self.pinned {
            release(&mut books.pinned, digest);
        }
    }
}

fn read_bounded(path: &Path, max: usize, digest: &Digest) -> Result<Vec<u8>, StoreError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing(*digest)),
        other => other.map_err(failed(path))?,
    };
    let mut content = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut content).map_err(failed(path))?;
    Ok(content)
}

/// Digests that are names of files in a directory; other names are not ours.
fn names_in(path: &Path) -> Result<BTreeSet<Digest>, StoreError> {
    let mut out = BTreeSet::new();
    for item in fs::read_dir(path).map_err(failed(path))? {
        let name = item.map_err(failed(path))?.file_name();
        out.extend(name.to_str().and_then(|name| name.parse::<Digest>().ok()));
    }
    Ok(out)
}

fn make_dir(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))
}

pub(super) fn sync_path(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed(path))
}

fn sync_file_system(path: &Path) -> Result<(), StoreError> {
    let dir = File::open(path).map_err(failed(path))?;
    rustix::fs::syncfs(&dir).map_err(|errno| failed(path)(errno.into()))
}
