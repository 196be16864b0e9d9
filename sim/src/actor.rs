//! What runs on the hosts: the seam between the world, which knows no product, and the software under test.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use fabric::rpc::BoxFuture;
use fabric::seams::Seams;

use crate::clock::HostClock;
use crate::disk::HostDisk;
use crate::invariants::moved::Destroyed;
use crate::invariants::takeovers::Takeover;
use crate::kernel::{FakeRuntime, Running};
use crate::layers::FakeLayers;
use crate::power::Supply;
use crate::scenario::{Cast, Expectation};
use crate::trace::Trace;

/// A host, numbered from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub u64);

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0)
    }
}

/// Writes a host's events into the trace.
#[derive(Debug, Clone)]
pub struct Recorder {
    trace: Trace,
    host: HostId,
    clock: HostClock,
}

impl Recorder {
    /// Records for one boot of one host.
    pub fn new(trace: Trace, host: HostId, clock: HostClock) -> Self {
        Recorder { trace, host, clock }
    }

    /// Records that something happened now.
    pub fn event(&self, what: impl fmt::Display) {
        self.trace.event(self.clock.world_us(), self.host, &what);
    }

    /// Records that an invariant does not hold now.
    pub fn violation(&self, what: &str) {
        self.trace.violation(self.clock.world_us(), &format!("{}: {what}", self.host));
    }

    /// World time, in microseconds.
    pub fn world_us(&self) -> u64 {
        self.clock.world_us()
    }
}

/// One boot of one host, as its software is given it.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Which host.
    pub host: HostId,
    /// Which boot of it, from 1.
    pub number: u64,
    /// How many hosts there are.
    pub hosts: u64,
    /// The world as this boot sees it.
    pub seams: Seams,
    /// The kernel's seam: this host's machines.
    pub machines: Arc<FakeRuntime>,
    /// Its layers.
    pub layers: Arc<FakeLayers>,
    /// Seed of this boot, for what wants a seed of its own.
    pub seed: u64,
    /// From this world time on the hosts are left in peace, in microseconds.
    pub calm_us: u64,
    /// Its voice in the trace.
    pub recorder: Recorder,
    /// Its power.
    pub supply: Supply,
    /// The host's disk as the observer sees it.
    pub disk: HostDisk,
    /// How the daemon ends by itself.
    pub exit: Exit,
    /// What is to befall its host.
    pub blow: Blow,
}

/// What follows the end of a daemon by its own decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Whoever watches over it starts it again.
    Restart,
    /// It was told to stop, and is started again after so many microseconds.
    Stopped(u64),
    /// Its host is installed anew, with an empty disk.
    Reinstall,
}

/// The end of a daemon by its own decision. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Exit(Arc<Mutex<Option<Ending>>>);

impl Exit {
    /// The process ends now.
    pub fn leave(&self, ending: Ending) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ending);
    }

    /// How it has ended, if it has.
    pub fn wanted(&self) -> Option<Ending> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blow that the software asks for, at a moment that luck alone would seldom meet: its host is cut off from the network.
/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Blow(Arc<Mutex<Option<CutOff>>>);

/// A host is to be cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutOff {
    /// The situation that it is counted as.
    pub situation: &'static str,
    /// For how long, in microseconds.
    pub length_us: u64,
}

impl Blow {
    /// Asks for it. It falls where faults of that kind are enabled, and before the calm.
    pub fn cut_off(&self, situation: &'static str, length_us: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(CutOff { situation, length_us });
    }

    /// What was asked for, once.
    pub fn take(&self) -> Option<CutOff> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Boot {
    /// Whether the host still has power: without it, failures are of no interest.
    pub fn has_power(&self) -> bool {
        self.supply.is_on()
    }
}

/// When an expectation is judged.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// World time, in microseconds.
    pub now_us: u64,
    /// Hosts that run.
    pub up: &'a [HostId],
    /// Who is who.
    pub cast: Cast<'a>,
    /// The leader that the script spoke of last.
    pub last_leader: Option<HostId>,
}

/// The software under test. One value serves all hosts; what it keeps between boots of a host is the observer's
/// knowledge (which writes were acknowledged), never the host's.
pub trait Software: fmt::Debug + Send + Sync {
    /// Runs one boot until its power goes: the future is dropped then, wherever it is.
    fn boot(&self, boot: Boot) -> BoxFuture<()>;

    /// A boot is over: lets go of everything that belongs to its runtime.
    fn ended(&self, host: HostId);

    /// After the calm: what should hold of all hosts and does not. Each host in `up` runs.
    fn verdict(&self, up: &[HostId]) -> Vec<String>;

    /// Whether what is on a host's disk may be lost now, as far as the hosts that are `up` know: the others can go on
    /// without it.
    fn may_lose(&self, _host: HostId, _up: &[HostId]) -> bool {
        false
    }

    /// What a host's disk holds is not what was written any more.
    fn rotted(&self, _host: HostId) {}

    /// A host's disk is empty from now on.
    fn wiped(&self, _host: HostId) {}

    /// A host is to leave the others, in an orderly way.
    fn leaves(&self, _host: HostId) {}

    /// A host's daemon is to stop in an orderly way, and is started again after so many microseconds.
    fn stops(&self, _host: HostId, _down_us: u64) {}

    /// Takeovers that were applied since it was last asked.
    fn takeovers(&self) -> Vec<Takeover> {
        Vec::new()
    }

    /// What does not hold of what runs now, and of copies that were destroyed, after these takeovers.
    fn judge(&self, _: &[(HostId, Running)], _: &[Destroyed], _: &[Takeover]) -> Option<String> {
        None
    }

    /// Who leads, among these.
    fn leader(&self, _: &[HostId]) -> Option<HostId> {
        None
    }

    /// What does not hold of an expectation at a moment, in words.
    fn expect(&self, _: &Expectation, _: &Moment<'_>) -> Option<String> {
        Some("this software can tell nothing of it".to_owned())
    }

    /// What a script's record tells of a moment, in a line: what changes when the behaviour does. Nothing for software that
    /// no script is run with.
    fn facts(&self, _up: &[HostId]) -> String {
        String::new()
    }

    /// What it did how often, the same for the same run.
    fn counts(&self) -> BTreeMap<String, u64>;
}
