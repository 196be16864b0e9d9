//! A worker: it runs machines, is told what concerns itself, and reaches no further.

use std::time::Duration;

use serde_json::Value;
use smartnode_tests::machines::{BEAT, COUNT, IDLE, owner, pid};
use smartnode_tests::{Cluster, http, poll};

/// A fabric of voters and a worker, its last node, with an image.
fn with_worker(voters: usize, tag: &str) -> Cluster {
    let mut cluster = Cluster::hosts(voters + 1, tag);
    cluster.init();
    for at in 1..voters {
        let token = cluster.token(1);
        cluster.join(at, &token);
    }
    let made = cluster.cli(0, &["token", "create", "--role", "worker", "-o", "json"]).ok().json();
    cluster.join(voters, made["token"].as_str().expect("a token"));
    cluster.wait_ready(voters);
    cluster.wait_alive(0, voters + 1);
    if voters >= 3 {
        cluster.wait_tolerance(0);
    }
    cluster.pack(0);
    cluster
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_worker_runs_machines_reaches_no_further_and_leaves() {
    let mut cluster = with_worker(1, "worker");
    cluster.create(0, "m", &["--node", "n2"], IDLE);
    let free = cluster.create(0, "free", &["--restart", "always"], COUNT);
    cluster.exec(0, "m", &["/bin/sleep", "0"]).ok();

    // It shows the cluster as far as it is told, and says who could do what it may not.
    let told = || (!cluster.cli(1, &["status"]).ok().stdout.contains("machines  0")).then_some(());
    poll::until("it is told of its machine", Duration::from_secs(10), told);
    let list = cluster.cli(1, &["node", "list", "-o", "json"]).ok();
    assert_eq!(list.json()["partial"], true);
    assert!(list.stderr.contains("ask a node with role voter"), "{list:?}");
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

/// Cuts the worker off from all voters but the leader, in such a way that its feed, which came from one of the others, has
/// stopped and its writes go on. Gives the leader.
fn cut_feed(cluster: &mut Cluster, worker: usize, machine: &str) -> usize {
    let path = format!("/v1/tenants/default/machines/{machine}");
    for round in 0..8 {
        let leader = cluster.leader(0);
        for at in (0..worker).filter(|at| *at != leader) {
            cluster.lab.cut(at, worker).expect("nft");
            cluster.lab.cut(worker, at).expect("nft");
        }
        let label = format!(r#"{{"labels":{{"round":"{round}"}}}}"#);
        let written = http::ask(&cluster.lab.host(leader).admin_socket(), "PATCH", &path, &[], &label);
        assert_eq!(written.status, 200, "{written:?}");
        let revision = written.json()["revision"].as_u64();
        let told = || cluster.cli(worker, &["status", "-o", "json"]).ok().json()["applied"].as_u64() >= revision;
        // The feed tells within a tenth of a second, and so many looks take longer.
        if !(0..30).any(|_| told()) {
            return leader;
        }
        // It was the leader that fed it: another is to lead.
        cluster.heal();
        cluster.kill_daemon(leader);
        let other = cluster.other_than(&[leader, worker]);
        poll::until("another leads", Duration::from_secs(20), || (cluster.leader(other) != leader).then_some(()));
        cluster.start(leader);
        cluster.wait_ready(leader);
        // The worker itself is told of its own part alone.
        for at in 0..worker {
            cluster.wait_alive(at, worker + 1);
        }
    }
    panic!("the worker's feed could not be cut");
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_machine_that_leaves_a_worker_whose_feed_lags_runs_once() {
    const WORKER: usize = 3;
    let mut cluster = with_worker(3, "wlag");
    cluster.create(0, "m", &["--restart", "always"], COUNT);
    if cluster.expect_running_once(0, "m") != WORKER {
        cluster.cli(0, &["machine", "move", "m", "--to", "n4", "--wait"]).ok();
    }
    let machine = cluster.wait_on(0, "m", WORKER, Duration::from_secs(20)).0;
    let id = machine["id"].as_str().expect("an id").to_owned();
    let to = cut_feed(&mut cluster, WORKER, "m");
    let last = *cluster.counted(to, "m").last().expect("it has counted");
    cluster.cli(to, &["machine", "move", "m", "--to", &format!("n{}", to + 1), "--wait"]).ok();
    // Longer than the worker's feed waits for a voter that does not answer, and than its reconciler rests.
    poll::stays("it runs at its destination alone", Duration::from_secs(12), || cluster.copies(&id) == [to]);
    cluster.expect_count_past(to, "m", last + 10);
    cluster.heal();
    assert_eq!(cluster.expect_running_once(0, "m"), to);
    // What the worker has of it is no machine of its own any more: put aside, since it may not know whose it is.
    let aside = || cluster.quarantined(WORKER, &id).then_some(());
    poll::until("the worker puts its old disk aside", Duration::from_secs(30), aside);
}

#[test]
#[ignore = "needs root and namespaces"]
fn an_exclusive_machine_on_a_worker_beats_while_others_write() {
    let cluster = with_worker(1, "wbeat");
    cluster.create(0, "other", &["--node", "n1"], IDLE);
    let made = cluster.create(0, "m", &["--exclusive", "--node", "n2"], BEAT);
    let id = made["id"].as_str().expect("an id");
    let socket = cluster.lab.host(0).admin_socket();
    let mut written = 0;
    let before = cluster.beats(1, id).len();
    poll::stays("a client writes", Duration::from_secs(15), || {
        written += 1;
        let label = format!(r#"{{"labels":{{"n":"{written}"}}}}"#);
        http::ask(&socket, "PATCH", "/v1/tenants/default/machines/other", &[], &label).status == 200
    });
    assert!(written >= 200, "{written} labels");
    let beats = cluster.beats(1, id);
    let pause = beats[before.saturating_sub(1)..].windows(2).map(|pair| pair[1] - pair[0]).max();
    eprintln!("{written} labels, {} beats, longest pause {pause:?} hundredths", beats.len() - before);
    assert!(beats.len() - before > 100 && pause < Some(150), "it was frozen: {pause:?}");
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_worker_whose_daemon_is_killed_during_a_move_settles_it() {
    let mut cluster = with_worker(1, "wkill");
    cluster.create(0, "m", &["--restart", "always"], COUNT);
    if owner(&cluster.inspect(0, "m").unwrap()) != Some(1) {
        cluster.cli(0, &["machine", "move", "m", "--to", "n2", "--wait"]).ok();
    }
    cluster.wait_on(0, "m", 1, Duration::from_secs(20));
    cluster.exec(0, "m", &["/bin/dd", "if=/dev/urandom", "of=/blob", "bs=1048576", "count=32"]).ok();
    let mut last = *cluster.counted(0, "m").last().expect("it has counted");
    let (socket, path) = (cluster.lab.host(0).admin_socket(), "/v1/tenants/default/machines/m/move");
    let stale = http::ask(&socket, "POST", path, &["If-Match: \"1\""], r#"{"to":"n1"}"#);
    assert_eq!(stale.status, 412, "{stale:?}");
    // As the source, then as the destination.
    for (round, to) in [0, 1].into_iter().enumerate() {
        let (key, body) = (format!("Idempotency-Key: move-{round}"), format!(r#"{{"to":"n{}"}}"#, to + 1));
        let begin = || http::ask(&socket, "POST", path, &[&key], &body);
        let begun = begin();
        assert_eq!(begun.status, 202, "{begun:?}");
        let moving = |machine: &Value| machine["placement"]["moving_to"].is_string() || owner(machine) == Some(to);
        cluster.wait_machine(0, "m", "is being moved", Duration::from_secs(10), moving);
        cluster.kill_daemon(1);
        cluster.start(1);
        cluster.wait_ready(1);
        let settled = |machine: &Value| machine["placement"]["moving_to"].is_null();
        cluster.wait_machine(0, "m", "is settled", Duration::from_secs(60), settled);
        let on = cluster.expect_running_once(0, "m");
        eprintln!("towards n{}: it ended on n{}", to + 1, on + 1);
        cluster.expect_count_past(0, "m", last + 10);
        assert_eq!(begin().json()["id"], begun.json()["id"], "a repeated request begins no second move");
        if on != to {
            cluster.cli(0, &["machine", "move", "m", "--to", &format!("n{}", to + 1), "--wait"]).ok();
        }
        assert_eq!(cluster.expect_running_once(0, "m"), to);
        last = *cluster.counted(0, "m").last().expect("it has counted");
    }
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_worker_s_daemon_that_is_back_changes_nothing_and_ends_its_absence() {
    let mut cluster = with_worker(1, "wback");
    let made = cluster.create(0, "m", &["--exclusive", "--node", "n2"], BEAT);
    cluster.kill_daemon(1);
    cluster.start(1);
    cluster.wait_ready(1);
    cluster.wait_alive(0, 2);
    let after = cluster.wait_on(0, "m", 1, Duration::from_secs(20)).0;
    assert_eq!(pid(&after), pid(&made), "the machine lived through it");
    assert_eq!(after["placement"]["epoch"], made["placement"]["epoch"]);
    cluster.stop(1);
    let absent = |cluster: &Cluster| {
        !cluster.cli(0, &["node", "inspect", "n2", "-o", "json"]).ok().json()["absent_until_ms"].is_null()
    };
    assert!(absent(&cluster), "it has announced its absence");
    cluster.start(1);
    cluster.wait_ready(1);
    poll::until("its absence is ended", Duration::from_secs(20), || (!absent(&cluster)).then_some(()));
    let after = cluster.wait_on(0, "m", 1, Duration::from_secs(20)).0;
    assert_eq!(pid(&after), pid(&made), "the machine lived through it");
}
