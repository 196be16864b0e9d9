//! What owners observe: asked of them in parallel under a deadline, with those named who did not answer.

use std::collections::BTreeMap;
use std::time::Duration;

use fabric::human;
use fabric::ids::{MachineId, NodeId};
use fabric::model::{Desired, MachineRecord, MachineState, MachineStatus, Name};
use fabric::rpc::Rpc;
use fabric::wire;
use futures_util::future::join_all;

use super::views;
use crate::api::backend::Liveness;
use crate::node::asks::{STATUS, STATUS_MACHINES_MAX, StatusAnswerV1, StatusAskV1};
use crate::node::context::Context;
use crate::reconcile::backoff::Retry;
use crate::room;

/// How long a list waits for owners.
const DEADLINE: Duration = Duration::from_secs(1);

/// Statuses by machine, and the names of owners that did not answer.
pub struct Observations {
    /// What was told.
    pub statuses: BTreeMap<MachineId, MachineStatus>,
    /// Who did not tell.
    pub unreachable: Vec<Name>,
}

/// Asks the owners of these machines.
pub async fn of(context: &Context, records: &[MachineRecord]) -> Observations {
    let mut by_owner: BTreeMap<NodeId, Vec<MachineId>> = BTreeMap::new();
    for record in records {
        if let Some(placement) = &record.placement {
            by_owner.entry(placement.node).or_default().push(record.id);
        }
    }
    let asked =
        by_owner.into_iter().map(|(owner, machines)| async move { (owner, ask(context, owner, machines).await) });
    let mut found = Observations { statuses: BTreeMap::new(), unreachable: Vec::new() };
    for (owner, answer) in join_all(asked).await {
        match answer {
            Some(statuses) => found.statuses.extend(statuses.into_iter().map(|status| (status.id, status))),
            None => found.unreachable.extend(context.node_name(owner).parse()),
        }
    }
    found
}

async fn ask(context: &Context, owner: NodeId, machines: Vec<MachineId>) -> Option<Vec<MachineStatus>> {
    if owner == context.me {
        return Some(local(context, &machines).await);
    }
    // A dead node would only cost the deadline.
    if matches!(views::liveness(context, owner).0, Liveness::Down) {
        return None;
    }
    let mut found = Vec::with_capacity(machines.len());
    for part in machines.chunks(STATUS_MACHINES_MAX) {
        let question = wire::encode(&StatusAskV1 { machines: part.to_vec() });
        let answer = context.transport.call(owner, STATUS, question, DEADLINE).await.ok()?;
        found.extend(wire::decode::<StatusAnswerV1>(&answer).ok()?.statuses);
    }
    Some(found)
}

/// What this node observes of the machines; those that it does not have are left out.
pub async fn local(context: &Context, machines: &[MachineId]) -> Vec<MachineStatus> {
    let mut found = Vec::with_capacity(machines.len());
    let (room, unpublished) = (context.room.borrow().clone(), context.unpublished.borrow().clone());
    for machine in machines {
        if let Ok(mut status) = context.runtime.status(*machine).await {
            if let Some(retry) = context.retries.borrow().get(machine) {
                retried(&mut status, retry, context.seams.clock.boottime());
            }
            if let Some(why) = unpublished.get(machine).filter(|_| status.state == MachineState::Running) {
                status.reason = Some(why.clone());
            }
            if room.full && wanted(context, *machine) {
                without_room(&mut status, context, room.holds(*machine));
            }
            found.push(status);
        }
    }
    found
}

/// Whether the ledger wants the machine to run here.
fn wanted(context: &Context, machine: MachineId) -> bool {
    context.ledger.read(|state| {
        state.machines.get(&machine).is_some_and(|record| {
            record.desired == Desired::Running && record.placement.is_some_and(|placement| placement.node == context.me)
        })
    })
}

/// A machine that is down and stays so for want of room.
fn without_room(status: &mut MachineStatus, context: &Context, held: bool) {
    let down = matches!(status.state, MachineState::Stopped | MachineState::Restarting);
    if down || (held && matches!(status.state, MachineState::Failed | MachineState::Exited)) {
        status.state = MachineState::Stopped;
        let free = context.host.disk().unwrap_or_default().free_bytes;
        status.reason = Some(room::words(free, held));
    }
}

/// A machine that lost its supervisor is being restarted, though no supervisor is there to say so.
fn retried(status: &mut MachineStatus, retry: &Retry, now: Duration) {
    let done = if status.state == MachineState::Failed { retry.attempt - 1 } else { retry.attempt };
    status.restarts = status.restarts.saturating_add(done);
    if status.state == MachineState::Failed {
        status.state = MachineState::Restarting;
        let left = human::duration(retry.not_before.saturating_sub(now));
        let why = status.reason.take().unwrap_or_else(|| "it was lost".into());
        status.reason = Some(format!("{why}; attempt {} in {left}", retry.attempt));
    }
}
