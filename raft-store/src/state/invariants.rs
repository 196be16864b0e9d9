//! What holds after every entry. For tests, the simulator and `doctor`: it walks the whole state.

use std::collections::BTreeMap;

use fabric::ids::NodeId;

use super::claims::{Usage, reservations};
use super::tenants::exceeded;
use super::{NodeClaims, State};

impl State {
    /// Recomputes everything that is kept incrementally and checks I4 and the uniqueness of names.
    ///
    /// # Errors
    /// The first rule that is broken, with the object.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.check_names()?;
        self.check_placements()?;
        self.check_capacity()?;
        self.check_ports()?;
        self.check_quotas()?;
        self.check_bounds()?;
        if self.derive_index() != self.index {
            return Err(format!("the index is {:?}, the records imply {:?}", self.index, self.derive_index()));
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), String> {
        let mut machines = BTreeMap::new();
        for (id, machine) in &self.machines {
            if machine.id != *id || !self.tenants.contains_key(&machine.tenant) {
                return Err(format!("machine {id:?} is under another id, or its tenant {} is gone", machine.tenant));
            }
            if let Some(other) = machines.insert((&machine.tenant, &machine.name), id) {
                return Err(format!("machines {id:?} and {other:?} are both named {}", machine.name));
            }
        }
        let mut nodes = BTreeMap::new();
        for (id, node) in &self.nodes {
            if node.id != *id || self.tombstones.contains_key(id) {
                return Err(format!("node {id:?} is under another id, or removed"));
            }
            if let Some(other) = nodes.insert(&node.name, id) {
                return Err(format!("nodes {id:?} and {other:?} are both named {}", node.name));
            }
        }
        match self.tenants.values().find(|t| t.parent.as_ref().is_some_and(|p| !self.tenants.contains_key(p))) {
            Some(orphan) => Err(format!("the parent of tenant {} is gone", orphan.name)),
            None => Ok(()),
        }
    }

    fn check_placements(&self) -> Result<(), String> {
        if let Some(placed) = self.placed.values().find(|p| p.revision > self.settings.index) {
            return Err(format!("the placements of node {:?} change in the future", placed.node));
        }
        if let Some(gone) = self.placed.keys().find(|node| !self.nodes.contains_key(node)) {
            return Err(format!("node {gone:?} is removed, and its placements have a revision"));
        }
        for machine in self.machines.values() {
            let Some(placement) = &machine.placement else { continue };
            if self.nodes.contains_key(&placement.node) && !self.placed.contains_key(&placement.node) {
                return Err(format!("the placements of node {:?} have no revision", placement.node));
            }
            if placement.epoch != machine.epoch {
                return Err(format!("machine {:?} is placed in an old epoch", machine.id));
            }
            if placement.previous.is_some_and(|p| p.epoch >= placement.epoch || placement.confirmed) {
                return Err(format!("machine {:?} has a previous owner of no earlier epoch", machine.id));
            }
            if placement.moving.is_some_and(|m| m.to == placement.node || !self.nodes.contains_key(&m.to)) {
                return Err(format!("machine {:?} moves to its owner or to nowhere", machine.id));
            }
        }
        Ok(())
    }

    /// I4, first half.
    fn check_capacity(&self) -> Result<(), String> {
        let mut promised: BTreeMap<NodeId, NodeClaims> = BTreeMap::new();
        for machine in self.machines.values() {
            let Some(placement) = &machine.placement else { continue };
            for node in reservations(placement).chain([placement.node]) {
                let sum = promised.entry(node).or_default();
                sum.cpu_millis += u64::from(machine.spec.resources.cpu_millis);
                sum.memory_bytes += machine.spec.resources.memory_bytes;
            }
        }
        for (node, sum) in promised {
            let Some(record) = self.nodes.get(&node) else { continue };
            let capacity = record.capacity;
            if sum.cpu_millis > u64::from(capacity.cpu_millis) || sum.memory_bytes > capacity.memory_bytes {
                return Err(format!("I4: node {} promised more than it has: {sum:?}", record.name));
            }
        }
        Ok(())
    }

    /// No two machines have a port of a node at the same address.
    fn check_ports(&self) -> Result<(), String> {
        for (node, machine) in self.nodes.keys().flat_map(|node| self.machines_on(*node).map(|m| (*node, m))) {
            if let Some((port, other)) = self.taken_port(machine, node) {
                return Err(format!("{} and {other} share port {port} of one node", machine.name));
            }
        }
        Ok(())
    }

    /// I4, second half.
    fn check_quotas(&self) -> Result<(), String> {
        let mut used: BTreeMap<_, Usage> = BTreeMap::new();
        for machine in self.machines.values() {
            for name in self.lineage(&machine.tenant) {
                let sum = used.entry(name).or_default();
                sum.cpu_millis += u64::from(machine.spec.resources.cpu_millis);
                sum.memory_bytes += machine.spec.resources.memory_bytes;
                sum.machines += 1;
            }
        }
        for (name, sum) in used {
            if self.tenants.get(&name).is_some_and(|tenant| exceeded(&tenant.quota, &sum).is_some()) {
                return Err(format!("I4: tenant {name} is over its quota: {sum:?}"));
            }
        }
        Ok(())
    }

    fn check_bounds(&self) -> Result<(), String> {
        use fabric::limits::*;
        let bounds = [
            ("nodes", self.nodes.len(), NODES_MAX),
            ("machines", self.machines.len(), MACHINES_MAX),
            ("tenants", self.tenants.len(), TENANTS_MAX),
            ("tokens", self.tokens.len(), TOKENS_MAX),
            ("images", self.images.len(), IMAGES_MAX),
            ("answers", self.idempotency.len(), IDEMPOTENCY_RECORDS_MAX),
            ("audit entries", self.audit.len(), AUDIT_ENTRIES_MAX),
        ];
        match bounds.iter().find(|(_, have, max)| have > max) {
            Some((what, have, max)) => Err(format!("{have} {what}, at most {max} are allowed")),
            None if self.idempotency.len() != self.idempotency_order.len() => Err("an answer has no place".into()),
            None => Ok(()),
        }
    }
}
