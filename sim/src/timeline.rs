//! The story of a run for a reader: events in order, those that a filter lets through, as text or as JSON lines.
//!
//! A filter by node keeps what happened there and what others did to it; one by machine follows a machine by name and id,
//! which the event of its creation ties together. Violations always show. Packets show only when they are asked for: there
//! are thousands a second.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use crate::actor::HostId;
use crate::limits::NAMES_MAX;
use crate::trace::{Record, Sink};

/// Shortest begin of an id that is taken for the whole.
const PREFIX_MIN: usize = 8;

/// What a reader wants to see.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only what concerns this node.
    pub node: Option<HostId>,
    /// Only what concerns this machine: its name, or the begin of its id.
    pub machine: Option<String>,
    /// Packets too.
    pub packets: bool,
    /// JSON lines instead of text.
    pub json: bool,
}

/// What was found, for whoever waits for the end of the run.
#[derive(Debug, Default)]
struct Found {
    /// Whether the machine was mentioned.
    machine: bool,
    /// Machines that were made.
    names: BTreeSet<String>,
}

/// What became of the search for a machine. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Findings(Arc<Mutex<Found>>);

impl Findings {
    /// Whether the machine of the filter was mentioned at all.
    pub fn machine(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).machine
    }

    /// The machines that were made, the first of them.
    pub fn names(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).names.iter().cloned().collect()
    }
}

/// Writes a run's story.
#[derive(Debug)]
pub struct Timeline<W> {
    out: W,
    filter: Filter,
    /// By what the machine is known.
    aliases: Vec<String>,
    findings: Findings,
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|word| !word.is_empty())
}

fn same(word: &str, alias: &str) -> bool {
    let is_id = |text: &str| text.len() >= PREFIX_MIN && text.bytes().all(|b| b.is_ascii_hexdigit());
    word == alias || (is_id(word) && is_id(alias) && (word.starts_with(alias) || alias.starts_with(word)))
}

impl<W: Write> Timeline<W> {
    /// A story of what `filter` lets through, written to `out`; and what becomes of the search for its machine.
    pub fn new(out: W, filter: Filter) -> (Self, Findings) {
        let findings = Findings::default();
        let aliases = filter.machine.iter().cloned().collect();
        (Timeline { out, filter, aliases, findings: findings.clone() }, findings)
    }

    /// Remembers which machine an event made: `create-machine TENANT/NAME as ID`.
    fn learn(&mut self, what: &str) {
        let mut parts = what.split(' ').skip_while(|part| *part != "create-machine").skip(1);
        let (Some(about), Some("as"), Some(id)) = (parts.next(), parts.next(), parts.next()) else { return };
        let name = about.rsplit('/').next().unwrap_or(about);
        let id = id.trim_end_matches(':');
        let both = [name, id];
        if both.iter().any(|word| self.aliases.iter().any(|alias| same(word, alias))) {
            self.aliases.extend(both.map(str::to_owned));
            self.aliases.dedup();
        }
        let mut found = self.findings.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.names.len() < NAMES_MAX {
            found.names.insert(name.to_owned());
        }
    }

    fn wants(&self, host: HostId, what: &str) -> bool {
        let node = self.filter.node.is_none_or(|node| {
            let name = node.to_string();
            host == node || words(what).any(|word| word == name)
        });
        let mentions = || words(what).any(|word| self.aliases.iter().any(|alias| same(word, alias)));
        node && (self.filter.machine.is_none() || mentions())
    }

    fn show(&mut self, at_us: u64, place: &str, kind: &str, what: &str) -> io::Result<()> {
        if self.filter.json {
            let line = json!({ "at_us": at_us, "place": place, "kind": kind, "what": what });
            return writeln!(self.out, "{line}");
        }
        let (seconds, millis) = (at_us / 1_000_000, at_us / 1_000 % 1_000);
        let mark = if kind == "violation" { "VIOLATION " } else { "" };
        writeln!(self.out, "{seconds:>5}.{millis:03} {place:<6} {mark}{what}")
    }
}

impl<W: Write + Send> Sink for Timeline<W> {
    fn take(&mut self, at_us: u64, record: &Record<'_>) -> io::Result<()> {
        match record {
            Record::Packet { from, to, fate, bytes } => {
                let ours = self.filter.node.is_none_or(|node| node == *from || node == *to);
                if !self.filter.packets || !ours {
                    return Ok(());
                }
                let what = format!("{} bytes to {to}: {fate:?}", bytes.len());
                self.show(at_us, &from.to_string(), "packet", &what)
            }
            Record::Event(host, what) => {
                self.learn(what);
                if !self.wants(*host, what) {
                    return Ok(());
                }
                self.findings.0.lock().unwrap_or_else(PoisonError::into_inner).machine = true;
                let place = if host.0 == 0 { "world".to_owned() } else { host.to_string() };
                self.show(at_us, &place, "event", what)
            }
            Record::Script { line, facts, .. } => self.show(at_us, "world", "script", &format!("{line} ({facts})")),
            Record::Violation(what) => self.show(at_us, "world", "violation", what),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Fate;

    const ID: &str = "00112233445566778899aabbccddeeff";

    fn told(filter: Filter) -> (String, Findings) {
        let mut out = Vec::new();
        let (mut timeline, findings) = Timeline::new(&mut out, filter);
        let fate = Fate::Lost;
        timeline.take(900, &Record::Packet { from: HostId(1), to: HostId(2), fate, bytes: b"abc" }).unwrap();
        let made = format!("operator create-machine default/web as {ID}: Ok(7)");
        for (at_us, host, what) in [
            (1_000_000, 1, made.as_str()),
            (1_200_000, 0, "Pause(h2, 400)"),
            (1_500_000, 2, "machine 0011223344 runs in epoch 1"),
            (1_600_000, 12, "boots for the 1. time"),
        ] {
            timeline.take(at_us, &Record::Event(HostId(host), what)).unwrap();
        }
        timeline.take(2_000_000, &Record::Violation("I1: two")).unwrap();
        (String::from_utf8(out).unwrap(), findings)
    }

    #[test]
    fn a_machine_is_followed_by_name_through_its_id() {
        let (text, findings) = told(Filter { machine: Some("web".to_owned()), ..Filter::default() });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[1], "    1.500 h2     machine 0011223344 runs in epoch 1");
        assert_eq!(lines[2], "    2.000 world  VIOLATION I1: two");
        assert!(findings.machine());
        let (text, findings) = told(Filter { machine: Some("db".to_owned()), ..Filter::default() });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!findings.machine());
        assert_eq!(findings.names(), ["web"]);
    }

    #[test]
    fn a_node_shows_what_it_did_and_what_was_done_to_it() {
        let (text, _) = told(Filter { node: Some(HostId(2)), packets: true, ..Filter::default() });
        let places: Vec<&str> = text.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
        assert_eq!(places, ["h1", "world", "h2", "world"], "{text}");
        let (text, _) = told(Filter { node: Some(HostId(1)), ..Filter::default() });
        assert_eq!(text.lines().count(), 2, "h12 is another: {text}");
    }

    #[test]
    fn json_lines_are_json() {
        let (text, _) = told(Filter { json: true, ..Filter::default() });
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["kind"], "violation");
        assert_eq!(last["at_us"], 2_000_000);
    }
}
