//! Makes the directory that machines of an image share as their lower layer.
//!
//! Built under a temporary name, flushed, then renamed: what has its name is whole. Paths were checked with the manifest
//! and are opened below the directory only ([`Within`]).
#![expect(clippy::disallowed_methods, reason = "images are files of the host, below the runtime's seam")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use fabric::ids::Digest;

use super::manifest::{ImageEntryV1, ImageKindV1, ImageManifest};
use super::store::{Store, StoreError, failed, sync_path};
use crate::transfer::within::{Meta, Within};

impl Store {
    /// The unpacked image, unpacking it now if it is not. Read-only by agreement: machines write to their own layers.
    ///
    /// # Errors
    /// When the image is missing or damaged, or the disk refuses.
    pub fn rootfs(&self, digest: &Digest) -> Result<PathBuf, StoreError> {
        let path = self.rootfs_path(digest);
        // Always under the lock: it may be being removed, after its image was forgotten and came back.
        let _one = self.unpacking();
        if path.exists() {
            return Ok(path);
        }
        let manifest = self.manifest(digest)?;
        let temporary = self.temporary();
        let built = fs::DirBuilder::new()
            .mode(0o755)
            .create(&temporary)
            .and_then(|()| Within::open(&temporary))
            .map_err(failed(&temporary))
            .and_then(|within| {
                manifest.entries.iter().try_for_each(|entry| self.unpack(&within, entry))?;
                // Modes of directories last, from below: one without the right to write is filled first.
                let mut dirs = manifest.entries.iter().rev().filter(|entry| entry.kind == ImageKindV1::Dir);
                dirs.try_for_each(|entry| dress(&within, entry)).map_err(failed(&temporary))
            })
            .and_then(|()| self.flush_rootfs(&temporary, &manifest))
            .and_then(|()| fs::rename(&temporary, &path).map_err(failed(&path)));
        if let Err(error) = built {
            // What stays is removed at the next opening.
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }
        path.parent().map_or(Ok(()), sync_path)?;
        Ok(path)
    }

    fn flush_rootfs(&self, temporary: &Path, manifest: &ImageManifest) -> Result<(), StoreError> {
        let opened = |entry: &&ImageEntryV1| !matches!(entry.kind, ImageKindV1::Symlink { .. });
        let paths = manifest.entries.iter().filter(opened).map(|entry| entry.path.as_bytes());
        Within::open(temporary).and_then(|within| within.persist(paths)).map_err(failed(temporary))
    }

    fn unpack(&self, within: &Within, entry: &ImageEntryV1) -> Result<(), StoreError> {
        let path = entry.path.as_bytes();
        let name = PathBuf::from(&entry.path);
        match &entry.kind {
            ImageKindV1::Dir => within.make_dir(path).map_err(failed(&name)),
            ImageKindV1::Symlink { target } => within.symlink(path, target.as_bytes()).map_err(failed(&name)),
            ImageKindV1::File { chunks, .. } => {
                let mut file = within.create(path).map_err(failed(&name))?;
                for digest in chunks {
                    file.write_all(&self.chunk(digest)?).map_err(failed(&name))?;
                }
                dress(within, entry).map_err(failed(&name))
            }
        }
    }
}

fn dress(within: &Within, entry: &ImageEntryV1) -> std::io::Result<()> {
    within.set_meta(entry.path.as_bytes(), &Meta { mode: entry.mode, owner: None, mtime: Some((0, 0)), xattrs: &[] })
}
