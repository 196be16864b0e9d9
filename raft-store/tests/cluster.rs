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
