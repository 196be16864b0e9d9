//! Whether this host can run machines, and what is missing if not: for `doctor`, `status` and the start of a node.
#![expect(
    clippy::disallowed_methods,
    reason = "looks at the kernel, and tries the file system in a process of its own"
)]

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::cgroup::Host;
use super::supervisor::ARGV0_PROBE;

/// One thing that machines need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is needed.
    pub what: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do when it is missing.
    pub fix: &'static str,
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// In the order in which to mend.
    pub checks: Vec<Check>,
}

impl Preflight {
    /// Whether machines can run here.
    pub fn ok(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    /// What is missing, in one line; none when nothing is.
    pub fn missing(&self) -> Option<String> {
        let missing: Vec<String> = self
            .checks
            .iter()
            .filter(|check| !check.ok)
            .map(|check| format!("{} ({}): {}", check.what, check.found, check.fix))
            .collect();
        if missing.is_empty() { None } else { Some(missing.join("; ")) }
    }
}

const SYS_ADMIN: u32 = 21;

fn effective_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn kernel() -> (u32, u32, String) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.trim().split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), release.trim().to_owned())
}

/// Looks, and tries in `data` what machines need of its file system; `exe` is this program. Leaves nothing there.
pub fn preflight_in(data: &Path, exe: &Path) -> Preflight {
    let mut found = preflight();
    if found.ok() {
        let tried = try_in(data, exe);
        found.checks.push(Check {
            what: "a file system for machines' disks",
            ok: tried.is_ok(),
            found: format!("{}: {}", data.display(), tried.err().unwrap_or_else(|| "good".into())),
            fix: "use a --data-dir on ext4, xfs or btrfs",
        });
    }
    found
}

fn try_in(data: &Path, exe: &Path) -> Result<(), String> {
    let mut command = Command::new(exe);
    command.arg0(ARGV0_PROBE).arg(data).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.output().map_err(|error| format!("cannot be tried: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// Looks; changes nothing.
pub fn preflight() -> Preflight {
    let root = nix::unistd::geteuid().is_root();
    let admin = effective_capabilities() & (1 << SYS_ADMIN) != 0;
    let (major, minor, release) = kernel();
    let namespaces = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
    let namespaces: u64 = namespaces.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let overlay = filesystems.split_whitespace().any(|name| name == "overlay");
    let groups = Host::detect();
    let check = |what, ok, found: String, fix| Check { what, ok, found, fix };
    Preflight {
        checks: vec![
            check(
                "root with CAP_SYS_ADMIN",
                root && admin,
                format!("uid {}{}", nix::unistd::geteuid(), if admin { "" } else { ", no CAP_SYS_ADMIN" }),
                "run the node as root",
            ),
            check("Linux 5.19 (overlay on idmapped mounts)", (major, minor) >= (5, 19), release, "use a later kernel"),
            check(
                "user namespaces",
                namespaces > 0,
                format!("{namespaces} allowed"),
                "sysctl user.max_user_namespaces=15000",
            ),
            check("overlayfs", overlay, if overlay { "there" } else { "absent" }.into(), "modprobe overlay"),
            check(
                "control groups",
                groups.is_ok(),
                groups.as_ref().map_or_else(Clone::clone, |host| host.describe().to_owned()),
                "mount cgroup2 with cpu, memory and pids, or version 1 with freezer too",
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let check = |ok| Check { what: "a thing", ok, found: "absent".into(), fix: "get it" };
        assert_eq!(Preflight { checks: vec![check(true)] }.missing(), None);
        let report = Preflight { checks: vec![check(true), check(false)] };
        assert!(!report.ok());
        assert_eq!(report.missing().unwrap(), "a thing (absent): get it");
    }
}
