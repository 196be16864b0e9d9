//! The stream of events: what the ledger applied, the same on every node, and what this node alone saw.
//!
//! A [`Cursor`] has a part for each. The ledger's part, (cluster epoch, log index), means the same on every node and
//! after every restart, since these events are read from the replicated audit. The local part is this daemon's ring
//! (membership): a cursor from another daemon goes on there with what comes from now on. Pure; the driver is `streams`.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use fabric::events::{Event, EventId};
use fabric::ids::NodeId;
use raft_store::codes;
use raft_store::state::AuditEntry;

use crate::api::backend::EventView;

/// "I have seen everything up to here."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The cluster's epoch, which grows when a ledger is made anew of what was left of it.
    pub epoch: u64,
    /// Index in the log.
    pub index: u64,
    /// Place in one daemon's ring.
    pub local: Option<EventId>,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.epoch, self.index)?;
        match self.local {
            Some(local) => write!(f, ".{local}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Cursor {
    type Err = fabric::events::ParseCursorError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ledger, local) = text.split_once('.').map_or((text, None), |(ledger, local)| (ledger, Some(local)));
        // Both parts are two numbers.
        let EventId { boot: epoch, sequence: index } = ledger.parse()?;
        Ok(Cursor { epoch, index, local: local.map(str::parse).transpose()? })
    }
}

/// What was read and waits to be told, in the order of time; each source keeps its own order.
#[derive(Debug)]
pub struct Merge {
    cursor: Cursor,
    ledger: VecDeque<EventView>,
    local: VecDeque<Event>,
    /// Index of each of `ledger`.
    indexes: VecDeque<u64>,
}

impl Merge {
    /// Nothing waits.
    pub fn new(cursor: Cursor) -> Self {
        Merge { cursor, ledger: VecDeque::new(), local: VecDeque::new(), indexes: VecDeque::new() }
    }

    /// Up to where everything was told.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whether the ledger is to be read, and the ring: what has run dry.
    pub fn dry(&self) -> (bool, bool) {
        (self.ledger.is_empty(), self.local.is_empty())
    }

    /// Adds what was read of the ledger behind the cursor: links up to `read_to`, of which refusals are no events.
    pub fn add_ledger(&mut self, told: Vec<(u64, EventView)>, read_to: u64) {
        if told.is_empty() {
            self.cursor.index = self.cursor.index.max(read_to);
        }
        for (index, view) in told {
            self.indexes.push_back(index);
            self.ledger.push_back(view);
        }
    }

    /// Adds what was read of the ring behind the cursor.
    pub fn add_local(&mut self, events: Vec<Event>) {
        self.local.extend(events);
    }

    /// The next event, with the cursor behind it.
    pub fn pop(&mut self) -> Option<EventView> {
        let of_ledger = match (self.ledger.front(), self.local.front()) {
            (Some(ledger), Some(local)) => ledger.at_ms.cmp(&local.at_ms) != Ordering::Greater,
            (ledger, _) => ledger.is_some(),
        };
        let mut view = if of_ledger {
            self.cursor.index = self.indexes.pop_front()?;
            self.ledger.pop_front()?
        } else {
            let event = self.local.pop_front()?;
            self.cursor.local = Some(event.id);
            EventView {
                cursor: String::new(),
                at_ms: event.at_ms,
                kind: event.kind.to_owned(),
                tenant: None,
                subject: event.subject,
                actor: None,
                message: event.message,
            }
        };
        view.cursor = self.cursor.to_string();
        Some(view)
    }
}

/// The event of a link of the audit; none for a refusal. The cursor is set when it is told.
pub fn told(entry: &AuditEntry, name_of: impl Fn(NodeId) -> String) -> Option<EventView> {
    // That nobody can take a machine is news, other refusals are not.
    let waits = entry.verb == "place" && [codes::CAPACITY, codes::NO_NODE].contains(&entry.result.as_str());
    if entry.result != "ok" && !waits {
        return None;
    }
    let (about, node) = (entry.about.as_str(), name_of(entry.node));
    let (kind, message) = match entry.verb.as_str() {
        "confirm" => ("machine-running", format!("{about} runs on {node}")),
        "place" if waits => ("machine-waiting", format!("{about} waits for a place: none has room now")),
        "place" => ("machine-placed", format!("{about} has a place")),
        "takeover" => ("machine-taken-over", format!("{about} gets a new node: its own does not answer")),
        "ended" => ("machine-ended", format!("the program of {about} has ended on {node}")),
        "failed" => ("machine-failed", format!("{about} failed on {node}")),
        "release" => ("machine-released", format!("{node} gave {about} up")),
        "forget-machine" => ("machine-deleted", format!("{about} is gone from {node}")),
        "move-begin" => ("move-begun", format!("{about} begins to move away from {node}")),
        "move-switch" => ("move-switched", format!("{about} has a new owner, in place of {node}")),
        "move-abort" => ("move-aborted", format!("the move of {about} was given up")),
        "admit-node" => ("node-admitted", format!("node {about} was admitted through {node}")),
        "plan-absence" => ("node-absent", format!("node {about} will be away for a while")),
        "end-absence" => ("node-back", format!("node {about} is back")),
        verb => (verb, format!("{}: {} {about}", entry.subject, verb.replace('-', " "))),
    };
    Some(EventView {
        cursor: String::new(),
        at_ms: entry.at_ms,
        kind: kind.to_owned(),
        tenant: entry.tenant.clone(),
        subject: entry.about.clone(),
        actor: Some(entry.subject.clone()),
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of_ledger(index: u64, at_ms: u64) -> (u64, EventView) {
        let entry = AuditEntry {
            index,
            at_ms,
            node: NodeId([1; 32]),
            subject: "root@n1".into(),
            verb: "create-machine".into(),
            tenant: "default".parse().ok(),
            about: format!("m{index}"),
            result: "ok".into(),
            prev: fabric::ids::Digest::default(),
        };
        (index, told(&entry, |_| "n1".into()).unwrap())
    }

    fn of_ring(sequence: u64, at_ms: u64) -> Event {
        let (subject, message) = (format!("n{sequence}"), String::new());
        Event { id: EventId { boot: 7, sequence }, at_ms, kind: "node-up", subject, message, data: vec![] }
    }

    fn drain(merge: &mut Merge) -> Vec<(String, String)> {
        std::iter::from_fn(|| merge.pop()).map(|view| (view.subject, view.cursor)).collect()
    }

    #[test]
    fn one_stream_tells_both_in_the_order_of_time() {
        let start = Cursor { epoch: 1, index: 0, local: Some(EventId { boot: 7, sequence: 0 }) };
        let mut merge = Merge::new(start);
        merge.add_ledger(vec![of_ledger(4, 10), of_ledger(9, 30)], 12);
        merge.add_local(vec![of_ring(1, 20), of_ring(2, 30)]);
        let told = drain(&mut merge);
        let expected = [("m4", "1-4.7-0"), ("n1", "1-4.7-1"), ("m9", "1-9.7-1"), ("n2", "1-9.7-2")];
        assert_eq!(told, expected.map(|(subject, cursor)| (subject.to_owned(), cursor.to_owned())));
        // Refusals alone: there is nothing to tell, and nothing to read again.
        merge.add_ledger(vec![], 15);
        assert_eq!((merge.pop(), merge.cursor().index), (None, 15));
    }

    #[test]
    fn a_refusal_is_no_event() {
        let (_, view) = of_ledger(1, 1);
        assert_eq!(view.message, "root@n1: create machine m1");
        let mut entry = AuditEntry { result: "denied".into(), ..entry_of() };
        assert_eq!(told(&entry, |_| String::new()), None);
        entry.result = "ok".into();
        entry.verb = "confirm".into();
        let view = told(&entry, |_| "n2".into()).unwrap();
        assert_eq!((view.kind.as_str(), view.message.as_str()), ("machine-running", "web runs on n2"));
    }

    #[test]
    fn a_machine_without_a_place_is_news() {
        let waiting = AuditEntry { result: codes::CAPACITY.into(), ..entry_of() };
        assert_eq!(told(&waiting, |_| String::new()).unwrap().kind, "machine-waiting");
        let late = AuditEntry { result: codes::STALE_EPOCH.into(), ..entry_of() };
        assert_eq!(told(&late, |_| String::new()), None);
    }

    fn entry_of() -> AuditEntry {
        AuditEntry {
            index: 1,
            at_ms: 1,
            node: NodeId([2; 32]),
            subject: "fabric".into(),
            verb: "place".into(),
            tenant: None,
            about: "web".into(),
            result: "ok".into(),
            prev: fabric::ids::Digest::default(),
        }
    }

    proptest! {
        #[test]
        fn cursors_survive_printing(epoch: u64, index: u64, local: Option<(u64, u64)>) {
            let local = local.map(|(boot, sequence)| EventId { boot, sequence });
            let cursor = Cursor { epoch, index, local };
            let text = cursor.to_string();
            prop_assert!(text.len() <= 80);
            prop_assert_eq!(text.parse(), Ok(cursor));
        }

        #[test]
        fn any_text_is_a_cursor_or_refused(text in ".{0,80}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
            }
        }
    }
}
