//! Short swarms: seeds that must be clean, and what a swarm says of seeds that are not.

use crate::runs::command;

#[test]
fn pings_survive_a_swarm() {
    // Bare QUIC takes minutes to give up a connection of a crowded link; the fabric's own links do not wait so long.
    command("swarm --software ping --seconds 30 --nodes 4 --faults usual --from 100 --seeds 12").success();
}

#[test]
fn the_transport_survives_a_swarm() {
    command("swarm --software calls --seconds 40 --nodes 4 --from 100 --seeds 6").success();
}

#[test]
fn the_ledger_survives_a_swarm() {
    command("swarm --software ledger --seconds 40 --nodes 3 --from 100 --seeds 4").success();
}

#[test]
fn whole_nodes_survive_a_swarm() {
    command("swarm --software node --seconds 45 --nodes 3 --from 100 --seeds 6").success();
}

/// Those of `FOUND.md`. Later code makes other runs of them, but their shape (five nodes, a minute) is what found most.
#[test]
fn seeds_that_failed_stay_clean() {
    for seed in [4, 47, 2150] {
        command(&format!("swarm --seconds 60 --nodes 5 --from {seed} --seeds 1")).success();
    }
}

#[test]
fn failures_are_listed_with_what_replays_them() {
    let arguments = "swarm --software fragile --seconds 30 --faults daemon --from 3 --seeds 4 --jobs 2";
    let (code, out, said) = command(arguments).told();
    assert_eq!(code, Some(1), "{said}");
    assert!(out.contains("seeds 3 to 6: 0 clean, 4 failed"), "{out}");
    let replay = out.lines().find_map(|line| line.trim().strip_prefix("replay: smartnode-sim ")).unwrap();
    assert_eq!(replay, "replay 3 --seconds 30 --nodes 3 --faults daemon --software fragile");
    let (code, story, _) = command(replay).told();
    assert_eq!(code, Some(1));
    assert!(story.contains("VIOLATION"), "{story}");
}

#[test]
fn a_run_that_dies_is_a_failure_and_says_of_what() {
    let (code, out, _) = command("swarm --software leak-file --seconds 20 --seeds 1 --output json").told();
    assert_eq!(code, Some(1), "{out}");
    let summary: serde_json::Value = serde_json::from_str(&out).unwrap();
    let violation = summary["failures"][0]["violations"][0].as_str().unwrap();
    assert!(violation.starts_with("died: signal: 6"), "{violation}");
    assert!(violation.contains("simulated software reached for a file of the host"), "{violation}");
}

#[test]
fn a_run_that_does_not_end_is_a_failure() {
    let (code, out, _) = command("swarm --seconds 3600 --seeds 1 --wall 1").told();
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("not done: 1 s of real time were not enough"), "{out}");
}
