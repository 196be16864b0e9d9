//! What a benchmark measured, in figures and words: pure. `make bench` prints it, README.md holds the section that the
//! committed results give, and a test holds the two together.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// Begins the section of README.md that is generated.
pub const BEGIN: &str = "<!-- benchmarks: written by `make bench RECORD=1` -->";
/// Ends it.
pub const END: &str = "<!-- end of benchmarks -->";

/// What is taken of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Statistic {
    /// The middle one.
    Median,
    /// 95 of 100 are not above it.
    P95,
    /// 99 of 100 are not above it.
    P99,
    /// The largest.
    Max,
}

/// What it should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// At most the same statistic of the first peer, in the same run.
    AtMostPeer,
    /// At least the same statistic of the first peer, in the same run.
    AtLeastPeer,
}

/// One aim of a row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Aim {
    /// Of what.
    pub statistic: Statistic,
    /// How much.
    pub bound: Bound,
}

impl Aim {
    /// At most this much.
    pub fn at_most(statistic: Statistic, value: f64) -> Self {
        Aim { statistic, bound: Bound::AtMost(value) }
    }

    /// At least this much.
    pub fn at_least(statistic: Statistic, value: f64) -> Self {
        Aim { statistic, bound: Bound::AtLeast(value) }
    }

    /// Not more than the first peer.
    pub fn at_most_peer(statistic: Statistic) -> Self {
        Aim { statistic, bound: Bound::AtMostPeer }
    }

    /// Not less than the first peer.
    pub fn at_least_peer(statistic: Statistic) -> Self {
        Aim { statistic, bound: Bound::AtLeastPeer }
    }
}

/// Another system, measured in the same run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer<T> {
    /// It was measured.
    Measured {
        /// Its name and version.
        name: String,
        /// What it gave.
        got: T,
    },
    /// It could not be.
    Missing {
        /// Its name.
        name: String,
        /// Why, as seen.
        reason: String,
    },
}

/// One row with its raw samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row<T = Vec<f64>> {
    /// Its name.
    pub id: String,
    /// The `ROW=` that measures it; the runner fills it in.
    pub group: String,
    /// Its place among the rows of its group, as they are measured; the runner fills it in.
    #[serde(default)]
    pub place: usize,
    /// What is measured.
    pub what: String,
    /// `ms`, `MiB`, `1/s`, ...
    pub unit: String,
    /// What it should be.
    pub aims: Vec<Aim>,
    /// smartnode's.
    pub ours: T,
    /// The others'. Aims look at the first one that was measured.
    pub peers: Vec<Peer<T>>,
    /// What a reader must know to judge the figures.
    pub notes: Vec<String>,
}

/// Samples in short.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// 95th percentile, nearest rank.
    pub p95: f64,
    /// 99th.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of samples, in any order. All zero when there are none.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let at = (percent * sorted.len()).div_ceil(100).max(1);
            sorted.get(at - 1).copied().unwrap_or(0.0)
        };
        Spread { count: sorted.len(), min: rank(0), median: rank(50), p95: rank(95), p99: rank(99), max: rank(100) }
    }

    /// One figure of it.
    pub fn get(&self, statistic: Statistic) -> f64 {
        match statistic {
            Statistic::Median => self.median,
            Statistic::P95 => self.p95,
            Statistic::P99 => self.p99,
            Statistic::Max => self.max,
        }
    }
}

impl Row {
    /// A row without samples yet.
    pub fn new(id: &str, what: &str, unit: &str, aims: &[Aim]) -> Self {
        let (id, what, unit) = (id.to_owned(), what.to_owned(), unit.to_owned());
        let (group, ours, peers, notes) = (String::new(), Vec::new(), Vec::new(), Vec::new());
        Row { id, group, place: 0, what, unit, aims: aims.to_vec(), ours, peers, notes }
    }

    /// Adds a peer: its samples, or why there are none.
    pub fn peer(&mut self, name: &str, samples: anyhow::Result<Vec<f64>>) {
        let name = name.to_owned();
        self.peers.push(match samples {
            Ok(got) => Peer::Measured { name, got },
            Err(error) => Peer::Missing { name, reason: format!("{error:#}") },
        });
    }

    /// Adds a note.
    pub fn note(&mut self, words: impl Into<String>) {
        self.notes.push(words.into());
    }

    /// Without the raw samples.
    pub fn summary(&self) -> Row<Spread> {
        let peer = |peer: &Peer<Vec<f64>>| match peer {
            Peer::Measured { name, got } => Peer::Measured { name: name.clone(), got: Spread::of(got) },
            Peer::Missing { name, reason } => Peer::Missing { name: name.clone(), reason: reason.clone() },
        };
        Row {
            id: self.id.clone(),
            group: self.group.clone(),
            place: self.place,
            what: self.what.clone(),
            unit: self.unit.clone(),
            aims: self.aims.clone(),
            ours: Spread::of(&self.ours),
            peers: self.peers.iter().map(peer).collect(),
            notes: self.notes.clone(),
        }
    }
}

/// Brings rows into the order in which they are measured: a row that speaks of "the same" comes after what it means.
pub fn sort<T>(rows: &mut [Row<T>], groups: &[&str]) {
    rows.sort_by_key(|row| (groups.iter().position(|group| *group == row.group), row.place));
}

impl Row<Spread> {
    fn first_peer(&self) -> Option<&Spread> {
        self.peers.iter().find_map(|peer| match peer {
            Peer::Measured { got, .. } => Some(got),
            Peer::Missing { .. } => None,
        })
    }

    /// Whether an aim is met. Without a peer, an aim that needs one is not.
    pub fn meets(&self, aim: Aim) -> bool {
        let ours = self.ours.get(aim.statistic);
        let peer = || self.first_peer().map(|peer| peer.get(aim.statistic));
        self.ours.count > 0
            && match aim.bound {
                Bound::AtMost(value) => ours <= value,
                Bound::AtLeast(value) => ours >= value,
                Bound::AtMostPeer => peer().is_some_and(|value| ours <= value),
                Bound::AtLeastPeer => peer().is_some_and(|value| ours >= value),
            }
    }

    /// The aims in words, each with whether it is met.
    pub fn verdict(&self) -> String {
        let words = self.aims.iter().map(|aim| {
            let name = self.peers.first().map_or("a peer", |peer| match peer {
                Peer::Measured { name, .. } | Peer::Missing { name, .. } => name,
            });
            let bound = match aim.bound {
                Bound::AtMost(value) => format!("≤ {}", self.figure(value)),
                Bound::AtLeast(value) => format!("≥ {}", self.figure(value)),
                Bound::AtMostPeer => format!("≤ {name}'s"),
                Bound::AtLeastPeer => format!("≥ {name}'s"),
            };
            let met = if self.meets(*aim) { "met" } else { "**missed**" };
            format!("{} {bound}: {met}", word(aim.statistic))
        });
        words.collect::<Vec<_>>().join("; ")
    }

    fn figure(&self, value: f64) -> String {
        let digits = if value.fract() == 0.0 || value.abs() >= 100.0 { 0 } else { 2 };
        format!("{value:.digits$} {}", self.unit).trim_end().to_owned()
    }

    /// The median, and what else the aims speak of.
    fn figures(&self, spread: &Spread) -> String {
        if spread.count == 1 {
            return self.figure(spread.median);
        }
        let mut shown = vec![Statistic::Median];
        shown.extend(self.aims.iter().map(|aim| aim.statistic));
        if shown.iter().all(|statistic| *statistic == Statistic::Median) {
            shown.push(Statistic::P95);
        }
        let mut words: Vec<String> = Vec::new();
        for statistic in shown {
            let next = format!("{} {}", word(statistic), self.figure(spread.get(statistic)));
            if !words.contains(&next) {
                words.push(next);
            }
        }
        format!("{} (n={})", words.join(", "), spread.count)
    }

    fn cells(&self) -> [String; 5] {
        let peers = self.peers.iter().map(|peer| match peer {
            Peer::Measured { name, got } => format!("{name}: {}", self.figures(got)),
            Peer::Missing { name, reason } => format!("{name}: not measured, {reason}"),
        });
        let peers = peers.collect::<Vec<_>>().join("; ");
        let peers = if peers.is_empty() { "-".to_owned() } else { peers };
        let command = format!("make bench ROW={}", self.group);
        [self.what.clone(), self.figures(&self.ours), self.verdict(), peers, command]
    }
}

fn word(statistic: Statistic) -> &'static str {
    match statistic {
        Statistic::Median => "median",
        Statistic::P95 => "p95",
        Statistic::P99 => "p99",
        Statistic::Max => "max",
    }
}

/// What is committed: the host, and the rows in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// What the figures were measured on.
    pub host: String,
    /// The rows, in the order of the run.
    pub rows: Vec<Row<Spread>>,
}

const HEAD: [&str; 5] = ["what", "smartnode", "aim", "peer, same run", "command"];

/// The table for a terminal: a block a row, since sentences in columns do not fit one.
pub fn text(rows: &[Row<Spread>]) -> String {
    let mut text = String::new();
    for row in rows {
        let [what, ours, aim, peers, command] = row.cells();
        let _ = writeln!(text, "{:<14}{what}", row.id);
        for (name, value) in [("smartnode", ours), ("aim", aim.replace("**", "")), ("peer", peers)] {
            let _ = writeln!(text, "{:14}{name:<10} {value}", "");
        }
        for note in &row.notes {
            let _ = writeln!(text, "{:14}{:<10} {note}", "", "note");
        }
        let _ = writeln!(text, "{:14}{:<10} {command}", "", "command");
    }
    text
}

/// The section of README.md, with its marks.
pub fn section(results: &Results) -> String {
    if results.rows.is_empty() {
        return format!("{BEGIN}\n\nNo run is recorded yet.\n\n{END}\n");
    }
    let mut text = format!("{BEGIN}\n\nMeasured on {}, each row with its peer in one run.\n\n", results.host);
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    text += &line(&HEAD.map(str::to_owned));
    text += &line(&HEAD.map(|_| "---".to_owned()));
    let mut notes = Vec::new();
    for row in &results.rows {
        let mut cells = row.cells().map(|cell| cell.replace('|', "\\|"));
        cells[4] = format!("`{}`", cells[4]);
        for note in &row.notes {
            if !notes.contains(note) {
                notes.push(note.clone());
            }
            let at = notes.iter().position(|known| known == note).unwrap_or_default() + 1;
            let _ = write!(cells[0], " [{at}]");
        }
        text += &line(&cells);
    }
    if !notes.is_empty() {
        text.push('\n');
    }
    for (at, note) in notes.iter().enumerate() {
        let _ = writeln!(text, "{}. {note}", at + 1);
    }
    let _ = writeln!(text, "\n{END}");
    text
}

/// A page with its section replaced; none when the page has no marks.
pub fn replaced(page: &str, results: &Results) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{}{}", section(results), after.strip_prefix('\n').unwrap_or(after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let aims = [Aim::at_most(Statistic::Median, 40.0), Aim::at_most_peer(Statistic::P95)];
        let mut row = Row::new("join", "join a node", "ms", &aims);
        row.group = "join".into();
        row.ours = vec![30.0, 10.0, 20.0, 50.0];
        row.peer("LXD", Ok(vec![45.0]));
        row
    }

    #[test]
    fn statistics_are_by_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let spread = Spread::of(&hundred);
        assert_eq!((spread.min, spread.median, spread.p95), (1.0, 50.0, 95.0));
        assert_eq!((spread.p99, spread.max, spread.count), (99.0, 100.0, 100));
        let one = Spread::of(&[7.0]);
        assert_eq!((one.min, one.median, one.p99, one.max), (7.0, 7.0, 7.0, 7.0));
        assert_eq!(Spread::of(&[]).median, 0.0);
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]).median, 2.0);
    }

    #[test]
    fn aims_look_at_their_statistic_and_at_the_peer() {
        let summary = row().summary();
        assert!(summary.meets(summary.aims[0]), "the median is 20");
        assert!(!summary.meets(summary.aims[1]), "p95 is 50, the peer's 45");
        assert_eq!(summary.verdict(), "median ≤ 40 ms: met; p95 ≤ LXD's: **missed**");
        let mut alone = row();
        alone.peers.clear();
        alone.peer("LXD", Err(anyhow::anyhow!("lxd: not found")));
        let alone = alone.summary();
        assert!(!alone.meets(alone.aims[1]), "without a peer nothing is proven");
        let mut none = row();
        none.ours.clear();
        assert!(!none.summary().meets(Aim::at_most(Statistic::Max, 1.0)), "no samples prove nothing");
        let more = Aim::at_least(Statistic::Median, 20.0);
        assert!(summary.meets(more) && !summary.meets(Aim::at_least_peer(Statistic::Median)));
    }

    #[test]
    fn the_table_names_value_aim_peer_and_command() {
        let mut measured = row();
        measured.note("typed to schedulable");
        let text = text(&[measured.summary()]);
        let words = ["median 20 ms", "p95 50 ms", "(n=4)", "missed", "LXD: 45 ms", "typed to", "make bench ROW=join"];
        for word in words {
            assert!(text.contains(word), "no {word:?} in {text}");
        }
    }

    #[test]
    fn rows_come_as_they_are_measured() {
        let of = |group: &str, place: usize, id: &str| Row { group: group.into(), place, ..Row::new(id, "", "", &[]) };
        let mut rows = [
            of("idle", 1, "idle-cpu"),
            of("idle", 0, "idle-memory"),
            of("writes", 1, "writes-16"),
            of("writes", 3, "writes-256"),
            of("writes", 2, "writes-64"),
            of("writes", 0, "writes-1"),
        ];
        sort(&mut rows, &["join", "writes", "idle"]);
        let ids = rows.each_ref().map(|row| row.id.as_str());
        assert_eq!(ids, ["writes-1", "writes-16", "writes-64", "writes-256", "idle-memory", "idle-cpu"]);
    }

    #[test]
    fn the_section_is_replaced_whole_and_stays_so() {
        let mut noted = row();
        noted.note("one | two");
        let results = Results { host: "a host".into(), rows: vec![noted.summary()] };
        let page = format!("before\n\n{BEGIN}\nold\n{END}\nafter\n");
        let once = replaced(&page, &results).unwrap();
        assert!(once.starts_with("before\n\n") && once.ends_with("\nafter\n") && !once.contains("old"), "{once}");
        assert!(once.contains("| join a node [1] | median 20 ms") && once.contains("1. one | two"), "{once}");
        assert_eq!(replaced(&once, &results).unwrap(), once);
        assert_eq!(replaced("no marks", &results), None);
        let json = serde_json::to_string(&results).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&json).unwrap(), results);
    }
}
