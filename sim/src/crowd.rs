//! Membership alone, at size: the fabric's core (foca and what stands around it) of thousands of nodes in one event queue.
//!
//! It answers what whole nodes are too heavy for: how soon a death is known everywhere, whether anybody is held for dead
//! who is not, and what it costs. There is no transport and no disk here: a datagram is lost or arrives.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use fabric::ids::NodeId;
use fabric::membership::{Core, Counters, Input, Now, PROBE_PERIOD, State};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use crate::random::stream;

/// When the world begins, Unix milliseconds.
const WALL_MS: u64 = 1_700_000_000_000;
/// Datagrams that a host's socket holds for a program that is paused; more are lost, as with Linux' default buffer.
const SOCKET_DATAGRAMS: usize = 256;
/// A pause that is longer makes a death no false one (design section 5).
pub const PAUSE_EXCUSED: Duration = Duration::from_secs(2);
/// At the end of a run nobody dies: who was paused meanwhile has to probe the dead itself, and doubts itself first.
const LEARNING: Duration = Duration::from_secs(40);
/// On the way, at least and at most.
const DELAY_US: std::ops::Range<u64> = 200..2_000;

/// What happens to the crowd.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// How many nodes, all of which know each other from the start.
    pub nodes: usize,
    /// How long.
    pub length: Duration,
    /// Of a thousand datagrams so many are lost.
    pub loss_permille: u32,
    /// Nodes that die for good, spread over the run.
    pub deaths: usize,
    /// Nodes that are paused once, spread over the run.
    pub pauses: usize,
    /// For how long each.
    pub pause: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// From a death to each survivor's knowledge of it, sorted.
    pub detections: Vec<Duration>,
    /// Survivors that did not know of a death when the run ended, though there was a probe's and a suspicion's time.
    pub unaware: usize,
    /// Deaths believed of nodes that had not crashed nor been paused beyond two seconds: (by, of, when).
    pub false_deaths: Vec<(usize, usize, Duration)>,
    /// Datagrams that were sent.
    pub datagrams: u64,
    /// Their bytes, without any header.
    pub bytes: u64,
}

struct Host {
    core: Core,
    alive: bool,
    paused_until: Duration,
    backlog: Vec<(usize, Bytes)>,
    /// The timer that is in the queue.
    wake: Option<Duration>,
    /// Lives of this node that may be called dead.
    excused: BTreeSet<u64>,
    died: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Datagram { to: u32, from: u32, bytes: Bytes },
    Timer(u32),
    Die(u32),
    Pause(u32),
    Resume(u32),
}

/// The crowd and its one queue of events, in order of (nanosecond, sequence).
pub struct Crowd {
    plan: Plan,
    hosts: Vec<Host>,
    places: BTreeMap<NodeId, u32>,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    now: Duration,
    rng: StdRng,
    known: BTreeSet<(u32, u32)>,
    outcome: Outcome,
}

fn id(n: usize) -> NodeId {
    NodeId(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn address(n: usize) -> SocketAddr {
    ([10, (n >> 16) as u8, (n >> 8) as u8, n as u8], 7420).into()
}

impl Crowd {
    /// Nodes that have known each other for long. `told` hears how many are ready: it takes a while for thousands.
    pub fn new(plan: Plan, mut told: impl FnMut(usize)) -> Self {
        let mut rng = stream(plan.seed, "crowd", &[]);
        let all: Vec<_> = (0..plan.nodes).map(|n| (id(n), address(n), WALL_MS + 1)).collect();
        let mut crowd = Crowd {
            hosts: Vec::with_capacity(plan.nodes),
            places: all.iter().enumerate().map(|(n, (id, ..))| (*id, n as u32)).collect(),
            queue: BinaryHeap::new(),
            sequence: 0,
            now: Duration::ZERO,
            known: BTreeSet::new(),
            outcome: Outcome::default(),
            rng: stream(plan.seed, "crowd network", &[]),
            plan,
        };
        for (n, (node, address, incarnation)) in all.iter().enumerate() {
            let seed = std::array::from_fn(|_| rng.next_u32() as u8);
            let now = Now { elapsed: Duration::ZERO, wall_ms: WALL_MS };
            let mut core = Core::new(*node, *address, *incarnation, std::iter::empty(), seed, now);
            let others: Vec<_> = all.iter().filter(|(other, ..)| other != node).copied().collect();
            core.preload(now, others.into_iter());
            let (paused_until, excused) = (Duration::ZERO, BTreeSet::new());
            crowd.hosts.push(Host {
                core,
                alive: true,
                paused_until,
                backlog: Vec::new(),
                wake: None,
                excused,
                died: None,
            });
            // Nodes of an old fabric are not in step.
            let offset = Duration::from_micros(rng.random_range(0..PROBE_PERIOD.as_micros() as u64));
            crowd.hosts[n].paused_until = offset;
            crowd.push(offset, Event::Resume(n as u32));
            told(n + 1);
        }
        crowd.schedule(&mut rng);
        crowd
    }

    /// Draws who dies and who is paused, and when: different nodes, spread over all but the end of the run.
    fn schedule(&mut self, rng: &mut StdRng) {
        let quiet = Duration::from_secs(1);
        let last = self.plan.length.saturating_sub(LEARNING).max(quiet + Duration::from_micros(1));
        let when = |rng: &mut StdRng| {
            Duration::from_micros(rng.random_range(quiet.as_micros() as u64..last.as_micros() as u64))
        };
        let mut left: Vec<u32> = (0..self.plan.nodes as u32).collect();
        let (deaths, pauses) = (self.plan.deaths, self.plan.pauses);
        for number in 0..(deaths + pauses).min(left.len().saturating_sub(2)) {
            let node = left.swap_remove(rng.random_range(0..left.len()));
            let event = if number < deaths { Event::Die(node) } else { Event::Pause(node) };
            let at = when(rng);
            self.push(at, event);
        }
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at.as_nanos() as u64, self.sequence, event)));
    }

    /// Runs it all. `told` hears the simulated seconds.
    pub fn run(mut self, mut told: impl FnMut(u64)) -> (Outcome, Vec<Counters>) {
        let mut second = 0;
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            self.now = Duration::from_nanos(at);
            if self.now > self.plan.length {
                break;
            }
            if self.now.as_secs() > second {
                second = self.now.as_secs();
                told(second);
            }
            self.happen(event);
        }
        self.finish()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Datagram { to, from, bytes } => self.arrive(to as usize, from as usize, bytes),
            Event::Timer(n) => self.fire(n as usize),
            Event::Die(n) => {
                let host = &mut self.hosts[n as usize];
                (host.alive, host.died) = (false, Some(self.now));
            }
            Event::Pause(n) => {
                let until = self.now + self.plan.pause;
                let host = &mut self.hosts[n as usize];
                host.paused_until = until;
                if self.plan.pause > PAUSE_EXCUSED {
                    host.excused.insert(host.core.incarnation());
                }
                self.push(until, Event::Resume(n));
            }
            Event::Resume(n) => {
                for (from, bytes) in std::mem::take(&mut self.hosts[n as usize].backlog) {
                    self.arrive(n as usize, from, bytes);
                }
                self.hosts[n as usize].wake = None;
                self.fire(n as usize);
            }
        }
    }

    fn clock(&self) -> Now {
        Now { elapsed: self.now, wall_ms: WALL_MS + self.now.as_millis() as u64 }
    }

    fn arrive(&mut self, to: usize, from: usize, bytes: Bytes) {
        let (clock, sender) = (self.clock(), id(from));
        let host = &mut self.hosts[to];
        if !host.alive {
            return;
        }
        if host.paused_until > self.now {
            if host.backlog.len() < SOCKET_DATAGRAMS {
                host.backlog.push((from, bytes));
            }
            return;
        }
        host.core.handle(clock, Input::Datagram(sender, bytes));
        self.flush(to);
    }

    fn fire(&mut self, n: usize) {
        let clock = self.clock();
        let host = &mut self.hosts[n];
        if !host.alive || host.paused_until > self.now || host.wake.is_some_and(|wake| wake > self.now) {
            return;
        }
        host.wake = None;
        host.core.fire(clock);
        self.flush(n);
    }

    /// Sends what the core wants sent, notes what it believes, and sees to its next timer.
    fn flush(&mut self, n: usize) {
        for out in self.hosts[n].core.take_outgoing() {
            self.outcome.datagrams += 1;
            self.outcome.bytes += out.bytes.len() as u64;
            let lost = self.rng.random_range(0..1_000) < self.plan.loss_permille;
            let Some(to) = self.places.get(&out.to).copied().filter(|_| !lost) else { continue };
            let arrival = self.now + Duration::from_micros(self.rng.random_range(DELAY_US));
            self.push(arrival, Event::Datagram { to, from: n as u32, bytes: out.bytes });
        }
        for change in self.hosts[n].core.take_changes() {
            if change.to == Some(State::Down) {
                self.believe(n, change.node, change.incarnation);
            }
        }
        let Some(due) = self.hosts[n].core.next_timer() else { return };
        if self.hosts[n].wake.is_none_or(|wake| due < wake) {
            self.hosts[n].wake = Some(due);
            self.push(due.max(self.now), Event::Timer(n as u32));
        }
    }

    /// A node holds another life of a node for dead.
    fn believe(&mut self, by: usize, node: NodeId, incarnation: u64) {
        let Some(of) = self.places.get(&node).copied() else { return };
        let host = &self.hosts[of as usize];
        match host.died {
            Some(died) if died <= self.now => {
                if self.known.insert((by as u32, of)) {
                    self.outcome.detections.push(self.now - died);
                }
            }
            _ if host.excused.contains(&incarnation) => {}
            _ => self.outcome.false_deaths.push((by, of as usize, self.now)),
        }
    }

    fn finish(mut self) -> (Outcome, Vec<Counters>) {
        let survivors = self.hosts.iter().filter(|host| host.alive).count();
        let dead = self.hosts.iter().filter(|host| host.died.is_some()).count();
        let dead_know = self.known.iter().filter(|(by, _)| !self.hosts[*by as usize].alive).count();
        self.outcome.unaware = survivors * dead - (self.known.len() - dead_know);
        self.outcome.detections.sort();
        (self.outcome, self.hosts.iter().map(|host| host.core.counters()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            seed: 3,
            nodes: 60,
            length: Duration::from_secs(70),
            loss_permille: 50,
            deaths: 4,
            pauses: 4,
            pause: Duration::from_secs(10),
        }
    }

    #[test]
    fn deaths_are_known_and_nobody_else_is_called_dead() {
        let (outcome, _) = Crowd::new(plan(), |_| {}).run(|_| {});
        assert_eq!((outcome.unaware, &outcome.false_deaths), (0, &Vec::new()));
        assert!(outcome.detections.len() >= 4 * 56);
        let median = outcome.detections[outcome.detections.len() / 2];
        assert!(median < Duration::from_secs(4), "{median:?}");
    }

    #[test]
    fn who_is_called_dead_without_reason_is_named() {
        // A pause that nobody excuses: as if the node had only been slow.
        let mut crowd = Crowd::new(Plan { deaths: 0, pauses: 0, ..plan() }, |_| {});
        let until = Duration::from_secs(12);
        crowd.hosts[7].paused_until = until;
        crowd.push(until, Event::Resume(7));
        let (outcome, _) = crowd.run(|_| {});
        assert!(!outcome.false_deaths.is_empty());
        assert!(outcome.false_deaths.iter().all(|(_, of, _)| *of == 7), "{:?}", outcome.false_deaths);
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        let run = || {
            let (outcome, counters) = Crowd::new(plan(), |_| {}).run(|_| {});
            (outcome.detections, outcome.datagrams, outcome.bytes, counters)
        };
        assert_eq!(run(), run());
    }
}
