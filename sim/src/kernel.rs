//! A host's kernel, as far as machines need one: a fake of [`Runtime`] whose machines are records.
//!
//! Like the real one it outlives the daemon: machines and their supervisors' lease deadlines belong to the host
//! ([`Kernel`]), and a new daemon ([`FakeRuntime`]) finds what runs. A power cut ends what runs and keeps the disks. The
//! supervisor's freeze is reckoned, not timed: whoever looks at a moment learns whether the deadline had passed by then,
//! also while the daemon is stopped.
//!
//! A machine that runs writes to its disk all the time, and each write is on the disk when its program goes on: what its
//! disk holds is the epoch in which it was made and how much was written.
//!
//! Supervisors may hang, all of a host at once: what they are told waits, and nothing freezes at its deadline until they go
//! on. The daemon can kill them.
//!
//! Absent: programs. A machine that was started runs until somebody ends it; nothing can be executed in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fabric::ids::{MachineId, MoveId};
use fabric::limits::LEASE_FREEZE_MARGIN;
use fabric::model::{MachineState, MachineStatus};
use fabric::seams::Clock;
use smartnode::runtime::{Duplex, ExecStream, Frozen, Launch, LogLine, LogQuery, Observed, Runtime, RuntimeError};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::actor::Recorder;
use crate::power::Supply;

/// How long the start of a machine takes.
const START: Duration = Duration::from_millis(30);
/// How long stopping one takes.
const STOP: Duration = Duration::from_millis(20);
/// How long a supervisor's answer is waited for, as the real runtime does.
const ANSWER: Duration = Duration::from_secs(5);
/// How long one that hangs is waited for before it is killed, its machine with it, as the real runtime does.
const KILL: Duration = Duration::from_secs(10);
/// How often a waiting request looks for its answer.
const LOOK: Duration = Duration::from_millis(50);

/// What a supervisor is told.
#[derive(Debug, Clone, Copy)]
enum Order {
    Freeze,
    Thaw,
    Renew { deadline: Duration, thaw: bool },
    Shorten(Duration),
}

/// What a machine's disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// The epoch in which the disk was made, empty.
    pub born: u64,
    /// Writes that are on it.
    pub writes: u64,
}

/// A disk that comes by a move.
#[derive(Debug, Clone, Copy)]
struct Staged {
    content: Content,
    prepared: bool,
}

#[derive(Debug)]
struct Machine {
    launch: Launch,
    disk: Content,
    up: bool,
    frozen: Frozen,
    deadline: Option<Duration>,
    started_ms: Option<u64>,
    reason: Option<String>,
    /// Its supervisor was killed.
    lost: bool,
    /// What its supervisor has not read yet, for it hangs.
    unread: Vec<Order>,
}

impl Machine {
    /// What its supervisor has done by `now`, on `CLOCK_BOOTTIME`, unless it `hangs`; whether it froze the machine.
    fn settle(&mut self, now: Duration, hangs: bool) -> bool {
        let expires = self.deadline.is_some_and(|deadline| now + LEASE_FREEZE_MARGIN >= deadline);
        let freezes = self.up && self.launch.spec.exclusive && expires && !self.frozen.by_lease && !hangs;
        self.frozen.by_lease |= freezes;
        self.disk.writes += u64::from(self.runs());
        freezes
    }

    fn runs(&self) -> bool {
        self.up && !self.frozen.by_lease && !self.frozen.by_order
    }

    /// Does what its supervisor was told; whether it thawed the machine.
    fn obey(&mut self, order: Order, now: Duration) -> bool {
        let frozen = self.frozen.by_lease;
        match order {
            Order::Freeze => self.frozen.by_order = true,
            Order::Thaw => self.frozen.by_order = false,
            Order::Renew { deadline, thaw } => {
                self.deadline = self.deadline.max(Some(deadline));
                self.frozen.by_lease &= !thaw;
            }
            Order::Shorten(deadline) => self.deadline = self.deadline.map(|held| held.min(deadline)),
        }
        self.settle(now, false);
        frozen && !self.frozen.by_lease
    }

    fn end(&mut self, reason: &str) {
        self.unread.clear();
        (self.up, self.frozen, self.reason) = (false, Frozen::default(), Some(reason.to_owned()));
    }

    fn status(&self) -> MachineStatus {
        let state = match (self.up, self.runs()) {
            (true, true) => MachineState::Running,
            (true, false) => MachineState::Frozen,
            (false, _) => MachineState::Stopped,
        };
        MachineStatus {
            id: self.launch.id,
            epoch: self.launch.epoch,
            state,
            pid: None,
            started_ms: self.started_ms,
            restarts: 0,
            requested_restarts: self.launch.requested_restarts,
            exit_code: None,
            reason: self.reason.clone(),
            cpu_micros: 0,
            memory_bytes: if self.up { 1 << 20 } else { 0 },
            memory_floor: "best-effort".to_owned(),
        }
    }

    fn observed(&self) -> Observed {
        Observed {
            id: self.launch.id,
            image: Some(self.launch.image),
            epoch: self.launch.epoch,
            requested_restarts: self.launch.requested_restarts,
            exclusive: self.launch.spec.exclusive,
            frozen: self.frozen,
            lease_deadline: self.deadline,
            lost: self.lost,
            status: self.status(),
        }
    }
}

/// A machine that runs at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Which.
    pub id: MachineId,
    /// In which epoch.
    pub epoch: u64,
    /// Whether it must run nowhere else.
    pub exclusive: bool,
    /// What it has on its disk.
    pub disk: Content,
}

/// What happened to the machines of a host, how often.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Frozen by their supervisors.
    pub frozen: u64,
    /// Thawed by a renewal.
    pub thawed: u64,
    /// Killed by the daemon, whose lease ended.
    pub fenced: u64,
    /// Starts that failed by order.
    pub failed_starts: u64,
}

/// The machines of one host.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    counts: Arc<Mutex<Counts>>,
    machines: Arc<Mutex<BTreeMap<MachineId, Machine>>>,
    staged: Arc<Mutex<BTreeMap<MoveId, Staged>>>,
    /// Copies that are gone for good since they were last asked for: machine and epoch.
    destroyed: Arc<Mutex<Vec<(MachineId, u64)>>>,
    /// So many further starts fail.
    failing_starts: Arc<AtomicU32>,
    /// The supervisors hang.
    hangs: Arc<AtomicBool>,
}

impl Kernel {
    fn machines(&self) -> MutexGuard<'_, BTreeMap<MachineId, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, machines: &mut BTreeMap<MachineId, Machine>, now: Duration) {
        let hangs = self.hangs();
        let settled = machines.values_mut().filter_map(|machine| machine.settle(now, hangs).then_some(()));
        let frozen = settled.count() as u64;
        if frozen > 0 {
            self.count(|counts| counts.frozen += frozen);
        }
    }

    fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What happened here.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies that are gone for good since it was last asked: machine, and the epoch that it was last started or prepared in.
    pub fn destroyed(&self) -> Vec<(MachineId, u64)> {
        std::mem::take(&mut *self.destroyed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What runs, unfrozen, at `boottime`.
    pub fn running(&self, boottime: Duration) -> Vec<Running> {
        let mut machines = self.machines();
        self.settle(&mut machines, boottime);
        let running = machines.values().filter(|machine| machine.runs());
        let name = |machine: &Machine| Running {
            id: machine.launch.id,
            epoch: machine.launch.epoch,
            exclusive: machine.launch.spec.exclusive,
            disk: machine.disk,
        };
        running.map(name).collect()
    }

    /// In which epoch an exclusive machine is up under a deadline that has not passed at `boottime`.
    pub fn held(&self, id: MachineId, boottime: Duration) -> Option<u64> {
        let machines = self.machines();
        let machine = machines.get(&id).filter(|machine| machine.up && machine.launch.spec.exclusive)?;
        machine.deadline.filter(|deadline| *deadline > boottime).map(|_| machine.launch.epoch)
    }

    /// Ends one of those that are up, together with its supervisor; `false` when there is none.
    pub fn end_one(&self, number: u64) -> bool {
        let mut machines = self.machines();
        let mut up: Vec<&mut Machine> = machines.values_mut().filter(|machine| machine.up).collect();
        let Some(at) = number.checked_rem(up.len() as u64) else { return false };
        up[at as usize].end("its supervisor was killed");
        up[at as usize].lost = true;
        true
    }

    /// Lets so many further starts fail.
    pub fn fail_starts(&self, starts: u32) {
        self.failing_starts.store(starts, Ordering::Relaxed);
    }

    /// Whether the supervisors hang.
    pub fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Relaxed)
    }

    /// Lets the supervisors hang.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    /// The supervisors go on, at `boottime`, with what they were told meanwhile.
    pub fn unhang(&self, boottime: Duration) {
        self.hangs.store(false, Ordering::Relaxed);
        for machine in self.machines().values_mut().filter(|machine| machine.up) {
            for order in std::mem::take(&mut machine.unread) {
                machine.obey(order, boottime);
            }
        }
    }

    /// Nothing is left of any machine.
    pub fn wipe(&self) {
        self.staged().clear();
        self.machines().clear();
        self.hangs.store(false, Ordering::Relaxed);
    }

    /// Whether the start under way fails.
    fn start_fails(&self) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        self.failing_starts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    fn staged(&self) -> MutexGuard<'_, BTreeMap<MoveId, Staged>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes: everything ends, disks stay, and of what was coming what is prepared.
    pub fn power_cut(&self) {
        self.hangs.store(false, Ordering::Relaxed);
        self.staged().retain(|_, staged| staged.prepared);
        self.machines()
            .values_mut()
            .filter(|machine| machine.up)
            .for_each(|machine| machine.end("the host lost power"));
    }

    /// The runtime as a daemon sees it.
    pub fn attach(&self, clock: Arc<dyn Clock>, supply: Supply, recorder: Option<Recorder>) -> Arc<FakeRuntime> {
        let (changed, _) = watch::channel(0);
        Arc::new(FakeRuntime { kernel: self.clone(), clock, supply, recorder, changed })
    }
}

/// One daemon's hold on its host's machines.
#[derive(Debug)]
pub struct FakeRuntime {
    kernel: Kernel,
    clock: Arc<dyn Clock>,
    supply: Supply,
    /// Tells the trace what happened to machines.
    recorder: Option<Recorder>,
    changed: watch::Sender<u64>,
}

impl FakeRuntime {
    /// Works on all machines, settled up to now, unless the power is gone.
    fn with_all<T>(
        &self,
        work: impl FnOnce(&mut BTreeMap<MachineId, Machine>) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        if !self.supply.is_on() {
            return Err(RuntimeError::Unsupported("the power is gone".to_owned()));
        }
        let now = self.clock.boottime();
        let mut machines = self.kernel.machines();
        self.kernel.settle(&mut machines, now);
        work(&mut machines)
    }

    fn with<T>(
        &self,
        id: MachineId,
        work: impl FnOnce(&mut Machine) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        self.with_all(|machines| work(machines.get_mut(&id).ok_or(RuntimeError::NotFound(id))?))
    }

    fn with_up<T>(&self, id: MachineId, work: impl FnOnce(&mut Machine) -> T) -> Result<T, RuntimeError> {
        let done = self.with(id, |machine| if machine.up { Ok(work(machine)) } else { Err(down(id)) })?;
        self.change();
        Ok(done)
    }

    /// Tells the supervisor of a machine that is up, and waits for its answer.
    async fn tell_supervisor(&self, id: MachineId, order: Order, what: &'static str) -> Result<bool, RuntimeError> {
        let (now, hangs) = (self.clock.boottime(), self.kernel.hangs());
        let thawed = self.with_up(id, |machine| match hangs {
            true => {
                machine.unread.push(order);
                false
            }
            false => machine.obey(order, now),
        })?;
        if hangs {
            self.wait_for_supervisor(ANSWER).await;
            if self.kernel.hangs() {
                return Err(RuntimeError::Timeout { id, what, after: ANSWER });
            }
        }
        Ok(thawed)
    }

    /// Waits while the supervisors hang, but not for longer than `patience`.
    async fn wait_for_supervisor(&self, patience: Duration) {
        let mut waited = Duration::ZERO;
        while self.kernel.hangs() && waited < patience {
            sleep(LOOK).await;
            waited += LOOK;
        }
    }

    /// What is on a machine's disk now.
    pub fn content(&self, id: MachineId) -> Option<Content> {
        self.with(id, |machine| Ok(machine.disk)).ok()
    }

    /// Takes a pass of a disk that comes by a move; the last one is on this host's disk for good.
    ///
    /// # Errors
    /// When the power is gone.
    pub fn stage(&self, id: MoveId, content: Content, prepared: bool) -> std::io::Result<()> {
        if !self.supply.is_on() {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        self.kernel.staged().insert(id, Staged { content, prepared });
        Ok(())
    }

    /// Whether the disk of a move is prepared; none without power.
    pub fn is_prepared(&self, id: MoveId) -> Option<bool> {
        self.supply.is_on().then(|| self.kernel.staged().get(&id).is_some_and(|staged| staged.prepared))
    }

    /// Makes the prepared disk of a move the machine's; `false` when there is none, or no machine that is down.
    pub fn adopt(&self, id: MoveId, machine: MachineId) -> bool {
        let adopted = self.with_all(|machines| {
            let mut staged = self.kernel.staged();
            let machine = machines.get_mut(&machine).filter(|machine| !machine.up);
            let (Some(machine), true) = (machine, staged.get(&id).is_some_and(|staged| staged.prepared)) else {
                return Ok(false);
            };
            staged.remove(&id).into_iter().for_each(|staged| machine.disk = staged.content);
            Ok(true)
        });
        adopted.unwrap_or(false)
    }

    /// Forgets what has come of a move.
    pub fn unstage(&self, id: MoveId) {
        if self.supply.is_on() {
            self.kernel.staged().remove(&id);
        }
    }

    /// Moves of which something is here.
    pub fn staged(&self) -> BTreeSet<MoveId> {
        self.kernel.staged().keys().copied().collect()
    }

    /// What runs, unfrozen, now.
    pub fn running(&self) -> Vec<Running> {
        self.kernel.running(self.clock.boottime())
    }

    /// In what state a machine is, in words.
    pub fn describe(&self, id: MachineId) -> String {
        let now = self.clock.boottime();
        match self.kernel.machines().get(&id) {
            None => "not known there".to_owned(),
            Some(machine) => format!(
                "up: {}, {:?}, epoch {}, deadline {:?} at {now:?}, {:?}",
                machine.up, machine.frozen, machine.launch.epoch, machine.deadline, machine.reason
            ),
        }
    }

    /// Takes a machine off the list, and ends it.
    async fn take(&self, id: MachineId) -> Result<Option<Machine>, RuntimeError> {
        if self.with(id, |machine| Ok(machine.up)).unwrap_or(false) {
            self.wait_for_supervisor(KILL).await;
        }
        let taken = self.with_all(|machines| Ok(machines.remove(&id)))?;
        self.change();
        Ok(taken)
    }

    fn change(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn tell(&self, id: MachineId, what: impl std::fmt::Display) {
        if let Some(recorder) = &self.recorder {
            recorder.event(format_args!("machine {id} {what}"));
        }
    }
}

fn down(id: MachineId) -> RuntimeError {
    RuntimeError::State { id, state: "down".to_owned(), hint: "start it first".to_owned() }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.with_all(|machines| Ok(machines.values().map(Machine::observed).collect()))
    }

    async fn prepare(&self, launch: &Launch) -> Result<(), RuntimeError> {
        let id = launch.id;
        self.with_all(|machines| {
            if machines.get(&id).is_some_and(|machine| machine.up) {
                let hint = "stop it first".to_owned();
                return Err(RuntimeError::State { id, state: "up".to_owned(), hint });
            }
            let (launch, deadline) = (launch.clone(), launch.lease_deadline);
            let empty = Content { born: launch.epoch, writes: 0 };
            let fresh = Machine {
                disk: machines.get(&id).map_or(empty, |machine| machine.disk),
                launch,
                up: false,
                frozen: Frozen::default(),
                deadline,
                started_ms: None,
                reason: None,
                lost: false,
                unread: Vec::new(),
            };
            machines.insert(id, fresh);
            Ok(())
        })?;
        self.change();
        Ok(())
    }

    async fn start(&self, launch: &Launch) -> Result<(), RuntimeError> {
        let id = launch.id;
        let up_at = self.with_all(|machines| {
            let up = machines.get(&id).filter(|machine| machine.up);
            Ok(up.map(|machine| machine.launch.epoch))
        })?;
        match up_at {
            Some(epoch) if epoch == launch.epoch => return Ok(()),
            Some(epoch) => {
                let (state, hint) = (format!("up at epoch {epoch}"), "stop it first".to_owned());
                return Err(RuntimeError::State { id, state, hint });
            }
            None => self.prepare(launch).await?,
        }
        sleep(START).await;
        if self.kernel.start_fails() {
            self.kernel.count(|counts| counts.failed_starts += 1);
            self.tell(id, "does not start");
            let reason = "the program could not be started (simulated)".to_owned();
            return Err(RuntimeError::Start { id, reason });
        }
        let started_ms = self.clock.wall().as_millis() as u64;
        self.with(id, |machine| {
            (machine.up, machine.started_ms) = (true, Some(started_ms));
            Ok(())
        })?;
        self.tell(id, format_args!("runs in epoch {}", launch.epoch));
        self.change();
        Ok(())
    }

    async fn stop(&self, id: MachineId, grace: Duration) -> Result<(), RuntimeError> {
        self.wait_for_supervisor(grace + KILL).await;
        sleep(STOP).await;
        self.with(id, |machine| {
            if machine.up {
                machine.end("stopped");
            }
            Ok(())
        })?;
        self.tell(id, "is stopped");
        self.change();
        Ok(())
    }

    async fn destroy(&self, id: MachineId) -> Result<(), RuntimeError> {
        if let Some(machine) = self.take(id).await? {
            let mut destroyed = self.kernel.destroyed.lock().unwrap_or_else(PoisonError::into_inner);
            destroyed.push((id, machine.launch.epoch));
        }
        self.tell(id, "is gone");
        Ok(())
    }

    async fn quarantine(&self, id: MachineId) -> Result<(), RuntimeError> {
        self.take(id).await?;
        self.tell(id, "is kept aside");
        Ok(())
    }

    async fn freeze(&self, id: MachineId) -> Result<(), RuntimeError> {
        self.tell(id, "is frozen by order");
        self.tell_supervisor(id, Order::Freeze, "freeze").await.map(drop)
    }

    async fn thaw(&self, id: MachineId) -> Result<(), RuntimeError> {
        self.tell(id, "is thawed by order");
        self.tell_supervisor(id, Order::Thaw, "thaw").await.map(drop)
    }

    async fn renew(&self, id: MachineId, deadline: Duration, thaw: bool) -> Result<(), RuntimeError> {
        if self.tell_supervisor(id, Order::Renew { deadline, thaw }, "renew").await? {
            self.kernel.count(|counts| counts.thawed += 1);
            self.tell(id, "is thawed: its lease was renewed");
        }
        Ok(())
    }

    async fn shorten(&self, id: MachineId, deadline: Duration) -> Result<(), RuntimeError> {
        self.tell_supervisor(id, Order::Shorten(deadline), "shorten").await.map(drop)
    }

    async fn fence(&self, id: MachineId) -> Result<bool, RuntimeError> {
        let killed = self.with(id, |machine| {
            let runs = machine.runs();
            if runs {
                machine.end("its supervisor was killed");
                machine.lost = true;
            }
            Ok(runs)
        })?;
        if killed {
            self.kernel.count(|counts| counts.fenced += 1);
            self.tell(id, "is fenced");
            self.change();
        }
        Ok(killed)
    }

    async fn status(&self, id: MachineId) -> Result<MachineStatus, RuntimeError> {
        self.with(id, |machine| Ok(machine.status()))
    }

    async fn exec(&self, _: MachineId, _: &[String]) -> Result<ExecStream, RuntimeError> {
        Err(RuntimeError::Unsupported("simulated machines have no programs".to_owned()))
    }

    async fn logs(&self, id: MachineId, _: LogQuery) -> Result<mpsc::Receiver<LogLine>, RuntimeError> {
        self.with(id, |_| Ok(mpsc::channel(1).1))
    }

    async fn connect(&self, id: MachineId, port: u16) -> Result<Box<dyn Duplex>, RuntimeError> {
        let source = std::io::ErrorKind::ConnectionRefused.into();
        self.with(id, |_| Err(RuntimeError::Connect { id, port, source }))
    }

    fn writable_layer(&self, id: MachineId) -> PathBuf {
        PathBuf::from(format!("simulated/{id}"))
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    async fn sweep(&self, _: Duration) -> Result<(), RuntimeError> {
        self.with_all(|_| Ok(()))
    }
}

#[cfg(test)]
mod tests;
