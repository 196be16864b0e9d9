//! One host: its disk, which outlives crashes, and the boot that is running, which does not.
//!
//! Each boot has a paused current-thread tokio runtime of its own, stepped by the world. A crash cuts the power first,
//! which fences disk and sockets, and then drops the runtime with every task in it.

use std::sync::Arc;
use std::time::Duration;

use fabric::ids::MachineId;
use fabric::limits::LEASE_TTL;
use fabric::seams::Seams;
use rand::RngExt;
use tokio::runtime::{Builder, RngSeed, Runtime};
use tokio::time::{Instant, advance, sleep_until};

use crate::actor::{Blow, Boot, CutOff, Ending, Exit, HostId, Recorder, Software};
use crate::ambient::{self, Ambient, within};
use crate::clock::HostClock;
use crate::disk::{HostDisk, Loss};
use crate::entropy::SeededEntropy;
use crate::invariants::moved::Destroyed;
use crate::kernel::{Counts, Kernel, Running};
use crate::layers::FakeLayers;
use crate::limits::QUANTUM_US;
use crate::net::Net;
use crate::power::Supply;
use crate::random;
use crate::trace::Trace;

/// A daemon that stands still for less, as for a sync, kills in time what its supervisor should have frozen: it begins 250 ms
/// before the deadline.
const STANDS_US: u64 = 200_000;
/// How long after its clock has gone on a host may believe in a lease that has ended, in microseconds: what is left of it, by
/// a clock that is slow.
const MISTAKEN_US: u64 = LEASE_TTL.as_micros() as u64 * 102 / 100;
/// A clock further behind than this has been stopped: its timers ring together, not one after another.
const BEHIND_MAX: Duration = Duration::from_millis(3);

/// What a host needs of the world around it.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Seed of the run.
    pub seed: u64,
    /// How many hosts there are.
    pub hosts: u64,
    /// Begin of the calm, in microseconds.
    pub calm_us: u64,
    /// The network.
    pub net: Net,
    /// The record.
    pub trace: Trace,
    /// What runs on hosts.
    pub software: Arc<dyn Software>,
}

/// How a boot ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The power is cut.
    PowerCut(Loss),
    /// The power has been cut, by the disk's armed cut.
    CutByDisk,
    /// The daemon's process dies.
    Daemon,
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It goes on, or is down anyway.
    Goes,
    /// Its disk has cut the power.
    CutByDisk,
    /// The daemon has ended by itself.
    Exited(Ending),
}

/// A running boot.
#[derive(Debug)]
struct Life {
    runtime: Runtime,
    clock: HostClock,
    ambient: Ambient,
    supply: Supply,
    exit: Exit,
    blow: Blow,
    /// The host does nothing before this time: stopped, or waiting for its disk.
    held_until_us: u64,
    /// How long it had waited for its disk, in microseconds, since the world began.
    stalled_us: u64,
}

/// One host of the world.
#[derive(Debug)]
pub struct Host {
    id: HostId,
    disk: HostDisk,
    kernel: Kernel,
    drift_ppm: i64,
    wall_offset_us: i64,
    boots: u64,
    life: Option<Life>,
    /// The clock of the last daemon, while the host has had power since: `CLOCK_BOOTTIME` goes on without daemons.
    last_clock: Option<HostClock>,
    /// When it boots, in microseconds, while it is down.
    back_us: u64,
    /// Until then a lease may be believed in that has ended, since this host's clock stood still.
    mistaken_until_us: u64,
    /// Until then its supervisors hang.
    hangs_until_us: Option<u64>,
}

impl Host {
    /// A host that boots at once.
    pub fn new(id: HostId, seed: u64, drift_ppm: i64) -> Self {
        let disk = HostDisk::new(random::stream(seed, "disk", &[id.0]));
        let kernel = Kernel::default();
        Host {
            id,
            disk,
            kernel,
            drift_ppm,
            wall_offset_us: 0,
            boots: 0,
            life: None,
            last_clock: None,
            back_us: 0,
            mistaken_until_us: 0,
            hangs_until_us: None,
        }
    }

    /// Its number.
    pub fn id(&self) -> HostId {
        self.id
    }

    /// Its disk.
    pub fn disk(&self) -> &HostDisk {
        &self.disk
    }

    /// Whether it runs.
    pub fn is_up(&self) -> bool {
        self.life.is_some()
    }

    /// Whether it is time to boot.
    pub fn is_due(&self, now_us: u64) -> bool {
        self.life.is_none() && self.back_us <= now_us
    }

    /// Boots it.
    pub fn boot(&mut self, now_us: u64, around: &Surroundings) {
        self.boots += 1;
        let names = [self.id.0, self.boots];
        let seed = random::number(around.seed, "boot", &names);
        let (supply, disk) = self.disk.boot();
        let mut ambient = Ambient::new(self.id.0, random::stream(around.seed, "ambient", &names));
        let runtime = within(&mut ambient, now_us, || {
            let mut builder = Builder::new_current_thread();
            builder.enable_time().start_paused(true).rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()));
            builder.build().expect("a runtime without IO takes nothing that could be missing")
        });
        let boot_origin = match &self.last_clock {
            Some(clock) => clock.boottime_at(now_us),
            None => Duration::from_micros(random::stream(around.seed, "origin", &names).random_range(0..1 << 40)),
        };
        let clock = within(&mut ambient, now_us, || {
            let _inside = runtime.enter();
            HostClock::start(now_us, self.drift_ppm, self.wall_offset_us, boot_origin)
        });
        let seams = Seams {
            clock: Arc::new(clock.clone()),
            entropy: Arc::new(SeededEntropy::new(random::stream(around.seed, "entropy", &names))),
            disk,
            udp: around.net.plug(self.id, clock.clone(), supply.clone()),
        };
        let recorder = Recorder::new(around.trace.clone(), self.id, clock.clone());
        let runtime_seam = self.kernel.attach(seams.clock.clone(), supply.clone(), Some(recorder.clone()));
        let (exit, blow) = (Exit::default(), Blow::default());
        let (number, hosts, calm_us) = (self.boots, around.hosts, around.calm_us);
        let boot = Boot {
            host: self.id,
            number,
            hosts,
            seams,
            layers: Arc::new(FakeLayers::new(runtime_seam.clone())),
            machines: runtime_seam,
            seed,
            calm_us,
            recorder,
            supply: supply.clone(),
            disk: self.disk.clone(),
            exit: exit.clone(),
            blow: blow.clone(),
        };
        around.trace.event(now_us, self.id, &format_args!("boots for the {number}. time"));
        within(&mut ambient, now_us, || {
            let _inside = runtime.enter();
            runtime.spawn(around.software.boot(boot));
        });
        let stalled_us = self.disk.counts().stalled_us;
        self.life = Some(Life { runtime, clock, ambient, supply, exit, blow, held_until_us: now_us, stalled_us });
    }

    /// Runs it up to world time `to_us`.
    pub fn step(&mut self, from_us: u64, to_us: u64, trace: &Trace) -> Step {
        let Some(life) = &mut self.life else { return Step::Goes };
        if life.held_until_us > from_us {
            return Step::Goes;
        }
        life.clock.begin_step(from_us, to_us);
        let (begin, target) = (life.clock.local(from_us), life.clock.local(to_us));
        let runtime = &life.runtime;
        within(&mut life.ambient, from_us, || {
            runtime.block_on(async {
                let behind = begin.saturating_duration_since(Instant::now());
                if behind > BEHIND_MAX {
                    advance(behind).await;
                }
                sleep_until(target).await;
            });
        });
        let stalled_us = self.disk.counts().stalled_us;
        let waits_us = stalled_us - std::mem::replace(&mut life.stalled_us, stalled_us);
        life.held_until_us = life.held_until_us.max(to_us + waits_us);
        let panics = ambient::take_panics();
        if !life.supply.is_on() {
            return Step::CutByDisk; // what panicked for want of power is of no interest
        }
        for panic in panics {
            trace.violation(to_us, &format!("{}: panic: {panic}", self.id));
        }
        life.exit.wanted().map_or(Step::Goes, Step::Exited)
    }

    /// Ends the boot; it comes back at `back_us`.
    pub fn end(&mut self, now_us: u64, end: End, back_us: u64, around: &Surroundings) {
        let Some(mut life) = self.life.take() else { return };
        match end {
            End::PowerCut(loss) => self.disk.cut(loss),
            End::CutByDisk => {}
            End::Daemon => self.disk.end_process(),
        }
        self.last_clock = match end {
            End::Daemon => Some(life.clock.clone()),
            End::PowerCut(_) | End::CutByDisk => {
                self.kernel.power_cut();
                (self.hangs_until_us, self.mistaken_until_us) = (None, 0);
                None
            }
        };
        within(&mut life.ambient, now_us, || {
            {
                let _inside = life.runtime.enter();
                around.software.ended(self.id);
            }
            drop(life.runtime);
        });
        ambient::take_panics();
        self.back_us = back_us;
        let digest = self.disk.digest();
        around.trace.event(now_us, self.id, &format_args!("ends: {end:?}, back at {back_us}, disk {digest}"));
    }

    /// For how long its software asks to be cut off.
    pub fn blow(&self) -> Option<CutOff> {
        self.life.as_ref()?.blow.take()
    }

    /// Stops it until `until_us`, with or without its clocks; `false` when it is down.
    pub fn hold(&mut self, now_us: u64, until_us: u64, clocks_too: bool) -> bool {
        if let Some(life) = &mut self.life {
            let begin = life.held_until_us.max(now_us);
            life.held_until_us = begin.max(until_us);
            if clocks_too {
                life.clock.stood_still(life.held_until_us - begin);
                self.mistaken_until_us = life.held_until_us + MISTAKEN_US;
            }
        }
        self.life.is_some()
    }

    /// Lets its supervisors hang until `until_us`; `false` when it has no power, and so none.
    pub fn hang(&mut self, until_us: u64) -> bool {
        let has_power = self.life.is_some() || self.last_clock.is_some();
        if has_power {
            self.kernel.hang();
            self.hangs_until_us = self.hangs_until_us.max(Some(until_us));
        }
        has_power
    }

    /// What its supervisors do by themselves. While they hang nobody but the daemon ends what a lease ends, so that nothing
    /// does while it is down or stopped as well: the documented limit.
    pub fn supervise(&mut self, now_us: u64) {
        let Some(until_us) = self.hangs_until_us else { return };
        let stands = self.life.as_ref().is_none_or(|life| life.held_until_us > now_us + STANDS_US);
        if stands {
            self.mistaken_until_us = self.mistaken_until_us.max(until_us + QUANTUM_US);
        }
        if until_us <= now_us {
            self.hangs_until_us = None;
            let clock = self.life.as_ref().map(|life| &life.clock).or(self.last_clock.as_ref());
            self.kernel.unhang(clock.map_or(Duration::ZERO, |clock| clock.boottime_at(now_us)));
        }
    }

    /// Its disk is a new one, and nothing is left of its machines. It must be down.
    pub fn wipe(&mut self) {
        self.disk.wipe();
        self.kernel.wipe();
        (self.hangs_until_us, self.mistaken_until_us) = (None, 0);
    }

    /// Whether its machines may run on an ended lease: the documented limit of a clock that stopped altogether.
    pub fn is_mistaken(&self, now_us: u64) -> bool {
        now_us < self.mistaken_until_us
    }

    /// In which epoch it has this machine up under a lease that has not ended, frozen or not.
    pub fn held(&self, machine: MachineId, now_us: u64) -> Option<u64> {
        let clock = self.life.as_ref().map(|life| &life.clock).or(self.last_clock.as_ref())?;
        self.kernel.held(machine, clock.boottime_at(now_us))
    }

    /// The machines that run on it, unfrozen, at a moment.
    pub fn running(&self, now_us: u64) -> Vec<Running> {
        let clock = self.life.as_ref().map(|life| &life.clock).or(self.last_clock.as_ref());
        clock.map(|clock| self.kernel.running(clock.boottime_at(now_us))).unwrap_or_default()
    }

    /// Copies of machines that it has destroyed since it was last asked.
    pub fn destroyed(&self) -> Vec<Destroyed> {
        let copy = |(machine, epoch)| Destroyed { host: self.id, machine, epoch };
        self.kernel.destroyed().into_iter().map(copy).collect()
    }

    /// Sets its wall clock, off by so many microseconds from the truth.
    pub fn set_wall(&mut self, offset_us: i64) {
        self.wall_offset_us = offset_us;
        if let Some(life) = &self.life {
            life.clock.set_wall_offset(offset_us);
        }
    }

    /// Lets each sync of its disk take so long.
    pub fn set_sync(&mut self, sync_us: u64) {
        self.disk.slow(sync_us);
    }

    /// Its disk has its room and its speed again.
    pub fn mend(&mut self) {
        self.disk.mend();
    }

    /// What happened to its machines.
    pub fn machines(&self) -> Counts {
        self.kernel.counts()
    }

    /// Ends one of its machines that are up, with its supervisor; `false` when there is none.
    pub fn end_machine(&mut self, number: u64) -> bool {
        self.kernel.end_one(number)
    }

    /// Lets so many further starts of machines fail.
    pub fn fail_starts(&mut self, starts: u32) {
        self.kernel.fail_starts(starts);
    }

    /// No more faults: it boots at once if it is down, and its wall clock is right.
    pub fn calm(&mut self, now_us: u64) {
        self.disk.disarm();
        self.mend();
        self.kernel.fail_starts(0);
        self.hangs_until_us = self.hangs_until_us.map(|_| now_us);
        self.set_wall(0);
        self.back_us = self.back_us.min(now_us);
    }
}
