//! podman and runc: one host's containers, with no fabric around them.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{Process, run};
use crate::nodes::{ms_since, until};

/// As the table names it.
pub const NAME: &str = "podman 4.3.1";

/// podman with stores of its own; all of it is removed when dropped.
pub struct Podman {
    directory: TempDir,
    runtime: String,
    /// Holds a mount namespace without the unified cgroup hierarchy: crun 1.8 refuses a host that has both.
    mounts: Process,
}

/// Busybox as a root directory.
fn rootfs(at: &Path) -> Result<()> {
    for directory in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
        std::fs::create_dir_all(at.join(directory))?;
    }
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    std::fs::copy(busybox.context("busybox-static is not installed")?, at.join("bin/busybox"))?;
    for name in ["sh", "sleep", "true"] {
        std::os::unix::fs::symlink("busybox", at.join("bin").join(name))?;
    }
    Ok(())
}

/// Files that a process may open, at most: not more can be given to a container where root may not raise limits.
fn open_files_max() -> Result<u64> {
    Ok(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.1)
}

impl Podman {
    /// With an image of busybox, run by this runtime.
    pub fn new(runtime: &str) -> Result<Self> {
        run(Command::new(runtime).arg("--version")).with_context(|| format!("{runtime} is not installed"))?;
        let directory = tempfile::Builder::new().prefix("snpodman").tempdir()?;
        let script = "umount /sys/fs/cgroup/unified 2>/dev/null; echo; exec sleep infinity";
        let mounts = Process::start(Command::new("unshare").args(["--mount", "sh", "-c", script]))?;
        let podman = Podman { directory, runtime: runtime.to_owned(), mounts };
        let comm = format!("/proc/{}/comm", podman.mounts.id());
        until("the mount namespace", || (std::fs::read_to_string(&comm).ok()?.trim() == "sleep").then_some(()));
        let root = podman.directory.path().join("busybox");
        rootfs(&root)?;
        let tar = podman.directory.path().join("busybox.tar");
        run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg("."))?;
        run(podman.command().arg("import").arg(&tar).arg("bench"))?;
        Ok(podman)
    }

    fn command(&self) -> Command {
        let path = |name: &str| self.directory.path().join(name);
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.mounts.id())).arg("podman");
        command.arg("--root").arg(path("root")).arg("--runroot").arg(path("run")).arg("--tmpdir").arg(path("tmp"));
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", &self.runtime]);
        command
    }

    /// Milliseconds of a `podman run -d` until its process runs.
    pub fn run(&self) -> Result<f64> {
        let files = open_files_max()?;
        let limit = format!("nofile={files}:{files}");
        let mut command = self.command();
        command.args(["run", "-d", "--network", "host", "--ulimit", &limit, "--ulimit", "nproc=1024:1024"]);
        command.args(["bench", "/bin/sleep", "1000"]);
        let begun = Instant::now();
        let id = run(&mut command)?;
        let took = ms_since(begun);
        run(self.command().args(["rm", "--force", "--time", "0", id.trim()]))?;
        Ok(took)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = run(self.command().args(["rm", "--all", "--force", "--time", "0"]));
        let _ = run(self.command().args(["rmi", "--all", "--force"]));
        let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", self.mounts.id())).unwrap_or_default();
        let own = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mine = format!("{}/", self.directory.path().display());
        // The store mounts itself, here and there.
        for mount in mounts.lines().chain(own.lines()).filter_map(|line| line.split(' ').nth(1)) {
            if mount.starts_with(&mine) {
                let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

/// Milliseconds of each `runc run -d` on an unpacked image.
pub fn runc(runs: usize) -> Result<Vec<f64>> {
    let directory = tempfile::Builder::new().prefix("snrunc").tempdir()?;
    let (bundle, state) = (directory.path().join("bundle"), directory.path().join("state"));
    rootfs(&bundle.join("rootfs"))?;
    let runc = || {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&state);
        command
    };
    run(runc().arg("spec").arg("--bundle").arg(&bundle)).context("runc is not installed")?;
    let config = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&config)?)?;
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/bin/sleep", "1000"]);
    spec["process"]["rlimits"] = serde_json::json!([]);
    std::fs::write(&config, spec.to_string())?;
    let mut samples = Vec::new();
    for number in 0..runs {
        let name = format!("snbench{}-{number}", std::process::id());
        let mut command = runc();
        command.args(["run", "--detach", "--bundle"]).arg(&bundle).arg(&name);
        // The container keeps what it is given open: a pipe would never end.
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let begun = Instant::now();
        let status = command.status()?;
        samples.push(ms_since(begun));
        run(runc().args(["delete", "--force", &name]))?;
        anyhow::ensure!(status.success(), "runc run: {status}");
    }
    Ok(samples)
}
