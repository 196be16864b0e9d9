//! What would break replay is refused, and the caller named.

use crate::runs::{command, start};

#[test]
fn software_that_reaches_past_the_seams_is_stopped_and_named() {
    let leaks = [
        ("wall-clock", "the host's wall or boot clock"),
        ("thread", "a thread"),
        ("process", "a process"),
        ("fork", "a process"),
        ("socket", "a socket"),
        ("name", "the host's name service"),
        ("file", "a file"),
        ("metadata", "a file"),
        ("rename", "a file"),
        ("removal", "a file"),
        ("directory", "a directory"),
        ("listing", "a directory"),
    ];
    for (leak, reached_for) in leaks {
        let output = start(&format!("--seed 1 --seconds 20 --software leak-{leak}")).output();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{leak}");
        assert!(said.contains(&format!("simulated software reached for {reached_for}")), "{leak}: {said}");
        assert!(said.contains("leaks"), "{leak}: the caller is not named: {said}");
    }
}

#[test]
fn the_most_talkative_logs_pass_the_guards() {
    let (code, _, said) = start("--seed 1 --seconds 20 --software ledger --log debug").told();
    assert_eq!(code, Some(0), "{}", said.lines().last().unwrap_or_default());
    assert!(said.contains("openraft"), "the ledger's own logs are missing");
}

#[test]
fn a_trace_that_finds_no_room_ends_the_run_and_keeps_its_seed() {
    let (code, _, said) = start("--seed 31 --seconds 40 --software ping --trace /dev/full").told();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the trace of seed 31 could not be written: No space left"), "{said}");
    assert!(said.contains("smartnode-sim run --seed 31 --seconds 40 --nodes 3"), "{said}");
}

#[test]
fn orders_that_make_no_sense_are_refused_with_the_value() {
    let refusals = [
        ("swarm --seeds 0", "--seeds is 0, allowed are 1 to"),
        ("swarm --seeds 1 --jobs 0", "--jobs is 0, allowed are 1 to 256"),
        ("swarm --seeds 2 --from 18446744073709551615", "the last seed does not fit"),
        ("replay 1 --node 4", "there is no node 4: this run has nodes 1 to 3"),
        ("replay x", "invalid value 'x'"),
        ("replay 1 --skip 3-x", "\"3-x\" is no list of actions"),
        ("replay 1 --nodes 10001", "the number of nodes is 10001, allowed are 1 to 10000"),
        ("swarm --seeds 1 --nodes 18446744073709551615", "the number of nodes is 18446744073709551615"),
        ("swarm --seeds 1 --seconds 86401", "the length of the run is 86401s, allowed are 18s to 86400s"),
        ("shrink 1 --nodes 0", "the number of nodes is 0"),
        ("shrink 1 --runs 0", "--runs is 0"),
        ("shrink 1 --software ping --seconds 20", "seed 1 does not fail"),
    ];
    for (arguments, reason) in refusals {
        let (code, _, said) = command(arguments).told();
        assert_eq!(code, Some(2), "{arguments}: {said}");
        assert!(said.contains(reason), "{arguments}: {said}");
    }
}

#[test]
fn what_is_out_of_bounds_is_refused_with_the_value() {
    let refusals = [
        ("--seed 1 --nodes 0", "the number of nodes is 0, allowed are 1 to 10000"),
        ("--software ledger --seed 1 --nodes 18446744073709551615", "the number of nodes is 18446744073709551615"),
        ("--seed 1 --seconds 5", "the length of the run is 5s"),
        ("--seed 1 --seconds 18446744073709551615", "the length of the run is 18446744073709551615s"),
        ("--seed 1 --faults gremlins", "\"gremlins\" is no fault; known are all, usual, none, loss"),
        ("--seed x", "invalid value 'x'"),
    ];
    for (arguments, reason) in refusals {
        let output = start(arguments).output();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {said}");
        assert!(said.contains(reason), "{arguments}: {said}");
    }
}
