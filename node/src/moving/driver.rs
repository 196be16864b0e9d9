//! Drives a move from its source, and lets any other node follow it.

use std::sync::Arc;
use std::time::Duration;

use fabric::ids::{IdempotencyKey, MachineId, MoveId, NodeId};
use fabric::model::{MachineRecord, Name};
use fabric::records;
use fabric::rpc::{CallError, Refusal};
use fabric::seams::draw;
use fabric::transport::{Class, StreamRequest};
use fabric::wire;
use raft_store::codes;
use raft_store::command::{Command, Outcome};
use raft_store::state::State;
use rkyv::{Archive, Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::marker::MarkerV1;
use super::{Verdict, repeated, verdict};
use crate::api::failure::{self, Failure};
use crate::node::admission::{Late, started};
use crate::node::asks::{self, LAYER, MOVE};
use crate::node::context::{Context, DOUBT};
use crate::node::failures::words;
use crate::node::operations::Progress;
use crate::node::serving;
use crate::reconcile::{self, Phase, held::HeldGuard};
use crate::runtime::{Runtime, RuntimeError};
use crate::transfer;

/// How long the owner may take to begin.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// The destination answers the announcement within this time: it may have to fetch the image first.
const READY_TIMEOUT: Duration = Duration::from_secs(300);
/// SIGTERM to SIGKILL of a machine that moves.
const GRACE: Duration = Duration::from_secs(10);
/// How long the source waits to see the machine run at its destination before it says so.
pub(super) const RUNNING_TIMEOUT: Duration = Duration::from_secs(60);
/// How often reservations that nobody uses are looked for.
const RESERVATIONS_LOOK: Duration = Duration::from_secs(2);
/// A move waits so long for what the reconciler does with its machine.
const ACTION_PATIENCE: Duration = Duration::from_secs(10);

/// Why a move that ends with ABORT has failed.
pub(super) const GIVEN_UP: &str = "the move was given up; the machine stays where it was";

/// Header of a stream that asks the owner to move a machine.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct MoveAskV1 {
    /// The machine.
    pub machine: MachineId,
    /// Its destination.
    pub to: NodeId,
    /// The client's key in its scope, so that the ledger knows the request when it comes again.
    pub key: Option<IdempotencyKey>,
}

/// What the owner tells on that stream.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct MoveNewsV1 {
    /// Its phase.
    pub phase: String,
    /// 0 to 1000.
    pub permille: u32,
    /// Predicted outage.
    pub outage_ms: Option<u64>,
    /// The end: none yet, well, or why not.
    pub end: Option<Option<Refusal>>,
}

records!(MoveAskV1 = (372, 1), MoveNewsV1 = (373, 1));

/// Moves a machine whose owner may be this node or another; once however often, if its client's request has a key.
///
/// # Errors
/// When the move was given up: the machine is where it was then, unless the failure says that this is unknown.
pub async fn from_anywhere(
    context: &Arc<Context>,
    record: &MachineRecord,
    to: NodeId,
    key: Option<IdempotencyKey>,
    progress: &Progress,
) -> Result<(), Failure> {
    let Some(placement) = record.placement else {
        return Err(Failure::new("not-placed", format!("machine {} is on no node", record.name)));
    };
    let end = if placement.node == context.me {
        Ok(run(context, record, to, key, progress).await)
    } else {
        ask(context, placement.node, record, MoveAskV1 { machine: record.id, to, key }, progress).await
    };
    let (failed, told) = match end {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(failure)) => (failure, true),
        Err(failure) => (failure, false),
    };
    // The same request may have come through another node at the same time; and what nobody told, the ledger knows.
    match key {
        Some(key) if !told || failed.class == failure::Class::Conflict => {
            let known = repeated::end(context, record, key, progress).await;
            known.filter(|end| end.is_ok() || !told).unwrap_or(Err(failed))
        }
        _ => Err(failed),
    }
}

/// Asks the owner, and gives the end of the move as it tells it.
///
/// # Errors
/// When it did not tell: how the move ended is not known here.
async fn ask(
    context: &Context,
    owner: NodeId,
    record: &MachineRecord,
    ask: MoveAskV1,
    progress: &Progress,
) -> Result<Result<(), Failure>, Failure> {
    let mut stream = context.transport.open(owner, Class::Bulk, MOVE, wire::encode(&ask), OPEN_TIMEOUT).await?;
    loop {
        let news = match serving::read_frame(&mut stream).await {
            Ok(Some(frame)) => {
                wire::decode::<MoveNewsV1>(&frame).map_err(|error| Failure::internal(error.to_string()))?
            }
            Ok(None) | Err(_) => {
                return Err(Failure::new("timeout", "the owner went silent: how the move ended is unknown")
                    .hint(format!("smartnode machine inspect {}", record.name)));
            }
        };
        progress.phase(&news.phase, news.permille);
        news.outage_ms.into_iter().for_each(|outage_ms| progress.predict(outage_ms));
        match news.end {
            Some(None) => return Ok(Ok(())),
            Some(Some(refusal)) => return Ok(Err(refusal.into())),
            None => {}
        }
    }
}

/// Serves [`MOVE`]: this node is the owner.
pub async fn serve(late: Late, request: StreamRequest) {
    let prepared = async {
        asks::operator(request.peer)?;
        let context = started(&late)?;
        let ask: MoveAskV1 = asks::read(&request.header)?;
        let record = owned(&context, ask.machine).await?;
        let progress = context.operations.begin("move", Some(record.tenant.clone()), record.name.as_str())?;
        Ok::<_, Refusal>((context, record, ask, progress))
    };
    let (context, record, ask, progress) = match prepared.await {
        Ok(prepared) => prepared,
        Err(refusal) => return request.refuse(refusal).await,
    };
    let Ok(mut stream) = request.accept().await else { return };
    let mut steps = context.operations.watch();
    let end = {
        let moving = run(&context, &record, ask.to, ask.key, &progress);
        tokio::pin!(moving);
        loop {
            tokio::select! {
                biased;
                end = &mut moving => break end,
                _ = steps.changed() => {
                    // Who asked may be gone: the move goes on, since its outcome is the ledger's.
                    let _ = tell(&mut stream, &progress, None).await;
                }
            }
        }
    };
    let refusal = end.err().map(Refusal::from);
    let _ = tell(&mut stream, &progress, Some(refusal.clone())).await;
    let _ = stream.shutdown().await;
    match refusal {
        None => progress.done(),
        Some(refusal) => progress.failed(refusal),
    }
}

/// A machine of this node. Who asks may know that it is here before this node's view does.
async fn owned(context: &Context, machine: MachineId) -> Result<MachineRecord, Refusal> {
    let find = || context.ledger.read(|state| state.machines.get(&machine).cloned());
    let here = |record: &MachineRecord| record.placement.is_some_and(|placement| placement.node == context.me);
    if let Some(record) = find().filter(here) {
        return Ok(record);
    }
    context.ledger.linearizable().await.map_err(Failure::from)?;
    find().ok_or_else(|| Refusal::new("not-found", "there is no such machine here"))
}

pub(super) fn unknown_end(name: &Name) -> Failure {
    Failure::new("not-ready", "this node stops: how the move ended is unknown")
        .hint(format!("smartnode machine inspect {name}"))
}

async fn tell(
    stream: &mut fabric::transport::Stream,
    progress: &Progress,
    end: Option<Option<Refusal>>,
) -> std::io::Result<()> {
    let view = progress.view();
    let news =
        MoveNewsV1 { phase: view.phase, permille: view.progress_permille, outage_ms: view.predicted_outage_ms, end };
    stream.write_all(&wire::encode(&news)).await
}

/// Moves a machine that this node owns.
async fn run(
    context: &Arc<Context>,
    record: &MachineRecord,
    to: NodeId,
    key: Option<IdempotencyKey>,
    progress: &Progress,
) -> Result<(), Failure> {
    progress.phase("preflight", 20);
    let Some(placement) = record.placement.filter(|placement| placement.node == context.me) else {
        return Err(Failure::new("conflict", "the machine has left this node").hint("look where it is, and try again"));
    };
    let Some(held) = context.held.wait_for_move(record.id, ACTION_PATIENCE).await else {
        return Err(Failure::new(codes::MOVING, format!("machine {} is being moved or started already", record.name)));
    };
    if is_outdated(context, record.id, placement.epoch).await? {
        let words = format!("machine {} has not started here yet, and what lies here is an older copy", record.name);
        return Err(Failure::new(codes::MOVING, words).hint("wait until it runs, and try again"));
    }
    let marker = MarkerV1 { machine: record.id, id: MoveId(draw(&*context.seams.entropy)), epoch: placement.epoch };
    progress.phase("reserve", 50);
    let begin = Command::MoveBegin { machine: record.id, from_epoch: placement.epoch, id: marker.id, to };
    if context.propose_once(key, begin).await?.outcome != (Outcome::Moving { id: marker.id, epoch: marker.epoch }) {
        return Err(Failure::new(codes::MOVING, format!("the move of {} was begun by the same request", record.name)));
    }
    let mut open = Undecided { context: context.clone(), marker, held: Some(held), switching: false };
    let brought = async {
        bring(context, record, marker, to, progress).await?;
        tell_end(context, record, marker.epoch).await
    };
    if let Err(failure) = brought.await {
        open.give_up().await;
        return Err(failure);
    }
    progress.phase("switch", 900);
    if let Err(error) = context.notes.out.add(marker) {
        open.give_up().await;
        return Err(Failure::internal(format!("the move could not be noted on disk: {error}")));
    }
    open.switching = true;
    let switch = Command::MoveSwitch { machine: record.id, id: marker.id, from_epoch: placement.epoch };
    let decided = match context.propose_once(key, switch).await {
        Ok(applied) => {
            moved_away(context, marker);
            Some((Verdict::Switched, applied.index))
        }
        // Refused or unknown: only the ledger knows which of SWITCH and ABORT came first.
        Err(failure) => {
            tracing::warn!(machine = %record.name, reason = %failure, "asking for the verdict of a move");
            settle(context, marker).await
        }
    };
    match open.decided(decided) {
        Some(Verdict::Switched) => {
            progress.phase("starting there", 950);
            wait_running(context, record).await
        }
        Some(_) => Err(Failure::new("aborted", GIVEN_UP)),
        None => Err(unknown_end(&record.name)),
    }
}

/// Whether the disk here is of an earlier epoch: the machine was given to this node anew, and has not been prepared yet. Such
/// a disk must not travel as the machine's.
async fn is_outdated(context: &Context, machine: MachineId, epoch: u64) -> Result<bool, Failure> {
    let observed = context.runtime.list().await?;
    Ok(observed.iter().any(|observed| observed.id == machine && observed.epoch < epoch))
}

/// A move that is announced and has no verdict. However its driver ends, also when whoever waits for it gives up and drops
/// it halfway, the ledger decides, and nothing but its decision gives the machine back.
struct Undecided {
    context: Arc<Context>,
    marker: MarkerV1,
    /// Until there is a verdict.
    held: Option<HeldGuard>,
    /// SWITCH may have been proposed.
    switching: bool,
}

impl Undecided {
    /// ABORT before any SWITCH was proposed: the machine may run again at once, also where no leader can be reached, since
    /// nobody else can propose one. By whatever view of the ledger it is started, it is this node's.
    async fn give_up(mut self) {
        self.held = None;
        let MarkerV1 { machine, id, epoch: from_epoch } = self.marker;
        if let Err(failure) = self.context.submit(Command::MoveAbort { machine, id, from_epoch }).await {
            tracing::warn!(machine = %machine.short(), reason = %failure, "the reservation of a move is still there");
            let (context, marker) = (self.context.clone(), self.marker);
            tokio::spawn(async move { settle(&context, marker).await });
        }
    }

    /// There is a verdict, with the index at which it can be read; none when the node stops before.
    fn decided(mut self, decided: Option<(Verdict, u64)>) -> Option<Verdict> {
        let held = self.held.take()?;
        let (context, marker) = (self.context.clone(), self.marker);
        let verdict = decided.map(|(verdict, _)| verdict);
        tokio::spawn(async move { hand_back(&context, marker, held, decided.map(|(_, index)| index)).await });
        verdict
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let (context, marker) = (self.context.clone(), self.marker);
        let held = Some(held).filter(|_| self.switching);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                let decided = settle(&context, marker).await;
                if let Some(held) = held {
                    hand_back(&context, marker, held, decided.map(|(_, index)| index)).await;
                }
            })),
            Err(_) => held.into_iter().for_each(HeldGuard::keep),
        }
    }
}

/// Brings the layer across and stops the machine for the last of it.
async fn bring(
    context: &Arc<Context>,
    record: &MachineRecord,
    marker: MarkerV1,
    to: NodeId,
    progress: &Progress,
) -> Result<(), Failure> {
    let open = || context.transport.open(to, Class::Bulk, LAYER, Vec::new(), OPEN_TIMEOUT);
    let stream = match open().await {
        // A destination that has restarted forgot the connection that this went over. Nothing was said yet: once more.
        Err(CallError::Timeout { .. } | CallError::Broken { .. } | CallError::Unreachable { .. }) => open().await?,
        opened => opened?,
    };
    let opening = context.layers.send(stream, (marker.id, record.id));
    let opened = tokio::time::timeout(READY_TIMEOUT, opening).await;
    let mut source = opened.map_err(|_| Failure::timeout("the destination", READY_TIMEOUT))?.map_err(broken)?;
    progress.phase("sync", 200);
    let outage = source.sync().await.map_err(broken)?;
    progress.predict(outage.as_millis() as u64);
    if progress.cancelled.is_cancelled() {
        return Err(Failure::new("cancelled", "the move was cancelled before the machine was stopped"));
    }
    progress.phase("stop", 600);
    put_down(&*context.runtime, record.id).await?;
    progress.phase("final delta", 700);
    let prepared = source.finish().await.map_err(broken)?;
    tracing::info!(machine = %record.name, bytes = prepared.sent_bytes, "the layer is across");
    Ok(())
}

/// Whatever the record says: it was read before the machine was held, and an action may have started the machine since.
async fn put_down(runtime: &dyn Runtime, machine: MachineId) -> Result<(), Failure> {
    match runtime.stop(machine, GRACE).await {
        Err(RuntimeError::NotFound(_)) => Ok(()),
        stopped => Ok(stopped?),
    }
}

/// A machine that has run to its end, perhaps while its layer went across, does not run again at its destination: the
/// ledger learns it before SWITCH. One that was killed to put it down has not ended, and runs there.
async fn tell_end(context: &Context, record: &MachineRecord, epoch: u64) -> Result<(), Failure> {
    let observed = context.runtime.list().await?;
    let here = observed.iter().find(|observed| observed.id == record.id && observed.epoch == epoch);
    let Some(local) = here.map(reconcile::driver::local) else { return Ok(()) };
    let Phase::Exited(code) = local.phase else { return Ok(()) };
    let ended = Command::Ended { machine: record.id, epoch, restarts: local.restarts, code };
    match context.submit(ended).await {
        // It is told already, or somebody has asked for another run since.
        Err(failure) if [codes::NOT_WANTED, codes::REVISION].contains(&failure.refusal.code.as_str()) => Ok(()),
        told => told.map(drop),
    }
}

fn broken(error: transfer::SendError) -> Failure {
    if error.is_disk_full() {
        return Failure::new("disk-full", words(&error)).hint("make room there, or name another node: --to NODE");
    }
    Failure::new("transfer", words(&error)).hint("the machine stays where it was; try again, the transfer resumes")
}

/// Asks until the ledger has decided: proposes ABORT, and reads what was first, with the index of the copy that shows it.
/// Bounded by nothing but the node's life (none: the node stops), for that is the rule: no time-out may start the machine
/// again.
async fn settle(context: &Context, marker: MarkerV1) -> Option<(Verdict, u64)> {
    loop {
        let abort = Command::MoveAbort { machine: marker.machine, id: marker.id, from_epoch: marker.epoch };
        let _ = context.submit(abort).await;
        if context.ledger.linearizable().await.is_ok() {
            let (found, index, gone) = context.ledger.read_at(|index, state| {
                let record = state.machines.get(&marker.machine);
                let found = verdict(record, context.me, marker.id, marker.epoch);
                (found, index, super::moved_away(record, context.me, marker.epoch))
            });
            if found != Verdict::Open {
                if gone {
                    moved_away(context, marker);
                }
                return Some((found, index));
            }
        }
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return None,
            () = tokio::time::sleep(DOUBT) => {}
        }
    }
}

/// The destination has this copy's disk. Noted before the move's own note goes; a copy without a note is kept aside.
fn moved_away(context: &Context, marker: MarkerV1) {
    if let Err(error) = context.notes.done.push(marker) {
        tracing::warn!(%error, "a move that is done could not be noted: the copy here will be kept aside");
    }
}

/// Gives a machine back to the reconciler once this node's view shows the verdict, and takes the note away then: a view of
/// before SWITCH still gives the machine to this node, and a daemon that begins with one must ask. Without a verdict the
/// node stops: the note stays for its next start, and the machine is held to the end.
async fn hand_back(context: &Context, marker: MarkerV1, held: HeldGuard, decided: Option<u64>) {
    let Some(index) = decided else { return held.keep() };
    held.until_seen(index);
    if !context.reached(index).await {
        return held.keep();
    }
    if let Err(error) = context.notes.out.remove(marker) {
        tracing::warn!(%error, "a move's note stays and is looked at again at the next start");
    }
}

async fn wait_running(context: &Context, record: &MachineRecord) -> Result<(), Failure> {
    let confirmed = |state: &State| match state.machines.get(&record.id) {
        None => true,
        Some(now) => now.placement.is_some_and(|placement| placement.node != context.me && placement.confirmed),
    };
    let waited = tokio::time::timeout(RUNNING_TIMEOUT, until(context, confirmed)).await;
    waited.map_err(|_| not_running_yet(&record.name))
}

pub(super) fn not_running_yet(name: &Name) -> Failure {
    Failure::timeout("the destination", RUNNING_TIMEOUT)
        .hint(format!("it owns the machine now: smartnode machine inspect {name}"))
}

/// Returns once the ledger is so.
pub(super) async fn until(context: &Context, is_so: impl Fn(&State) -> bool) {
    let mut changed = context.ledger.changed();
    while !context.ledger.read(&is_so) {
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// After a start of the daemon: takes the machines with an undecided move from the reconciler and learns their verdicts.
///
/// # Errors
/// When the notes cannot be read: nothing may be started then.
pub fn resume(context: &Arc<Context>) -> std::io::Result<()> {
    let noted = context.notes.out.load()?;
    for marker in noted {
        let Some(held) = context.held.take_for_move(marker.machine) else { continue };
        let context = context.clone();
        tokio::spawn(async move {
            let decided = settle(&context, marker).await;
            tracing::info!(machine = %marker.machine.short(), ?decided, "a move of before the restart is decided");
            hand_back(&context, marker, held, decided.map(|(_, index)| index)).await;
        });
    }
    Ok(())
}

/// Gives back reservations of this node's machines that no move of this daemon holds and no note names: a former daemon
/// died before it could propose anything. Looks again and again, since a daemon's copy of the ledger is old when it
/// starts. The machines are left alone meanwhile: without a note no SWITCH was proposed, so they are this node's whatever
/// comes of it. Returns when the node stops.
pub async fn clear_reservations(context: Arc<Context>) {
    let look = async {
        loop {
            tokio::time::sleep(RESERVATIONS_LOOK).await;
            give_back(&context).await;
        }
    };
    tokio::select! {
        biased;
        () = context.shutdown.cancelled() => {}
        () = look => {}
    }
}

async fn give_back(context: &Context) {
    let reserved: Vec<MarkerV1> = context.ledger.read(|state| {
        let moving = state.machines_on(context.me).filter_map(|record| {
            let placement = record.placement?;
            Some(MarkerV1 { machine: record.id, id: placement.moving?.id, epoch: placement.epoch })
        });
        moving.filter(|marker| !context.held.is_moving(marker.machine)).collect()
    });
    if reserved.is_empty() {
        return;
    }
    let noted = match context.notes.out.load() {
        Ok(noted) => noted,
        Err(error) => return tracing::warn!(%error, "the notes of moves cannot be read: no reservation is given back"),
    };
    for MarkerV1 { machine, id, epoch } in super::stale(reserved, &noted) {
        match context.submit(Command::MoveAbort { machine, id, from_epoch: epoch }).await {
            Ok(_) => tracing::info!(machine = %machine.short(), "a reservation that no move holds is given back"),
            // The next look tries them all again.
            Err(failure) => {
                tracing::debug!(machine = %machine.short(), reason = %failure, "a reservation is not given back yet");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::absent::NoMachines;

    #[tokio::test]
    async fn a_machine_that_was_never_started_here_is_down() {
        put_down(&NoMachines::new("it lacks all".into()), MachineId([9; 16])).await.unwrap();
    }
}
