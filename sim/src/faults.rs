//! Which faults a run draws, and when: a pure plan from the seed. The world carries it out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use thiserror::Error;

use crate::actor::HostId;
use crate::disk::Loss;
use crate::limits::{ACTIONS_MAX, QUANTUM_US};
use crate::net::Weather;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Packets are lost.
    Loss,
    /// Packets take long and different times.
    Delay,
    /// Packets arrive twice.
    Duplicate,
    /// Packets overtake each other.
    Reorder,
    /// Hosts can send little.
    Bandwidth,
    /// Two groups of hosts hear nothing of each other.
    Partition,
    /// A host is heard and hears nothing, or the reverse.
    OneWay,
    /// A partition that comes and goes.
    Flap,
    /// A host loses its power, now or in the middle of a write.
    Crash,
    /// The daemon dies, its host lives.
    Daemon,
    /// The daemon is stopped (SIGSTOP) for a while.
    Pause,
    /// The daemon is stopped for about as long as a lease lasts, and meanwhile the disks of all others are slow: what is
    /// decided about the lease takes long.
    Lapse,
    /// A host's links become slow, and then let nothing pass for longer than a lease lasts.
    Fade,
    /// A host stands still with its clock, as a paused virtual one does.
    StopClock,
    /// Monotonic clocks differ in rate.
    Drift,
    /// Somebody sets a wall clock.
    WallJump,
    /// A disk takes long over each sync.
    SlowDisk,
    /// A disk has no room left for a while.
    FullDisk,
    /// Syncs of a disk fail.
    FailSync,
    /// Writes to a disk fail.
    FailWrite,
    /// A machine loses its supervisor, and ends.
    MachineDies,
    /// Machines do not start on a host.
    StartFails,
    /// The supervisors of a host's machines hang.
    FreezeHangs,
    /// A bit of what a host has synced flips.
    Rot,
    /// A host comes back with an empty disk.
    LoseDisk,
    /// A host loses its power, and when it is back reaches nobody for a long while.
    Island,
    /// A node leaves its cluster, and its host joins again.
    Leave,
    /// A daemon is stopped in an orderly way, and started again.
    Stop,
}

impl Fault {
    /// All of them with their names.
    pub const ALL: [(Fault, &'static str); 28] = [
        (Fault::Loss, "loss"),
        (Fault::Delay, "delay"),
        (Fault::Duplicate, "duplicate"),
        (Fault::Reorder, "reorder"),
        (Fault::Partition, "partition"),
        (Fault::OneWay, "one-way"),
        (Fault::Crash, "crash"),
        (Fault::Daemon, "daemon"),
        (Fault::Pause, "pause"),
        (Fault::StopClock, "stop-clock"),
        (Fault::Drift, "drift"),
        (Fault::WallJump, "wall-jump"),
        (Fault::Bandwidth, "bandwidth"),
        (Fault::Flap, "flap"),
        (Fault::SlowDisk, "slow-disk"),
        (Fault::FullDisk, "full-disk"),
        (Fault::FailSync, "fail-sync"),
        (Fault::FailWrite, "fail-write"),
        (Fault::MachineDies, "machine-dies"),
        (Fault::StartFails, "start-fails"),
        (Fault::FreezeHangs, "freeze-hangs"),
        (Fault::Rot, "rot"),
        (Fault::LoseDisk, "lose-disk"),
        (Fault::Leave, "leave"),
        (Fault::Stop, "stop"),
        (Fault::Island, "island"),
        (Fault::Lapse, "lapse"),
        (Fault::Fade, "fade"),
    ];
}

/// The first so many of them are the usual ones: hosts, clocks and links, without disks that fail or are lost, narrow or
/// flapping links, machines that die and nodes that come and go.
const USUAL: usize = 12;

/// Why a list of faults is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{value:?} is no fault; known are all, usual, none, {}", Fault::ALL.map(|(_, name)| name).join(", "))]
pub struct UnknownFault {
    value: String,
}

/// The kinds of fault that a run may draw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(BTreeSet<Fault>);

impl Faults {
    /// These kinds.
    pub fn of(kinds: impl IntoIterator<Item = Fault>) -> Self {
        Faults(kinds.into_iter().collect())
    }

    /// Whether it may draw every kind.
    pub fn is_all(&self) -> bool {
        self.0.len() == Fault::ALL.len()
    }

    /// Whether it may draw this kind.
    pub fn has(&self, fault: Fault) -> bool {
        self.0.contains(&fault)
    }
}

impl FromStr for Faults {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        match text {
            "all" => return Ok(Faults(Fault::ALL.iter().map(|(fault, _)| *fault).collect())),
            "none" => return Ok(Faults(BTreeSet::new())),
            "usual" => return Ok(Faults(Fault::ALL[..USUAL].iter().map(|(fault, _)| *fault).collect())),
            _ => {}
        }
        let one = |name: &str| {
            let known = Fault::ALL.iter().find(|(_, known)| *known == name);
            known.map(|(fault, _)| *fault).ok_or_else(|| UnknownFault { value: name.chars().take(80).collect() })
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Faults)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0 => return f.write_str("none"),
            all if all == Fault::ALL.len() => return f.write_str("all"),
            _ => {}
        }
        let names = Fault::ALL.iter().filter(|(fault, _)| self.has(*fault)).map(|(_, name)| *name);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

/// Which of a plan's actions are left out, by their number from 0: what a shrunken run is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skip(BTreeSet<u64>);

/// Why a list of actions is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{value:?} is no list of actions, such as 0-3,7, of numbers below {ACTIONS_MAX}")]
pub struct BadSkip {
    value: String,
}

impl Skip {
    /// These actions.
    pub fn of(actions: impl IntoIterator<Item = u64>) -> Self {
        Skip(actions.into_iter().collect())
    }

    /// Whether this action is left out.
    pub fn has(&self, action: u64) -> bool {
        self.0.contains(&action)
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// This and these as well.
    pub fn with(&self, actions: impl IntoIterator<Item = u64>) -> Self {
        Skip(self.0.iter().copied().chain(actions).collect())
    }
}

impl FromStr for Skip {
    type Err = BadSkip;

    fn from_str(text: &str) -> Result<Self, BadSkip> {
        let refuse = || BadSkip { value: text.chars().take(80).collect() };
        let number = |text: &str| text.parse::<u64>().ok().filter(|n| *n < ACTIONS_MAX).ok_or_else(refuse);
        let mut all = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            all.extend(number(first)?..=number(last)?);
        }
        Ok(Skip(all))
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for n in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *n => *last = *n,
                _ => ranges.push((*n, *n)),
            }
        }
        let word =
            |(first, last): (u64, u64)| if first == last { first.to_string() } else { format!("{first}-{last}") };
        f.write_str(&ranges.into_iter().map(word).collect::<Vec<_>>().join(","))
    }
}

/// What the world shall do. An action on a host that is down does nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Changes the links.
    Weather(Weather),
    /// Makes one direction slow until the next [`Action::Heal`], by so many microseconds.
    Slow(HostId, HostId, u64),
    /// Lets nothing pass between these, from first to second, until the next [`Action::Heal`].
    Cut(Vec<(HostId, HostId)>),
    /// Ends cuts and slow links.
    Heal,
    /// Cuts a host's power, and restores it after so many microseconds.
    Crash(HostId, Loss, u64),
    /// Cuts a host's power after so many operations of its disk.
    Arm(HostId, u64, Loss),
    /// Ends the daemon, and starts it after so many microseconds.
    EndDaemon(HostId, u64),
    /// Stops the daemon for so many microseconds; its clocks go on.
    Pause(HostId, u64),
    /// Stops the daemon for so many microseconds, and lets each sync of all other disks take so many, until
    /// [`Action::MendDisk`].
    Lapse(HostId, u64, u64),
    /// Makes all links of a host slower by so many microseconds, until [`Action::Bridge`].
    Fade(HostId, u64),
    /// Cuts a host's links, until [`Action::Bridge`].
    CutOff(HostId),
    /// Stops the host and its clocks for so many microseconds.
    StopClock(HostId, u64),
    /// Sets a wall clock, off by so many microseconds.
    SetWall(HostId, i64),
    /// Lets each sync of a host's disk take so many microseconds; 0 is what it usually takes.
    SlowDisk(HostId, u64),
    /// Leaves a host's disk so many bytes of room, until [`Action::MendDisk`]; with `true`, growing files have what they
    /// allocated ahead besides.
    FillDisk(HostId, u64, bool),
    /// Lets so many further syncs of a host's disk fail.
    FailSyncs(HostId, u32),
    /// Lets so many further writes to a host's disk fail.
    FailWrites(HostId, u32),
    /// Gives a host's disk its room and its speed back.
    MendDisk(HostId),
    /// Ends a host's machine, the one of this number modulo how many are up, with its supervisor.
    EndMachine(HostId, u64),
    /// Lets so many further starts of machines fail on a host.
    FailStarts(HostId, u32),
    /// Lets the supervisors of a host hang for so many microseconds; with `true`, it is cut off until [`Action::Bridge`], as
    /// when its storage and its links are one.
    Hang(HostId, u64, bool),
    /// Has a host leave the others.
    Leave(HostId),
    /// Has a daemon stop, for so many microseconds.
    Stop(HostId, u64),
    /// Cuts a host's power for so many microseconds, and its links until [`Action::Bridge`].
    Island(HostId, Loss, u64),
    /// Ends [`Action::Island`], [`Action::Fade`] and [`Action::CutOff`].
    Bridge(HostId),
    /// Cuts a host's power and flips a bit on its disk, if the others can do without it; it boots after so many microseconds.
    Rot(HostId, u64),
    /// Takes a host's disk away, if the others can do without it; it boots with an empty one after so many microseconds.
    LoseDisk(HostId, u64),
}

/// Draws actions from the seed.
#[derive(Debug)]
pub struct Plan {
    faults: Faults,
    /// How often each kind is drawn, in relation to the others.
    rates: BTreeMap<Fault, u32>,
    hosts: Vec<HostId>,
    rng: StdRng,
    next_us: u64,
    heal_us: Option<u64>,
    /// A flapping partition, and how long it stays as it is each time that it changes, the last one first.
    flaps: (Vec<(HostId, HostId)>, Vec<u64>),
    /// Disks that are to be mended, and when.
    mend: BTreeMap<HostId, u64>,
    /// Fading hosts that are to be cut off, and when.
    fade: BTreeMap<HostId, u64>,
    /// Islands that are to be bridged, and when.
    bridge: BTreeMap<HostId, u64>,
    skip: Skip,
    drawn: u64,
}

/// How often a kind of fault is drawn in a run, in relation to the others: some runs are full of one, and others know
/// little of it, so that what shows only without it shows, too (swarm testing: Groce et al., ISSTA 2012).
const RATES: [u32; 4] = [1, 3, 6, 12];

/// Least and most time between two actions, in microseconds.
const GAP_US: std::ops::Range<u64> = 200_000..2_500_000;

/// How much faster or slower than it should a clock goes at most, in millionths: what leases are made for.
const DRIFT_PPM: i64 = 10_000;

/// How long supervisors hang: longer than a lease lasts, now and then.
const HANG_US: std::ops::Range<u64> = 500_000..16_000_000;

/// How long the daemon of a lapse is stopped: its lease lasts 6 s from its last renewal, which is up to 2 s old.
const LAPSE_US: std::ops::Range<u64> = 4_800_000..6_800_000;

/// How long a sync of the others' disks takes in a lapse, and how long they stay so when it is over.
const LAPSE_SYNC_US: std::ops::Range<u64> = 100_000..500_000;
const LAPSE_ENDS_US: u64 = 1_000_000;

/// How long links are slow before they let nothing pass, how slow, and how long nothing passes then: a renewal of a lease,
/// which may take 1.5 s, is answered on the slow link, and longer ago than its holder would like to believe.
const FADE_US: std::ops::Range<u64> = 3_000_000..8_000_000;
const FADE_EXTRA_US: std::ops::Range<u64> = 100_000..700_000;
const FADED_US: std::ops::Range<u64> = 6_000_000..12_000_000;

/// How long a host that is back reaches nobody: a node that is alone with its copy waits 15 s before it goes by it.
const ISLAND_US: std::ops::Range<u64> = 1_000_000..25_000_000;

/// How long a daemon that was told to stop is away at most: longer than a lease, shorter than its planned absence.
const STOPPED_US_MAX: u64 = 15_000_000;

/// How long a flapping partition is there, or not, at a time.
const FLAP_US: std::ops::Range<u64> = 200_000..1_500_000;

impl Plan {
    /// A plan for these hosts, whose first action is not before `from_us`.
    pub fn new(faults: Faults, hosts: Vec<HostId>, from_us: u64, mut rng: StdRng) -> Self {
        let kinds = faults.0.iter().copied().filter(|fault| *fault != Fault::Drift);
        let rates = kinds.map(|fault| (fault, *RATES.choose(&mut rng).unwrap_or(&1))).collect();
        Plan {
            faults,
            rates,
            hosts,
            rng,
            next_us: from_us,
            heal_us: None,
            flaps: (Vec::new(), Vec::new()),
            mend: BTreeMap::new(),
            fade: BTreeMap::new(),
            bridge: BTreeMap::new(),
            skip: Skip::default(),
            drawn: 0,
        }
    }

    /// Leaves these actions out. They are drawn all the same, so that the others stay what they are.
    pub fn skipping(self, skip: Skip) -> Self {
        Plan { skip, ..self }
    }

    /// How often each kind is drawn, in relation to the others.
    pub fn rates(&self) -> &BTreeMap<Fault, u32> {
        &self.rates
    }

    /// Actions drawn so far.
    pub fn drawn(&self) -> u64 {
        self.drawn
    }

    /// The drift of a host's clock, in millionths.
    pub fn drift_ppm(&mut self) -> i64 {
        if self.faults.has(Fault::Drift) { self.rng.random_range(-DRIFT_PPM..=DRIFT_PPM) } else { 0 }
    }

    /// When the power comes back to a host whose armed cut fell, after so many microseconds.
    pub fn downtime_us(&mut self) -> u64 {
        self.rng.random_range(1_000..6_000_000)
    }

    /// Notes until when a host is to be cut off; not where such faults are left out.
    pub fn cuts_off(&mut self, host: HostId, until_us: u64) -> bool {
        let enabled = self.faults.has(Fault::Island);
        if enabled {
            self.bridge.insert(host, until_us);
        }
        enabled
    }

    /// What is due at `now_us`.
    pub fn due(&mut self, now_us: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.heal_us.is_some_and(|at| at <= now_us) {
            self.heal_us = None;
            actions.push(Action::Heal);
            actions.extend(self.flap(now_us));
        }
        actions.extend(self.mend.extract_if(.., |_, at| *at <= now_us).map(|(host, _)| Action::MendDisk(host)));
        actions.extend(self.fade.extract_if(.., |_, at| *at <= now_us).map(|(host, _)| Action::CutOff(host)));
        actions.extend(self.bridge.extract_if(.., |_, at| *at <= now_us).map(|(host, _)| Action::Bridge(host)));
        if self.next_us <= now_us {
            self.next_us = now_us + self.rng.random_range(GAP_US);
            let before = (self.heal_us, self.flaps.clone(), self.mend.clone(), self.fade.clone(), self.bridge.clone());
            if let Some(action) = self.draw(now_us) {
                if self.skip.has(self.drawn) {
                    (self.heal_us, self.flaps, self.mend, self.fade, self.bridge) = before;
                } else {
                    actions.push(action);
                }
                self.drawn += 1;
            }
        }
        actions
    }

    /// The next cut of a flapping partition. It heals and comes again by turns, each after its own time.
    fn flap(&mut self, now_us: u64) -> Option<Action> {
        let (pairs, lengths) = &mut self.flaps;
        self.heal_us = Some(now_us + lengths.pop()?);
        let open = lengths.len().is_multiple_of(2);
        Some(if open { Action::Heal } else { Action::Cut(pairs.clone()) })
    }

    fn draw(&mut self, now_us: u64) -> Option<Action> {
        let kinds: Vec<(Fault, u32)> = self.rates.iter().map(|(fault, rate)| (*fault, *rate)).collect();
        let (kind, _) = *kinds.choose_weighted(&mut self.rng, |(_, rate)| *rate).ok()?;
        let host = *self.hosts.choose(&mut self.rng)?;
        let loss = *Loss::ALL.choose(&mut self.rng)?;
        let rng = &mut self.rng;
        Some(match kind {
            Fault::Loss | Fault::Duplicate | Fault::Reorder | Fault::Bandwidth => Action::Weather(self.weather()),
            Fault::Delay if rng.random_bool(0.5) => Action::Weather(self.weather()),
            Fault::Delay => {
                self.heal_us = Some(now_us + rng.random_range(500_000..5_000_000));
                Action::Slow(host, *self.hosts.choose(rng)?, rng.random_range(10_000..300_000))
            }
            Fault::Partition | Fault::OneWay => {
                self.heal_us = Some(now_us + rng.random_range(300_000..8_000_000));
                Action::Cut(if kind == Fault::Partition { self.split() } else { self.deafen(host) })
            }
            Fault::Flap => {
                self.heal_us = Some(now_us + rng.random_range(FLAP_US));
                let changes = rng.random_range(2..12);
                let lengths = (0..changes).map(|_| rng.random_range(FLAP_US)).collect();
                self.flaps = (self.split(), lengths);
                Action::Cut(self.flaps.0.clone())
            }
            Fault::Crash if rng.random_bool(0.5) => Action::Arm(host, rng.random_range(0..60), loss),
            Fault::Crash => Action::Crash(host, loss, rng.random_range(1_000..6_000_000)),
            Fault::Daemon => Action::EndDaemon(host, rng.random_range(1_000..3_000_000)),
            Fault::Pause => Action::Pause(host, rng.random_range(20_000..8_000_000)),
            Fault::Lapse => {
                let (length_us, sync_us) = (rng.random_range(LAPSE_US), rng.random_range(LAPSE_SYNC_US));
                let others = self.hosts.iter().filter(|other| **other != host);
                self.mend.extend(others.map(|other| (*other, now_us + length_us + LAPSE_ENDS_US)));
                Action::Lapse(host, length_us, sync_us)
            }
            Fault::Fade => {
                let cut_us = now_us + rng.random_range(FADE_US);
                self.fade.insert(host, cut_us);
                self.bridge.insert(host, cut_us + rng.random_range(FADED_US));
                Action::Fade(host, rng.random_range(FADE_EXTRA_US))
            }
            Fault::StopClock => Action::StopClock(host, rng.random_range(20_000..8_000_000)),
            Fault::WallJump => Action::SetWall(host, rng.random_range(-7_200_000_000..7_200_000_000)),
            Fault::SlowDisk | Fault::FullDisk | Fault::FailSync | Fault::FailWrite => {
                self.disk_trouble(kind, host, now_us)
            }
            Fault::MachineDies => Action::EndMachine(host, rng.random_range(0..1_000)),
            Fault::StartFails => Action::FailStarts(host, rng.random_range(1..3)),
            Fault::FreezeHangs => {
                let length_us = rng.random_range(HANG_US);
                let alone = rng.random_bool(0.5);
                if alone {
                    self.bridge.insert(host, now_us + length_us);
                }
                Action::Hang(host, length_us, alone)
            }
            Fault::Leave => Action::Leave(host),
            Fault::Stop => Action::Stop(host, rng.random_range(1_000..STOPPED_US_MAX)),
            Fault::Rot => Action::Rot(host, rng.random_range(1_000..3_000_000)),
            Fault::LoseDisk => Action::LoseDisk(host, rng.random_range(1_000..3_000_000)),
            Fault::Island => {
                let down_us = rng.random_range(1_000..3_000_000);
                self.bridge.insert(host, now_us + down_us + rng.random_range(ISLAND_US));
                Action::Island(host, loss, down_us)
            }
            Fault::Drift => return None,
        })
    }

    fn disk_trouble(&mut self, kind: Fault, host: HostId, now_us: u64) -> Action {
        let rng = &mut self.rng;
        let until_us = now_us + rng.random_range(500_000..8_000_000);
        match kind {
            Fault::FailSync => return Action::FailSyncs(host, rng.random_range(1..4)),
            Fault::FailWrite => return Action::FailWrites(host, rng.random_range(1..4)),
            _ => self.mend.insert(host, until_us),
        };
        match kind {
            Fault::FullDisk => Action::FillDisk(host, rng.random_range(0..200_000), rng.random()),
            _ => Action::SlowDisk(host, rng.random_range(2_000..150_000)),
        }
    }

    /// Links as bad as the enabled faults allow.
    fn weather(&mut self) -> Weather {
        let (faults, rng) = (&self.faults, &mut self.rng);
        let mut rate = |fault, most: f64| {
            let drawn = rng.random_range(0.0..most);
            if faults.has(fault) { drawn } else { 0.0 }
        };
        let (loss, duplicate, reorder) =
            (rate(Fault::Loss, 0.1), rate(Fault::Duplicate, 0.03), rate(Fault::Reorder, 0.03));
        let longest_us = self.rng.random_range(500..20_000);
        let longest_us = if self.faults.has(Fault::Delay) { longest_us } else { 500 };
        let narrow = self.rng.random_range(100_000..2_000_000);
        let usual = Weather::default();
        let uplink_bytes_per_s = if self.faults.has(Fault::Bandwidth) { narrow } else { usual.uplink_bytes_per_s };
        let latency_us = QUANTUM_US..QUANTUM_US + longest_us;
        Weather { loss, duplicate, reorder, latency_us, uplink_bytes_per_s }
    }

    fn split(&mut self) -> Vec<(HostId, HostId)> {
        let sides: Vec<(HostId, bool)> = self.hosts.iter().map(|host| (*host, self.rng.random())).collect();
        let apart = |(a, a_side): &(HostId, bool)| {
            let a = *a;
            let others = sides.iter().filter(move |(_, b_side)| b_side != a_side);
            others.map(move |(b, _)| (a, *b)).collect::<Vec<_>>()
        };
        sides.iter().flat_map(apart).collect()
    }

    fn deafen(&mut self, host: HostId) -> Vec<(HostId, HostId)> {
        let mute = self.rng.random_bool(0.5);
        let others = self.hosts.iter().filter(|other| **other != host);
        others.map(|other| if mute { (host, *other) } else { (*other, host) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;

    #[test]
    fn names_of_faults_are_read_and_others_refused() {
        let faults: Faults = "loss,crash".parse().unwrap();
        assert!(faults.has(Fault::Crash) && !faults.has(Fault::Pause));
        assert_eq!(faults.to_string(), "loss,crash");
        let error = "loss,gremlins".parse::<Faults>().unwrap_err();
        assert!(error.to_string().starts_with("\"gremlins\" is no fault; known are all, usual, none, loss"));
    }

    #[test]
    fn what_is_skipped_is_told_in_ranges_and_shifts_nothing() {
        let skip: Skip = "0-2,7,9-9".parse().unwrap();
        assert_eq!(skip.to_string(), "0-2,7,9");
        assert_eq!(Skip::of([3]).with([4, 9]).to_string(), "3-4,9");
        for bad in ["", "x", "1-", "-1", "0-99999999999"] {
            assert!(bad.parse::<Skip>().is_err(), "{bad}");
        }
        let draw = |skip: Skip| {
            let hosts = (1..=3).map(HostId).collect();
            let mut plan = Plan::new("pause".parse().unwrap(), hosts, 0, stream(1, "plan", &[])).skipping(skip);
            (0..60_000).flat_map(|ms| plan.due(ms * 1000)).collect::<Vec<_>>()
        };
        let all = draw(Skip::default());
        assert_eq!(draw(Skip::of(0..2)), all[2..]);
        // Nor does anything come later that belongs to what was skipped.
        let whole = |skip: Skip| {
            let hosts = (1..=3).map(HostId).collect();
            let mut plan = Plan::new("flap,freeze-hangs,lapse,fade".parse().unwrap(), hosts, 0, stream(1, "plan", &[]))
                .skipping(skip);
            (0..60_000).flat_map(|ms| plan.due(ms * 1000)).count()
        };
        assert_eq!((whole(Skip::of(0..ACTIONS_MAX)), whole(Skip::default()) > 0), (0, true));
    }

    #[test]
    fn a_plan_draws_only_what_is_enabled_and_the_same_twice() {
        let draw = |faults: &str| {
            let hosts = (1..=3).map(HostId).collect();
            let mut plan = Plan::new(faults.parse().unwrap(), hosts, 0, stream(1, "plan", &[]));
            (0..60_000).flat_map(|ms| plan.due(ms * 1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw("none"), []);
        assert_eq!(draw("all"), draw("all"));
        assert!(draw("pause").iter().all(|action| matches!(action, Action::Pause(..))));
        assert!(draw("partition").contains(&Action::Heal));
    }
}
