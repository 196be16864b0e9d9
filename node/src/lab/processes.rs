//! Finds and ends what a lab's nodes started: supervisors by their data directory, machines by their control groups.
#![expect(clippy::disallowed_methods, reason = "reads /proc, and waits for the kernel to let go")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use fabric::identity::NodeKey;
use fabric::seams::real;
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

use crate::runtime::cgroup::{Group, Host};

/// What was killed is gone within this time, or stays: a kernel that takes longer is stuck.
const GONE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Process ids of the supervisors whose machines live under this directory: a data directory or a machine's own.
pub fn supervisors_of(data_dir: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let is_supervisor = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        words.iter().any(|word| word.contains("supervis"))
            && words.iter().any(|word| Path::new(&**word).starts_with(data_dir))
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(is_supervisor).collect()
}

/// SIGKILL.
pub fn kill(pid: i32) {
    let _ = send(Pid::from_raw(pid), Signal::SIGKILL);
}

/// SIGKILL for all of them before any can act on the death of another.
pub fn kill_together(pids: &[i32]) {
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in pids {
            let _ = send(Pid::from_raw(*pid), signal);
        }
    }
}

/// The control groups of the machines of the node with this data directory.
fn groups_of(data_dir: &Path) -> Vec<Box<dyn Group>> {
    let key = fs::exists(data_dir).ok().filter(|there| *there).and_then(|_| {
        let seams = real::seams(data_dir).ok()?;
        NodeKey::load(&*seams.disk).ok().flatten()
    });
    let (Some(key), Ok(host)) = (key, Host::detect()) else { return Vec::new() };
    let prefix = format!("smartnode-{}", key.id().short());
    host.names(&prefix).iter().map(|name| host.group(&prefix, name)).collect()
}

/// SIGKILL for every process of the node's machines. Their groups stay, as after a power loss without a reboot.
pub fn kill_machines(data_dir: &Path) {
    for group in groups_of(data_dir) {
        group.kill();
    }
}

/// Kills supervisors and machines that still run, waits until they are gone, removes their control groups and unmounts
/// what lies under the data directory.
pub fn remove_leftovers(data_dir: &Path) {
    let deadline = Instant::now() + GONE;
    loop {
        supervisors_of(data_dir).into_iter().for_each(kill);
        let groups = groups_of(data_dir);
        let left = groups.iter().filter(|group| {
            group.kill();
            group.remove().is_err()
        });
        if (left.count() == 0 && supervisors_of(data_dir).is_empty()) || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mine = format!("{}/", data_dir.display());
    for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if mount.starts_with(&mine) {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
