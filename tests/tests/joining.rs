//! Becoming a fabric, and everything that can be wrong about a join.
#![expect(clippy::disallowed_methods, reason = "writes into data directories of nodes")]

use std::time::Duration;

use fabric::ids::Digest;
use fabric::wire::HEADER_BYTES;
use serde_json::Value;
use smartnode_tests::{Cluster, Reply, poll};

#[test]
#[ignore = "needs root and namespaces"]
fn three_nodes_join_and_tolerate_one() {
    let cluster = Cluster::of(3, "join");
    for at in 0..3 {
        let status = cluster.cli(at, &["status", "-o", "json"]).ok().json();
        assert_eq!(status["tolerance"], 1, "{status}");
        assert_eq!(status["voters"].as_array().map(Vec::len), Some(3), "{status}");
        assert_eq!(status["node"], format!("n{}", at + 1), "{status}");
        assert!(status["summary"].as_str().unwrap().contains("may fail"), "{status}");
        let first = cluster.cli(at, &["status"]).ok().stdout;
        assert!(first.starts_with("any one of "), "{first}");
    }
    // A write through each node is there on all.
    for at in 0..3 {
        cluster.cli(at, &["tenant", "create", &format!("t{at}")]).ok();
    }
    for at in 0..3 {
        let all = || {
            let names = cluster.cli(at, &["tenant", "list", "-o", "name"]).ok().stdout;
            (names.lines().collect::<Vec<_>>() == ["default", "t0", "t1", "t2"]).then_some(())
        };
        poll::until("all tenants are everywhere", Duration::from_secs(5), all);
    }
}

#[test]
#[ignore = "needs root and namespaces"]
fn five_nodes_join_at_once() {
    let mut cluster = Cluster::hosts(5, "five");
    cluster.init();
    let token = cluster.token(4);
    (1..5).for_each(|at| cluster.join(at, &token));
    (1..5).for_each(|at| cluster.wait_ready(at));
    cluster.wait_members(5);
    // Three vote, the other two stand by.
    let ready = || {
        let status = cluster.cli(4, &["status", "--wait-tolerance", "1", "-o", "json"]).ok().json();
        let count = |key: &str| status[key].as_array().map(Vec::len);
        ((count("voters"), count("standbys")) == (Some(3), Some(2))).then_some(())
    };
    poll::until("three voters and two standbys", Duration::from_secs(30), ready);
}

fn expect(reply: &Reply, code: i32, words: &[&str]) {
    reply.expect(code, words);
}

/// A refused join leaves no membership behind.
fn expect_no_member(cluster: &mut Cluster, at: usize) {
    assert!(!cluster.lab.host(at).data_dir.join("cluster").exists(), "half a membership");
    expect(&cluster.daemon_fails(at, &["start"]), 3, &["smartnode init", "smartnode join"]);
}

#[test]
#[ignore = "needs root and namespaces"]
fn wrong_tokens_admit_nobody() {
    let mut cluster = Cluster::hosts(4, "token");
    cluster.init();
    let peer = format!("{}:7420", cluster.lab.host(0).address);
    expect_no_member(&mut cluster, 1);

    expect(&cluster.daemon_fails(1, &["join", &peer, "--token", "sn1-nonsense"]), 2, &["smartnode token create"]);

    // Another cluster's token, which the first one's peer cannot prove to know.
    cluster.lab.start_daemon(3, &["init"]).unwrap();
    cluster.wait_ready(3);
    let foreign = cluster.cli(3, &["token", "create", "-o", "json"]).ok().json()["token"].as_str().unwrap().to_owned();
    expect(&cluster.daemon_fails(1, &["join", &peer, "--token", &foreign]), 4, &["token"]);
    expect_no_member(&mut cluster, 1);

    let short = cluster.cli(0, &["token", "create", "--ttl", "1s", "-o", "json"]).ok().json();
    let expires_ms = short["expires_ms"].as_u64().unwrap();
    let now_ms = || std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    poll::until("the token expires", Duration::from_secs(5), || (now_ms() > expires_ms + 100).then_some(()));
    let expired = cluster.daemon_fails(1, &["join", &peer, "--token", short["token"].as_str().unwrap()]);
    expect(&expired, 4, &["time is over", "smartnode token create"]);
    expect_no_member(&mut cluster, 1);

    let revoked = cluster.cli(0, &["token", "create", "-o", "json"]).ok().json();
    cluster.cli(0, &["token", "revoke", revoked["id"].as_str().unwrap()]).ok();
    expect(&cluster.daemon_fails(1, &["join", &peer, "--token", revoked["token"].as_str().unwrap()]), 4, &["token"]);

    // One use, used by the third host; the second host comes too late, and gets in with a token of its own.
    let once = cluster.token(1);
    cluster.join(2, &once);
    cluster.wait_ready(2);
    expect(&cluster.daemon_fails(1, &["join", &peer, "--token", &once]), 4, &["used"]);
    expect_no_member(&mut cluster, 1);
    let good = cluster.token(1);
    cluster.join(1, &good);
    cluster.wait_ready(1);
    cluster.wait_members(3);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_join_that_cannot_work_says_why() {
    let mut cluster = Cluster::hosts(3, "badjn");
    cluster.init();
    let token = cluster.token(2);

    // Nobody listens there.
    let nobody = format!("{}:7420", cluster.lab.host(2).address);
    let silent = cluster.daemon_fails(1, &["join", &nobody, "--token", &token]);
    assert!(matches!(silent.code, 6 | 7), "{silent:?}");
    assert!(silent.stderr.contains(&nobody) && silent.stderr.contains("hint"), "{silent:?}");
    expect_no_member(&mut cluster, 1);
    let peer = format!("{}:7420", cluster.lab.host(0).address);
    expect(
        &cluster.daemon_fails(1, &["join", "no.such.host.invalid", "--token", &token]),
        7,
        &["no.such.host.invalid"],
    );

    // The name is taken.
    let taken = cluster
        .lab
        .client(1, &["join", &peer, "--token", &token, "--name", "n1", "--data-dir"])
        .arg(&cluster.lab.host(1).data_dir)
        .output()
        .unwrap();
    assert_eq!(taken.status.code(), Some(5), "{}", String::from_utf8_lossy(&taken.stderr));
    expect_no_member(&mut cluster, 1);

    cluster.join(1, &token);
    cluster.wait_ready(1);
    // A second daemon on the same directory; then one on the same port, with a directory of its own.
    let data = cluster.lab.host(0).data_dir.clone();
    let second = cluster.lab.client(0, &["start", "--data-dir"]).arg(&data).output().unwrap();
    let second = Reply {
        code: second.status.code().unwrap(),
        stdout: String::new(),
        stderr: String::from_utf8_lossy(&second.stderr).into(),
    };
    expect(&second, 5, &["another daemon", "--data-dir"]);
    let elsewhere = cluster.path("elsewhere");
    let listen = format!("{}:7420", cluster.lab.host(0).address);
    let third = cluster
        .lab
        .client(0, &["init", "--name", "n9", "--listen", &listen, "--data-dir"])
        .arg(&elsewhere)
        .output()
        .unwrap();
    let third = Reply {
        code: third.status.code().unwrap(),
        stdout: String::new(),
        stderr: String::from_utf8_lossy(&third.stderr).into(),
    };
    expect(&third, 5, &["7420", "--listen"]);
    // Both live on.
    cluster.wait_members(2);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_directory_of_another_cluster_or_version_is_refused() {
    let mut cluster = Cluster::hosts(2, "dirs");
    cluster.init();
    cluster.lab.start_daemon(1, &["init"]).unwrap();
    cluster.wait_ready(1);
    let (token, peer) = (cluster.token(1), format!("{}:7420", cluster.lab.host(0).address));
    cluster.cli(1, &["stop"]).ok();
    cluster.wait_ended(1);
    expect(&cluster.daemon_fails(1, &["join", &peer, "--token", &token]), 5, &["another cluster", "--data-dir"]);
    // It is still the node that it was.
    cluster.start(1);
    cluster.wait_ready(1);
    cluster.cli(1, &["stop"]).ok();
    cluster.wait_ended(1);

    // Byte 4 of a frame is the protocol of the program that wrote it.
    let file = cluster.lab.host(1).data_dir.join("cluster");
    let old = std::fs::read(&file).unwrap();
    let mut newer = old.clone();
    newer[4] = newer[4].wrapping_add(1);
    let covered = [&newer[..16], &newer[HEADER_BYTES..]].concat();
    newer[16..HEADER_BYTES].copy_from_slice(&Digest::of(&covered).0);
    std::fs::write(&file, &newer).unwrap();
    let refused = cluster.daemon_fails(1, &["start"]);
    expect(&refused, 1, &["newer", "upgrade"]);
    assert_eq!(std::fs::read(&file).unwrap(), newer, "a refused directory is left alone");
    std::fs::write(&file, &old).unwrap();
    cluster.start(1);
    cluster.wait_ready(1);
}

#[test]
#[ignore = "needs root and namespaces"]
fn init_and_join_may_be_repeated() {
    let mut cluster = Cluster::of(2, "again");
    let before: Vec<Value> = (0..2).map(|at| cluster.cli(at, &["status", "-o", "json"]).ok().json()).collect();
    let token = cluster.token(1);
    for at in 0..2 {
        cluster.kill_daemon(at);
    }
    cluster.lab.start_daemon(0, &["init"]).unwrap();
    cluster.join(1, &token);
    (0..2).for_each(|at| cluster.wait_ready(at));
    cluster.wait_members(2);
    for (at, before) in before.iter().enumerate() {
        let after = cluster.cli(at, &["status", "-o", "json"]).ok().json();
        assert_eq!((&after["cluster"], &after["node_id"]), (&before["cluster"], &before["node_id"]));
    }
}
