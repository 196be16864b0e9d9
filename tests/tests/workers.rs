//! A worker: it runs machines, is told what concerns itself, and reaches no further.

use std::time::Duration;

use smartnode_tests::machines::{COUNT, IDLE, owner};
use smartnode_tests::{Cluster, poll};

#[test]
#[ignore = "needs root and namespaces"]
fn a_worker_runs_machines_reaches_no_further_and_leaves() {
    let mut cluster = Cluster::hosts(2, "worker");
    cluster.init();
    let made = cluster.cli(0, &["token", "create", "--role", "worker", "-o", "json"]).ok().json();
    cluster.join(1, made["token"].as_str().expect("a token"));
    cluster.wait_ready(1);
    cluster.wait_alive(0, 2);
    cluster.pack(0);
    cluster.create(0, "m", &["--node", "n2"], IDLE);
    let free = cluster.create(0, "free", &["--restart", "always"], COUNT);
    cluster.exec(0, "m", &["/bin/sleep", "0"]).ok();

    // It shows the cluster as far as it is told, and says who could do what it may not.
    let told = || (!cluster.cli(1, &["status"]).ok().stdout.contains("machines  0")).then_some(());
    poll::until("it is told of its machine", Duration::from_secs(10), told);
    for denied in
        [&["tenant", "create", "own"][..], &["node", "remove", "n1", "--yes"], &["machine", "delete", "free", "--yes"]]
    {
        let reply = cluster.cli(1, denied);
        assert_eq!(reply.code, 4, "{denied:?}: {reply:?}");
        assert!(reply.stderr.contains("on a node with role voter"), "{denied:?}: {reply:?}");
    }
    assert_eq!(owner(&cluster.inspect(0, "free").unwrap()), owner(&free));

    // What is pinned there keeps it; what is not goes along the wire before it leaves.
    cluster.cli(0, &["machine", "delete", "m", "--yes", "--wait"]).ok();
    if owner(&free) == Some(0) {
        cluster.cli(0, &["machine", "move", "free", "--to", "n2", "--wait"]).ok();
    }
    let counted = *cluster.counted(0, "free").last().expect("it has counted");
    cluster.cli(1, &["leave", "--yes"]).ok();
    cluster.wait_ended(1);
    cluster.wait_alive(0, 1);
    assert_eq!(cluster.expect_running_once(0, "free"), 0);
    let on = || cluster.counted(0, "free").last().filter(|now| **now > counted).map(drop);
    poll::until("the counter goes on from where it was", Duration::from_secs(20), on);
    let names = cluster.cli(0, &["node", "list", "-o", "name"]).ok().stdout;
    assert_eq!(names.lines().collect::<Vec<_>>(), ["n1"]);
}
