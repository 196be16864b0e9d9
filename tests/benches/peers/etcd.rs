//! etcd: a ledger alone. Its members stand on hosts as smartnode's nodes do, each with a data directory of its own.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use smartnode::lab::{Isolation, Lab};
use tempfile::TempDir;

use super::{Process, run};
use crate::nodes::until;

/// As the table names it.
pub const NAME: &str = "etcd 3.4.23";

/// Members; ended and their hosts removed when dropped.
pub struct Etcd {
    members: Vec<Option<Process>>,
    /// The hosts: clients on 2379 of each.
    pub lab: Lab,
    _directory: TempDir,
}

impl Etcd {
    /// Members that all serve.
    pub fn of(count: usize, tag: &str) -> Result<Self> {
        run(Command::new("etcd").arg("--version")).context("etcd is not installed")?;
        let directory = tempfile::Builder::new().prefix("snetcd").tempdir()?;
        let mut lab = Lab::new(tag, directory.path(), Path::new("etcd"), Isolation::Namespaces)?;
        for _ in 0..count {
            lab.add_host()?;
        }
        let mut etcd = Etcd { members: (0..count).map(|_| None).collect(), lab, _directory: directory };
        for at in 0..count {
            etcd.start(at)?;
        }
        for at in 0..count {
            etcd.until_serves(at);
        }
        Ok(etcd)
    }

    /// Starts a member, anew or on the data that it has.
    pub fn start(&mut self, at: usize) -> Result<()> {
        let all = self.lab.hosts().iter().map(|host| format!("{}=http://{}:2380", host.name, host.address));
        let all = all.collect::<Vec<_>>().join(",");
        let host = self.lab.host(at);
        let (peer, client) = (format!("http://{}:2380", host.address), format!("http://{}:2379", host.address));
        let mut command = self.lab.on(at, Path::new("etcd"));
        command.args(["--name", &host.name, "--initial-cluster", &all, "--initial-cluster-state", "new"]);
        command.arg("--data-dir").arg(&host.data_dir);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.members[at] = Some(Process::start(&mut command)?);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self, at: usize) {
        self.members[at] = None;
    }

    /// Waits until a member answers, which it does when there is a leader.
    pub fn until_serves(&self, at: usize) {
        let url = format!("http://{}:2379/health", self.lab.host(at).address);
        until("etcd serves", || {
            let said = run(self.lab.on(at, Path::new("curl")).args(["-sS", "--max-time", "1", &url])).ok()?;
            said.contains("true").then_some(())
        });
    }

    /// The members' process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().flatten().map(Process::id).collect()
    }
}
