//! Long work through the admin port: moves, drains, leaving, stopping.

use std::sync::Arc;
use std::time::Duration;

use fabric::human;
use fabric::ids::{IdempotencyKey, MachineId, NodeId};
use fabric::model::{MachineRecord, Name, Role};
use fabric::rpc::{Peer, Refusal};
use fabric::wire;
use raft_store::codes;
use raft_store::command::{Command, NodePatch};
use raft_store::state::KeyedMove;

use super::cluster::only_here;
use super::{NodeBackend, views};
use crate::api::backend::*;
use crate::api::failure::Failure;
use crate::moving;
use crate::node::admission::{Late, started};
use crate::node::asks::{self, ROOM, RoomAnswerV1, RoomAskV1};
use crate::node::context::Context;
use crate::node::lease;
use crate::node::operations::{Begun, Progress, Request};
use crate::schedule;

/// The daemon ends this long after the answer, so that the answer gets out.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long a drained machine without a disk worth moving may take to run elsewhere.
const DRAIN_MACHINE_TIMEOUT: Duration = Duration::from_secs(120);

impl NodeBackend {
    pub(super) async fn stop_daemon(&self, caller: &Caller, absence_ms: u64) -> Result<()> {
        match &caller.rights {
            Rights::Operator => {}
            Rights::Node(node) if *node == self.context.me => {}
            _ => return Err(only_here("stopping the daemon").into()),
        }
        if absence_ms > 0
            && let Err(failure) = lease::leave(&self.context, Duration::from_millis(absence_ms)).await
        {
            // Without a leader nobody can take machines over either: stopping is still safe.
            tracing::warn!(reason = %failure, "the absence was not announced");
        }
        self.end_soon();
        Ok(())
    }

    fn end_soon(&self) {
        let shutdown = self.context.shutdown.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LAST_WORDS).await;
            shutdown.cancel();
        });
    }

    pub(super) async fn begin_move(
        &self,
        write: &Write,
        tenant: &Name,
        name: &Name,
        to: Option<&str>,
    ) -> Result<OperationView> {
        let words = [tenant.as_str(), name.as_str(), to.unwrap_or_default()];
        let request = write.idempotency.map(|key| Request::new(&write.caller.subject, key, &words));
        // A request that is repeated asks nothing anew: the machine may be there by now.
        let before = self.context.operations.repeated(request)?;
        if let Some(view) = before.as_ref().filter(|view| view.state != OperationState::Failed) {
            return Ok(view.clone());
        }
        if request.is_some() || write.if_revision.is_some() {
            self.context.ledger.linearizable().await?;
        }
        let record = self.record(tenant, name)?;
        let actor = self.actor(&write.caller)?;
        let ledger = &self.context.ledger;
        let key = write.idempotency.map(|key| ledger.read(|state| state.client_key(&actor, key)));
        if let Some(key) = key
            && let Some(known) = ledger.read(|state| state.keyed_move(record.id, key))
        {
            return match (known, before) {
                // The operation here knows more of why.
                (KeyedMove::GivenUp | KeyedMove::Refused(_), Some(view)) => Ok(view),
                _ => self.carry_out(write, request, record, Move::Known(key)),
            };
        }
        let (record, owner) = self.owned(tenant, name)?;
        check_revision(write.if_revision, record.revision)?;
        let to = to.map(|to| views::find_node(&self.context, to)).transpose()?.map(|node| node.id);
        let to = destination(&self.context, &record, owner, to)?;
        self.carry_out(write, request, record, Move::To(to, key))
    }

    fn carry_out(
        &self,
        write: &Write,
        request: Option<Request>,
        record: MachineRecord,
        what: Move,
    ) -> Result<OperationView> {
        let request = request.filter(|_| !write.dry_run);
        let (tenant, name) = (Some(record.tenant.clone()), record.name.as_str());
        let progress = match self.context.operations.begin_once(request, "move", tenant, name)? {
            Begun::New(progress) => progress,
            Begun::Known(view) => return Ok(*view),
        };
        let view = progress.view();
        if write.dry_run {
            progress.done();
            return Ok(view);
        }
        let context = self.context.clone();
        tokio::spawn(async move {
            match what.run(&context, &record, &progress).await {
                Ok(()) => progress.done(),
                Err(failure) => progress.failed(failure.into()),
            }
        });
        Ok(view)
    }

    pub(super) async fn begin_drain(&self, write: &Write, node: &str) -> Result<OperationView> {
        let node = views::find_node(&self.context, node)?;
        let patch = NodePatch { cordoned: Some(true), draining: Some(true), ..NodePatch::default() };
        let command =
            Command::UpdateNode { node: node.id, patch: Box::new(patch), expected_revision: write.if_revision };
        // Registered first: a registry that is full must not leave a node cordoned that nobody drains.
        let progress = self.context.operations.begin("drain", None, node.name.as_str())?;
        if let Err(failure) = self.write(write, command).await {
            progress.failed(Refusal::from(failure.clone()));
            return Err(failure);
        }
        let view = progress.view();
        let context = self.context.clone();
        let dry_run = write.dry_run;
        tokio::spawn(async move {
            let result = if dry_run { Ok(()) } else { drain(&context, node.id, &progress).await };
            match result {
                Ok(()) => progress.done(),
                Err(refusal) => progress.failed(stays_cordoned(&node.name, refusal)),
            }
        });
        Ok(view)
    }

    pub(super) async fn leave_cluster(&self, write: &Write, purge: bool) -> Result<OperationView> {
        let here = matches!(&write.caller.rights, Rights::Node(node) if *node == self.context.me);
        if !here && write.caller.rights != Rights::Operator {
            return Err(only_here("leaving the cluster").into());
        }
        // Asked first: the ledger would refuse the removal only when the node is empty.
        let last = || self.context.ledger.read(|state| state.check_not_last_voter(self.context.me));
        if last().is_err() {
            // This copy may be of before another one was admitted.
            self.context.ledger.linearizable().await?;
            last()?;
        }
        let patch = NodePatch { cordoned: Some(true), draining: Some(true), ..NodePatch::default() };
        let node = self.context.me;
        let command = Command::UpdateNode { node, patch: Box::new(patch), expected_revision: None };
        let progress = self.context.operations.begin("leave", None, self.context.name.as_str())?;
        if let Err(failure) = self.write(write, command).await {
            progress.failed(Refusal::from(failure.clone()));
            return Err(failure);
        }
        let view = progress.view();
        if write.dry_run {
            progress.done();
            return Ok(view);
        }
        let (backend, write) = (self.clone(), write.clone());
        tokio::spawn(async move {
            match backend.leave_now(&write, purge, &progress).await {
                Ok(()) => {
                    progress.done();
                    backend.end_soon();
                }
                Err(failure) => progress.failed(stays_cordoned(&backend.context.name, failure.into())),
            }
        });
        Ok(view)
    }

    async fn leave_now(&self, write: &Write, purge: bool, progress: &Progress) -> Result<()> {
        drain(&self.context, self.context.me, progress).await?;
        progress.phase("removing", 900);
        // The client's key and revision were for the cordon that began this; the removal is another write.
        let write = Write { idempotency: None, if_revision: None, ..write.clone() };
        self.remove(&write, self.context.me, false).await?;
        self.context.membership.leave().await;
        let _ = self.context.left.set(purge);
        Ok(())
    }
}

/// A move that a client asks for, with its key in its scope.
enum Move {
    /// It is to be begun.
    To(NodeId, Option<IdempotencyKey>),
    /// It was begun before.
    Known(IdempotencyKey),
}

impl Move {
    async fn run(self, context: &Arc<Context>, record: &MachineRecord, progress: &Progress) -> Result<()> {
        match self {
            Move::To(to, key) => moving::driver::from_anywhere(context, record, to, key, progress).await,
            Move::Known(key) => match moving::repeated::end(context, record, key, progress).await {
                Some(end) => end,
                None => Err(Failure::unreachable("how the move has ended cannot be asked now")),
            },
        }
    }
}

/// Checks the client's `If-Match` where no write to the ledger carries it.
fn check_revision(expected: Option<u64>, actual: u64) -> std::result::Result<(), Refusal> {
    match expected.filter(|expected| *expected != actual) {
        None => Ok(()),
        Some(revision) => {
            Err(Refusal::new(codes::REVISION, format!("it has changed: revision {actual}, not {revision}"))
                .field("revision", revision)
                .hint("read it again, then repeat the change"))
        }
    }
}

/// Where a machine is to go: the node named, or the best one other than its owner.
fn destination(context: &Context, record: &MachineRecord, owner: NodeId, to: Option<NodeId>) -> Result<NodeId> {
    if to == Some(owner) {
        let node = context.node_name(owner);
        return Err(Failure::new("conflict", format!("machine {} is on {node} already", record.name)));
    }
    if record.spec.pinned == Some(owner) {
        let words = format!("machine {} is pinned to {} and runs nowhere else", record.name, context.node_name(owner));
        return Err(Failure::new("conflict", words).hint("delete it, and create it without --node"));
    }
    let mut inventory = context.inventory(record);
    inventory.retain(|id, _| *id != owner && to.is_none_or(|to| to == *id));
    let mut spec = record.spec.clone();
    spec.pinned = to.or(spec.pinned);
    match schedule::plan(record.id, &spec, &inventory) {
        Ok(candidates) => Ok(candidates[0]),
        Err(reason) => Err(Failure::new("no-node", reason.to_string()).hint("smartnode node list")),
    }
}

/// Where a machine of `node` could move; `not-found` when it is there no more. A worker asks a voter: it is not told of
/// other nodes.
async fn room(context: &Context, record: &MachineRecord, node: NodeId) -> std::result::Result<NodeId, Refusal> {
    if context.role == Role::Worker {
        let question = wire::encode(&RoomAskV1 { machine: record.id });
        return Ok(context.ask_voters::<RoomAnswerV1>(ROOM, question).await?.node);
    }
    room_here(context, record.id, node)
}

fn room_here(context: &Context, machine: MachineId, node: NodeId) -> std::result::Result<NodeId, Refusal> {
    let record = context.ledger.read(|state| state.machines.get(&machine).cloned());
    let owned = record.filter(|record| record.placement.is_some_and(|placement| placement.node == node));
    let record = owned.ok_or_else(|| Refusal::new("not-found", "the node does not own this machine"))?;
    Ok(destination(context, &record, node, None)?)
}

/// Serves [`ROOM`].
///
/// # Errors
/// When the peer does not own the machine, or no node has room for it.
pub async fn serve_room(late: Late, peer: Peer, body: Vec<u8>) -> std::result::Result<Vec<u8>, Refusal> {
    let context = started(&late)?;
    let ask: RoomAskV1 = asks::read(&body)?;
    let node = room_here(&context, ask.machine, peer.id)?;
    Ok(wire::encode(&RoomAnswerV1 { node }))
}

/// What ends a drain or a leave badly, with what it leaves behind. The cordon is not undone: whoever drains a node wants it
/// empty, and what failed is seldom a reason to fill it again.
fn stays_cordoned(node: &Name, mut refusal: Refusal) -> Refusal {
    let left = format!("{node} takes no new machines until: smartnode node uncordon {node}");
    refusal.hint = Some(match refusal.hint {
        Some(hint) => format!("{hint}. {left}"),
        None => left,
    });
    refusal
}

/// Machines that a failed drain names.
const DRAIN_NAMED_MAX: usize = 8;

/// Moves every machine of a node away, one after the other. One that does not move holds none of the others up.
async fn drain(context: &Arc<Context>, node: NodeId, progress: &Progress) -> std::result::Result<(), Refusal> {
    let machines: Vec<MachineRecord> = context.ledger.read(|state| state.machines_on(node).cloned().collect());
    let all = machines.len();
    let mut failed = Vec::new();
    for (done, record) in machines.into_iter().enumerate() {
        if progress.cancelled.is_cancelled() {
            let moved = done - failed.len();
            return Err(Refusal::new(
                "cancelled",
                format!("{moved} of {} had been moved", human::count(all, "machine")),
            ));
        }
        progress.phase(&format!("moving {}/{}", record.tenant, record.name), (done * 900 / all) as u32);
        if let Err(refusal) = drain_one(context, node, &record).await {
            tracing::warn!(machine = %record.name, reason = %refusal, "a drained machine did not move");
            failed.push((format!("{}/{}", record.tenant, record.name), refusal));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(not_moved(all, failed)) }
}

async fn drain_one(context: &Arc<Context>, node: NodeId, record: &MachineRecord) -> std::result::Result<(), Refusal> {
    let to = match room(context, record, node).await {
        Ok(to) => to,
        // It went meanwhile, which is as well.
        Err(refusal) if refusal.code == "not-found" => return Ok(()),
        Err(refusal) => return Err(refusal),
    };
    let step = context.operations.begin("move", Some(record.tenant.clone()), record.name.as_str())?;
    let moved = moving::driver::from_anywhere(context, record, to, None, &step);
    match tokio::time::timeout(DRAIN_MACHINE_TIMEOUT, moved).await {
        Ok(Ok(())) => {
            step.done();
            Ok(())
        }
        Ok(Err(failure)) => {
            let refusal = Refusal::from(failure);
            step.failed(refusal.clone());
            Err(refusal)
        }
        Err(_) => Err(Refusal::new("timeout", format!("{} did not move in time", record.name))),
    }
}

/// One refusal of all: the code and hint are the first one's.
fn not_moved(all: usize, failed: Vec<(String, Refusal)>) -> Refusal {
    let mut words: Vec<String> =
        failed.iter().take(DRAIN_NAMED_MAX).map(|(name, refusal)| format!("{name}: {}", refusal.message)).collect();
    if failed.len() > DRAIN_NAMED_MAX {
        words.push(format!("and {} more", failed.len() - DRAIN_NAMED_MAX));
    }
    let message = format!("{} of {} did not move: {}", failed.len(), human::count(all, "machine"), words.join("; "));
    let first = failed.into_iter().next().map(|(_, refusal)| refusal);
    let (code, hint) = first.map_or(("internal".into(), None), |refusal| (refusal.code, refusal.hint));
    Refusal { hint, ..Refusal::new(&code, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_that_failed_names_every_machine_and_the_cordon_that_stays() {
        let one =
            |n: usize| (format!("default/m{n}"), Refusal::new("no-node", format!("no room for {n}")).hint("make room"));
        let refusal = stays_cordoned(&"n1".parse().unwrap(), not_moved(5, vec![one(1), one(4)]));
        let words = "2 of 5 machines did not move: default/m1: no room for 1; default/m4: no room for 4";
        assert_eq!((refusal.code.as_str(), refusal.message.as_str()), ("no-node", words));
        let hint = "make room. n1 takes no new machines until: smartnode node uncordon n1";
        assert_eq!(refusal.hint.as_deref(), Some(hint));
        let many = not_moved(20, (0..12).map(one).collect());
        assert!(many.message.ends_with("and 4 more"), "{many}");
    }
}
