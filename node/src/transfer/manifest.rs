//! What a writable layer consists of, as one node tells another.
//!
//! Pure: no IO. A manifest is a list of entries sorted by path, so that a parent comes before its children; it travels
//! in pages and is named by a digest over all of them. [`check`] is the door that a peer's manifest must pass.

use std::collections::BTreeMap;

use fabric::ids::{Digest, MachineId, MoveId};
use fabric::limits::CHUNK_BYTES;
use fabric::records;
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use super::limits::*;
use super::within::{is_path, parent};

pub use kind::LayerKindV1;

mod kind {
    //! Apart, because rkyv's derive copies no comments to the fields that it generates.
    use super::{Archive, Deserialize, Digest, Serialize};

    /// What kind of thing an entry is.
    #[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
    pub enum LayerKindV1 {
        /// A directory.
        Dir,
        /// A file: its apparent size, and the digest of each block of `CHUNK_BYTES`; all zeros means a hole.
        File {
            /// Bytes.
            size: u64,
            /// One digest per block.
            blocks: Vec<Digest>,
        },
        /// A symbolic link.
        Symlink {
            /// Where it points; only text.
            target: Vec<u8>,
        },
        /// A further name of a file that comes earlier in the manifest.
        Hardlink {
            /// Path of that file.
            of: Vec<u8>,
        },
        /// A fifo.
        Fifo,
        /// An overlay whiteout: the name is deleted from the image below.
        Whiteout,
    }
}

/// One inode, or one further name of one.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LayerEntryV1 {
    /// Relative path; empty for the layer's own root, which is always the first entry.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: LayerKindV1,
    /// Permission bits.
    pub mode: u32,
    /// Owner as seen on disk.
    pub uid: u32,
    /// Group as seen on disk.
    pub gid: u32,
    /// Modification time: seconds since the Unix epoch.
    pub mtime_s: i64,
    /// And nanoseconds.
    pub mtime_ns: u32,
    /// Extended attributes that travel, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A page of a manifest.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LayerPageV1 {
    /// The next entries.
    pub entries: Vec<LayerEntryV1>,
}

/// Ends a manifest.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerEndV1 {
    /// Number of the pass, from 1.
    pub pass: u32,
    /// The machine is frozen: nothing comes after this pass.
    pub last: bool,
    /// Digest of the manifest.
    pub digest: Digest,
}

/// Opens a transfer.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferOpenV1 {
    /// The move.
    pub id: MoveId,
    /// The machine whose layer it is.
    pub machine: MachineId,
}

/// The destination is ready for passes.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferReadyV1 {
    /// Blocks it has already, from an earlier stream of the same move.
    pub blocks_held: u64,
}

/// Blocks that the destination lacks.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LackV1 {
    /// `(entry, block)`, ascending.
    pub blocks: Vec<(u32, u32)>,
    /// Another page follows.
    pub more: bool,
}

/// The destination has taken a pass.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassDoneV1 {
    /// Number of the pass.
    pub pass: u32,
    /// Digest of the manifest that the staged layer equals, synced to disk; none while blocks changed under the pass.
    pub prepared: Option<Digest>,
}

records!(
    LayerPageV1 = (331, 1),
    LayerEndV1 = (332, 1),
    TransferOpenV1 = (333, 1),
    TransferReadyV1 = (334, 1),
    LackV1 = (335, 1),
    PassDoneV1 = (336, 1),
);

/// A checked or scanned layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layer {
    /// Sorted by path.
    pub entries: Vec<LayerEntryV1>,
}

/// Why a manifest is not taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayerError {
    /// A path that could leave the layer, or is out of order.
    #[error("the layer has the bad path {0:?}")]
    Path(String),
    /// The entry has no directory above it.
    #[error("{0:?} lies in no directory of the layer")]
    Orphan(String),
    /// A bound is exceeded.
    #[error("the layer has too much: {what} over {max}")]
    Bound {
        /// What is too much.
        what: &'static str,
        /// The bound.
        max: u64,
    },
    /// The kind's own data does not hold together.
    #[error("{path:?} is inconsistent: {what}")]
    Kind {
        /// The entry.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// An attribute that never travels.
    #[error("{path:?} carries the attribute {name:?}, which does not travel")]
    Xattr {
        /// The entry.
        path: String,
        /// The attribute.
        name: String,
    },
    /// The pages are not those that the digest names.
    #[error("the manifest does not match its digest")]
    Digest,
}

/// A path for people.
pub fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

/// Blocks that a file of `size` bytes has.
pub fn blocks_of(size: u64) -> u64 {
    size.div_ceil(CHUNK_BYTES as u64)
}

/// Bytes of block `index` of a file of `size` bytes.
pub fn block_len(size: u64, index: u32) -> usize {
    let at = u64::from(index) * CHUNK_BYTES as u64;
    size.saturating_sub(at).min(CHUNK_BYTES as u64) as usize
}

/// Whether an extended attribute travels with a layer.
///
/// Not overlayfs' notes about the file systems of one host (`origin`, `uuid`, `impure`, `nlink`), nor labels of
/// security modules; `metacopy` is refused by the scan, since its data is not in the layer at all.
pub fn carries(name: &[u8]) -> bool {
    const OVERLAY: [&[u8]; 5] = [b"opaque", b"redirect", b"whiteout", b"whiteouts", b"protattr"];
    let overlay = name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay."));
    match overlay {
        Some(kind) => OVERLAY.contains(&kind),
        None => {
            name.starts_with(b"user.")
                || [&b"security.capability"[..], b"system.posix_acl_access", b"system.posix_acl_default"]
                    .contains(&name)
        }
    }
}

/// Estimated bytes of an entry in a page.
fn weight(entry: &LayerEntryV1) -> usize {
    let kind = match &entry.kind {
        LayerKindV1::File { blocks, .. } => blocks.len() * 32,
        LayerKindV1::Symlink { target } => target.len(),
        LayerKindV1::Hardlink { of } => of.len(),
        _ => 0,
    };
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len() + 16).sum();
    96 + entry.path.len() + kind + xattrs
}

impl Layer {
    /// The pages that travel: each closed at about [`PAGE_BYTES`], each well below a frame.
    pub fn pages(&self) -> impl Iterator<Item = LayerPageV1> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = at;
            let mut bytes = 0;
            while at < self.entries.len() && (at == start || bytes + weight(&self.entries[at]) <= PAGE_BYTES) {
                bytes += weight(&self.entries[at]);
                at += 1;
            }
            (at > start).then(|| LayerPageV1 { entries: self.entries[start..at].to_vec() })
        })
    }

    /// Digest of the whole manifest, the same on both ends.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for page in self.pages() {
            hasher.update(&fabric::wire::encode(&page));
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// Bytes of content, holes not counted.
    pub fn content_bytes(&self) -> u64 {
        let file = |entry: &LayerEntryV1| match &entry.kind {
            LayerKindV1::File { size, blocks } => {
                let held = blocks.iter().enumerate().filter(|(_, digest)| **digest != Digest::default());
                held.map(|(index, _)| block_len(*size, index as u32) as u64).sum()
            }
            _ => 0,
        };
        self.entries.iter().map(file).sum()
    }
}

/// Bounds over a whole layer, counted as it is built or received.
#[derive(Debug, Default)]
pub struct Tally {
    entries: usize,
    blocks: usize,
    text: usize,
}

impl Tally {
    /// Counts one entry.
    ///
    /// # Errors
    /// When a bound is exceeded.
    pub fn add(&mut self, entry: &LayerEntryV1) -> Result<(), LayerError> {
        let blocks = if let LayerKindV1::File { blocks, .. } = &entry.kind { blocks.len() } else { 0 };
        self.entries += 1;
        self.blocks += blocks;
        self.text += weight(entry) - blocks * 32;
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bounds = [
            ("entries", self.entries as u64, LAYER_ENTRIES_MAX as u64),
            ("blocks", self.blocks as u64, LAYER_BLOCKS_MAX as u64),
            ("bytes of names", self.text as u64, LAYER_TEXT_BYTES_MAX as u64),
            ("attributes of one entry", entry.xattrs.len() as u64, XATTRS_MAX as u64),
            ("bytes of attributes of one entry", xattrs as u64, XATTR_BYTES_MAX as u64),
        ];
        match bounds.into_iter().find(|(_, have, max)| have > max) {
            Some((what, _, max)) => Err(LayerError::Bound { what, max }),
            None => Ok(()),
        }
    }
}

/// The door for a peer's manifest: nothing of it was used before this.
///
/// # Errors
/// See [`LayerError`].
pub fn check(entries: Vec<LayerEntryV1>) -> Result<Layer, LayerError> {
    let mut dirs: BTreeMap<&[u8], bool> = BTreeMap::new();
    let mut tally = Tally::default();
    let mut last: Option<&[u8]> = None;
    for entry in &entries {
        tally.add(entry)?;
        let path = entry.path.as_slice();
        let in_order = match last {
            None => path.is_empty() && entry.kind == LayerKindV1::Dir,
            Some(last) => last < path && is_path(path),
        };
        if !in_order {
            return Err(LayerError::Path(shown(path)));
        }
        if last.is_some() && dirs.get(parent(path).unwrap_or_default()) != Some(&true) {
            return Err(LayerError::Orphan(shown(path)));
        }
        check_kind(entry, &dirs)?;
        match entry.kind {
            LayerKindV1::Dir => _ = dirs.insert(path, true),
            LayerKindV1::File { .. } => _ = dirs.insert(path, false),
            _ => {}
        }
        last = Some(path);
    }
    if last.is_none() {
        return Err(LayerError::Path(String::new()));
    }
    Ok(Layer { entries })
}

/// `known` holds the directories (true) and files (false) before this entry.
fn check_kind(entry: &LayerEntryV1, known: &BTreeMap<&[u8], bool>) -> Result<(), LayerError> {
    let bad = |what| Err(LayerError::Kind { path: shown(&entry.path), what });
    match &entry.kind {
        LayerKindV1::File { size, .. } if *size > LAYER_FILE_BYTES_MAX => {
            return Err(LayerError::Bound { what: "bytes of one file", max: LAYER_FILE_BYTES_MAX });
        }
        LayerKindV1::File { size, blocks } if blocks.len() as u64 != blocks_of(*size) => {
            return bad("its blocks do not cover its size");
        }
        LayerKindV1::Symlink { target }
            if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) =>
        {
            return bad("its target is no path");
        }
        LayerKindV1::Hardlink { of } if known.get(of.as_slice()) != Some(&false) => {
            return bad("it is a name of no earlier file");
        }
        _ => {}
    }
    if entry.mtime_ns > 999_999_999 {
        return bad("its time has too many nanoseconds");
    }
    let opened = matches!(entry.kind, LayerKindV1::Dir | LayerKindV1::File { .. });
    if !opened && !entry.xattrs.is_empty() {
        return bad("only files and directories carry attributes");
    }
    match entry.xattrs.iter().find(|(name, _)| !carries(name) || name.len() > 255 || name.contains(&0)) {
        Some((name, _)) => Err(LayerError::Xattr { path: shown(&entry.path), name: shown(name) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn entry(path: &str, kind: LayerKindV1) -> LayerEntryV1 {
        let path = path.as_bytes().to_vec();
        LayerEntryV1 { path, kind, mode: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: vec![] }
    }

    fn file(path: &str) -> LayerEntryV1 {
        entry(path, LayerKindV1::File { size: 3, blocks: vec![Digest::of(b"abc")] })
    }

    #[test]
    fn an_ordinary_layer_passes() {
        let link = entry("d/h", LayerKindV1::Hardlink { of: b"d/a".to_vec() });
        let entries = vec![entry("", LayerKindV1::Dir), entry("d", LayerKindV1::Dir), file("d/a"), link];
        assert!(check(entries).is_ok());
    }

    #[test]
    fn hostile_paths_are_refused() {
        let root = || entry("", LayerKindV1::Dir);
        for bad in ["..", "../a", "/etc/passwd", "a/../../b", "a//b", "a/b"] {
            assert!(check(vec![root(), file(bad)]).is_err(), "{bad}");
        }
        let link = entry("l", LayerKindV1::Symlink { target: b"/etc".to_vec() });
        assert!(matches!(check(vec![root(), link.clone(), file("l/passwd")]), Err(LayerError::Orphan(_))));
        let hard = entry("m", LayerKindV1::Hardlink { of: b"l".to_vec() });
        assert!(check(vec![root(), link, hard]).is_err());
        assert!(check(vec![root(), file("b"), file("a")]).is_err());
        assert!(check(vec![root(), file("a"), file("a")]).is_err());
        assert!(check(vec![file("a")]).is_err());
        assert!(check(vec![]).is_err());
    }

    #[test]
    fn attributes_of_one_host_do_not_travel() {
        assert!(carries(b"trusted.overlay.opaque") && carries(b"user.overlay.opaque") && carries(b"user.comment"));
        for stays in [&b"trusted.overlay.origin"[..], b"security.selinux", b"trusted.secret", b"user.overlay.metacopy"]
        {
            assert!(!carries(stays));
        }
    }

    #[test]
    fn pages_hold_every_entry_once() {
        let mut entries = vec![entry("", LayerKindV1::Dir)];
        entries.extend((0..20_000).map(|n| file(&format!("f{n:06}"))));
        let layer = check(entries).unwrap();
        let pages: Vec<_> = layer.pages().collect();
        assert!(pages.len() > 2);
        assert_eq!(pages.into_iter().flat_map(|page| page.entries).collect::<Vec<_>>(), layer.entries);
    }

    proptest! {
        #[test]
        fn any_list_of_entries_is_judged_without_panic(
            paths in proptest::collection::vec("[a-c./]{0,6}", 0..6), size in any::<u64>(), blocks in 0usize..4,
        ) {
            let kind = LayerKindV1::File { size, blocks: vec![Digest::default(); blocks] };
            let mut entries: Vec<_> = paths.iter().map(|path| entry(path, kind.clone())).collect();
            entries.insert(0, entry("", LayerKindV1::Dir));
            if let Ok(layer) = check(entries) {
                prop_assert!(layer.entries[1..].iter().all(|e| is_path(&e.path)));
            }
        }
    }
}
