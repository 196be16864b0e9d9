//! LXD: members of a cluster, each a daemon on a host with directory, mounts and network of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smartnode::lab::{Isolation, Lab};
use tempfile::TempDir;

use super::{Process, run, run_with};
use crate::nodes::{LOOK, ms_since, until};

/// As the table names it.
pub const NAME: &str = "LXD 5.0.2";
/// liblxc's own group, which it leaves behind.
const PIVOT: &str = "lxc.pivot";

/// A daemon that is told to end is killed after this.
const END: Duration = Duration::from_secs(10);

/// What its containers run: an init that ends when it is told to.
const INIT: &str = "#!/bin/sh\ntrap 'exit 0' PWR TERM\nwhile :; do sleep 1 & wait $!; done\n";

/// Members; ended and removed when dropped.
pub struct Lxd {
    daemons: Vec<Process>,
    lab: Lab,
    directory: TempDir,
    /// Groups of liblxc were here before.
    pivots: Vec<PathBuf>,
    name: String,
    created: bool,
}

fn pivots() -> Vec<PathBuf> {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    hierarchies.map(|entry| entry.path().join(PIVOT)).filter(|path| path.exists()).collect()
}

impl Lxd {
    /// Daemons that run, the first one the cluster.
    pub fn start(count: usize, tag: &str) -> Result<Self> {
        run(Command::new("lxd").arg("--version")).context("LXD is not installed")?;
        let directory = tempfile::Builder::new().prefix("snlxd").tempdir()?;
        let mut lab = Lab::new(tag, directory.path(), Path::new("lxd"), Isolation::Namespaces)?;
        for _ in 0..count {
            lab.add_host()?;
        }
        let name = format!("snbench{}", std::process::id());
        let mut lxd = Lxd { daemons: Vec::new(), lab, directory, pivots: pivots(), name, created: false };
        for at in 0..count {
            let mut command = lxd.on(at, "unshare");
            command.args(["--mount", "lxd", "--group", "root"]).stdout(Stdio::null()).stderr(Stdio::null());
            lxd.daemons.push(Process::start(&mut command)?);
        }
        for at in 0..count {
            until("LXD is up", || run(lxd.on(at, "lxd").args(["waitready", "--timeout", "10"])).ok());
        }
        let preseed = format!(
            "config:\n  core.https_address: {}:8443\nstorage_pools:\n- name: local\n  driver: dir\nprofiles:\n\
             - name: default\n  devices:\n    root: {{path: /, pool: local, type: disk}}\n\
             cluster:\n  server_name: n1\n  enabled: true\n",
            lxd.lab.host(0).address
        );
        run_with(lxd.on(0, "lxd").args(["init", "--preseed"]), &preseed)?;
        Ok(lxd)
    }

    fn on(&self, at: usize, program: &str) -> Command {
        let mut command = self.lab.on(at, Path::new(program));
        let directory = &self.lab.host(at).data_dir;
        command.env("LXD_DIR", directory).env("LXD_CONF", directory.join("client"));
        command
    }

    fn lxc(&self, words: &[&str]) -> Result<String> {
        run(self.on(0, "lxc").args(words))
    }

    /// Makes a daemon a member; gives the milliseconds until it is online.
    pub fn join(&mut self, at: usize) -> Result<f64> {
        let (name, address) = (self.lab.host(at).name.clone(), self.lab.host(at).address);
        let said = self.lxc(&["cluster", "add", &name])?;
        let token = said.lines().last().context("a token")?;
        let preseed = format!(
            "cluster:\n  enabled: true\n  server_address: {address}:8443\n  cluster_token: {token}\n  member_config: []\n"
        );
        let begun = Instant::now();
        run_with(self.on(at, "lxd").args(["init", "--preseed"]), &preseed)?;
        let took = ms_since(begun);
        let online =
            |list: &str| list.lines().any(|line| line.starts_with(&format!("{name},")) && line.contains(",ONLINE,"));
        // What the question costs is not held against it.
        if online(&self.lxc(&["cluster", "list", "-f", "csv"])?) {
            return Ok(took);
        }
        until("the member is online", || self.lxc(&["cluster", "list", "-f", "csv"]).ok().filter(|list| online(list)));
        Ok(ms_since(begun))
    }

    /// Makes and starts a container of busybox on the first member.
    pub fn container(&mut self) -> Result<()> {
        let image = self.directory.path().join("image");
        let root = image.join("rootfs");
        for directory in ["bin", "sbin", "dev", "proc", "sys", "tmp", "etc", "root"] {
            std::fs::create_dir_all(root.join(directory))?;
        }
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        std::fs::copy(busybox.context("busybox-static is not installed")?, root.join("bin/busybox"))?;
        for name in ["sh", "sleep", "dd", "true"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
        }
        let init = root.join("sbin/init");
        std::fs::write(&init, INIT)?;
        run(Command::new("chmod").arg("+x").arg(&init))?;
        std::fs::write(
            image.join("metadata.yaml"),
            "architecture: x86_64\ncreation_date: 1\nproperties: {os: busybox}\n",
        )?;
        let tar = self.directory.path().join("image.tar");
        run(Command::new("tar").arg("-C").arg(&image).arg("-cf").arg(&tar).args(["metadata.yaml", "rootfs"]))?;
        self.lxc(&["image", "import", &tar.display().to_string(), "--alias", "bench"])?;
        self.created = true;
        self.lxc(&["launch", "bench", &self.name, "--target", "n1"])?;
        self.exec(&["/bin/true"])
    }

    /// Runs a program in the container.
    pub fn exec(&self, argv: &[&str]) -> Result<()> {
        self.lxc(&[&["exec", &self.name, "--"][..], argv].concat()).map(drop)
    }

    /// Stop, move, start, and an answer from inside.
    pub fn relocate(&self, to: usize) -> Result<()> {
        self.lxc(&["stop", &self.name, "--force"])?;
        self.lxc(&["move", &self.name, "--target", &self.lab.host(to).name])?;
        self.lxc(&["start", &self.name])?;
        self.exec(&["/bin/true"])
    }
}

/// Waits of a clean-up go on when the user has ended the rest.
fn until_next_look() {
    std::thread::sleep(LOOK);
}

impl Drop for Lxd {
    fn drop(&mut self) {
        if self.created {
            let _ = self.lxc(&["delete", "--force", &self.name]);
        }
        for daemon in &self.daemons {
            let _ = kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM);
        }
        let deadline = Instant::now() + END;
        while self.daemons.iter_mut().any(|daemon| !daemon.has_ended()) && Instant::now() < deadline {
            until_next_look();
        }
        self.daemons.clear();
        for pivot in pivots().iter().filter(|path| !self.pivots.contains(path)) {
            let _ = std::fs::remove_dir(pivot);
        }
    }
}
