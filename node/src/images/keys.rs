//! What must never become part of an image: the data of a node, which holds its key, the operator's token and, in a ledger,
//! the key of the cluster's CA. An image is given to every node of the cluster and to its machines.
//!
//! Paths say little: a link, a bind mount or a parent leads to the same files. So directories and files are known by
//! device and inode, and data directories of other nodes by the key in them.
#![expect(clippy::disallowed_methods, reason = "looks at the host's own files")]

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fabric::identity::KEY_FILE;
use fabric::wire::MAGIC;

/// Entries of a data directory that are looked at: a node's own are fewer.
const ENTRIES_MAX: usize = 1_024;

/// Knows the data of this host's nodes when it meets it.
#[derive(Debug, Default)]
pub struct Guard {
    /// Device and inode of each data directory and of what is directly in it.
    known: BTreeMap<(u64, u64), PathBuf>,
    /// The data directories, without links.
    directories: Vec<PathBuf>,
}

impl Guard {
    /// For these data directories. One that is not there cannot be packed either.
    pub fn new(directories: &[PathBuf]) -> Self {
        let mut guard = Guard::default();
        for directory in directories {
            let Ok(real) = fs::canonicalize(directory) else { continue };
            let entries = fs::read_dir(&real).into_iter().flatten().flatten().take(ENTRIES_MAX);
            for path in entries.map(|entry| entry.path()).chain([real.clone()]) {
                if let Ok(meta) = fs::symlink_metadata(&path) {
                    guard.known.insert((meta.dev(), meta.ino()), path);
                }
            }
            guard.directories.push(real);
        }
        guard
    }

    /// Refuses a directory that holds a known data directory.
    ///
    /// # Errors
    /// Where that is.
    pub fn below(&self, directory: &Path) -> Result<(), String> {
        let Ok(real) = fs::canonicalize(directory) else { return Ok(()) };
        match self.directories.iter().find(|known| known.starts_with(&real)) {
            Some(known) => Err(known.display().to_string()),
            None => Ok(()),
        }
    }

    /// Lets everything pass that is no node's data.
    ///
    /// # Errors
    /// Whose data it is.
    pub fn pass(&self, path: &Path, meta: &Metadata) -> Result<(), String> {
        if let Some(known) = self.known.get(&(meta.dev(), meta.ino())) {
            return Err(known.display().to_string());
        }
        if meta.is_dir() && has_key(path) {
            return Err(path.display().to_string());
        }
        Ok(())
    }
}

/// Whether a directory holds the key of a node.
fn has_key(directory: &Path) -> bool {
    let key = directory.join(KEY_FILE);
    // Opening a pipe of that name would wait for whoever writes into it.
    if !fs::symlink_metadata(&key).is_ok_and(|meta| meta.is_file()) {
        return false;
    }
    let mut head = [0; MAGIC.len()];
    let read = File::open(key).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head == MAGIC
}
