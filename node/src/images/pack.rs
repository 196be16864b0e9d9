//! `image from-host`: makes an image of programs and directories of this host, with what the programs need.
//!
//! A path is walked as the kernel would, and every symbolic link and directory on the way becomes an entry, so that
//! `/bin -> usr/bin` looks the same inside. A program brings its loader and libraries, a script its interpreter. Named
//! programs must be complete; plug-ins found in packed directories may lack what they need, as they may on the host.
#![expect(clippy::disallowed_methods, reason = "packing reads the host's own files")]

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fabric::ids::Digest;
use fabric::limits::CHUNK_BYTES;
use fabric::wire::{self, HEADER_BYTES};
use thiserror::Error;

use super::keys::Guard;
use super::limits::*;
use super::manifest::{ImageEntryV1, ImageKindV1, ImageManifest, ManifestError};
use super::needs::{self, Needs};
use super::store::{Session, Store, StoreError};

/// Why an image could not be made. Nothing of it stays.
#[derive(Debug, Error)]
pub enum PackError {
    /// There is no such path on this host.
    #[error("{path:?} does not exist on this host")]
    Missing {
        /// As asked for.
        path: String,
    },
    /// The path cannot be part of an image.
    #[error("{path:?} cannot be packed: {reason}")]
    Path {
        /// As asked for.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// It holds what makes a node what it is.
    #[error("{path:?} cannot be packed: it holds or is a part of a node's data, keys included ({found})")]
    Keys {
        /// As asked for.
        path: String,
        /// The directory or file of the node.
        found: String,
    },
    /// It cannot be read.
    #[error("{path:?} cannot be read")]
    Io {
        /// Where it is.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A program needs a library that this host does not have.
    #[error("{program:?} needs {library:?}, which this host does not have")]
    Library {
        /// Who needs it.
        program: String,
        /// Its name.
        library: String,
    },
    /// A bound is exceeded.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What to pack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pack {
    /// Absolute paths of programs, files and directories.
    pub paths: Vec<PathBuf>,
    /// Program and arguments of machines that name none; empty means the first path, if it is a program.
    pub command: Vec<String>,
    /// Environment of machines.
    pub env: Vec<(String, String)>,
    /// Data directories of nodes: nothing of them is packed, and nothing that holds them.
    pub keep_out: Vec<PathBuf>,
    /// Say what it would be, and write nothing.
    pub rehearse: bool,
}

/// A packed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Its name by content.
    pub digest: Digest,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// What it consists of.
    pub manifest: ImageManifest,
    /// Sockets, devices and fifos of packed directories, left out.
    pub skipped: usize,
}

/// Packs paths of this host into `store`. Blocks.
///
/// # Errors
/// See [`PackError`].
pub fn from_host(store: &Store, pack: &Pack) -> Result<Packed, PackError> {
    from_root(store, Path::new("/"), pack)
}

/// As [`from_host`], for a host whose files are below `root`.
///
/// # Errors
/// See [`PackError`].
pub fn from_root(store: &Store, root: &Path, pack: &Pack) -> Result<Packed, PackError> {
    if pack.paths.is_empty() || pack.paths.len() > crate::limits::IMAGE_PATHS_MAX {
        return Err(PackError::Path { path: String::new(), reason: "name 1 to 256 paths" });
    }
    let mut packer = Packer::new(store, root, pack)?;
    let mut command = pack.command.clone();
    for path in &pack.paths {
        let asked = path.to_str().filter(|path| path.starts_with('/'));
        let Some(asked) = asked else {
            let path = path.display().to_string();
            return Err(PackError::Path { path, reason: "it must be an absolute path in UTF-8" });
        };
        let program = packer.add_asked(asked).map_err(|error| error.asked_as(asked))?;
        if program && command.is_empty() && pack.paths.first() == Some(path) {
            command.push(asked.to_owned());
        }
    }
    packer.add_standard()?;
    let manifest = ImageManifest {
        entries: packer.entries.into_values().collect(),
        command,
        env: pack.env.clone(),
        workdir: String::new(),
        architecture: std::env::consts::ARCH.to_owned(),
    };
    let size_bytes = manifest.size_bytes();
    let digest = packer.session.finish(&manifest)?;
    Ok(Packed { digest, size_bytes, manifest, skipped: packer.skipped })
}

struct Packer<'a> {
    root: &'a Path,
    nodes: Guard,
    session: Session,
    /// By path.
    entries: BTreeMap<String, ImageEntryV1>,
    size_bytes: u64,
    text_bytes: usize,
    skipped: usize,
    /// Paths that programs need, and whether they must be there.
    pending: VecDeque<(String, bool)>,
    /// The host's library cache: name to paths.
    libraries: BTreeMap<String, Vec<String>>,
    dynamic: bool,
}

fn failed(path: &str) -> impl FnOnce(io::Error) -> PackError + '_ {
    move |source| match source.kind() {
        io::ErrorKind::NotFound => PackError::Missing { path: path.to_owned() },
        _ => PackError::Io { path: path.to_owned(), source },
    }
}

fn joined(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn is_virtual(path: &str) -> bool {
    matches!(path.split('/').next(), Some("proc" | "sys" | "dev"))
}

impl<'a> Packer<'a> {
    fn new(store: &Store, root: &'a Path, pack: &Pack) -> Result<Self, PackError> {
        let cache = root.join("etc/ld.so.cache");
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(&cache) {
            file.take(LIBRARY_CACHE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed("/etc/ld.so.cache"))?;
        }
        let mut libraries: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, path) in needs::library_cache(&bytes) {
            libraries.entry(name.to_owned()).or_default().push(path.to_owned());
        }
        Ok(Packer {
            root,
            nodes: Guard::new(&pack.keep_out),
            session: if pack.rehearse { store.rehearsal() } else { store.session() },
            entries: BTreeMap::new(),
            size_bytes: 0,
            text_bytes: 0,
            skipped: 0,
            pending: VecDeque::new(),
            libraries,
            dynamic: false,
        })
    }

    fn host(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Adds what the user named, with all it needs; says whether it is a program.
    fn add_asked(&mut self, asked: &str) -> Result<bool, PackError> {
        let (real, meta) = self.trace(asked, true)?;
        if real.is_empty() {
            return Err(PackError::Path { path: asked.to_owned(), reason: "name the directories that are needed" });
        }
        if meta.is_dir() {
            // Told before much of it is read for nothing.
            self.nodes.below(&self.host(&real)).map_err(kept_out)?;
            self.add_dir(real)?;
        } else {
            self.add_file(&real, &meta, true)?;
        }
        self.settle()?;
        Ok(meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    }

    /// Adds what programs need, and what that needs, until nothing is open.
    fn settle(&mut self) -> Result<(), PackError> {
        while let Some((path, required)) = self.pending.pop_front() {
            match self.trace(&path, true) {
                Ok((real, meta)) if meta.is_file() => self.add_file(&real, &meta, required)?,
                Ok(_) => {}
                Err(PackError::Missing { .. }) if !required => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Walks a path as the kernel does, with `record` adding links and directories on the way. Returns where it ends.
    fn trace(&mut self, asked: &str, record: bool) -> Result<(String, Metadata), PackError> {
        let refuse = |reason| PackError::Path { path: asked.to_owned(), reason };
        let mut todo: VecDeque<String> = asked.split('/').map(str::to_owned).collect();
        let mut here = String::new();
        let mut meta = fs::symlink_metadata(self.root).map_err(failed("/"))?;
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    here.truncate(here.rfind('/').unwrap_or(0));
                    meta = fs::symlink_metadata(self.host(&here)).map_err(failed(asked))?;
                    continue;
                }
                _ => {}
            }
            if !meta.is_dir() {
                return Err(refuse("a part of the path is no directory"));
            }
            let next = joined(&here, &name);
            if is_virtual(&next) {
                return Err(refuse("virtual file systems are the host's own"));
            }
            let found = fs::symlink_metadata(self.host(&next)).map_err(failed(asked))?;
            if found.is_symlink() {
                links += 1;
                if links > LINKS_FOLLOWED_MAX {
                    return Err(refuse("too many symbolic links"));
                }
                let target = self.add_link(&next, record)?;
                if target.starts_with('/') {
                    here.clear();
                }
                target.rsplit('/').for_each(|part| todo.push_front(part.to_owned()));
                meta = fs::symlink_metadata(self.host(&here)).map_err(failed(asked))?;
                continue;
            }
            if record {
                self.nodes.pass(&self.host(&next), &found).map_err(kept_out)?;
            }
            if found.is_dir() && record {
                self.insert(&next, ImageKindV1::Dir, found.permissions().mode())?;
            }
            (here, meta) = (next, found);
        }
        Ok((here, meta))
    }

    fn add_link(&mut self, path: &str, record: bool) -> Result<String, PackError> {
        let target = fs::read_link(self.host(path)).map_err(failed(path))?;
        let target = target.to_str().ok_or_else(|| not_text(path))?.to_owned();
        if record {
            self.insert(path, ImageKindV1::Symlink { target: target.clone() }, 0o777)?;
        }
        Ok(target)
    }

    /// Adds an entry unless it is there; bounds are kept here, so that a huge directory ends early.
    fn insert(&mut self, path: &str, kind: ImageKindV1, mode: u32) -> Result<(), PackError> {
        if self.entries.contains_key(path) {
            return Ok(());
        }
        let target = if let ImageKindV1::Symlink { target } = &kind { target.len() } else { 0 };
        self.text_bytes += path.len() + target;
        let bounds = [
            ("entries", self.entries.len() as u64 + 1, IMAGE_ENTRIES_MAX as u64),
            ("bytes", self.size_bytes, IMAGE_BYTES_MAX),
            ("bytes of paths", self.text_bytes as u64, IMAGE_TEXT_BYTES_MAX as u64),
        ];
        if let Some((what, _, max)) = bounds.into_iter().find(|(_, have, max)| have > max) {
            return Err(ManifestError::Bound { what, max }.into());
        }
        // Set-id bits mean nothing in a machine, and would mean something on this host's disk.
        let entry = ImageEntryV1 { path: path.to_owned(), kind, mode: mode & 0o1777 };
        self.entries.insert(path.to_owned(), entry);
        Ok(())
    }

    /// Adds all below a directory that is an entry already. Links are kept and not followed.
    fn add_dir(&mut self, path: String) -> Result<(), PackError> {
        let mut todo = vec![(path, 0)];
        while let Some((dir, depth)) = todo.pop() {
            if depth > PACK_DEPTH_MAX {
                return Err(PackError::Path { path: dir, reason: "directories are nested too deep" });
            }
            let host = self.host(&dir);
            for child in fs::read_dir(&host).map_err(failed(&dir))? {
                let child = child.map_err(failed(&dir))?;
                let name = child.file_name();
                let path = joined(&dir, name.to_str().ok_or_else(|| not_text(&dir))?);
                let meta = fs::symlink_metadata(child.path()).map_err(failed(&path))?;
                self.nodes.pass(&child.path(), &meta).map_err(kept_out)?;
                if is_virtual(&path) {
                    self.skipped += 1;
                } else if meta.is_symlink() {
                    self.add_link(&path, true)?;
                } else if meta.is_dir() {
                    self.insert(&path, ImageKindV1::Dir, meta.permissions().mode())?;
                    todo.push((path, depth + 1));
                } else if meta.is_file() {
                    self.add_file(&path, &meta, false)?;
                } else {
                    self.skipped += 1;
                }
            }
        }
        Ok(())
    }

    /// Adds a file in chunks, and notes what it needs.
    fn add_file(&mut self, path: &str, meta: &Metadata, required: bool) -> Result<(), PackError> {
        if self.entries.contains_key(path) {
            return Ok(());
        }
        if !meta.is_file() {
            return Err(PackError::Path { path: path.to_owned(), reason: "it is neither a file nor a directory" });
        }
        let mut file = File::open(self.host(path)).map_err(failed(path))?;
        let (mut size, mut chunks, mut head) = (0u64, Vec::new(), Vec::new());
        loop {
            let mut chunk = Vec::new();
            (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).map_err(failed(path))?;
            if chunk.is_empty() {
                break;
            }
            // A key that was copied or linked out of its directory.
            if size == 0 && is_record(&chunk) {
                return Err(kept_out(self.host(path).display().to_string()));
            }
            size += chunk.len() as u64;
            if self.size_bytes + size > IMAGE_BYTES_MAX {
                return Err(ManifestError::Bound { what: "bytes", max: IMAGE_BYTES_MAX }.into());
            }
            chunks.push(self.session.put(&chunk)?);
            if head.is_empty() {
                head = chunk;
            }
        }
        self.size_bytes += size;
        self.insert(path, ImageKindV1::File { size, chunks }, meta.permissions().mode())?;
        self.add_needs(path, &head, size, required)
    }

    fn add_needs(&mut self, path: &str, head: &[u8], size: u64, required: bool) -> Result<(), PackError> {
        if let Some((interpreter, argument)) = needs::script(head) {
            let program = argument.as_deref().filter(|_| interpreter.ends_with("/env")).and_then(needs::env_program);
            if let Some(found) = program.and_then(|program| self.in_path(program)) {
                self.pending.push_back((found, required));
            }
            self.pending.push_back((interpreter, required));
            return Ok(());
        }
        if needs::abi(head).is_none() || size > PROGRAM_BYTES_MAX {
            return Ok(());
        }
        let whole = if size > head.len() as u64 {
            let file = File::open(self.host(path)).map_err(failed(path))?;
            let mut whole = Vec::new();
            file.take(PROGRAM_BYTES_MAX).read_to_end(&mut whole).map_err(failed(path))?;
            Some(whole)
        } else {
            None
        };
        let Some(needs) = needs::needs(whole.as_deref().unwrap_or(head)) else { return Ok(()) };
        self.dynamic |= needs.interpreter.is_some() || !needs.libraries.is_empty();
        self.pending.extend(needs.interpreter.iter().map(|interpreter| (interpreter.clone(), required)));
        let origin = format!("/{}", path.rsplit_once('/').map_or("", |(dir, _)| dir));
        for library in &needs.libraries {
            match self.find_library(library, &needs, &origin) {
                Some(found) => self.pending.push_back((found, required)),
                None if required => {
                    let program = format!("/{path}");
                    return Err(PackError::Library { program, library: library.clone() });
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Where the loader would find a library: RUNPATH, the host's cache, the default directories.
    fn find_library(&mut self, name: &str, user: &Needs, origin: &str) -> Option<String> {
        if name.contains('/') {
            return needs::expand(name, origin).filter(|path| self.fits(path, user));
        }
        let searched = user.search.iter().filter_map(|dir| needs::expand(dir, origin));
        let mut candidates: Vec<String> = searched.map(|dir| format!("{dir}/{name}")).collect();
        candidates.extend(self.libraries.get(name).into_iter().flatten().cloned());
        candidates.extend(needs::DEFAULT_DIRS.iter().map(|dir| format!("{dir}/{name}")));
        candidates.into_iter().find(|path| self.fits(path, user))
    }

    fn fits(&mut self, path: &str, user: &Needs) -> bool {
        let Ok((real, meta)) = self.trace(path, false) else { return false };
        let mut head = [0; 20];
        let read =
            meta.is_file() && File::open(self.host(&real)).and_then(|mut file| file.read_exact(&mut head)).is_ok();
        read && needs::abi(&head) == Some(user.abi)
    }

    /// Where a shell would find a program.
    fn in_path(&mut self, program: &str) -> Option<String> {
        if program.contains('/') {
            return program.starts_with('/').then(|| program.to_owned());
        }
        let dirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        let mut found = dirs.iter().map(|dir| format!("{dir}/{program}"));
        found.find(|path| self.trace(path, false).is_ok_and(|(_, meta)| meta.is_file()))
    }

    /// Directories and files that every root has; what was packed under those names stays.
    fn add_standard(&mut self) -> Result<(), PackError> {
        if self.dynamic && self.host("etc/ld.so.cache").is_file() {
            // Libraries in directories that only the cache knows are found inside as well.
            self.pending.push_back(("/etc/ld.so.cache".to_owned(), false));
            self.settle()?;
        }
        for (path, mode) in [
            ("dev", 0o755),
            ("etc", 0o755),
            ("proc", 0o555),
            ("root", 0o700),
            ("run", 0o755),
            ("sys", 0o555),
            ("tmp", 0o1777),
            ("var", 0o755),
            ("var/tmp", 0o1777),
        ] {
            self.insert(path, ImageKindV1::Dir, mode)?;
        }
        let files = [
            ("passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"),
            ("group", "root:x:0:\nnogroup:x:65534:\n"),
            ("hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
        ];
        let etc_is_dir = self.entries.get("etc").is_some_and(|entry| entry.kind == ImageKindV1::Dir);
        for (name, content) in files.into_iter().filter(|_| etc_is_dir) {
            let path = joined("etc", name);
            if !self.entries.contains_key(&path) {
                let chunks = vec![self.session.put(content.as_bytes())?];
                self.size_bytes += content.len() as u64;
                self.insert(&path, ImageKindV1::File { size: content.len() as u64, chunks }, 0o644)?;
            }
        }
        Ok(())
    }
}

/// Whether a file begins as a node's records do.
fn is_record(head: &[u8]) -> bool {
    head.first_chunk::<HEADER_BYTES>().is_some_and(|head| wire::frame_bytes(head).is_ok())
}

fn kept_out(found: String) -> PackError {
    PackError::Keys { path: String::new(), found }
}

impl PackError {
    /// Named by what the user asked for, which need not be where it was found.
    fn asked_as(self, asked: &str) -> Self {
        match self {
            PackError::Keys { found, .. } => PackError::Keys { path: asked.to_owned(), found },
            error => error,
        }
    }
}

fn not_text(path: &str) -> PackError {
    PackError::Path { path: path.to_owned(), reason: "a name is not UTF-8" }
}
