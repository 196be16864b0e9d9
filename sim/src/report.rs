//! What came of a run: what its process tells a person in one line, and a swarm in JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Names of what is counted.
pub fn tally<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.map(|(what, count)| (what.to_owned(), count)).into()
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The run.
    pub seed: u64,
    /// Digest of every packet and event.
    pub digest: String,
    /// Records in the trace.
    pub records: u64,
    /// Packets sent.
    pub packets: u64,
    /// Actions that the plan of faults drew, those that were skipped included.
    pub actions: u64,
    /// How often each thing happened.
    pub tally: BTreeMap<String, u64>,
    /// What did not hold, first one first.
    pub violations: Vec<String>,
}

impl Report {
    /// Whether everything held.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// With these counts as well.
    pub fn with(mut self, counts: BTreeMap<String, u64>) -> Self {
        self.tally.extend(counts);
        self
    }

    /// The result, in one line.
    pub fn line(&self) -> String {
        let result = if self.is_clean() { "ok" } else { "FAILED" };
        let tally: String = self.tally.iter().map(|(what, count)| format!(" {what}={count}")).collect();
        let Report { seed, digest, records, packets, .. } = self;
        format!("seed {seed} {result} trace={digest} records={records} packets={packets}{tally}")
    }
}

/// Whether it was an invariant that saw what went wrong, and not a panic, an assertion or a time-out.
pub fn is_of_invariant(violation: &str) -> bool {
    let number = kind(violation).strip_prefix('I').unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Of what kind a violation is: the invariant's name, or the first words of what went wrong. A smaller run fails the same
/// way when its first violation is of the same kind.
pub fn kind(violation: &str) -> &str {
    let is_host = |word: &str| word.strip_prefix('h').is_some_and(|rest| rest.parse::<u64>().is_ok());
    let said = match violation.split_once(": ") {
        Some((host, rest)) if is_host(host) => rest,
        _ => violation,
    };
    said.split_once(':').map_or(said, |(kind, _)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_is_of_its_invariant_whoever_saw_it() {
        assert_eq!(kind("I9: h2 has no ledger (at 5 ms)"), "I9");
        assert_eq!(kind("h3: I10: at index 4 applied"), "I10");
        assert_eq!(kind("h1: panic: at src/a.rs"), "panic");
        assert_eq!(kind("its disk lost"), "its disk lost");
        assert!(is_of_invariant("h3: I10: at index 4 applied"));
        assert!(!is_of_invariant("h1: panic: at src/a.rs") && !is_of_invariant("I: nothing"));
    }

    #[test]
    fn a_report_survives_its_way_to_the_swarm() {
        let report = Report {
            seed: 7,
            digest: "ab".to_owned(),
            records: 2,
            packets: 1,
            actions: 3,
            tally: BTreeMap::from([("crashes".to_owned(), 2)]),
            violations: vec!["I1: two".to_owned()],
        };
        let sent = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&sent).unwrap(), report);
        assert_eq!(report.line(), "seed 7 FAILED trace=ab records=2 packets=1 crashes=2");
    }
}
