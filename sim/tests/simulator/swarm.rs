//! A short swarm: seeds that must be clean, as many at once as there are processors.

use std::thread::available_parallelism;

use crate::runs::start;

/// Runs these seeds and demands that each is clean.
fn swarm(arguments: &str, seeds: std::ops::Range<u64>) {
    let at_once = available_parallelism().map_or(1, usize::from);
    let seeds: Vec<u64> = seeds.collect();
    for some in seeds.chunks(at_once) {
        let runs: Vec<_> = some.iter().map(|seed| start(&format!("--seed {seed} {arguments}"))).collect();
        runs.into_iter().for_each(|run| drop(run.success()));
    }
}

#[test]
fn pings_survive_a_swarm() {
    swarm("--software ping --seconds 30 --nodes 4", 100..112);
}

#[test]
fn the_transport_survives_a_swarm() {
    swarm("--software calls --seconds 40 --nodes 4", 100..106);
}

#[test]
fn the_ledger_survives_a_swarm() {
    swarm("--software ledger --seconds 40 --nodes 3", 100..104);
}

#[test]
fn whole_nodes_survive_a_swarm() {
    swarm("--software node --seconds 45 --nodes 3", 100..106);
}
