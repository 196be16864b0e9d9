//! SIGKILL of everything of a node, until the others know and until its machine serves elsewhere.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use smartnode::demo::outside::Outside;
use smartnode_tests::Cluster;
use smartnode_tests::report::{Aim, Row, Statistic};

use crate::Voice;
use crate::moves::{counter, serves_at};
use crate::nodes::{ms_since, until, until_all_say};
use crate::peers::serf::{self, Serf};

const NODES: usize = 10;
const KILLS: usize = 10;
const SERF_KILLS: usize = 5;
const FAILOVERS: usize = 12;

/// Until all nine others hold it for dead.
pub fn confirmed(voice: &Voice) -> Result<Vec<Row>> {
    let aims = [Aim::at_most(Statistic::Median, 2500.0), Aim::at_most_peer(Statistic::Median)];
    let what = "SIGKILL of all of a node to confirmed dead on the nine others";
    let mut row = Row::new("death", what, "ms", &aims);
    let mut cluster = Cluster::of(NODES, "bdead");
    for kill in 0..KILLS {
        let victim = kill % NODES;
        let others: Vec<_> = (0..NODES).filter(|at| *at != victim).collect();
        let begun = Instant::now();
        cluster.kill_host(victim);
        until_all_say(&cluster, &others, victim, "down");
        row.ours.push(ms_since(begun));
        voice.say(&format!("n{} dead everywhere: {:.0} ms", victim + 1, ms_since(begun)));
        cluster.start(victim);
        until_all_say(&cluster, &others, victim, "alive");
    }
    drop(cluster);
    row.peer(serf::NAME, serf_deaths(voice));
    row.note("serf: 10 agents, profile lan, until all nine others list it as failed");
    Ok(vec![row])
}

fn serf_deaths(voice: &Voice) -> Result<Vec<f64>> {
    let mut serf = Serf::of(NODES, "sdead")?;
    let mut samples = Vec::new();
    for kill in 0..SERF_KILLS {
        let victim = 1 + kill;
        let begun = Instant::now();
        serf.kill(victim);
        for at in (0..NODES).filter(|at| *at != victim) {
            serf.until_says(at, victim, "failed")?;
        }
        samples.push(ms_since(begun));
        voice.say(&format!("serf: {:.0} ms", ms_since(begun)));
        serf.agent(victim)?;
        for at in 0..NODES {
            serf.until_says(at, victim, "alive")?;
        }
    }
    Ok(samples)
}

/// Until its machine, not an exclusive one, serves elsewhere, for a client outside.
pub fn failover(voice: &Voice) -> Result<Vec<Row>> {
    let aims = [Aim::at_most(Statistic::P95, 5000.0)];
    let what = "the same kill to the node's machine (not exclusive) serving elsewhere";
    let mut row = Row::new("failover", what, "ms", &aims);
    row.note(
        "no peer: none of Debian's packages starts a container of a dead host elsewhere without shared storage. \
         A client outside asks every 10 ms over HTTP",
    );
    let mut cluster = Cluster::of(3, "bfail");
    let port = counter(&cluster);
    let nodes = cluster.lab.hosts().iter().map(|host| SocketAddr::new(host.address, port));
    let outside = Outside::start(&cluster.lab.switch(), nodes.collect()).context("a client outside")?;
    let mut owner = serves_at(&outside, Instant::now());
    for _ in 0..FAILOVERS {
        let others: Vec<_> = (0..3).filter(|at| *at != owner).collect();
        let killed = Instant::now();
        cluster.kill_host(owner);
        let first = until("it serves elsewhere", || outside.first(killed, |answer| answer.node != owner));
        let took = (first.at - killed).as_secs_f64() * 1e3;
        row.ours.push(took);
        voice.say(&format!("serves elsewhere after {took:.0} ms"));
        cluster.start(owner);
        cluster.wait_ready(owner);
        until_all_say(&cluster, &others, owner, "alive");
        cluster.cli(others[0], &["status", "--wait-tolerance", "1", "--timeout", "60s"]).ok();
        owner = first.node;
    }
    Ok(vec![row])
}
