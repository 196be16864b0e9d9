//! Finds and ends what a lab's nodes started: supervisors by their data directory, and what they left behind.
#![expect(clippy::disallowed_methods, reason = "reads /proc")]

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

/// Process ids of the supervisors whose machines live under this data directory.
pub fn supervisors_of(data_dir: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mine = data_dir.to_string_lossy().into_owned();
    let is_supervisor = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        words.iter().any(|word| word.contains("supervis")) && words.iter().any(|word| word.starts_with(&mine))
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(is_supervisor).collect()
}

/// SIGKILL.
pub fn kill(pid: i32) {
    let _ = send(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Kills the supervisors that still run and unmounts what lies under the data directory.
pub fn remove_leftovers(data_dir: &Path) {
    for pid in supervisors_of(data_dir) {
        kill(pid);
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mine = data_dir.to_string_lossy();
    for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if mount.starts_with(&*mine) {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
