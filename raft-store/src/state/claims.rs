//! What follows from the records and is kept beside them, so that an entry costs O(log n): names, what each node has
//! promised, what each tenant uses, which machines wait for a place.
//!
//! A machine claims its guarantees on its owner; on the destination of its move from the announcement on; and on the
//! source of its move until the destination runs, so that there is always a way back.
//!
//! Sums saturate: `apply` keeps them far from any limit, and a hostile snapshot must not panic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fabric::ids::{MachineId, NodeId};
use fabric::model::check::share_address;
use fabric::model::{Capacity, Desired, MachineRecord, MachineSpec, Name, Placement, Resources};

use super::{PlacedRecord, State};

/// What machines were promised on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeClaims {
    /// Machines that the node owns.
    pub owned: BTreeSet<MachineId>,
    /// Machines that another node owns and that have room here.
    pub reserved: BTreeSet<MachineId>,
    /// Sum of guarantees, thousandths of a core.
    pub cpu_millis: u64,
    /// Sum of guarantees, bytes.
    pub memory_bytes: u64,
    /// Ports of the host that machines publish there, each with whose it is and at which address.
    pub ports: BTreeMap<u16, BTreeSet<(MachineId, Option<IpAddr>)>>,
}

impl NodeClaims {
    /// A port of `spec` that another machine than `id` has at the same address, and which one.
    pub fn taken_port(&self, spec: &MachineSpec, id: MachineId) -> Option<(u16, MachineId)> {
        spec.publish.iter().find_map(|port| {
            let others = self.ports.get(&port.host_port)?;
            others
                .iter()
                .find(|(other, at)| *other != id && share_address(*at, port.ip))
                .map(|(other, _)| (port.host_port, *other))
        })
    }

    /// What is left of a capacity. Disk is not guaranteed to machines.
    pub fn left_of(&self, capacity: Capacity) -> Capacity {
        Capacity {
            cpu_millis: u64::from(capacity.cpu_millis).saturating_sub(self.cpu_millis) as u32,
            memory_bytes: capacity.memory_bytes.saturating_sub(self.memory_bytes),
            disk_bytes: capacity.disk_bytes,
        }
    }

    /// Machines that have room here.
    pub fn count(&self) -> usize {
        self.owned.len() + self.reserved.len()
    }
}

/// What a tenant and those below it were promised in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum of guarantees, thousandths of a core.
    pub cpu_millis: u64,
    /// Sum of guarantees, bytes.
    pub memory_bytes: u64,
    /// Machines.
    pub machines: u32,
}

/// The derived part of the state. It is not in snapshots: it is rebuilt from their records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub node_names: BTreeMap<Name, NodeId>,
    pub machine_names: BTreeMap<Name, BTreeMap<Name, MachineId>>,
    pub claims: BTreeMap<NodeId, NodeClaims>,
    pub usage: BTreeMap<Name, Usage>,
    /// Tenants directly below a tenant.
    pub children: BTreeMap<Name, u32>,
    /// Machines that name an image, by (tenant, image).
    pub image_users: BTreeMap<(Name, Name), u32>,
    /// Wanted running, without an owner.
    pub unplaced: BTreeSet<MachineId>,
}

/// Nodes on which a placement keeps room besides its owner.
pub(super) fn reservations(placement: &Placement) -> impl Iterator<Item = NodeId> {
    let destination = placement.moving.map(|m| m.to);
    let source = placement.previous.filter(|_| !placement.fresh).map(|p| p.node);
    let (owner, first) = (placement.node, destination);
    destination.into_iter().chain(source.filter(move |s| Some(*s) != first)).filter(move |node| *node != owner)
}

/// Every node that a placement names.
fn named(placement: &Placement) -> impl Iterator<Item = NodeId> + use<> {
    let (moving, previous) = (placement.moving.map(|m| m.to), placement.previous.map(|p| p.node));
    [Some(placement.node), moving, previous].into_iter().flatten()
}

fn count(map: &mut BTreeMap<(Name, Name), u32>, key: (Name, Name), up: bool) {
    if up {
        *map.entry(key).or_default() += 1;
    } else if let Some(n) = map.get_mut(&key) {
        *n -= 1;
        if *n == 0 {
            map.remove(&key);
        }
    }
}

impl Index {
    fn claim(&mut self, node: NodeId, id: MachineId, spec: &MachineSpec, owned: bool) {
        let resources = &spec.resources;
        let claims = self.claims.entry(node).or_default();
        let set = if owned { &mut claims.owned } else { &mut claims.reserved };
        if set.insert(id) {
            claims.cpu_millis = claims.cpu_millis.saturating_add(u64::from(resources.cpu_millis));
            claims.memory_bytes = claims.memory_bytes.saturating_add(resources.memory_bytes);
            for port in &spec.publish {
                claims.ports.entry(port.host_port).or_default().insert((id, port.ip));
            }
        }
    }

    fn unclaim(&mut self, node: NodeId, id: MachineId, spec: &MachineSpec, owned: bool) {
        let resources = &spec.resources;
        let Some(claims) = self.claims.get_mut(&node) else { return };
        let set = if owned { &mut claims.owned } else { &mut claims.reserved };
        if set.remove(&id) {
            claims.cpu_millis = claims.cpu_millis.saturating_sub(u64::from(resources.cpu_millis));
            claims.memory_bytes = claims.memory_bytes.saturating_sub(resources.memory_bytes);
            for port in &spec.publish {
                if let Some(here) = claims.ports.get_mut(&port.host_port) {
                    here.remove(&(id, port.ip));
                }
            }
            claims.ports.retain(|_, here| !here.is_empty());
        }
        if claims.count() == 0 {
            self.claims.remove(&node);
        }
    }

    /// Enters what a machine's placement and wanted state imply.
    pub fn enter(&mut self, machine: &MachineRecord) {
        match &machine.placement {
            Some(placement) => {
                self.claim(placement.node, machine.id, &machine.spec, true);
                for node in reservations(placement) {
                    self.claim(node, machine.id, &machine.spec, false);
                }
            }
            None if machine.desired == Desired::Running => drop(self.unplaced.insert(machine.id)),
            None => {}
        }
    }

    /// Takes back what [`Index::enter`] entered for the same record.
    pub fn leave(&mut self, machine: &MachineRecord) {
        self.unplaced.remove(&machine.id);
        if let Some(placement) = &machine.placement {
            self.unclaim(placement.node, machine.id, &machine.spec, true);
            for node in reservations(placement) {
                self.unclaim(node, machine.id, &machine.spec, false);
            }
        }
    }

    /// Whether the machine has a claim on the node already.
    pub fn holds(&self, node: NodeId, id: MachineId) -> bool {
        self.claims.get(&node).is_some_and(|c| c.owned.contains(&id) || c.reserved.contains(&id))
    }
}

impl State {
    /// Changes a machine and everything that follows from its placement and wanted state. Its revision becomes the
    /// entry's.
    pub(super) fn change_machine(&mut self, id: MachineId, change: impl FnOnce(&mut MachineRecord)) {
        let revision = self.settings.index;
        if let Some(machine) = self.machines.get_mut(&id) {
            self.index.leave(machine);
            let before = machine.placement;
            change(machine);
            machine.revision = revision;
            let after = machine.placement;
            self.index.enter(machine);
            self.note_placements(before, after);
        }
    }

    /// Raises the revision of the placements of every admitted node that either placement names: the new owner's, and as
    /// much the old one's, which must learn that it lost the machine.
    fn note_placements(&mut self, before: Option<Placement>, after: Option<Placement>) {
        if before == after {
            return;
        }
        let revision = self.settings.index;
        for node in [before, after].iter().flatten().flat_map(named) {
            if self.nodes.contains_key(&node) {
                self.placed.insert(node, PlacedRecord { node, revision });
            }
        }
    }

    /// Adds a machine with all that it uses.
    pub(super) fn insert_machine(&mut self, machine: MachineRecord) {
        self.index.enter(&machine);
        self.index.machine_names.entry(machine.tenant.clone()).or_default().insert(machine.name.clone(), machine.id);
        count(&mut self.index.image_users, (machine.tenant.clone(), machine.spec.image.clone()), true);
        self.charge(&machine.tenant, &machine.spec.resources, true);
        self.machines.insert(machine.id, machine);
    }

    /// Removes a machine with all that it used.
    pub(super) fn delete_machine(&mut self, id: MachineId) {
        let Some(machine) = self.machines.remove(&id) else { return };
        self.index.leave(&machine);
        self.note_placements(machine.placement, None);
        if let Some(names) = self.index.machine_names.get_mut(&machine.tenant) {
            names.remove(&machine.name);
            if names.is_empty() {
                self.index.machine_names.remove(&machine.tenant);
            }
        }
        count(&mut self.index.image_users, (machine.tenant.clone(), machine.spec.image.clone()), false);
        self.charge(&machine.tenant, &machine.spec.resources, false);
    }

    /// Counts a machine's guarantees for its tenant and all above it.
    fn charge(&mut self, tenant: &Name, resources: &Resources, up: bool) {
        for name in self.lineage(tenant) {
            let usage = self.index.usage.entry(name.clone()).or_default();
            if up {
                usage.cpu_millis = usage.cpu_millis.saturating_add(u64::from(resources.cpu_millis));
                usage.memory_bytes = usage.memory_bytes.saturating_add(resources.memory_bytes);
                usage.machines = usage.machines.saturating_add(1);
            } else {
                usage.cpu_millis = usage.cpu_millis.saturating_sub(u64::from(resources.cpu_millis));
                usage.memory_bytes = usage.memory_bytes.saturating_sub(resources.memory_bytes);
                usage.machines = usage.machines.saturating_sub(1);
            }
            if *usage == Usage::default() {
                self.index.usage.remove(&name);
            }
        }
    }

    /// The index that the records imply, computed from nothing.
    pub(super) fn derive_index(&self) -> Index {
        let mut fresh = State { tenants: self.tenants.clone(), ..State::default() };
        for tenant in self.tenants.values() {
            if let Some(parent) = &tenant.parent {
                *fresh.index.children.entry(parent.clone()).or_default() += 1;
            }
        }
        fresh.index.node_names = self.nodes.values().map(|n| (n.name.clone(), n.id)).collect();
        for machine in self.machines.values() {
            fresh.insert_machine(machine.clone());
        }
        fresh.index
    }

    /// Rebuilds the index after the records were read from a snapshot.
    pub(crate) fn rebuild_index(&mut self) {
        self.index = self.derive_index();
    }
}
