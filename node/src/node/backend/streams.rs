//! Streams through the admin port: logs, exec, forwarded ports, events. The owner may be another node.

use std::sync::Arc;
use std::time::Duration;

use fabric::events::{EventId, Expired};
use fabric::model::{MachineRecord, Name};
use fabric::rpc::Refusal;
use fabric::transport::Class;
use fabric::wire;
use futures_util::stream::{self, BoxStream, StreamExt};
use raft_store::ledger::Part;
use raft_store::state::State;
use tokio::sync::watch;

use super::NodeBackend;
use super::happenings::{Cursor, Merge, told};
use crate::api::backend::*;
use crate::api::failure::Failure;
use crate::node::asks::{CONNECT, ConnectAskV1, EXEC, ExecAskV1, LOGS, LogLineV1, LogsAskV1};
use crate::node::context::Context;
use crate::node::serving;

/// How long an owner may take to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// A spare looks for events in a fresh copy of the ledger this often.
const SPARE_LOOK: Duration = Duration::from_secs(1);
/// Events of one kind read at once.
const EVENTS_AT_ONCE: usize = 256;

/// Runtimes know a machine by its id, users by its name; and what has to run can be started.
fn named(failure: impl Into<Failure>, machine: &MachineRecord) -> Failure {
    let mut failure = failure.into();
    let message = &mut failure.refusal.message;
    *message = message.replace(&machine.id.short(), machine.name.as_str());
    match failure.refusal.code.as_str() {
        "state" => failure.hint(format!("smartnode machine start {} --wait", machine.name)),
        _ => failure,
    }
}

impl NodeBackend {
    pub(super) async fn open_logs(
        &self,
        tenant: &Name,
        name: &Name,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine>>> {
        let (record, owner) = self.owned(tenant, name)?;
        if owner == self.context.me {
            let query = crate::runtime::LogQuery { tail: query.tail, follow: query.follow };
            let lines = self.context.runtime.logs(record.id, query).await?;
            let lines = stream::unfold(lines, |mut lines| async { lines.recv().await.map(|line| (line, lines)) });
            let view = |line: crate::runtime::LogLine| {
                Ok(LogLine {
                    at_ms: line.at_ms,
                    stderr: line.source == crate::runtime::LogSource::Stderr,
                    text: line.text,
                })
            };
            return Ok(lines.map(view).boxed());
        }
        let tail = query.tail.map(|tail| u32::try_from(tail).unwrap_or(u32::MAX));
        let header = wire::encode(&LogsAskV1 { machine: record.id, tail, follow: query.follow });
        let opened = self.context.transport.open(owner, Class::Session, LOGS, header, OPEN_TIMEOUT).await?;
        let lines = stream::unfold(Some(opened), |opened| async {
            let mut opened = opened?;
            match serving::read_frame(&mut opened).await {
                Ok(None) => None,
                Ok(Some(frame)) => match wire::decode::<LogLineV1>(&frame) {
                    Ok(line) => {
                        let line = LogLine { at_ms: line.at_ms, stderr: line.stderr, text: line.text };
                        Some((Ok(line), Some(opened)))
                    }
                    Err(error) => Some((Err(Failure::internal(error.to_string())), None)),
                },
                Err(error) => Some((Err(Failure::unreachable(format!("the machine's node is gone: {error}"))), None)),
            }
        });
        Ok(lines.boxed())
    }

    pub(super) async fn open_exec(&self, tenant: &Name, name: &Name, query: ExecQuery) -> Result<Duplex> {
        let (record, owner) = self.owned(tenant, name)?;
        if owner == self.context.me {
            let program =
                self.context.runtime.exec(record.id, &query.argv).await.map_err(|error| named(error, &record))?;
            let (near, far) = tokio::io::duplex(serving::PIPE_BYTES);
            tokio::spawn(async move {
                if let Err(error) = serving::carry_exec(program, far, query.stdin).await {
                    tracing::debug!(%error, "an exec ended early");
                }
            });
            return Ok(Box::new(near));
        }
        let header = wire::encode(&ExecAskV1 { machine: record.id, argv: query.argv, stdin: query.stdin });
        let opened = self.context.transport.open(owner, Class::Session, EXEC, header, OPEN_TIMEOUT).await;
        Ok(Box::new(opened.map_err(|error| named(error, &record))?))
    }

    pub(super) async fn open_port(&self, tenant: &Name, name: &Name, port: u16) -> Result<Duplex> {
        let (record, owner) = self.owned(tenant, name)?;
        if owner == self.context.me {
            let connected = self.context.runtime.connect(record.id, port).await;
            return Ok(Box::new(connected.map_err(|error| named(error, &record))?));
        }
        let header = wire::encode(&ConnectAskV1 { machine: record.id, port });
        let opened = self.context.transport.open(owner, Class::Session, CONNECT, header, OPEN_TIMEOUT).await;
        Ok(Box::new(opened.map_err(|error| named(error, &record))?))
    }

    pub(super) async fn open_events(
        &self,
        since: Option<String>,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<EventView>>> {
        let (context, ring) = (self.context.clone(), self.context.events.clone());
        let asked = since
            .map(|text| text.parse::<Cursor>().map_err(|error| Failure::invalid("since", &text, error.to_string())));
        let asked = asked.transpose()?;
        // A spare's copy is fetched; a worker gets none and tells what it saw itself.
        let _ = context.ledger.refresh(SPARE_LOOK).await;
        if let Some(cursor) = asked {
            check_epoch(&context, cursor).await?;
        }
        let cursor = asked.map_or_else(
            || {
                let (epoch, index) = context.ledger.read(|state| (state.settings.epoch, state.audit_oldest()));
                Cursor { epoch, index, local: Some(ring.oldest()) }
            },
            // What another daemon saw is not told here: this one goes on with what it sees from now on.
            |asked| Cursor {
                local: asked.local.filter(|id| id.boot == ring.latest().boot).or(Some(ring.latest())),
                ..asked
            },
        );
        let (ledger, local) = (context.ledger.changed(), ring.changed());
        let mut reading = Reading { context, merge: Merge::new(cursor), ledger, local, follow, ended: false };
        reading.read()?;
        Ok(stream::unfold(reading, next_event).boxed())
    }
}

/// One client's way through the events.
struct Reading {
    context: Arc<Context>,
    merge: Merge,
    ledger: watch::Receiver<u64>,
    local: watch::Receiver<EventId>,
    follow: bool,
    /// A failure was told.
    ended: bool,
}

impl Reading {
    /// Reads on where something has run dry.
    fn read(&mut self) -> Result<()> {
        self.ledger.borrow_and_update();
        self.local.borrow_and_update();
        let cursor = self.merge.cursor();
        let (ledger, local) = self.merge.dry();
        if ledger {
            let (told, read_to) = self.context.ledger.read(|state| read_audit(state, cursor))?;
            self.merge.add_ledger(told, read_to);
        }
        if local && let Some(id) = cursor.local {
            let events = self.context.events.since(id, EVENTS_AT_ONCE);
            let oldest = |expired: Expired| {
                let oldest = Cursor { local: Some(expired.oldest), ..cursor };
                expired_cursor(cursor, oldest, "happenings of this node behind it are no longer kept")
            };
            self.merge.add_local(events.map_err(oldest)?);
        }
        Ok(())
    }

    /// Waits for news of either kind; no more when the node stops.
    async fn changed(&mut self) -> Option<()> {
        tokio::select! {
            biased;
            () = self.context.shutdown.cancelled() => None,
            changed = self.ledger.changed() => changed.ok(),
            changed = self.local.changed() => changed.ok(),
            () = tokio::time::sleep(SPARE_LOOK), if self.context.ledger.status().part == Part::Spare => {
                let _ = self.context.ledger.refresh(SPARE_LOOK).await;
                Some(())
            }
        }
    }
}

async fn next_event(mut reading: Reading) -> Option<(Result<EventView>, Reading)> {
    if reading.ended {
        return None;
    }
    loop {
        let before = reading.merge.cursor();
        // Whatever has run dry is read before anything is told, so that both are told in the order of time.
        if let Err(failure) = reading.read() {
            // The reader was too slow: say so once and end.
            reading.ended = true;
            return Some((Err(failure), reading));
        }
        if let Some(view) = reading.merge.pop() {
            return Some((Ok(view), reading));
        }
        if reading.merge.cursor() != before {
            // Refusals only: there may be more behind them.
            tokio::task::consume_budget().await;
            continue;
        }
        if !reading.follow {
            return None;
        }
        reading.changed().await?;
    }
}

/// A cursor of a later epoch than the cluster's is not this cluster's: nothing would ever come behind it.
async fn check_epoch(context: &Context, cursor: Cursor) -> Result<()> {
    let epoch = || context.ledger.read(|state| state.settings.epoch);
    if cursor.epoch <= epoch() {
        return Ok(());
    }
    // This copy may be of before the ledger was made anew.
    context.ledger.linearizable().await?;
    if cursor.epoch <= epoch() {
        return Ok(());
    }
    let rule = format!("a cursor of this cluster begins with its epoch, {:x}, or an earlier one", epoch());
    Err(Failure::invalid("since", cursor, rule).hint("is it another cluster's? begin without a cursor"))
}

/// Some of the ledger's events behind the cursor, and how far that is.
fn read_audit(state: &State, cursor: Cursor) -> Result<(Vec<(u64, EventView)>, u64)> {
    let epoch = state.settings.epoch;
    let oldest = Cursor { epoch, index: state.audit_oldest(), ..cursor };
    if cursor.epoch > epoch {
        // This copy is behind: it will come.
        return Ok((Vec::new(), cursor.index));
    }
    if cursor.epoch < epoch && state.initialized() {
        return Err(expired_cursor(cursor, oldest, "the ledger was made anew since"));
    }
    let Ok(entries) = state.audit_since(cursor.index) else {
        return Err(expired_cursor(cursor, oldest, "what came next is no longer kept"));
    };
    let name_of =
        |node| state.nodes.get(&node).map_or_else(|| node.short().to_string(), |record| record.name.to_string());
    let (mut told_of, mut read_to) = (Vec::new(), cursor.index);
    for entry in entries.take(EVENTS_AT_ONCE) {
        read_to = entry.index;
        told_of.extend(told(entry, name_of).map(|view| (entry.index, view)));
    }
    Ok((told_of, read_to))
}

fn expired_cursor(cursor: Cursor, oldest: Cursor, why: &str) -> Failure {
    let refusal = Refusal::new("expired-cursor", format!("event cursor {cursor} has expired: {why}"));
    refusal
        .field("since", cursor)
        .hint(format!("the oldest cursor is {oldest}: go on from it, or begin without one"))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::RuntimeError;

    #[test]
    fn a_machine_that_does_not_run_is_named_and_can_be_started() {
        let machine = crate::fixtures::machine(3, None);
        let state = |id| RuntimeError::State { id, state: "stopped".into(), hint: "it must be running".into() };
        let failure = named(state(machine.id), &machine);
        assert_eq!(failure.refusal.message, format!("machine {} is stopped: it must be running", machine.name));
        assert_eq!(failure.refusal.hint, Some(format!("smartnode machine start {} --wait", machine.name)));
        // The same from another node, as its refusal.
        let told = Refusal::from(Failure::from(state(machine.id)));
        assert_eq!(named(told, &machine), failure);
        let unsupported = named(RuntimeError::Unsupported("no".into()), &machine);
        assert_eq!(unsupported.refusal.hint, None);
    }
}
