use fabric::model::{Labels, Resources, Restart};
use proptest::prelude::*;

use super::*;

fn node(number: u8, memory_gib: u64) -> Candidate {
    let free = Capacity { cpu_millis: 4000, memory_bytes: memory_gib << 30, disk_bytes: 1 << 40 };
    Candidate {
        id: NodeId([number; 32]),
        name: format!("n{number}").parse().unwrap(),
        zone: String::new(),
        declared: Capacity { cpu_millis: 4000, memory_bytes: 8 << 30, disk_bytes: 1 << 40 },
        free,
        alive: true,
        full: false,
        taken: None,
        closed: false,
        has_image: false,
        load_millis: 0,
        siblings: 0,
        zone_siblings: 0,
    }
}

fn inventory(nodes: impl IntoIterator<Item = Candidate>) -> Inventory {
    nodes.into_iter().map(|node| (node.id, node)).collect()
}

fn spec(memory_bytes: u64) -> MachineSpec {
    MachineSpec {
        image: "shell".parse().unwrap(),
        command: vec![],
        env: vec![],
        resources: Resources { memory_bytes, ..Resources::default() },
        publish: vec![],
        labels: Labels::new(),
        exclusive: false,
        restart: Restart::Always,
        pinned: None,
    }
}

const MACHINE: MachineId = MachineId([7; 16]);

#[test]
fn the_freest_node_comes_first() {
    let ranked = plan(MACHINE, &spec(1 << 30), &inventory([node(1, 2), node(2, 6), node(3, 4)])).unwrap();
    assert_eq!(ranked, [NodeId([2; 32]), NodeId([3; 32]), NodeId([1; 32])]);
}

#[test]
fn an_image_that_is_there_outweighs_a_little_room() {
    let mut with_image = node(1, 5);
    with_image.has_image = true;
    let ranked = plan(MACHINE, &spec(1 << 30), &inventory([with_image, node(2, 6)])).unwrap();
    assert_eq!(ranked[0], NodeId([1; 32]));
}

#[test]
fn a_full_disk_and_a_taken_port_stand_in_the_way() {
    let mut full = node(1, 6);
    full.full = true;
    let mut taken = node(2, 6);
    taken.taken = Some((8080, "machine web".into()));
    let both = inventory([full.clone(), taken.clone()]);
    let error = plan(MACHINE, &spec(1 << 30), &both).unwrap_err();
    let words = "the disk of n1 is nearly full, port 8080 of n2 is taken by machine web";
    assert_eq!(error.to_string(), words);
    let ranked = plan(MACHINE, &spec(1 << 30), &inventory([full, taken.clone(), node(3, 2)])).unwrap();
    assert_eq!(ranked, [NodeId([3; 32])]);
    let pinned = MachineSpec { pinned: Some(taken.id), ..spec(1 << 30) };
    let error = plan(MACHINE, &pinned, &inventory([taken])).unwrap_err();
    assert_eq!(error.to_string(), "pinned to n2: port 8080 of n2 is taken by machine web");
}

#[test]
fn a_refusal_names_the_freest_node_and_what_it_has() {
    let mut freest = node(2, 0);
    freest.free.memory_bytes = 1_503_238_553;
    let error = plan(MACHINE, &spec(2 << 30), &inventory([node(1, 1), freest])).unwrap_err();
    assert_eq!(error.to_string(), "needs 2 GiB guaranteed, the freest node n2 has 1.4 GiB");
}

#[test]
fn dead_and_closed_nodes_take_nothing() {
    let mut dead = node(1, 8);
    dead.alive = false;
    let mut closed = node(2, 8);
    closed.closed = true;
    let error = plan(MACHINE, &spec(1 << 30), &inventory([dead, closed])).unwrap_err();
    assert_eq!(error, NoPlace::Closed { alive: 1, closed: 1 });
}

#[test]
fn a_pinned_machine_goes_there_or_nowhere() {
    let mut pinned = spec(1 << 30);
    pinned.pinned = Some(NodeId([1; 32]));
    assert_eq!(plan(MACHINE, &pinned, &inventory([node(1, 2), node(2, 8)])).unwrap(), [NodeId([1; 32])]);
    pinned.resources.memory_bytes = 4 << 30;
    let error = plan(MACHINE, &pinned, &inventory([node(1, 2), node(2, 8)])).unwrap_err();
    assert!(error.to_string().starts_with("pinned to n1: it has"), "{error}");
}

fn zoned(number: u8, zone: &str, memory_gib: u64, siblings: u32) -> Candidate {
    Candidate { zone: zone.into(), siblings, ..node(number, memory_gib) }
}

#[test]
fn siblings_are_spread_over_zones_before_anything_else_counts() {
    let mut nodes = inventory([zoned(1, "a", 8, 0), zoned(2, "a", 7, 1), zoned(3, "b", 3, 0), zoned(4, "b", 2, 0)]);
    count_zones(&mut nodes);
    let ranked = plan(MACHINE, &spec(1 << 30), &nodes).unwrap();
    assert_eq!(ranked, [3, 4, 1, 2].map(|n| NodeId([n; 32])));
    // A zone without room is no reason to wait.
    nodes.retain(|_, node| node.zone == "a");
    assert_eq!(plan(MACHINE, &spec(1 << 30), &nodes).unwrap()[0], NodeId([1; 32]));
}

#[test]
fn a_group_of_machines_fills_zones_evenly() {
    let mut nodes = inventory([zoned(1, "a", 8, 0), zoned(2, "a", 8, 0), zoned(3, "b", 4, 0), zoned(4, "c", 3, 0)]);
    for _ in 0..6 {
        count_zones(&mut nodes);
        let best = plan(MACHINE, &spec(1 << 20), &nodes).unwrap()[0];
        nodes.get_mut(&best).unwrap().siblings += 1;
    }
    let of = |zone: &str| nodes.values().filter(|node| node.zone == zone).map(|node| node.siblings).sum::<u32>();
    assert_eq!((of("a"), of("b"), of("c")), (2, 2, 2));
    assert_eq!(nodes[&NodeId([1; 32])].siblings, 1, "and the nodes of a zone, too");
}

#[test]
fn the_dead_of_a_zone_and_nodes_without_one_do_not_mislead() {
    let dead = Candidate { alive: false, ..zoned(1, "a", 8, 5) };
    let mut nodes = inventory([dead, zoned(2, "a", 8, 0), zoned(3, "b", 4, 0)]);
    count_zones(&mut nodes);
    assert_eq!(plan(MACHINE, &spec(1 << 30), &nodes).unwrap()[0], NodeId([2; 32]));
    let mut nodes = inventory([zoned(1, "", 8, 1), zoned(2, "", 2, 0)]);
    count_zones(&mut nodes);
    assert_eq!(plan(MACHINE, &spec(1 << 30), &nodes).unwrap()[0], NodeId([1; 32]), "room outweighs one sibling");
}

proptest! {
    /// Whatever the inventory: at most eight candidates, each distinct, each with room; the same question, the same answer.
    #[test]
    fn candidates_always_fit(frees in proptest::collection::vec((0u64..16, any::<bool>(), any::<bool>()), 0..40), need in 0u64..16) {
        let nodes = inventory(frees.iter().enumerate().map(|(at, (free, alive, closed))| Candidate {
            alive: *alive, closed: *closed, ..node(at as u8, *free)
        }));
        let spec = spec(need << 30);
        let first = plan(MACHINE, &spec, &nodes);
        prop_assert_eq!(&first, &plan(MACHINE, &spec, &nodes));
        if let Ok(ranked) = first {
            prop_assert!(!ranked.is_empty() && ranked.len() <= PLACE_CANDIDATES_MAX);
            for id in &ranked {
                let node = &nodes[id];
                prop_assert!(node.alive && !node.closed && node.free.memory_bytes >= need << 30);
            }
            let distinct: std::collections::BTreeSet<_> = ranked.iter().collect();
            prop_assert_eq!(distinct.len(), ranked.len());
        } else {
            prop_assert!(nodes.values().all(|n| !n.alive || n.closed || n.free.memory_bytes < need << 30));
        }
    }
}
