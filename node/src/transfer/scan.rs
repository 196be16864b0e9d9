//! Walks a layer's directory and says what it consists of.
//!
//! The machine may be running: what vanishes under the walk is left out, and the next pass sees the truth. What must
//! never happen is that a change goes unseen, so a file's blocks are reused from an earlier scan only when its change
//! time stayed the same *and* was well older than a flush that came before its reading: a flush write-protects mapped
//! pages, so that every later store through a mapping moves the change time; [`SETTLED`] covers the clock's coarseness
//! and a single long write. File systems without write-back (tmpfs) are read in full every time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use fabric::ids::Digest;
use fabric::limits::CHUNK_BYTES;
use rustix::fs::{AtFlags, FileType, SeekFrom, Stat};
use thiserror::Error;

use super::limits::*;
use super::manifest::{Layer, LayerEntryV1, LayerError, LayerKindV1, Tally, block_len, blocks_of, carries, shown};
use super::within::{Within, Xattrs};

/// Why a layer cannot be described.
#[derive(Debug, Error)]
pub enum ScanError {
    /// The file system refused.
    #[error("{path:?} cannot be read")]
    Io {
        /// Relative path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// More than can be moved.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Something that cannot travel.
    #[error("{path:?} cannot be moved: {what}")]
    Unmovable {
        /// Relative path.
        path: String,
        /// Why.
        what: &'static str,
    },
}

fn failed(path: &[u8]) -> impl FnOnce(io::Error) -> ScanError + '_ {
    move |source| ScanError::Io { path: shown(path), source }
}

/// Whether the error says that the thing went away, or became another, under the walk.
fn vanished(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else { return false };
    let gone = [rustix::io::Errno::NOENT, rustix::io::Errno::LOOP, rustix::io::Errno::NOTDIR, rustix::io::Errno::STALE];
    gone.iter().any(|errno| errno.raw_os_error() == code)
}

/// Identity of an inode: device and number.
type Inode = (u64, u64);
/// A time stamp of the kernel.
type Stamp = (i64, u64);

#[derive(Debug)]
struct Known {
    changed: Stamp,
    size: u64,
    blocks: Vec<Digest>,
}

/// Scans one layer again and again, and remembers what it may.
#[derive(Debug)]
pub struct Scanner {
    shortcut_bytes: u64,
    settled: Duration,
    known: BTreeMap<Inode, Known>,
    /// Sockets left out by the last scan: they mean nothing without the process that made them.
    pub skipped: usize,
}

struct Found {
    entry: LayerEntryV1,
    inode: Inode,
    changed: Stamp,
    links: u64,
}

impl Default for Scanner {
    fn default() -> Self {
        Scanner::new(SHORTCUT_BYTES, SETTLED)
    }
}

impl Scanner {
    /// A scanner that remembers files of layers of at least `shortcut_bytes`, unchanged for `settled`.
    pub(super) fn new(shortcut_bytes: u64, settled: Duration) -> Self {
        Scanner { shortcut_bytes, settled, known: BTreeMap::new(), skipped: 0 }
    }

    /// Files that need not be read again unless they change.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.known.len()
    }

    /// Describes the directory `root`; with `last` no further scan follows that could profit from a flush.
    ///
    /// # Errors
    /// See [`ScanError`].
    pub fn scan(&mut self, root: &Path, last: bool) -> Result<Layer, ScanError> {
        let within = Within::open(root).map_err(failed(b""))?;
        let mut found = self.walk(&within)?;
        found.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
        let size = |item: &Found| if let LayerKindV1::File { size, .. } = item.entry.kind { size } else { 0 };
        let settled = match last || found.iter().map(size).sum::<u64>() < self.shortcut_bytes {
            true => None,
            false => settled_before(&within, self.settled).map_err(failed(b""))?,
        };
        let mut names: BTreeMap<Inode, Vec<u8>> = BTreeMap::new();
        let mut kept = BTreeMap::new();
        let mut tally = Tally::default();
        let mut layer = Layer::default();
        for mut item in found {
            if let LayerKindV1::File { .. } = item.entry.kind {
                if let Some(of) = names.get(&item.inode) {
                    item.entry.kind = LayerKindV1::Hardlink { of: of.clone() };
                    item.entry.xattrs.clear();
                } else {
                    match self.describe(&within, &mut item, settled, &mut kept) {
                        Ok(()) => {}
                        Err(ScanError::Io { source, .. }) if vanished(&source) => continue,
                        Err(error) => return Err(error),
                    }
                    if item.links > 1 {
                        names.insert(item.inode, item.entry.path.clone());
                    }
                }
            }
            tally.add(&item.entry)?;
            layer.entries.push(item.entry);
        }
        self.known = kept;
        Ok(layer)
    }

    fn walk(&mut self, within: &Within) -> Result<Vec<Found>, ScanError> {
        self.skipped = 0;
        let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
        let mut found = Vec::new();
        while let Some(path) = todo.pop() {
            let dir = match within.dir(&path) {
                Ok(dir) => dir,
                Err(error) if vanished(&error) && !path.is_empty() => continue,
                Err(error) => return Err(failed(&path)(error)),
            };
            let stat = rustix::fs::fstat(&dir).map_err(io::Error::from).map_err(failed(&path))?;
            let mut item = describe_stat(&path, LayerKindV1::Dir, &stat);
            item.entry.xattrs = xattrs(dir.as_fd(), &path)?;
            found.push(item);
            let children = rustix::fs::Dir::read_from(&dir).map_err(io::Error::from).map_err(failed(&path))?;
            for child in children {
                let child = child.map_err(io::Error::from).map_err(failed(&path))?;
                let name = child.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let full = if path.is_empty() { name.to_vec() } else { [&path, name].join(&b'/') };
                self.child(dir.as_fd(), name, full, &mut todo, &mut found)?;
                if found.len() + todo.len() > LAYER_ENTRIES_MAX {
                    return Err(LayerError::Bound { what: "entries", max: LAYER_ENTRIES_MAX as u64 }.into());
                }
            }
        }
        Ok(found)
    }

    fn child(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        full: Vec<u8>,
        todo: &mut Vec<Vec<u8>>,
        found: &mut Vec<Found>,
    ) -> Result<(), ScanError> {
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from) {
            Ok(stat) => stat,
            Err(error) if vanished(&error) => return Ok(()),
            Err(error) => return Err(failed(&full)(error)),
        };
        if full.len() > PATH_BYTES_MAX {
            return Err(ScanError::Unmovable { path: shown(&full), what: "its path is too long" });
        }
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                todo.push(full);
                return Ok(());
            }
            FileType::RegularFile => LayerKindV1::File { size: stat.st_size as u64, blocks: Vec::new() },
            FileType::Symlink => match rustix::fs::readlinkat(dir, name, Vec::new()).map_err(io::Error::from) {
                Ok(target) => LayerKindV1::Symlink { target: target.into_bytes() },
                Err(_) => return Ok(()),
            },
            FileType::Fifo => LayerKindV1::Fifo,
            FileType::CharacterDevice if stat.st_rdev == 0 => LayerKindV1::Whiteout,
            FileType::Socket => {
                self.skipped += 1;
                return Ok(());
            }
            _ => return Err(ScanError::Unmovable { path: shown(&full), what: "it is a device node" }),
        };
        let whiteout = kind == LayerKindV1::Whiteout;
        let mut item = describe_stat(&full, kind, &stat);
        if whiteout {
            // It says one thing only; who made it, and when, is not part of the layer.
            item.entry = LayerEntryV1 { mode: 0, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, ..item.entry };
        }
        found.push(item);
        Ok(())
    }

    /// Fills in a file's size, blocks and attributes.
    fn describe(
        &self,
        within: &Within,
        item: &mut Found,
        settled: Option<Stamp>,
        kept: &mut BTreeMap<Inode, Known>,
    ) -> Result<(), ScanError> {
        let path = item.entry.path.clone();
        let file = within.read(&path).map_err(failed(&path))?;
        let stat = rustix::fs::fstat(&file).map_err(io::Error::from).map_err(failed(&path))?;
        let (size, changed) = (stat.st_size as u64, changed(&stat));
        if size > LAYER_FILE_BYTES_MAX {
            return Err(LayerError::Bound { what: "bytes of one file", max: LAYER_FILE_BYTES_MAX }.into());
        }
        item.entry = describe_stat(&path, LayerKindV1::Dir, &stat).entry;
        item.entry.xattrs = xattrs(file.as_fd(), &path)?;
        let inode = (stat.st_dev, stat.st_ino);
        let reused = self.known.get(&inode).filter(|known| known.changed == changed && known.size == size);
        let blocks = match reused {
            Some(known) => known.blocks.clone(),
            None => hash(&file, size).map_err(failed(&path))?,
        };
        let calm = settled.is_some_and(|before| changed <= before && changed == item.changed);
        if reused.is_some() || calm {
            kept.insert(inode, Known { changed, size, blocks: blocks.clone() });
        }
        item.entry.kind = LayerKindV1::File { size, blocks };
        item.inode = inode;
        Ok(())
    }
}

fn changed(stat: &Stat) -> Stamp {
    (stat.st_ctime, stat.st_ctime_nsec)
}

fn describe_stat(path: &[u8], kind: LayerKindV1, stat: &Stat) -> Found {
    let entry = LayerEntryV1 {
        path: path.to_vec(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_s: stat.st_mtime,
        mtime_ns: stat.st_mtime_nsec as u32,
        xattrs: Vec::new(),
    };
    Found { entry, inode: (stat.st_dev, stat.st_ino), changed: changed(stat), links: stat.st_nlink }
}

/// Flushes, and gives the change time up to which a file counts as settled; none where a flush protects nothing.
fn settled_before(within: &Within, settled: Duration) -> io::Result<Option<Stamp>> {
    const FLUSHED: [i64; 3] = [0xEF53, 0x5846_5342, 0x9123_683E]; // ext4, XFS, Btrfs
    let kind = rustix::fs::fstatfs(within.fd())?.f_type;
    if !FLUSHED.contains(&kind) {
        return Ok(None);
    }
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME)?;
    within.sync()?;
    Ok(Some((now.tv_sec() - settled.as_secs() as i64, now.tv_nsec() as u64)))
}

/// Names of a file's extended attributes; none where the file system has none.
///
/// # Errors
/// When the file system fails.
pub fn xattr_names(fd: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0; 64 * 1024];
    let length = match rustix::fs::flistxattr(fd, list.as_mut_slice()) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let names = list[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

fn xattrs(fd: BorrowedFd<'_>, path: &[u8]) -> Result<Xattrs, ScanError> {
    let mut out = Vec::new();
    for name in xattr_names(fd).map_err(failed(path))? {
        if name.ends_with(b".overlay.metacopy") {
            return Err(ScanError::Unmovable { path: shown(path), what: "its content is not in the layer (metacopy)" });
        }
        if !carries(&name) {
            continue;
        }
        let mut value = vec![0; 64 * 1024];
        match rustix::fs::fgetxattr(fd, name.as_slice(), value.as_mut_slice()) {
            Ok(length) => value.truncate(length),
            Err(rustix::io::Errno::NODATA) => continue,
            Err(error) => return Err(failed(path)(error.into())),
        }
        out.push((name, value));
    }
    out.sort();
    Ok(out)
}

fn hash(file: &File, size: u64) -> io::Result<Vec<Digest>> {
    let count = blocks_of(size) as u32;
    let mut blocks = vec![Digest::default(); count as usize];
    let mut buffer = vec![0; CHUNK_BYTES.min(size as usize)];
    let mut index = 0;
    while index < count {
        // Skips holes without reading them.
        match rustix::fs::seek(file, SeekFrom::Data(u64::from(index) * CHUNK_BYTES as u64)) {
            Ok(data) => index = (data / CHUNK_BYTES as u64) as u32,
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        if index >= count {
            break;
        }
        let block = &mut buffer[..block_len(size, index)];
        fill(file, index, block)?;
        if block.iter().any(|b| *b != 0) {
            blocks[index as usize] = Digest::of(block);
        }
        index += 1;
    }
    Ok(blocks)
}

/// Reads a block; what the file no longer has reads as zeros.
fn fill(file: &File, index: u32, block: &mut [u8]) -> io::Result<()> {
    let at = u64::from(index) * CHUNK_BYTES as u64;
    let mut done = 0;
    while done < block.len() {
        match file.read_at(&mut block[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    block[done..].fill(0);
    Ok(())
}

/// Reads one block again; none when it is not any more what `digest` says.
///
/// # Errors
/// When it cannot be read for another reason than that it went away.
pub fn read_block(within: &Within, path: &[u8], size: u64, index: u32, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
    let file = match within.read(path) {
        Ok(file) => file,
        Err(error) if vanished(&error) || error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut block = vec![0; block_len(size, index)];
    fill(&file, index, &mut block)?;
    Ok((Digest::of(&block) == *digest).then_some(block))
}
