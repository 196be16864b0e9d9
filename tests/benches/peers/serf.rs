//! serf: gossip membership alone. Its agents stand on hosts as smartnode's nodes do.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use smartnode::lab::{Isolation, Lab};
use tempfile::TempDir;

use super::{Process, run};
use crate::nodes::until;

/// As the table names it.
pub const NAME: &str = "serf 0.9.4";

/// Agents; ended and their hosts removed when dropped.
pub struct Serf {
    agents: Vec<Option<Process>>,
    lab: Lab,
    directory: TempDir,
}

impl Serf {
    /// Hosts without agents.
    pub fn hosts(count: usize, tag: &str) -> Result<Self> {
        run(Command::new("serf").arg("version")).context("serf is not installed")?;
        let directory = tempfile::Builder::new().prefix("snserf").tempdir()?;
        let mut lab = Lab::new(tag, directory.path(), Path::new("serf"), Isolation::Namespaces)?;
        for _ in 0..count {
            lab.add_host()?;
        }
        Ok(Serf { agents: (0..count).map(|_| None).collect(), lab, directory })
    }

    /// Agents that all know each other.
    pub fn of(count: usize, tag: &str) -> Result<Self> {
        let mut serf = Serf::hosts(count, tag)?;
        for at in 0..count {
            serf.agent(at)?;
            serf.until_count(0, at + 1)?;
        }
        for at in 0..count {
            serf.until_count(at, count)?;
        }
        Ok(serf)
    }

    /// Starts an agent that joins the first one.
    pub fn agent(&mut self, at: usize) -> Result<()> {
        let host = self.lab.host(at);
        let log = File::options().create(true).append(true).open(self.directory.path().join(format!("{at}.serf")))?;
        let mut command = self.lab.on(at, Path::new("serf"));
        command.args(["agent", "-profile", "lan", "-node", &host.name, "-bind", &format!("{}:7946", host.address)]);
        command.args(["-rpc-addr", "127.0.0.1:7373"]);
        if at > 0 {
            command.args(["-retry-join", &format!("{}:7946", self.lab.host(0).address), "-retry-interval", "1s"]);
        }
        command.stdout(log).stderr(Stdio::null());
        self.agents[at] = Some(Process::start(&mut command)?);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self, at: usize) {
        self.agents[at] = None;
    }

    /// The agents' process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.agents.iter().flatten().map(Process::id).collect()
    }

    fn members(&self, at: usize) -> Result<Vec<Value>> {
        let text = run(self.lab.on(at, Path::new("serf")).args(["members", "-format", "json"]))?;
        let json: Value = serde_json::from_str(&text)?;
        json["members"].as_array().cloned().context("no members")
    }

    /// Waits until an agent lists so many alive.
    pub fn until_count(&self, at: usize, count: usize) -> Result<()> {
        until(&format!("serf {at} lists {count}"), || {
            let alive = self.members(at).ok()?.iter().filter(|member| member["status"] == "alive").count();
            (alive == count).then_some(())
        });
        Ok(())
    }

    /// Waits until an agent says so of another.
    pub fn until_says(&self, at: usize, of: usize, status: &str) -> Result<()> {
        let name = self.lab.host(of).name.clone();
        until(&format!("serf {at} says that {name} is {status}"), || {
            let members = self.members(at).ok()?;
            members.iter().any(|member| member["name"] == *name && member["status"] == status).then_some(())
        });
        Ok(())
    }

    /// Deaths that any agent has believed, by their logs.
    pub fn deaths_seen(&self) -> Result<usize> {
        let mut seen = 0;
        for at in 0..self.agents.len() {
            let log = std::fs::read_to_string(self.directory.path().join(format!("{at}.serf")))?;
            seen += log.lines().filter(|line| line.contains("EventMemberFailed")).count();
        }
        Ok(seen)
    }
}
