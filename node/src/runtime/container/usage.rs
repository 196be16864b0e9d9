//! How much of the host's disk a machine's writable layer takes.
#![expect(clippy::disallowed_methods, reason = "machines' layers are files of the host, below the runtime's seam")]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::runtime::limits::LAYER_ENTRIES_MAX;

/// Unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// Bytes that a tree takes on its disk: its first [`LAYER_ENTRIES_MAX`] entries, each file once however many names it has.
/// What goes away meanwhile is passed over, and no link is followed.
pub fn tree_bytes(root: &Path) -> io::Result<u64> {
    let (mut bytes, mut left) = (0u64, LAYER_ENTRIES_MAX);
    let (mut waiting, mut linked) = (vec![root.to_owned()], BTreeSet::new());
    while let Some(dir) = waiting.pop() {
        let Some(listing) = present(fs::read_dir(&dir))? else { continue };
        for entry in listing {
            if left == 0 {
                return Ok(bytes);
            }
            left -= 1;
            let entry = entry?;
            let Some(meta) = present(entry.metadata())? else { continue };
            if meta.nlink() < 2 || meta.is_dir() || linked.insert((meta.dev(), meta.ino())) {
                bytes = bytes.saturating_add(meta.blocks().saturating_mul(BLOCK_BYTES));
            }
            if meta.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

/// Whether there is anything in a directory.
pub fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(present(fs::read_dir(dir))?.is_none_or(|mut listing| listing.next().is_none()))
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_measured_by_what_it_takes() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("upper");
        assert_eq!(tree_bytes(&root).unwrap(), 0);
        assert!(is_empty(&root).unwrap());
        fs::create_dir_all(root.join("a/b")).unwrap();
        assert!(!is_empty(&root).unwrap() && is_empty(&root.join("a/b")).unwrap());
        let before = tree_bytes(&root).unwrap();
        fs::write(root.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(root.join("a/b/file"), root.join("again")).unwrap();
        std::os::unix::fs::symlink("/", root.join("link")).unwrap();
        fs::File::create(root.join("hole")).unwrap().set_len(1 << 30).unwrap();
        let grown = tree_bytes(&root).unwrap() - before;
        assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&grown), "{grown}");
    }
}
