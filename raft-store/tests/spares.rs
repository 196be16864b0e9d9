//! Nodes outside Raft: they write and read through the others, and are fed what concerns them.

mod common;

use std::time::Duration;

use common::{Cluster, eventually, id_of, machine, machine_id, name, place, run, tenant};
use raft_store::command::{Command, NodePatch};
use raft_store::ledger::{LedgerError, Part};

/// A change of the worker itself, so that it is in its feed.
fn cordon(cordoned: bool) -> Command {
    let patch = NodePatch { cordoned: Some(cordoned), ..NodePatch::default() };
    Command::UpdateNode { node: id_of(4), patch: Box::new(patch), expected_revision: None }
}

#[test]
fn a_worker_is_fed_its_machines_and_keeps_them_over_a_restart() {
    run(async {
        let mut cluster = Cluster::with_worker().await;
        for command in machine(1, false) {
            cluster.write(0, command).await.unwrap();
        }
        cluster.write(1, place(machine_id(1), 0, id_of(4))).await.unwrap();
        let mine = eventually("the worker knows its machine", || {
            let mine = cluster.ledger(3).mine();
            (mine.machines.len() == 1).then_some(mine)
        })
        .await;
        assert_eq!(mine.machines[0].id, machine_id(1));
        // Its reads show as much, and that is no reason to take anything else for gone.
        assert_eq!(cluster.read(3, |state| state.machines_on(id_of(4)).count()), 1);
        cluster.ledger(3).linearizable().await.unwrap();
        assert_eq!(cluster.read(3, |state| state.nodes.len()), 1);
        assert_eq!(cluster.ledger(3).status().part, Part::Spare);
        // It confirms by a forwarded write, which shows in its feed.
        let confirm = Command::Confirm { machine: machine_id(1), epoch: 1 };
        cluster.write(3, confirm).await.unwrap();
        eventually("the confirmation comes back", || {
            cluster.ledger(3).mine().machines[0].placement.filter(|placement| placement.confirmed)
        })
        .await;
        // Cut off and restarted, it still knows.
        cluster.kill(3).await;
        cluster.isolate(3);
        cluster.start(3).await.unwrap();
        assert_eq!(cluster.ledger(3).mine().machines.len(), 1);
        assert_eq!(cluster.ledger(3).mine().node.unwrap().name, name("n4"));
    });
}

#[test]
fn a_worker_goes_by_the_cluster_s_time_whatever_its_own_clock_says() {
    run(async {
        let mut cluster = Cluster::with_worker().await;
        cluster.kill(3).await;
        cluster.hosts[3].behind = Duration::from_secs(3600);
        cluster.start(3).await.unwrap();
        for at in [0, 3] {
            let index = cluster.write(0, cordon(at == 0)).await.unwrap();
            eventually("the worker is fed", || (cluster.ledger(3).mine().at.1 >= index).then_some(())).await;
            let (stamp, shown) = (cluster.read(0, |state| state.settings.at_ms), cluster.ledger(3).now_ms());
            assert!((stamp..stamp + 60_000).contains(&shown), "{shown} is not soon after {stamp}");
        }
        // Nothing that concerns it: its view is confirmed, with the time of then.
        cluster.write(0, tenant(1)).await.unwrap();
        let stamp = cluster.read(0, |state| state.settings.at_ms);
        cluster.ledger(3).linearizable().await.unwrap();
        assert!(cluster.read(3, |state| state.settings.at_ms) >= stamp);
        // Cut off and restarted, it goes on from what it was told with news of itself.
        let told = cluster.ledger(3).mine().at_ms;
        cluster.kill(3).await;
        cluster.isolate(3);
        cluster.start(3).await.unwrap();
        let now = cluster.ledger(3).now_ms();
        assert!(now > told - 60_000, "{now} is long before {told}");
    });
}

#[test]
fn a_worker_is_not_held_back_by_a_member_that_is_cut_off() {
    run(async {
        let cluster = Cluster::with_worker().await;
        for command in machine(1, false) {
            cluster.write(0, command).await.unwrap();
        }
        cluster.write(0, place(machine_id(1), 0, id_of(4))).await.unwrap();
        // Whichever of them feeds it: in turn each follower hears nobody, and goes on speaking with the worker.
        let leader = cluster.leader().await;
        for deaf in (0..3).filter(|at| *at != leader) {
            for other in (0..3).filter(|at| *at != deaf) {
                cluster.net.cut_one_way(cluster.hosts[other].id, cluster.hosts[deaf].id);
            }
            let patch = cordon(deaf % 2 == 0);
            let index = cluster.write(leader, patch).await.unwrap();
            eventually("the worker is fed by another", || (cluster.ledger(3).mine().at.1 >= index).then_some(())).await;
            cluster.net.heal();
        }
    });
}

/// Requests for pages of the feed.
const PAGE: u16 = 109;

#[test]
fn a_worker_s_linearizable_read_shows_what_became_of_its_machines() {
    run(async {
        let cluster = Cluster::with_worker().await;
        for number in [1, 2] {
            for command in machine(number, false) {
                cluster.write(0, command).await.unwrap();
            }
            cluster.write(0, place(machine_id(number), 0, id_of(4))).await.unwrap();
        }
        let owned = |cluster: &Cluster| cluster.read(3, |state| state.machines_on(id_of(4)).count());
        cluster.ledger(3).linearizable().await.unwrap();
        assert_eq!(owned(&cluster), 2, "no waiting for the feed");
        // Entries that do not concern it bring no page, and are no reason to wait for one.
        let index = cluster.write(0, tenant(1)).await.unwrap();
        let begun = tokio::time::Instant::now();
        cluster.ledger(3).wait_applied(index).await.unwrap();
        cluster.ledger(3).linearizable().await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert!(*cluster.ledger(3).changed().borrow() >= index);

        // A machine that it releases is gone from its view, and exists.
        let release = Command::Release { machine: machine_id(1), epoch: 1 };
        let index = cluster.write(3, release).await.unwrap();
        cluster.ledger(3).wait_applied(index).await.unwrap();
        assert_eq!(owned(&cluster), 1);
        assert_eq!(cluster.read(3, |state| state.machines.len()), 1);
        assert_eq!(cluster.read(0, |state| state.machines.len()), 2);
    });
}

#[test]
fn a_worker_whose_feed_is_cut_does_not_take_its_view_for_current() {
    run(async {
        let cluster = Cluster::with_worker().await;
        for command in machine(1, false) {
            cluster.write(0, command).await.unwrap();
        }
        cluster.write(0, place(machine_id(1), 0, id_of(4))).await.unwrap();
        cluster.ledger(3).linearizable().await.unwrap();
        // Its writes arrive, and no page does.
        cluster.net.muted.lock().unwrap().insert((id_of(4), PAGE));
        let index = cluster.write(3, Command::Release { machine: machine_id(1), epoch: 1 }).await.unwrap();
        assert!(cluster.ledger(3).wait_applied(index).await.is_err());
        assert!(cluster.ledger(3).linearizable().await.is_err());
        assert!(cluster.ledger(3).read_at(|at, _| at) < index);
        cluster.net.muted.lock().unwrap().clear();
        cluster.ledger(3).wait_applied(index).await.unwrap();
        assert!(cluster.ledger(3).read_at(|at, _| at) >= index);
        assert_eq!(cluster.read(3, |state| state.machines_on(id_of(4)).count()), 0);
    });
}

#[test]
fn a_worker_s_lease_waits_for_news_of_its_own_machines_alone() {
    run(async {
        let cluster = Cluster::with_worker().await;
        for command in machine(1, true) {
            cluster.write(0, command).await.unwrap();
        }
        let placed = cluster.write(0, place(machine_id(1), 0, id_of(4))).await.unwrap();
        cluster.ledger(3).linearizable().await.unwrap();
        // Others write; nothing of it reaches the worker, and its view covers every grant all the same.
        cluster.net.muted.lock().unwrap().insert((id_of(4), PAGE));
        for number in 1..=20 {
            cluster.write(0, tenant(number)).await.unwrap();
            let revision = cluster.ledger(3).renew_lease().await.unwrap().grant.revision;
            assert_eq!(revision, placed);
            assert!(cluster.ledger(3).read_at(|at, _| at) >= revision);
        }
        // What changes its machines it must have seen, also when it has lost one.
        let lost = cluster.write(3, Command::Release { machine: machine_id(1), epoch: 1 }).await.unwrap();
        assert_eq!(cluster.ledger(3).renew_lease().await.unwrap().grant.revision, lost);
        assert!(cluster.ledger(3).read_at(|at, _| at) < lost);
    });
}

#[test]
fn a_worker_cannot_speak_for_others_nor_read_everything() {
    run(async {
        let cluster = Cluster::with_worker().await;
        let error = cluster.write(3, tenant(1)).await.unwrap_err();
        assert!(matches!(error, LedgerError::Refused(ref refusal) if refusal.code == "denied"), "{error}");
        // In another's name it is refused before apply.
        let actor = raft_store::command::Actor::fabric(id_of(1));
        let error = cluster.ledger(3).write(actor, None, tenant(1)).await.unwrap_err();
        assert!(matches!(error, LedgerError::Refused(ref refusal) if refusal.code == "denied"), "{error}");
        assert!(cluster.ledger(3).refresh(Duration::ZERO).await.is_err());
    });
}

#[test]
fn a_spare_reads_everything_but_the_ca_keys() {
    run(async {
        // Seven admitted would be five voters; the sixth and seventh stand by, the eighth is a spare.
        let cluster = Cluster::made(8).await;
        cluster.voters(5).await;
        eventually("two standbys", || {
            let at =
                cluster.hosts.iter().position(|host| host.ledger.as_ref().unwrap().status().part == Part::Leader)?;
            (cluster.ledger(at).status().standbys.len() == 2).then_some(())
        })
        .await;
        let spare = eventually("one spare", || {
            let parts: Vec<Part> = (0..8).map(|at| cluster.ledger(at).status().part).collect();
            let spares: Vec<usize> = (0..8).filter(|at| parts[*at] == Part::Spare).collect();
            (spares.len() == 1).then(|| spares[0])
        })
        .await;
        let index = cluster.write(spare, tenant(1)).await.unwrap();
        cluster.ledger(spare).linearizable().await.unwrap();
        assert!(cluster.read(spare, |state| state.tenants.contains_key(&name("t1"))));
        assert!(cluster.read(spare, |state| state.settings.index >= index));
        assert!(cluster.read(spare, |state| state.cas.values().all(|ca| ca.key_pkcs8.is_none())));
        assert!(cluster.read(0, |state| state.cas.values().all(|ca| ca.key_pkcs8.is_some())));
        let status = cluster.ledger(spare).status();
        assert_eq!((status.voters.len(), status.tolerance), (5, Some(2)), "{status:?}");
    });
}
