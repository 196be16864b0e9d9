//! Control groups, version 2: one hierarchy. Untested until a guest with version 2 has run it.
#![expect(clippy::disallowed_methods, reason = "control group files are the kernel and not the data directory")]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use fabric::model::Resources;

use super::{Group, Usage, make, read_field, read_number, read_pids, unmake, write};

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The mount of the hierarchy, if it has the controllers that machines need.
pub(super) fn mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mount = (right.split(' ').next()? == "cgroup2").then(|| left.split(' ').nth(4))??;
        let controllers = std::fs::read_to_string(Path::new(mount).join("cgroup.controllers")).ok()?;
        let has = |wanted: &&str| controllers.split_whitespace().any(|have| have == *wanted);
        CONTROLLERS.iter().all(has).then(|| PathBuf::from(mount))
    })
}

pub(super) fn group(mount: &Path, prefix: &str, name: &str) -> V2 {
    V2 { mount: mount.to_owned(), parent: mount.join(prefix), dir: mount.join(prefix).join(name) }
}

/// The group of one machine.
#[derive(Debug)]
pub(super) struct V2 {
    mount: PathBuf,
    parent: PathBuf,
    dir: PathBuf,
}

const PERIOD_MICROS: u64 = 100_000;

/// Lends the controllers to the children of `group`. On the mount itself only what is missing is added.
fn delegate(group: &Path) -> io::Result<()> {
    let file = group.join("cgroup.subtree_control");
    let have = std::fs::read_to_string(&file).unwrap_or_default();
    let missing: Vec<String> = CONTROLLERS
        .iter()
        .filter(|wanted| !have.split_whitespace().any(|have| have == **wanted))
        .map(|wanted| format!("+{wanted}"))
        .collect();
    if missing.is_empty() { Ok(()) } else { write(&file, missing.join(" ")) }
}

/// `cpu.weight` (1 to 10,000, 100 is usual) for what version 1 calls shares (1024 per core).
fn weight(cpu_millis: u32) -> u64 {
    (u64::from(cpu_millis) / 10).clamp(1, 10_000)
}

impl Group for V2 {
    fn create(&self, limits: &Resources) -> io::Result<()> {
        delegate(&self.mount)?;
        make(&self.parent)?;
        delegate(&self.parent)?;
        // A floor holds only as far as every group above it has one.
        write(&self.parent.join("memory.min"), "max")?;
        make(&self.dir)?;
        write(&self.dir.join("cpu.weight"), weight(limits.cpu_millis).to_string())?;
        if let Some(cap) = limits.burst_cpu_millis {
            let quota = (u64::from(cap) * PERIOD_MICROS / 1000).max(1000);
            write(&self.dir.join("cpu.max"), format!("{quota} {PERIOD_MICROS}"))?;
        }
        write(&self.dir.join("memory.min"), limits.memory_bytes.to_string())?;
        if let Some(cap) = limits.burst_memory_bytes {
            write(&self.dir.join("memory.max"), cap.to_string())?;
            // Absent where swap is not accounted.
            let _ = write(&self.dir.join("memory.swap.max"), "0");
        }
        write(&self.dir.join("pids.max"), limits.pids_max.to_string())
    }

    fn join_files(&self) -> Vec<PathBuf> {
        vec![self.dir.join("cgroup.procs")]
    }

    fn birthplace(&self) -> Option<File> {
        File::open(&self.dir).ok()
    }

    fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        write(&self.dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    fn is_frozen(&self) -> io::Result<bool> {
        let events = self.dir.join("cgroup.events");
        read_field(&events, "frozen").map(|frozen| frozen == 1).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn processes(&self) -> Vec<u32> {
        read_pids(&self.dir.join("cgroup.procs"))
    }

    fn usage(&self) -> Usage {
        Usage {
            cpu_micros: read_field(&self.dir.join("cpu.stat"), "usage_usec").unwrap_or(0),
            memory_bytes: read_number(&self.dir.join("memory.current")).unwrap_or(0),
        }
    }

    fn oom_kills(&self) -> u64 {
        read_field(&self.dir.join("memory.events"), "oom_kill").unwrap_or(0)
    }

    fn remove(&self) -> io::Result<()> {
        unmake(&self.dir)
    }

    fn kill(&self) {
        // Frozen processes die of it too.
        let _ = write(&self.dir.join("cgroup.kill"), "1");
        let _ = self.set_frozen(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_proportions_within_the_kernels_range() {
        assert_eq!((weight(1), weight(1000), weight(4000), weight(1_024_000)), (1, 100, 400, 10_000));
    }
}
