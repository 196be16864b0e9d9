//! Who is alive: SWIM (foca) over the transport's datagrams, and the only authority on liveness in the fabric.
//!
//! foca probes, suspects and spreads the word. Around it stands what it lacks: authenticated senders and bounds
//! (`identity`), doubt about oneself (`health`), suspects told directly and verdicts put off when we were starved
//! (`core`), recovery from zero members and from partitions (`core`: seeking), rejoining under a new incarnation.
//!
//! What it is not: an authority on ownership. A death found here makes a node look at the ledger again; the ledger decides.
//! `core` is pure; this file is its driver, one task that owns it. Readers get snapshots.

mod boot;
mod core;
mod health;
mod identity;
pub mod link;
mod timing;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use self::boot::{FILE as BOOT_FILE, boot_stamp};
pub use self::core::{Core, Input, Now, Outgoing};
pub use self::health::{Health, MULTIPLIER_MAX};
pub use self::timing::{PROBE_PERIOD, SUSPICION};
use crate::events::{Events, Happening};
use crate::ids::NodeId;
use crate::seams::{Clock, Seams, draw};
use link::Datagrams;

/// Commands that may wait for the driver; `learn` beyond it is dropped (it is repeated anyway).
const COMMANDS_MAX: usize = 1_024;
/// Datagrams handled before timers get their turn.
const BATCH: usize = 64;

/// What membership thinks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Answers.
    Alive,
    /// Did not answer somebody, and has not refuted yet: still counts as a member.
    Suspect,
    /// Confirmed dead, or has left.
    Down,
}

/// Another node of the fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its boot stamp, or a little more when it had to rejoin: a greater one is a later life.
    pub incarnation: u64,
    /// What we think of it.
    pub state: State,
    /// Since when, Unix milliseconds by our clock.
    pub since_ms: u64,
}

impl Member {
    /// Alive or suspect: may be asked for things.
    pub fn is_active(&self) -> bool {
        self.state != State::Down
    }
}

/// Members by id, without this node. Dead ones stay for an hour.
pub type Members = BTreeMap<NodeId, Member>;

/// A member came, went, or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The member.
    pub node: NodeId,
    /// What it was; none when it was unknown.
    pub from: Option<State>,
    /// What it is; none when it is forgotten.
    pub to: Option<State>,
    /// Its incarnation.
    pub incarnation: u64,
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Datagrams handed to the transport.
    pub datagrams_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes handed to the transport.
    pub bytes_out: u64,
    /// Datagrams, or statements in them, refused: malformed, forged, out of bounds, about removed nodes.
    pub refused: u64,
    /// Probes of members.
    pub probes: u64,
    /// Probes that nobody answered.
    pub probes_failed: u64,
    /// Times that we were declared dead and came back.
    pub rejoins: u64,
    /// Local health now: 0 (well) to [`MULTIPLIER_MAX`].
    pub health: u8,
}

/// Who we are.
#[derive(Debug, Clone)]
pub struct MembershipConfig {
    /// This node.
    pub node: NodeId,
    /// Where peers reach it.
    pub address: SocketAddr,
    /// Its boot stamp.
    pub incarnation: u64,
    /// Known peers, from the ledger or the address book.
    pub peers: Vec<(NodeId, SocketAddr)>,
}

enum Command {
    Input(Input),
    Leave(oneshot::Sender<()>),
}

/// The running membership. Clones share it; it stops when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Membership {
    commands: mpsc::Sender<Command>,
    members: watch::Receiver<Arc<Members>>,
    counters: Arc<Mutex<Counters>>,
}

impl Membership {
    /// Starts the driver on the current tokio runtime. `incoming` are datagrams with their authenticated senders;
    /// deaths and returns are recorded in `events`.
    pub fn start(
        config: MembershipConfig,
        seams: &Seams,
        link: Arc<dyn Datagrams>,
        incoming: mpsc::Receiver<(NodeId, Bytes)>,
        events: Events,
    ) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (publish, members) = watch::channel(Arc::default());
        let counters = Arc::<Mutex<Counters>>::default();
        let start = Instant::now();
        let now = Now { elapsed: Duration::ZERO, wall_ms: seams.clock.wall().as_millis() as u64 };
        let MembershipConfig { node, address, incarnation, peers } = config;
        let core = Core::new(node, address, incarnation, peers, draw(&*seams.entropy), now);
        let clock = seams.clock.clone();
        let driver = Driver { core, start, clock, link, publish, events, counters: counters.clone() };
        tokio::spawn(driver.run(inbox, incoming));
        Membership { commands, members, counters }
    }

    /// Snapshots of the members, whenever one changes.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// Alive and suspect members as of now.
    pub fn active(&self) -> BTreeMap<NodeId, SocketAddr> {
        let members = self.members.borrow();
        members.iter().filter(|(_, member)| member.is_active()).map(|(node, member)| (*node, member.address)).collect()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody to knock at when we lack members. Never waits; repeat it now and then.
    pub fn learn(&self, node: NodeId, address: SocketAddr) {
        let _ = self.commands.try_send(Command::Input(Input::Learn(node, address)));
    }

    /// This node listens elsewhere now: rejoins under a new incarnation.
    pub async fn readdress(&self, address: SocketAddr) {
        let _ = self.commands.send(Command::Input(Input::Readdress(address))).await;
    }

    /// The node was removed from the cluster (its tombstone is verified): forget it, and ignore all talk of it.
    pub async fn remove(&self, node: NodeId) {
        let _ = self.commands.send(Command::Input(Input::Remove(node))).await;
    }

    /// Tells members that this node leaves, then is silent. Returns when the goodbyes are with the transport.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.commands.send(Command::Leave(done)).await.is_ok() {
            let _ = left.await;
        }
    }
}

struct Driver {
    core: Core,
    start: Instant,
    clock: Arc<dyn Clock>,
    link: Arc<dyn Datagrams>,
    publish: watch::Sender<Arc<Members>>,
    events: Events,
    counters: Arc<Mutex<Counters>>,
}

impl Driver {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut incoming: mpsc::Receiver<(NodeId, Bytes)>) {
        loop {
            let due = self.core.next_timer().map_or(Duration::from_secs(3600), |due| due);
            let mut left = None;
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Input(input)) => self.core.handle(self.now(), input),
                    Some(Command::Leave(done)) => {
                        self.core.handle(self.now(), Input::Leave);
                        left = Some(done);
                    }
                },
                datagram = incoming.recv() => match datagram {
                    // The transport is closed: there is nobody to talk to.
                    None => return,
                    Some((from, bytes)) => self.core.handle(self.now(), Input::Datagram(from, bytes)),
                },
                () = tokio::time::sleep_until(self.start + due) => {}
            }
            // What waits for us comes before timers, which might condemn somebody whose answer is among it.
            for _ in 0..BATCH {
                let Ok((from, bytes)) = incoming.try_recv() else { break };
                self.core.handle(self.now(), Input::Datagram(from, bytes));
            }
            self.core.fire(self.now());
            self.flush();
            if let Some(done) = left {
                let _ = done.send(());
            }
        }
    }

    fn now(&self) -> Now {
        Now { elapsed: self.start.elapsed(), wall_ms: self.clock.wall().as_millis() as u64 }
    }

    fn flush(&mut self) {
        for Outgoing { to, address, bytes } in self.core.take_outgoing() {
            self.link.send(to, address, bytes);
        }
        let changes = self.core.take_changes();
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.core.counters();
        if changes.is_empty() {
            return;
        }
        self.publish.send_replace(Arc::new(self.core.members().clone()));
        for change in changes {
            self.record(change);
        }
    }

    fn record(&self, change: Change) {
        let (kind, words) = match (change.from, change.to) {
            (Some(State::Alive | State::Suspect), Some(State::Down)) => ("node-down", "is down"),
            (_, Some(State::Suspect)) => ("node-suspect", "does not answer somebody"),
            (Some(State::Suspect), Some(State::Alive)) => ("node-answers", "answers again"),
            (Some(State::Alive), Some(State::Alive)) => {
                ("node-restarted", "came back in a new life or at a new address")
            }
            (_, Some(State::Alive)) => ("node-up", "is up"),
            // Deaths of nodes we never knew alive, and forgetting, are no news for people.
            (_, Some(State::Down) | None) => return,
        };
        tracing::info!(node = %change.node.short(), "node {words}");
        self.events.record(Happening {
            kind,
            subject: change.node.to_string(),
            message: format!("node {} {words}", change.node.short()),
            data: vec![("incarnation".into(), change.incarnation.to_string())],
        });
    }
}
