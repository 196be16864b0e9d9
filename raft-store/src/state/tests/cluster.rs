use super::*;

#[test]
fn nothing_works_before_init_and_init_works_once() {
    let mut world = World::empty();
    assert_eq!(world.no(Command::RevokeToken { id: TokenId([1; 8]) }), codes::NOT_INITIALIZED);
    assert_eq!(world.no_from(2, init(1)), codes::NOT_INITIALIZED, "a node initialises for itself");
    world.ok(init(1));
    assert_eq!(world.state.settings.cluster_id, ClusterId([9; 16]));
    assert!(world.state.tenants.contains_key(&name("default")));
    // A crash before the answer: the same question again.
    assert!(matches!(world.ok(init(1)), Outcome::Admitted { node } if node.id == node_id(1)));
    let mut other = init(1);
    if let Command::InitCluster { cluster_id, .. } = &mut other {
        *cluster_id = ClusterId([8; 16]);
    }
    assert_eq!(world.no(other), codes::INITIALIZED);
}

#[test]
fn the_feature_level_never_sinks_and_a_later_one_halts() {
    let mut world = World::new();
    world.ok(Command::SetFeatureLevel { level: 1 });
    assert_eq!(world.no(Command::SetFeatureLevel { level: 0 }), codes::INVALID);
    assert!(Command::SetFeatureLevel { level: 2 }.halts().is_some());
    assert_eq!(Command::SetFeatureLevel { level: 1 }.halts(), None);
}

#[test]
fn cas_are_a_bounded_list() {
    let mut world = World::new();
    for n in 2..=8 {
        world.ok(Command::AddCa { ca: ca(n) });
    }
    world.ok(Command::AddCa { ca: ca(8) });
    assert_eq!(world.no(Command::AddCa { ca: ca(9) }), codes::LIMIT);
    let empty = Ca { cert_der: vec![], key_pkcs8: vec![1] };
    assert_eq!(world.no(Command::AddCa { ca: empty }), codes::INVALID);
    assert!(!format!("{:?}", ca(1)).contains("[1, 1"), "a key reaches no log");
}

fn token(n: u8, uses: u32, ttl_ms: u64) -> Command {
    let (id, secret_hash) = (TokenId([n; 8]), Digest([n; 32]));
    Command::CreateToken { id, secret_hash, role: Role::Voter, uses, ttl_ms }
}

#[test]
fn tokens_have_bounds_and_can_be_revoked() {
    let mut world = World::new();
    assert_eq!(world.no(token(5, 0, 60_000)), codes::INVALID);
    assert_eq!(world.no(token(5, 5_001, 60_000)), codes::INVALID);
    assert_eq!(world.no(token(5, 1, 10)), codes::INVALID);
    let longest_ms = crate::limits::TOKEN_TTL_MAX.as_millis() as u64;
    assert_eq!(world.ask(token(5, 1, longest_ms + 1)).unwrap_err().message, "a token lives 1 second to 30 days");
    world.ok(token(6, 1, longest_ms));
    world.ok(token(5, 1, 60_000));
    assert_eq!(world.no(token(5, 1, 60_000)), codes::EXISTS);
    world.ok(Command::RevokeToken { id: TokenId([5; 8]) });
    assert_eq!(world.no(Command::RevokeToken { id: TokenId([5; 8]) }), codes::NOT_FOUND);
    assert_eq!(world.no(admit(5, 7)), codes::TOKEN_WRONG);
}

#[test]
fn tokens_that_ended_long_ago_are_forgotten() {
    let mut world = World::new();
    world.at_ms += 3_600_000 + 24 * 3_600_000;
    world.ok(token(5, 1, 60_000));
    assert_eq!(world.state.tokens.keys().copied().collect::<Vec<_>>(), [TokenId([5; 8])]);
}

#[test]
fn time_never_goes_back() {
    let mut world = World::new();
    world.at_ms = 500;
    world.ok(token(5, 1, 60_000));
    assert_eq!(world.state.settings.at_ms, 1_000_000);
    assert_eq!(world.state.tokens[&TokenId([5; 8])].created_ms, 1_000_000);
}
