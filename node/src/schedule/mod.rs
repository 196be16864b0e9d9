//! Where a machine could go: a pure function from a spec and an inventory to ranked nodes.
//!
//! The node that receives a request schedules it (design section 6). This decides nothing: it proposes candidates, and
//! the ledger's apply takes the first that still fits. So two nodes that schedule at once cannot overbook a third.
//! Filter first, then score. Everything that a decision needs is in its arguments.

use std::collections::BTreeMap;

use fabric::human;
use fabric::ids::{MachineId, NodeId};
use fabric::limits::PLACE_CANDIDATES_MAX;
use fabric::model::{Capacity, MachineSpec, Name};
use thiserror::Error;

/// A node as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: NodeId,
    /// Its name, for reasons.
    pub name: Name,
    /// Failure domain.
    pub zone: String,
    /// What it declared.
    pub declared: Capacity,
    /// What no machine has been guaranteed, by the ledger.
    pub free: Capacity,
    /// Membership holds it for alive.
    pub alive: bool,
    /// Its disk is nearly full, by its own word.
    pub full: bool,
    /// A port that the machine publishes and another one has there already, with that one's name.
    pub taken: Option<(u16, String)>,
    /// Cordoned, draining or absent by plan: no new machines.
    pub closed: bool,
    /// It holds the image already.
    pub has_image: bool,
    /// Runnable tasks in thousandths per core, from gossip: a hint.
    pub load_millis: u32,
    /// Machines of the same tenant and service on it: spread away from them.
    pub siblings: u32,
    /// The same in its whole zone, by [`count_zones`].
    pub zone_siblings: u32,
}

/// Nodes by id.
pub type Inventory = BTreeMap<NodeId, Candidate>;

/// Why no node can take a machine.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum NoPlace {
    /// The node that the spec names cannot take it.
    #[error("pinned to {node}: {why}")]
    Pinned {
        /// The node's name or short id.
        node: String,
        /// What stands in the way.
        why: String,
    },
    /// No node is open at all.
    #[error("no node takes new machines: {alive} alive, {closed} of them cordoned, draining or absent")]
    Closed {
        /// Nodes alive.
        alive: usize,
        /// Of these, closed.
        closed: usize,
    },
    /// No open node runs machines.
    #[error("no node that takes new machines can run any: its log says what its host lacks ({})", nodes.join(", "))]
    Nowhere {
        /// Their names.
        nodes: Vec<String>,
    },
    /// Nodes with room have another obstacle each.
    #[error("{}", why.join(", "))]
    Obstructed {
        /// Node by node.
        why: Vec<String>,
    },
    /// No node has the memory.
    #[error("needs {need} guaranteed, the freest node {node} has {have}")]
    Memory {
        /// What the machine needs.
        need: String,
        /// The node with most.
        node: Name,
        /// What it has.
        have: String,
    },
    /// No node has the CPU.
    #[error("needs {need} guaranteed, the freest node {node} has {have}")]
    Cpu {
        /// What the machine needs.
        need: String,
        /// The node with most.
        node: Name,
        /// What it has.
        have: String,
    },
    /// Each resource can be had, but not all on one node.
    #[error("no single node has both {cpu} and {memory} free")]
    Together {
        /// CPU needed.
        cpu: String,
        /// Memory needed.
        memory: String,
    },
}

/// Counts the siblings of each zone, over all of its live nodes. Nodes without a zone are one together, so that a cluster
/// without zones is spread over nodes alone. To be done before any node is left out of the inventory.
pub fn count_zones(inventory: &mut Inventory) {
    let mut zones: BTreeMap<String, u32> = BTreeMap::new();
    for node in inventory.values().filter(|node| node.alive) {
        *zones.entry(node.zone.clone()).or_default() += node.siblings;
    }
    for node in inventory.values_mut() {
        node.zone_siblings = zones.get(&node.zone).copied().unwrap_or(0);
    }
}

/// Ranks the nodes that can take the machine, best first, at most [`PLACE_CANDIDATES_MAX`]. The zone with the fewest
/// siblings goes before every other one: what a zone's end takes along matters more than room or load. Within it the score
/// decides.
///
/// # Errors
/// Says in the user's words why there is none.
pub fn plan(machine: MachineId, spec: &MachineSpec, inventory: &Inventory) -> Result<Vec<NodeId>, NoPlace> {
    if let Some(pinned) = spec.pinned {
        return match inventory.get(&pinned) {
            None => Err(NoPlace::Pinned { node: pinned.short(), why: "it was removed from the cluster".into() }),
            Some(node) => match obstacle(node, spec) {
                Some(why) => Err(NoPlace::Pinned { node: node.name.to_string(), why }),
                None => Ok(vec![pinned]),
            },
        };
    }
    let mut ranked: Vec<_> = inventory
        .values()
        .filter(|node| obstacle(node, spec).is_none())
        .map(|node| (node.zone_siblings, std::cmp::Reverse(score(node, spec)), tie_break(machine, node.id), node.id))
        .collect();
    if ranked.is_empty() {
        return Err(explain(spec, inventory));
    }
    ranked.sort_unstable();
    ranked.truncate(PLACE_CANDIDATES_MAX);
    Ok(ranked.into_iter().map(|(.., id)| id).collect())
}

fn fits(node: &Candidate, spec: &MachineSpec) -> bool {
    spec.resources.memory_bytes <= node.free.memory_bytes && spec.resources.cpu_millis <= node.free.cpu_millis
}

fn obstacle(node: &Candidate, spec: &MachineSpec) -> Option<String> {
    if !node.alive {
        Some("it is not reachable".into())
    } else if node.closed {
        Some("it takes no new machines (cordoned, draining or absent)".into())
    } else if let Some(why) = obstruction(node) {
        Some(why)
    } else if !fits(node, spec) {
        Some(format!(
            "it has {} and {} free of the {} and {} that are needed",
            human::cpu(node.free.cpu_millis.into()),
            human::bytes(node.free.memory_bytes),
            human::cpu(spec.resources.cpu_millis.into()),
            human::bytes(spec.resources.memory_bytes)
        ))
    } else {
        None
    }
}

/// What stands in the way on a node that may have what the machine needs, in the ledger's words.
fn obstruction(node: &Candidate) -> Option<String> {
    match &node.taken {
        _ if node.full => Some(format!("the disk of {} is nearly full", node.name)),
        Some((port, by)) => Some(format!("port {port} of {} is taken by {by}", node.name)),
        None => None,
    }
}

/// Points of a node that fits: the share of its scarcer resource that stays free (0 to 1000), less its load, its
/// siblings and the cost of fetching the image.
fn score(node: &Candidate, spec: &MachineSpec) -> i64 {
    let left =
        |free: u64, need: u64, all: u64| ((free.saturating_sub(need)) as f64 / all.max(1) as f64 * 1000.0) as i64;
    let memory = left(node.free.memory_bytes, spec.resources.memory_bytes, node.declared.memory_bytes);
    let cpu = left(node.free.cpu_millis.into(), spec.resources.cpu_millis.into(), u64::from(node.declared.cpu_millis));
    let load = i64::from(node.load_millis.min(4000)) / 20;
    let image = if node.has_image { 150 } else { 0 };
    memory.min(cpu) + image - load - i64::from(node.siblings.min(8)) * 100
}

/// Rendezvous hash: equal nodes share machines evenly, and every scheduler breaks the tie alike.
fn tie_break(machine: MachineId, node: NodeId) -> [u8; 32] {
    *blake3::Hasher::new().update(&machine.0).update(&node.0).finalize().as_bytes()
}

fn explain(spec: &MachineSpec, inventory: &Inventory) -> NoPlace {
    let alive: Vec<_> = inventory.values().filter(|node| node.alive).collect();
    let open: Vec<_> = alive.iter().filter(|node| !node.closed).collect();
    let Some(roomy) = open.iter().max_by_key(|node| (node.free.memory_bytes, node.id)) else {
        return NoPlace::Closed { alive: alive.len(), closed: alive.len() };
    };
    if open.iter().all(|node| node.declared == Capacity::default()) {
        return NoPlace::Nowhere { nodes: open.iter().take(3).map(|node| node.name.to_string()).collect() };
    }
    let obstructed: Vec<String> =
        open.iter().filter(|node| fits(node, spec)).filter_map(|node| obstruction(node)).take(3).collect();
    if !obstructed.is_empty() {
        return NoPlace::Obstructed { why: obstructed };
    }
    let fast = open.iter().max_by_key(|node| (node.free.cpu_millis, node.id)).unwrap_or(roomy);
    let memory = human::bytes(spec.resources.memory_bytes);
    let cpu = human::cpu(spec.resources.cpu_millis.into());
    if roomy.free.memory_bytes < spec.resources.memory_bytes {
        NoPlace::Memory { need: memory, node: roomy.name.clone(), have: human::bytes(roomy.free.memory_bytes) }
    } else if fast.free.cpu_millis < spec.resources.cpu_millis {
        NoPlace::Cpu { need: cpu, node: fast.name.clone(), have: human::cpu(fast.free.cpu_millis.into()) }
    } else {
        NoPlace::Together { cpu, memory }
    }
}

#[cfg(test)]
mod tests;
