//! The holder's side of the lease: renewing it, and passing its deadline to the supervisors of exclusive machines.
//!
//! The deadline counts from before the request was sent, on CLOCK_BOOTTIME (design section 7). A machine's deadline moves
//! only when this node's view of the ledger has reached the grant's revision and still names this node as the owner: a
//! takeover that was committed while the lease had lapsed is in that view.

use std::sync::Arc;
use std::time::Duration;

use fabric::limits::LEASE_RENEW;
use raft_store::lease::Holder;
use tokio::time::Instant;

use super::context::Context;

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

async fn renew(context: &Context) -> Duration {
    match context.ledger.renew_lease().await {
        Ok(renewal) => {
            context.lease.send_modify(|lease| lease.granted(renewal.sent, &renewal.grant));
            extend_machines(context).await;
            LEASE_RENEW
        }
        Err(error) => {
            tracing::debug!(reason = %error, "the lease was not renewed");
            RETRY
        }
    }
}

/// Passes the deadline on to the machines that the ledger still gives to this node.
pub async fn extend_machines(context: &Context) {
    let lease = context.lease.borrow().clone();
    let Some(deadline) = lease.deadline() else { return };
    let observed = context.runtime.list().await.unwrap_or_default();
    let exclusive: Vec<_> = observed.into_iter().filter(|machine| machine.exclusive && machine.is_up()).collect();
    if exclusive.is_empty() {
        return;
    }
    let (index, records) = context.mine(exclusive.iter().map(|machine| machine.id));
    if !covers(&lease, context.seams.clock.boottime(), index) {
        return;
    }
    for machine in exclusive {
        let placement = records.get(&machine.id).and_then(|record| record.placement);
        let mine = placement.is_some_and(|p| p.node == context.me && p.epoch == machine.epoch);
        if mine && let Err(error) = context.runtime.renew(machine.id, deadline, true).await {
            tracing::warn!(machine = %machine.id.short(), reason = %error, "its lease was not passed on");
        }
    }
}
