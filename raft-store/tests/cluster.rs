//! Ledgers of three and five nodes through losses, cuts and restarts.

mod common;

use std::time::Duration;

use common::{Cluster, eventually, run, tenant};
use raft_store::command::Actor;

#[test]
fn one_node_makes_a_cluster_and_finds_it_again_after_a_restart() {
    run(async {
        let mut cluster = Cluster::new(1).await;
        cluster.init().await;
        for number in 0..20 {
            cluster.write(0, tenant(number)).await.unwrap();
        }
        cluster.kill(0).await;
        cluster.start(0).await.unwrap();
        cluster.ledger(0).linearizable().await.unwrap();
        assert_eq!(cluster.read(0, |state| state.tenants.len()), 21);
        // Repeating `init` is harmless.
        cluster.init().await;
    });
}

#[test]
fn a_refusal_is_not_a_time_out() {
    run(async {
        let cluster = Cluster::new(1).await;
        cluster.init().await;
        cluster.write(0, tenant(1)).await.unwrap();
        let ledger = cluster.ledger(0);
        let stranger = Actor::fabric(common::id_of(99));
        let error = ledger.write(stranger, None, tenant(2)).await.unwrap_err();
        assert!(matches!(error, raft_store::ledger::LedgerError::Refused(_)), "{error}");
    });
}

#[test]
fn three_nodes_become_three_voters_and_any_of_them_accepts_writes() {
    run(async {
        let cluster = Cluster::made(3).await;
        cluster.voters(3).await;
        for number in 0..30 {
            cluster.write(number % 3, tenant(number)).await.unwrap();
        }
        for at in 0..3 {
            cluster.ledger(at).linearizable().await.unwrap();
            assert_eq!(cluster.read(at, |state| state.tenants.len()), 31);
        }
        let digests: Vec<_> = (0..3).map(|at| cluster.read(at, |state| state.digest())).collect();
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
    });
}

#[test]
fn a_lost_leader_is_replaced_and_no_acknowledged_write_is_lost() {
    run(async {
        let mut cluster = Cluster::made(3).await;
        cluster.voters(3).await;
        let mut acknowledged = Vec::new();
        let mut slowest = Duration::ZERO;
        for number in 0..1_000 {
            if number % 250 == 125 {
                let leader = cluster.leader().await;
                cluster.kill(leader).await;
                let begun = tokio::time::Instant::now();
                let at = (leader + 1) % 3;
                cluster.write(at, tenant(10_000 + number)).await.unwrap();
                slowest = slowest.max(begun.elapsed());
                cluster.start(leader).await.unwrap();
            }
            cluster.write(number % 3, tenant(number)).await.unwrap();
            acknowledged.push(common::name(&format!("t{number}")));
        }
        for at in 0..3 {
            cluster.ledger(at).linearizable().await.unwrap();
            let missing =
                cluster.read(at, |state| acknowledged.iter().filter(|name| !state.tenants.contains_key(name)).count());
            assert_eq!(missing, 0, "on host {at}");
        }
        assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    });
}

#[test]
fn an_isolated_leader_acknowledges_nothing_and_follows_after_the_heal() {
    run(async {
        let cluster = Cluster::made(3).await;
        cluster.voters(3).await;
        let old = cluster.leader().await;
        cluster.isolate(old);
        let other = (old + 1) % 3;
        cluster.write(other, tenant(1)).await.unwrap();
        assert!(cluster.ledger(old).linearizable().await.is_err());
        cluster.net.heal();
        eventually("the old leader follows", || {
            cluster.read(old, |state| state.tenants.contains_key(&common::name("t1"))).then_some(())
        })
        .await;
        cluster.write(old, tenant(2)).await.unwrap();
    });
}

#[test]
fn a_follower_that_was_away_for_long_catches_up_by_a_snapshot() {
    run(async {
        let mut cluster = Cluster::made(3).await;
        cluster.voters(3).await;
        let leader = cluster.leader().await;
        let away = (leader + 1) % 3;
        cluster.kill(away).await;
        // The hosts keep 150 entries behind a snapshot of every 300.
        for number in 0..1_000 {
            cluster.write(leader, tenant(number)).await.unwrap();
        }
        cluster.start(away).await.unwrap();
        eventually("the follower has caught up", || {
            (cluster.read(away, |state| state.tenants.len()) == 1_001).then_some(())
        })
        .await;
        // At first it may show a copy that it fetched, which has no CA keys, until its own log has come as far.
        eventually("both hold the same state", || {
            let [there, here] = [leader, away].map(|at| cluster.read(at, |state| state.digest()));
            (there == here).then_some(())
        })
        .await;
        // And it starts from what it was sent.
        cluster.kill(away).await;
        cluster.start(away).await.unwrap();
        cluster.ledger(away).linearizable().await.unwrap();
        assert_eq!(cluster.read(away, |state| state.tenants.len()), 1_001);
    });
}

#[test]
fn five_nodes_bear_the_loss_of_two_and_stop_at_three() {
    run(async {
        let mut cluster = Cluster::made(7).await;
        cluster.voters(5).await;
        let leader = cluster.leader().await;
        assert_eq!(cluster.ledger(leader).status().tolerance, Some(2));
        let voters = cluster.ledger(leader).status().voters;
        let others: Vec<usize> = (0..7).filter(|at| *at != leader && voters.contains(&cluster.hosts[*at].id)).collect();
        for at in &others[..2] {
            cluster.kill(*at).await;
        }
        cluster.write(leader, tenant(1)).await.unwrap();
        assert_eq!(cluster.ledger(leader).status().tolerance, Some(0));
        let words = cluster.ledger(leader).status().tolerance_words;
        assert!(words.contains("stops writes"), "{words}");
        cluster.kill(others[2]).await;
        assert!(cluster.write(leader, tenant(2)).await.is_err());
        assert_eq!(cluster.ledger(leader).status().tolerance, None);
        for at in &others[..3] {
            cluster.start(*at).await.unwrap();
        }
        eventually("writes go on", || cluster.ledger(leader).status().tolerance).await;
        cluster.write(others[0], tenant(3)).await.unwrap();
    });
}

#[test]
fn a_one_way_cut_of_the_leader_does_not_stop_writes() {
    run(async {
        let cluster = Cluster::made(3).await;
        cluster.voters(3).await;
        let leader = cluster.leader().await;
        // It can speak and hears no answer.
        for at in (0..3).filter(|at| *at != leader) {
            cluster.net.cut_one_way(cluster.hosts[at].id, cluster.hosts[leader].id);
        }
        let other = (leader + 1) % 3;
        cluster.write(other, tenant(1)).await.unwrap();
        cluster.net.heal();
        cluster.write(leader, tenant(2)).await.unwrap();
    });
}

#[test]
fn a_voter_whose_disk_is_full_stops_cleanly_and_says_so() {
    run(async {
        let mut cluster = Cluster::made(3).await;
        cluster.voters(3).await;
        let leader = cluster.leader().await;
        cluster.hosts[leader].disk.set_full(true);
        // The write may succeed through the others, or its outcome stay unknown; it is never acknowledged and lost.
        let written = cluster.write((leader + 1) % 3, tenant(1)).await;
        let reason = eventually("the leader has stopped", || cluster.ledger(leader).status().halted).await;
        assert!(reason.contains("ledger.journal"), "{reason}");
        cluster.write((leader + 1) % 3, tenant(2)).await.unwrap();
        cluster.hosts[leader].disk.set_full(false);
        cluster.kill(leader).await;
        cluster.start(leader).await.unwrap();
        cluster.ledger(leader).linearizable().await.unwrap();
        let there = cluster.read(leader, |state| state.tenants.contains_key(&common::name("t1")));
        assert!(there || written.is_err());
    });
}

/// Its own start refuses that (`begun`); a leader that meets it all the same must go on.
#[test]
fn a_voter_that_has_lost_its_log_ends_no_other() {
    run(async {
        let mut cluster = Cluster::made(3).await;
        cluster.voters(3).await;
        for number in 0..20 {
            cluster.write(0, tenant(number)).await.unwrap();
        }
        let leader = cluster.leader().await;
        let victim = (leader + 1) % 3;
        cluster.kill(victim).await;
        cluster.hosts[victim].disk = common::disk::MemoryDisk::new(99);
        cluster.start(victim).await.unwrap();
        cluster.write(leader, tenant(20)).await.unwrap();
        let all = || (cluster.read(victim, |state| state.tenants.len()) == 22).then_some(());
        eventually("it is fed anew", all).await;
        for at in 0..3 {
            assert_eq!(cluster.ledger(at).status().halted, None);
        }
    });
}
