//! The demo's nodes, and waiting for what they say. Every wait has a deadline.
#![expect(clippy::disallowed_methods, reason = "reads the logs and tokens of the demo's own daemons")]

use std::time::{Duration, Instant};

use crate::api::client::{Address, Client};
use crate::api::failure::{Class, Failure};
use crate::api::types::{List, Liveness, Node, Operation, OperationState, Status};
use crate::cli::{CliError, Exit};
use crate::lab::Lab;

use super::Voice;

/// Between two looks: short, since the looks are what the figures are read from.
const LOOK: Duration = Duration::from_millis(5);
/// One question is given up after this.
const QUESTION: Duration = Duration::from_secs(5);
/// What one waiting request waits at the node.
const STEP_MS: u64 = 2_000;
/// Last lines of a daemon's log that are shown when it ended.
const LOG_LINES: usize = 12;

/// The nodes, their clients, and how long to wait for them.
#[derive(Debug)]
pub struct Fabric {
    /// The hosts.
    pub lab: Lab,
    /// Each wait is given up after this.
    pub patience: Duration,
    /// Where progress is told.
    pub voice: Voice,
}

impl Fabric {
    /// No node runs yet.
    pub fn new(lab: Lab, patience: Duration, voice: Voice) -> Self {
        Fabric { lab, patience, voice }
    }

    /// `n1`, `n2`, ...
    pub fn name(&self, at: usize) -> String {
        self.lab.host(at).name.clone()
    }

    /// The position of a node by its name.
    pub fn position(&self, name: &str) -> Result<usize, CliError> {
        let found = self.lab.hosts().iter().position(|host| host.name == name);
        found.ok_or_else(|| CliError::new(Exit::Failed, format!("the fabric names a node {name:?} that is not there")))
    }

    /// A client of a node's admin port. Root needs no token.
    pub fn client(&self, at: usize) -> Client {
        let host = self.lab.host(at);
        let token = std::fs::read_to_string(host.data_dir.join("admin.token")).ok();
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let mut client = Client::new(Address::Unix(host.admin_socket()), token);
        client.timeout = QUESTION;
        client
    }

    /// Looks until `look` gives something.
    ///
    /// # Errors
    /// `timeout`, with what was waited for.
    pub async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T, CliError> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(value) = look().await {
                return Ok(value);
            }
            if Instant::now() >= deadline {
                let words = format!("waited {} in vain: {what}", ::fabric::human::duration(self.patience));
                return Err(CliError::new(Exit::Timeout, words).hint("a slow host may need more: --timeout 5m"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts a node's daemon and waits until its admin port says that it is ready.
    ///
    /// # Errors
    /// When it ends instead, with its last words.
    pub async fn start(&mut self, at: usize, arguments: &[&str]) -> Result<(), CliError> {
        let started = self.lab.start_daemon(at, arguments);
        started.map_err(|error| CliError::of(Exit::Failed, &error))?;
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(status) = self.lab.daemon_ended(at) {
                let words =
                    format!("the daemon of {} ended ({status}). Its last words:\n{}", self.name(at), self.log(at));
                return Err(CliError::new(Exit::Failed, words));
            }
            if self.client(at).get_text("/readyz").await.is_ok() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let words = format!("{} is not ready yet. Its last words:\n{}", self.name(at), self.log(at));
                return Err(CliError::new(Exit::Timeout, words));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn log(&self, at: usize) -> String {
        let text = std::fs::read_to_string(&self.lab.host(at).log).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(LOG_LINES).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Waits until every node of `asked` says so of a node.
    ///
    /// # Errors
    /// `timeout`.
    pub async fn all_say(&self, asked: &[usize], of: usize, wanted: impl Fn(&Node) -> bool) -> Result<(), CliError> {
        let name = self.name(of);
        for at in asked {
            let mut client = self.client(*at);
            let what = format!("what {} says of {name}", self.name(*at));
            self.until(&what, async || {
                let nodes: List<Node> = client.get("/v1/nodes").await.ok()?;
                nodes.items.iter().any(|node| node.name == name && wanted(node)).then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until any one node may be lost.
    ///
    /// # Errors
    /// `timeout`.
    pub async fn tolerant(&self, at: usize) -> Result<Status, CliError> {
        let mut client = self.client(at);
        let path = format!("/v1/status?wait_tolerance=1&timeout_ms={STEP_MS}");
        self.until("the loss of any one node is tolerated", async || client.get(&path).await.ok()).await
    }

    /// Asks again while the node answers that it is not so yet.
    ///
    /// # Errors
    /// Any other failure; `timeout`.
    pub async fn wait_at<T: serde::de::DeserializeOwned>(&self, at: usize, path: &str) -> Result<T, CliError> {
        let mut client = self.client(at);
        let path = format!("{path}&timeout_ms={STEP_MS}");
        let ended: Result<T, Failure> = self
            .until(&path, async || match client.get::<T>(&path).await {
                Err(failure) if matches!(failure.class, Class::Timeout | Class::Unreachable) => None,
                answer => Some(answer),
            })
            .await?;
        Ok(ended?)
    }

    /// Follows an operation to its end.
    ///
    /// # Errors
    /// The operation's own; `timeout`.
    pub async fn follow(&self, at: usize, operation: &Operation) -> Result<(), CliError> {
        let path = format!("/v1/operations/{}?wait=done", operation.id);
        let ended: Operation = self.wait_at(at, &path).await?;
        match (ended.state, ended.error) {
            (OperationState::Done, _) => Ok(()),
            (_, Some(problem)) => Err(Failure::from(problem).into()),
            _ => Err(CliError::new(Exit::Failed, format!("{} of {} failed", ended.kind, ended.subject))),
        }
    }
}

/// The node answers, and has told what it offers: machines can be placed there.
pub fn schedulable(node: &Node) -> bool {
    node.liveness == Liveness::Alive && node.gossip.is_some()
}
