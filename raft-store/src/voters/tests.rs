use proptest::prelude::*;

use super::*;

fn id(n: u8) -> NodeId {
    NodeId([n; 32])
}

fn set(ids: &[u8]) -> BTreeSet<NodeId> {
    ids.iter().map(|n| id(*n)).collect()
}

fn node(n: u8) -> Candidate {
    Candidate {
        id: id(n),
        role: Role::Voter,
        zone: String::new(),
        alive: true,
        silent_for: Some(Duration::ZERO),
        caught_up: true,
        leaving: false,
        admitted_ms: u64::from(n),
    }
}

fn nodes(ids: &[u8]) -> Vec<Candidate> {
    ids.iter().map(|n| node(*n)).collect()
}

fn members(leader: u8, voters: &[u8], learners: &[u8]) -> Membership {
    Membership { leader: id(leader), voters: set(voters), learners: set(learners) }
}

/// Does what the plan says until it says nothing.
fn settle(mut membership: Membership, nodes: &[Candidate]) -> Membership {
    for _ in 0..50 {
        match plan(&membership, nodes, &Config::default()) {
            None => return membership,
            Some(change) => perform(&mut membership, change),
        }
    }
    panic!("the plan does not settle: {membership:?}");
}

fn perform(membership: &mut Membership, change: Change) {
    match change {
        Change::AddLearner(id) => assert!(membership.learners.insert(id) && !membership.voters.contains(&id)),
        Change::RemoveLearner(id) => assert!(membership.learners.remove(&id)),
        Change::ReplaceVoters(voters) => {
            assert!(voters.contains(&membership.leader), "leadership is transferred first");
            for id in &voters {
                assert!(membership.voters.contains(id) || membership.learners.remove(id), "{id:?} follows first");
            }
            membership.voters = voters;
        }
        Change::TransferLeadership(to) => {
            assert!(membership.voters.contains(&to) && to != membership.leader);
            membership.leader = to;
        }
    }
}

#[test]
fn a_cluster_grows_to_its_targets() {
    let grow = |n: u8| settle(members(1, &[1], &[]), &nodes(&(1..=n).collect::<Vec<_>>()));
    assert_eq!(grow(1), members(1, &[1], &[]));
    assert_eq!(grow(2), members(1, &[1], &[2]));
    assert_eq!(grow(3), members(1, &[1, 2, 3], &[]));
    assert_eq!(grow(6), members(1, &[1, 2, 3], &[4, 5]));
    assert_eq!(grow(9), members(1, &[1, 2, 3, 4, 5], &[6, 7]));
}

#[test]
fn two_voters_are_never_made() {
    let mut three = nodes(&[1, 2, 3]);
    three[2].alive = false;
    three[2].silent_for = None;
    assert_eq!(settle(members(1, &[1], &[]), &three), members(1, &[1], &[2]));
}

#[test]
fn workers_neither_vote_nor_stand_by() {
    let mut four = nodes(&[1, 2, 3, 4]);
    four[1].role = Role::Worker;
    four[2].role = Role::Worker;
    assert_eq!(settle(members(1, &[1], &[]), &four), members(1, &[1], &[4]));
}

#[test]
fn voters_spread_over_zones() {
    let mut six = nodes(&[1, 2, 3, 4, 5, 6]);
    for (node, zone) in six.iter_mut().zip(["a", "a", "a", "b", "b", "c"]) {
        node.zone = zone.into();
    }
    assert_eq!(settle(members(1, &[1], &[]), &six).voters, set(&[1, 4, 6]));
}

#[test]
fn a_voter_is_replaced_when_it_is_down_and_silent_long_enough() {
    let mut five = nodes(&[1, 2, 3, 4, 5]);
    let start = members(1, &[1, 2, 3], &[4, 5]);
    five[2].alive = false;
    five[2].silent_for = Some(Duration::from_secs(59));
    assert_eq!(plan(&start, &five, &Config::default()), None, "a hiccup");
    five[2].silent_for = Some(Duration::from_secs(60));
    assert_eq!(plan(&start, &five, &Config::default()), Some(Change::ReplaceVoters(set(&[1, 2, 4]))));
    five[3].caught_up = false;
    assert_eq!(plan(&start, &five, &Config::default()), None, "the replacement catches up first");
    five[2].alive = true;
    assert_eq!(plan(&start, &five, &Config::default()), None, "it is back");
}

#[test]
fn a_lost_voter_without_a_replacement_keeps_its_seat() {
    let mut three = nodes(&[1, 2, 3]);
    three[2].alive = false;
    three[2].silent_for = None;
    assert_eq!(plan(&members(1, &[1, 2, 3], &[]), &three, &Config::default()), None);
}

#[test]
fn a_removed_voter_goes_at_once() {
    let start = members(1, &[1, 2, 9], &[4]);
    let mut three = nodes(&[1, 2, 4]);
    three[2].caught_up = false;
    assert_eq!(plan(&start, &three, &Config::default()), Some(Change::ReplaceVoters(set(&[1, 2]))));
    three[2].caught_up = true;
    assert_eq!(plan(&start, &three, &Config::default()), Some(Change::ReplaceVoters(set(&[1, 2, 4]))));
}

#[test]
fn the_leader_hands_over_before_it_is_demoted() {
    let four = nodes(&[2, 3, 4]);
    let start = members(1, &[1, 2, 3], &[4]);
    assert_eq!(plan(&start, &four, &Config::default()), Some(Change::TransferLeadership(id(2))));
    assert_eq!(settle(start, &four), members(2, &[2, 3, 4], &[]));
    // A single voter that is removed makes its heirs voters first.
    assert_eq!(settle(members(1, &[1], &[2]), &nodes(&[2, 3, 4])).voters, set(&[2, 3, 4]));
}

#[test]
fn nothing_is_changed_without_a_quorum() {
    let mut five = nodes(&[1, 2, 3, 4, 5]);
    for dead in [1, 2] {
        five[dead].alive = false;
        five[dead].silent_for = None;
    }
    assert_eq!(plan(&members(1, &[1, 2, 3], &[]), &five, &Config::default()), None);
}

#[test]
fn a_shrinking_cluster_gives_up_voters() {
    assert_eq!(settle(members(1, &[1, 2, 3, 4, 5], &[]), &nodes(&[1, 2, 3])), members(1, &[1, 2, 3], &[]));
    assert_eq!(settle(members(2, &[1, 2, 3], &[]), &nodes(&[1, 2])).voters, set(&[2]), "the leader is the last to go");
}

#[test]
fn tolerance_in_words() {
    let say = |voters: &[(&str, bool)], nodes| {
        let voters: Vec<_> = voters.iter().map(|(name, alive)| ((*name).to_owned(), *alive)).collect();
        let tolerance = tolerance(&voters, nodes);
        (tolerance.failures, tolerance.words)
    };
    let words = |failures, text: &str| (failures, text.to_owned());
    assert_eq!(say(&[], 0), words(None, "this node does not know yet which nodes are its cluster's voters"));
    assert_eq!(say(&[("n1", true)], 1), words(Some(0), "losing n1 stops writes: add two nodes"));
    assert_eq!(say(&[("n1", true)], 2), words(Some(0), "losing n1 stops writes: add a third node"));
    assert_eq!(say(&[("n1", true)], 3), words(Some(0), "losing n1 stops writes: more voters are on their way"));
    let three = [("n1", true), ("n2", true), ("n3", true)];
    assert_eq!(say(&three, 3), words(Some(1), "any one of n1, n2 and n3 may fail"));
    let two = [("n1", true), ("n2", true), ("n3", false)];
    assert_eq!(say(&two, 3), words(Some(0), "losing n1 or n2 stops writes: bring n3 back"));
    let one = [("n1", true), ("n2", false), ("n3", false)];
    assert_eq!(
        say(&one, 3),
        words(None, "writes have stopped: 1 of 3 voters are alive, 2 are needed: bring n2 or n3 back")
    );
    assert_eq!(say(&[("a", true), ("b", true), ("c", true), ("d", true), ("e", true)], 9).0, Some(2));
}

fn candidate() -> impl Strategy<Value = Candidate> {
    (0u8..12, any::<bool>(), 0u8..4, any::<bool>(), proptest::option::of(0u64..120), any::<bool>()).prop_map(
        |(n, worker, zone, alive, silent, caught_up)| Candidate {
            role: if worker && n % 3 == 0 { Role::Worker } else { Role::Voter },
            zone: ["", "a", "b", "c"][zone as usize].into(),
            alive,
            silent_for: silent.map(Duration::from_secs),
            caught_up,
            ..node(n)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the cluster looks like, a change keeps a quorum, concerns nodes that may vote, and repeating ends.
    #[test]
    fn every_change_is_safe_and_changes_end(
        list in proptest::collection::btree_map(0u8..12, candidate(), 1..12),
        voters in proptest::collection::btree_set(0u8..12, 1..6),
        learners in proptest::collection::btree_set(0u8..12, 0..4),
    ) {
        let list: Vec<Candidate> = list.into_iter().map(|(n, c)| Candidate { id: id(n), ..c }).collect();
        let leader = *voters.first().unwrap();
        let mut now = Membership {
            leader: id(leader),
            voters: voters.iter().map(|n| id(*n)).collect(),
            learners: learners.difference(&voters).map(|n| id(*n)).collect(),
        };
        let may_vote = |n: &NodeId| list.iter().any(|c| c.id == *n && c.role == Role::Voter);
        for round in 0.. {
            prop_assert!(round < 60, "no end: {now:?}");
            let Some(change) = plan(&now, &list, &Config::default()) else { break };
            if let Change::ReplaceVoters(next) = &change {
                let alive = |n: &&NodeId| **n == now.leader || list.iter().any(|c| c.id == **n && c.alive);
                prop_assert!(next.iter().filter(alive).count() * 2 > next.len());
                prop_assert!(next.iter().all(|n| may_vote(n) || *n == now.leader));
            }
            if let Change::AddLearner(n) = &change {
                prop_assert!(may_vote(n));
            }
            perform(&mut now, change);
        }
    }
}

#[test]
fn who_is_about_to_go_gives_up_its_seat_and_counts_until_then() {
    let leaving =
        |gone: u8, ids: &[u8]| ids.iter().map(|n| Candidate { leaving: *n == gone, ..node(*n) }).collect::<Vec<_>>();
    // Two voters are left of three, and both are needed for the change.
    assert_eq!(settle(members(5, &[2, 5], &[]), &leaving(2, &[2, 3, 4, 5])).voters, set(&[3, 4, 5]));
    assert_eq!(settle(members(1, &[1, 2, 3], &[4, 5]), &leaving(1, &[1, 2, 3, 4, 5])).voters, set(&[2, 3, 4]));
    // The only one that votes hands over first.
    let settled = settle(members(1, &[1], &[]), &leaving(1, &[1, 2]));
    assert_eq!((settled.leader, settled.voters), (id(2), set(&[2])));
    let settled = settle(members(1, &[1, 2, 3], &[]), &leaving(1, &[1, 2, 3]));
    assert!(settled.voters == BTreeSet::from([settled.leader]) && settled.leader != id(1), "{settled:?}");
}
