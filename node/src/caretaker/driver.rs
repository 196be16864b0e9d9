//! Runs the sweep: on hints (membership or ledger changed) and every few seconds without one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fabric::ids::{MachineId, NodeId};
use fabric::limits::SWEEP;
use fabric::model::{MachineRecord, RaftRole};
use raft_store::command::{Command, Outcome, PlaceItem, PlaceResult};
use raft_store::state::State;
use tokio::time::Instant;

use super::{Owner, candidates, is_absent, sweep};
use crate::node::context::Context;

/// Pause between two looks while something could not be placed or taken yet.
const RETRY: Duration = Duration::from_millis(250);

/// Cares for machines while this node is a voter or standby. Returns when the node stops.
pub async fn run(context: Arc<Context>) {
    let (mut ledger, mut members) = (context.ledger.changed(), context.membership.members());
    // A time and not a pause, which every change of a busy ledger would begin anew.
    let mut due = Instant::now() + SWEEP;
    loop {
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return,
            changed = members.changed() => if changed.is_err() { return },
            changed = ledger.changed() => {
                let homeless = context.ledger.read(|state| state.unplaced().next().is_some());
                if changed.is_err() { return }
                if !homeless { continue }
            }
            () = tokio::time::sleep_until(due) => {}
        }
        let left = round(&context).await;
        due = Instant::now() + if left { RETRY } else { SWEEP };
        if left {
            // What is left has written its reason, which is a change that would wake this sweep at once.
            tokio::select! {
                biased;
                () = context.shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

/// One sweep; true when something is left that may work soon.
async fn round(context: &Context) -> bool {
    let caretakers = caretakers(context);
    if !caretakers.contains(&context.me) {
        return false;
    }
    let owners = owners(context);
    let now_ms = context.ledger.now_ms();
    let (found, records) = context.ledger.read(|state| {
        let found = sweep(context.me, now_ms, state.machines.values(), &caretakers, &owners);
        let ids = found.place.iter().chain(found.take.iter().map(|(machine, ..)| machine));
        let records: BTreeMap<_, _> = ids.filter_map(|id| Some((*id, state.machines.get(id)?.clone()))).collect();
        (found, records)
    });
    let mut left = false;
    for (machine, epoch) in found.forget {
        left |= context.submit(Command::Forget { machine, epoch }).await.is_err();
    }
    if !found.place.is_empty() {
        left |= place(context, &found.place, &records).await;
    }
    for (machine, from, epoch) in found.take {
        let Some(record) = records.get(&machine) else { continue };
        left |= take(context, record, from, epoch).await;
    }
    left
}

fn caretakers(context: &Context) -> BTreeSet<NodeId> {
    let status = context.ledger.status();
    if status.part == RaftRole::Spare {
        return BTreeSet::new();
    }
    let members = context.membership.members();
    let members = members.borrow();
    let alive = |node: &NodeId| *node == context.me || members.get(node).is_some_and(|member| member.is_active());
    status.voters.iter().chain(&status.standbys).copied().filter(alive).collect()
}

fn owners(context: &Context) -> BTreeMap<NodeId, Owner> {
    let members = context.membership.members();
    let members = members.borrow();
    let now_ms = context.ledger.now_ms();
    let judge = |state: &State, node: NodeId| {
        let absent = state.nodes.get(&node).is_some_and(|record| is_absent(record, now_ms));
        if node == context.me {
            return Owner::Alive;
        }
        match members.get(&node).map(|member| member.state) {
            Some(fabric::membership::State::Alive) => Owner::Alive,
            Some(fabric::membership::State::Down) if !absent => Owner::Dead,
            // Never seen since this daemon started: dead only once it has had the time to show itself.
            None if !absent && context.has_settled() => Owner::Dead,
            _ => Owner::Excused,
        }
    };
    context.ledger.read(|state| state.nodes.keys().map(|node| (*node, judge(state, *node))).collect())
}

/// Proposes places for a batch; true when some have none yet.
pub async fn place(context: &Context, machines: &[MachineId], records: &BTreeMap<MachineId, MachineRecord>) -> bool {
    let all = machines.iter().filter_map(|id| records.get(id)).map(|record| (record, item(context, record)));
    let (mut items, mut none) = (Vec::new(), false);
    for (record, item) in all {
        none |= item.candidates.is_empty();
        // Nothing new to say: writing it again would wake this very sweep, as fast as the disk can.
        if !item.candidates.is_empty() || item.reason != record.waiting {
            items.push(item);
        }
    }
    if items.is_empty() {
        return none;
    }
    match context.submit(Command::Place { items }).await {
        Ok(_) => none || homeless(context, machines),
        Err(failure) => {
            tracing::warn!(reason = %failure, "machines were not placed");
            true
        }
    }
}

/// Whether the ledger has found no room for some of them.
fn homeless(context: &Context, machines: &[MachineId]) -> bool {
    let without = |state: &State, id: &MachineId| state.machines.get(id).is_some_and(|m| m.placement.is_none());
    context.ledger.read(|state| machines.iter().any(|id| without(state, id)))
}

/// One machine's part of a placement, with the reason when no node can take it.
pub fn item(context: &Context, record: &MachineRecord) -> PlaceItem {
    let (candidates, reason) = candidates(record, &context.inventory(record));
    PlaceItem { machine: record.id, expected_epoch: record.epoch, candidates, reason }
}

async fn take(context: &Context, record: &MachineRecord, from: NodeId, epoch: u64) -> bool {
    let candidates = item(context, record).candidates;
    let waits = context.ledger.read(|state| state.takeover_waits(record, &candidates));
    if waits.is_some() && waits == record.waiting {
        // It has been told just that, and asking again would only write.
        return false;
    }
    let takeover = Command::Takeover {
        machine: record.id,
        epoch,
        from,
        candidates,
        judged_term: 0, // the leader judges the lease, and puts the term of its judgement here
        reason: "its node was confirmed dead".into(),
    };
    match context.submit(takeover).await {
        Ok(Outcome::Placed { items }) => match items.into_iter().next() {
            Some(PlaceResult::Refused { refusal, .. }) => {
                tracing::debug!(machine = %record.name, reason = %refusal.message, "no node can take it over");
                true
            }
            _ => {
                tracing::info!(machine = %record.name, from = %from.short(), "taken over from a dead node");
                false
            }
        },
        Ok(_) => false,
        Err(error) => {
            tracing::debug!(machine = %record.name, reason = %error, "not taken over yet");
            true
        }
    }
}
