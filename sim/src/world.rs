//! The world: virtual time, hosts stepped in order, faults from the seed, then a calm in which all must come right.
//!
//! Time goes in quanta of 2 ms. In each, every running host is stepped to the quantum's end, in the order of their
//! numbers; a packet takes at least one quantum, so the order decides nothing. Safety is checked throughout; in the
//! calm at the end no fault happens, and what the software promises then (its verdict) is demanded.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::actor::{CutOff, Ending, HostId, Moment, Software};
use crate::ambient::{self, Ambient, within};
use crate::disk::Loss;
use crate::faults::{Action, Faults, Plan, Skip};
use crate::host::{End, Host, Step, Surroundings};
use crate::invariants::{one_owner, takeovers};
use crate::limits::{HOSTS_MAX, QUANTUM_US, RUN_MAX};
use crate::net::{Net, Weather};
use crate::random;
use crate::report::Report;
use crate::scenario::{self as script, Cast, Deed, Expectation, Step as ScriptStep};
use crate::trace::Trace;

/// A daemon that ended by itself is started again after so long, as its unit does.
const EXIT_RESTART_US: u64 = 1_000_000;

/// What a run is of.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything follows from it.
    pub seed: u64,
    /// How many hosts.
    pub hosts: u64,
    /// How long, in simulated time.
    pub length: Duration,
    /// No fault before this time.
    pub peace: Duration,
    /// No fault in the last part of this length.
    pub calm: Duration,
    /// What may go wrong.
    pub faults: Faults,
    /// Which of the drawn actions are left out.
    pub skip: Skip,
}

/// Why a run cannot begin or end.
#[derive(Debug, Error)]
pub enum RunError {
    /// The run would not be deterministic.
    #[error("this program does not interpose libc's entropy: run worlds with the binary smartnode-sim")]
    NotInterposed,
    /// A number is out of bounds.
    #[error("{what} is {value}, allowed are {allowed}")]
    OutOfBounds {
        /// Which.
        what: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// The trace is incomplete.
    #[error("the trace of seed {seed} could not be written")]
    Trace {
        /// The run.
        seed: u64,
        /// Why.
        source: io::Error,
    },
}

/// A run under way.
#[derive(Debug)]
pub struct World {
    config: Config,
    around: Surroundings,
    hosts: Vec<Host>,
    plan: Plan,
    tally: BTreeMap<String, u64>,
    now_us: u64,
    script: VecDeque<ScriptStep>,
    /// The leader that the script spoke of last.
    last_leader: Option<HostId>,
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

fn bounded<T: PartialOrd + std::fmt::Debug>(what: &'static str, value: T, least: T, most: T) -> Result<(), RunError> {
    if least <= value && value <= most {
        return Ok(());
    }
    Err(RunError::OutOfBounds { what, value: format!("{value:?}"), allowed: format!("{least:?} to {most:?}") })
}

impl Config {
    /// Whether there can be such a run.
    ///
    /// # Errors
    /// When a number is out of bounds.
    pub fn check(&self) -> Result<(), RunError> {
        bounded("the number of nodes", self.hosts, 1, HOSTS_MAX)?;
        bounded("the length of the run", self.length, self.peace + self.calm, RUN_MAX)
    }
}

impl World {
    /// Prepares a run of `software` on every host, recorded in `trace`.
    ///
    /// # Errors
    /// When the program does not interpose libc's entropy, or a number is out of bounds.
    pub fn new(config: Config, software: Arc<dyn Software>, trace: Trace) -> Result<Self, RunError> {
        config.check()?;
        if !ambient::is_interposed() {
            return Err(RunError::NotInterposed);
        }
        let (seed, ids) = (config.seed, (1..=config.hosts).map(HostId));
        let rng = random::stream(seed, "faults", &[]);
        let mut plan = Plan::new(config.faults.clone(), ids.clone().collect(), micros(config.peace), rng)
            .skipping(config.skip.clone());
        let hosts = ids.map(|id| Host::new(id, seed, plan.drift_ppm())).collect();
        let net = Net::new(random::stream(seed, "net", &[]), trace.clone());
        let calm_us = micros(config.length - config.calm);
        let around = Surroundings { seed, hosts: config.hosts, calm_us, net, trace, software };
        Ok(World {
            config,
            around,
            hosts,
            plan,
            tally: BTreeMap::new(),
            now_us: 0,
            script: VecDeque::new(),
            last_leader: None,
        })
    }

    /// Does this as well, in order of time.
    pub fn with_script(self, script: impl IntoIterator<Item = ScriptStep>) -> Self {
        World { script: script.into_iter().collect(), ..self }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// When the trace could not be written.
    pub fn run(mut self) -> Result<Report, RunError> {
        self.around.trace.event(0, HostId(0), &format_args!("rates {:?}", self.plan.rates()));
        let (calm_us, end_us) = (self.around.calm_us, micros(self.config.length));
        while self.now_us < calm_us && !self.around.trace.is_broken() {
            for action in self.plan.due(self.now_us) {
                self.act(&action);
            }
            self.follow_script();
            self.quantum();
        }
        // Else what the script does in the last quantum would befall the calm.
        self.follow_script();
        self.calm();
        while self.now_us < end_us && !self.around.trace.is_broken() {
            self.follow_script();
            self.quantum();
        }
        // Else what it expects in the last quantum would never be judged.
        self.follow_script();
        self.finish()
    }

    fn count(&mut self, what: &str) {
        self.count_many(what, 1);
    }

    fn count_many(&mut self, what: &str, count: u64) {
        *self.tally.entry(what.to_owned()).or_default() += count;
    }

    fn quantum(&mut self) {
        let (from_us, to_us) = (self.now_us, self.now_us + QUANTUM_US);
        for index in 0..self.hosts.len() {
            let host = &mut self.hosts[index];
            if host.is_due(from_us) {
                host.boot(from_us, &self.around);
            }
            match host.step(from_us, to_us, &self.around.trace) {
                Step::Goes => {}
                Step::CutByDisk => {
                    let back_us = to_us + self.plan.downtime_us();
                    host.end(to_us, End::CutByDisk, back_us, &self.around);
                    self.count("cuts");
                }
                Step::Exited(Ending::Restart) => {
                    host.end(to_us, End::Daemon, to_us + EXIT_RESTART_US, &self.around);
                    self.count("exits");
                }
                Step::Exited(Ending::Stopped(down_us)) => {
                    // In the calm nobody stays away.
                    let latest_us = self.around.calm_us.max(to_us + EXIT_RESTART_US);
                    host.end(to_us, End::Daemon, latest_us.min(to_us + down_us), &self.around);
                    self.count("stopped");
                }
                Step::Exited(Ending::Reinstall) => {
                    let id = host.id();
                    self.wipe(id, to_us, EXIT_RESTART_US);
                    self.count("reinstalled");
                }
            }
            self.hosts[index].supervise(to_us);
            let blow = self.hosts[index].blow();
            if let Some(blow) = blow.filter(|_| to_us < self.around.calm_us) {
                self.fall(index, to_us, blow);
            }
        }
        self.now_us = to_us;
        self.check();
    }

    /// Cuts a host off, as its software has asked.
    fn fall(&mut self, index: usize, now_us: u64, CutOff { situation, length_us }: CutOff) {
        let id = self.hosts[index].id();
        if self.plan.cuts_off(id, now_us + length_us) {
            self.around.trace.event(now_us, HostId(0), &format_args!("{id}: {situation}"));
            self.around.net.island(id);
            self.count(situation);
        }
    }

    /// The invariants that are cheap enough for every step.
    fn check(&self) {
        let now_us = self.now_us;
        let judged = self.hosts.iter().filter(|host| !host.is_mistaken(now_us));
        let running = judged.flat_map(|host| host.running(now_us).into_iter().map(|machine| (host.id(), machine)));
        let running: Vec<_> = running.collect();
        let takeovers = self.around.software.takeovers();
        let destroyed: Vec<_> = self.hosts.iter().flat_map(Host::destroyed).collect();
        let twice = one_owner::check(running.iter().copied());
        for found in twice.into_iter().chain(self.around.software.judge(&running, &destroyed, &takeovers)) {
            self.around.trace.violation(now_us, &found);
        }
        for takeover in takeovers {
            let judged = self.hosts.iter().filter(|host| !host.is_mistaken(now_us));
            let held = judged.filter_map(|host| Some((host.id(), host.held(takeover.machine, now_us)?)));
            if let Some(found) = takeovers::check(takeover, held) {
                self.around.trace.violation(now_us, &found);
            }
        }
    }

    /// Does and judges what the script says for now.
    fn follow_script(&mut self) {
        while let Some(step) = self.script.pop_front_if(|step| step.at_us <= self.now_us) {
            let up = self.up();
            let facts = self.observe(|software| software.facts(&up));
            let complaint = match &step.what {
                script::What::Do(deed) => self.perform(deed).err(),
                script::What::Expect(expectation) => self.judge(expectation),
            };
            self.around.trace.script(self.now_us, &step.text, complaint.is_none(), &facts);
            if let Some(complaint) = complaint {
                self.around.trace.violation(self.now_us, &format!("scenario: {}: {complaint}", step.text));
            }
        }
    }

    fn perform(&mut self, deed: &Deed) -> Result<(), String> {
        let hosts: Vec<HostId> = self.hosts.iter().map(Host::id).collect();
        let leader = self.leader();
        let actions = Cast { hosts: &hosts, leader }.actions(deed)?;
        if deed.names_leader() {
            self.last_leader = leader;
        }
        for action in actions {
            if let Action::Rot(id, _) | Action::LoseDisk(id, _) = &action
                && !self.can_lose(*id)
            {
                return Err(format!("the others cannot do without {id} now"));
            }
            self.act(&action);
        }
        Ok(())
    }

    fn up(&self) -> Vec<HostId> {
        self.hosts.iter().filter(|host| host.is_up()).map(Host::id).collect()
    }

    fn leader(&self) -> Option<HostId> {
        let up = self.up();
        self.observe(|software| software.leader(&up))
    }

    /// Asks the software as its observer, who draws from a stream of its own.
    fn observe<T>(&self, ask: impl FnOnce(&dyn Software) -> T) -> T {
        let mut observer = Ambient::new(0, random::stream(self.config.seed, "observer", &[self.now_us]));
        within(&mut observer, self.now_us, || ask(&*self.around.software))
    }

    fn judge(&self, expectation: &Expectation) -> Option<String> {
        let hosts: Vec<HostId> = self.hosts.iter().map(Host::id).collect();
        let (up, leader) = (self.up(), self.leader());
        let cast = Cast { hosts: &hosts, leader };
        let moment = Moment { now_us: self.now_us, up: &up, cast, last_leader: self.last_leader };
        self.observe(|software| software.expect(expectation, &moment))
    }

    fn act(&mut self, action: &Action) {
        let (now_us, calm_us) = (self.now_us, self.around.calm_us);
        self.around.trace.event(now_us, HostId(0), &format_args!("{action:?}"));
        match action {
            Action::Weather(weather) => self.around.net.set_weather(weather.clone()),
            Action::Slow(from, to, extra_us) => self.around.net.slow(*from, *to, *extra_us),
            Action::Heal => self.around.net.heal(),
            Action::Cut(pairs) => {
                pairs.iter().for_each(|(from, to)| self.around.net.cut(*from, *to));
                let both_ways = pairs.iter().all(|(from, to)| pairs.contains(&(*to, *from)));
                self.count_many(if both_ways { "partitions" } else { "one-way" }, u64::from(!pairs.is_empty()));
            }
            Action::Crash(id, loss, down_us) => self.end(*id, End::PowerCut(*loss), *down_us),
            Action::EndDaemon(id, down_us) => self.end(*id, End::Daemon, *down_us),
            Action::Arm(id, operations, loss) => self.host(*id).disk().arm(*operations, *loss),
            Action::Pause(id, length_us) => {
                let held = self.host(*id).hold(now_us, (now_us + length_us).min(calm_us), false);
                self.count_many("pauses", u64::from(held));
            }
            Action::Lapse(id, length_us, sync_us) => {
                let others = self.hosts.iter_mut().filter(|host| host.id() != *id);
                others.for_each(|host| host.set_sync(*sync_us));
                let held = self.host(*id).hold(now_us, (now_us + length_us).min(calm_us), false);
                self.count_many("lapses", u64::from(held));
            }
            Action::Fade(id, extra_us) => {
                for other in self.hosts.iter().map(Host::id).filter(|other| other != id) {
                    self.around.net.slow(*id, other, *extra_us);
                    self.around.net.slow(other, *id, *extra_us);
                }
                self.count("fades");
            }
            Action::CutOff(id) => self.around.net.island(*id),
            Action::StopClock(id, length_us) => {
                let held = self.host(*id).hold(now_us, (now_us + length_us).min(calm_us), true);
                self.count_many("stops", u64::from(held));
            }
            Action::SetWall(id, offset_us) => {
                self.host(*id).set_wall(*offset_us);
                self.count("jumps");
            }
            Action::SlowDisk(..)
            | Action::FillDisk(..)
            | Action::FailSyncs(..)
            | Action::FailWrites(..)
            | Action::MendDisk(_) => self.disk(action),
            Action::EndMachine(id, number) => {
                let ended = self.host(*id).end_machine(*number);
                self.count_many("machine-deaths", u64::from(ended));
            }
            Action::FailStarts(id, starts) => self.host(*id).fail_starts(*starts),
            Action::Hang(id, length_us, alone) => {
                let hangs = self.host(*id).hang((now_us + length_us).min(calm_us));
                if *alone {
                    self.around.net.island(*id);
                }
                self.count_many("hangs", u64::from(hangs));
            }
            Action::Leave(id) => self.around.software.leaves(*id),
            Action::Stop(id, down_us) => self.around.software.stops(*id, *down_us),
            Action::Island(id, loss, down_us) => {
                self.end(*id, End::PowerCut(*loss), *down_us);
                self.around.net.island(*id);
                self.count("islands");
            }
            Action::Bridge(id) => self.around.net.bridge(*id),
            Action::Rot(id, down_us) => self.lose(*id, *down_us, true),
            Action::LoseDisk(id, down_us) => self.lose(*id, *down_us, false),
        }
    }

    fn can_lose(&self, id: HostId) -> bool {
        let up = self.up();
        up.contains(&id) && self.observe(|software| software.may_lose(id, &up))
    }

    /// A host loses its power and what is on its disk, or a bit of it, if the others can go on without.
    fn lose(&mut self, id: HostId, down_us: u64, rots: bool) {
        if !self.can_lose(id) {
            return;
        }
        if !rots {
            self.wipe(id, self.now_us, down_us);
            self.count("lost-disks");
            return;
        }
        self.end(id, End::PowerCut(Loss::DropAll), down_us);
        if let Some(name) = self.host(id).disk().rot_somewhere() {
            self.around.trace.event(self.now_us, id, &format_args!("a bit of {name} rots"));
            self.around.software.rotted(id);
            self.count("rotted");
        }
    }

    /// Ends a host; it comes back with a new disk.
    fn wipe(&mut self, id: HostId, now_us: u64, down_us: u64) {
        let host = &mut self.hosts[id.0 as usize - 1];
        host.end(now_us, End::PowerCut(Loss::DropAll), now_us + down_us, &self.around);
        host.wipe();
        self.around.trace.event(now_us, id, &"has a new disk");
        self.around.software.wiped(id);
    }

    fn disk(&mut self, action: &Action) {
        match action {
            Action::SlowDisk(id, sync_us) => {
                self.host(*id).set_sync(*sync_us);
                self.count("slow-disks");
            }
            Action::FillDisk(id, room_bytes, allocates) => self.host(*id).disk().fill(*room_bytes, *allocates),
            Action::FailSyncs(id, syncs) => self.host(*id).disk().fail_syncs(*syncs),
            Action::FailWrites(id, writes) => self.host(*id).disk().fail_writes(*writes),
            Action::MendDisk(id) => self.host(*id).mend(),
            _ => {}
        }
    }

    fn host(&mut self, id: HostId) -> &mut Host {
        &mut self.hosts[id.0 as usize - 1]
    }

    fn end(&mut self, id: HostId, end: End, down_us: u64) {
        let (now_us, host) = (self.now_us, &mut self.hosts[id.0 as usize - 1]);
        if host.is_up() {
            host.end(now_us, end, now_us + down_us, &self.around);
            self.count(if end == End::Daemon { "daemons" } else { "crashes" });
        }
    }

    fn calm(&mut self) {
        self.around.trace.event(self.now_us, HostId(0), &"calm");
        self.around.net.heal();
        self.hosts.iter().for_each(|host| self.around.net.bridge(host.id()));
        self.around.net.set_weather(Weather::default());
        let now_us = self.now_us;
        self.hosts.iter_mut().for_each(|host| host.calm(now_us));
    }

    fn finish(mut self) -> Result<Report, RunError> {
        let (seed, now_us) = (self.config.seed, self.now_us);
        let up: Vec<HostId> = self.hosts.iter().filter(|host| host.is_up()).map(Host::id).collect();
        let mut observer = Ambient::new(0, random::stream(seed, "observer", &[]));
        let (failed, counts) = within(&mut observer, now_us, || {
            let software = &self.around.software;
            (software.verdict(&up), software.counts())
        });
        self.tally.extend(counts);
        for index in 0..self.hosts.len() {
            let (machines, disk) = (self.hosts[index].machines(), self.hosts[index].disk().counts());
            let counts = [
                ("frozen", machines.frozen),
                ("thawed", machines.thawed),
                ("fenced", machines.fenced),
                ("failed-starts", machines.failed_starts),
                ("torn", disk.torn),
                ("full-disks", disk.full),
                ("failed-syncs", disk.failed_syncs),
                ("failed-writes", disk.failed_writes),
            ];
            counts.into_iter().for_each(|(what, count)| self.count_many(what, count));
        }
        failed.iter().for_each(|what| self.around.trace.violation(now_us, what));
        for host in &mut self.hosts {
            host.end(now_us, End::PowerCut(Loss::DropAll), u64::MAX, &self.around);
        }
        let trace = self.around.trace;
        trace.flush().map_err(|source| RunError::Trace { seed, source })?;
        let (records, packets) = trace.counts();
        let (digest, violations) = (trace.digest().to_string(), trace.violations());
        let tally = self.tally;
        Ok(Report { seed, digest, records, packets, actions: self.plan.drawn(), tally, violations })
    }
}
