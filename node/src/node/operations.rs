//! Long work that clients follow: moves, drains, leaving. A bounded registry of this node's operations.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use fabric::ids::OperationId;
use fabric::limits::OPERATIONS_MAX;
use fabric::model::Name;
use fabric::rpc::Refusal;
use fabric::seams::{Clock, Entropy, draw};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::backend::{OperationState, OperationView};

/// The operations of this node, those under way and the last ones.
#[derive(Debug)]
pub struct Operations {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    entries: Mutex<BTreeMap<OperationId, Entry>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Entry {
    view: OperationView,
    cancel: CancellationToken,
}

/// The side of an operation that does the work. Dropping it without an end marks it failed.
#[derive(Debug)]
pub struct Progress {
    id: OperationId,
    operations: Arc<Operations>,
    /// Set when a client asks to stop; looked at between phases.
    pub cancelled: CancellationToken,
    ended: bool,
}

impl Operations {
    /// None yet.
    pub fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Arc<Self> {
        let entries = Mutex::default();
        Arc::new(Operations { clock, entropy, entries, changed: watch::Sender::new(0) })
    }

    fn now_ms(&self) -> u64 {
        self.clock.wall().as_millis() as u64
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<OperationId, Entry>> {
        self.entries.lock().expect("no holder of this lock panics")
    }

    /// Registers one that begins now. The oldest ended ones make room.
    ///
    /// # Errors
    /// `busy` when the registry is full of operations under way.
    pub fn begin(self: &Arc<Self>, kind: &str, tenant: Option<Name>, subject: &str) -> Result<Progress, Refusal> {
        let now_ms = self.now_ms();
        let mut entries = self.entries();
        if entries.len() >= OPERATIONS_MAX {
            let ended = entries.values().filter(|entry| entry.view.state != OperationState::Running);
            let oldest = ended.min_by_key(|entry| entry.view.updated_ms).map(|entry| entry.view.id);
            let Some(oldest) = oldest else {
                return Err(Refusal::new("busy", format!("{OPERATIONS_MAX} operations are under way on this node"))
                    .hint("wait for some to end: GET /v1/operations"));
            };
            entries.remove(&oldest);
        }
        let id = OperationId(draw(&*self.entropy));
        let view = OperationView {
            id,
            kind: kind.into(),
            tenant,
            subject: subject.into(),
            state: OperationState::Running,
            phase: "begun".into(),
            progress_permille: 0,
            predicted_outage_ms: None,
            created_ms: now_ms,
            updated_ms: now_ms,
            error: None,
        };
        let cancel = CancellationToken::new();
        entries.insert(id, Entry { view, cancel: cancel.clone() });
        drop(entries);
        Ok(Progress { id, operations: self.clone(), cancelled: cancel, ended: false })
    }

    /// One of them.
    pub fn get(&self, id: OperationId) -> Option<OperationView> {
        self.entries().get(&id).map(|entry| entry.view.clone())
    }

    /// All of them, by id.
    pub fn list(&self) -> Vec<OperationView> {
        self.entries().values().map(|entry| entry.view.clone()).collect()
    }

    /// Asks one to stop; it ends when its present phase allows.
    pub fn cancel(&self, id: OperationId) {
        if let Some(entry) = self.entries().get(&id) {
            entry.cancel.cancel();
        }
    }

    /// Changes with every step of any operation.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn update(&self, id: OperationId, change: impl FnOnce(&mut OperationView)) {
        let now_ms = self.now_ms();
        if let Some(entry) = self.entries().get_mut(&id) {
            change(&mut entry.view);
            entry.view.updated_ms = now_ms;
        }
        self.changed.send_modify(|version| *version += 1);
    }
}

impl Progress {
    /// The operation's id.
    pub fn id(&self) -> OperationId {
        self.id
    }

    /// What a client sees now.
    pub fn view(&self) -> OperationView {
        self.operations.get(self.id).expect("an operation under way is never evicted")
    }

    /// Enters a phase.
    pub fn phase(&self, phase: &str, permille: u32) {
        tracing::debug!(operation = %self.id.short(), phase, permille, "operation");
        self.operations.update(self.id, |view| {
            view.phase = phase.into();
            view.progress_permille = permille.min(1000);
        });
    }

    /// Predicts the outage of a move.
    pub fn predict(&self, outage_ms: u64) {
        self.operations.update(self.id, |view| view.predicted_outage_ms = Some(outage_ms));
    }

    /// Ends it well.
    pub fn done(mut self) {
        self.end(OperationState::Done, None);
    }

    /// Ends it badly: cancelled when the client asked for that, else failed.
    pub fn failed(mut self, error: Refusal) {
        let state = if self.cancelled.is_cancelled() { OperationState::Cancelled } else { OperationState::Failed };
        self.end(state, Some(error));
    }

    fn end(&mut self, state: OperationState, error: Option<Refusal>) {
        self.ended = true;
        self.operations.update(self.id, |view| {
            if state == OperationState::Done {
                view.progress_permille = 1000;
                view.phase = "done".into();
            }
            view.state = state;
            view.error = error;
        });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !self.ended {
            self.end(OperationState::Failed, Some(Refusal::new("internal", "the work ended without a result")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::seams::real::{KernelClock, KernelEntropy};

    fn operations() -> Arc<Operations> {
        Operations::new(Arc::new(KernelClock), Arc::new(KernelEntropy))
    }

    #[test]
    fn the_oldest_ended_one_makes_room_and_running_ones_never_do() {
        let operations = operations();
        let first = operations.begin("move", None, "a").unwrap();
        let first_id = first.id();
        first.done();
        let running: Vec<_> = (1..OPERATIONS_MAX).map(|_| operations.begin("move", None, "b").unwrap()).collect();
        assert!(operations.get(first_id).is_some());
        let last = operations.begin("move", None, "c").unwrap();
        assert!(operations.get(first_id).is_none());
        assert_eq!(operations.begin("move", None, "d").unwrap_err().code, "busy");
        drop((running, last));
    }

    #[test]
    fn work_that_vanishes_is_not_shown_as_running() {
        let operations = operations();
        let id = operations.begin("move", None, "a").unwrap().id();
        assert_eq!(operations.get(id).unwrap().state, OperationState::Failed);
    }
}
