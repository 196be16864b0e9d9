//! Which connections there are to whom, and which one to use. One mutex, held for moments and never across an await.
//!
//! Both ends may dial at once. Then each has two connections for a moment, and both prefer the one that the smaller
//! NodeId dialled; the other one carries nothing new and ends by its idle timeout, so that nothing is cut on the way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::Class;
use super::fault::{CLOSE_REMOVED, CLOSE_SUPERSEDED};
use super::link::Link;
use crate::ids::NodeId;
use crate::limits::*;

/// What became of the attempts to reach a peer: those who wait for a connection watch it.
#[derive(Debug, Clone, Default)]
pub(super) struct News {
    /// The last attempt that ended without a connection.
    failed: u64,
    /// Why.
    cause: String,
    /// Connections installed so far: a change wakes the waiters.
    installed: u64,
}

#[derive(Debug, Default)]
struct Slot {
    dialled: Option<Arc<Link>>,
    accepted: Option<Arc<Link>>,
    /// Number of the attempt under way.
    dialling: Option<u64>,
    waiting: VecDeque<Bytes>,
    news: watch::Sender<News>,
}

impl Slot {
    fn live(link: &Option<Arc<Link>>) -> Option<&Arc<Link>> {
        link.as_ref().filter(|link| link.is_live())
    }

    fn pick(&self, prefer_dialled: bool) -> Option<Arc<Link>> {
        let (dialled, accepted) = (Self::live(&self.dialled), Self::live(&self.accepted));
        if prefer_dialled { dialled.or(accepted) } else { accepted.or(dialled) }.cloned()
    }

    fn links(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.dialled.iter().chain(&self.accepted)
    }
}

/// How to come to a connection.
pub(super) enum Way {
    /// Here it is.
    Ready(Arc<Link>),
    /// Somebody dials; wait for news about this attempt or a later one.
    Wait(u64, watch::Receiver<News>),
    /// Dial this address, then say [`Pool::failed`] or [`Pool::install`]; wait as above.
    Dial(u64, SocketAddr, watch::Receiver<News>),
    /// There is none, and why.
    None(String),
}

/// Why a connection was not taken in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The peer was removed.
    Removed,
    /// `CONNECTIONS_MAX` are open and all in use.
    Full,
}

/// All connections of a node.
#[derive(Debug)]
pub(super) struct Pool {
    me: NodeId,
    book: BTreeMap<NodeId, SocketAddr>,
    slots: BTreeMap<(NodeId, Class), Slot>,
    removed: BTreeSet<NodeId>,
    attempts: u64,
    closed: bool,
}

impl Pool {
    pub(super) fn new(me: NodeId) -> Self {
        let (book, slots, removed) = Default::default();
        Pool { me, book, slots, removed, attempts: 0, closed: false }
    }

    pub(super) fn learn(&mut self, node: NodeId, addr: SocketAddr) {
        if node != self.me && (self.book.contains_key(&node) || self.book.len() < ADDRESSES_MAX) {
            self.book.insert(node, addr);
        }
    }

    pub(super) fn address_of(&self, node: NodeId) -> Option<SocketAddr> {
        self.book.get(&node).copied()
    }

    /// A connection to use now, if there is one.
    pub(super) fn ready(&self, to: NodeId, class: Class) -> Option<Arc<Link>> {
        self.slots.get(&(to, class)).and_then(|slot| slot.pick(self.me < to))
    }

    pub(super) fn way(&mut self, to: NodeId, class: Class) -> Way {
        if self.closed {
            return Way::None("this node shuts down".into());
        }
        if to == self.me {
            return Way::None("it is this node itself".into());
        }
        if self.removed.contains(&to) {
            return Way::None("it was removed from the cluster".into());
        }
        if let Some(link) = self.ready(to, class) {
            return Way::Ready(link);
        }
        let address = self.book.get(&to).copied();
        let slot = self.slots.entry((to, class)).or_default();
        match (slot.dialling, address) {
            (Some(attempt), _) => Way::Wait(attempt, slot.news.subscribe()),
            (None, Some(address)) => {
                self.attempts += 1;
                slot.dialling = Some(self.attempts);
                Way::Dial(self.attempts, address, slot.news.subscribe())
            }
            (None, None) => {
                self.tidy(to, class);
                Way::None("its address is not known".into())
            }
        }
    }

    /// The cause if the attempt that a caller waits for, or a later one, has failed.
    pub(super) fn failure(attempt: u64, news: &watch::Receiver<News>) -> Option<String> {
        let news = news.borrow();
        (news.failed >= attempt).then(|| news.cause.clone())
    }

    /// Keeps a datagram until there is a connection; the oldest gives way.
    pub(super) fn wait(&mut self, to: NodeId, datagram: Bytes) {
        let Some(slot) = self.slots.get_mut(&(to, Class::Control)) else { return };
        if slot.waiting.len() == DATAGRAMS_WAITING_MAX {
            slot.waiting.pop_front();
        }
        slot.waiting.push_back(datagram);
    }

    /// An attempt has ended without a connection.
    pub(super) fn failed(&mut self, to: NodeId, class: Class, attempt: u64, cause: String) {
        let Some(slot) = self.slots.get_mut(&(to, class)) else { return };
        if slot.dialling == Some(attempt) {
            slot.dialling = None;
            slot.waiting.clear();
        }
        slot.news.send_modify(|news| {
            news.failed = news.failed.max(attempt);
            news.cause = cause;
        });
        self.tidy(to, class);
    }

    /// Takes in a new connection. The datagrams that waited for it are returned; they are to be sent on it.
    pub(super) fn install(&mut self, link: &Arc<Link>) -> Result<VecDeque<Bytes>, Refused> {
        let (peer, class) = (link.peer.id, link.class);
        if self.removed.contains(&peer) || self.closed {
            return Err(Refused::Removed);
        }
        if self.count() >= CONNECTIONS_MAX && !self.evict() {
            return Err(Refused::Full);
        }
        if !self.book.contains_key(&peer) {
            self.learn(peer, link.address());
        }
        // If the peer has restarted, its answer to this ends the connections that it forgot: those of other classes, too,
        // which nothing else uses until a move or an image would fail on them.
        for class in Class::ALL {
            self.slots.get(&(peer, class)).into_iter().flat_map(Slot::links).for_each(|other| other.poke());
        }
        let slot = self.slots.entry((peer, class)).or_default();
        let place = if link.dialled {
            slot.dialling = None;
            &mut slot.dialled
        } else {
            &mut slot.accepted
        };
        if let Some(old) = place.replace(link.clone()) {
            old.close(CLOSE_SUPERSEDED, "replaced by a newer connection");
        }
        let waiting = std::mem::take(&mut slot.waiting);
        slot.news.send_modify(|news| news.installed += 1);
        Ok(waiting)
    }

    /// Closes the unused connection that has been there longest. Returns whether there was one.
    fn evict(&mut self) -> bool {
        let unused = self.slots.values().flat_map(Slot::links).filter(|link| !link.is_used());
        let Some(oldest) = unused.min_by_key(|link| (link.since, link.peer.id, link.class)).cloned() else {
            return false;
        };
        oldest.close(CLOSE_SUPERSEDED, "room was needed");
        self.remove(&oldest);
        true
    }

    /// A connection has ended.
    pub(super) fn remove(&mut self, link: &Arc<Link>) {
        let Some(slot) = self.slots.get_mut(&(link.peer.id, link.class)) else { return };
        for place in [&mut slot.dialled, &mut slot.accepted] {
            if place.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, link)) {
                *place = None;
            }
        }
        self.tidy(link.peer.id, link.class);
    }

    fn tidy(&mut self, to: NodeId, class: Class) {
        let empty = |slot: &Slot| slot.links().next().is_none() && slot.dialling.is_none();
        if self.slots.get(&(to, class)).is_some_and(empty) {
            self.slots.remove(&(to, class));
        }
    }

    /// Closes everything of a removed peer, and refuses it from now on.
    pub(super) fn cut(&mut self, node: NodeId) {
        if self.removed.len() < TOMBSTONES_MAX {
            self.removed.insert(node);
        }
        self.book.remove(&node);
        for class in Class::ALL {
            let Some(slot) = self.slots.remove(&(node, class)) else { continue };
            for link in slot.links() {
                link.close(CLOSE_REMOVED, "removed from the cluster");
            }
            slot.news.send_modify(|news| {
                news.failed = u64::MAX;
                news.cause = "it was removed from the cluster".into();
            });
        }
    }

    /// No new connections from now on.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn count(&self) -> usize {
        self.slots.values().map(|slot| slot.links().count()).sum()
    }

    /// Every connection, in order of peer and class.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.slots.values().flat_map(Slot::links).cloned().collect()
    }
}
