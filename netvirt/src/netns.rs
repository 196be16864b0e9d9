//! Network namespaces (`network_namespaces(7)`), under names, so that they outlive the program that made them.
//!
//! Names are files under `/run/netns`, as `ip-netns(8)` has them: an administrator looks into one with `ip -n NAME`. What is
//! to be done inside runs on a thread that goes there and ends.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Where names of namespaces are.
const DIRECTORY: &str = "/run/netns";
/// The file system that namespaces are in (`NSFS_MAGIC` of `linux/magic.h`).
const NSFS: FsType = FsType(0x6e73_6673);
/// Longest name, in bytes: a file's.
const NAME_BYTES_MAX: usize = 255;

/// A network namespace. It lives as long as it has a name, a process, or somebody who has it open.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// The namespace `name`; a new one when there is none.
    ///
    /// # Errors
    /// When the name is none, or the kernel refuses: without the right (`CAP_SYS_ADMIN`), or without room.
    pub fn make(name: &str) -> io::Result<Self> {
        let path = path(name)?;
        match open(&path) {
            // A file alone is what is left when a program ended in the middle.
            Ok(found) if found.is_namespace()? => return Ok(found),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
                let mut options = OpenOptions::new();
                #[expect(clippy::disallowed_methods, reason = "a name in the kernel's hands")]
                options.write(true).create(true).mode(0o444).open(&path)?;
            }
            Err(error) => return Err(error),
        }
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
        })?;
        open(&path)
    }

    /// The one that a process is in.
    ///
    /// # Errors
    /// When there is no such process, or the right to look is missing.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// Takes a name away; true when there was one. Whoever is inside stays there.
    ///
    /// # Errors
    /// When the name is none, or the right is missing.
    pub fn remove(name: &str) -> io::Result<bool> {
        let path = path(name)?;
        let found = match open(&path) {
            Ok(found) => found.is_namespace()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if found {
            umount2(&path, MntFlags::MNT_DETACH)?;
        }
        #[expect(clippy::disallowed_methods, reason = "a name in the kernel's hands")]
        fs::remove_file(&path)?;
        Ok(true)
    }

    /// The names that begin with `prefix`.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn names(prefix: &str) -> io::Result<Vec<String>> {
        #[expect(clippy::disallowed_methods, reason = "names in the kernel's hands")]
        let listing = match fs::read_dir(DIRECTORY) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in listing {
            names.extend(entry?.file_name().into_string().ok().filter(|name| name.starts_with(prefix)));
        }
        names.sort();
        Ok(names)
    }

    /// Does something inside, on a thread of its own, which is waited for. A tokio runtime that the caller is in is there,
    /// too: what is registered with it goes on when the thread has ended.
    ///
    /// # Errors
    /// When the right to go there is missing, and those of `work`.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let runtime = Handle::try_current().ok();
        on_a_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            let _runtime = runtime.as_ref().map(|runtime| runtime.enter());
            work()
        })
    }

    fn is_namespace(&self) -> io::Result<bool> {
        Ok(fstatfs(&self.file)?.filesystem_type() == NSFS)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn path(name: &str) -> io::Result<PathBuf> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name of a namespace")));
    }
    Ok(Path::new(DIRECTORY).join(name))
}

fn open(path: &Path) -> io::Result<Netns> {
    #[expect(clippy::disallowed_methods, reason = "a namespace of the kernel, not a file")]
    let file = File::open(path)?;
    Ok(Netns { file })
}

/// A namespace is a property of a thread: one that ends takes it along. Where there are several workers, another one takes
/// over this one's tasks meanwhile.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let run = || {
        std::thread::scope(|scope| match scope.spawn(work).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    };
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(run),
        _ => run(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "a/b", "..", "a b", &"x".repeat(256)] {
            assert_eq!(Netns::make(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
            assert_eq!(Netns::remove(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }
}
