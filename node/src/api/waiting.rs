//! Requests that wait for a state: looked at again at every change of this node, and now and then without one.

use std::time::Duration;

use tokio::sync::watch;

use super::backend::{Backend, MachineView, OperationState, OperationView};
use super::failure::{Class, Failure};
use crate::limits::API_WAIT_LOOK;
use fabric::model::MachineState;

/// The pauses between the looks of one request. Made before the first look, so that no change is missed.
#[derive(Debug)]
pub struct Waiter {
    deadline: tokio::time::Instant,
    changes: watch::Receiver<u64>,
}

impl Waiter {
    /// Waits for at most `patience` in all.
    pub fn new(backend: &dyn Backend, patience: Duration) -> Self {
        let mut changes = backend.changes();
        changes.mark_unchanged();
        Waiter { deadline: tokio::time::Instant::now() + patience, changes }
    }

    /// Waits until it is worth to look again.
    ///
    /// # Errors
    /// `timeout` with `reason`, which says how far it is, once the patience is at its end.
    pub async fn again(&mut self, reason: &str) -> Result<(), Failure> {
        let now = tokio::time::Instant::now();
        if now >= self.deadline {
            let hint = "nothing was undone: ask again, or look at the events";
            return Err(Failure::new("timeout", format!("not yet: {reason}")).hint(hint));
        }
        let look = self.deadline.min(now + API_WAIT_LOOK);
        if let Ok(Err(_closed)) = tokio::time::timeout_at(look, self.changes.changed()).await {
            // The node stops: only the deadline ends this.
            tokio::time::sleep_until(look).await;
        }
        Ok(())
    }
}

/// What a client may wait for at a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Its process runs in the present epoch.
    Running,
    /// Its process has ended.
    Stopped,
    /// It has left the ledger.
    Gone,
}

impl std::str::FromStr for Wanted {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "running" => Ok(Wanted::Running),
            "stopped" => Ok(Wanted::Stopped),
            "gone" => Ok(Wanted::Gone),
            _ => Err(()),
        }
    }
}

/// Judges a machine.
///
/// # Errors
/// `conflict` when it will not get there by itself.
pub fn machine(wanted: Wanted, view: &MachineView) -> Result<Option<String>, Failure> {
    let name = &view.record.name;
    let epoch = view.record.placement.map(|placement| placement.epoch);
    let status = view.status.as_ref().filter(|status| Some(status.epoch) == epoch);
    let why = status.and_then(|status| status.reason.clone()).or_else(|| view.record.waiting.clone());
    let words = |state: &str| match &why {
        Some(why) => format!("machine {name} is {state}: {why}"),
        None => format!("machine {name} is {state}"),
    };
    let Some(status) = status else {
        let unplaced = epoch.is_none() && wanted == Wanted::Stopped;
        return Ok((!unplaced).then(|| words(if epoch.is_some() { "not yet known to its node" } else { "unplaced" })));
    };
    let asked_since = status.requested_restarts < view.record.restarts;
    let ended = matches!(status.state, MachineState::Stopped | MachineState::Exited | MachineState::Failed);
    match wanted {
        Wanted::Running if status.state == MachineState::Running => Ok(None),
        // One that has ended and is wanted again is about to be started, and so is one that failed before it was asked for.
        Wanted::Running if view.record.ended.is_some() || (status.state == MachineState::Failed && !asked_since) => {
            let code = status.exit_code.map(|code| format!(" (exit code {code})")).unwrap_or_default();
            let state = format!("{:?}", status.state).to_lowercase();
            Err(Failure::new("conflict", format!("{}{code}", words(&state)))
                .hint(format!("smartnode machine logs {name}")))
        }
        Wanted::Stopped if ended => Ok(None),
        _ => Ok(Some(words(&format!("{:?}", status.state).to_lowercase()))),
    }
}

/// Judges a machine that was asked for while waiting for `gone`.
pub fn is_gone<T>(answer: &Result<T, Failure>) -> bool {
    matches!(answer, Err(failure) if failure.class == Class::NotFound)
}

/// Judges an operation: none when it has ended.
pub fn operation(view: &OperationView) -> Option<String> {
    (view.state == OperationState::Running).then(|| format!("{} of {} is at {}", view.kind, view.subject, view.phase))
}
