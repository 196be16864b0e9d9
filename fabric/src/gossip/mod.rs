//! What nodes tell each other about themselves: chitchat over the fabric's one-way messages.
//!
//! Each node has one value, its [`NodeState`], at most 4 KiB, signed by its key; a reader believes the newest one that the
//! node itself signed (`statement`). Nothing that a peer sends can stop or crash a reader: messages are checked before
//! chitchat sees them (`envelope`, `socket`), values before anybody does, and a chitchat that breaks all the same is
//! replaced, with whoever broke it unheard for a while (`run`).
//!
//! What it is not: an authority. Membership alone says who is alive (chitchat's own detector is only set so that it forgets
//! the long dead), the ledger says what is true, and a state may be seconds old. A member that lies in chitchat's own
//! bookkeeping (heartbeats, versions) can delay another node's news; it cannot forge it.

mod envelope;
mod socket;
mod statement;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ListenerHandle, spawn_chitchat};
use tokio::sync::{Notify, mpsc, watch};

use crate::identity::NodeKey;
use crate::ids::{ClusterId, NodeId};
use crate::limits::CELL_NODES_MAX;
use crate::membership::Members;
use crate::membership::link::{GOSSIP, Uni};
use crate::model::NodeState;
use crate::seams::{Clock, Seams};
use crate::transport::StreamRouter;
use envelope::Slot;
use socket::{Shared, Transport};
use statement::{Reader, StatementError};

/// Each node greets three others this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// The only key we use in chitchat; others are passed on untouched.
const KEY: &str = "state";
/// A silent node is forgotten after this, so that messages shrink again.
const DEAD_GRACE: Duration = Duration::from_secs(15 * 60);
/// chitchat calls a node dead after about this many intervals: only membership's word counts, so it may take its time.
const PHI: f64 = 60.0;
/// A chitchat that broke is replaced after this time.
const RESTART: Duration = Duration::from_secs(1);
/// Members unknown to chitchat that are greeted at a tick.
const GREETINGS: usize = 3;
/// Messages received and not yet handled; further ones are dropped.
const MESSAGES_MAX: usize = 256;
/// Statements of one boot before the next boot's numbers begin.
const STATEMENTS_PER_STAMP: u64 = 1 << 20;

/// What was counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GossipCounters {
    /// Messages received.
    pub messages_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Messages refused: malformed, too large, too many, from no member.
    pub messages_refused: u64,
    /// Messages not sent: no such member, or too many under way.
    pub dropped: u64,
    /// States refused: malformed, forged, older than what is known.
    pub states_refused: u64,
    /// States of a later version, passed on unread.
    pub states_later: u64,
    /// Times chitchat was replaced.
    pub restarts: u64,
}

/// Who we are.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// Gossip of other clusters is refused.
    pub cluster: ClusterId,
    /// Signs this node's statements.
    pub key: NodeKey,
    /// The boot stamp ([`crate::membership::boot_stamp`]).
    pub boot: u64,
}

/// What every node said last, this one included. Filter by membership: the dead are in it until they are forgotten.
pub type States = BTreeMap<NodeId, Arc<NodeState>>;

/// The running gossip. Clones share it; it stops when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Gossip {
    publish: Arc<watch::Sender<Option<NodeState>>>,
    states: watch::Receiver<Arc<States>>,
    shared: Arc<Shared>,
}

/// Takes gossip's messages off the transport: register before it starts, and give the receiver to [`Gossip::start`].
pub fn messages(streams: &mut StreamRouter) -> mpsc::Receiver<(NodeId, Bytes)> {
    let (inbox, incoming) = mpsc::channel(MESSAGES_MAX);
    streams.on_message(GOSSIP, move |peer, body| {
        // Too large, or more than we can take: chitchat repeats itself anyway.
        if body.len() <= envelope::MESSAGE_BYTES_MAX {
            let _ = inbox.try_send((peer.id, Bytes::from(body)));
        }
        std::future::ready(())
    });
    incoming
}

impl Gossip {
    /// Starts on the current tokio runtime. `incoming` are messages with their authenticated senders; `members` are
    /// membership's, and only they are heard.
    pub fn start(
        config: GossipConfig,
        seams: &Seams,
        link: Arc<dyn Uni>,
        incoming: mpsc::Receiver<(NodeId, Bytes)>,
        members: watch::Receiver<Arc<Members>>,
    ) -> Self {
        let node = config.key.id();
        let shared = Arc::new(Shared::new(node, seams.clock.clone(), link, members.clone(), incoming));
        let (publish, wanted) = watch::channel(None);
        let (announce, states) = watch::channel(Arc::default());
        let task = Task {
            node,
            generation: config.boot,
            sequence: config.boot.saturating_mul(STATEMENTS_PER_STAMP),
            config,
            shared: shared.clone(),
            wanted,
            members,
            announce,
            reader: Reader::default(),
            seen: BTreeMap::new(),
            greeted: NodeId::default(),
            clock: seams.clock.clone(),
        };
        tokio::spawn(task.run());
        Gossip { publish: Arc::new(publish), states, shared }
    }

    /// Tells all nodes. `node` and `sequence` are filled in here; images are dropped from the end when it does not fit.
    pub fn publish(&self, state: NodeState) {
        self.publish.send_replace(Some(state));
    }

    /// What every node said last.
    pub fn states(&self) -> Arc<States> {
        self.states.borrow().clone()
    }

    /// [`Self::states`] whenever one changes.
    pub fn changed(&self) -> watch::Receiver<Arc<States>> {
        self.states.clone()
    }

    /// What was counted so far.
    pub fn counters(&self) -> GossipCounters {
        self.shared.counters()
    }
}

/// Why a chitchat's life ended.
enum End {
    /// Nobody uses gossip any more, or the transport is closed.
    Stop,
    /// It broke.
    Broken,
    /// It must start again under this generation.
    Renew(u64),
}

struct Task {
    node: NodeId,
    config: GossipConfig,
    generation: u64,
    sequence: u64,
    shared: Arc<Shared>,
    wanted: watch::Receiver<Option<NodeState>>,
    members: watch::Receiver<Arc<Members>>,
    announce: watch::Sender<Arc<States>>,
    reader: Reader,
    /// chitchat's version of each value that was read.
    seen: BTreeMap<(Slot, u64), u64>,
    /// The last member greeted, so that all get their turn.
    greeted: NodeId,
    clock: Arc<dyn Clock>,
}

impl Task {
    async fn run(mut self) {
        loop {
            match self.life().await {
                End::Stop => return,
                End::Renew(generation) => self.generation = generation,
                End::Broken => {
                    let blamed = self.shared.ban_last();
                    tracing::warn!(node = ?blamed, "gossip broke and starts again; the last to be heard is not heard for a while");
                    self.generation += 1;
                    tokio::time::sleep(RESTART).await;
                }
            }
            self.shared.count(|counters| counters.restarts += 1);
        }
    }

    /// One chitchat, from start to end.
    async fn life(&mut self) -> End {
        self.seen.clear();
        self.shared.begin(self.generation);
        let id = ChitchatId::new("", self.generation, Slot::of(self.node).address());
        let Ok(handle) = spawn_chitchat(self.chitchat(id), Vec::new(), &Transport(self.shared.clone())).await else {
            return End::Broken;
        };
        let (news, _listening) = listen(&handle).await;
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ended = std::pin::pin!(handle.termination_watcher());
        // What was wanted before this life is wanted in it.
        self.wanted.mark_changed();
        loop {
            tokio::select! {
                biased;
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return End::Stop;
                    }
                    self.say(&handle).await;
                }
                ended = &mut ended => {
                    // A closed transport ends it in an orderly way.
                    let closed = self.shared.inbox.lock().await.is_closed();
                    return if closed || ended.is_ok() { End::Stop } else { End::Broken };
                }
                () = news.notified() => self.read(&handle).await,
                // Who comes greets whom it meets first at once; the others, who already gossip, wait for their tick.
                changed = self.members.changed() => {
                    if changed.is_err() {
                        return End::Stop;
                    }
                    if self.seen.len() <= 1 {
                        self.greet(&handle).await;
                    }
                }
                _ = tick.tick() => {
                    self.greet(&handle).await;
                    if let Some(generation) = self.outdated(&handle).await {
                        return End::Renew(generation);
                    }
                    self.read(&handle).await;
                }
            }
        }
    }

    fn chitchat(&self, chitchat_id: ChitchatId) -> ChitchatConfig {
        ChitchatConfig {
            listen_addr: chitchat_id.gossip_advertise_addr,
            chitchat_id,
            cluster_id: self.config.cluster.to_string(),
            gossip_interval: INTERVAL,
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: PHI,
                sampling_window_size: 100,
                max_interval: Duration::from_secs(30),
                initial_interval: INTERVAL,
                dead_node_grace_period: DEAD_GRACE,
            },
            marked_for_deletion_grace_period: DEAD_GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }

    /// Signs and publishes what is wanted.
    async fn say(&mut self, handle: &ChitchatHandle) {
        let Some(mut state) = self.wanted.borrow_and_update().clone() else { return };
        self.sequence += 1;
        (state.node, state.sequence) = (self.node, self.sequence);
        match statement::seal(&self.config.key, &state) {
            Ok(text) => handle.with_chitchat(|chitchat| chitchat.self_node_state().set(KEY, &text)).await,
            Err(error) => tracing::error!(%error, "this node's own state cannot be gossiped"),
        }
        self.read(handle).await;
    }

    /// Reads every value that changed since the last time.
    async fn read(&mut self, handle: &ChitchatHandle) {
        let seen = &self.seen;
        let (fresh, versions, lives) = handle
            .with_chitchat(|chitchat| {
                let (mut fresh, mut versions, mut lives) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
                for (id, state) in chitchat.node_states() {
                    let Some(slot) = Slot::of_address(id.gossip_advertise_addr) else { continue };
                    let place = (slot, id.generation_id);
                    lives.insert(place);
                    let Some(value) = state.get_versioned(KEY) else { continue };
                    versions.insert(place, value.version);
                    if seen.get(&place) != Some(&value.version) {
                        fresh.push((place, value.value.clone()));
                    }
                }
                (fresh, versions, lives)
            })
            .await;
        self.shared.held(lives);
        self.seen = versions;
        let mut changed = false;
        for (place, text) in fresh {
            match self.shared.owner(place.0) {
                Some(node) => changed |= self.hear(node, place.1, &text),
                // Not a member yet, or no more: looked at again at the next tick.
                None => drop(self.seen.remove(&place)),
            }
        }
        let members = self.members.borrow().clone();
        changed |= self.reader.retain(|node| *node == self.node || members.contains_key(node));
        if changed {
            self.announce.send_replace(Arc::new(self.reader.states().clone()));
        }
    }

    fn hear(&mut self, node: NodeId, generation: u64, text: &str) -> bool {
        match self.reader.offer(node, text) {
            Ok(news) => {
                // A statement of ours that is ahead of us: this node's directory was put back. Speak on from there.
                let own = self.reader.states().get(&self.node).map_or(0, |state| state.sequence);
                if own > self.sequence {
                    self.sequence = own;
                    self.wanted.mark_changed();
                }
                news
            }
            Err(StatementError::Later) => {
                self.shared.count(|counters| counters.states_later += 1);
                false
            }
            // The last words of an earlier life come late.
            Err(StatementError::Stale { .. }) if self.shared.newest(Slot::of(node)) != Some(generation) => false,
            Err(error) => {
                self.shared.count(|counters| counters.states_refused += 1);
                tracing::debug!(node = %node.short(), %error, "gossiped state refused");
                false
            }
        }
    }

    /// Greets members that chitchat does not know yet.
    async fn greet(&mut self, handle: &ChitchatHandle) {
        let members = self.members.borrow_and_update().clone();
        let known: Vec<Slot> = handle
            .with_chitchat(|chitchat| {
                chitchat.node_states().keys().filter_map(|id| Slot::of_address(id.gossip_advertise_addr)).collect()
            })
            .await;
        let known: BTreeSet<Slot> = known.into_iter().collect();
        let stranger = |node: &NodeId| members[node].is_active() && !known.contains(&Slot::of(*node));
        let after = members.keys().filter(|node| **node > self.greeted);
        let before = members.keys().filter(|node| **node <= self.greeted);
        let next: Vec<NodeId> = after.chain(before).filter(|node| stranger(node)).take(GREETINGS).copied().collect();
        for node in next {
            self.greeted = node;
            let _ = handle.gossip(Slot::of(node).address());
        }
        self.shared.forget();
    }

    /// The generation under which to start again: when peers know a later life of ours, or when so many earlier lives of
    /// others have piled up here that they crowd the living out.
    async fn outdated(&self, handle: &ChitchatHandle) -> Option<u64> {
        let own = self.shared.newest(Slot::of(self.node)).filter(|newest| *newest > self.generation);
        if let Some(newest) = own {
            return Some(newest.saturating_add(1));
        }
        let nodes = handle.with_chitchat(|chitchat| chitchat.node_states().len()).await;
        let living = self.members.borrow().len() + 1;
        let wall = self.clock.wall().as_millis() as u64;
        (nodes > living + CELL_NODES_MAX).then(|| wall.max(self.generation.saturating_add(1)))
    }
}

/// Wakes on every value that changes. The wake-up carries nothing.
async fn listen(handle: &ChitchatHandle) -> (Arc<Notify>, ListenerHandle) {
    let news = Arc::new(Notify::new());
    let wake = news.clone();
    let subscribe = |chitchat: &mut chitchat::Chitchat| {
        let wake = wake.clone();
        chitchat.subscribe_event(KEY, move |_| wake.notify_one())
    };
    let listening = handle.with_chitchat(subscribe).await;
    (news, listening)
}
