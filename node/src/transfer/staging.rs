//! The destination's copy of a layer while it arrives: `<root>/<move>/tree`, and `<root>/<move>/prepared` once it is
//! complete and on disk.
//!
//! A crash leaves such directories and nothing else; those that belong to no move ([`staged`]) are removed by [`abort`]. What is in them is
//! never believed: a stream that resumes scans the tree anew.
#![expect(clippy::disallowed_methods, reason = "machines' layers are files of the host, below the runtime's seam")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use fabric::ids::{Digest, MoveId};
use fabric::limits::CHUNK_BYTES;
use rustix::fs::{FallocateFlags, FlockOperation};
use thiserror::Error;

use super::manifest::{Layer, LayerEntryV1, LayerKindV1, block_len, shown};
use super::plan::{self, UNKNOWN};
use super::scan::{ScanError, Scanner};
use super::within::{Meta, Within};

/// Why a layer cannot be staged.
#[derive(Debug, Error)]
pub enum StagingError {
    /// The file system refused.
    #[error("{path:?} of the staged layer cannot be written")]
    Io {
        /// Path, relative to the layer, or of the staging directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What is there already cannot be read.
    #[error("the staged layer cannot be read")]
    Scan(#[from] ScanError),
    /// Another stream works on this move.
    #[error("move {0:?} is being received already")]
    Busy(MoveId),
    /// The peer named a block that the layer does not have.
    #[error("no block {1} in entry {0} of the layer")]
    NoSuchBlock(u32, u32),
    /// Blocks are missing at the end of the last pass.
    #[error("{0} blocks of the layer are missing")]
    Incomplete(usize),
    /// There is nothing prepared to adopt.
    #[error("nothing is prepared for move {0:?}")]
    NotPrepared(MoveId),
}

fn failed(path: &[u8]) -> impl FnOnce(io::Error) -> StagingError + '_ {
    move |source| StagingError::Io { path: shown(path), source }
}

fn failed_at(path: &Path) -> impl FnOnce(io::Error) -> StagingError + '_ {
    move |source| StagingError::Io { path: path.display().to_string(), source }
}

/// A layer that arrives.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    within: Within,
    /// What is staged; blocks not known are [`UNKNOWN`].
    have: Layer,
    /// Held for as long as this value lives.
    _lock: File,
}

fn place(root: &Path, id: MoveId) -> PathBuf {
    root.join(id.to_string())
}

fn make_dir(path: &Path) -> Result<(), StagingError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed_at(path))
}

fn sync_dir(path: &Path) -> Result<(), StagingError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed_at(path))
}

impl Staging {
    /// Opens the staging directory of a move, with what an earlier stream left in it.
    ///
    /// # Errors
    /// When another stream has it, or the disk refuses.
    pub fn open(root: &Path, id: MoveId) -> Result<Self, StagingError> {
        let dir = place(root, id);
        let tree = dir.join("tree");
        make_dir(&tree)?;
        let lock = File::open(&dir).map_err(failed_at(&dir))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StagingError::Busy(id)),
            Err(error) => return Err(failed_at(&dir)(error.into())),
        }
        // From here on the tree changes, so it is prepared no more.
        remove_file(&dir.join("prepared"))?;
        let have = Scanner::default().scan(&tree, true)?;
        let within = Within::open(&tree).map_err(failed_at(&tree))?;
        Ok(Staging { dir, within, have, _lock: lock })
    }

    /// Blocks held from an earlier stream.
    pub fn blocks_held(&self) -> u64 {
        let held = |entry: &LayerEntryV1| match &entry.kind {
            LayerKindV1::File { blocks, .. } => blocks.iter().filter(|digest| **digest != Digest::default()).count(),
            _ => 0,
        };
        self.have.entries.iter().map(|entry| held(entry) as u64).sum()
    }

    /// Shapes the tree after `want` (checked) and tells which blocks it lacks.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn begin(&mut self, want: Layer) -> Result<Vec<(u32, u32)>, StagingError> {
        let lacking = plan::lacking(&self.have, &want);
        for path in plan::removals(&self.have, &want) {
            self.within.remove(&path).map_err(failed(&path))?;
        }
        for entry in &want.entries {
            if !entry.path.is_empty() {
                self.shape(entry).map_err(failed(&entry.path))?;
            }
        }
        self.have = want;
        for (entry, block) in &lacking {
            if let LayerKindV1::File { blocks, .. } = &mut self.have.entries[*entry as usize].kind {
                blocks[*block as usize] = UNKNOWN;
            }
        }
        Ok(lacking)
    }

    /// Makes one entry if it is not there, and gives a file its size and holes.
    fn shape(&self, entry: &LayerEntryV1) -> io::Result<()> {
        let path = entry.path.as_slice();
        let there = self.within.stat(path)?.is_some();
        match &entry.kind {
            LayerKindV1::File { size, blocks } if there => {
                let file = self.within.write(path)?;
                let old = rustix::fs::fstat(&file)?.st_size as u64;
                if old != *size {
                    rustix::fs::ftruncate(&file, *size)?;
                }
                for (index, digest) in blocks.iter().enumerate() {
                    let at = index as u64 * CHUNK_BYTES as u64;
                    if *digest == Digest::default() && at < old {
                        punch(&file, at, block_len(*size, index as u32))?;
                    }
                }
                Ok(())
            }
            LayerKindV1::File { size, .. } => Ok(rustix::fs::ftruncate(self.within.create(path)?, *size)?),
            _ if there => Ok(()),
            LayerKindV1::Dir => self.within.make_dir(path),
            LayerKindV1::Symlink { target } => self.within.symlink(path, target),
            LayerKindV1::Hardlink { of } => self.within.link(of, path),
            LayerKindV1::Fifo => self.within.fifo(path),
            LayerKindV1::Whiteout => self.within.whiteout(path),
        }
    }

    /// Writes a verified block.
    ///
    /// # Errors
    /// When `want` has no such block.
    pub fn put(&mut self, entry: u32, block: u32, digest: Digest, bytes: &[u8]) -> Result<(), StagingError> {
        let missing = || StagingError::NoSuchBlock(entry, block);
        let item = self.have.entries.get_mut(entry as usize).ok_or_else(missing)?;
        let LayerKindV1::File { size, blocks } = &mut item.kind else { return Err(missing()) };
        let slot = blocks.get_mut(block as usize).ok_or_else(missing)?;
        if bytes.len() != block_len(*size, block) {
            return Err(missing());
        }
        let file = self.within.write(&item.path).map_err(failed(&item.path))?;
        file.write_all_at(bytes, u64::from(block) * CHUNK_BYTES as u64).map_err(failed(&item.path))?;
        *slot = digest;
        Ok(())
    }

    /// Flushes the tree, so that the last pass has little left to flush.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn flush(&self) -> Result<(), StagingError> {
        let opened = |entry: &&LayerEntryV1| matches!(entry.kind, LayerKindV1::Dir | LayerKindV1::File { .. });
        let paths = self.have.entries.iter().filter(opened).map(|entry| entry.path.as_slice());
        self.within.persist(paths.filter(|path| !path.is_empty())).map_err(failed_at(&self.dir))
    }

    /// Ends the last pass: owners, modes, attributes and times are set, all is flushed, and only then it is noted as
    /// prepared. Returns the digest of the layer.
    ///
    /// # Errors
    /// When blocks are missing or the disk refuses.
    pub fn prepare(&mut self) -> Result<Digest, StagingError> {
        let unknown = |entry: &LayerEntryV1| match &entry.kind {
            LayerKindV1::File { blocks, .. } => blocks.iter().filter(|digest| **digest == UNKNOWN).count(),
            _ => 0,
        };
        let missing: usize = self.have.entries.iter().map(unknown).sum();
        if missing > 0 {
            return Err(StagingError::Incomplete(missing));
        }
        // Children before their directory: making a child moves the directory's time.
        for entry in self.have.entries.iter().rev() {
            self.dress(entry).map_err(failed(&entry.path))?;
        }
        self.flush()?;
        let digest = self.have.digest();
        let temporary = self.dir.join("prepared.tmp");
        let noted = File::create(&temporary).and_then(|mut file| {
            file.write_all(digest.to_string().as_bytes())?;
            file.sync_all()
        });
        noted.map_err(failed_at(&temporary))?;
        std::fs::rename(&temporary, self.dir.join("prepared")).map_err(failed_at(&temporary))?;
        sync_dir(&self.dir)?;
        self.dir.parent().map_or(Ok(()), sync_dir)?;
        Ok(digest)
    }

    fn dress(&self, entry: &LayerEntryV1) -> io::Result<()> {
        let meta = Meta {
            mode: entry.mode,
            owner: Some((entry.uid, entry.gid)),
            mtime: Some((entry.mtime_s, entry.mtime_ns)),
            xattrs: &entry.xattrs,
        };
        match &entry.kind {
            LayerKindV1::Dir | LayerKindV1::File { .. } => self.within.set_meta(&entry.path, &meta),
            LayerKindV1::Symlink { .. } => self.within.set_meta_unopened(&entry.path, &meta, true),
            LayerKindV1::Fifo => self.within.set_meta_unopened(&entry.path, &meta, false),
            LayerKindV1::Hardlink { .. } | LayerKindV1::Whiteout => Ok(()),
        }
    }
}

/// Makes a range read as zeros.
fn punch(file: &File, at: u64, length: usize) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, at, length as u64) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.write_all_at(&vec![0; length], at),
        other => Ok(other?),
    }
}

fn remove_file(path: &Path) -> Result<(), StagingError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed_at(path)(error)),
        _ => Ok(()),
    }
}

/// The digest of the layer that is prepared for a move, if one is: the destination asks this after a restart.
///
/// # Errors
/// When the note is there and cannot be read.
pub fn prepared(root: &Path, id: MoveId) -> Result<Option<Digest>, StagingError> {
    let note = place(root, id).join("prepared");
    match std::fs::read_to_string(&note) {
        Ok(text) => Ok(text.parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed_at(&note)(error)),
    }
}

/// Makes the prepared layer the machine's `upper` directory by one rename. `upper` may be absent or empty, on the same
/// file system; its parent exists. Repeating it after a crash in between is harmless.
///
/// # Errors
/// When nothing is prepared, or `upper` holds something.
pub fn adopt(root: &Path, id: MoveId, upper: &Path) -> Result<(), StagingError> {
    let dir = place(root, id);
    if prepared(root, id)?.is_none() {
        return Err(StagingError::NotPrepared(id));
    }
    let tree = dir.join("tree");
    // Without the tree, an earlier adoption has renamed it and was cut before it tidied up.
    if tree.exists() || !upper.exists() {
        std::fs::rename(&tree, upper).map_err(failed_at(upper))?;
    }
    upper.parent().map_or(Ok(()), sync_dir)?;
    sync_dir(&dir)?;
    abort(root, id)
}

/// Removes what was staged for a move. Absence is fine.
///
/// # Errors
/// When it cannot be removed.
pub fn abort(root: &Path, id: MoveId) -> Result<(), StagingError> {
    let dir = place(root, id);
    if !dir.exists() {
        return Ok(());
    }
    let within = Within::open(root).map_err(failed_at(root))?;
    within.remove(id.to_string().as_bytes()).map_err(failed_at(&dir))?;
    sync_dir(root)
}

/// The moves that have something staged.
///
/// # Errors
/// When the directory cannot be read.
pub fn staged(root: &Path) -> Result<BTreeSet<MoveId>, StagingError> {
    let listing = match std::fs::read_dir(root) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(failed_at(root)(error)),
    };
    let mut found = BTreeSet::new();
    for item in listing {
        let name = item.map_err(failed_at(root))?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<MoveId>().ok()));
    }
    Ok(found)
}
