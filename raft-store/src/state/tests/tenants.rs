use super::*;

fn tenant(text: &str, parent: Option<&str>) -> Command {
    Command::CreateTenant { name: name(text), parent: parent.map(name), quota: Quota::default() }
}

fn quota(text: &str, quota: Quota) -> Command {
    Command::SetQuota { name: name(text), quota, expected_revision: None }
}

fn delete(text: &str) -> Command {
    Command::DeleteTenant { name: name(text), expected_revision: None }
}

fn create(n: u8, tenant: &str, memory_bytes: u64) -> Command {
    let machine = name(&format!("m{n}"));
    Command::CreateMachine {
        id: machine_id(n),
        tenant: name(tenant),
        name: machine,
        spec: Box::new(spec(memory_bytes)),
        desired: Desired::Running,
    }
}

#[test]
fn tenants_form_a_bounded_tree() {
    let mut world = World::new();
    world.ok(tenant("t1", None));
    assert_eq!(world.no(tenant("t1", None)), codes::EXISTS);
    assert_eq!(world.no(tenant("t2", Some("nobody"))), codes::NOT_FOUND);
    for level in 2..=8 {
        world.ok(tenant(&format!("t{level}"), Some(&format!("t{}", level - 1))));
    }
    assert_eq!(world.no(tenant("t9", Some("t8"))), codes::LIMIT);
    assert!(world.state.is_within(&name("t8"), &name("t1")));
    assert!(!world.state.is_within(&name("t1"), &name("t8")));
    assert_eq!(world.no(delete("t1")), codes::IN_USE);
    world.ok(delete("t8"));
    world.ok(delete("t7"));
    assert_eq!(world.no(delete("t7")), codes::NOT_FOUND);
}

#[test]
fn a_tenant_that_owns_something_stays() {
    let mut world = World::new();
    world.ok(tenant("t", None));
    world.ok(put_image("t", "shell", 1));
    world.ok(create(1, "t", GIB));
    let refusal = world.ask(delete("t")).unwrap_err();
    assert_eq!(refusal.message, "tenant t owns 1 machine, 1 image and 0 tenants");
    world.ok(desire(1, Desired::Deleted));
    world.ok(Command::DeleteImage { tenant: name("t"), name: name("shell"), expected_revision: None });
    world.ok(delete("t"));
}

#[test]
fn quotas_hold_for_the_tenant_and_all_above_it() {
    let mut world = World::new();
    world.ok(tenant("top", None));
    world.ok(tenant("sub", Some("top")));
    world.ok(put_image("sub", "shell", 1));
    world.ok(put_image("top", "shell", 1));
    world.ok(quota("top", Quota { memory_bytes: Some(3 * GIB), ..Quota::default() }));
    world.ok(create(1, "sub", 2 * GIB));
    let refusal = world.ask(create(2, "sub", 2 * GIB)).unwrap_err();
    assert_eq!(refusal.message, "the quota of tenant top is exceeded: 4 GiB of 3 GiB memory");
    world.ok(create(2, "top", GIB));
    assert_eq!(world.no(create(3, "top", GIB)), codes::QUOTA);
    assert_eq!(world.no(quota("top", Quota { machines: Some(1), ..Quota::default() })), codes::IN_USE);
    assert_eq!(world.no(quota("sub", Quota { cpu_millis: Some(99), ..Quota::default() })), codes::IN_USE);
    world.ok(desire(1, Desired::Deleted));
    assert_eq!(world.state.usage(&name("top")).memory_bytes, GIB);
    world.ok(quota("top", Quota { machines: Some(1), ..Quota::default() }));
    assert_eq!(world.no(create(3, "sub", GIB)), codes::QUOTA);
}

#[test]
fn a_changed_tenant_is_noticed() {
    let mut world = World::new();
    world.ok(tenant("t", None));
    let revision = world.state.tenants[&name("t")].revision;
    let quota = Quota { machines: Some(5), ..Quota::default() };
    let set = |expected| Command::SetQuota { name: name("t"), quota, expected_revision: Some(expected) };
    world.ok(set(revision));
    assert_eq!(world.no(set(revision)), codes::REVISION);
    assert_eq!(world.no(Command::DeleteTenant { name: name("t"), expected_revision: Some(revision) }), codes::REVISION);
}

#[test]
fn images_are_replaced_and_kept_while_named() {
    let mut world = World::new();
    world.create(1, spec(GIB));
    world.ok(put_image("default", "shell", 2));
    assert_eq!(world.machine(1).image, Digest([1; 32]), "a machine keeps the content that it was created with");
    let revision = world.state.images[&(name("default"), name("shell"))].revision;
    assert_eq!(world.ok(put_image("default", "shell", 2)), Outcome::Done { revision });
    let delete = Command::DeleteImage { tenant: name("default"), name: name("shell"), expected_revision: None };
    let refusal = world.ask(delete.clone()).unwrap_err();
    assert_eq!((&*refusal.code, &*refusal.message), (codes::IN_USE, "image shell is used by 1 machine"));
    world.ok(desire(1, Desired::Deleted));
    world.ok(delete.clone());
    assert_eq!(world.no(delete), codes::NOT_FOUND);
    assert_eq!(world.no(put_image("nobody", "shell", 1)), codes::NOT_FOUND);
    for image in ["b", "a", "c"] {
        world.ok(put_image("default", image, 1));
    }
    let names: Vec<_> = world.state.images_of(&name("default")).map(|image| image.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}
