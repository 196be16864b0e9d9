//! A cold move, from the last answer at the source to the first at the destination.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use smartnode::demo::outside::Outside;
use smartnode_tests::machines::{IMAGE, owner};
use smartnode_tests::report::{Aim, Row, Statistic};
use smartnode_tests::{Cluster, smartnode};

use crate::Voice;
use crate::nodes::{ms_since, until, until_image_everywhere};
use crate::peers::lxd::{self, Lxd};

/// The counter's port.
const PORT: u16 = 8080;
const MOVES: usize = 20;
const LARGE_MOVES: usize = 8;
const LXD_MOVES: usize = 5;
/// Of the larger layer.
const LAYER_MIB: usize = 64;

/// Makes a machine that counts requests on its disk and serves them over HTTP; gives its port.
pub fn counter(cluster: &Cluster) -> u16 {
    let program = smartnode().display().to_string();
    cluster.cli(0, &["image", "from-host", IMAGE, &program, "/bin/sh", "/bin/dd"]).ok();
    until_image_everywhere(cluster);
    let (port, publish) = (PORT.to_string(), format!("{PORT}:{PORT}"));
    let head = ["machine", "create", "counter", "--image", IMAGE, "--publish", &publish, "--wait"];
    let command = [program.as_str(), "counter-server", "--port", &port, "--file", "/data/count"];
    cluster.cli(0, &[&head[..], &["--"], &command].concat()).ok();
    PORT
}

/// Waits until a client outside gets an answer, and gives the node that gave it.
pub fn serves_at(outside: &Outside, since: Instant) -> usize {
    until("the machine serves", || outside.first(since, |_| true)).node
}

/// A machine with next to nothing on its disk.
pub fn small(voice: &Voice) -> Result<Vec<Row>> {
    let aims = [Aim::at_most(Statistic::Median, 500.0), Aim::at_most_peer(Statistic::Median)];
    let what = "cold move of a small machine: last answer at the source to the first at the destination";
    measure(voice, Row::new("move", what, "ms", &aims), MOVES, 0)
}

/// A machine with a layer of 64 MiB.
pub fn large(voice: &Voice) -> Result<Vec<Row>> {
    let aims = [Aim::at_most(Statistic::Median, 2000.0), Aim::at_most_peer(Statistic::Median)];
    let what = "the same with 64 MiB in its writable layer";
    measure(voice, Row::new("move-64", what, "ms", &aims), LARGE_MOVES, LAYER_MIB)
}

fn measure(voice: &Voice, mut row: Row, moves: usize, layer_mib: usize) -> Result<Vec<Row>> {
    let mut whole = row.clone();
    whole.id += "-command";
    whole.what = format!("the whole `machine move --wait` of that ({layer_mib} MiB)");
    whole.aims.clear();
    ours(voice, &mut row, &mut whole, moves, layer_mib)?;
    let peer = lxd_moves(voice, layer_mib).map_err(|error| format!("{error:#}"));
    for row in [&mut row, &mut whole] {
        row.peer(lxd::NAME, peer.clone().map_err(anyhow::Error::msg));
    }
    row.note("LXD: `lxc stop --force`, `move --target`, `start` and an `exec` that answers, unprivileged, pool `dir`");
    Ok(vec![row, whole])
}

fn ours(voice: &Voice, row: &mut Row, whole: &mut Row, moves: usize, layer_mib: usize) -> Result<()> {
    let cluster = Cluster::of(3, &format!("bm{layer_mib}"));
    let port = counter(&cluster);
    let nodes = cluster.lab.hosts().iter().map(|host| SocketAddr::new(host.address, port));
    let outside = Outside::start(&cluster.lab.switch(), nodes.collect()).context("a client outside")?;
    if layer_mib > 0 {
        let count = format!("count={layer_mib}");
        cluster.exec(0, "counter", &["/bin/dd", "if=/dev/urandom", "of=/data/blob", "bs=1048576", &count]).ok();
    }
    let made = cluster.inspect(0, "counter").context("the machine is there")?;
    let mut from = owner(&made).context("it has an owner")?;
    for _ in 0..moves {
        let to = (from + 1) % 3;
        until("it serves where it is", || outside.last(Instant::now(), |answer| answer.node == from));
        let begun = Instant::now();
        cluster.cli(from, &["machine", "move", "counter", "--to", &format!("n{}", to + 1), "--wait"]).ok();
        whole.ours.push(ms_since(begun));
        let first = until("it serves elsewhere", || outside.first(begun, |answer| answer.node == to));
        let last = outside.last(first.at, |answer| answer.node == from).context("it served before")?;
        ensure!(first.count > last.count, "the count was {} and is {}: a write was lost", last.count, first.count);
        let outage = (first.at - last.at).as_secs_f64() * 1e3;
        row.ours.push(outage);
        voice.say(&format!("moved: {outage:.0} ms without an answer, the command {:.0} ms", ms_since(begun)));
        from = to;
    }
    Ok(())
}

fn lxd_moves(voice: &Voice, layer_mib: usize) -> Result<Vec<f64>> {
    let mut lxd = Lxd::start(2, &format!("lm{layer_mib}"))?;
    lxd.join(1)?;
    lxd.container()?;
    if layer_mib > 0 {
        let count = format!("count={layer_mib}");
        lxd.exec(&["/bin/dd", "if=/dev/urandom", "of=/root/blob", "bs=1048576", &count])?;
    }
    let mut samples = Vec::new();
    for round in 0..LXD_MOVES {
        let begun = Instant::now();
        lxd.relocate((round + 1) % 2)?;
        samples.push(ms_since(begun));
        voice.say(&format!("LXD: {:.0} ms", ms_since(begun)));
    }
    Ok(samples)
}
