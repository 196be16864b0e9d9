//! The holder's side of the lease: renewing it, and passing its deadline to the supervisors of exclusive machines.
//!
//! The deadline counts from before the request was sent, on CLOCK_BOOTTIME (design section 7). A machine's deadline moves
//! only when this node's view of the ledger has reached the grant's revision and still names this node as the owner: a
//! takeover that was committed while the lease had lapsed is in that view.
//!
//! A planned absence extends the deadline beyond the lease ([`leave`]), since the leader holds takeovers back for it. Who
//! is back ([`back`]) counts on the lease alone again, and its supervisors do before the ledger hears of it.

use std::sync::Arc;
use std::time::Duration;

use fabric::limits::LEASE_RENEW;
use raft_store::command::Command;
use raft_store::lease::Holder;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::context::Context;
use crate::api::failure::Failure;

/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_millis(250);

/// Exclusive machines may start at `now`, decided on records as of ledger index `view`.
pub fn covers(lease: &Holder, now: Duration, view: u64) -> bool {
    lease.may_thaw(now, view, true)
}

/// Renews while this node has machines. Returns when the node stops.
pub async fn run(context: Arc<Context>) {
    let mut ledger = context.ledger.changed();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return,
            () = context.lease_wanted.notified() => {}
            () = tokio::time::sleep_until(next) => {}
            changed = ledger.changed() => {
                // A new exclusive machine here needs a lease now; everything else can wait for the next round.
                if changed.is_err() || !needs_lease(&context) {
                    continue;
                }
            }
        }
        let pause = if context.has_machines() { renew(&context).await } else { LEASE_RENEW };
        next = Instant::now() + pause;
    }
}

fn needs_lease(context: &Context) -> bool {
    let held = covers(&context.lease.borrow(), context.seams.clock.boottime(), u64::MAX);
    !held && context.has_exclusive_machines()
}

async fn renew(context: &Arc<Context>) -> Duration {
    match context.ledger.renew_lease().await {
        Ok(renewal) => {
            context.lease.send_modify(|lease| lease.granted(renewal.sent, &renewal.grant));
            // A supervisor that hangs must not keep this node from its next renewal.
            let context = context.clone();
            tokio::spawn(async move { extend_machines(&context).await });
            LEASE_RENEW
        }
        Err(error) => {
            tracing::debug!(reason = %error, "the lease was not renewed");
            RETRY
        }
    }
}

/// Passes the deadline on to the machines that the ledger still gives to this node; to all at once, so that none waits for
/// another's supervisor.
pub async fn extend_machines(context: &Context) {
    let lease = context.lease.borrow().clone();
    let Some(deadline) = lease.deadline() else { return };
    let observed = context.runtime.list().await.unwrap_or_default();
    let exclusive: Vec<_> = observed.into_iter().filter(|machine| machine.exclusive && machine.is_up()).collect();
    if exclusive.is_empty() {
        return;
    }
    let Some((index, records)) = context.mine(exclusive.iter().map(|machine| machine.id)) else { return };
    if !covers(&lease, context.seams.clock.boottime(), index) {
        return;
    }
    let mut renewals = JoinSet::new();
    for machine in exclusive {
        let placement = records.get(&machine.id).and_then(|record| record.placement);
        if placement.is_some_and(|p| p.node == context.me && p.epoch == machine.epoch) {
            let runtime = context.runtime.clone();
            renewals.spawn(async move {
                if let Err(error) = runtime.renew(machine.id, deadline, true).await {
                    tracing::warn!(machine = %machine.id.short(), reason = %error, "its lease was not passed on");
                }
            });
        }
    }
    while renewals.join_next().await.is_some() {}
}

/// What this daemon has said about its absence; held while it says more.
#[derive(Debug, Default)]
pub struct Absence {
    /// It stops: the absence that it has announced must stay.
    leaving: bool,
    /// An end was proposed and its outcome is unknown: it may yet come, after an absence that is announced later.
    end_in_doubt: bool,
}

/// Announces a planned absence to the ledger, and gives what it grants to the supervisors of exclusive machines: they run
/// on without their daemon for as long as nobody may take them over.
///
/// # Errors
/// When the ledger does not acknowledge it. Nothing is extended then, whatever the ledger holds.
pub async fn leave(context: &Context, length: Duration) -> Result<(), Failure> {
    let mut absence = context.absence.lock().await;
    absence.leaving = true;
    let clock = &context.seams.clock;
    let sent = clock.boottime();
    context.submit(Command::PlanAbsence { node: context.me, for_ms: length.as_millis() as u64 }).await?;
    if absence.end_in_doubt {
        tracing::warn!("an earlier end of an absence may still be applied: exclusive machines keep to the lease");
        return Ok(());
    }
    let extended = context.lease.send_if_modified(|lease| lease.absent(clock.boottime(), sent, length));
    if extended {
        extend_machines(context).await;
    }
    Ok(())
}

/// Ends this node's planned absence, once after a start: first every supervisor goes back to the lease, then the ledger
/// is told. Gives whether that is done; what is missing comes with the next renewal of the lease.
pub async fn back(context: &Context) -> bool {
    let mut absence = context.absence.lock().await;
    if absence.leaving {
        return true;
    }
    context.lease.send_if_modified(|lease| {
        lease.returned();
        false
    });
    let Ok(observed) = context.runtime.list().await else { return false };
    for machine in observed.into_iter().filter(|machine| machine.exclusive && machine.is_up()) {
        let lease = context.lease.borrow().deadline();
        // A deadline beyond the lease is of the absence. Without a lease there is nothing to go back to yet.
        if machine.lease_deadline.is_none_or(|held| lease.is_some_and(|lease| held <= lease)) {
            continue;
        }
        let Some(lease) = lease else { return false };
        if let Err(error) = context.runtime.shorten(machine.id, lease).await {
            tracing::warn!(machine = %machine.id.short(), reason = %error, "the absence is not ended yet");
            return false;
        }
    }
    let ended = context.submit(Command::EndAbsence { node: context.me }).await.is_ok();
    absence.end_in_doubt |= !ended;
    ended
}
