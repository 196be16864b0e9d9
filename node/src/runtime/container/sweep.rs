//! Removing: machines that are destroyed, disks kept aside for long enough, control groups without a machine.
#![expect(clippy::disallowed_methods, reason = "machines' directories hold mounts and sockets: no seam fits them")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fabric::ids::MachineId;

use super::entry::Shared;
use super::io_error;
use crate::runtime::RuntimeError;
use crate::runtime::limits::SWEEP_MAX;

/// Directories below `machines/` that are being removed begin so; no machine id does.
const GONE: &str = ".gone-";

fn unix_now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Renames; true unless there was nothing.
fn rename(from: &Path, to: &Path) -> Result<bool, RuntimeError> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error(format!("rename {}", from.display()))(error)),
    }
}

/// Removes a directory without holding up other tasks.
pub async fn remove_tree(dir: PathBuf) -> Result<(), RuntimeError> {
    let name = dir.display().to_string();
    let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(dir)).await;
    match removed.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(format!("remove {name}"))(error)),
        _ => Ok(()),
    }
}

impl Shared {
    /// Takes a machine's directory out of the listing, so that a removal that is cut short is no half a machine.
    pub fn set_aside(&self, id: MachineId) -> Result<Option<PathBuf>, RuntimeError> {
        let gone = self.machines().join(format!("{GONE}{id}-{}", unix_now().as_nanos()));
        Ok(rename(&self.dir(id), &gone)?.then_some(gone))
    }

    /// Moves a machine's directory to where people find it.
    pub fn keep_aside(&self, id: MachineId) -> Result<(), RuntimeError> {
        let epoch = self.epoch(id).unwrap_or(0);
        let base = format!("{id}-{epoch}-{}", unix_now().as_secs());
        let mut to = self.quarantine().join(&base);
        let mut again = 1;
        while to.exists() {
            to = self.quarantine().join(format!("{base}.{again}"));
            again += 1;
        }
        rename(&self.dir(id), &to).map(drop)
    }

    /// See `Runtime::sweep`.
    pub async fn sweep(&self, keep: Duration) -> Result<(), RuntimeError> {
        let mut first = Ok(());
        let mut note = |what: &str, name: String, result: Result<(), RuntimeError>| match result {
            Ok(()) => tracing::info!(%name, "removed {what}"),
            Err(error) if first.is_ok() => first = Err(error),
            Err(_) => {}
        };
        let oldest = unix_now().saturating_sub(keep).as_secs();
        let gone = below(&self.machines(), |name| name.starts_with(GONE));
        let old = below(&self.quarantine(), |name| kept_since(name).is_some_and(|since| since < oldest));
        let gone = gone.into_iter().map(|dir| ("what was left of a destroyed machine", dir));
        let old = old.into_iter().map(|dir| ("a disk that was kept aside long enough", dir));
        for (what, dir) in gone.chain(old).take(SWEEP_MAX) {
            note(what, dir.display().to_string(), remove_tree(dir).await);
        }
        for name in self.host.names(&self.prefix) {
            // Looked up each time: one may have been started meanwhile.
            if !self.up().contains(&name) {
                let buried = self.bury_group(&name).await;
                note("the control group of no machine, with what ran in it", name, buried);
            }
        }
        first
    }
}

fn below(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted)).map(|entry| entry.path()).collect()
}

/// When a disk was kept aside, Unix seconds, from its name `<id>-<epoch>-<seconds>[.n]`.
fn kept_since(name: &str) -> Option<u64> {
    name.rsplit('-').next()?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_since_when() {
        let id = MachineId([1; 16]);
        assert_eq!(kept_since(&format!("{id}-3-1700000000")), Some(1_700_000_000));
        assert_eq!(kept_since(&format!("{id}-3-1700000000.1")), Some(1_700_000_000));
        assert_eq!(kept_since("notes"), None);
    }
}
