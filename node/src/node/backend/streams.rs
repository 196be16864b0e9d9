//! Streams through the admin port: logs, exec, forwarded ports, events. The owner may be another node.

use std::time::Duration;

use fabric::events::{Event, EventId, Events};
use fabric::model::Name;
use fabric::transport::Class;
use fabric::wire;
use futures_util::stream::{self, BoxStream, StreamExt};

use super::NodeBackend;
use crate::api::backend::*;
use crate::api::failure::Failure;
use crate::node::asks::{CONNECT, ConnectAskV1, EXEC, ExecAskV1, LOGS, LogLineV1, LogsAskV1};
use crate::node::serving;

/// How long an owner may take to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Events read from the ring at once.
const EVENTS_AT_ONCE: usize = 256;

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
        let opened = self.context.transport.open(owner, Class::Control, LOGS, header, OPEN_TIMEOUT).await?;
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
            let program = self.context.runtime.exec(record.id, &query.argv).await?;
            let (near, far) = tokio::io::duplex(serving::PIPE_BYTES);
            tokio::spawn(async move {
                if let Err(error) = serving::carry_exec(program, far, query.stdin).await {
                    tracing::debug!(%error, "an exec ended early");
                }
            });
            return Ok(Box::new(near));
        }
        let header = wire::encode(&ExecAskV1 { machine: record.id, argv: query.argv, stdin: query.stdin });
        let opened = self.context.transport.open(owner, Class::Control, EXEC, header, OPEN_TIMEOUT).await?;
        Ok(Box::new(opened))
    }

    pub(super) async fn open_port(&self, tenant: &Name, name: &Name, port: u16) -> Result<Duplex> {
        let (record, owner) = self.owned(tenant, name)?;
        if owner == self.context.me {
            return Ok(Box::new(self.context.runtime.connect(record.id, port).await?));
        }
        let header = wire::encode(&ConnectAskV1 { machine: record.id, port });
        Ok(Box::new(self.context.transport.open(owner, Class::Bulk, CONNECT, header, OPEN_TIMEOUT).await?))
    }

    pub(super) fn open_events(
        &self,
        since: Option<String>,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<EventView>>> {
        let events = self.context.events.clone();
        let cursor = match since {
            None => events.oldest(),
            Some(text) => {
                text.parse::<EventId>().map_err(|error| Failure::invalid("since", &text, error.to_string()))?
            }
        };
        let first = read_events(&events, cursor)?;
        let begin = Reading { changed: events.changed(), events, cursor, waiting: first.into(), follow };
        Ok(stream::unfold(begin, next_event).boxed())
    }
}

struct Reading {
    events: Events,
    changed: tokio::sync::watch::Receiver<EventId>,
    cursor: EventId,
    waiting: std::collections::VecDeque<Event>,
    follow: bool,
}

async fn next_event(mut reading: Reading) -> Option<(Result<EventView>, Reading)> {
    loop {
        if let Some(event) = reading.waiting.pop_front() {
            reading.cursor = event.id;
            return Some((Ok(view(event)), reading));
        }
        reading.changed.borrow_and_update();
        match read_events(&reading.events, reading.cursor) {
            Err(failure) => {
                // The reader was too slow: say so once and end.
                reading.follow = false;
                reading.cursor = reading.events.latest();
                return Some((Err(failure), reading));
            }
            Ok(more) if !more.is_empty() => reading.waiting = more.into(),
            Ok(_) if !reading.follow => return None,
            Ok(_) => reading.changed.changed().await.ok()?,
        }
    }
}

fn read_events(events: &Events, cursor: EventId) -> Result<Vec<Event>> {
    events
        .since(cursor, EVENTS_AT_ONCE)
        .map_err(|expired| Failure::new("expired-cursor", expired.to_string()).hint("begin again without a cursor"))
}

fn view(event: Event) -> EventView {
    let tenant = event.data.iter().find(|(key, _)| key == "tenant").and_then(|(_, tenant)| tenant.parse().ok());
    EventView {
        cursor: event.id.to_string(),
        at_ms: event.at_ms,
        kind: event.kind.to_owned(),
        tenant,
        subject: event.subject,
        message: event.message,
    }
}
