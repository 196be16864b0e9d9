//! A directory that nothing leaves: every operation names a relative path and is resolved by the kernel below it.
//!
//! Manifests come from peers, and tenants fill layers with what they like. So paths are checked first ([`is_path`]) and
//! then opened with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`: a symbolic link on the way is an error, never a
//! detour. Nothing here follows a link at the end of a path either.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, fsetxattr,
};

use super::limits::{COMPONENT_BYTES_MAX, FLUSH_EACH_MAX, PATH_BYTES_MAX};

/// Whether `path` is a plain relative path: components of 1 to 255 bytes, none of them `.` or `..`, no NUL.
pub fn is_path(path: &[u8]) -> bool {
    let component =
        |c: &[u8]| !c.is_empty() && c.len() <= COMPONENT_BYTES_MAX && c != b"." && c != b".." && !c.contains(&0);
    !path.is_empty() && path.len() <= PATH_BYTES_MAX && path.split(|b| *b == b'/').all(component)
}

/// The path above, none for a path of one component.
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|b| *b == b'/').map(|at| &path[..at])
}

/// The paths above, innermost first; the root (the empty path) is not among them.
pub fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(parent(path), |up| parent(up))
}

/// Extended attributes: names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What an inode carries beside its content.
#[derive(Debug, Clone, Copy)]
pub struct Meta<'a> {
    /// Permission bits, with set-id and sticky.
    pub mode: u32,
    /// Owner as seen on disk; none leaves it.
    pub owner: Option<(u32, u32)>,
    /// Modification time, seconds and nanoseconds; none leaves it.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// An open directory.
#[derive(Debug)]
pub struct Within {
    root: OwnedFd,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Within {
    /// Opens the directory at `path`.
    ///
    /// # Errors
    /// When it is no directory or may not be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Within { root: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// The directory itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn open_at(&self, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        if !path.is_empty() && !is_path(path) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain relative path"));
        }
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat2(&self.root, path, flags, mode, BENEATH)?)
    }

    /// Opens a directory; the empty path is the root.
    ///
    /// # Errors
    /// When there is none, or a link is on the way.
    pub fn dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }

    /// The open directory above `path`, and the last component.
    fn above<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
        if !is_path(path) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain relative path"));
        }
        let up = parent(path);
        let name = up.map_or(path, |up| &path[up.len() + 1..]);
        Ok((self.open_at(up.unwrap_or_default(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, name))
    }

    /// Makes a directory, 0700.
    ///
    /// # Errors
    /// When something is there already or the parent is missing.
    pub fn make_dir(&self, path: &[u8]) -> io::Result<()> {
        let (dir, name) = self.above(path)?;
        Ok(rustix::fs::mkdirat(dir, name, Mode::RWXU)?)
    }

    /// Makes an empty file, 0600, open for reading and writing.
    ///
    /// # Errors
    /// When something is there already or the parent is missing.
    pub fn create(&self, path: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(self.open_at(path, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Opens a file for reading; never blocks on a fifo.
    ///
    /// # Errors
    /// When there is no regular file.
    pub fn read(&self, path: &[u8]) -> io::Result<File> {
        self.regular(path, OFlags::RDONLY)
    }

    /// Opens a file for writing.
    ///
    /// # Errors
    /// When there is no regular file.
    pub fn write(&self, path: &[u8]) -> io::Result<File> {
        self.regular(path, OFlags::RDWR)
    }

    fn regular(&self, path: &[u8], flags: OFlags) -> io::Result<File> {
        let fd = self.open_at(path, flags | OFlags::NONBLOCK, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(fd.into())
    }

    /// Makes a symbolic link; its target is only text here.
    ///
    /// # Errors
    /// When something is there already or the parent is missing.
    pub fn symlink(&self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let (dir, name) = self.above(path)?;
        Ok(rustix::fs::symlinkat(target, dir, name)?)
    }

    /// Makes `path` another name of `of`.
    ///
    /// # Errors
    /// When `of` is missing or something is at `path`.
    pub fn link(&self, of: &[u8], path: &[u8]) -> io::Result<()> {
        let (from, from_name) = self.above(of)?;
        let (dir, name) = self.above(path)?;
        Ok(rustix::fs::linkat(from, from_name, dir, name, AtFlags::empty())?)
    }

    /// Makes a fifo, 0600.
    ///
    /// # Errors
    /// When something is there already.
    pub fn fifo(&self, path: &[u8]) -> io::Result<()> {
        let (dir, name) = self.above(path)?;
        Ok(rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
    }

    /// Makes an overlay whiteout: a character device 0/0. It opens nothing.
    ///
    /// # Errors
    /// When something is there already, or the caller may not make device nodes.
    pub fn whiteout(&self, path: &[u8]) -> io::Result<()> {
        let (dir, name) = self.above(path)?;
        Ok(rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)?)
    }

    /// Removes what is at `path`, with all below it. Absence is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, path: &[u8]) -> io::Result<()> {
        let (dir, name) = self.above(path)?;
        match remove_at(dir.as_fd(), name, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Sets mode, owner, times and attributes of a file or directory (the empty path is the root).
    ///
    /// # Errors
    /// When the file system refuses; without root, owners and `trusted.` attributes are refused.
    pub fn set_meta(&self, path: &[u8], meta: &Meta<'_>) -> io::Result<()> {
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
        drop_xattrs(&fd, meta.xattrs)?;
        // The owner first: a change of owner clears set-id bits and capabilities.
        if let Some((uid, gid)) = meta.owner {
            let stat = rustix::fs::fstat(&fd)?;
            if (stat.st_uid, stat.st_gid) != (uid, gid) {
                rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
        }
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(meta.mode & 0o7777))?;
        for (name, value) in meta.xattrs {
            fsetxattr(&fd, name.as_slice(), value, XattrFlags::empty())?;
        }
        if let Some(mtime) = meta.mtime {
            rustix::fs::futimens(&fd, &stamps(mtime))?;
        }
        Ok(())
    }

    /// Sets owner and times of a link, and the mode too of a fifo; whiteouts have none of their own.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn set_meta_unopened(&self, path: &[u8], meta: &Meta<'_>, is_link: bool) -> io::Result<()> {
        let (dir, name) = self.above(path)?;
        if let Some((uid, gid)) = meta.owner {
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if (stat.st_uid, stat.st_gid) != (uid, gid) {
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                rustix::fs::chownat(&dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        if !is_link {
            rustix::fs::chmodat(&dir, name, Mode::from_raw_mode(meta.mode & 0o7777), AtFlags::empty())?;
        }
        if let Some(mtime) = meta.mtime {
            rustix::fs::utimensat(&dir, name, &stamps(mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// What is at `path`, links not followed; none when nothing is.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn stat(&self, path: &[u8]) -> io::Result<Option<Stat>> {
        let found = self
            .above(path)
            .and_then(|(dir, name)| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from));
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes these files and directories, and the root, to the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn persist<'p>(&self, paths: impl Iterator<Item = &'p [u8]>) -> io::Result<()> {
        let few: Vec<_> = paths.take(FLUSH_EACH_MAX + 1).collect();
        if few.len() > FLUSH_EACH_MAX {
            return self.sync();
        }
        // Children come after their directory in every manifest; the directory is flushed when it names them all.
        for path in few.into_iter().rev() {
            let opened = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
            rustix::fs::fsync(opened)?;
        }
        Ok(rustix::fs::fsync(&self.root)?)
    }

    /// Writes everything of this file system to the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }
}

fn stamps((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos.min(999_999_999)) };
    Timestamps { last_access: time, last_modification: time }
}

/// Removes attributes that are ours to set and not wanted any more.
fn drop_xattrs(fd: &OwnedFd, keep: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
    for name in super::scan::xattr_names(fd.as_fd())? {
        if super::manifest::carries(&name) && !keep.iter().any(|(kept, _)| *kept == name) {
            rustix::fs::fremovexattr(fd, name.as_slice())?;
        }
    }
    Ok(())
}

/// Depth is bounded by what fits a path.
fn remove_at(dir: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(rustix::io::Errno::ISDIR) => {}
        other => return Ok(other?),
    }
    if depth > PATH_BYTES_MAX / 2 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "directories nested too deep"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let below = rustix::fs::openat2(dir, name, flags, Mode::empty(), BENEATH)?;
    for child in rustix::fs::Dir::read_from(&below)? {
        let child = child?;
        let child = child.file_name().to_bytes();
        if child != b"." && child != b".." {
            remove_at(below.as_fd(), child, depth + 1)?;
        }
    }
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn paths_that_could_leave_are_no_paths() {
        for good in ["a", "a/b", "...", "a b", "é", "-"] {
            assert!(is_path(good.as_bytes()), "{good}");
        }
        let long = "x".repeat(256);
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0b", &long] {
            assert!(!is_path(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn a_link_on_the_way_is_refused() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        let within = Within::open(inside.path()).unwrap();
        within.symlink(b"out", outside.path().as_os_str().as_encoded_bytes()).unwrap();
        assert!(within.create(b"out/a").is_err());
        assert!(within.make_dir(b"out/d").is_err());
        assert!(within.dir(b"out").is_err());
        within.remove(b"out").unwrap();
        assert!(outside.path().exists());
        #[expect(clippy::disallowed_methods, reason = "looks at the real directory beside")]
        let left = std::fs::read_dir(outside.path()).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn a_tree_is_removed_with_all_below() {
        let inside = tempfile::tempdir().unwrap();
        let within = Within::open(inside.path()).unwrap();
        within.make_dir(b"a").unwrap();
        within.make_dir(b"a/b").unwrap();
        within.create(b"a/b/c").unwrap().write_all(b"x").unwrap();
        within.remove(b"a").unwrap();
        within.remove(b"a").unwrap();
        assert!(within.stat(b"a").unwrap().is_none());
    }
}
