//! From typing `smartnode join` to a node that takes machines.

use std::time::Instant;

use anyhow::Result;
use smartnode_tests::Cluster;
use smartnode_tests::report::{Aim, Row, Statistic};

use crate::Voice;
use crate::nodes::{is_schedulable, ms_since, until};
use crate::peers::lxd::{self, Lxd};
use crate::peers::serf::{self, Serf};

/// Fabrics that grow to ten nodes, one by one.
const FABRICS: usize = 2;
const NODES: usize = 10;
/// LXD clusters of two.
const LXD_ROUNDS: usize = 5;
/// Times that ten nodes join at once.
const ROUNDS: usize = 3;

/// One node after the other.
pub fn one(voice: &Voice) -> Result<Vec<Row>> {
    let aims = [Aim::at_most_peer(Statistic::Median), Aim::at_most(Statistic::P95, 1000.0)];
    let mut row = Row::new("join", "join: typed to schedulable in the ledger and ready", "ms", &aims);
    row.note(
        "smartnode: the 2nd to the 10th node of a fabric, with the start of its daemon. LXD: the 2nd member, \
         `lxd init --preseed` to ONLINE, on a daemon that runs already",
    );
    for fabric in 0..FABRICS {
        let mut cluster = Cluster::hosts(NODES, &format!("bj{fabric}"));
        cluster.init();
        let token = cluster.token(NODES as u32 - 1);
        for at in 1..NODES {
            let begun = Instant::now();
            cluster.join(at, &token);
            until(&format!("n{} is schedulable", at + 1), || is_schedulable(&cluster, 0, at).then_some(()));
            row.ours.push(ms_since(begun));
        }
        voice.say(&format!("joins: {:.0?} ms", &row.ours[fabric * (NODES - 1)..]));
    }
    let peer = (0..LXD_ROUNDS).map(|round| {
        let mut lxd = Lxd::start(2, &format!("lx{round}"))?;
        let took = lxd.join(1)?;
        voice.say(&format!("LXD: {took:.0} ms"));
        Ok(took)
    });
    row.peer(lxd::NAME, peer.collect());
    Ok(vec![row])
}

/// Ten at once.
pub fn ten(voice: &Voice) -> Result<Vec<Row>> {
    let aims = [Aim::at_most(Statistic::Max, 10_000.0)];
    let mut row = Row::new("join-ten", "ten nodes join at once: typed to all schedulable and ready", "ms", &aims);
    row.note("serf keeps a list of members only: no identity, no consensus");
    for round in 0..ROUNDS {
        let mut cluster = Cluster::hosts(NODES + 1, &format!("bt{round}"));
        cluster.init();
        let token = cluster.token(NODES as u32);
        let begun = Instant::now();
        for at in 1..=NODES {
            cluster.join(at, &token);
        }
        for at in 1..=NODES {
            until(&format!("n{} is schedulable", at + 1), || is_schedulable(&cluster, 0, at).then_some(()));
        }
        row.ours.push(ms_since(begun));
        voice.say(&format!("ten at once: {:.0} ms", ms_since(begun)));
    }
    let peer = (0..ROUNDS).map(|round| {
        let mut serf = Serf::hosts(NODES + 1, &format!("st{round}"))?;
        serf.agent(0)?;
        serf.until_count(0, 1)?;
        let begun = Instant::now();
        for at in 1..=NODES {
            serf.agent(at)?;
        }
        for at in 0..=NODES {
            serf.until_count(at, NODES + 1)?;
        }
        voice.say(&format!("serf: {:.0} ms", ms_since(begun)));
        Ok(ms_since(begun))
    });
    row.peer(serf::NAME, peer.collect());
    Ok(vec![row])
}
