//! chitchat's transport and socket over the fabric's one-way messages.
//!
//! chitchat sees slots (the start of a node's id) where it wants addresses; here they become members again. Only members
//! that are not down are heard and sent to. Sending never holds chitchat up: each message has a task and a deadline, and
//! only so many may be under way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use async_trait::async_trait;
use bytes::Bytes;
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::GossipCounters;
use super::envelope::{Generations, Slot, sift};
use crate::ids::NodeId;
use crate::membership::Members;
use crate::membership::link::{GOSSIP_SEND_TIMEOUT, Uni};
use crate::seams::Clock;

/// Messages being sent at once.
const SENDS_MAX: usize = 64;
/// Messages of one peer heard in one [`RATE_PERIOD`]: it needs about four a second.
const RATE_MAX: u32 = 64;
/// See [`RATE_MAX`].
const RATE_PERIOD: Duration = Duration::from_secs(1);
/// A peer whose message broke chitchat is not heard for this long.
const BAN: Duration = Duration::from_secs(300);
/// Generations are boot stamps in milliseconds; one this far ahead of our clock is refused.
const FUTURE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What the sockets of successive chitchats share.
#[derive(Debug)]
pub(super) struct Shared {
    pub node: NodeId,
    pub clock: Arc<dyn Clock>,
    pub link: Arc<dyn Uni>,
    pub members: watch::Receiver<Arc<Members>>,
    pub inbox: tokio::sync::Mutex<mpsc::Receiver<(NodeId, Bytes)>>,
    pub sends: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    generations: Generations,
    /// Lives that chitchat still holds though a later one is known.
    old: BTreeSet<(Slot, u64)>,
    counters: GossipCounters,
    /// Who sent what chitchat works on.
    last: Option<NodeId>,
    banned: BTreeMap<NodeId, Instant>,
    rates: BTreeMap<NodeId, (Instant, u32)>,
}

impl Shared {
    pub fn new(
        node: NodeId,
        clock: Arc<dyn Clock>,
        link: Arc<dyn Uni>,
        members: watch::Receiver<Arc<Members>>,
        inbox: mpsc::Receiver<(NodeId, Bytes)>,
    ) -> Self {
        let (inbox, sends) = (tokio::sync::Mutex::new(inbox), Arc::new(Semaphore::new(SENDS_MAX)));
        Shared { node, clock, link, members, inbox, sends, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member, or this node, that has this slot.
    pub fn owner(&self, slot: Slot) -> Option<NodeId> {
        if slot == Slot::of(self.node) {
            return Some(self.node);
        }
        let mut first = NodeId::default();
        first.0[..16].copy_from_slice(&slot_ip(slot));
        let members = self.members.borrow();
        members
            .range(first..)
            .map(|(node, _)| *node)
            .take_while(|node| node.0[..16] == first.0[..16])
            .find(|node| Slot::of(*node) == slot)
    }

    fn active(&self, node: &NodeId) -> bool {
        self.members.borrow().get(node).is_some_and(|member| member.is_active())
    }

    pub fn counters(&self) -> GossipCounters {
        self.state().counters
    }
    pub fn count(&self, count: impl FnOnce(&mut GossipCounters)) {
        count(&mut self.state().counters);
    }
    /// The newest generation heard of; notes one of our own.
    pub fn newest(&self, slot: Slot) -> Option<u64> {
        self.state().generations.newest(slot)
    }
    /// Notes our own generation.
    pub fn begin(&self, generation: u64) {
        self.state().generations.note(Slot::of(self.node), generation);
    }
    /// These lives are what chitchat holds.
    pub fn held(&self, lives: BTreeSet<(Slot, u64)>) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.old = lives;
        state.old.retain(|(slot, life)| state.generations.newest(*slot).is_some_and(|newest| newest > *life));
    }
    /// chitchat broke: whoever sent what it worked on is not heard for a while.
    pub fn ban_last(&self) -> Option<NodeId> {
        let mut state = self.state();
        let last = state.last.take()?;
        state.banned.insert(last, Instant::now() + BAN);
        Some(last)
    }
    /// Forgets what concerns nobody any more.
    pub fn forget(&self) {
        let owned = |slot| self.owner(slot).is_some();
        let mut state = self.state();
        state.generations.retain(owned);
        let now = Instant::now();
        state.banned.retain(|_, until| *until > now);
        state.rates.retain(|_, (since, _)| now.duration_since(*since) < RATE_PERIOD);
    }

    /// What a message becomes that chitchat may see.
    fn receive(&self, from: NodeId, bytes: &[u8]) -> anyhow::Result<ChitchatMessage> {
        if !self.active(&from) {
            return Err(anyhow!("from no member"));
        }
        let latest = (self.clock.wall() + FUTURE_MAX).as_millis() as u64;
        let mut guard = self.state();
        let state = &mut *guard;
        state.counters.messages_in += 1;
        state.counters.bytes_in += bytes.len() as u64;
        let now = Instant::now();
        if state.banned.get(&from).is_some_and(|until| *until > now) {
            return Err(anyhow!("from a peer that broke gossip lately"));
        }
        let rate = state.rates.entry(from).or_insert((now, 0));
        if now.duration_since(rate.0) >= RATE_PERIOD {
            *rate = (now, 0);
        }
        rate.1 += 1;
        if rate.1 > RATE_MAX {
            return Err(anyhow!("too many messages"));
        }
        let admits = |slot, generation| generation <= latest && self.owner(slot).is_some();
        let sifted = sift(bytes, &mut state.generations, &state.old, admits)?;
        let message = ChitchatMessage::deserialize(&mut &sifted[..])?;
        state.last = Some(from);
        Ok(message)
    }
}

fn slot_ip(slot: Slot) -> [u8; 16] {
    match slot.address().ip() {
        std::net::IpAddr::V6(ip) => ip.octets(),
        std::net::IpAddr::V4(_) => [0; 16],
    }
}

/// chitchat opens it once per life.
#[derive(Debug)]
pub(super) struct Transport(pub Arc<Shared>);

#[async_trait]
impl chitchat::transport::Transport for Transport {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn chitchat::transport::Socket>> {
        Ok(Box::new(Socket(self.0.clone())))
    }
}

struct Socket(Arc<Shared>);

#[async_trait]
impl chitchat::transport::Socket for Socket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let shared = &self.0;
        let node = Slot::of_address(to).and_then(|slot| shared.owner(slot)).filter(|node| shared.active(node));
        let permit = shared.sends.clone().try_acquire_owned();
        let (Some(node), Ok(permit)) = (node, permit) else {
            shared.count(|counters| counters.dropped += 1);
            return Ok(());
        };
        let message = message.serialize_to_vec();
        let sifted = sift(&message, &mut shared.state().generations, &BTreeSet::new(), |_, _| true);
        let Ok(bytes) = sifted else {
            shared.count(|counters| counters.dropped += 1);
            return Ok(());
        };
        shared.count(|counters| {
            counters.messages_out += 1;
            counters.bytes_out += bytes.len() as u64;
        });
        let link = shared.link.clone();
        tokio::spawn(async move {
            // A peer that cannot be reached is membership's business.
            let _ = tokio::time::timeout(GOSSIP_SEND_TIMEOUT, link.send(node, bytes.into())).await;
            drop(permit);
        });
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        // Cancel-safe: nothing is awaited between taking a message and returning it.
        let mut inbox = self.0.inbox.lock().await;
        loop {
            let (from, bytes) = inbox.recv().await.ok_or_else(|| anyhow!("the transport is closed"))?;
            match self.0.receive(from, &bytes) {
                Ok(message) => return Ok((Slot::of(from).address(), message)),
                Err(error) => {
                    self.0.count(|counters| counters.messages_refused += 1);
                    tracing::debug!(node = %from.short(), %error, "gossip message refused");
                }
            }
        }
    }
}
