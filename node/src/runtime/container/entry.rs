//! What the daemon knows of each machine: its launch and what its supervisor last said.
#![expect(clippy::disallowed_methods, reason = "machines' directories hold mounts and sockets: no seam fits them")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::ids::MachineId;
use fabric::model::{MachineState, MachineStatus};
use futures_util::{StreamExt, stream};
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

use super::client::{Feed, ask, dial};
use super::{io_error, machine_dir};
use crate::runtime::cgroup::{Host, Usage};
use crate::runtime::limits::{ADOPTIONS_MAX, CONTROL_TIMEOUT, KILL_TIMEOUT};
use crate::runtime::line::{Request, StatusLine};
use crate::runtime::process::Process;
use crate::runtime::record::{ENDED, LAUNCH, LaunchRecord, PID, UPPER};
use crate::runtime::{Observed, RuntimeError};

/// What is said of a machine that runs while nobody can read its launch record.
const UNRECORDED: &str =
    "its launch record is missing or damaged: it runs on, and is not started again once it has ended";

/// What was last seen of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its status.
    pub line: StatusLine,
    /// Its supervisor lives.
    pub up: bool,
    /// Its supervisor was killed: how the machine ended says nothing about its program.
    pub lost: bool,
}

#[derive(Debug)]
struct Entry {
    /// None when its record is damaged.
    launch: Option<LaunchRecord>,
    seen: watch::Sender<Seen>,
}

/// Everything that the runtime's tasks share.
#[derive(Debug)]
pub struct Shared {
    data: PathBuf,
    /// Prefix of everything that this node makes on the host.
    pub prefix: String,
    /// Control groups of this host.
    pub host: Host,
    /// Counts changes.
    pub changed: watch::Sender<u64>,
    entries: Mutex<BTreeMap<MachineId, Entry>>,
    adopted: OnceCell<()>,
}

impl Shared {
    /// Knows no machine yet.
    pub fn new(data: PathBuf, prefix: String, host: Host) -> Arc<Self> {
        let entries = Mutex::new(BTreeMap::new());
        Arc::new(Shared { data, prefix, host, changed: watch::Sender::new(0), entries, adopted: OnceCell::new() })
    }

    /// Where machines are.
    pub fn machines(&self) -> PathBuf {
        self.data.join("machines")
    }

    /// Where disks are kept aside.
    pub fn quarantine(&self) -> PathBuf {
        self.data.join("quarantine")
    }

    /// The directory of a machine.
    pub fn dir(&self, id: MachineId) -> PathBuf {
        machine_dir(&self.data, id)
    }

    /// Never held across an await. A panic under it leaves whole entries, so its poison is no news.
    fn entries(&self) -> MutexGuard<'_, BTreeMap<MachineId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Adds or replaces a machine.
    pub fn insert(&self, launch: LaunchRecord, line: StatusLine, up: bool) -> watch::Receiver<Seen> {
        let id = launch.id;
        self.put(id, Some(launch), Seen { line, up, lost: false })
    }

    fn put(&self, id: MachineId, launch: Option<LaunchRecord>, seen: Seen) -> watch::Receiver<Seen> {
        let sender = watch::Sender::new(seen);
        let receiver = sender.subscribe();
        self.entries().insert(id, Entry { launch, seen: sender });
        self.bump();
        receiver
    }

    /// Drops a machine whose directory is gone.
    pub fn forget(&self, id: MachineId) {
        self.entries().remove(&id);
        self.bump();
    }

    /// Follows what is seen of a machine.
    pub fn watch(&self, id: MachineId) -> Result<watch::Receiver<Seen>, RuntimeError> {
        self.entries().get(&id).map(|entry| entry.seen.subscribe()).ok_or(RuntimeError::NotFound(id))
    }

    /// What was last seen of a machine.
    pub fn seen(&self, id: MachineId) -> Result<Seen, RuntimeError> {
        self.entries().get(&id).map(|entry| entry.seen.borrow().clone()).ok_or(RuntimeError::NotFound(id))
    }

    /// The epoch that it was last prepared for.
    pub fn epoch(&self, id: MachineId) -> Option<u64> {
        self.launched(id).map(|(epoch, _)| epoch)
    }

    /// The same, with the requested restarts that were known then.
    fn launched(&self, id: MachineId) -> Option<(u64, u64)> {
        self.entries().get(&id)?.launch.as_ref().map(|launch| (launch.epoch, launch.requested_restarts))
    }

    /// An error that says what the machine is doing instead.
    pub fn wrong_state(&self, id: MachineId, hint: &str) -> RuntimeError {
        match self.seen(id) {
            Ok(seen) => {
                let state = format!("{:?}", seen.line.shown_state()).to_lowercase();
                RuntimeError::State { id, state, hint: hint.to_owned() }
            }
            Err(error) => error,
        }
    }

    /// Notes what the supervisor has made of its deadline; no news to anybody.
    pub fn set_deadline(&self, id: MachineId, change: impl FnOnce(Duration) -> Duration) {
        if let Some(entry) = self.entries().get(&id) {
            entry.seen.send_if_modified(|seen| {
                seen.line.deadline = seen.line.deadline.map(change);
                false
            });
        }
    }

    /// Takes the supervisor's word until it ends, then looks at what it left.
    pub fn listen(self: &Arc<Self>, id: MachineId, mut feed: Feed) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                while let Some(line) = feed.next().await {
                    if let Ok(line) = line.parse::<StatusLine>() {
                        shared.update(id, |seen| seen.line = line);
                    }
                }
                // It cuts off who does not listen, as a daemon that was paused: that is not its end.
                let Some((again, line)) = shared.reach(id).await else { break };
                shared.update(id, |seen| seen.line = line);
                feed = again;
            }
            shared.ended(id).await;
        });
    }

    fn update(&self, id: MachineId, change: impl FnOnce(&mut Seen)) {
        if let Some(entry) = self.entries().get(&id) {
            entry.seen.send_modify(change);
        }
        self.bump();
    }

    /// Its supervisor could not even be executed.
    pub fn not_started(&self, id: MachineId, error: &std::io::Error) {
        let line = StatusLine::down(MachineState::Failed, Some(error.to_string()));
        self.update(id, |seen| *seen = Seen { line, up: false, lost: false });
    }

    /// The supervisor is gone. If it did not say how, it was killed, and its machine with it.
    async fn ended(&self, id: MachineId) {
        self.end_supervisor(id);
        let last = self.last_line(id);
        if let Err(error) = self.bury(id).await {
            tracing::warn!(machine = ?id, %error, "remains of a machine");
        }
        use MachineState::{Exited, Failed, Stopped};
        self.update(id, |seen| {
            seen.up = false;
            if let Some(last) = last {
                seen.line = last;
            } else if !matches!(seen.line.state, Failed | Stopped | Exited) {
                // Without that it had told of its end: there may have been no room to write it down.
                seen.line = died(seen.line.restarts);
                seen.lost = true;
            }
        });
    }

    fn last_line(&self, id: MachineId) -> Option<StatusLine> {
        fs::read_to_string(self.dir(id).join(ENDED)).ok()?.trim_end().parse().ok()
    }

    /// Kills and removes what a dead supervisor left: its parent-death signal has reached pid 1, but a frozen process dies
    /// only when it is thawed.
    pub async fn bury(&self, id: MachineId) -> Result<(), RuntimeError> {
        self.bury_group(&id.to_string()).await
    }

    /// See [`Shared::bury`]; by the name of the control group.
    pub async fn bury_group(&self, name: &str) -> Result<(), RuntimeError> {
        let group = self.host.group(&self.prefix, name);
        let remove = async {
            loop {
                match group.remove() {
                    Ok(()) => return,
                    Err(_) => group.kill(),
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if timeout(KILL_TIMEOUT, remove).await.is_err() {
            let result = group.remove();
            return result.map_err(io_error(format!("remove the control group of machine {name}")));
        }
        Ok(())
    }

    /// Finds the machines of a former daemon, once and before anything else: what appears on disk later is our own doing,
    /// and must not be taken for remains while it is being made.
    pub async fn adopt(self: &Arc<Self>) -> Result<(), RuntimeError> {
        self.adopted.get_or_try_init(|| self.adopt_all()).await.copied()
    }

    async fn adopt_all(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let dir = self.machines();
        let listing = fs::read_dir(&dir).map_err(io_error(format!("list {}", dir.display())))?;
        let ids: Vec<MachineId> = listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        // One whose supervisor hangs costs its whole time-out: the others wait for it only when that many hang at once.
        stream::iter(ids).for_each_concurrent(ADOPTIONS_MAX, |id| self.adopt_one(id)).await;
        Ok(())
    }

    async fn adopt_one(self: &Arc<Self>, id: MachineId) {
        let mut launch = self.launch(id);
        if let Some((feed, line)) = self.reach(id).await {
            if launch.is_none() {
                // The supervisor knows it.
                let asked = ask(&self.dir(id), Request::Record, CONTROL_TIMEOUT).await;
                launch = self.launch(id);
                tracing::warn!(machine = ?id, ?asked, mended = launch.is_some(), "its launch record is missing or damaged");
            }
            self.put(id, launch, Seen { line, up: true, lost: false });
            self.listen(id, feed);
            return;
        }
        self.end_supervisor(id);
        if let Err(error) = self.bury(id).await {
            tracing::warn!(machine = ?id, %error, "remains of a machine");
        }
        if launch.is_none() && super::usage::is_empty(&self.dir(id).join(UPPER)).unwrap_or(false) {
            // Cut short before anything of it was there, or written: it begins anew and loses nothing.
            tracing::info!(machine = ?id, "a machine's directory without a launch record and without a disk is no machine");
            return;
        }
        let (line, lost) = match (&launch, self.last_line(id)) {
            (None, _) => (StatusLine::down(MachineState::Failed, Some(self.damaged_words(id))), false),
            (_, Some(line)) => (line, false),
            (_, None) if self.dir(id).join(PID).exists() => (died(0), true),
            // Prepared and never started.
            (_, None) => (StatusLine::down(MachineState::Stopped, None), false),
        };
        self.put(id, launch, Seen { line, up: false, lost });
    }

    fn launch(&self, id: MachineId) -> Option<LaunchRecord> {
        let record = fs::read(self.dir(id).join(LAUNCH)).ok()?;
        fabric::wire::decode::<LaunchRecord>(&record).ok()
    }

    fn damaged_words(&self, id: MachineId) -> String {
        format!(
            "its launch record is missing or damaged, so the age of its disk is unknown; the disk is kept in {}: machine \
             move takes it along as it is, machine delete gives it up",
            self.dir(id).display()
        )
    }

    /// One that lives and does not answer must not wake up later beside a successor. (One that is just exiting has done
    /// its work and is not harmed.)
    fn end_supervisor(&self, id: MachineId) {
        if let Some(process) = self.supervisor(id).filter(|process| process.lives()) {
            let _ = nix::sys::signal::kill(process.nix(), nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Kills the supervisor, which takes its machine with it, and whatever is in the machine's group. Whoever listens to the
    /// supervisor buries what is left.
    pub fn kill(&self, id: MachineId) {
        self.end_supervisor(id);
        self.host.group(&self.prefix, &id.to_string()).kill();
    }

    /// See [`crate::runtime::Runtime::fence`].
    pub fn fence(&self, id: MachineId) -> Result<bool, RuntimeError> {
        let Seen { line, up, .. } = self.seen(id)?;
        let held = line.frozen.by_lease || line.frozen.by_order;
        let group = self.host.group(&self.prefix, &id.to_string());
        // What the kernel holds is still, whatever was last heard of it: its supervisor may have been stopped before it told.
        // One that waits for its next start is held without a process that could be frozen.
        let still = || group.is_frozen().unwrap_or(false) || (held && group.processes().is_empty());
        if !up || still() {
            return Ok(false);
        }
        self.kill(id);
        Ok(true)
    }

    fn supervisor(&self, id: MachineId) -> Option<Process> {
        Process::parse(&fs::read_to_string(self.dir(id).join(PID)).ok()?)
    }

    /// Connects to a supervisor that a former daemon started, and makes sure that it is the one.
    async fn reach(&self, id: MachineId) -> Option<(Feed, StatusLine)> {
        let dir = self.dir(id);
        let process = self.supervisor(id).filter(|process| process.lives())?;
        let reach = async {
            let mut feed = Feed::ask(dial(&dir).await.ok()?).await.ok()?;
            if feed.peer_pid() != Some(process.pid) {
                return None;
            }
            let line = feed.next().await?.parse().ok()?;
            Some((feed, line))
        };
        timeout(CONTROL_TIMEOUT, reach).await.ok()?
    }

    /// Names of machines whose supervisors live.
    pub fn up(&self) -> Vec<String> {
        self.entries().iter().filter(|(_, entry)| entry.seen.borrow().up).map(|(id, _)| id.to_string()).collect()
    }

    /// Every machine.
    pub fn observed(&self) -> Vec<Observed> {
        let ids: Vec<MachineId> = self.entries().keys().copied().collect();
        ids.into_iter().filter_map(|id| self.observe(id)).collect()
    }

    fn observe(&self, id: MachineId) -> Option<Observed> {
        let status = self.status(id).ok()?;
        let entries = self.entries();
        let entry = entries.get(&id)?;
        let Seen { line, lost, .. } = entry.seen.borrow().clone();
        let launch = entry.launch.as_ref();
        Some(Observed {
            id,
            image: launch.map(|launch| launch.image),
            epoch: launch.map_or(0, |launch| launch.epoch),
            requested_restarts: launch.map_or(0, |launch| launch.requested_restarts),
            // Supervisors of exclusive machines alone have a deadline.
            exclusive: launch.map_or(line.deadline.is_some(), |launch| launch.spec.exclusive),
            frozen: line.frozen,
            lease_deadline: line.deadline,
            lost,
            status,
        })
    }

    /// The status of a machine with its use of CPU and memory now.
    pub fn status(&self, id: MachineId) -> Result<MachineStatus, RuntimeError> {
        let Seen { line, up, .. } = self.seen(id)?;
        let group = self.host.group(&self.prefix, &id.to_string());
        let launched = self.launched(id);
        let unrecorded = || (up && launched.is_none()).then(|| UNRECORDED.to_owned());
        let usage = if up { group.usage() } else { Usage::default() };
        Ok(MachineStatus {
            id,
            epoch: launched.map_or(0, |(epoch, _)| epoch),
            state: line.shown_state(),
            pid: line.pid,
            started_ms: line.started_ms,
            restarts: line.restarts,
            requested_restarts: launched.map_or(0, |(_, requested)| requested),
            exit_code: line.exit_code,
            reason: line.reason.or_else(unrecorded),
            cpu_micros: usage.cpu_micros,
            memory_bytes: usage.memory_bytes,
            memory_floor: self.host.memory_floor().to_owned(),
        })
    }
}

/// A machine whose supervisor was killed.
fn died(restarts: u32) -> StatusLine {
    let mut line =
        StatusLine::down(MachineState::Failed, Some("its supervisor was killed, and the machine with it".into()));
    line.exit_code = Some(128 + libc::SIGKILL);
    line.restarts = restarts;
    line
}
