//! Long work through the admin port: moves, drains, leaving, stopping.

use std::sync::Arc;
use std::time::Duration;

use fabric::ids::{MachineId, NodeId};
use fabric::model::{MachineRecord, Name, Role};
use fabric::rpc::{Peer, Refusal};
use fabric::wire;
use raft_store::codes;
use raft_store::command::{Command, NodePatch};

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
        if let Some(view) = self.context.operations.repeated(request)? {
            return Ok(view);
        }
        if write.if_revision.is_some() {
            self.context.ledger.linearizable().await?;
        }
        let (record, owner) = self.owned(tenant, name)?;
        check_revision(write.if_revision, record.revision)?;
        let to = to.map(|to| views::find_node(&self.context, to)).transpose()?.map(|node| node.id);
        let to = destination(&self.context, &record, owner, to)?;
        let request = request.filter(|_| !write.dry_run);
        let begun = self.context.operations.begin_once(request, "move", Some(tenant.clone()), name.as_str())?;
        let progress = match begun {
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
            match moving::driver::from_anywhere(&context, &record, to, &progress).await {
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
        self.write(write, command).await?;
        let progress = self.context.operations.begin("drain", None, node.name.as_str())?;
        let view = progress.view();
        let context = self.context.clone();
        let dry_run = write.dry_run;
        tokio::spawn(async move {
            let result = if dry_run { Ok(()) } else { drain(&context, node.id, &progress).await };
            match result {
                Ok(()) => progress.done(),
                Err(refusal) => progress.failed(refusal),
            }
        });
        Ok(view)
    }

    pub(super) async fn leave_cluster(&self, write: &Write, purge: bool) -> Result<OperationView> {
        let here = matches!(&write.caller.rights, Rights::Node(node) if *node == self.context.me);
        if !here && write.caller.rights != Rights::Operator {
            return Err(only_here("leaving the cluster").into());
        }
        let patch = NodePatch { cordoned: Some(true), draining: Some(true), ..NodePatch::default() };
        let node = self.context.me;
        let command = Command::UpdateNode { node, patch: Box::new(patch), expected_revision: None };
        self.write(write, command).await?;
        let progress = self.context.operations.begin("leave", None, self.context.name.as_str())?;
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
                Err(failure) => progress.failed(failure.into()),
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
        if purge {
            self.context.purge_wanted.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
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

/// Moves every machine of a node away, one after the other.
async fn drain(context: &Arc<Context>, node: NodeId, progress: &Progress) -> std::result::Result<(), Refusal> {
    let machines: Vec<MachineRecord> = context.ledger.read(|state| state.machines_on(node).cloned().collect());
    let all = machines.len().max(1) as u32;
    for (done, record) in machines.into_iter().enumerate() {
        if progress.cancelled.is_cancelled() {
            return Err(Refusal::new("cancelled", format!("{done} of {all} machines had been moved")));
        }
        progress.phase(&format!("moving {}/{}", record.tenant, record.name), done as u32 * 900 / all);
        let to = match room(context, &record, node).await {
            Ok(to) => to,
            // It went meanwhile, which is as well.
            Err(refusal) if refusal.code == "not-found" => continue,
            Err(refusal) => return Err(refusal),
        };
        let step = context.operations.begin("move", Some(record.tenant.clone()), record.name.as_str())?;
        let moved = moving::driver::from_anywhere(context, &record, to, &step);
        match tokio::time::timeout(DRAIN_MACHINE_TIMEOUT, moved).await {
            Ok(Ok(())) => step.done(),
            Ok(Err(failure)) => {
                let refusal = Refusal::from(failure);
                step.failed(refusal.clone());
                return Err(refusal);
            }
            Err(_) => return Err(Refusal::new("timeout", format!("{} did not move in time", record.name))),
        }
    }
    Ok(())
}
