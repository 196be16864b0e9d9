//! The same seed gives the same run, byte for byte, in two processes; another seed gives another.

use crate::runs::start;

/// Runs each seed twice, the two beside each other, and returns the results.
fn twice(arguments: &str, seeds: std::ops::Range<u64>) -> Vec<String> {
    let one = |seed| {
        let arguments = format!("--seed {seed} {arguments}");
        let (first, second) = (start(&arguments), start(&arguments));
        let (first, second) = (first.success(), second.success());
        assert_eq!(first, second, "{arguments} differs from itself");
        first
    };
    let mut results: Vec<String> = seeds.map(one).collect();
    let all = results.len();
    results.dedup_by_key(|line| line.split("trace=").nth(1).map(|rest| rest[..64].to_owned()));
    assert_eq!(results.len(), all, "two seeds gave one trace");
    results
}

#[test]
fn pings_replay_under_the_usual_faults() {
    twice("--software ping --seconds 30 --nodes 3 --faults usual", 1..5);
}

#[test]
fn the_transport_replays_under_every_fault() {
    twice("--software calls --seconds 40 --nodes 3", 1..3);
}

#[test]
fn the_ledger_replays_under_every_fault() {
    twice("--software ledger --seconds 25 --nodes 3", 1..2);
}

#[test]
fn whole_nodes_replay_under_every_fault() {
    twice("--software node --seconds 40 --nodes 3", 1..4);
}

#[test]
fn traces_are_equal_line_for_line_and_logging_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let trace = |name: &str, more: &str| {
        let path = directory.path().join(name);
        start(&format!("--seed 7 --software ping --seconds 25 --trace {} {more}", path.display())).success();
        #[expect(clippy::disallowed_methods, reason = "a file of the test")]
        std::fs::read(path).unwrap()
    };
    let first = trace("first", "");
    assert!(first.len() > 10_000);
    assert!(first == trace("second", "--log trace"), "the two traces differ");
}
