use super::*;

const KEY: Option<IdempotencyKey> = Some(IdempotencyKey([5; 16]));

fn create(id: u8, text: &str) -> Command {
    Command::CreateMachine {
        id: machine_id(id),
        tenant: name("default"),
        name: name(text),
        spec: Box::new(spec(GIB)),
        desired: Desired::Running,
    }
}

fn actor(subject: &str) -> Actor {
    Actor { subject: subject.into(), ..Actor::fabric(node_id(1)) }
}

#[test]
fn a_repeated_key_gets_the_recorded_answer() {
    let mut world = World::new();
    let first = world.ask_as(actor("a"), KEY, create(1, "web")).unwrap();
    // A retry through another node draws another id.
    assert_eq!(world.ask_as(actor("a"), KEY, create(2, "web")), Ok(first));
    assert_eq!(world.state.machines.len(), 1);
    let other = world.ask_as(actor("a"), KEY, create(2, "db")).unwrap_err();
    assert_eq!(other.code, codes::KEY_REUSED);
    // Another client's key is another key.
    let tenant = Actor { tenant: Some(name("default")), ..actor("a") };
    assert_eq!(world.ask_as(tenant, KEY, create(2, "web")).unwrap_err().code, codes::EXISTS);
}

#[test]
fn operators_are_one_client_and_a_worker_is_another() {
    let mut world = World::new();
    let root = |n: u8| Actor { subject: format!("root@n{n}"), ..Actor::fabric(node_id(n)) };
    let first = world.ask_as(root(1), KEY, create(1, "web")).unwrap();
    assert_eq!(world.ask_as(root(2), KEY, create(2, "web")), Ok(first), "the first node died before it answered");
    assert_eq!(world.state.machines.len(), 1);
    let forged = Actor { node: node_id(4), ..root(1) };
    assert_eq!(world.ask_as(forged, KEY, create(3, "web")).unwrap_err().code, codes::DENIED);
}

#[test]
fn a_refusal_is_remembered_too() {
    let mut world = World::new();
    world.ok(create(1, "web"));
    assert_eq!(world.ask_as(actor("a"), KEY, create(2, "web")).unwrap_err().code, codes::EXISTS);
    world.ok(desire(1, Desired::Deleted));
    let again = world.ask_as(actor("a"), KEY, create(2, "web")).unwrap_err();
    assert_eq!(again.code, codes::EXISTS, "the client was told so");
}

#[test]
fn answers_are_kept_for_a_day() {
    let mut world = World::new();
    world.ask_as(actor("a"), KEY, create(1, "web")).unwrap();
    world.at_ms += 24 * 3_600_000 - 1;
    assert!(world.ask_as(actor("a"), KEY, create(2, "web")).is_ok());
    world.at_ms += 1;
    assert_eq!(world.ask_as(actor("a"), KEY, create(2, "web")).unwrap_err().code, codes::EXISTS);
    assert_eq!(world.state.answers().count(), 1);
}

#[test]
fn answers_are_bounded() {
    let mut state = World::new().state;
    let record = |n: u64| IdempotencyRecord {
        key: IdempotencyKey([[n.to_le_bytes(); 2].concat().try_into().unwrap()][0]),
        request: [0; 8],
        at_ms: 1_000_000,
        index: n,
        answer: Answer::Done(Outcome::Removed),
    };
    for n in 0..fabric::limits::IDEMPOTENCY_RECORDS_MAX as u64 {
        state.keep_answer(record(n));
    }
    let mut world = World { state, index: 100, term: 1, at_ms: 1_000_000 };
    world.index += 1;
    let envelope = Envelope { actor: actor("a"), idempotency: KEY, at_ms: 1_000_000, command: create(1, "web") };
    world.state.apply(EntryContext::of(world.index, 1, &envelope), &envelope).unwrap();
    assert_eq!(world.state.answers().count(), fabric::limits::IDEMPOTENCY_RECORDS_MAX);
    assert_eq!(world.state.answers().next().unwrap().index, 1, "the oldest went");
}

#[test]
fn a_copy_of_the_records_gives_the_same_snapshot() {
    let mut world = World::new();
    world.ask_as(actor("a"), KEY, create(1, "web")).unwrap();
    let frames = |state: &State| crate::snapshot::to_records(state, crate::snapshot::CaKeys::With).collect::<Vec<_>>();
    let copy = world.state.records();
    assert_eq!(frames(&copy), frames(&world.state));
    assert_eq!(crate::snapshot::from_records(frames(&copy)), Ok(world.state));
}

#[test]
fn the_audit_is_a_chain() {
    let mut world = World::new();
    world.no(remove(9, false));
    let audit = &world.state.audit;
    for pair in audit.iter().zip(audit.iter().skip(1)) {
        assert_eq!(pair.0.hash(), pair.1.prev);
    }
    let last = audit.back().unwrap();
    assert_eq!(last.hash(), world.state.settings.audit_head);
    assert_eq!((last.verb.as_str(), last.result.as_str()), ("remove-node", codes::NOT_FOUND));
    assert_eq!(world.state.settings.audit_count, audit.len() as u64);
}

#[test]
fn the_audit_names_what_it_is_about_even_when_that_is_gone() {
    let mut world = World::new();
    world.ok(create(1, "web"));
    world.ok(desire(1, Desired::Deleted));
    world.no(desire(1, Desired::Running));
    let told =
        |entry: &AuditEntry| (entry.verb.clone(), entry.tenant.clone(), entry.about.clone(), entry.result.clone());
    let last: Vec<_> = world.state.audit.iter().rev().take(3).map(|entry| told(entry)).collect();
    let default = Some(name("default"));
    assert_eq!(last[2], ("create-machine".into(), default.clone(), "web".into(), "ok".into()));
    assert_eq!(last[1], ("delete-machine".into(), default, "web".into(), "ok".into()));
    assert_eq!(last[0].3, codes::NOT_FOUND);
}

#[test]
fn the_audit_is_read_from_any_index_that_is_kept() {
    let mut world = World::new();
    world.ok(create(1, "web"));
    let last = world.index;
    assert_eq!(world.state.audit_since(0).unwrap().count(), world.state.audit.len());
    assert_eq!(world.state.audit_since(last - 1).unwrap().map(|entry| entry.index).collect::<Vec<_>>(), [last]);
    assert_eq!(world.state.audit_since(last + 5).unwrap().count(), 0, "this copy is behind");
    // The first link was dropped.
    let gone = world.state.audit.pop_front().unwrap().index;
    let oldest = world.state.audit_since(gone.saturating_sub(1)).err().unwrap();
    assert_eq!(oldest, world.state.audit_oldest());
    assert_eq!(world.state.audit_since(oldest).unwrap().count(), world.state.audit.len());
}
