//! Membership in virtual time: many cores on an in-memory network that loses, delays, cuts, kills and pauses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const WALL_MS: u64 = 1_700_000_000_000;

fn id(n: usize) -> NodeId {
    NodeId(*blake3::hash(&n.to_le_bytes()).as_bytes())
}
fn address(n: usize) -> SocketAddr {
    ([10, 0, (n >> 8) as u8, n as u8], 7420).into()
}
fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A node of the simulated fabric.
struct Host {
    core: Core,
    running: bool,
    /// Nothing reaches it, and its timers wait, until then.
    paused_until: Duration,
    side: u8,
    lives: u64,
}

/// The network: events in order of (time, sequence).
struct World {
    hosts: Vec<Host>,
    now: Duration,
    queue: BTreeMap<(Duration, u64), (usize, NodeId, Bytes)>,
    sequence: u64,
    rng: StdRng,
    loss: f64,
    /// When each node first called each other one down.
    deaths: BTreeMap<(usize, NodeId), Duration>,
    by_id: BTreeMap<NodeId, usize>,
}

impl World {
    fn new(nodes: usize, seed: u64) -> Self {
        let mut world = World {
            hosts: Vec::new(),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            rng: StdRng::seed_from_u64(seed),
            loss: 0.0,
            deaths: BTreeMap::new(),
            by_id: (0..nodes).map(|n| (id(n), n)).collect(),
        };
        for n in 0..nodes {
            let core = world.boot(n, 1);
            world.hosts.push(Host { core, running: true, paused_until: Duration::ZERO, side: 0, lives: 1 });
        }
        world
    }

    /// Ten nodes, say, that know each other.
    fn joined(nodes: usize, seed: u64) -> Self {
        let mut world = World::new(nodes, seed);
        world.run_until(ms(30_000), |world| world.all_alive());
        assert!(world.all_alive(), "the fabric did not form");
        world
    }

    /// A large fabric that knows each other from the start.
    fn settled(nodes: usize, seed: u64) -> Self {
        let mut world = World::new(nodes, seed);
        let now = world.clock();
        for n in 0..nodes {
            let others = (0..nodes).filter(|other| *other != n).map(|other| (id(other), address(other), WALL_MS + 1));
            world.hosts[n].core.preload(now, others.collect::<Vec<_>>().into_iter());
            // Nodes of an old fabric are not in step.
            let offset = ms(world.rng.random_range(0..300));
            world.hosts[n].paused_until = offset;
        }
        world
    }

    fn boot(&mut self, n: usize, life: u64) -> Core {
        let peers = (0..3).map(|peer| (id(peer), address(peer)));
        Core::new(id(n), address(n), WALL_MS + life, peers, self.rng.random(), self.clock())
    }

    fn clock(&self) -> Now {
        Now { elapsed: self.now, wall_ms: WALL_MS + self.now.as_millis() as u64 }
    }

    fn all_alive(&self) -> bool {
        let running = self.hosts.iter().filter(|host| host.running).count();
        let knows = |host: &Host| host.core.members().values().filter(|member| member.state == State::Alive).count();
        self.hosts.iter().filter(|host| host.running).all(|host| knows(host) == running - 1)
    }

    fn kill(&mut self, n: usize) {
        self.hosts[n].running = false;
    }
    fn restart(&mut self, n: usize) {
        let life = self.hosts[n].lives + 1;
        let core = self.boot(n, life);
        let side = self.hosts[n].side;
        self.hosts[n] = Host { core, running: true, paused_until: self.now, side, lives: life };
    }
    fn pause(&mut self, n: usize, time: Duration) {
        self.hosts[n].paused_until = self.now + time;
    }

    fn flush(&mut self, n: usize) {
        for out in self.hosts[n].core.take_outgoing() {
            assert!(out.bytes.len() <= crate::limits::DATAGRAM_BYTES_MAX);
            let Some(&to) = self.by_id.get(&out.to) else { continue };
            let lost = self.rng.random_bool(self.loss) || address(to) != out.address;
            if !lost && self.hosts[to].side == self.hosts[n].side {
                self.sequence += 1;
                let arrival = self.now + Duration::from_micros(self.rng.random_range(200..2_000));
                self.queue.insert((arrival, self.sequence), (to, id(n), out.bytes));
            }
        }
        for change in self.hosts[n].core.take_changes() {
            if change.to == Some(State::Down) && change.from.is_some() {
                self.deaths.entry((n, change.node)).or_insert(self.now);
            }
        }
    }

    /// Runs until `time` has passed or `done`.
    fn run_until(&mut self, time: Duration, done: impl Fn(&World) -> bool) {
        let end = self.now + time;
        while self.now < end && !done(self) {
            self.step(ms(1));
        }
    }
    fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    fn step(&mut self, quantum: Duration) {
        self.now += quantum;
        let mut held = Vec::new();
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (key, (to, from, bytes)) = entry.remove_entry();
            let clock = self.clock();
            let host = &mut self.hosts[to];
            if host.running && host.paused_until > self.now {
                held.push(((host.paused_until, key.1), (to, from, bytes)));
            } else if host.running {
                host.core.handle(clock, Input::Datagram(from, bytes));
                self.flush(to);
            }
        }
        self.queue.extend(held);
        for n in 0..self.hosts.len() {
            let host = &mut self.hosts[n];
            let due = host.core.next_timer().is_some_and(|due| due <= self.now);
            if host.running && host.paused_until <= self.now && due {
                let clock = Now { elapsed: self.now, wall_ms: WALL_MS + self.now.as_millis() as u64 };
                host.core.fire(clock);
                self.flush(n);
            }
        }
    }

    /// How long after `since` each running node knew of the death; panics when one does not know.
    fn detection(&self, dead: usize, since: Duration) -> Vec<Duration> {
        let running = (0..self.hosts.len()).filter(|n| self.hosts[*n].running);
        running.map(|n| *self.deaths.get(&(n, id(dead))).expect("everybody knows") - since).collect()
    }
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

#[test]
fn ten_nodes_join_within_seconds() {
    let mut world = World::new(10, 1);
    world.run_until(ms(5_000), World::all_alive);
    assert!(world.all_alive(), "after {:?}", world.now);
    assert!(world.deaths.is_empty());
}

#[test]
fn a_kill_is_known_everywhere_within_two_and_a_half_seconds() {
    let mut slowest = Vec::new();
    for seed in 0..30 {
        let mut world = World::joined(10, seed);
        world.run(ms(3_000 + seed * 37));
        let killed = world.now;
        world.kill(4);
        world.run(ms(5_000));
        slowest.push(world.detection(4, killed).into_iter().max().unwrap());
        assert!(world.deaths.keys().all(|(_, dead)| *dead == id(4)), "seed {seed}");
    }
    let worst = *slowest.iter().max().unwrap();
    let median = median(slowest);
    eprintln!("10 nodes: confirmed everywhere after {median:?} in the median, {worst:?} at worst");
    assert!(median <= ms(2_400), "median {median:?}");
    assert!(worst <= ms(4_500), "worst {worst:?}");
}

fn large_fabric(nodes: usize) {
    let mut world = World::settled(nodes, 3);
    world.run(ms(1_000));
    let killed = world.now;
    let dead = [5, nodes / 2, nodes - 1];
    dead.iter().for_each(|dead| world.kill(*dead));
    world.run(ms(5_000));
    let all: Vec<Duration> = dead.iter().flat_map(|dead| world.detection(*dead, killed)).collect();
    eprintln!("{nodes} nodes: {:?} in the median, {:?} at worst", median(all.clone()), all.iter().max());
    assert_eq!(world.deaths.len(), 3 * (nodes - 3), "no false death");
}

#[test]
fn two_hundred_nodes_know_within_five_seconds() {
    large_fabric(200);
}

#[test]
#[ignore = "needs a minute of a core"]
fn a_thousand_nodes_know_within_five_seconds() {
    large_fabric(1_000);
}

#[test]
fn at_five_percent_loss_nobody_dies_in_ten_minutes() {
    let mut world = World::joined(10, 7);
    world.loss = 0.05;
    world.run(Duration::from_secs(600));
    assert_eq!(world.deaths, BTreeMap::new());
    let failed: u64 = world.hosts.iter().map(|host| host.core.counters().probes_failed).sum();
    eprintln!("{failed} probes failed, all were refuted");
    assert!(failed > 0, "the test tests something");
}

#[test]
fn a_pause_of_two_seconds_less_a_breath_is_no_death() {
    let mut world = World::joined(10, 8);
    for round in 0..40 {
        world.pause(round % 10, ms(1_900));
        world.run(ms(4_000));
        assert_eq!(world.deaths, BTreeMap::new(), "round {round}");
    }
}

#[test]
fn a_node_that_was_paused_long_condemns_nobody_and_comes_back() {
    let mut world = World::joined(10, 9);
    for n in 0..10 {
        world.pause(n, ms(10_000));
        world.run(ms(15_000));
        assert!(world.deaths.keys().all(|(by, dead)| *by != n && *dead == id(n)), "node {n} condemned others");
        world.run_until(ms(20_000), World::all_alive);
        assert!(world.all_alive(), "node {n} did not come back");
        assert_eq!(world.hosts[n].core.incarnation(), WALL_MS + 2, "under a new incarnation");
        world.deaths.clear();
    }
}

#[test]
fn a_daemon_that_is_back_within_the_suspicion_time_is_not_declared_dead() {
    let mut world = World::joined(10, 10);
    for n in 0..10 {
        world.kill(n);
        world.run(ms(1_500));
        world.restart(n);
        world.run(ms(4_000));
        assert_eq!(world.deaths, BTreeMap::new(), "node {n}");
        assert!(world.all_alive());
        let seen = world.hosts[(n + 1) % 10].core.members()[&id(n)].incarnation;
        assert_eq!(seen, WALL_MS + 2);
    }
}

#[test]
fn the_dead_come_back_in_a_new_life() {
    let mut world = World::joined(5, 11);
    world.kill(2);
    world.run(ms(5_000));
    assert_eq!(world.hosts[0].core.members()[&id(2)].state, State::Down);
    world.restart(2);
    world.run_until(ms(5_000), World::all_alive);
    assert!(world.all_alive());
}

#[test]
fn a_healed_partition_merges() {
    for seed in 0..5 {
        let mut world = World::joined(10, seed);
        (0..4).for_each(|n| world.hosts[n].side = 1);
        world.run(ms(20_000));
        assert_eq!(world.hosts[0].core.members()[&id(9)].state, State::Down);
        (0..4).for_each(|n| world.hosts[n].side = 0);
        let healed = world.now;
        world.run_until(ms(30_000), World::all_alive);
        assert!(world.all_alive(), "seed {seed}: not merged");
        assert!(world.now - healed < ms(10_000), "seed {seed}: merged after {:?}", world.now - healed);
    }
}

#[test]
fn everybody_alone_finds_together_again() {
    let mut world = World::joined(5, 12);
    (0..5).for_each(|n| world.hosts[n].side = n as u8);
    world.run(Duration::from_secs(7_300));
    assert!(world.hosts.iter().all(|host| host.core.members().is_empty()), "the dead are forgotten after an hour");
    (0..5).for_each(|n| world.hosts[n].side = 0);
    world.run_until(ms(30_000), World::all_alive);
    assert!(world.all_alive());
}

#[test]
fn a_leaver_is_down_at_once_and_stays_so() {
    let mut world = World::joined(10, 13);
    let clock = world.clock();
    world.hosts[3].core.handle(clock, Input::Leave);
    world.flush(3);
    world.kill(3);
    let left = world.now;
    world.run(ms(1_000));
    assert!(world.detection(3, left).into_iter().max().unwrap() < ms(500));
}

#[test]
fn a_moved_node_is_followed() {
    let mut world = World::joined(4, 14);
    let (clock, elsewhere) = (world.clock(), SocketAddr::from(([10, 9, 9, 9], 1)));
    world.hosts[1].core.handle(clock, Input::Readdress(elsewhere));
    world.flush(1);
    world.run(ms(1_000));
    assert_eq!(world.hosts[0].core.members()[&id(1)].address, elsewhere);
    assert_eq!(world.deaths, BTreeMap::new());
}

#[test]
fn a_removed_node_is_gone_and_talk_of_it_is_ignored() {
    let mut world = World::joined(4, 15);
    for n in 0..3 {
        let clock = world.clock();
        world.hosts[n].core.handle(clock, Input::Remove(id(3)));
        world.flush(n);
    }
    world.run(ms(20_000));
    assert!(world.hosts[..3].iter().all(|host| !host.core.members().contains_key(&id(3))));
    assert!(world.hosts[0].core.counters().refused > 0);
}

#[test]
fn a_datagram_counts_only_from_its_true_sender() {
    let mut world = World::joined(3, 16);
    let clock = world.clock();
    world.hosts[1].core.handle(clock, Input::Leave);
    let goodbye = world.hosts[1].core.take_outgoing().into_iter().find(|out| out.to == id(0)).unwrap();
    let victim = &mut world.hosts[0].core;
    victim.handle(clock, Input::Datagram(id(2), goodbye.bytes.clone()));
    assert_eq!(victim.members()[&id(1)].state, State::Alive);
    assert_eq!(victim.counters().refused, 1);
    victim.handle(clock, Input::Datagram(id(1), goodbye.bytes));
    assert_eq!(victim.members()[&id(1)].state, State::Down);
}

#[test]
fn equal_seeds_give_equal_runs() {
    let trace = |seed| {
        let mut world = World::joined(8, seed);
        world.loss = 0.05;
        world.kill(1);
        world.run(ms(10_000));
        let counters: Vec<Counters> = world.hosts.iter().map(|host| host.core.counters()).collect();
        (counters, world.deaths, world.sequence)
    };
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any bytes, and any damage to true datagrams, leave a core that still works.
    #[test]
    fn hostile_datagrams_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..1200), at in 0usize..200, to in any::<u8>()) {
        let mut world = World::joined(3, 17);
        let clock = world.clock();
        world.hosts[1].core.handle(clock, Input::Leave);
        let mut damaged = world.hosts[1].core.take_outgoing().remove(0).bytes.to_vec();
        let at = at % damaged.len();
        damaged[at] = to;
        for bytes in [noise, damaged] {
            world.hosts[0].core.handle(clock, Input::Datagram(id(1), bytes.into()));
        }
        world.run(ms(500));
        prop_assert!(world.hosts[0].core.members().contains_key(&id(2)));
    }
}
