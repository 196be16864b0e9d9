//! The replicated state and the one way in which it changes: [`State::apply`].
//!
//! Pure. It depends on the state and the entry alone: no clock (the leader's stamp is in the entry), no RNG (ids come with
//! the command), no hash-map order. A refusal changes nothing but the audit chain and the idempotency records. What costs
//! more than O(log n) is kept incrementally in [`claims`]; [`invariants`] recomputes it and compares.

mod audit;
mod authorize;
mod claims;
mod cluster;
mod images;
mod invariants;
mod machines;
mod moving;
mod nodes;
mod placing;
mod records;
mod tenants;
#[cfg(test)]
pub(crate) mod tests;
mod words;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use fabric::ids::{Digest, IdempotencyKey, MachineId, NodeId, TokenId};
use fabric::model::{Capacity, ImageRecord, MachineRecord, Name, NodeRecord, TenantRecord, Tombstone};
use fabric::rpc::Refusal;

pub use claims::{NodeClaims, Usage};
pub use moving::KeyedMove;
pub use placing::unsettled;
pub use records::*;
pub use words::{bytes as words_of_bytes, cores as words_of_cores};

use crate::codes;
use crate::command::{Command, CommandV1, Envelope, Outcome};

/// Where and when an entry stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryContext {
    /// Its index.
    pub index: u64,
    /// Term of the leader that proposed it.
    pub term: u64,
    /// The leader's stamp, Unix milliseconds.
    pub at_ms: u64,
}

impl EntryContext {
    /// The context of an envelope at `(index, term)`.
    pub fn of(index: u64, term: u64, envelope: &Envelope) -> Self {
        EntryContext { index, term, at_ms: envelope.at_ms }
    }
}

/// Everything that must never disagree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// What the whole cluster agrees on.
    pub settings: Settings,
    /// Trusted CAs by the blake3 of their certificates.
    pub cas: BTreeMap<Digest, CaRecord>,
    /// Admitted nodes.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Planned absences in force.
    pub absences: BTreeMap<NodeId, AbsenceRecord>,
    /// Admitted nodes that a placement names or has named, with the last change of such a placement.
    pub placed: BTreeMap<NodeId, PlacedRecord>,
    /// Removed nodes.
    pub tombstones: BTreeMap<NodeId, Tombstone>,
    /// Join tokens.
    pub tokens: BTreeMap<TokenId, TokenRecord>,
    /// Tenants.
    pub tenants: BTreeMap<Name, TenantRecord>,
    /// Images by (tenant, name).
    pub images: BTreeMap<(Name, Name), ImageRecord>,
    /// Machines.
    pub machines: BTreeMap<MachineId, MachineRecord>,
    /// The last audit entries, oldest first. Shared with copies, as answers are: they are many and never change.
    pub audit: VecDeque<Arc<AuditEntry>>,
    /// Answers to requests that carried a key.
    idempotency: BTreeMap<IdempotencyKey, Arc<IdempotencyRecord>>,
    /// The same in the order of their entries, for eviction.
    idempotency_order: VecDeque<Arc<IdempotencyRecord>>,
    /// What follows from the records above.
    index: claims::Index,
}

impl State {
    /// Applies one entry. The same state and entry give the same state and answer on every node.
    ///
    /// The caller halts instead when [`Command::halts`] says so.
    ///
    /// # Errors
    /// The refusal, in the user's words.
    pub fn apply(&mut self, entry: EntryContext, envelope: &Envelope) -> Result<Outcome, Refusal> {
        self.settings.index = entry.index;
        self.settings.at_ms = self.settings.at_ms.max(entry.at_ms);
        if let Some(answer) = self.remembered(envelope) {
            return answer;
        }
        let subject = self.subject(&envelope.command);
        let result = self
            .authorize(&envelope.actor, &envelope.command)
            .and_then(|()| self.execute(&entry, &envelope.command, envelope));
        self.remember(entry.index, envelope, &result);
        self.note(entry.index, envelope, subject, &result);
        result
    }

    fn execute(&mut self, entry: &EntryContext, command: &Command, envelope: &Envelope) -> Result<Outcome, Refusal> {
        use CommandV1::*;
        let actor = &envelope.actor;
        match command {
            InitCluster { cluster_id, feature_level, ca, node, tenant } => {
                self.init_cluster(*cluster_id, *feature_level, ca, node, tenant)
            }
            SetFeatureLevel { level } => self.set_feature_level(*level),
            AddCa { ca } => self.add_ca(ca),
            CreateToken { id, secret_hash, role, uses, ttl_ms } => {
                self.create_token(*id, *secret_hash, *role, *uses, *ttl_ms)
            }
            RevokeToken { id } => self.revoke_token(*id),
            AdmitNode { token, secret_hash, node } => self.admit_node(*token, *secret_hash, node),
            UpdateNode { node, patch, expected_revision } => self.update_node(*node, patch, *expected_revision),
            RemoveNode { node, tombstone, force, expected_revision } => {
                self.remove_node(*node, tombstone, *force, *expected_revision)
            }
            PlanAbsence { node, for_ms } => self.plan_absence(*node, *for_ms),
            EndAbsence { node } => self.end_absence(*node),
            CreateTenant { name, parent, quota } => self.create_tenant(name, parent.as_ref(), *quota),
            DeleteTenant { name, expected_revision } => self.delete_tenant(name, *expected_revision),
            SetQuota { name, quota, expected_revision } => self.set_quota(name, *quota, *expected_revision),
            PutImage { tenant, name, digest, size_bytes, expected_revision } => {
                self.put_image(tenant, name, *digest, *size_bytes, *expected_revision)
            }
            DeleteImage { tenant, name, expected_revision } => self.delete_image(tenant, name, *expected_revision),
            CreateMachine { id, tenant, name, spec, desired } => self.create_machine(*id, tenant, name, spec, *desired),
            SetDesired { machine, desired, over, expected_revision } => {
                self.set_desired(*machine, *desired, *over, *expected_revision)
            }
            UpdateLabels { machine, patch, expected_revision } => {
                self.update_labels(*machine, patch, *expected_revision)
            }
            RestartMachine { machine, expected_revision } => self.restart_machine(*machine, *expected_revision),
            Forget { machine, epoch } => self.forget(actor.node, *machine, *epoch),
            Place { items } => self.place(items),
            Confirm { machine, epoch } => self.confirm(actor.node, *machine, *epoch),
            Ended { machine, epoch, restarts, code } => self.ended(actor.node, *machine, *epoch, *restarts, *code),
            Failed { machine, epoch, reason, back_off_ms, here } => {
                self.failed((actor.node, *here), *machine, *epoch, reason, *back_off_ms)
            }
            Release { machine, epoch } => self.release(actor.node, *machine, *epoch),
            Takeover { machine, epoch, from, candidates, judged_term, .. } => {
                self.takeover(*machine, *epoch, *from, candidates, *judged_term == entry.term)
            }
            MoveBegin { machine, from_epoch, id, to } => self.move_begin(*machine, *from_epoch, *id, *to),
            MoveSwitch { machine, id, from_epoch } => self.move_switch(actor.node, *machine, *id, *from_epoch),
            MoveAbort { machine, id, from_epoch } => self.move_abort(*machine, *id, *from_epoch),
        }
    }

    /// A copy of the records alone, for a snapshot: made while entries wait, so it leaves out what follows from them.
    pub(crate) fn records(&self) -> State {
        State {
            settings: self.settings.clone(),
            cas: self.cas.clone(),
            nodes: self.nodes.clone(),
            absences: self.absences.clone(),
            placed: self.placed.clone(),
            tombstones: self.tombstones.clone(),
            tokens: self.tokens.clone(),
            tenants: self.tenants.clone(),
            images: self.images.clone(),
            machines: self.machines.clone(),
            audit: self.audit.clone(),
            idempotency_order: self.idempotency_order.clone(),
            ..State::default()
        }
    }

    /// Whether `InitCluster` was applied.
    pub fn initialized(&self) -> bool {
        !self.cas.is_empty()
    }

    /// The tenant's machine of that name.
    pub fn machine_by_name(&self, tenant: &Name, name: &Name) -> Option<&MachineRecord> {
        self.machines.get(self.index.machine_names.get(tenant)?.get(name)?)
    }

    /// The admitted node of that name.
    pub fn node_by_name(&self, name: &Name) -> Option<&NodeRecord> {
        self.nodes.get(self.index.node_names.get(name)?)
    }

    /// The machines of a tenant by name, without those of tenants below it.
    pub fn machines_of(&self, tenant: &Name) -> impl Iterator<Item = &MachineRecord> + '_ {
        let names = self.index.machine_names.get(tenant);
        names.into_iter().flat_map(BTreeMap::values).filter_map(|id| self.machines.get(id))
    }

    /// The machines that a node owns.
    pub fn machines_on(&self, node: NodeId) -> impl Iterator<Item = &MachineRecord> + '_ {
        let claims = self.index.claims.get(&node);
        claims.into_iter().flat_map(|c| &c.owned).filter_map(|id| self.machines.get(id))
    }

    /// The machines that a node does not own but keeps room for: it is the destination of a move, or its source until
    /// the destination runs.
    pub fn machines_reserved_on(&self, node: NodeId) -> impl Iterator<Item = &MachineRecord> + '_ {
        let claims = self.index.claims.get(&node);
        claims.into_iter().flat_map(|c| &c.reserved).filter_map(|id| self.machines.get(id))
    }

    /// The revision of a node's placements: index of the last entry that changed one which named the node before or after
    /// it. Whoever has applied so much knows what the node owns and what it owns no more.
    pub fn placed_on(&self, node: NodeId) -> u64 {
        self.placed.get(&node).map_or(0, |placed| placed.revision)
    }

    /// Machines that are wanted running and have no owner.
    pub fn unplaced(&self) -> impl Iterator<Item = &MachineRecord> + '_ {
        self.index.unplaced.iter().filter_map(|id| self.machines.get(id))
    }

    /// What a node has declared and not guaranteed to any machine; nothing for an unknown node.
    pub fn free(&self, node: NodeId) -> Capacity {
        let Some(record) = self.nodes.get(&node) else { return Capacity::default() };
        self.index.claims.get(&node).map_or(record.capacity, |claims| claims.left_of(record.capacity))
    }

    /// A port that `machine` publishes and that another one has on `node`, with who that is: by name within the tenant.
    pub fn taken_port(&self, machine: &MachineRecord, node: NodeId) -> Option<(u16, String)> {
        let (port, other) = self.index.claims.get(&node)?.taken_port(&machine.spec, machine.id)?;
        let other = self.machines.get(&other)?;
        let by = if other.tenant == machine.tenant {
            format!("machine {}", other.name)
        } else {
            "a machine of another tenant".to_owned()
        };
        Some((port, by))
    }

    /// What a tenant and those below it have been guaranteed.
    pub fn usage(&self, tenant: &Name) -> Usage {
        self.index.usage.get(tenant).copied().unwrap_or_default()
    }

    /// Whether a node is absent as planned, by the cluster's time.
    pub fn is_absent(&self, node: NodeId) -> bool {
        self.nodes.get(&node).and_then(|n| n.absent_until_ms).is_some_and(|until| until > self.settings.at_ms)
    }

    fn now_ms(&self) -> u64 {
        self.settings.at_ms
    }

    fn revision(&self) -> u64 {
        self.settings.index
    }
}

/// Checks the caller's `If-Match`.
fn check_revision(expected: Option<u64>, actual: u64) -> Result<(), Refusal> {
    match expected {
        Some(revision) if revision != actual => {
            Err(Refusal::new(codes::REVISION, format!("it has changed: revision {actual}, not {revision}"))
                .field("revision", revision)
                .hint("read it again, then repeat the change"))
        }
        _ => Ok(()),
    }
}

/// A decoded frame may hold any text where a name should be.
fn check_name(field: &str, name: &Name) -> Result<(), Refusal> {
    if name.is_valid() {
        Ok(())
    } else {
        Err(Refusal::new(codes::INVALID, format!("{field} is not a name")).field(field, name))
    }
}

/// Cuts a text from outside to a bound, between characters.
fn clip(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
