//! `machine create --wait`: until the process runs, its image is there and its placement is committed.

use std::time::Instant;

use anyhow::{Result, ensure};
use smartnode_tests::Cluster;
use smartnode_tests::machines::{IDLE, IMAGE, owner};
use smartnode_tests::report::{Aim, Row, Statistic};

use crate::Voice;
use crate::nodes::{ms_since, until_image_everywhere};
use crate::peers::podman::{self, Podman};

const CREATES: usize = 100;
const PEER_RUNS: usize = 30;

/// One after the other, each deleted again.
pub fn create(voice: &Voice) -> Result<Vec<Row>> {
    let aims = [Aim::at_most(Statistic::Median, 100.0), Aim::at_most(Statistic::P99, 500.0)];
    let what = "`machine create --wait`: the whole command, process running and placement committed by three nodes";
    let mut row = Row::new("create", what, "ms", &aims);
    row.note(
        "podman: the whole `podman run -d --network host`; runc: the whole `runc run -d` on an unpacked image. \
         Neither commits anything anywhere",
    );
    let cluster = Cluster::of(3, "bmake");
    cluster.pack(0);
    until_image_everywhere(&cluster);
    for number in 0..CREATES {
        let name = format!("m{number}");
        let words = ["machine", "create", &name, "--image", IMAGE, "--wait", "-o", "json"];
        let begun = Instant::now();
        let reply = cluster.cli(0, &[&words[..], &["--", "/bin/sh", "-c", IDLE]].concat()).ok();
        row.ours.push(ms_since(begun));
        let made = reply.json();
        ensure!(made["status"]["state"] == "running" && owner(&made).is_some(), "not running: {made}");
        cluster.cli(0, &["machine", "delete", &name, "--yes", "--wait"]).ok();
    }
    voice.say(&format!("created: {:.0?} ms", &row.ours[..10]));
    drop(cluster);
    for runtime in ["crun", "runc"] {
        let samples = Podman::new(runtime).and_then(|podman| (0..PEER_RUNS).map(|_| podman.run()).collect());
        row.peer(&format!("{} with {runtime}", podman::NAME), samples);
    }
    row.peer("runc 1.1", podman::runc(PEER_RUNS));
    Ok(vec![row])
}
