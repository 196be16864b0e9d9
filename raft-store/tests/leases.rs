//! Leases through the ledger: granted by the leader alone, and in the way of a takeover.

mod common;

use common::{Cluster, id_of, machine, machine_id, name, place, run};
use fabric::limits::LEASE_TTL;
use raft_store::command::{Command, Outcome, PlaceResult};
use raft_store::lease::Verdict;
use raft_store::ledger::LedgerError;

fn takeover(from: u8, to: u8) -> Command {
    Command::Takeover {
        machine: machine_id(1),
        epoch: 1,
        from: id_of(from),
        candidates: vec![id_of(to)],
        judged_term: 0,
        reason: "it died".into(),
    }
}

#[test]
fn a_lease_protects_an_exclusive_machine_until_it_has_ended() {
    run(async {
        let mut cluster = Cluster::made(3).await;
        cluster.voters(3).await;
        for command in machine(1, true) {
            cluster.write(0, command).await.unwrap();
        }
        let leader = cluster.leader().await;
        let (owner, heir) = ((leader + 1) % 3, (leader + 2) % 3);
        let (owner_number, heir_number) = (owner as u8 + 1, heir as u8 + 1);
        cluster.write(0, place(machine_id(1), 0, id_of(owner_number))).await.unwrap();
        let renewal = cluster.ledger(owner).renew_lease().await.unwrap();
        assert_eq!(renewal.grant.ttl_ms, LEASE_TTL.as_millis() as u64);
        cluster.ledger(leader).renew_lease().await.unwrap();

        // While the owner is alive nothing may be taken from it, by whomever it is proposed.
        let refused = cluster.write(heir, takeover(owner_number, heir_number)).await.unwrap_err();
        assert!(matches!(refused, LedgerError::Refused(ref r) if r.code.starts_with("lease-")), "{refused}");

        let begun = tokio::time::Instant::now();
        cluster.kill(owner).await;
        let outcome = loop {
            let ledger = cluster.ledger(heir);
            let actor = raft_store::command::Actor::fabric(ledger.node());
            match ledger.write(actor, None, takeover(owner_number, heir_number)).await {
                Ok(applied) => break applied.outcome,
                Err(LedgerError::Refused(refusal)) => assert!(refusal.code.starts_with("lease-"), "{refusal}"),
                Err(error) => panic!("{error}"),
            }
            assert!(begun.elapsed() < LEASE_TTL * 3);
            common::poll_pause().await;
        };
        assert!(begun.elapsed() > LEASE_TTL - std::time::Duration::from_secs(1), "{:?}", begun.elapsed());
        let expected = PlaceResult::Placed { machine: machine_id(1), node: id_of(heir_number), epoch: 2 };
        assert_eq!(outcome, Outcome::Placed { items: vec![expected] });
        assert!(cluster.read(leader, |state| state.machine_by_name(&name("default"), &name("m1")).is_some()));
        // The takeover is over, so the owner may be granted leases again.
        cluster.start(owner).await.unwrap();
        cluster.ledger(owner).linearizable().await.unwrap();
        cluster.ledger(owner).renew_lease().await.unwrap();
        assert!(matches!(cluster.ledger(heir).judge(id_of(owner_number), true).await, Ok(Verdict::Held { .. })));
    });
}

#[test]
fn an_owner_that_says_what_runs_lives_though_its_leader_hears_nothing_else_of_it() {
    run(async {
        let mut cluster = Cluster::made(3).await;
        cluster.voters(3).await;
        for command in machine(1, false) {
            cluster.write(0, command).await.unwrap();
        }
        let leader = cluster.leader().await;
        let owner = (leader + 1) % 3;
        let id = id_of(owner as u8 + 1);
        cluster.write(0, place(machine_id(1), 0, id)).await.unwrap();
        cluster.kill(owner).await;
        let ledger = cluster.ledger(leader);
        let begun = tokio::time::Instant::now();
        while !matches!(ledger.judge(id, false).await, Ok(Verdict::Expired { .. })) {
            assert!(begun.elapsed() < LEASE_TTL * 3);
            common::poll_pause().await;
        }
        // As it comes through another member.
        let confirm = Command::Confirm { machine: machine_id(1), epoch: 1 };
        ledger.write(raft_store::command::Actor::fabric(id), None, confirm).await.unwrap();
        assert!(matches!(ledger.judge(id, false).await, Ok(Verdict::Held { .. })));
    });
}

#[test]
fn nobody_grants_in_a_minority() {
    run(async {
        let cluster = Cluster::made(3).await;
        cluster.voters(3).await;
        let leader = cluster.leader().await;
        cluster.isolate(leader);
        assert!(cluster.ledger(leader).renew_lease().await.is_err());
    });
}
