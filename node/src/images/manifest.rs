//! What an image consists of. Pure; the digest of its framed record is the image's name everywhere.

use std::collections::BTreeMap;

use fabric::ids::Digest;
use fabric::limits::{CHUNK_BYTES, COMMAND_ARGS_MAX, COMMAND_BYTES_MAX, ENV_BYTES_MAX, ENV_MAX};
use fabric::{records, wire};
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use super::limits::*;
use crate::transfer::limits::PATH_BYTES_MAX;
use crate::transfer::within::{is_path, parent};

pub use kind::ImageKindV1;

mod kind {
    //! Apart, because rkyv's derive copies no comments to the fields that it generates.
    use super::{Archive, Deserialize, Digest, Serialize};

    /// What kind of thing an entry is.
    #[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
    pub enum ImageKindV1 {
        /// A directory.
        Dir,
        /// A file: its size, and the digest of each chunk of `CHUNK_BYTES`, the last one shorter.
        File {
            /// Bytes.
            size: u64,
            /// In order.
            chunks: Vec<Digest>,
        },
        /// A symbolic link.
        Symlink {
            /// Where it points; only text until the image is a machine's root.
            target: String,
        },
    }
}

/// A file, directory or link of an image. Everything belongs to root.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ImageEntryV1 {
    /// Relative path.
    pub path: String,
    /// What it is.
    pub kind: ImageKindV1,
    /// Permission bits; never set-id.
    pub mode: u32,
}

/// An image.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageManifestV1 {
    /// Sorted by path; a parent comes before its children.
    pub entries: Vec<ImageEntryV1>,
    /// Program and arguments of a machine that names none.
    pub command: Vec<String>,
    /// Environment, `(name, value)`.
    pub env: Vec<(String, String)>,
    /// Working directory; empty means `/`.
    pub workdir: String,
    /// Processor that its programs are for, as in `uname -m`.
    pub architecture: String,
}
/// Current version of an image's manifest.
pub type ImageManifest = ImageManifestV1;

/// Asks a peer for an image.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageAskV1 {
    /// Its digest.
    pub digest: Digest,
}

/// Asks for chunks of that image.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ImageWantV1 {
    /// In the order in which they are to come.
    pub chunks: Vec<Digest>,
}

records!(ImageManifestV1 = (330, 1), ImageAskV1 = (337, 1), ImageWantV1 = (338, 1));

/// Why a manifest is not taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ManifestError {
    /// A path that could leave the image, or is out of order.
    #[error("the image has the bad path {0:?}")]
    Path(String),
    /// The entry has no directory above it.
    #[error("{0:?} lies in no directory of the image")]
    Orphan(String),
    /// A bound is exceeded.
    #[error("the image is too large: {what} over {max}")]
    Bound {
        /// What is too much.
        what: &'static str,
        /// The bound.
        max: u64,
    },
    /// The entry's own data does not hold together.
    #[error("{path:?} of the image is inconsistent: {what}")]
    Entry {
        /// The entry.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
}

impl ImageManifestV1 {
    /// The framed record and its digest.
    ///
    /// # Panics
    /// When the manifest was not checked: its bounds keep it within a frame.
    pub fn framed(&self) -> (Digest, Vec<u8>) {
        let frame = wire::encode(self);
        (Digest::of(&frame), frame)
    }

    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        let size = |entry: &ImageEntryV1| if let ImageKindV1::File { size, .. } = entry.kind { size } else { 0 };
        self.entries.iter().map(size).sum()
    }

    /// Every chunk once, with its length, ordered by digest.
    pub fn chunks(&self) -> BTreeMap<Digest, usize> {
        let mut out = BTreeMap::new();
        for entry in &self.entries {
            if let ImageKindV1::File { size, chunks } = &entry.kind {
                let length = |index: usize| (size - (index * CHUNK_BYTES) as u64).min(CHUNK_BYTES as u64) as usize;
                out.extend(chunks.iter().enumerate().map(|(index, digest)| (*digest, length(index))));
            }
        }
        out
    }

    /// The door: nothing of a manifest is used before it passed here.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn check(&self) -> Result<(), ManifestError> {
        self.check_bounds()?;
        let mut dirs: BTreeMap<&str, bool> = BTreeMap::new();
        let mut last = "";
        for entry in &self.entries {
            let path = entry.path.as_str();
            if path <= last || !is_path(path.as_bytes()) {
                return Err(ManifestError::Path(path.chars().take(200).collect()));
            }
            let up = parent(path.as_bytes()).map(|up| &path[..up.len()]);
            if up.is_some_and(|up| !dirs.contains_key(up)) {
                return Err(ManifestError::Orphan(path.chars().take(200).collect()));
            }
            check_entry(entry)?;
            if entry.kind == ImageKindV1::Dir {
                dirs.insert(path, true);
            }
            last = path;
        }
        Ok(())
    }

    fn check_bounds(&self) -> Result<(), ManifestError> {
        let (mut bytes, mut chunks, mut text) = (0u64, 0, 0);
        for entry in &self.entries {
            text += entry.path.len();
            match &entry.kind {
                ImageKindV1::File { size, chunks: named } => {
                    bytes = bytes.saturating_add(*size);
                    chunks += named.len();
                }
                ImageKindV1::Symlink { target } => text += target.len(),
                ImageKindV1::Dir => {}
            }
        }
        let command: usize = self.command.iter().map(String::len).sum();
        let env: usize = self.env.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bounds = [
            ("entries", self.entries.len() as u64, IMAGE_ENTRIES_MAX as u64),
            ("bytes", bytes, IMAGE_BYTES_MAX),
            ("chunks", chunks as u64, IMAGE_CHUNKS_MAX as u64),
            ("bytes of paths", text as u64, IMAGE_TEXT_BYTES_MAX as u64),
            ("arguments", self.command.len() as u64, COMMAND_ARGS_MAX as u64),
            ("bytes of arguments", command as u64, COMMAND_BYTES_MAX as u64),
            ("variables", self.env.len() as u64, ENV_MAX as u64),
            ("bytes of variables", env as u64, ENV_BYTES_MAX as u64),
            ("bytes of the working directory", self.workdir.len() as u64, PATH_BYTES_MAX as u64),
            ("bytes of the architecture", self.architecture.len() as u64, 64),
        ];
        match bounds.into_iter().find(|(_, have, max)| have > max) {
            Some((what, _, max)) => Err(ManifestError::Bound { what, max }),
            None => Ok(()),
        }
    }
}

fn check_entry(entry: &ImageEntryV1) -> Result<(), ManifestError> {
    let bad = |what| Err(ManifestError::Entry { path: entry.path.chars().take(200).collect(), what });
    match &entry.kind {
        _ if entry.mode & !0o1777 != 0 => bad("its mode has bits that images do not carry"),
        ImageKindV1::File { size, chunks } if size.div_ceil(CHUNK_BYTES as u64) != chunks.len() as u64 => {
            bad("its chunks do not cover its size")
        }
        ImageKindV1::Symlink { target }
            if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains('\0') =>
        {
            bad("its target is no path")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manifest(entries: Vec<(&str, ImageKindV1)>) -> ImageManifest {
        let entry = |(path, kind): (&str, ImageKindV1)| ImageEntryV1 { path: path.to_owned(), kind, mode: 0o755 };
        ImageManifest { entries: entries.into_iter().map(entry).collect(), ..Default::default() }
    }

    fn file() -> ImageKindV1 {
        ImageKindV1::File { size: 1, chunks: vec![Digest::of(b"x")] }
    }

    #[test]
    fn hostile_paths_are_refused() {
        assert_eq!(manifest(vec![("a", ImageKindV1::Dir), ("a/b", file())]).check(), Ok(()));
        for bad in ["..", "../a", "/a", "a/../b", "", "a//b", "a/b"] {
            assert!(manifest(vec![(bad, file())]).check().is_err(), "{bad}");
        }
        let link = ImageKindV1::Symlink { target: "/etc".into() };
        assert!(matches!(manifest(vec![("l", link), ("l/a", file())]).check(), Err(ManifestError::Orphan(_))));
        assert!(manifest(vec![("b", file()), ("a", file())]).check().is_err());
        assert!(manifest(vec![("a", file()), ("a", file())]).check().is_err());
        let mut setuid = manifest(vec![("a", file())]);
        setuid.entries[0].mode = 0o4755;
        assert!(setuid.check().is_err());
    }

    #[test]
    fn the_largest_manifest_fits_a_frame() {
        // Every bound at its maximum at once.
        let text = IMAGE_TEXT_BYTES_MAX / IMAGE_ENTRIES_MAX;
        let extra = IMAGE_CHUNKS_MAX - IMAGE_ENTRIES_MAX;
        let entry = |n: usize| {
            let count = if n == 0 { extra + 1 } else { 1 };
            let kind = ImageKindV1::File { size: 0, chunks: vec![Digest::default(); count] };
            ImageEntryV1 { path: format!("{n:0text$}"), kind, mode: 0 }
        };
        let largest = ImageManifest {
            entries: (0..IMAGE_ENTRIES_MAX).map(entry).collect(),
            command: vec!["x".repeat(COMMAND_BYTES_MAX / COMMAND_ARGS_MAX); COMMAND_ARGS_MAX],
            env: vec![("n".into(), "x".repeat(ENV_BYTES_MAX / ENV_MAX)); ENV_MAX],
            workdir: "x".repeat(PATH_BYTES_MAX),
            architecture: "x".repeat(64),
        };
        assert!(largest.framed().1.len() < fabric::limits::FRAME_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_manifest_is_judged_without_panic(
            paths in proptest::collection::vec("[a-c./]{0,6}", 0..6), size in any::<u64>(), chunks in 0usize..4,
        ) {
            let kind = ImageKindV1::File { size, chunks: vec![Digest::default(); chunks] };
            let given = manifest(paths.iter().map(|path| (path.as_str(), kind.clone())).collect());
            if given.check().is_ok() {
                prop_assert!(given.chunks().values().all(|length| *length <= CHUNK_BYTES));
            }
        }
    }
}
