//! Control groups: what a machine may use, freezing it, and counting what it used.
//!
//! One group per machine, `smartnode-<NodeId, short>/<machine id>`; groups without that prefix are never touched. Version 1
//! and 2 differ in files and in one promise: only version 2 has a memory floor that the kernel keeps.
#![expect(clippy::disallowed_methods, reason = "control group files are the kernel and not the data directory")]

mod v1;
mod v2;

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use fabric::model::Resources;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a machine has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, microseconds.
    pub cpu_micros: u64,
    /// Memory now, bytes.
    pub memory_bytes: u64,
}

/// The control group of one machine.
pub trait Group: Debug + Send + Sync {
    /// Makes the group and sets its limits.
    ///
    /// # Errors
    /// Names the file that was refused.
    fn create(&self, limits: &Resources) -> io::Result<()>;
    /// The files by which a process with one thread joins: it writes `0`.
    ///
    /// Joining by oneself and alone matters: the kernel then skips a lock whose first taker waits for every processor
    /// (16 ms where this was measured, against 0.3 ms).
    fn join_files(&self) -> Vec<PathBuf>;
    /// The directory in which a process can be born by `clone3`; none where it has to join afterwards.
    fn birthplace(&self) -> Option<File>;
    /// Asks for the freeze or its end.
    ///
    /// # Errors
    /// When there is no such group.
    fn set_frozen(&self, frozen: bool) -> io::Result<()>;
    /// Whether the kernel says that nothing in it runs, after a freeze was asked for; asks again if not.
    ///
    /// # Errors
    /// When there is no such group.
    fn is_frozen(&self) -> io::Result<bool>;
    /// Pids in the group.
    fn processes(&self) -> Vec<u32>;
    /// Use so far; zero when there is no group.
    fn usage(&self) -> Usage;
    /// How often the kernel killed in it for want of memory.
    fn oom_kills(&self) -> u64;
    /// Removes the group if there is one.
    ///
    /// # Errors
    /// When processes are left in it.
    fn remove(&self) -> io::Result<()>;

    /// Moves the calling process into the group; it has one thread.
    ///
    /// # Errors
    /// Names the file that was refused.
    fn join(&self) -> io::Result<()> {
        self.join_files().iter().try_for_each(|file| write(file, "0"))
    }

    /// Sends SIGKILL to everything in it, and lets frozen processes die of it.
    ///
    /// Every process has its signal before any may run again, so that none executes another instruction.
    fn kill(&self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid.try_into().unwrap_or(i32::MAX)), Signal::SIGKILL);
        }
        let _ = self.set_frozen(false);
    }
}

/// Which version this host has, and where.
#[derive(Debug, Clone)]
pub enum Host {
    /// Separate hierarchies.
    V1(v1::Mounts),
    /// One hierarchy. Untested until a guest with version 2 has run it.
    V2(PathBuf),
}

impl Host {
    /// Looks at the mounts of this process.
    ///
    /// # Errors
    /// Says which controllers are missing.
    pub fn detect() -> Result<Self, String> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| format!("no /proc: {error}"))?;
        if let Some(mount) = v2::mount(&mounts) {
            return Ok(Host::V2(mount));
        }
        v1::Mounts::find(&mounts).map(Host::V1)
    }

    /// The group of a machine; it need not exist.
    pub fn group(&self, prefix: &str, name: &str) -> Box<dyn Group> {
        match self {
            Host::V1(mounts) => Box::new(mounts.group(prefix, name)),
            Host::V2(mount) => Box::new(v2::group(mount, prefix, name)),
        }
    }

    /// Names of the groups below `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let roots = match self {
            Host::V1(mounts) => mounts.all(),
            Host::V2(mount) => vec![mount.clone()],
        };
        let mut names: Vec<String> = roots
            .iter()
            .filter_map(|root| std::fs::read_dir(root.join(prefix)).ok())
            .flat_map(|entries| entries.flatten())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// What a memory guarantee is worth here.
    pub fn memory_floor(&self) -> &'static str {
        match self {
            Host::V1(_) => "best-effort",
            Host::V2(_) => "guaranteed",
        }
    }

    /// For people.
    pub fn describe(&self) -> &'static str {
        match self {
            Host::V1(_) => "version 1",
            Host::V2(_) => "version 2 (untested until a version 2 guest has run it)",
        }
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Writes a control file and names it in the error.
fn write(path: &Path, value: impl AsRef<[u8]>) -> io::Result<()> {
    std::fs::write(path, value).map_err(|error| named(path, &error))
}

fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after `key` in a file of `key value` lines.
fn read_field(path: &Path, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.split_once(' ').filter(|(k, _)| *k == key)?.1.trim().parse().ok())
}

fn read_pids(path: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
}

/// Makes `directory` and its parent. Another supervisor may remove the empty parent in between, so it is tried again.
fn make(directory: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for _ in 0..8 {
        result = std::fs::create_dir_all(directory).map_err(|error| named(directory, &error));
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Removes `directory`, and its parent if that is empty now.
fn unmake(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(directory, &error)),
        _ => {}
    }
    if let Some(parent) = directory.parent() {
        let _ = std::fs::remove_dir(parent);
    }
    Ok(())
}
