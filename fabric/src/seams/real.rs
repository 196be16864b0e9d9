//! The real world: kernel clocks, kernel randomness, a directory, UDP sockets. Only `main` and tests build it.
#![expect(clippy::disallowed_methods, reason = "this file is where the ambient effects live")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ring::rand::SecureRandom;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};

use super::headroom::{Headroom, headroom};
use super::{Clock, Disk, Entropy, Seams, Udp};

/// Largest small file that [`Disk::read`] takes into memory.
const SMALL_FILE_BYTES_MAX: u64 = 16 << 20;

/// Kernel clocks.
#[derive(Debug, Default)]
pub struct KernelClock;

impl Clock for KernelClock {
    fn boottime(&self) -> Duration {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME");
        Duration::from(now)
    }
    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

/// Kernel randomness.
#[derive(Debug, Default)]
pub struct KernelEntropy;

impl Entropy for KernelEntropy {
    fn fill(&self, out: &mut [u8]) {
        ring::rand::SystemRandom::new().fill(out).expect("the kernel gives randomness");
    }
}

/// Bytes that have come to a UDP socket and are not taken yet.
const SOCKET_BYTES: usize = 4 << 20;

/// UDP sockets of the host.
#[derive(Debug, Default)]
pub struct HostUdp;

impl Udp for HostUdp {
    fn bind(&self, listen: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let socket = std::net::UdpSocket::bind(listen)?;
        // A burst of frames of overlay networks must not cost the membership's packets. With the right to, beyond the host's
        // usual bound; as much as there may be otherwise.
        let _ = setsockopt(&socket, RcvBufForce, &SOCKET_BYTES).or_else(|_| setsockopt(&socket, RcvBuf, &SOCKET_BYTES));
        quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, socket)
    }
}

/// A directory, made with mode 0700.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Opens or makes the directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(root: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        Ok(Directory { root: root.to_owned() })
    }

    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
        if name.is_empty() || !name.bytes().all(plain) || name.contains("..") || name.starts_with('/') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no file name")));
        }
        Ok(self.root.join(name))
    }

    fn sync_parent(path: &Path) -> io::Result<()> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        File::open(parent)?.sync_all()
    }

    fn ensure_parent(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        if parent != self.root && !parent.exists() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            Self::sync_parent(parent)?;
        }
        Ok(())
    }
}

/// Syncs take as long as the disk does. A worker of the daemon's runtime hands its other tasks over meanwhile, so that
/// membership and Raft do not wait for a disk.
fn off_the_workers<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn none_if_absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Disk for Directory {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = none_if_absent(File::open(self.path(name)?))? else { return Ok(None) };
        let mut content = Vec::new();
        file.take(SMALL_FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
        if content.len() as u64 > SMALL_FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{name} exceeds 16 MiB")));
        }
        Ok(Some(content))
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.path(name)?;
        let temporary = self.path(&format!("{name}.tmp"))?;
        off_the_workers(|| {
            self.ensure_parent(&path)?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            Self::sync_parent(&path)
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name)?;
        off_the_workers(|| match none_if_absent(std::fs::remove_file(&path))? {
            Some(()) => Self::sync_parent(&path),
            None => Ok(()),
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let to = self.path(to)?;
        let from = self.path(from)?;
        off_the_workers(|| {
            std::fs::rename(from, &to)?;
            Self::sync_parent(&to)
        })
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.path(name)?.try_exists()
    }

    fn storage(&self, name: &str, grows: bool) -> io::Result<Box<dyn redb::StorageBackend>> {
        let path = self.path(name)?;
        self.ensure_parent(&path)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        // A sync that failed leaves pages that read well and are not on the disk. Whoever starts after it must see the disk:
        // what redb would build on such pages, the next power cut would tear apart. Advice only, so no error of it counts.
        let _ = nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        let disk = nix::sys::statvfs::statvfs(&self.root);
        let total = disk.map_or(0, |fs| fs.blocks().saturating_mul(fs.fragment_size()));
        Ok(Box::new(Headroom::new(file, if grows { headroom(total) } else { 0 })?))
    }
}

/// The real world with its data in `root`.
///
/// # Errors
/// When the directory cannot be made.
pub fn seams(root: &Path) -> io::Result<Seams> {
    Ok(Seams {
        clock: Arc::new(KernelClock),
        entropy: Arc::new(KernelEntropy),
        disk: Arc::new(Directory::open(root)?),
        udp: Arc::new(HostUdp),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::{ReadableDatabase, TableDefinition};

    const TABLE: TableDefinition<u64, u64> = TableDefinition::new("t");

    #[test]
    fn a_file_is_replaced_whole_and_names_stay_inside() {
        let temporary = tempfile::tempdir().unwrap();
        let disk = Directory::open(&temporary.path().join("data")).unwrap();
        assert_eq!(disk.read("a").unwrap(), None);
        disk.write("a", b"one").unwrap();
        disk.write("sub/a", b"two").unwrap();
        assert_eq!(disk.read("a").unwrap().unwrap(), b"one");
        assert_eq!(disk.read("sub/a").unwrap().unwrap(), b"two");
        assert!(disk.write("../a", b"x").is_err());
        disk.remove("a").unwrap();
        disk.remove("a").unwrap();
        assert!(!disk.exists("a").unwrap());
    }

    #[test]
    fn a_database_is_made_once_and_found_again() {
        let temporary = tempfile::tempdir().unwrap();
        let disk = Directory::open(temporary.path()).unwrap();
        let prepare = |db: &redb::Database| {
            let tx = db.begin_write()?;
            tx.open_table(TABLE)?;
            Ok(tx.commit()?)
        };
        let db = super::super::open_database(&disk, "d.redb", 1 << 20, prepare).unwrap();
        let tx = db.begin_write().unwrap();
        tx.open_table(TABLE).unwrap().insert(1, 2).unwrap();
        tx.commit().unwrap();
        drop(db);
        let db = super::super::open_database(&disk, "d.redb", 1 << 20, prepare).unwrap();
        let found = db.begin_read().unwrap().open_table(TABLE).unwrap().get(1).unwrap().unwrap().value();
        assert_eq!(found, 2);
        assert!(!disk.exists("d.redb.new").unwrap());
    }
}
