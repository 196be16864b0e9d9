//! What would break replay is refused, and the caller named.

use crate::runs::start;

#[test]
fn software_that_reaches_past_the_seams_is_stopped_and_named() {
    let leaks = [
        ("wall-clock", "the host's wall or boot clock"),
        ("thread", "a thread"),
        ("socket", "a socket"),
        ("file", "a file"),
    ];
    for (leak, reached_for) in leaks {
        let output = start(&format!("--seed 1 --seconds 20 --software leak-{leak}")).output();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{leak}");
        assert!(said.contains(&format!("simulated software reached for {reached_for}")), "{leak}: {said}");
        assert!(said.contains("leaky"), "{leak}: the caller is not named: {said}");
    }
}

#[test]
fn what_is_out_of_bounds_is_refused_with_the_value() {
    let refusals = [
        ("--seed 1 --nodes 0", "the number of nodes is 0, allowed are 1 to 10000"),
        ("--seed 1 --seconds 5", "the length of the run is 5s"),
        ("--seed 1 --faults gremlins", "\"gremlins\" is no fault; known are all, none, loss"),
        ("--seed x", "invalid value 'x'"),
    ];
    for (arguments, reason) in refusals {
        let output = start(arguments).output();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {said}");
        assert!(said.contains(reason), "{arguments}: {said}");
    }
}
