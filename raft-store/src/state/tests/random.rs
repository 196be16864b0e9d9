//! Everything at random: no command breaks an invariant or panics, equal entries give equal states, a refusal changes
//! nothing, and a snapshot gives back the state.

use proptest::prelude::*;

use super::*;
use crate::snapshot::{CaKeys, from_records, to_records};

fn small() -> impl Strategy<Value = u8> {
    0u8..6
}

fn epoch() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0u64..4, 1 => any::<u64>()]
}

fn tenant() -> impl Strategy<Value = Name> {
    prop_oneof![3 => Just("default"), 1 => Just("t1"), 1 => Just("t2"), 1 => Just("nobody")].prop_map(name)
}

fn revision() -> impl Strategy<Value = Option<u64>> {
    proptest::option::weighted(0.1, 0u64..40)
}

fn any_spec() -> impl Strategy<Value = Box<MachineSpec>> {
    let port = proptest::collection::btree_set((proptest::option::of(1u8..3), 80u16..82), 0..3);
    (1u64..6, any::<bool>(), proptest::option::weighted(0.2, small()), port).prop_map(
        |(gib, exclusive, pinned, ports)| {
            let publish = |(ip, host_port): (Option<u8>, u16)| Publish {
                ip: ip.map(|last| [127, 0, 0, last].into()),
                host_port,
                machine_port: 80,
            };
            let publish = ports.into_iter().map(publish).collect();
            Box::new(MachineSpec { exclusive, pinned: pinned.map(node_id), publish, ..spec(gib * GIB) })
        },
    )
}

fn quota() -> impl Strategy<Value = Quota> {
    (proptest::option::of(0u64..20), proptest::option::of(0u32..6)).prop_map(|(gib, machines)| Quota {
        cpu_millis: None,
        memory_bytes: gib.map(|gib| gib * GIB),
        machines,
    })
}

fn candidates() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(small(), 0..5)
}

fn desired() -> impl Strategy<Value = Desired> {
    prop_oneof![3 => Just(Desired::Running), 2 => Just(Desired::Stopped), 1 => Just(Desired::Deleted)]
}

fn node_patch() -> impl Strategy<Value = Box<NodePatch>> {
    (any::<Option<bool>>(), any::<Option<bool>>(), proptest::option::of(0u64..12)).prop_map(
        |(cordoned, draining, gib)| {
            let capacity = gib.map(|gib| Capacity { cpu_millis: 4000, memory_bytes: gib * GIB, disk_bytes: 0 });
            Box::new(NodePatch { cordoned, draining, capacity, ..NodePatch::default() })
        },
    )
}

fn cluster_command() -> impl Strategy<Value = Command> {
    use crate::command::CommandV1::*;
    prop_oneof![
        (1u8..4, small()).prop_map(|(token, n)| admit(token, n)),
        (small(), node_patch(), revision()).prop_map(|(n, patch, expected_revision)| UpdateNode {
            node: node_id(n),
            patch,
            expected_revision
        }),
        (small(), any::<bool>()).prop_map(|(n, force)| remove(n, force)),
        (small(), 0u64..100_000).prop_map(|(n, for_ms)| PlanAbsence { node: node_id(n), for_ms }),
        small().prop_map(|n| EndAbsence { node: node_id(n) }),
        (1u8..4, 0u32..3, 0u64..100_000).prop_map(|(n, uses, ttl_ms)| CreateToken {
            id: TokenId([n; 8]),
            secret_hash: Digest([n; 32]),
            role: Role::Voter,
            uses,
            ttl_ms
        }),
        small().prop_map(|n| RevokeToken { id: TokenId([n; 8]) }),
        (tenant(), proptest::option::of(tenant()), quota()).prop_map(|(name, parent, quota)| CreateTenant {
            name,
            parent,
            quota
        }),
        (tenant(), revision()).prop_map(|(name, expected_revision)| DeleteTenant { name, expected_revision }),
        (tenant(), quota(), revision()).prop_map(|(name, quota, expected_revision)| SetQuota {
            name,
            quota,
            expected_revision
        }),
        (tenant(), small(), revision()).prop_map(|(tenant, n, expected_revision)| PutImage {
            tenant,
            name: name("shell"),
            digest: Digest([n; 32]),
            size_bytes: 1,
            expected_revision
        }),
        (tenant(), revision()).prop_map(|(tenant, expected_revision)| DeleteImage {
            tenant,
            name: name("shell"),
            expected_revision
        }),
        (0u32..2).prop_map(|level| SetFeatureLevel { level }),
        small().prop_map(|n| AddCa { ca: ca(n) }),
        small().prop_map(init),
    ]
}

fn machine_command() -> impl Strategy<Value = Command> {
    use crate::command::CommandV1::*;
    let m = || small().prop_map(machine_id);
    prop_oneof![
        4 => (small(), small(), tenant(), any_spec(), desired()).prop_map(|(id, n, tenant, spec, desired)| CreateMachine {
            id: machine_id(id),
            tenant,
            name: name(&format!("m{n}")),
            spec,
            desired
        }),
        2 => (m(), desired(), proptest::option::of(0..3_u64), revision()).prop_map(
            |(machine, desired, over, expected_revision)| SetDesired { machine, desired, over, expected_revision }
        ),
        1 => (m(), small(), revision()).prop_map(|(machine, n, expected_revision)| UpdateLabels {
            machine,
            patch: LabelPatch { set: [("k".into(), n.to_string())].into(), remove: vec![] },
            expected_revision
        }),
        1 => (m(), revision()).prop_map(|(machine, expected_revision)| RestartMachine { machine, expected_revision }),
        2 => (m(), epoch()).prop_map(|(machine, epoch)| Forget { machine, epoch }),
        6 => proptest::collection::vec((small(), epoch(), candidates()), 1..5).prop_map(|items| Place {
            items: items.iter().map(|(n, epoch, candidates)| item(*n, *epoch, candidates)).collect()
        }),
        3 => (m(), epoch()).prop_map(|(machine, epoch)| Confirm { machine, epoch }),
        2 => (m(), epoch(), 0u64..3, 0i32..2)
            .prop_map(|(machine, epoch, restarts, code)| Ended { machine, epoch, restarts, code }),
        2 => (m(), epoch(), any::<u64>(), any::<bool>()).prop_map(|(machine, epoch, back_off_ms, here)| Failed {
            machine,
            epoch,
            reason: "it broke".into(),
            back_off_ms: back_off_ms % 2_000_000,
            here,
        }),
        1 => (m(), epoch()).prop_map(|(machine, epoch)| Release { machine, epoch }),
        4 => (small(), epoch(), small(), candidates(), 1u64..3)
            .prop_map(|(n, epoch, from, candidates, term)| takeover(n, epoch, from, &candidates, term)),
        4 => (small(), epoch(), 0u8..2, small()).prop_map(|(n, epoch, id, to)| move_begin(n, epoch, id, to)),
        4 => (small(), epoch(), 0u8..2).prop_map(|(n, epoch, id)| move_switch(n, epoch, id)),
        1 => (small(), epoch(), 0u8..2).prop_map(|(n, epoch, id)| move_abort(n, epoch, id)),
    ]
}

/// Fills in the epochs and owners that the state has, so that commands get past the first check more often.
fn informed(state: &State, mut command: Command, actor: &mut Actor) -> Command {
    use crate::command::CommandV1::*;
    match &mut command {
        Confirm { machine, epoch }
        | Ended { machine, epoch, .. }
        | Failed { machine, epoch, .. }
        | Release { machine, epoch }
        | Forget { machine, epoch }
        | MoveBegin { machine, from_epoch: epoch, .. }
        | MoveSwitch { machine, from_epoch: epoch, .. }
        | MoveAbort { machine, from_epoch: epoch, .. } => {
            if let Some(placement) = state.machines.get(machine).and_then(|m| m.placement) {
                (*epoch, actor.node) = (placement.epoch, placement.node);
            }
        }
        Takeover { machine, epoch, from, .. } => {
            if let Some(placement) = state.machines.get(machine).and_then(|m| m.placement) {
                (*epoch, *from) = (placement.epoch, placement.node);
            }
        }
        Place { items } => {
            for item in items {
                item.expected_epoch = state.machines.get(&item.machine).map_or(0, |m| m.epoch);
            }
        }
        _ => {}
    }
    command
}

#[derive(Debug, Clone)]
struct Ask {
    command: Command,
    node: u8,
    tenant: Option<Name>,
    key: Option<u8>,
    informed: bool,
    pause_ms: u64,
}

fn ask() -> impl Strategy<Value = Ask> {
    (
        prop_oneof![2 => cluster_command().boxed(), 5 => machine_command().boxed()],
        prop_oneof![6 => Just(1u8), 2 => small()],
        proptest::option::weighted(0.1, tenant()),
        proptest::option::weighted(0.3, 0u8..8),
        proptest::bool::weighted(0.8),
        prop_oneof![4 => Just(0u64), 1 => 0u64..40_000],
    )
        .prop_map(|(command, node, tenant, key, informed, pause_ms)| Ask {
            command,
            node,
            tenant,
            key,
            informed,
            pause_ms,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_rules(asks in proptest::collection::vec(ask(), 1..60)) {
        let mut world = World::new();
        let mut twin = world.state.clone();
        for ask in asks {
            world.at_ms += ask.pause_ms;
            let mut actor = Actor { node: node_id(ask.node), subject: "someone".into(), tenant: ask.tenant };
            let command = if ask.informed { informed(&world.state, ask.command, &mut actor) } else { ask.command };
            let key = ask.key.map(|n| IdempotencyKey([n; 16]));
            let envelope = Envelope { actor, idempotency: key, at_ms: world.at_ms, command };
            let entry = EntryContext::of(world.index + 1, world.term, &envelope);
            // `ask_as` checks the invariants, and that a refusal changes nothing.
            let answer = world.ask_as(envelope.actor.clone(), envelope.idempotency, envelope.command.clone());
            prop_assert_eq!(answer, twin.apply(entry, &envelope));
        }
        prop_assert_eq!(world.state.digest(), twin.digest());
        let read = from_records(to_records(&world.state, CaKeys::With)).unwrap();
        prop_assert_eq!(read.digest(), twin.digest());
        prop_assert!(read == world.state);
    }
}
