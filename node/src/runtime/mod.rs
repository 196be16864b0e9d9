//! The kernel's seam: running machines.
//!
//! [`Runtime`] is what the reconciler, moves and the admin port see. [`container`] is the real one (namespaces, cgroups,
//! a supervisor process per machine); the simulator has a fake one. Nothing here decides *whether* a machine should run:
//! that is `reconcile`, from the ledger's records. Nothing here knows images or networks: a launch names a directory.

pub mod absent;
pub(crate) mod cgroup;
mod confine;
pub mod container;
mod lease;
pub(crate) mod limits;
mod line;
pub(crate) mod policy;
pub mod preflight;
mod process;
mod record;
mod rootfs;
pub mod supervisor;
mod sys;

use std::fmt::{self, Debug};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use fabric::ids::{Digest, MachineId};
use fabric::model::{MachineSpec, MachineStatus, Name};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};

/// What a machine is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The machine.
    pub id: MachineId,
    /// The placement's epoch.
    pub epoch: u64,
    /// The record's count of requested restarts, given back by [`Observed`].
    pub requested_restarts: u64,
    /// Its tenant.
    pub tenant: Name,
    /// Its name: the host name inside.
    pub name: Name,
    /// What was asked for. A cap that is none is no cap: who knows the node's capacity fills it in.
    pub spec: MachineSpec,
    /// Digest of the image.
    pub image: Digest,
    /// The unpacked image: a directory that stays as it is while the machine exists. Files are owned as inside (root = 0).
    pub rootfs: PathBuf,
    /// The image's own command, for a spec without one.
    pub image_command: Vec<String>,
    /// The image's environment; the spec's entries win.
    pub image_env: Vec<(String, String)>,
    /// The image's working directory; empty means `/`.
    pub image_workdir: String,
    /// Until when an exclusive machine may run, on `CLOCK_BOOTTIME`. Needed exactly when `spec.exclusive`.
    pub lease_deadline: Option<Duration>,
}

impl Launch {
    /// Program and arguments: the spec's, or else the image's.
    pub fn command(&self) -> &[String] {
        if self.spec.command.is_empty() { &self.image_command } else { &self.spec.command }
    }
}

/// A machine that this node has, running or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The machine.
    pub id: MachineId,
    /// Digest of its image; none when its record is damaged.
    pub image: Option<Digest>,
    /// The epoch it was last prepared for.
    pub epoch: u64,
    /// Its launch's count of requested restarts.
    pub requested_restarts: u64,
    /// Whether it is bound to the lease.
    pub exclusive: bool,
    /// Why it is held, if it is.
    pub frozen: Frozen,
    /// The lease deadline that its supervisor holds, on `CLOCK_BOOTTIME`.
    pub lease_deadline: Option<Duration>,
    /// Its supervisor was killed, or the whole host: its program did not end by itself.
    pub lost: bool,
    /// What it is doing.
    pub status: MachineStatus,
}

impl Observed {
    /// Its supervisor lives: it runs, is held, or waits for its next start.
    pub fn is_up(&self) -> bool {
        use fabric::model::MachineState::{Frozen, Preparing, Restarting, Running};
        matches!(self.status.state, Preparing | Running | Frozen | Restarting)
    }
}

/// Who holds a machine. Both may at once; it runs when neither does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frozen {
    /// Its lease ran out: undone by [`Runtime::renew`] with `thaw`.
    pub by_lease: bool,
    /// [`Runtime::freeze`], for a move: undone by [`Runtime::thaw`] alone.
    pub by_order: bool,
}

/// Why the runtime did not do what it was asked.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// This node has no such machine.
    #[error("machine {0:?} is not on this node")]
    NotFound(MachineId),
    /// Its state does not allow it.
    #[error("machine {id:?} is {state}: {hint}")]
    State {
        /// The machine.
        id: MachineId,
        /// What it is doing.
        state: String,
        /// What would be needed.
        hint: String,
    },
    /// Its program could not be started.
    #[error("machine {id:?} did not start: {reason}")]
    Start {
        /// The machine.
        id: MachineId,
        /// In the user's words.
        reason: String,
    },
    /// Its supervisor answered with an error, or with something unknown.
    #[error("the supervisor of machine {id:?} says: {reason}")]
    Supervisor {
        /// The machine.
        id: MachineId,
        /// What it said.
        reason: String,
    },
    /// No answer in time.
    #[error("machine {id:?}: no answer to {what} within {after:?}")]
    Timeout {
        /// The machine.
        id: MachineId,
        /// The request.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// Nothing listens on that port of the machine, or it cannot be reached.
    #[error("port {port} of machine {id:?} does not answer")]
    Connect {
        /// The machine.
        id: MachineId,
        /// The port.
        port: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// This host cannot run machines.
    #[error("this host cannot run machines: {0}")]
    Unsupported(String),
    /// The kernel or the disk refused.
    #[error("cannot {what}")]
    Io {
        /// What was being done, with its path.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A program started by [`Runtime::exec`]. Dropping it kills the program.
pub struct ExecStream {
    /// Its standard input; shut it down to send the end of file.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// Its exit code, or 128 + signal (137 when the machine ended under it).
    pub exit: oneshot::Receiver<i32>,
}

impl Debug for ExecStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExecStream")
    }
}

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One captured line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was read, Unix milliseconds.
    pub at_ms: u64,
    /// Where it was written.
    pub source: LogSource,
    /// The line without its end; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Which lines of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// At most this many of the last lines; none means all that are kept.
    pub tail: Option<usize>,
    /// Go on with new lines until the receiver is dropped or the machine is destroyed.
    pub follow: bool,
}

/// A connection into a machine's network namespace.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Runs machines. Every method may be called again: what is done already is a success.
#[async_trait]
pub trait Runtime: Send + Sync + Debug {
    /// Every machine that this node has a disk of; finds those that a former daemon left running.
    ///
    /// # Errors
    /// When the data directory cannot be read. A single damaged machine is listed as failed.
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError>;

    /// Makes the machine's directories (an empty writable layer) and records the launch; keeps a layer that is there.
    ///
    /// # Errors
    /// When the disk refuses, or the machine is up.
    async fn prepare(&self, launch: &Launch) -> Result<(), RuntimeError>;

    /// Prepares and starts the machine; returns when its program runs.
    ///
    /// # Errors
    /// [`RuntimeError::Start`] when the program cannot be started, [`RuntimeError::State`] when it is up already
    /// at another epoch.
    async fn start(&self, launch: &Launch) -> Result<(), RuntimeError>;

    /// SIGTERM, and SIGKILL after `grace` (at once when it is frozen). Returns when nothing of it runs. A supervisor that
    /// does not answer is killed, and its machine with it.
    ///
    /// # Errors
    /// When something of it is still there after that.
    async fn stop(&self, id: MachineId, grace: Duration) -> Result<(), RuntimeError>;

    /// Kills what runs and removes everything.
    ///
    /// # Errors
    /// When something cannot be removed; call again.
    async fn destroy(&self, id: MachineId) -> Result<(), RuntimeError>;

    /// Kills what runs and keeps the disk aside, for people: the machine is gone from [`Runtime::list`].
    ///
    /// # Errors
    /// When the directory cannot be renamed.
    async fn quarantine(&self, id: MachineId) -> Result<(), RuntimeError>;

    /// Pauses every process; returns when none runs.
    ///
    /// # Errors
    /// When it is not up, or the kernel does not confirm in time.
    async fn freeze(&self, id: MachineId) -> Result<(), RuntimeError>;

    /// Undoes [`Runtime::freeze`]. A machine whose lease ran out stays paused.
    ///
    /// # Errors
    /// When it is not up.
    async fn thaw(&self, id: MachineId) -> Result<(), RuntimeError>;

    /// Gives the supervisor a later lease deadline (an earlier one is ignored); with `thaw` also ends the pause that an
    /// expired lease caused. Never undoes [`Runtime::freeze`].
    ///
    /// # Errors
    /// When it is not up or not exclusive.
    async fn renew(&self, id: MachineId, deadline: Duration, thaw: bool) -> Result<(), RuntimeError>;

    /// Takes the supervisor's lease deadline back to `deadline` (a later one is ignored): a planned absence has ended, and
    /// with it what went beyond the lease.
    ///
    /// # Errors
    /// When it is not up, not exclusive, or its supervisor is of a version that cannot: it keeps its deadline then.
    async fn shorten(&self, id: MachineId, deadline: Duration) -> Result<(), RuntimeError>;

    /// Kills the machine together with its supervisor, without asking it; spares one that is held while the kernel says that
    /// nothing of it runs. Does not wait for its end. Gives whether it was killed.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`].
    async fn fence(&self, id: MachineId) -> Result<bool, RuntimeError>;

    /// What it is doing, with its use of CPU and memory now.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`].
    async fn status(&self, id: MachineId) -> Result<MachineStatus, RuntimeError>;

    /// Runs a program beside the machine's own.
    ///
    /// # Errors
    /// When it is not running. A program that does not exist exits with 127.
    async fn exec(&self, id: MachineId, argv: &[String]) -> Result<ExecStream, RuntimeError>;

    /// Captured output, oldest first.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], or when the file cannot be read.
    async fn logs(&self, id: MachineId, query: LogQuery) -> Result<mpsc::Receiver<LogLine>, RuntimeError>;

    /// Connects to a TCP port on the machine's loopback address.
    ///
    /// # Errors
    /// [`RuntimeError::Connect`] when nothing listens there.
    async fn connect(&self, id: MachineId, port: u16) -> Result<Box<dyn Duplex>, RuntimeError>;

    /// The directory of the writable layer, for moves: complete only while the machine is frozen or down.
    fn writable_layer(&self, id: MachineId) -> PathBuf;

    /// Bytes that the machine's writable layer takes on the host's disk.
    ///
    /// # Errors
    /// When it cannot be read.
    async fn layer_bytes(&self, id: MachineId) -> Result<u64, RuntimeError> {
        let _ = id;
        Ok(0)
    }

    /// Changes whenever some machine changed; look at [`Runtime::list`] then.
    fn watch(&self) -> watch::Receiver<u64>;

    /// Removes what no machine needs: left-over control groups with the processes in them (and so their namespaces and
    /// mounts), directories of destroyed machines, quarantined disks older than `keep`. A bounded number of each in one
    /// call. Touches nothing without this node's prefix.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest was still tried.
    async fn sweep(&self, keep: Duration) -> Result<(), RuntimeError>;

    /// Why no machine can run here, with what to do about it; none when they can.
    fn unsupported(&self) -> Option<&str> {
        None
    }
}
