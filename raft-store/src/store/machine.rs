//! openraft's state machine: the in-memory state behind a lock, and what the rest of the node watches.
//!
//! Whoever reads does so in a short closure and never across an await. An entry of a type, version or feature level that
//! this program does not know halts apply: skipping it would give this node a state that no other node has.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use fabric::seams::Clock;
use fabric::wire::{self, WireError};
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::{broadcast, watch};

use super::guarded::guarded;
use super::{Store, StoreError};
use crate::command::{Command, Envelope};
use crate::lease::Book;
use crate::snapshot::CaKeys;
use crate::state::{EntryContext, State};
use crate::tuning::{APPLIED_BACKLOG, APPLY_BATCH};
use crate::types::{LogId, Payload, Reply, Snapshot, SnapshotData, SnapshotMeta, StoredMembership, TC, term_of};

/// Why this node's ledger stopped, once it has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Halt(watch::Sender<Option<String>>);

impl Halt {
    /// Keeps the first reason.
    pub(crate) fn because(&self, reason: impl ToString) {
        self.0.send_if_modified(|current| {
            if current.is_some() {
                return false;
            }
            let reason = reason.to_string();
            tracing::error!(%reason, "the ledger of this node halts");
            *current = Some(reason);
            true
        });
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.0.subscribe()
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }
}

/// An entry that was applied, for those who tell others about changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedEntry {
    /// Its index.
    pub index: u64,
    /// The cluster's time when it was applied, Unix milliseconds.
    pub at_ms: u64,
    /// What was asked, see `Command::verb`.
    pub verb: &'static str,
    /// Of what, see `Command::about`.
    pub about: String,
    /// Whose credential.
    pub subject: String,
    /// The refusal's code, if it was refused.
    pub refused: Option<String>,
}

/// The state and how far it has come.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) state: State,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl Machine {
    pub(crate) fn applied_index(&self) -> u64 {
        self.applied.map_or(0, |id| id.index)
    }

    /// (cluster epoch, index): what orders copies of the state.
    pub(crate) fn at(&self) -> (u64, u64) {
        (self.state.settings.epoch, self.applied_index())
    }
}

/// The state, shared by openraft (who writes) and the ledger's callers (who read).
#[derive(Debug)]
pub(crate) struct Shared {
    machine: RwLock<Machine>,
    leases: Mutex<Book>,
    clock: Arc<dyn Clock>,
    pub(crate) applied: watch::Sender<u64>,
    pub(crate) events: broadcast::Sender<AppliedEntry>,
    pub(crate) halt: Halt,
}

impl Shared {
    fn new(machine: Machine, clock: Arc<dyn Clock>) -> Self {
        let index = machine.applied_index();
        let mut leases = Book::default();
        note_absences(&mut leases, clock.boottime(), &machine.state);
        Shared {
            machine: RwLock::new(machine),
            leases: Mutex::new(leases),
            clock,
            applied: watch::Sender::new(index),
            events: broadcast::Sender::new(APPLIED_BACKLOG),
            halt: Halt::default(),
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Machine> {
        self.machine.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease book. It follows each entry in the order of the log.
    pub(crate) fn leases(&self) -> MutexGuard<'_, Book> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Machine> {
        // A panic in apply would leave half an entry behind: that state must not be used again.
        self.machine.write().expect("apply does not panic")
    }

    fn apply_one(&self, machine: &mut Machine, id: LogId, payload: Payload) -> Result<Reply, StoreError> {
        let reply = match payload {
            EntryPayload::Blank => None,
            EntryPayload::Membership(membership) => {
                machine.membership = StoredMembership::new(Some(id), membership);
                None
            }
            EntryPayload::Normal(proposal) => {
                let envelope = decode(id.index, &proposal.0)?;
                let context = EntryContext::of(id.index, term_of(&id), &envelope);
                let result = machine.state.apply(context, &envelope);
                self.note_outcome(&envelope, result.is_ok());
                // Nobody may be listening.
                let _ = self.events.send(AppliedEntry {
                    index: id.index,
                    at_ms: machine.state.settings.at_ms,
                    verb: envelope.command.verb(),
                    about: envelope.command.about(),
                    subject: envelope.actor.subject,
                    refused: result.as_ref().err().map(|refusal| refusal.code.clone()),
                });
                Some(result)
            }
        };
        machine.applied = Some(id);
        self.leases().applied(self.clock.boottime(), term_of(&id));
        Ok(reply)
    }

    /// What the lease book has to know of an entry.
    fn note_outcome(&self, envelope: &Envelope, done: bool) {
        match &envelope.command {
            Command::PlanAbsence { node, for_ms } if done => {
                self.leases().absence(self.clock.boottime(), *node, Duration::from_millis(*for_ms));
            }
            // Only the node itself can end what it counts on.
            Command::EndAbsence { node } if done && envelope.actor.node == *node => self.leases().absence_ended(*node),
            Command::Takeover { from, judged_term, .. } => self.leases().end_takeover(*judged_term, *from),
            _ => {}
        }
    }

    fn replace(&self, machine: Machine) {
        let index = machine.applied_index();
        note_absences(&mut self.leases(), self.clock.boottime(), &machine.state);
        *self.write() = machine;
        self.applied.send_replace(index);
    }
}

fn note_absences(leases: &mut Book, now: Duration, state: &State) {
    for absence in state.absences.values() {
        leases.absence(now, absence.node, Duration::from_millis(absence.for_ms));
    }
}

/// Reads a command that is about to be applied.
fn decode(index: u64, frame: &[u8]) -> Result<Envelope, StoreError> {
    let envelope: Envelope = match wire::decode(frame) {
        Ok(envelope) => envelope,
        Err(cause @ (WireError::Type { .. } | WireError::Protocol(_))) => {
            return Err(StoreError::Unknown { index, cause: cause.to_string() });
        }
        Err(cause) => return Err(super::damaged(format!("the command of log entry {index}"), cause)),
    };
    match envelope.command.halts() {
        Some(cause) => Err(StoreError::Unknown { index, cause }),
        None => Ok(envelope),
    }
}

/// openraft's handle of the state machine.
#[derive(Clone)]
pub(crate) struct StateMachine {
    store: Store,
    pub(crate) shared: Arc<Shared>,
}

impl StateMachine {
    /// Loads the latest snapshot; openraft replays the committed entries behind it.
    pub(crate) fn load(store: Store, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let machine = guarded(|| store.load_snapshot())?.unwrap_or_default();
        Ok(StateMachine { store, shared: Arc::new(Shared::new(machine, clock)) })
    }

    fn checked<T>(&self, result: Result<T, StoreError>) -> io::Result<T> {
        result.map_err(|error| {
            self.shared.halt.because(&error);
            error.into()
        })
    }
}

impl RaftStateMachine<TC> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let machine = self.shared.read();
        Ok((machine.applied, machine.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TC>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(APPLY_BATCH);
        while let Some(batch) = batches.next().await {
            let mut replies = Vec::with_capacity(batch.len());
            let index = {
                let mut machine = self.shared.write();
                for item in batch {
                    let (entry, responder) = item?;
                    let reply = self.checked(self.shared.apply_one(&mut machine, entry.log_id, entry.payload))?;
                    if let Some(responder) = responder {
                        replies.push((responder, reply));
                    }
                }
                machine.applied_index()
            };
            self.shared.applied.send_replace(index);
            for (responder, reply) in replies {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let machine = self.checked(super::snapshots::decode_machine(meta, &snapshot))?;
        let installed = self.store.write_snapshot(meta, snapshot).await;
        self.checked(installed)?;
        self.shared.replace(machine);
        tracing::info!(last = ?meta.last_log_id, "took over a snapshot of the ledger");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.checked(self.store.current_snapshot())
    }
}

impl RaftSnapshotBuilder<TC> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        // A copy of the records, since encoding takes longer than entries may wait for the lock.
        let (meta, state) = {
            let machine = self.shared.read();
            let meta = SnapshotMeta { last_log_id: machine.applied, last_membership: machine.membership.clone() };
            (meta, machine.state.records())
        };
        let snapshot = super::snapshots::encode_state(&state, CaKeys::With).await;
        drop(state);
        let written = self.store.write_snapshot(&meta, snapshot.clone()).await;
        self.checked(written)?;
        tracing::info!(last = ?meta.last_log_id, bytes = snapshot.len(), "made a snapshot of the ledger");
        Ok(Snapshot { meta, snapshot })
    }
}
