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
    members: Vec<Process>,
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
        let all = lab.hosts().iter().map(|host| format!("{}=http://{}:2380", host.name, host.address));
        let all = all.collect::<Vec<_>>().join(",");
        let mut etcd = Etcd { members: Vec::new(), lab, _directory: directory };
        for at in 0..count {
            let host = etcd.lab.host(at);
            let (peer, client) = (format!("http://{}:2380", host.address), format!("http://{}:2379", host.address));
            let mut command = etcd.lab.on(at, Path::new("etcd"));
            command.args(["--name", &host.name, "--initial-cluster", &all, "--initial-cluster-state", "new"]);
            command.arg("--data-dir").arg(&host.data_dir);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            etcd.members.push(Process::start(&mut command)?);
        }
        for at in 0..count {
            let url = format!("http://{}:2379/health", etcd.lab.host(at).address);
            until("etcd serves", || {
                let said = run(etcd.lab.on(at, Path::new("curl")).args(["-sS", "--max-time", "1", &url])).ok()?;
                said.contains("true").then_some(())
            });
        }
        Ok(etcd)
    }

    /// The members' process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().map(Process::id).collect()
    }
}
