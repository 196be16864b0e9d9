//! A fabric of real daemons, and what a user would type at it.
#![expect(clippy::disallowed_methods, reason = "drives real processes")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use smartnode::lab::{Isolation, Lab};
use tempfile::TempDir;

use crate::poll;

/// The program under test: `smartnode` from the same target directory as the test.
///
/// # Panics
/// When it is not built (nextest builds it with the workspace).
pub fn smartnode() -> PathBuf {
    let mut directory = std::env::current_exe().expect("a test has a path");
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    let program = directory.join("smartnode");
    assert!(program.exists(), "{} is not built: cargo build -p smartnode", program.display());
    program
}

/// What a command of the CLI gave.
#[derive(Debug)]
pub struct Reply {
    /// Exit code.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

impl Reply {
    /// What a program gave that has ended.
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Reply { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Asserts failure with this code, and that `words` were said.
    ///
    /// # Panics
    /// When it was otherwise.
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }

    /// The data as JSON.
    ///
    /// # Panics
    /// When it is none, with what the command said.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Asserts success.
    ///
    /// # Panics
    /// When the command failed.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// A fabric whose nodes are called n1, n2, ... and numbered from 0.
pub struct Cluster {
    /// The hosts.
    pub lab: Lab,
    directory: TempDir,
}

impl Cluster {
    /// Hosts without daemons.
    ///
    /// # Panics
    /// When the hosts cannot be made.
    pub fn hosts(count: usize, tag: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("smartnode-test-").tempdir().expect("a temporary directory");
        let mut lab = Lab::new(tag, directory.path(), &smartnode(), Isolation::Namespaces).expect("a lab");
        for _ in 0..count {
            lab.add_host().expect("a host");
        }
        Cluster { lab, directory }
    }

    /// A fabric of `count` joined nodes that tolerates what its size allows.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn of(count: usize, tag: &str) -> Self {
        let mut cluster = Cluster::hosts(count, tag);
        cluster.form();
        cluster
    }

    /// Makes one fabric of all hosts.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn form(&mut self) {
        let count = self.lab.hosts().len();
        self.init();
        if count > 1 {
            let token = self.token(count as u32 - 1);
            for at in 1..count {
                self.join(at, &token);
            }
            self.wait_members(count);
        }
        if count >= 3 {
            self.wait_tolerance(0);
        }
    }

    /// Waits until any one node may fail.
    ///
    /// # Panics
    /// When it is not so within a minute.
    pub fn wait_tolerance(&self, asked: usize) {
        self.cli(asked, &["status", "--wait-tolerance", "1", "--timeout", "60s"]).ok();
    }

    /// A file's place beside the hosts' data.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `init` on the first host.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn init(&mut self) {
        self.lab.start_daemon(0, &["init"]).expect("a daemon");
        self.wait_ready(0);
    }

    /// A token for `uses` voters.
    ///
    /// # Panics
    /// When none is given.
    pub fn token(&self, uses: u32) -> String {
        let made = self.cli(0, &["token", "create", "--uses", &uses.to_string(), "-o", "json"]).ok().json();
        made["token"].as_str().expect("a token").to_owned()
    }

    /// `join` to the first host, in the background.
    ///
    /// # Panics
    /// When the daemon cannot be started.
    pub fn join(&mut self, at: usize, token: &str) {
        let peer = format!("{}:7420", self.lab.host(0).address);
        self.lab.start_daemon(at, &["join", &peer, "--token", token]).expect("a daemon");
    }

    /// `start` from the data directory.
    ///
    /// # Panics
    /// When the daemon cannot be started.
    pub fn start(&mut self, at: usize) {
        self.lab.start_daemon(at, &["start"]).expect("a daemon");
    }

    /// Runs the CLI on a host to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn cli(&self, at: usize, arguments: &[&str]) -> Reply {
        let output = self.lab.client(at, arguments).stdin(Stdio::null()).output().expect("the CLI runs");
        Reply::of(&output)
    }

    /// Runs a program in a host's network.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run_on(&self, at: usize, program: &str, arguments: &[&str]) -> Reply {
        let output = self.lab.on(at, Path::new(program)).args(arguments).output().expect("the program runs");
        Reply::of(&output)
    }

    /// A command prepared for a host's network, to be run in the background.
    pub fn command_on(&self, at: usize, program: &str) -> Command {
        self.lab.on(at, Path::new(program))
    }

    /// SIGKILL for the daemon alone.
    pub fn kill_daemon(&mut self, at: usize) {
        self.lab.kill_daemon(at);
    }

    /// SIGKILL for daemon, supervisors and machines.
    pub fn kill_host(&mut self, at: usize) {
        self.lab.kill_host(at);
    }

    /// What the daemon has said.
    pub fn log(&self, at: usize) -> String {
        std::fs::read_to_string(&self.lab.host(at).log).unwrap_or_default()
    }

    /// Waits until a host's daemon serves.
    ///
    /// # Panics
    /// When it does not within 30 s, with its log.
    pub fn wait_ready(&mut self, at: usize) {
        let what = format!("n{} is ready", at + 1);
        poll::until(&what, Duration::from_secs(30), || {
            if let Some(status) = self.lab.daemon_ended(at) {
                panic!("the daemon of n{} ended with {status}:\n{}", at + 1, self.log(at));
            }
            (self.cli(at, &["status", "-o", "json"]).code == 0).then_some(())
        });
    }

    /// How many nodes a host holds for alive; none when it does not answer.
    pub fn alive(&self, at: usize) -> Option<usize> {
        let reply = self.cli(at, &["node", "list", "-o", "json"]);
        if reply.code != 0 {
            return None;
        }
        let nodes = reply.json();
        Some(nodes["items"].as_array()?.iter().filter(|node| node["liveness"] == "alive").count())
    }

    /// Waits until a host sees exactly `count` nodes alive.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub fn wait_alive(&self, at: usize, count: usize) -> Duration {
        let what = format!("n{} sees {count} nodes alive", at + 1);
        poll::until(&what, Duration::from_secs(60), || (self.alive(at) == Some(count)).then_some(())).1
    }

    /// Waits until every one of the first `count` hosts sees all of them alive.
    ///
    /// # Panics
    /// When they do not within a minute each.
    pub fn wait_members(&self, count: usize) {
        for at in 0..count {
            self.wait_alive(at, count);
        }
    }

    /// The leader's position, as a host knows it.
    ///
    /// # Panics
    /// When there is none for half a minute.
    pub fn leader(&self, asked: usize) -> usize {
        let look = || {
            let status = self.cli(asked, &["status", "-o", "json"]);
            let status = (status.code == 0).then(|| status.json())?;
            status["leader"].as_str()?.strip_prefix('n')?.parse::<usize>().ok().map(|number| number - 1)
        };
        poll::until("there is a leader", Duration::from_secs(30), look).0
    }

    /// A host that is not one of `others`.
    ///
    /// # Panics
    /// When there is none.
    pub fn other_than(&self, others: &[usize]) -> usize {
        let mut all = 0..self.lab.hosts().len();
        all.find(|at| !others.contains(at)).expect("more hosts than those")
    }

    /// Runs a daemon that is to end by itself: how it ended, and its words.
    ///
    /// # Panics
    /// When it has not ended within 45 s.
    pub fn daemon_fails(&mut self, at: usize, arguments: &[&str]) -> Reply {
        let said = self.log(at).len();
        self.lab.start_daemon(at, arguments).expect("a daemon");
        let what = format!("n{} {arguments:?} ends", at + 1);
        let (status, _) = poll::until(&what, Duration::from_secs(45), || self.lab.daemon_ended(at));
        self.lab.kill_daemon(at);
        let stderr = self.log(at).split_off(said);
        Reply { code: status.code().unwrap_or(-1), stdout: String::new(), stderr }
    }

    /// Runs a join that is to fail, with more environment: how it ended, and its words.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn join_fails(&self, at: usize, token: &str, environment: [(OsString, OsString); 2]) -> Reply {
        let (peer, host) = (format!("{}:7420", self.lab.host(0).address), self.lab.host(at));
        let mut join = self.lab.client(at, &["join", &peer, "--token", token, "--name", &host.name, "--data-dir"]);
        Reply::of(&join.arg(&host.data_dir).envs(environment).output().expect("the program runs"))
    }

    /// Stops a daemon as announced, and waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self, at: usize) {
        self.cli(at, &["stop"]).ok();
        assert_eq!(self.wait_ended(at), 0);
    }

    /// Waits until a started daemon has ended by itself, and forgets it.
    ///
    /// # Panics
    /// When it goes on for half a minute.
    pub fn wait_ended(&mut self, at: usize) -> i32 {
        let what = format!("the daemon of n{} ends", at + 1);
        let (status, _) = poll::until(&what, Duration::from_secs(30), || self.lab.daemon_ended(at));
        self.lab.kill_daemon(at);
        status.code().unwrap_or(-1)
    }

    /// Cuts a host off from all others, both ways.
    ///
    /// # Panics
    /// When nft refuses.
    pub fn isolate(&self, at: usize) {
        for other in (0..self.lab.hosts().len()).filter(|other| *other != at) {
            self.lab.cut(other, at).expect("nft");
            self.lab.cut(at, other).expect("nft");
        }
    }

    /// Ends every cut.
    ///
    /// # Panics
    /// When nft refuses.
    pub fn heal(&self) {
        for at in 0..self.lab.hosts().len() {
            self.lab.heal(at).expect("nft");
        }
    }
}

/// Last lines of each daemon's log that a failed story shows.
const LOG_TAIL_LINES: usize = 40;

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for at in 0..self.lab.hosts().len() {
            let log = self.log(at);
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
            eprintln!("--- last words of n{}:\n{}", at + 1, tail.join("\n"));
        }
    }
}
