//! Runs what [`super::decide`] says: one task that owns the state, one short-lived task per action.
//!
//! A machine has at most one action at a time. A failed one is tried again after a pause, by looking again: nothing is
//! remembered of it but when to look.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fabric::events::Happening;
use fabric::ids::{IdempotencyKey, MachineId};
use fabric::model::{Desired, MachineRecord};
use fabric::seams::draw;
use raft_store::command::{Actor, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::held::{Answer, HeldGuard, answer};
use super::publish::Published;
use super::{Action, Facts, Local, Phase, View, backed_off, backoff, decide, lost};
use crate::api::failure::Failure;
use crate::node::context::{Context, DOUBT};
use crate::node::lease;
use crate::runtime::{Launch, Observed, RuntimeError};

/// A daemon that begins waits so long for whoever can tell it how things are. Then it goes by its own copy, so that
/// machines that need no lease run on a node which is alone.
const ALONE: Duration = Duration::from_secs(15);
/// Without a wake-up the node looks again this often.
const LOOK: Duration = Duration::from_secs(2);
/// A failed action rests this long.
const PAUSE: Duration = Duration::from_secs(1);
/// Wake-ups that come together are served together.
const GATHER: Duration = Duration::from_millis(2);
/// SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(10);
/// A placement that failed is not tried again for this long, doubled at each failure.
const BACKOFF: Duration = Duration::from_secs(1);
/// Longest back-off.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Code of the failure that is no machine's: this node has no lease that covers what was decided.
const UNLEASED: &str = "unleased";

enum Done {
    Well(MachineId),
    /// With the revision of the record that it was decided on.
    Badly(MachineId, Option<u64>),
    Absent(MachineId),
}

struct Reconciler {
    context: Arc<Context>,
    busy: BTreeSet<MachineId>,
    /// Machines whose last action failed: until when they rest, unless their record changes from this revision.
    resting: BTreeMap<MachineId, (Instant, Option<u64>)>,
    absent: BTreeSet<MachineId>,
    view: View,
    /// Machines of which it was told that their launch record is damaged.
    damaged: BTreeSet<MachineId>,
    /// Look again after this.
    next: Duration,
    published: Published,
    done: mpsc::UnboundedSender<Done>,
}

/// Reconciles until the node stops. Does not return before.
pub async fn run(context: Arc<Context>) {
    // One message per action under way, and actions are bounded by the machines of this node.
    let (done, mut finished) = mpsc::unbounded_channel();
    let (mut ledger, mut runtime) = (context.ledger.changed(), context.runtime.watch());
    let (mut renewed, mut room) = (context.lease.subscribe(), context.room.subscribe());
    let mut freed = context.held.freed();
    let mut reconciler = Reconciler {
        published: Published::new(context.clone()),
        context: context.clone(),
        busy: BTreeSet::new(),
        resting: BTreeMap::new(),
        absent: BTreeSet::new(),
        view: View::Unknown,
        damaged: BTreeSet::new(),
        next: LOOK,
        done,
    };
    // A task of its own, which goes on whatever is looked at here.
    let mut asking = JoinSet::from_iter([current(context.clone())]);
    let mut alone = pin!(tokio::time::sleep(ALONE));
    loop {
        reconciler.look().await;
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return,
            Some(_) = asking.join_next() => reconciler.view = View::Current,
            () = &mut alone, if reconciler.view == View::Unknown => {
                reconciler.view = View::Own;
                tracing::warn!("nobody tells this node how its machines are to be: it goes by its own copy");
            }
            Some(outcome) = finished.recv() => reconciler.finished(outcome),
            _ = changed(&mut runtime) => {}
            _ = changed(&mut renewed) => {}
            _ = changed(&mut room) => {}
            _ = changed(&mut freed) => {}
            _ = changed(&mut ledger) => {}
            () = tokio::time::sleep(reconciler.next) => {}
        }
        while let Ok(outcome) = finished.try_recv() {
            reconciler.finished(outcome);
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Returns once this node's view has been current.
async fn current(context: Arc<Context>) {
    while context.ledger.linearizable().await.is_err() {
        tokio::time::sleep(DOUBT).await;
    }
}

/// A change, or for ever when the sender is gone: the node is stopping then.
async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What the decision needs of what the runtime found.
pub fn local(observed: &Observed) -> Local {
    use fabric::model::MachineState::{Exited, Failed, Frozen};
    let phase = match observed.status.state {
        _ if observed.image.is_none() && observed.is_up() => Phase::Unrecorded,
        Frozen => Phase::Frozen,
        _ if observed.image.is_none() => Phase::Damaged,
        Failed if observed.lost => Phase::Lost,
        Exited => Phase::Exited(observed.status.exit_code.unwrap_or_default()),
        Failed => Phase::Ended,
        _ if observed.is_up() => Phase::Up,
        _ => Phase::Down,
    };
    Local { epoch: observed.epoch, restarts: observed.requested_restarts, phase }
}

impl Reconciler {
    fn finished(&mut self, outcome: Done) {
        let (Done::Well(machine) | Done::Badly(machine, _) | Done::Absent(machine)) = outcome;
        self.busy.remove(&machine);
        match outcome {
            Done::Well(_) => drop(self.resting.remove(&machine)),
            Done::Badly(_, revision) => drop(self.resting.insert(machine, (Instant::now() + PAUSE, revision))),
            Done::Absent(_) => drop(self.absent.insert(machine)),
        }
    }

    async fn look(&mut self) {
        let observed = match self.context.runtime.list().await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot list this node's machines");
                return;
            }
        };
        let Some((index, records)) = self.context.mine(observed.iter().map(|machine| machine.id)) else { return };
        let locals: BTreeMap<_, _> = observed.iter().map(|machine| (machine.id, local(machine))).collect();
        let now = Instant::now();
        let revision = |machine: &MachineId| records.get(machine).map(|record| record.revision);
        self.resting.retain(|machine, (until, seen)| *until > now && revision(machine) == *seen);
        let mut busy = self.context.held.busy(index);
        busy.extend(self.busy.iter().chain(self.resting.keys()));
        self.absent.retain(|machine| locals.contains_key(machine) && !records.contains_key(machine));
        let (boottime, now_ms) = (self.context.seams.clock.boottime(), self.context.ledger.now_ms());
        let none = BTreeSet::new();
        self.tell_damaged(&locals, &records);
        let (moved, room) = (self.moved(), self.context.room.borrow().clone());
        let mut facts = Facts {
            me: self.context.me,
            records: &records,
            locals: &locals,
            busy: &busy,
            known_absent: &self.absent,
            waiting: &none,
            moved: &moved,
            room: &room,
            leased: lease::covers(&self.context.lease.borrow(), boottime, index),
            view: self.view,
            now_ms,
        };
        let mut lost = lost(&facts);
        let starting = |id: &MachineId| self.busy.contains(id);
        let mut retries = self.context.retries.borrow().clone();
        // One that is being started looks lost until its new supervisor is there.
        lost.retain(|id| !starting(id));
        let kept: Vec<_> = retries.iter().filter(|(id, _)| starting(id)).map(|(id, retry)| (*id, *retry)).collect();
        backoff::look(&mut retries, boottime, &locals, &lost);
        retries.extend(kept);
        let (waiting, first) = backoff::waiting(&retries, boottime);
        let failed = backed_off(&records, self.context.me, now_ms);
        let rests = self.resting.values().map(|(until, _)| until.saturating_duration_since(now));
        self.next = first.into_iter().chain(failed).chain(rests).fold(LOOK, Duration::min);
        facts.waiting = &waiting;
        let actions = decide(&facts);
        for action in &actions {
            if let Action::Start { machine, .. } = action {
                backoff::started(&mut retries, *machine, boottime);
            }
        }
        self.context.retries.send_if_modified(|told| {
            let changed = *told != retries;
            *told = retries;
            changed
        });
        self.published.follow(&records, &locals);
        for action in actions {
            self.begin(action, index, &records);
        }
    }

    /// Copies that this node has moved away; none are known while the notes cannot be read, and all are kept aside then.
    fn moved(&self) -> BTreeSet<(MachineId, u64)> {
        match self.context.notes.done.load() {
            Ok(notes) => notes.into_iter().map(|note| (note.machine, note.epoch)).collect(),
            Err(error) => {
                tracing::warn!(%error, "the notes of moves that are done cannot be read");
                BTreeSet::new()
            }
        }
    }

    /// A disk whose age nobody knows needs a person.
    fn tell_damaged(&mut self, locals: &BTreeMap<MachineId, Local>, records: &BTreeMap<MachineId, MachineRecord>) {
        self.damaged.retain(|id| locals.contains_key(id));
        for id in locals.iter().filter(|(_, local)| local.phase == Phase::Damaged).map(|(id, _)| *id) {
            if !self.damaged.insert(id) {
                continue;
            }
            let name = records.get(&id).map_or_else(|| id.short(), |record| record.name.to_string());
            let message = format!(
                "the launch record of {name} on {} is missing or damaged: it is not started here, and its disk is kept",
                self.context.name
            );
            tracing::error!(machine = %name, "its launch record is missing or damaged: its disk is kept and not used");
            self.context.events.record(Happening { kind: "machine-damaged", subject: name, message, data: vec![] });
        }
    }

    fn begin(&mut self, action: Action, view: u64, records: &BTreeMap<MachineId, MachineRecord>) {
        let machine = action.machine();
        // A move may have taken it since this was decided; it is looked at again then.
        let Some(held) = self.context.held.take_for_action(machine, view) else { return };
        let (context, done, record) = (self.context.clone(), self.done.clone(), records.get(&machine).cloned());
        let revision = record.as_ref().map(|record| record.revision);
        self.busy.insert(machine);
        tokio::spawn(async move {
            tracing::debug!(machine = %machine.short(), ?action, "reconcile");
            let outcome = match perform(&context, &held, &action, record).await {
                Ok(false) => Done::Well(machine),
                Ok(true) => Done::Absent(machine),
                Err(failure) => {
                    tracing::warn!(machine = %machine.short(), ?action, reason = %failure, "will be tried again");
                    Done::Badly(machine, revision)
                }
            };
            drop(held);
            let _ = done.send(outcome);
        });
    }
}

impl Action {
    fn machine(&self) -> MachineId {
        match self {
            Action::Start { machine, .. }
            | Action::Ended { machine, .. }
            | Action::Confirm(machine, _)
            | Action::Restart(machine)
            | Action::Stop(machine)
            | Action::Destroy(machine, _)
            | Action::Forget(machine, _)
            | Action::Quarantine(machine)
            | Action::Discard(machine)
            | Action::Ask(machine)
            | Action::Thaw(machine) => *machine,
        }
    }
}

/// Writes about a machine that is held: nobody decides about it again by a view that lacks what was written.
async fn submit(context: &Context, held: &HeldGuard, command: Command) -> Result<(), Failure> {
    let applied = context.propose(command).await?;
    held.until_seen(applied.index);
    Ok(())
}

/// Gives the machine up. While it is not known whether that was done, nobody decides about it: by this node's view it is
/// still its own, and another may have started it. For that there is no time-out but the node's end.
async fn give_up(context: &Context, held: &HeldGuard, command: Command) -> Result<(), Failure> {
    // One key for all: what is asked for again is answered as it was the first time.
    let (key, mut doubted) = (IdempotencyKey(draw(&*context.seams.entropy)), false);
    loop {
        let said = context.ledger.write(Actor::fabric(context.me), Some(key), command.clone()).await;
        let index = match answer(&said, doubted) {
            Answer::Known(index) => Some(index),
            Answer::NotDone => None,
            Answer::Read if context.ledger.linearizable().await.is_ok() => {
                Some(context.ledger.read_at(|index, _| index))
            }
            Answer::Read | Answer::Unknown => {
                doubted = true;
                tokio::select! {
                    biased;
                    () = context.shutdown.cancelled() => Some(u64::MAX),
                    () = tokio::time::sleep(DOUBT) => continue,
                }
            }
        };
        index.into_iter().for_each(|index| held.until_seen(index));
        if let Ok(applied) = &said {
            context.caught_up(applied.index).await;
        }
        return said.map(drop).map_err(Failure::from);
    }
}

/// Runs one action; true when it found that the ledger has no record of the machine for this node.
async fn perform(
    context: &Context,
    held: &HeldGuard,
    action: &Action,
    record: Option<MachineRecord>,
) -> Result<bool, Failure> {
    let runtime = &context.runtime;
    match *action {
        Action::Start { machine, epoch, clean } => {
            let Some(record) = record else { return Ok(false) };
            if clean {
                runtime.quarantine(machine).await?;
            }
            start(context, held, &record, epoch).await?;
        }
        Action::Restart(machine) => {
            let Some(record) = record else { return Ok(false) };
            let epoch = record.placement.map_or(record.epoch, |placement| placement.epoch);
            runtime.stop(machine, GRACE).await?;
            start(context, held, &record, epoch).await?;
        }
        Action::Confirm(machine, epoch) => {
            // One that was moved while it was stopped takes its disk now: the source gives its copy up for this word.
            if let Some(record) = record.filter(|record| record.desired == Desired::Stopped)
                && let Err(failure) = prepare(context, &record, epoch).await
            {
                if failure.refusal.code == UNLEASED {
                    return Err(failure);
                }
                return Err(give_back(context, held, (&record, epoch), failure, false).await);
            }
            submit(context, held, Command::Confirm { machine, epoch }).await?;
        }
        Action::Ended { machine, epoch, restarts, code } => {
            submit(context, held, Command::Ended { machine, epoch, restarts, code }).await?;
        }
        Action::Stop(machine) => runtime.stop(machine, GRACE).await?,
        Action::Destroy(machine, epoch) => {
            runtime.stop(machine, GRACE).await?;
            runtime.destroy(machine).await?;
            submit(context, held, Command::Forget { machine, epoch }).await?;
        }
        Action::Forget(machine, epoch) => submit(context, held, Command::Forget { machine, epoch }).await?,
        Action::Quarantine(machine) => runtime.quarantine(machine).await?,
        Action::Discard(machine) => runtime.destroy(machine).await?,
        Action::Ask(machine) => return context.is_absent(machine).await,
        Action::Thaw(machine) => context.lease_renew_now(machine).await?,
    }
    Ok(false)
}

async fn start(context: &Context, held: &HeldGuard, record: &MachineRecord, epoch: u64) -> Result<(), Failure> {
    let here = has_disk(context, record, epoch).await;
    match launch(context, record, epoch).await {
        Ok(()) => Ok(()),
        // Not the machine's failure: it is decided anew once there is a lease.
        Err(failure) if failure.refusal.code == UNLEASED => Err(failure),
        Err(failure) => Err(give_back(context, held, (record, epoch), failure, here).await),
    }
}

/// Whether what lies here is the machine's disk: this node has prepared it in this epoch before, so that it may have run on
/// it, or has told the ledger that it has it.
async fn has_disk(context: &Context, record: &MachineRecord, epoch: u64) -> bool {
    let told = record.placement.is_some_and(|placement| placement.epoch == epoch && placement.confirmed);
    match context.runtime.status(record.id).await {
        Ok(status) => told || status.epoch == epoch,
        Err(RuntimeError::NotFound(_)) => false,
        Err(_) => told,
    }
}

fn unleased() -> Failure {
    Failure::new(UNLEASED, "the lease of this node lapsed before the machine could start")
}

/// Tells the ledger that this node could not do it: the machine is tried again after a while that doubles; elsewhere, unless
/// its disk is `here`.
async fn give_back(
    context: &Context,
    held: &HeldGuard,
    (record, epoch): (&MachineRecord, u64),
    failure: Failure,
    here: bool,
) -> Failure {
    let doubled = BACKOFF * 2u32.saturating_pow(record.failures.min(16));
    let back_off_ms = doubled.min(BACKOFF_MAX).as_millis() as u64;
    let reason = failure.refusal.message.clone();
    let failed = Command::Failed { machine: record.id, epoch, reason, back_off_ms, here };
    give_up(context, held, failed).await.err().unwrap_or(failure)
}

async fn launch(context: &Context, record: &MachineRecord, epoch: u64) -> Result<(), Failure> {
    let room = context.room.borrow().clone();
    if room.full && context.runtime.status(record.id).await.is_err() {
        // Nothing of it is here yet, so that it may as well start elsewhere.
        return Err(room.refusal(&context.name));
    }
    let launch = prepare(context, record, epoch).await?;
    Ok(context.runtime.start(&launch).await?)
}

/// Makes everything be here that the machine needs: its image, and the disk that a move has brought.
async fn prepare(context: &Context, record: &MachineRecord, epoch: u64) -> Result<Launch, Failure> {
    let image = context.image(record.image).await?;
    let mut spec = record.spec.clone();
    let offered = context.offered;
    spec.resources.burst_cpu_millis.get_or_insert(offered.cpu_millis.max(spec.resources.cpu_millis));
    spec.resources.burst_memory_bytes.get_or_insert(offered.memory_bytes.max(spec.resources.memory_bytes));
    // Asked now and not when the start was decided: an image may have taken long, and the machine another owner since.
    let lease_deadline = match record.spec.exclusive {
        true => Some(context.lease_deadline(record.id, epoch).ok_or_else(unleased)?),
        false => None,
    };
    let launch = Launch {
        id: record.id,
        epoch,
        requested_restarts: record.restarts,
        tenant: record.tenant.clone(),
        name: record.name.clone(),
        spec,
        image: record.image,
        rootfs: image.rootfs,
        image_command: image.command,
        image_env: image.env,
        image_workdir: image.workdir,
        lease_deadline,
    };
    crate::moving::incoming::adopt(context, record, &launch).await?;
    Ok(launch)
}
