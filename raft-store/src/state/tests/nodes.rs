use super::*;

#[test]
fn a_token_gives_the_role_and_a_use_is_burned_once() {
    let mut world = World::new();
    assert_eq!(world.state.nodes[&node_id(4)].role, Role::Worker);
    let before = world.state.tokens[&TokenId([1; 8])].admitted.len();
    // The certificate never arrived: the joiner asks again.
    assert!(matches!(world.ok(admit(1, 2)), Outcome::Admitted { node } if node.id == node_id(2)));
    assert_eq!(world.state.tokens[&TokenId([1; 8])].admitted.len(), before);
    // With another token: no use of it is burned.
    world.ok(admit(2, 2));
    assert_eq!(world.state.nodes[&node_id(2)].role, Role::Voter);
    assert!(!world.state.tokens[&TokenId([2; 8])].admitted.contains(&node_id(2)));
}

#[test]
fn bad_tokens_are_told_apart() {
    let mut world = World::new();
    world.ok(Command::CreateToken {
        id: TokenId([5; 8]),
        secret_hash: Digest([5; 32]),
        role: Role::Voter,
        uses: 1,
        ttl_ms: 60_000,
    });
    assert_eq!(world.no(admit(6, 5)), codes::TOKEN_WRONG);
    let mut wrong = admit(5, 5);
    if let Command::AdmitNode { secret_hash, .. } = &mut wrong {
        *secret_hash = Digest([6; 32]);
    }
    assert_eq!(world.no(wrong), codes::TOKEN_WRONG);
    world.ok(admit(5, 5));
    assert_eq!(world.no(admit(5, 6)), codes::TOKEN_USED_UP);
    world.at_ms += 60_000;
    assert_eq!(world.no(admit(5, 6)), codes::TOKEN_EXPIRED);
    world.ok(admit(5, 5));
}

#[test]
fn a_joiner_must_be_sound() {
    let mut world = World::new();
    type Breaker = fn(&mut NodeRecord);
    let cases: [(&str, &str, Breaker); 6] = [
        ("name", codes::EXISTS, |n| n.name = name("n2")),
        ("id", codes::INVALID, |n| n.id = node_id(9)),
        ("zone", codes::INVALID, |n| n.zone = "bad zone".into()),
        ("address", codes::INVALID, |n| n.address = "n5:7420".into()),
        ("labels", "invalid", |n| drop(n.labels.insert("bad key".into(), String::new()))),
        ("capacity", codes::INVALID, |n| n.capacity.memory_bytes = u64::MAX),
    ];
    for (field, code, break_it) in cases {
        let mut record = node(5);
        break_it(&mut record);
        let command =
            Command::AdmitNode { token: TokenId([1; 8]), secret_hash: Digest([1; 32]), node: Box::new(record) };
        let refusal = world.ask(command).unwrap_err();
        assert_eq!((refusal.field.as_deref(), &*refusal.code), (Some(field), code));
    }
}

#[test]
fn updates_change_what_they_name_and_mind_the_revision() {
    let mut world = World::new();
    let labels = LabelPatch { set: [("disk".into(), "ssd".into())].into(), remove: vec![] };
    world.ok(patch(2, NodePatch { zone: Some("a".into()), labels, ..NodePatch::default() }));
    let node = &world.state.nodes[&node_id(2)];
    assert_eq!((node.zone.as_str(), node.labels["disk"].as_str(), node.cordoned), ("a", "ssd", false));
    let revision = node.revision;
    assert_eq!(world.ok(patch(2, NodePatch::default())), Outcome::Done { revision }, "no change, no revision");
    let stale = Command::UpdateNode { node: node_id(2), patch: Box::default(), expected_revision: Some(revision - 1) };
    assert_eq!(world.no(stale), codes::REVISION);
    assert_eq!(world.no(patch(9, NodePatch::default())), codes::NOT_FOUND);
    let far = NodePatch { address: Some("nowhere".into()), ..NodePatch::default() };
    assert_eq!(world.no(patch(2, far)), codes::INVALID);
}

#[test]
fn a_node_cannot_declare_less_than_it_promised() {
    let mut world = World::new();
    world.run(1, spec(4 * GIB), 2);
    let declare = |memory_bytes| {
        let capacity = Some(Capacity { cpu_millis: 4000, memory_bytes, disk_bytes: 0 });
        patch(2, NodePatch { capacity, ..NodePatch::default() })
    };
    let refusal = world.ask(declare(3 * GIB)).unwrap_err();
    assert_eq!(refusal.message, "0.1 CPU and 4 GiB are guaranteed to machines on node n2");
    world.ok(declare(4 * GIB));
    assert_eq!(world.state.free(node_id(2)).memory_bytes, 0);
}

#[test]
fn an_absence_has_an_end() {
    let mut world = World::new();
    assert_eq!(world.no(Command::PlanAbsence { node: node_id(2), for_ms: 3_600_001 }), codes::INVALID);
    world.ok(Command::PlanAbsence { node: node_id(2), for_ms: 60_000 });
    assert!(world.state.is_absent(node_id(2)));
    assert_eq!(world.state.absences[&node_id(2)].for_ms, 60_000);
    world.at_ms += 60_000;
    world.ok(cordon(3));
    assert!(!world.state.is_absent(node_id(2)));
    world.ok(Command::EndAbsence { node: node_id(2) });
    assert_eq!(world.state.nodes[&node_id(2)].absent_until_ms, None);
    assert!(world.state.absences.is_empty());
}

#[test]
fn a_node_with_machines_is_removed_by_force_only() {
    let mut world = World::new();
    world.run(1, spec(GIB), 2);
    world.run(2, spec(GIB), 2);
    world.run(3, spec(GIB), 3);
    world.ok(desire(2, Desired::Deleted));
    world.ok(move_begin(3, 1, 1, 2));
    let refusal = world.ask(remove(2, false)).unwrap_err();
    assert_eq!(refusal.message, "node n2 has 3 machines");
    world.ok(remove(2, true));
    assert_eq!(world.placement(1).node, node_id(2), "its lease may still run: only a takeover moves it");
    assert!(!world.state.machines.contains_key(&machine_id(2)), "nobody is left to destroy it");
    assert_eq!(world.placement(3).moving, None);
    assert_eq!(world.no(move_switch(3, 1, 1)), codes::DENIED);
    assert_eq!(world.no_from(3, move_switch(3, 1, 1)), codes::NO_MOVE);
    assert_eq!(world.ok(remove(2, false)), Outcome::Removed, "idempotent");
    assert_eq!(world.no(admit(1, 2)), codes::NODE_REMOVED);
    assert_eq!(world.no_from(2, cordon(2)), codes::DENIED);
    assert!(matches!(world.takeover(1, 2, &[3], 1), Ok(PlaceResult::Placed { .. })));
}

#[test]
fn somebody_must_be_able_to_vote() {
    let mut world = World::new();
    world.ok(remove(2, false));
    world.ok(remove(3, false));
    assert_eq!(world.no(remove(1, true)), codes::LAST_VOTER);
    world.ok(remove(4, false));
    let wrong = Command::RemoveNode { node: node_id(1), tombstone: tombstone(2), force: true, expected_revision: None };
    assert_eq!(world.no(wrong), codes::INVALID);
}
