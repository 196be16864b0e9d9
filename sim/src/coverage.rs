//! Coverage of situations: what a long swarm must have reached at least once, or it has shown less than it seems to.
//!
//! Some situations the world counts itself; others only the product knows of, and says so in its log: [`Heard`] counts
//! these lines. A run without logs on standard error has no other subscriber, and only the product's own lines at `info` and
//! above are ever looked at.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// A line of the product's log, and the situation that it tells of.
const LINES: [(&str, &str); 10] = [
    ("a layer did not arrive", "layer-lost"),
    ("a move of before the restart is decided", "move-resumed"),
    ("a reservation that no move holds is given back", "reservation-given-back"),
    ("asking for the verdict of a move", "verdict-asked"),
    ("cut off: it was removed from the cluster", "removed"),
    ("made a snapshot of the ledger", "snapshot-made"),
    ("took over a snapshot of the ledger", "snapshot-installed"),
    ("removed the layer of a move that did not come about", "layer-swept"),
    ("taken over from a dead node", "taken-over"),
    ("the ledger's members change", "members-change"),
];

/// Situations that a long swarm of whole nodes under all faults must reach.
pub const SITUATIONS: [&str; 54] = [
    "crashes",
    "cut-off-in-switch",
    "cuts",
    "daemons",
    "destination-ends-in-final-delta",
    "destination-ends-in-starting-there",
    "destination-ends-in-switch",
    "destination-ends-in-sync",
    "exits",
    "failed-starts",
    "failed-syncs",
    "failed-writes",
    "fenced",
    "frozen",
    "full-disks",
    "garbage",
    "hangs",
    "islands",
    "lapses",
    "fades",
    "layer-lost",
    "layer-swept",
    "left",
    "lost-disks",
    "machine-deaths",
    "members-change",
    "move-resumed",
    "moved",
    "one-way",
    "partitions",
    "pauses",
    "quota-refused",
    "reinstalled",
    "reservation-given-back",
    "rot-refused",
    "rotted",
    "snapshot-installed",
    "snapshot-made",
    "source-ends-in-final-delta",
    "source-ends-in-reserve",
    "source-ends-in-starting-there",
    "source-ends-in-switch",
    "source-ends-in-sync",
    "repeated",
    "stale-view",
    "stopped",
    "stops",
    "taken-over",
    "takeovers",
    "thawed",
    "torn",
    "used-token-refused",
    "voter-replaced",
    "worker",
];

/// The situations that a swarm with this tally has not reached.
pub fn missing(tally: &BTreeMap<String, u64>) -> Vec<&'static str> {
    let reached = |what: &&str| tally.get(*what).is_some_and(|count| *count > 0);
    SITUATIONS.into_iter().filter(|what| !reached(what)).collect()
}

/// Counts the lines that tell of situations. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<BTreeMap<String, u64>>>);

impl Heard {
    /// What was heard how often.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn line(&self, said: &str) {
        if let Some((_, situation)) = LINES.iter().find(|(line, _)| *line == said) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((*situation).to_owned()).or_default() += 1;
        }
    }
}

/// The message of an event.
struct Message<'a>(&'a Heard);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.line(&format!("{value:?}"));
        }
    }
}

/// Whether a place in the code may say what is listened for.
fn is_of_interest(metadata: &Metadata<'_>) -> bool {
    let ours = ["smartnode", "raft_store", "fabric"].iter().any(|name| metadata.target().starts_with(name));
    ours && *metadata.level() <= Level::INFO
}

impl<S: Subscriber> Layer<S> for Heard {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match is_of_interest(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if is_of_interest(event.metadata()) {
            event.record(&mut Message(self));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn a_line_that_tells_of_a_situation_is_counted() {
        let heard = Heard::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(heard.clone()), || {
            tracing::info!(target: "smartnode::moving", machine = 1, "taken over from a dead node");
            tracing::info!(target: "openraft", "taken over from a dead node");
            tracing::info!(target: "smartnode::moving", "something else");
        });
        assert_eq!(heard.counts(), BTreeMap::from([("taken-over".to_owned(), 1)]));
    }

    #[test]
    fn what_was_not_reached_is_named() {
        let mut tally: BTreeMap<_, _> = SITUATIONS.map(|what| (what.to_owned(), 1)).into();
        assert!(missing(&tally).is_empty());
        tally.insert("torn".to_owned(), 0);
        tally.remove("moved");
        assert_eq!(missing(&tally), ["moved", "torn"]);
    }
}
