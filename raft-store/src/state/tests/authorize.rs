use super::*;

fn tenant_actor(tenant: &str, n: u8) -> Actor {
    Actor { node: node_id(n), subject: "token 1".into(), tenant: Some(name(tenant)) }
}

#[test]
fn a_stranger_may_nothing() {
    let mut world = World::new();
    assert_eq!(world.no_from(9, admit(1, 5)), codes::DENIED);
    assert_eq!(world.no_from(9, cordon(2)), codes::DENIED);
}

#[test]
fn a_worker_speaks_for_itself_alone() {
    let mut world = World::new();
    world.run(1, spec(GIB), 4);
    world.run(2, spec(GIB), 2);
    world.ok_from(4, cordon(4));
    world.ok_from(4, Command::PlanAbsence { node: node_id(4), for_ms: 1000 });
    world.ok_from(4, Command::EndAbsence { node: node_id(4) });
    world.ok_from(4, admit(1, 5));
    world.ok_from(4, Command::Confirm { machine: machine_id(1), epoch: 1 });
    world.ok_from(4, move_begin(1, 1, 1, 2));
    world.ok_from(4, move_abort(1, 1, 1));
    let foreign = [
        cordon(2),
        remove(2, false),
        Command::PlanAbsence { node: node_id(2), for_ms: 1000 },
        Command::Confirm { machine: machine_id(2), epoch: 1 },
        Command::Place { items: vec![item(2, 1, &[4])] },
        takeover(2, 1, 2, &[4], 1),
        move_begin(2, 1, 2, 4),
        desire(1, Desired::Deleted),
        Command::RevokeToken { id: TokenId([1; 8]) },
        put_image("default", "evil", 1),
        Command::AddCa { ca: ca(5) },
        Command::SetFeatureLevel { level: 1 },
    ];
    for command in foreign {
        assert_eq!(world.no_from(4, command.clone()), codes::DENIED, "{command:?}");
    }
    // Nor does a tenant's token make it more.
    let result = world.ask_as(tenant_actor("default", 4), None, put_image("default", "x", 1));
    assert_eq!(result.unwrap_err().code, codes::DENIED);
}

#[test]
fn a_tenants_token_speaks_for_its_tree() {
    let mut world = World::new();
    for (tenant, parent) in [("top", None), ("sub", Some("top")), ("other", None)] {
        let parent = parent.map(name);
        world.ok(Command::CreateTenant { name: name(tenant), parent, quota: Quota::default() });
    }
    world.create(1, spec(GIB));
    let mut ask = |command| world.ask_as(tenant_actor("top", 1), None, command).map_err(|refusal| refusal.code);
    let denied = Err(codes::DENIED.to_owned());
    let under = |parent: Option<&str>| Command::CreateTenant {
        name: name("new"),
        parent: parent.map(name),
        quota: Quota::default(),
    };
    let quota = |tenant| Command::SetQuota { name: name(tenant), quota: Quota::default(), expected_revision: None };
    assert!(ask(put_image("top", "i", 1)).is_ok());
    assert!(ask(put_image("sub", "shell", 1)).is_ok());
    assert_eq!(ask(put_image("other", "i", 1)), denied);
    assert_eq!(ask(under(None)), denied);
    assert_eq!(ask(under(Some("other"))), denied);
    assert!(ask(under(Some("sub"))).is_ok());
    assert!(ask(quota("sub")).is_ok());
    assert_eq!(ask(quota("top")), denied, "its own limits are its parent's business");
    assert_eq!(ask(cordon(2)), denied);
    let create = |tenant| Command::CreateMachine {
        id: machine_id(2),
        tenant: name(tenant),
        name: name("m"),
        spec: Box::new(spec(GIB)),
        desired: Desired::Running,
    };
    assert_eq!(ask(create("default")), denied);
    assert!(ask(create("sub")).is_ok());
    assert!(ask(desire(2, Desired::Stopped)).is_ok());
    // What others own looks like what is not there.
    assert_eq!(ask(desire(1, Desired::Stopped)), Err(codes::NOT_FOUND.to_owned()));
    assert_eq!(ask(desire(9, Desired::Stopped)), Err(codes::NOT_FOUND.to_owned()));
}
