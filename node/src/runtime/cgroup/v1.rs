//! Control groups, version 1: a hierarchy per controller.
#![expect(clippy::disallowed_methods, reason = "control group files are the kernel and not the data directory")]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use fabric::model::Resources;

use super::{Group, Usage, make, read_field, read_number, read_pids, unmake, write};

/// Where the controllers are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounts {
    cpu: PathBuf,
    cpuacct: PathBuf,
    memory: PathBuf,
    pids: PathBuf,
    freezer: PathBuf,
}

impl Mounts {
    /// Finds them in the text of `/proc/self/mountinfo`.
    pub(super) fn find(mountinfo: &str) -> Result<Self, String> {
        let mut missing = vec![];
        let mut find = |controller: &'static str| {
            let found = mountinfo.lines().find_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                let mut right = right.split(' ');
                let options = (right.next()? == "cgroup").then(|| right.nth(1))??;
                let mount = left.split(' ').nth(4)?;
                options.split(',').any(|option| option == controller).then(|| PathBuf::from(mount))
            });
            found.unwrap_or_else(|| {
                missing.push(controller);
                PathBuf::new()
            })
        };
        let mounts = Mounts {
            cpu: find("cpu"),
            cpuacct: find("cpuacct"),
            memory: find("memory"),
            pids: find("pids"),
            freezer: find("freezer"),
        };
        if missing.is_empty() { Ok(mounts) } else { Err(format!("no control group for {}", missing.join(", "))) }
    }

    /// Every mount once: controllers may share one.
    pub(super) fn all(&self) -> Vec<PathBuf> {
        let mut all =
            vec![self.cpu.clone(), self.cpuacct.clone(), self.memory.clone(), self.pids.clone(), self.freezer.clone()];
        all.sort();
        all.dedup();
        all
    }

    pub(super) fn group(&self, prefix: &str, name: &str) -> V1 {
        let below = |mount: &Path| mount.join(prefix).join(name);
        V1 {
            dirs: self.all().iter().map(|mount| below(mount)).collect(),
            cpu: below(&self.cpu),
            cpuacct: below(&self.cpuacct),
            memory: below(&self.memory),
            pids: below(&self.pids),
            freezer: below(&self.freezer),
        }
    }
}

/// The groups of one machine.
#[derive(Debug)]
pub(super) struct V1 {
    dirs: Vec<PathBuf>,
    cpu: PathBuf,
    cpuacct: PathBuf,
    memory: PathBuf,
    pids: PathBuf,
    freezer: PathBuf,
}

const PERIOD_MICROS: u64 = 100_000;

impl Group for V1 {
    fn create(&self, limits: &Resources) -> io::Result<()> {
        self.dirs.iter().try_for_each(|dir| make(dir))?;
        let shares = (u64::from(limits.cpu_millis) * 1024 / 1000).max(2);
        write(&self.cpu.join("cpu.shares"), shares.to_string())?;
        if let Some(cap) = limits.burst_cpu_millis {
            let quota = (u64::from(cap) * PERIOD_MICROS / 1000).max(1000);
            write(&self.cpu.join("cpu.cfs_period_us"), PERIOD_MICROS.to_string())?;
            write(&self.cpu.join("cpu.cfs_quota_us"), quota.to_string())?;
        }
        write(&self.memory.join("memory.soft_limit_in_bytes"), limits.memory_bytes.to_string())?;
        if let Some(cap) = limits.burst_memory_bytes {
            write(&self.memory.join("memory.limit_in_bytes"), cap.to_string())?;
            // Absent where swap is not accounted.
            let _ = write(&self.memory.join("memory.memsw.limit_in_bytes"), cap.to_string());
        }
        write(&self.pids.join("pids.max"), limits.pids_max.to_string())
    }

    fn join_files(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.join("tasks")).collect()
    }

    fn birthplace(&self) -> Option<File> {
        None
    }

    fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        write(&self.freezer.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" })
    }

    fn is_frozen(&self) -> io::Result<bool> {
        // FREEZING becomes FROZEN when it is read and the last process has stopped.
        let frozen = std::fs::read_to_string(self.freezer.join("freezer.state"))?.trim() == "FROZEN";
        if !frozen {
            // One that was just being forked may have missed it: asking again reaches it.
            self.set_frozen(true)?;
        }
        Ok(frozen)
    }

    fn processes(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.dirs.iter().flat_map(|dir| read_pids(&dir.join("cgroup.procs"))).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    fn usage(&self) -> Usage {
        Usage {
            cpu_micros: read_number(&self.cpuacct.join("cpuacct.usage")).unwrap_or(0) / 1000,
            memory_bytes: read_number(&self.memory.join("memory.usage_in_bytes")).unwrap_or(0),
        }
    }

    fn oom_kills(&self) -> u64 {
        read_field(&self.memory.join("memory.oom_control"), "oom_kill").unwrap_or(0)
    }

    fn remove(&self) -> io::Result<()> {
        self.dirs.iter().try_for_each(|dir| unmake(dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_controllers() {
        let line =
            |mount: &str, options: &str| format!("30 24 0:27 / {mount} rw,relatime - cgroup cgroup rw,{options}\n");
        let mut text = "29 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n".to_owned();
        text += &line("/cg/cpu,cpuacct", "cpu,cpuacct");
        text += &line("/cg/memory", "memory");
        text += &line("/cg/pids", "pids");
        assert_eq!(Mounts::find(&text), Err("no control group for freezer".to_owned()));
        text += &line("/cg/freezer", "freezer");
        let mounts = Mounts::find(&text).unwrap();
        assert_eq!(mounts.cpuacct, Path::new("/cg/cpu,cpuacct"));
        assert_eq!(mounts.all().len(), 4);
        assert_eq!(mounts.group("p", "m").memory, Path::new("/cg/memory/p/m"));
    }
}
