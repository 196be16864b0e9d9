//! What happened lately on this node: a bounded ring that clients follow and resume.
//!
//! An [`EventId`] is this daemon's boot and a number that grows by one, so a cursor of an earlier daemon, or one that fell
//! out of the ring, is told apart from "nothing new" ([`Expired`], HTTP 410). Subscribing carries no data: a follower
//! waits on [`Events::changed`] and asks [`Events::since`], so a slow one loses nothing that the ring still has and
//! never holds a writer back. Nothing decides on events; they are for people and tests.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Serialize, Serializer};
use thiserror::Error;
use tokio::sync::watch;

use crate::limits::EVENTS_MAX;
use crate::seams::Clock;

/// Longest message of an event; the rest is cut.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Most pairs of data in an event; the rest is dropped.
const DATA_MAX: usize = 16;

/// Where an event stands in the stream of one daemon. Also a cursor: "I have seen up to here".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    /// Boot stamp of the daemon.
    pub boot: u64,
    /// Counts from 1; 0 is the cursor before the first event.
    pub sequence: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.boot, self.sequence)
    }
}

/// A text that is no cursor.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not an event cursor: expected two hexadecimal numbers with a dash between")]
pub struct ParseCursorError(String);

impl FromStr for EventId {
    type Err = ParseCursorError;
    fn from_str(text: &str) -> Result<Self, ParseCursorError> {
        let refuse = || ParseCursorError(text.chars().take(80).collect());
        let (boot, sequence) = text.split_once('-').ok_or_else(refuse)?;
        let number = |digits: &str| match digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => u64::from_str_radix(digits, 16).map_err(|_| refuse()),
            false => Err(refuse()),
        };
        Ok(EventId { boot: number(boot)?, sequence: number(sequence)? })
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Its place in the stream.
    pub id: EventId,
    /// When, Unix milliseconds by this node's clock.
    pub at_ms: u64,
    /// What, in `kebab-case`: a stable word for programs.
    pub kind: &'static str,
    /// What it happened to: an id or a name.
    pub subject: String,
    /// For people, one sentence.
    pub message: String,
    /// Details for programs.
    pub data: Vec<(String, String)>,
}

/// What a writer says about an event; the ring adds number and time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Happening {
    /// As in [`Event`].
    pub kind: &'static str,
    /// As in [`Event`].
    pub subject: String,
    /// As in [`Event`].
    pub message: String,
    /// As in [`Event`].
    pub data: Vec<(String, String)>,
}

/// The cursor is of another boot, ahead of the stream, or its successor fell out of the ring.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("event cursor {cursor} is no longer known here; the oldest that is: {oldest}")]
pub struct Expired {
    /// What was asked for.
    pub cursor: EventId,
    /// A cursor that gives all that the ring has.
    pub oldest: EventId,
}

/// The ring. Clones share it.
#[derive(Debug, Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    boot: u64,
    ring: Mutex<VecDeque<Event>>,
    latest: watch::Sender<EventId>,
}

impl Events {
    /// An empty ring of the daemon with this boot stamp (see [`crate::membership`]).
    pub fn new(clock: Arc<dyn Clock>, boot: u64) -> Self {
        let latest = watch::Sender::new(EventId { boot, sequence: 0 });
        Events { shared: Arc::new(Shared { clock, boot, ring: Mutex::default(), latest }) }
    }

    /// Records an event and wakes followers. Never waits. Gives its id.
    pub fn record(&self, what: Happening) -> EventId {
        let at_ms = self.shared.clock.wall().as_millis() as u64;
        let mut ring = self.ring();
        let id = EventId { boot: self.shared.boot, sequence: self.shared.latest.borrow().sequence + 1 };
        let Happening { kind, subject, mut message, mut data } = what;
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        data.truncate(DATA_MAX);
        if ring.len() == EVENTS_MAX {
            ring.pop_front();
        }
        ring.push_back(Event { id, at_ms, kind, subject, message, data });
        // Still under the lock, so that ids are published in order.
        self.shared.latest.send_replace(id);
        id
    }

    /// Events after `cursor`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`Expired`] when what follows the cursor is not all here.
    pub fn since(&self, cursor: EventId, limit: usize) -> Result<Vec<Event>, Expired> {
        let ring = self.ring();
        let latest = *self.shared.latest.borrow();
        let oldest = ring.front().map_or(latest.sequence, |event| event.id.sequence - 1);
        let oldest = EventId { boot: self.shared.boot, sequence: oldest };
        if cursor.boot != self.shared.boot || !(oldest.sequence..=latest.sequence).contains(&cursor.sequence) {
            return Err(Expired { cursor, oldest });
        }
        let skip = (cursor.sequence - oldest.sequence) as usize;
        Ok(ring.iter().skip(skip).take(limit).cloned().collect())
    }

    /// The cursor before the oldest event that the ring has.
    pub fn oldest(&self) -> EventId {
        let ring = self.ring();
        let latest = *self.shared.latest.borrow();
        ring.front().map_or(latest, |event| EventId { sequence: event.id.sequence - 1, ..event.id })
    }

    /// The cursor after the newest event.
    pub fn latest(&self) -> EventId {
        *self.shared.latest.borrow()
    }

    /// Changes whenever there is a new event; its value is [`Self::latest`].
    pub fn changed(&self) -> watch::Receiver<EventId> {
        self.shared.latest.subscribe()
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // A writer that panicked left a whole ring: every mutation is one push or pop.
        self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[derive(Debug)]
    struct Noon;
    impl Clock for Noon {
        fn boottime(&self) -> Duration {
            Duration::ZERO
        }
        fn wall(&self) -> Duration {
            Duration::from_secs(43_200)
        }
    }

    fn ring_with(count: usize) -> Events {
        let events = Events::new(Arc::new(Noon), 7);
        for at in 1..=count {
            events.record(Happening { kind: "node-up", subject: format!("n{at}"), ..Happening::default() });
        }
        events
    }

    #[test]
    fn a_follower_resumes_where_it_stopped() {
        let events = ring_with(5);
        let cursor = EventId { boot: 7, sequence: 3 };
        let got = events.since(cursor, 10).unwrap();
        assert_eq!(got.iter().map(|event| event.subject.as_str()).collect::<Vec<_>>(), ["n4", "n5"]);
        assert_eq!(events.since(events.latest(), 10), Ok(vec![]));
        assert_eq!(events.since(events.oldest(), 2).unwrap().len(), 2);
        assert_eq!(got[0].at_ms, 43_200_000);
    }

    #[test]
    fn a_cursor_that_fell_out_or_is_foreign_is_expired() {
        let events = ring_with(EVENTS_MAX + 10);
        let oldest = EventId { boot: 7, sequence: 10 };
        let cursor = EventId { boot: 7, sequence: 9 };
        assert_eq!(events.since(cursor, 1), Err(Expired { cursor, oldest }));
        assert_eq!(events.since(oldest, usize::MAX).unwrap().len(), EVENTS_MAX);
        for cursor in [EventId { boot: 6, sequence: 12 }, EventId { boot: 7, sequence: u64::MAX }] {
            assert!(events.since(cursor, 1).is_err(), "{cursor}");
        }
    }

    #[test]
    fn cursors_survive_printing_and_refuse_garbage() {
        let id = EventId { boot: u64::MAX, sequence: 31 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "-", "1", "1-", "+1-2", "1-2-3", "é-1", "1ffffffffffffffff-0"] {
            assert!(bad.parse::<EventId>().is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_subscription_wakes_on_the_next_event() {
        let events = ring_with(1);
        let mut changed = events.changed();
        let recorder = events.clone();
        let (wake, _) = tokio::join!(changed.changed(), async move {
            recorder.record(Happening { kind: "node-down", message: "é".repeat(2000), ..Happening::default() })
        });
        wake.unwrap();
        let last = events.since(EventId { boot: 7, sequence: 1 }, 9).unwrap().remove(0);
        assert_eq!((last.kind, last.message.len()), ("node-down", MESSAGE_BYTES_MAX));
        assert!(serde_json::to_string(&last).unwrap().starts_with("{\"id\":\"7-2\""));
    }
}
