//! Cuts, one way and both, and nodes that leave or are removed.

use std::time::Duration;

use smartnode_tests::machines::{IDLE, owner};
use smartnode_tests::{Cluster, http, poll};

#[test]
#[ignore = "needs root and namespaces"]
fn a_full_partition_heals() {
    let cluster = Cluster::of(3, "part");
    let leader = cluster.leader(0);
    let other = cluster.other_than(&[leader]);
    cluster.isolate(leader);
    let written = || (cluster.cli(other, &["tenant", "create", "majority", "--timeout", "5s"]).code == 0).then_some(());
    poll::until("the majority writes", Duration::from_secs(20), written);
    cluster.wait_alive(other, 2);
    // The old leader acknowledges nothing, and a linearizable read there is not answered from an old copy.
    let write = cluster.cli(leader, &["tenant", "create", "minority"]);
    assert!(matches!(write.code, 6 | 7), "{write:?}");
    let socket = cluster.lab.host(leader).admin_socket();
    let read = http::ask(&socket, "GET", "/v1/tenants?consistency=linearizable", &[], "");
    assert!(matches!(read.status, 503 | 504), "{read:?}");
    cluster.heal();
    cluster.wait_members(3);
    for at in 0..3 {
        let names = || cluster.cli(at, &["tenant", "list", "-o", "name"]).stdout;
        // The write of the minority was unknown to its client: there or not, but the same everywhere.
        poll::until("all agree", Duration::from_secs(20), || {
            let (here, there) = (names(), cluster.cli(other, &["tenant", "list", "-o", "name"]).stdout);
            (here == there && here.contains("majority")).then_some(())
        });
    }
    cluster.cli(0, &["status", "--wait-tolerance", "1"]).ok();
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_one_way_partition_does_not_stop_the_others() {
    let cluster = Cluster::of(3, "oneway");
    let leader = cluster.leader(0);
    let second = cluster.other_than(&[leader]);
    let third = cluster.other_than(&[leader, second]);
    let mut made = 1;
    let mut write = |at: usize| {
        let name = format!("t{made}");
        made += 1;
        let done = || matches!(cluster.cli(at, &["tenant", "create", &name, "--timeout", "10s"]).code, 0 | 5);
        let ((), took) = poll::until(&format!("n{} writes", at + 1), Duration::from_secs(30), || done().then_some(()));
        (made, took)
    };
    // The leader's words no longer reach one of its followers, which must not depose it again and again, and writes
    // through the third node; then the follower's words no longer reach the leader.
    for (from, to, writers) in
        [(leader, second, &[third, second, leader, second, third][..]), (second, leader, &[third, leader])]
    {
        cluster.lab.cut(from, to).expect("nft");
        for at in writers {
            eprintln!("n{} wrote within {:?}", at + 1, write(*at).1);
        }
        poll::stays("the others write", Duration::from_secs(3), || write(third).0 > 0);
        assert_eq!(cluster.leader(third), leader, "it leads still");
        cluster.heal();
        cluster.wait_members(3);
    }
    let tenants = write(second).0;
    for at in 0..3 {
        let all = || {
            let list = cluster.cli(at, &["tenant", "list", "-o", "name"]).stdout;
            (list.lines().count() == tenants).then_some(())
        };
        poll::until("all agree", Duration::from_secs(20), all);
    }
}

/// Connections are cut within this time of a removal (issue 2, point 2).
const CUT_OFF: Duration = Duration::from_secs(5);

#[test]
#[ignore = "needs root and namespaces"]
fn a_removed_node_is_cut_off_also_in_a_partition() {
    let mut cluster = Cluster::of(4, "remov");
    cluster.pack(0);
    let leader = cluster.leader(0);
    let gone = cluster.other_than(&[leader]);
    let friend = cluster.other_than(&[leader, gone]);
    let third = cluster.other_than(&[leader, gone, friend]);
    // The removed node hears nothing from the leader, only from the others.
    cluster.lab.cut(leader, gone).expect("nft");
    cluster.lab.cut(gone, leader).expect("nft");
    let name = format!("n{}", gone + 1);
    cluster.cli(third, &["node", "remove", &name, "--force", "--yes"]).ok();
    let out = |at: usize| {
        let list = cluster.cli(at, &["node", "list", "-o", "name"]);
        list.code == 0 && !list.stdout.lines().any(|line| line == name)
    };
    poll::until("all others have dropped it", CUT_OFF, || {
        [leader, friend, third].iter().all(|at| out(*at)).then_some(())
    });
    let denied = || {
        let write = cluster.cli(gone, &["tenant", "create", "intruder", "--timeout", "5s"]);
        (write.code != 0).then_some(write)
    };
    let (refusal, _) = poll::until("it can write nothing", CUT_OFF, denied);
    eprintln!("{refusal:?}");
    cluster.heal();
    for at in [leader, friend, third] {
        cluster.wait_alive(at, 3);
        assert_eq!(cluster.cli(at, &["tenant", "inspect", "intruder"]).code, 3);
    }
    // A new daemon of it gets in no more either.
    cluster.kill_daemon(gone);
    cluster.start(gone);
    poll::stays("it stays out", Duration::from_secs(3), || cluster.alive(leader).is_none_or(|alive| alive <= 3));
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_node_that_leaves_takes_nothing_along() {
    let mut cluster = Cluster::of(4, "leave");
    cluster.pack(0);
    cluster.create(0, "m", &["--node", "n4"], IDLE);
    cluster.create(0, "free", &[], IDLE);
    // Pinned there: leaving is refused, and says why; nothing is lost.
    let refused = cluster.cli(3, &["leave", "--yes"]);
    if refused.code != 0 {
        assert!(refused.stderr.contains('m'), "{refused:?}");
        cluster.cli(0, &["machine", "delete", "m", "--yes", "--wait"]).ok();
        cluster.cli(3, &["leave", "--purge", "--yes"]).ok();
    }
    cluster.wait_ended(3);
    for at in 0..3 {
        cluster.wait_alive(at, 3);
        let names = cluster.cli(at, &["node", "list", "-o", "name"]).ok().stdout;
        assert_eq!(names.lines().collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    }
    assert_ne!(cluster.expect_running_once(0, "free"), 3);
    assert_eq!(cluster.daemon_fails(3, &["start"]).code, 3, "it is nobody's node any more");
    let machine = cluster.inspect(0, "free").unwrap();
    assert!(owner(&machine).is_some());
    let token = cluster.token(1);
    cluster.join(3, &token);
    cluster.wait_ready(3);
    cluster.wait_members(4);
}
