//! Membership without IO: time and datagrams in, datagrams and changes out.
//!
//! The core owns foca, its timers, and what foca lacks (see [`super`]). It reads no clock: every input carries [`Now`].
//! The same inputs with the same seed give the same outputs, so the tests run a thousand of them in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use foca::{Codec, Foca, Header, Member as FocaMember, Message, NoCustomBroadcast, PostcardCodec};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::health::Health;
use super::identity::{Guarded, Identity};
use super::timing::*;
use super::{Change, Counters, Member, State};
use crate::ids::NodeId;
use crate::limits::NODES_MAX;

/// Timers that may be pending; beyond it only foca's forgetting of the dead is dropped.
const TIMERS_MAX: usize = 1 << 16;

/// The time of an input.
#[derive(Debug, Clone, Copy, Default)]
pub struct Now {
    /// Monotonic, since any origin that stays the same.
    pub elapsed: Duration,
    /// Unix milliseconds.
    pub wall_ms: u64,
}

/// What comes in, besides time.
#[derive(Debug, Clone)]
pub enum Input {
    /// A datagram, from whom the transport authenticated.
    Datagram(NodeId, Bytes),
    /// Somebody to knock at when we lack members.
    Learn(NodeId, SocketAddr),
    /// We listen elsewhere now.
    Readdress(SocketAddr),
    /// The node takes no part any more.
    Remove(NodeId),
    /// Say goodbye, and fall silent.
    Leave,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// To whom.
    pub to: NodeId,
    /// Where that node listens.
    pub address: SocketAddr,
    /// At most `DATAGRAM_BYTES_MAX`.
    pub bytes: Bytes,
}

#[derive(Debug)]
enum Timer {
    Foca(foca::Timer<Identity>),
    /// A verdict that was put off once.
    Verdict(foca::Timer<Identity>),
    /// Tell a suspect.
    Doubt(Identity, foca::Incarnation, u8),
    /// Look for members.
    Seek,
    /// Spread news that came too soon after the last.
    Spread,
}

/// Collects what foca wants done.
#[derive(Debug, Default)]
struct Sink {
    send: Vec<(Identity, Bytes)>,
    timers: Vec<(Duration, foca::Timer<Identity>)>,
    touched: BTreeSet<NodeId>,
    news: bool,
    idle: bool,
    rejoined: bool,
}

impl foca::Runtime<Identity> for Sink {
    fn notify(&mut self, notification: foca::Notification<'_, Identity>) {
        use foca::Notification::*;
        match notification {
            Idle => self.idle = true,
            Rejoin(_) => self.rejoined = true,
            MemberUp(id) | MemberDown(id) | Rename(id, _) => drop(self.touched.insert(id.node)),
            Active | Defunct => {}
        }
        self.news = true;
    }
    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.send.push((to, Bytes::copy_from_slice(data)));
    }
    fn submit_after(&mut self, event: foca::Timer<Identity>, after: Duration) {
        self.timers.push((after, event));
    }
}

/// The state machine of one node's membership.
pub struct Core {
    foca: Foca<Identity, Guarded, StdRng, NoCustomBroadcast>,
    guard: Guarded,
    sink: Sink,
    rng: StdRng,
    timers: BTreeMap<(Duration, u64), Timer>,
    timer_sequence: u64,
    seek_at: (Duration, u64),
    seek_pause: Duration,
    seeks: u32,
    spread_at: Option<Duration>,
    spread_last: Duration,
    members: BTreeMap<NodeId, Member>,
    suspects: BTreeMap<NodeId, (Identity, foca::Incarnation)>,
    book: BTreeMap<NodeId, SocketAddr>,
    health: Health,
    tuned: (usize, u8),
    own_counter: foca::Incarnation,
    left: bool,
    outgoing: Vec<Outgoing>,
    changes: Vec<Change>,
    counters: Counters,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("identity", self.foca.identity()).field("members", &self.members).finish()
    }
}

impl Core {
    /// The core of `node`, which listens at `address`. `incarnation` must be greater than in any earlier life of the node
    /// (see [`super::boot_stamp`]); `peers` are knocked at until there are members.
    pub fn new(
        node: NodeId,
        address: SocketAddr,
        incarnation: u64,
        peers: impl IntoIterator<Item = (NodeId, SocketAddr)>,
        seed: [u8; 32],
        now: Now,
    ) -> Self {
        let own = Identity { node, address, incarnation };
        let guard = Guarded::new(own.clone());
        let mut rng = StdRng::from_seed(seed);
        let foca_rng = StdRng::from_seed(rng.random());
        let mut core = Core {
            foca: Foca::new(own, config(1, 0), foca_rng, guard.clone()),
            guard,
            sink: Sink::default(),
            rng,
            timers: BTreeMap::new(),
            timer_sequence: 0,
            seek_at: (now.elapsed, 0),
            seek_pause: SEEK_MIN,
            seeks: 0,
            spread_at: None,
            spread_last: Duration::ZERO,
            members: BTreeMap::new(),
            suspects: BTreeMap::new(),
            book: peers.into_iter().filter(|(peer, _)| *peer != node).take(NODES_MAX).collect(),
            health: Health::default(),
            tuned: (1, 0),
            own_counter: 0,
            left: false,
            outgoing: Vec::new(),
            changes: Vec::new(),
            counters: Counters::default(),
        };
        core.seek_at = core.arm(now.elapsed, Timer::Seek);
        core
    }

    /// Members as of the last input, without this node.
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }
    /// Our own current incarnation: it grows when we come back after having been declared dead.
    pub fn incarnation(&self) -> u64 {
        self.foca.identity().incarnation
    }
    /// Local health, 0 is well.
    pub fn health(&self) -> u8 {
        self.health.multiplier()
    }
    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        let refused = self.counters.refused + self.guard.lock().refused;
        Counters { health: self.health.multiplier(), refused, ..self.counters }
    }
    /// When [`Self::fire`] is due.
    pub fn next_timer(&self) -> Option<Duration> {
        self.timers.keys().next().map(|(due, _)| *due)
    }
    /// What to send, in order.
    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }
    /// What changed, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Handles one input.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Datagram(from, bytes) => self.datagram(now, from, &bytes),
            Input::Learn(node, address) => self.learn(node, address),
            Input::Readdress(address) => {
                if address != self.foca.identity().address && !self.left {
                    let moved =
                        Identity { address, incarnation: self.incarnation() + 1, ..self.foca.identity().clone() };
                    let result = self.foca.change_identity(moved, &mut self.sink);
                    self.settle(now, result, true);
                    self.seek_now(now);
                }
            }
            Input::Remove(node) => self.remove(now, node),
            Input::Leave => self.leave(now),
        }
    }

    /// Fires every timer that is due.
    pub fn fire(&mut self, now: Now) {
        // A timer that a timer sets lies in the future (foca's periods are not zero), so this ends.
        while let Some(entry) = self.timers.first_entry() {
            let due = entry.key().0;
            if due > now.elapsed {
                break;
            }
            let timer = entry.remove();
            let late = now.elapsed.saturating_sub(due) > LATE;
            if late && !matches!(timer, Timer::Foca(foca::Timer::RemoveDown(_))) {
                self.health.distress();
            }
            if !self.left {
                self.fire_one(now, timer, late);
            }
        }
    }

    fn fire_one(&mut self, now: Now, timer: Timer, late: bool) {
        match timer {
            Timer::Foca(verdict @ foca::Timer::ChangeSuspectToDown { .. }) if late => {
                if let foca::Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &verdict {
                    self.doubt(now, &member_id.clone(), *incarnation, 1);
                }
                self.arm(now.elapsed + APPEAL, Timer::Verdict(verdict));
            }
            Timer::Foca(timer) | Timer::Verdict(timer) => {
                let probe = matches!(timer, foca::Timer::ProbeRandomMember(_));
                let forgets = matches!(timer, foca::Timer::RemoveDown(_));
                let result = self.foca.handle_timer(timer, &mut self.sink);
                if probe {
                    let failed = self.sink.timers.iter().find_map(|(_, timer)| match timer {
                        foca::Timer::ChangeSuspectToDown { member_id, .. } => Some(member_id.node),
                        _ => None,
                    });
                    self.counters.probes += 1;
                    self.counters.probes_failed += u64::from(failed.is_some());
                    self.health.period(failed);
                }
                self.settle(now, result, forgets);
            }
            Timer::Doubt(suspect, counter, left) => self.doubt(now, &suspect, counter, left),
            Timer::Seek => self.seek(now),
            Timer::Spread => {
                self.spread_at = None;
                self.spread(now);
            }
        }
    }

    fn datagram(&mut self, now: Now, from: NodeId, bytes: &[u8]) {
        self.counters.datagrams_in += 1;
        self.counters.bytes_in += bytes.len() as u64;
        if self.left {
            return;
        }
        {
            let mut guard = self.guard.lock();
            (guard.sender, guard.wall_ms) = (from, now.wall_ms);
        }
        let result = self.foca.handle_data(bytes, &mut self.sink);
        if self.members.get(&from).is_some_and(|member| member.state == State::Suspect) {
            self.sink.touched.insert(from);
        }
        self.settle(now, result, false);
    }

    /// Takes over what foca wants done after a call, and notices what it changed.
    fn settle(&mut self, now: Now, result: Result<(), foca::Error>, look_at_all: bool) {
        if let Err(error) = result {
            self.counters.refused += 1;
            tracing::debug!(%error, "membership refused a datagram or timer");
        }
        for (to, bytes) in std::mem::take(&mut self.sink.send) {
            self.push(to.node, to.address, bytes);
        }
        let mut touched = std::mem::take(&mut self.sink.touched);
        for (after, timer) in std::mem::take(&mut self.sink.timers) {
            if let foca::Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer {
                touched.insert(member_id.node);
                self.accuse(now, member_id, *incarnation);
            }
            if self.timers.len() < TIMERS_MAX || !matches!(timer, foca::Timer::RemoveDown(_)) {
                self.arm(now.elapsed + after, Timer::Foca(timer));
            }
        }
        let counter = {
            let mut guard = self.guard.lock();
            // Most of what is told is known: looking at all members for it would be most of a large fabric's work.
            let told = guard.told.drain(..).filter(|(id, state)| !is_shown(&self.members, id, State::from(*state)));
            touched.extend(told.map(|(id, _)| id.node));
            guard.own_counter
        };
        if counter > self.own_counter {
            self.health.distress();
        }
        self.own_counter = counter;
        let (news, idle, rejoined) = (self.sink.news, self.sink.idle, self.sink.rejoined);
        (self.sink.news, self.sink.idle, self.sink.rejoined) = (false, false, false);
        self.counters.rejoins += u64::from(rejoined);
        match look_at_all {
            true => self.look(now),
            false if touched.is_empty() => {}
            false => self.look_at(now, touched),
        }
        if news {
            self.spread(now);
        }
        if idle || rejoined {
            self.seek_now(now);
        }
        self.tune();
    }

    /// Publishes what foca now thinks of all nodes.
    fn look(&mut self, now: Now) {
        let members: Vec<FocaMember<Identity>> = self.foca.iter_membership_state().cloned().collect();
        let mut all: BTreeSet<NodeId> = members.iter().map(|member| member.id().node).collect();
        all.retain(|node| !self.guard.lock().removed.contains(node));
        let unseen: Vec<NodeId> = self.members.keys().filter(|node| !all.contains(node)).copied().collect();
        // Some that were decoded never became members.
        self.guard.lock().known = all;
        members.iter().for_each(|member| self.show(now, member));
        unseen.into_iter().for_each(|node| self.unshow(node));
    }

    /// Publishes what foca now thinks of these nodes.
    fn look_at(&mut self, now: Now, mut nodes: BTreeSet<NodeId>) {
        let mut found = Vec::with_capacity(nodes.len());
        for member in self.foca.iter_membership_state() {
            if nodes.remove(&member.id().node) {
                found.push(member.clone());
                if nodes.is_empty() {
                    break;
                }
            }
        }
        found.iter().for_each(|member| self.show(now, member));
        nodes.into_iter().for_each(|node| self.unshow(node));
    }

    fn show(&mut self, now: Now, member: &FocaMember<Identity>) {
        let (id, state) = (member.id(), State::from(member.state()));
        if self.guard.lock().removed.contains(&id.node) {
            return self.unshow(id.node);
        }
        if self.suspects.get(&id.node).is_some_and(|told| (&told.0, State::Suspect) != (id, state)) {
            self.suspects.remove(&id.node);
        }
        if is_shown(&self.members, id, state) {
            return;
        }
        let old = self.members.get(&id.node);
        let since_ms = old.filter(|old| old.state == state).map_or(now.wall_ms, |old| old.since_ms);
        let from = old.map(|old| old.state);
        self.changes.push(Change { node: id.node, from, to: Some(state), incarnation: id.incarnation });
        let member = Member { address: id.address, incarnation: id.incarnation, state, since_ms };
        self.members.insert(id.node, member);
    }

    /// A node is none of foca's members any more.
    fn unshow(&mut self, node: NodeId) {
        self.suspects.remove(&node);
        if let Some(old) = self.members.remove(&node) {
            self.changes.push(Change { node, from: Some(old.state), to: None, incarnation: old.incarnation });
        }
    }

    /// Tells three members what is new, at once or soon.
    fn spread(&mut self, now: Now) {
        let free_at = self.spread_last + SPREAD_PERIOD;
        if self.foca.updates_backlog() == 0 || self.spread_at.is_some() {
            return;
        }
        if now.elapsed < free_at && self.spread_last > Duration::ZERO {
            self.spread_at = Some(free_at);
            self.arm(free_at, Timer::Spread);
            return;
        }
        self.spread_last = now.elapsed;
        // Gossiping changes no member, so there is nothing to look at.
        if self.foca.gossip(&mut self.sink).is_ok() {
            for (to, bytes) in std::mem::take(&mut self.sink.send) {
                self.push(to.node, to.address, bytes);
            }
        }
    }

    /// Our probe of a member failed: tell it, again and again, so that it can refute.
    fn accuse(&mut self, now: Now, suspect: &Identity, counter: foca::Incarnation) {
        let told = self.suspects.insert(suspect.node, (suspect.clone(), counter));
        if told.is_none_or(|told| told != (suspect.clone(), counter)) {
            self.doubt(now, suspect, counter, DOUBTS);
        }
    }

    /// A ping that carries the suspicion, so that its answer refutes. (foca tells a suspect only by chance.)
    fn doubt(&mut self, now: Now, suspect: &Identity, counter: foca::Incarnation, left: u8) {
        let still = |member: &FocaMember<Identity>| {
            member.id() == suspect && member.incarnation() == counter && member.state() == foca::State::Suspect
        };
        if left == 0 || !self.foca.iter_members().any(still) {
            return;
        }
        let header = Header {
            src: self.foca.identity().clone(),
            src_incarnation: self.own_counter,
            dst: suspect.clone(),
            message: Message::Ping(0),
        };
        let accusation = FocaMember::new(suspect.clone(), counter, foca::State::Suspect);
        let mut bytes = BytesMut::new();
        let encoded = PostcardCodec.encode_header(&header, &mut bytes).and_then(|()| {
            bytes.put_u16(1);
            PostcardCodec.encode_member(&accusation, &mut bytes)
        });
        if encoded.is_ok() {
            self.push(suspect.node, suspect.address, bytes.freeze());
        }
        let pause = self.suspicion() / (u32::from(DOUBTS) + 1);
        self.arm(now.elapsed + pause, Timer::Doubt(suspect.clone(), counter, left - 1));
    }

    fn learn(&mut self, node: NodeId, address: SocketAddr) {
        let removed = self.guard.lock().removed.contains(&node);
        let room = self.book.len() < NODES_MAX || self.book.contains_key(&node);
        if node == self.foca.identity().node || removed || !room {
            return;
        }
        let news = self.book.insert(node, address) != Some(address);
        if news && self.foca.num_members() == 0 && !self.left {
            self.knock(node, address);
        }
    }

    fn knock(&mut self, node: NodeId, address: SocketAddr) {
        // The right incarnation is not known, and not needed: an announcement is accepted by whoever is that node.
        let result = self.foca.announce(Identity { node, address, incarnation: 0 }, &mut self.sink);
        debug_assert!(result.is_ok(), "an announcement fits a datagram");
        for (to, bytes) in std::mem::take(&mut self.sink.send) {
            self.push(to.node, to.address, bytes);
        }
    }

    fn seek_now(&mut self, now: Now) {
        self.timers.remove(&self.seek_at);
        self.seek_pause = SEEK_MIN;
        self.seek_at = self.arm(now.elapsed, Timer::Seek);
    }

    /// Knocks at known peers that are no active members: at a few, ever more slowly, when there are no members at all; at
    /// one now and then otherwise, so that halves that forgot each other find together.
    fn seek(&mut self, now: Now) {
        let alone = self.foca.num_members() == 0;
        // Some that were decoded never became members; what else was missed is rare, and a look costs as much as there are
        // members.
        let odd = self.guard.lock().known.len() != self.members.len();
        self.seeks = self.seeks.wrapping_add(1);
        if alone || odd || self.seeks.is_multiple_of(LOOK_EVERY) {
            self.look(now);
        }
        let active = |node: &NodeId| self.members.get(node).is_some_and(|member| member.state != State::Down);
        let mut strangers: Vec<(NodeId, SocketAddr)> =
            self.book.iter().filter(|(node, _)| !active(node)).map(|(node, address)| (*node, *address)).collect();
        for _ in 0..if alone { FAN_OUT } else { 1 } {
            if !strangers.is_empty() {
                let (node, address) = strangers.swap_remove(self.rng.random_range(0..strangers.len()));
                self.knock(node, address);
            }
        }
        let pause = if alone { self.seek_pause } else { SEEK_MAX };
        self.seek_pause = if alone { (pause * 2).min(SEEK_MAX) } else { SEEK_MIN };
        // Spread by a quarter, so that nodes that woke together do not knock together for ever.
        let jitter = pause.mul_f64(self.rng.random_range(0.0..0.25));
        self.seek_at = self.arm(now.elapsed + pause + jitter, Timer::Seek);
    }

    fn remove(&mut self, now: Now, node: NodeId) {
        if node == self.foca.identity().node || !self.guard.lock().removed.insert(node) {
            return;
        }
        self.book.remove(&node);
        let known = self.foca.iter_membership_state().find(|member| member.id().node == node).cloned();
        let Some(known) = known else { return };
        let down = FocaMember::new(known.id().clone(), known.incarnation(), foca::State::Down);
        let result = self.foca.apply_many(std::iter::once(down), true, &mut self.sink);
        self.settle(now, result, true);
    }

    fn leave(&mut self, now: Now) {
        if self.left {
            return;
        }
        let result = self.foca.leave_cluster(&mut self.sink);
        // Once more to others: after this we answer nobody, and who was not told has to find out.
        let again = self.foca.gossip(&mut self.sink);
        self.settle(now, result.and(again), true);
        self.left = true;
        self.timers.clear();
    }

    fn suspicion(&self) -> Duration {
        SUSPICION * (1 + u32::from(self.health.multiplier()))
    }

    /// Adapts foca to the size of the fabric and to our health.
    fn tune(&mut self) {
        let want = ((self.foca.num_members() + 1).next_power_of_two(), self.health.multiplier());
        if want != self.tuned {
            self.tuned = want;
            let accepted = self.foca.set_config(config(want.0, want.1));
            debug_assert!(accepted.is_ok(), "only what foca allows is changed");
        }
    }

    fn push(&mut self, to: NodeId, address: SocketAddr, bytes: Bytes) {
        self.counters.datagrams_out += 1;
        self.counters.bytes_out += bytes.len() as u64;
        self.outgoing.push(Outgoing { to, address, bytes });
    }

    fn arm(&mut self, due: Duration, timer: Timer) -> (Duration, u64) {
        self.timer_sequence += 1;
        let key = (due, self.timer_sequence);
        self.timers.insert(key, timer);
        key
    }

    /// Starts out knowing these members (id, address, incarnation), as after a long life. For simulations of large fabrics,
    /// of more nodes than are supported too.
    pub fn preload(&mut self, now: Now, members: impl ExactSizeIterator<Item = (NodeId, SocketAddr, u64)>) {
        let room = members.len().max(NODES_MAX);
        self.guard.lock().room = room;
        let alive =
            members.map(|(node, address, incarnation)| FocaMember::alive(Identity { node, address, incarnation }));
        let result = self.foca.apply_many(alive, false, &mut self.sink);
        self.settle(now, result, true);
        // Built at once, a map has no empty places: of thousands of cores that is gigabytes.
        self.members = std::mem::take(&mut self.members).into_iter().collect();
    }
}

/// Whether a member is published so.
fn is_shown(members: &BTreeMap<NodeId, Member>, id: &Identity, state: State) -> bool {
    let same = |shown: &Member| (shown.state, shown.incarnation, shown.address) == (state, id.incarnation, id.address);
    members.get(&id.node).is_some_and(same)
}

impl From<foca::State> for State {
    fn from(state: foca::State) -> Self {
        match state {
            foca::State::Alive => State::Alive,
            foca::State::Suspect => State::Suspect,
            foca::State::Down => State::Down,
        }
    }
}
