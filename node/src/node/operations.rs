//! Long work that clients follow: moves, drains, leaving. A bounded registry of this node's operations.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use fabric::ids::{Digest, IdempotencyKey, OperationId};
use fabric::limits::OPERATIONS_MAX;
use fabric::model::Name;
use fabric::rpc::Refusal;
use fabric::seams::{Clock, Entropy, draw};
use raft_store::codes;
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
    request: Option<Request>,
}

/// A client's request with an `Idempotency-Key`: repeated, it gets the operation that it began the first time, for as long
/// as that is remembered here. Elsewhere and later the ledger knows it (`moving::repeated`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The key in its client's scope.
    key: Digest,
    /// What was asked.
    asked: Digest,
}

impl Request {
    /// A request of `caller` for what the words say.
    pub fn new(caller: &str, key: IdempotencyKey, words: &[&str]) -> Self {
        let mut asked = blake3::Hasher::new();
        for word in words {
            asked.update(&(word.len() as u64).to_le_bytes()).update(word.as_bytes());
        }
        Request { key: Digest::of(&[&key.0, caller.as_bytes()].concat()), asked: Digest(*asked.finalize().as_bytes()) }
    }
}

/// What became of a request for an operation.
#[derive(Debug)]
pub enum Begun {
    /// It begins now.
    New(Progress),
    /// The same request began it before.
    Known(Box<OperationView>),
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
        self.enter(&mut self.entries(), kind, tenant, subject, None)
    }

    /// The same for a request that a client may repeat: one and the same operation however often it does, unless that has
    /// failed. Whoever lets it be tried again answers for that nothing is done twice; the new one stands for it then.
    ///
    /// # Errors
    /// The same, and `key-reused` when the key came with another request.
    pub fn begin_once(
        self: &Arc<Self>,
        request: Option<Request>,
        kind: &str,
        tenant: Option<Name>,
        subject: &str,
    ) -> Result<Begun, Refusal> {
        let mut entries = self.entries();
        if let Some(known) = repeated(&entries, request)? {
            if known.state != OperationState::Failed {
                return Ok(Begun::Known(Box::new(known)));
            }
            entries.get_mut(&known.id).into_iter().for_each(|entry| entry.request = None);
        }
        self.enter(&mut entries, kind, tenant, subject, request).map(Begun::New)
    }

    /// The operation that a request began before.
    ///
    /// # Errors
    /// `key-reused` when its key came with another request.
    pub fn repeated(&self, request: Option<Request>) -> Result<Option<OperationView>, Refusal> {
        repeated(&self.entries(), request)
    }

    fn enter(
        self: &Arc<Self>,
        entries: &mut BTreeMap<OperationId, Entry>,
        kind: &str,
        tenant: Option<Name>,
        subject: &str,
        request: Option<Request>,
    ) -> Result<Progress, Refusal> {
        let now_ms = self.now_ms();
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
        entries.insert(id, Entry { view, cancel: cancel.clone(), request });
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

fn repeated(
    entries: &BTreeMap<OperationId, Entry>,
    request: Option<Request>,
) -> Result<Option<OperationView>, Refusal> {
    let Some(request) = request else { return Ok(None) };
    let same_key = |entry: &&Entry| entry.request.is_some_and(|known| known.key == request.key);
    match entries.values().find(same_key) {
        None => Ok(None),
        Some(known) if known.request == Some(request) => Ok(Some(known.view.clone())),
        Some(_) => Err(Refusal::new(codes::KEY_REUSED, "this Idempotency-Key was used for another request")
            .hint("send a new key with each new request")),
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
    fn a_repeated_request_gets_its_operation() {
        let operations = operations();
        let key = IdempotencyKey([7; 16]);
        let request = |caller, to| Some(Request::new(caller, key, &["default", "m", to]));
        let begin = |request| operations.begin_once(request, "move", None, "m");
        let Ok(Begun::New(first)) = begin(request("root@n1", "n2")) else { panic!("it is new") };
        let id = first.id();
        assert!(matches!(begin(request("root@n1", "n2")), Ok(Begun::Known(view)) if view.id == id));
        first.done();
        let known = operations.repeated(request("root@n1", "n2")).unwrap().expect("also when it has ended");
        assert_eq!((known.id, known.state), (id, OperationState::Done));
        assert_eq!(begin(request("root@n1", "n3")).unwrap_err().code, codes::KEY_REUSED);
        assert!(matches!(begin(request("root@n2", "n3")), Ok(Begun::New(_))), "another client's key");
        assert!(matches!(begin(None), Ok(Begun::New(_))));
    }

    #[test]
    fn a_request_that_failed_is_tried_again_by_one_operation() {
        let operations = operations();
        let request = Some(Request::new("root@n1", IdempotencyKey([7; 16]), &["default", "m", "n2"]));
        let begin = || match operations.begin_once(request, "move", None, "m").unwrap() {
            Begun::New(progress) => progress,
            Begun::Known(view) => panic!("{view:?}"),
        };
        begin().failed(Refusal::new("unreachable", "its owner does not answer"));
        let known = || operations.repeated(request).unwrap().unwrap();
        assert_eq!(known().state, OperationState::Failed);
        let second = begin();
        assert_eq!((known().id, known().state), (second.id(), OperationState::Running));
        assert!(matches!(operations.begin_once(request, "move", None, "m"), Ok(Begun::Known(_))));
        second.done();
        assert_eq!(known().state, OperationState::Done);
    }

    #[test]
    fn work_that_vanishes_is_not_shown_as_running() {
        let operations = operations();
        let id = operations.begin("move", None, "a").unwrap().id();
        assert_eq!(operations.get(id).unwrap().state, OperationState::Failed);
    }
}
