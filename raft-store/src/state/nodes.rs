//! Nodes: admission, changes, planned absence, removal.

use std::net::SocketAddr;

use fabric::human::count;
use fabric::ids::{Digest, MachineId, NodeId, TokenId};
use fabric::limits::{ABSENCE_MAX, LABELS_MAX, NODES_MAX};
use fabric::model::{Capacity, Desired, Labels, NodeRecord, Role, Tombstone, check};
use fabric::rpc::Refusal;

use super::cluster::millis;
use super::{AbsenceRecord, State, check_name, check_revision, words};
use crate::codes;
use crate::command::{LabelPatch, NodePatch, Outcome};
use crate::limits::TOMBSTONES_MAX;

impl State {
    /// The rules that a node's record keeps at the door.
    pub(super) fn check_node(&self, node: &NodeRecord) -> Result<(), Refusal> {
        check_name("name", &node.name)?;
        if node.id != NodeId::of_public_key(&node.public_key) {
            return Err(Refusal::new(codes::INVALID, "the node's id is not the hash of its key").field("id", node.id));
        }
        check::labels(&node.labels)?;
        check::zone(&node.zone)?;
        check_address(&node.address)?;
        check_capacity(&node.capacity)
    }

    pub(super) fn insert_node(&mut self, node: &NodeRecord, role: Role) -> Outcome {
        let record = NodeRecord {
            role,
            cordoned: false,
            draining: false,
            absent_until_ms: None,
            admitted_ms: self.now_ms(),
            revision: self.revision(),
            ..node.clone()
        };
        self.index.node_names.insert(record.name.clone(), record.id);
        self.nodes.insert(record.id, record.clone());
        Outcome::Admitted { node: Box::new(record) }
    }

    pub(super) fn admit_node(
        &mut self,
        token: TokenId,
        secret_hash: Digest,
        node: &NodeRecord,
    ) -> Result<Outcome, Refusal> {
        self.check_node(node)?;
        if self.tombstones.contains_key(&node.id) {
            return Err(Refusal::new(codes::NODE_REMOVED, format!("node {} was removed from this cluster", node.name))
                .field("node", node.id)
                .hint("it may join again with a new identity: remove its data directory first"));
        }
        let record = self.check_token(token, secret_hash)?;
        let admitted_before = record.admitted.contains(&node.id);
        let role = record.role;
        if let (true, Some(known)) = (admitted_before, self.nodes.get(&node.id)) {
            return Ok(Outcome::Admitted { node: Box::new(known.clone()) });
        }
        if record.expires_ms <= self.now_ms() {
            return Err(Refusal::new(codes::TOKEN_EXPIRED, "the token's time is over").field("token", token).hint(NEW));
        }
        if let Some(known) = self.nodes.get(&node.id) {
            // Admitted by another token before: nothing to do, and no use is burned.
            return Ok(Outcome::Admitted { node: Box::new(known.clone()) });
        }
        if record.admitted.len() >= record.uses as usize {
            let uses = count(record.uses as usize, "node");
            return Err(Refusal::new(codes::TOKEN_USED_UP, format!("the token admitted {uses} and is used up"))
                .field("token", token)
                .hint(NEW));
        }
        self.check_name_is_free(node)?;
        if self.nodes.len() >= NODES_MAX {
            return Err(Refusal::new(codes::LIMIT, format!("the cluster has {NODES_MAX} nodes, and no more fit")));
        }
        let revision = self.revision();
        if let Some(record) = self.tokens.get_mut(&token) {
            record.admitted.insert(node.id);
            record.revision = revision;
        }
        Ok(self.insert_node(node, role))
    }

    fn check_name_is_free(&self, node: &NodeRecord) -> Result<(), Refusal> {
        match self.node_by_name(&node.name) {
            Some(other) if other.id != node.id => {
                Err(Refusal::new(codes::EXISTS, format!("a node named {} is in the cluster", node.name))
                    .field("name", &node.name)
                    .hint("give this one another name with --name"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn node_of(&self, id: NodeId) -> Result<&NodeRecord, Refusal> {
        if let Some(node) = self.nodes.get(&id) {
            return Ok(node);
        }
        let (code, what) = match self.tombstones.contains_key(&id) {
            true => (codes::NODE_REMOVED, "was removed from the cluster"),
            false => (codes::NOT_FOUND, "is not in the cluster"),
        };
        Err(Refusal::new(code, format!("node {} {what}", id.short()))
            .field("node", id)
            .hint("`smartnode node list` shows the nodes"))
    }

    pub(super) fn update_node(
        &mut self,
        id: NodeId,
        patch: &NodePatch,
        expected: Option<u64>,
    ) -> Result<Outcome, Refusal> {
        let node = self.node_of(id)?;
        check_revision(expected, node.revision)?;
        let labels = patched(&node.labels, &patch.labels)?;
        patch.zone.as_deref().map_or(Ok(()), check::zone)?;
        patch.address.as_deref().map_or(Ok(()), check_address)?;
        if let Some(capacity) = &patch.capacity {
            check_capacity(capacity)?;
            self.check_promises_fit(node, capacity)?;
        }
        let new = NodeRecord {
            labels,
            cordoned: patch.cordoned.unwrap_or(node.cordoned),
            draining: patch.draining.unwrap_or(node.draining),
            zone: patch.zone.clone().unwrap_or_else(|| node.zone.clone()),
            address: patch.address.clone().unwrap_or_else(|| node.address.clone()),
            capacity: patch.capacity.unwrap_or(node.capacity),
            ..node.clone()
        };
        if new == *node {
            return Ok(Outcome::Done { revision: node.revision });
        }
        let revision = self.revision();
        self.nodes.insert(id, NodeRecord { revision, ..new });
        Ok(Outcome::Done { revision })
    }

    /// I4: what was promised on a node stays within what it declares.
    fn check_promises_fit(&self, node: &NodeRecord, capacity: &Capacity) -> Result<(), Refusal> {
        let Some(claims) = self.index.claims.get(&node.id) else { return Ok(()) };
        if claims.cpu_millis <= u64::from(capacity.cpu_millis) && claims.memory_bytes <= capacity.memory_bytes {
            return Ok(());
        }
        let promised = format!("{} and {}", words::cores(claims.cpu_millis), words::bytes(claims.memory_bytes, true));
        Err(Refusal::new(codes::IN_USE, format!("{promised} are guaranteed to machines on node {}", node.name))
            .field("capacity", words::bytes(capacity.memory_bytes, false))
            .hint("move machines away first: `smartnode node drain`"))
    }

    pub(super) fn plan_absence(&mut self, id: NodeId, for_ms: u64) -> Result<Outcome, Refusal> {
        self.node_of(id)?;
        if !(1..=millis(ABSENCE_MAX)).contains(&for_ms) {
            return Err(Refusal::new(codes::INVALID, format!("an absence lasts at most {} s", ABSENCE_MAX.as_secs()))
                .field("for", format!("{} s", for_ms / 1000)));
        }
        let until = self.now_ms().saturating_add(for_ms);
        self.absences.insert(id, AbsenceRecord { node: id, for_ms });
        Ok(self.set_absence(id, Some(until)))
    }

    pub(super) fn end_absence(&mut self, id: NodeId) -> Result<Outcome, Refusal> {
        let node = self.node_of(id)?;
        if node.absent_until_ms.is_none() {
            return Ok(Outcome::Done { revision: node.revision });
        }
        self.absences.remove(&id);
        Ok(self.set_absence(id, None))
    }

    fn set_absence(&mut self, id: NodeId, until: Option<u64>) -> Outcome {
        let revision = self.revision();
        if let Some(node) = self.nodes.get_mut(&id) {
            node.absent_until_ms = until;
            node.revision = revision;
        }
        Outcome::Done { revision }
    }

    pub(super) fn remove_node(
        &mut self,
        id: NodeId,
        tombstone: &Tombstone,
        force: bool,
        expected: Option<u64>,
    ) -> Result<Outcome, Refusal> {
        if self.tombstones.contains_key(&id) {
            return Ok(Outcome::Removed);
        }
        let node = self.node_of(id)?;
        check_revision(expected, node.revision)?;
        if tombstone.node != id || tombstone.signature.len() != 64 {
            return Err(Refusal::new(codes::INVALID, "the tombstone is not for this node").field("tombstone", id));
        }
        self.check_not_last_voter(id)?;
        let claims = self.index.claims.get(&id).cloned().unwrap_or_default();
        if !force && claims.count() > 0 {
            let machines = count(claims.count(), "machine");
            return Err(Refusal::new(codes::IN_USE, format!("node {} has {machines}", node.name))
                .field("node", id)
                .hint("drain it first: `smartnode node drain`, or give up what it has with --force"));
        }
        self.index.node_names.remove(&node.name.clone());
        self.nodes.remove(&id);
        self.absences.remove(&id);
        self.placed.remove(&id);
        self.bury(tombstone);
        self.settle_removed(&claims.owned.into_iter().chain(claims.reserved).collect::<Vec<_>>(), id);
        Ok(Outcome::Removed)
    }

    /// Whether a voter would be left without this node.
    ///
    /// # Errors
    /// `last-voter`: nobody could keep the ledger then.
    pub fn check_not_last_voter(&self, id: NodeId) -> Result<(), Refusal> {
        let mut voters = self.nodes.values().filter(|node| node.role == Role::Voter);
        match (voters.next(), voters.next()) {
            (Some(last), None) if last.id == id => {
                Err(Refusal::new(codes::LAST_VOTER, format!("{} is the last node that may vote", last.name))
                    .field("node", id)
                    .hint(
                        "admit another first: `smartnode token create --role voter`; or end the fabric with this node: \
                         `smartnode stop`, then remove its data directory",
                    ))
            }
            _ => Ok(()),
        }
    }

    /// What a removed node's machines become. Those that it owns keep it as owner until a takeover: its lease may still
    /// run. Moves to it are given up, and nobody waits for it to destroy what is to be deleted.
    fn settle_removed(&mut self, machines: &[MachineId], gone: NodeId) {
        for id in machines {
            let Some(machine) = self.machines.get(id) else { continue };
            let owned = machine.placement.is_some_and(|p| p.node == gone);
            if owned && machine.desired == Desired::Deleted {
                self.delete_machine(*id);
            } else {
                self.change_machine(*id, |machine| {
                    if let Some(placement) = &mut machine.placement {
                        placement.moving = placement.moving.filter(|m| m.to != gone && !owned);
                    }
                });
            }
        }
    }

    fn bury(&mut self, tombstone: &Tombstone) {
        self.tombstones.insert(tombstone.node, tombstone.clone());
        if self.tombstones.len() > TOMBSTONES_MAX {
            let oldest = self.tombstones.values().map(|t| (t.removed_ms, t.node)).min();
            if let Some((_, node)) = oldest {
                self.tombstones.remove(&node);
            }
        }
    }
}

const NEW: &str = "make another: `smartnode token create`";

/// Labels after a change, if they keep the rules.
pub(super) fn patched(labels: &Labels, patch: &LabelPatch) -> Result<Labels, Refusal> {
    if patch.remove.len() > LABELS_MAX {
        return Err(Refusal::new(codes::INVALID, format!("at most {LABELS_MAX} labels are removed at once"))
            .field("labels", patch.remove.len()));
    }
    check::labels(&patch.set)?;
    let mut labels = labels.clone();
    for key in &patch.remove {
        labels.remove(key);
    }
    labels.extend(patch.set.iter().map(|(key, value)| (key.clone(), value.clone())));
    check::labels(&labels)?;
    Ok(labels)
}

fn check_address(address: &str) -> Result<(), Refusal> {
    match address.parse::<SocketAddr>() {
        Ok(_) => Ok(()),
        Err(_) => {
            Err(Refusal::new(codes::INVALID, "a node's address is IP:PORT or [IP]:PORT").field("address", address))
        }
    }
}

fn check_capacity(capacity: &Capacity) -> Result<(), Refusal> {
    // Far beyond any host, and far from overflow in sums.
    if capacity.cpu_millis <= 1_024_000_000 && capacity.memory_bytes <= 1 << 50 && capacity.disk_bytes <= 1 << 60 {
        return Ok(());
    }
    Err(Refusal::new(codes::INVALID, "no host has this capacity")
        .field("capacity", words::bytes(capacity.memory_bytes, false)))
}
