//! A node that the leader does not answer writes through another one.

mod common;

use std::time::Duration;

use common::{Cluster, eventually, id_of, machine, machine_id, place, run, tenant};
use raft_store::command::{Actor, Command};
use raft_store::ledger::{LedgerError, Part};
use tokio::time::Instant;

#[test]
fn a_follower_that_cannot_hear_the_leader_writes_through_another() {
    run(async {
        let cluster = Cluster::with_worker().await;
        let leader = cluster.leader().await;
        let deaf = (leader + 1) % 3;
        cluster.net.cut_one_way(cluster.hosts[leader].id, cluster.hosts[deaf].id);
        for number in 0..5 {
            cluster.write(deaf, tenant(number)).await.unwrap();
        }
        // Nobody was deposed for it, and every write was done once.
        assert_eq!(cluster.ledger(leader).status().part, Part::Leader);
        cluster.ledger(leader).linearizable().await.unwrap();
        assert_eq!(cluster.read(leader, |state| state.tenants.len()), 6);
        let made = |state: &raft_store::state::State| state.audit.iter().filter(|e| e.verb == "create-tenant").count();
        assert_eq!(cluster.read(leader, made), 5);
        // The same when it can neither hear nor tell the leader.
        cluster.net.cut_one_way(cluster.hosts[deaf].id, cluster.hosts[leader].id);
        cluster.write(deaf, tenant(5)).await.unwrap();
        cluster.net.heal();
        cluster.ledger(deaf).linearizable().await.unwrap();
        assert_eq!(cluster.read(deaf, |state| state.tenants.len()), 7);
    });
}

/// Between two readings of clocks at one moment of a test.
const ROUNDING: Duration = Duration::from_millis(50);

/// Kind of the request that has a lease renewed through another.
const RELAY_RENEW: fabric::rpc::Kind = 112;

#[test]
fn a_lease_is_renewed_through_another_and_counts_from_the_first_asking() {
    run(async {
        let cluster = Cluster::with_worker().await;
        let leader = cluster.leader().await;
        let deaf = (leader + 1) % 3;
        let renew = async |host: usize| {
            // Who knows no leader may ask the very one that does not answer it through itself.
            for _ in 0..6 {
                let begun = Instant::now();
                if let Ok(renewal) = cluster.ledger(host).renew_lease().await {
                    return (renewal, begun.elapsed());
                }
            }
            panic!("host {host} gets no lease");
        };
        let term = renew(leader).await.0.grant.term;
        for host in [deaf, 3] {
            let (one, other) = (cluster.hosts[leader].id, cluster.hosts[host].id);
            cluster.net.cut_one_way(one, other);
            let (first, took) = renew(host).await;
            let (second, _) = renew(host).await;
            assert_eq!(first.grant.term, term, "the same leader grants it");
            // The time that the way around took is the holder's loss: both clocks are read within a few instructions.
            assert!(took > ROUNDING && second.sent - first.sent + ROUNDING > took, "{first:?} {second:?} {took:?}");
            // The same when it can neither hear nor tell the leader.
            cluster.net.cut_one_way(other, one);
            assert_eq!(renew(host).await.0.grant.term, term);
            cluster.net.heal();
        }
        assert_eq!(cluster.ledger(leader).status().part, Part::Leader);
        // Nobody tries it through the worker, which hears no leader and is believed by none.
        assert!(!cluster.net.called.lock().unwrap().contains(&(id_of(4), RELAY_RENEW)));
    });
}

#[test]
fn a_worker_writes_about_itself_through_another_and_no_more() {
    run(async {
        let cluster = Cluster::with_worker().await;
        let leader = cluster.leader().await;
        for command in machine(1, false) {
            cluster.write(leader, command).await.unwrap();
        }
        cluster.write(leader, place(machine_id(1), 0, id_of(4))).await.unwrap();
        eventually("the worker knows its machine", || (cluster.ledger(3).mine().machines.len() == 1).then_some(()))
            .await;
        cluster.net.cut_one_way(cluster.hosts[leader].id, id_of(4));
        cluster.write(3, Command::Confirm { machine: machine_id(1), epoch: 1 }).await.unwrap();
        let denied = |error: &LedgerError| matches!(error, LedgerError::Refused(refusal) if refusal.code == "denied");
        let error = cluster.write(3, tenant(1)).await.unwrap_err();
        assert!(denied(&error), "{error}");
        // Nobody is believed to be another, whoever passes it on.
        let error = cluster.ledger(3).write(Actor::fabric(id_of(1)), None, tenant(1)).await.unwrap_err();
        assert!(denied(&error), "{error}");
    });
}
