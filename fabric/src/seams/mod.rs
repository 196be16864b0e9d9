//! Seams: the traits at which the simulator replaces the real world.
//!
//! Everything that a decision could depend on passes here: clocks, entropy, disk, UDP. (The kernel's seam is
//! `smartnode::runtime::Runtime`.) Timers are `tokio::time`, whose clock the simulator owns by pausing the runtime;
//! a deadline that must survive suspend is computed from [`Clock::boottime`].

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

mod headroom;
pub mod real;

/// Time. Two clocks, never mixed: one that only goes forward, one that people set.
pub trait Clock: Debug + Send + Sync {
    /// `CLOCK_BOOTTIME`: monotonic, counts suspend, origin arbitrary. Leases are reckoned on it.
    fn boottime(&self) -> Duration;
    /// Time since the Unix epoch, for certificates, stamps and people. Steps and drifts.
    fn wall(&self) -> Duration;
}

/// Randomness fit for keys.
pub trait Entropy: Debug + Send + Sync {
    /// Fills `out`.
    fn fill(&self, out: &mut [u8]);
}

/// Draws `N` random bytes.
pub fn draw<const N: usize>(entropy: &dyn Entropy) -> [u8; N] {
    let mut out = [0; N];
    entropy.fill(&mut out);
    out
}

/// A node's data directory: small files, and databases for redb.
///
/// Names are relative, of letters, digits, `.`, `-`, `_` and at most one `/`. Every method is durable when it returns.
pub trait Disk: Debug + Send + Sync {
    /// The whole file, or none when there is no such file.
    ///
    /// # Errors
    /// When it cannot be read or exceeds 16 MiB.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Replaces the file: written under a temporary name with mode 0600, synced, renamed, directory synced.
    ///
    /// # Errors
    /// When it cannot be written; the old content is still there then.
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()>;
    /// Removes the file if there is one.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames a file and syncs the directory.
    ///
    /// # Errors
    /// When it cannot be renamed.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Whether a file exists.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn exists(&self, name: &str) -> io::Result<bool>;
    /// Opens (or makes an empty) file to be written in place, mode 0600. For a database of redb's use [`open_database`].
    ///
    /// What is read is what the disk holds: not what an earlier process wrote and could not sync. Where a file `grows`, room
    /// for what it will need next is kept ahead of it, if the file system can.
    ///
    /// # Errors
    /// When it cannot be opened, or another process has it open.
    fn storage(&self, name: &str, grows: bool) -> io::Result<Box<dyn redb::StorageBackend>>;
    /// How long the sync that comes next will take, where time stands still in a call: on the simulator's disk. A task that
    /// syncs what others need not wait for sleeps for it first, so that they go on as they do beside a thread that syncs.
    fn sync_takes(&self) -> Duration {
        Duration::ZERO
    }
}

/// UDP.
pub trait Udp: Debug + Send + Sync {
    /// Binds a socket for quinn.
    ///
    /// # Errors
    /// When the address is not ours or is in use.
    fn bind(&self, listen: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;
}

/// The world as one node sees it.
#[derive(Debug, Clone)]
pub struct Seams {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// The data directory.
    pub disk: Arc<dyn Disk>,
    /// The network.
    pub udp: Arc<dyn Udp>,
}

/// Passes redb's calls to a boxed backend.
#[derive(Debug)]
struct Boxed(Box<dyn redb::StorageBackend>);

impl redb::StorageBackend for Boxed {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

/// Opens the redb database `name`, making it if there is none.
///
/// redb refuses a file whose creation was cut by a power loss, so a new one is made under a temporary name, committed to
/// by `prepare`, and only then renamed.
///
/// # Errors
/// When the disk fails or the file is damaged.
pub fn open_database(
    disk: &dyn Disk,
    name: &str,
    cache_bytes: usize,
    prepare: impl FnOnce(&redb::Database) -> Result<(), redb::Error>,
) -> Result<redb::Database, redb::Error> {
    let open = |name: &str, fresh: bool| -> Result<redb::Database, redb::Error> {
        let backend = Boxed(disk.storage(name, true)?);
        if !fresh && redb::StorageBackend::len(&backend)? == 0 {
            // redb would make a new one of it. What was renamed into place was never empty.
            return Err(redb::Error::Corrupted("it is empty".into()));
        }
        Ok(redb::Builder::new().set_cache_size(cache_bytes).create_with_backend(backend)?)
    };
    if disk.exists(name)? {
        let database = open(name, false)?;
        prepare(&database)?;
        return Ok(database);
    }
    let fresh = format!("{name}.new");
    disk.remove(&fresh)?;
    let database = open(&fresh, true)?;
    prepare(&database)?;
    disk.rename(&fresh, name)?;
    Ok(database)
}
