//! What was asked and answered: the audit chain and the idempotency records, both bounded.

use std::sync::Arc;

use fabric::ids::{IdempotencyKey, MachineId, NodeId};
use fabric::limits::{AUDIT_ENTRIES_MAX, IDEMPOTENCY_RECORDS_MAX, IDEMPOTENCY_TTL};
use fabric::model::{Name, Role};
use fabric::rpc::Refusal;

use super::{AuditEntry, IdempotencyRecord, State, clip};
use crate::codes;
use crate::command::{Actor, Answer, Command, CommandV1, Envelope, Outcome, PlaceResult};
use crate::limits::{PRUNED_PER_ENTRY_MAX, SUBJECT_BYTES_MAX};

/// Recognises a repeated request: verb and subject, since the ids in it may be drawn anew.
fn fingerprint(envelope: &Envelope) -> [u8; 8] {
    let mut hash = blake3::Hasher::new();
    hash.update(envelope.command.verb().as_bytes()).update(&[0]).update(envelope.command.about().as_bytes());
    let mut out = [0; 8];
    out.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    out
}

/// What became of a command in a word: `ok` or a code. A batch that found no place at all is as good as refused.
fn word_of(result: &Result<Outcome, Refusal>) -> String {
    let code = match result {
        Err(refusal) => Some(&refusal.code),
        Ok(Outcome::Placed { items }) => {
            let mut codes = items.iter().map(|item| match item {
                PlaceResult::Placed { .. } => None,
                PlaceResult::Refused { refusal, .. } => Some(&refusal.code),
            });
            let first = codes.next().flatten();
            if codes.all(|code| code.is_some()) { first } else { None }
        }
        Ok(_) => None,
    };
    code.map_or_else(|| "ok".into(), String::clone)
}

/// A key within a scope.
fn within(scope: [&[u8]; 3], key: IdempotencyKey) -> IdempotencyKey {
    let mut hash = blake3::Hasher::new();
    for part in scope {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hash.update(&key.0);
    let mut out = [0; 16];
    out.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    IdempotencyKey(out)
}

/// The key of a move's step, the same whoever owns the machine.
pub(super) fn move_key(verb: &str, machine: MachineId, key: IdempotencyKey) -> IdempotencyKey {
    within([b"machine", &machine.0, verb.as_bytes()], key)
}

/// Whose, and which.
type Subject = (Option<Name>, String);

impl State {
    /// A key in its actor's scope. A move is proposed by its source in its client's name, with a key that is in the client's
    /// scope already, and the next owner proposes it when it is asked for again: that key is the machine's, for its owners.
    fn scoped(&self, envelope: &Envelope, key: IdempotencyKey) -> IdempotencyKey {
        use CommandV1::{MoveBegin, MoveSwitch};
        match &envelope.command {
            MoveBegin { machine, .. } | MoveSwitch { machine, .. }
                if self.index.holds(envelope.actor.node, *machine) =>
            {
                move_key(envelope.command.verb(), *machine, key)
            }
            _ => self.client_key(&envelope.actor, key),
        }
    }

    /// Keys are the clients' own, so one client's key must not answer another's request. Operators are one client, at
    /// whichever voter they ask: who repeats a request elsewhere, since the first node died, must not do it twice.
    /// What a worker calls itself is its own word, so its keys are bound to the node.
    pub fn client_key(&self, actor: &Actor, key: IdempotencyKey) -> IdempotencyKey {
        let role = self.nodes.get(&actor.node).map(|node| node.role);
        let client: [&[u8]; 3] = match (role, &actor.tenant) {
            (Some(Role::Voter), None) => [b"operator", b"", b""],
            (Some(Role::Voter), Some(tenant)) => [b"tenant", tenant.as_str().as_bytes(), actor.subject.as_bytes()],
            _ => [b"node", &actor.node.0, actor.subject.as_bytes()],
        };
        within(client, key)
    }

    /// What a request with this key was answered, unless that was too long ago.
    pub(super) fn answered(&self, key: IdempotencyKey) -> Option<&IdempotencyRecord> {
        self.idempotency.get(&key).map(|record| &**record).filter(|record| !self.expired(record))
    }

    /// The answer that a request with this key had before.
    pub(super) fn remembered(&self, envelope: &Envelope) -> Option<Result<Outcome, Refusal>> {
        let record = self.answered(self.scoped(envelope, envelope.idempotency?))?;
        if record.request == fingerprint(envelope) {
            return Some(record.answer.clone().into());
        }
        Some(Err(Refusal::new(codes::KEY_REUSED, "this Idempotency-Key was used for another request")
            .hint("send a new key with each new request")))
    }

    fn expired(&self, record: &IdempotencyRecord) -> bool {
        record.at_ms.saturating_add(IDEMPOTENCY_TTL.as_millis() as u64) <= self.settings.at_ms
    }

    /// Records an answer under the request's key, and evicts what is old or too much.
    pub(super) fn remember(&mut self, index: u64, envelope: &Envelope, result: &Result<Outcome, Refusal>) {
        self.evict();
        let Some(key) = envelope.idempotency else { return };
        let key = self.scoped(envelope, key);
        let record = IdempotencyRecord {
            key,
            request: fingerprint(envelope),
            at_ms: self.settings.at_ms,
            index,
            answer: Answer::from(result.clone()),
        };
        self.keep_answer(record);
    }

    /// Adds a record behind all others.
    pub(crate) fn keep_answer(&mut self, record: IdempotencyRecord) {
        if self.idempotency.contains_key(&record.key) {
            // An expired record that eviction has not reached: rare, so the walk may cost.
            self.idempotency_order.retain(|other| other.key != record.key);
        }
        let record = Arc::new(record);
        self.idempotency_order.push_back(record.clone());
        self.idempotency.insert(record.key, record);
    }

    fn evict(&mut self) {
        for _ in 0..PRUNED_PER_ENTRY_MAX {
            let Some(oldest) = self.idempotency_order.front() else { return };
            if self.idempotency_order.len() < IDEMPOTENCY_RECORDS_MAX && !self.expired(oldest) {
                return;
            }
            if let Some(oldest) = self.idempotency_order.pop_front() {
                self.idempotency.remove(&oldest.key);
            }
        }
    }

    /// The recorded answers, oldest first.
    pub fn answers(&self) -> impl Iterator<Item = &IdempotencyRecord> + '_ {
        self.idempotency_order.iter().map(|record| &**record)
    }

    /// What a command is about in names, by the state before it: it may take the names away.
    pub(super) fn subject(&self, command: &Command) -> Subject {
        use CommandV1::*;
        match command {
            AdmitNode { node, .. } | InitCluster { node, .. } => (None, node.name.to_string()),
            UpdateNode { node, .. } | RemoveNode { node, .. } | PlanAbsence { node, .. } | EndAbsence { node } => {
                (None, self.name_of_node(*node))
            }
            CreateToken { id, .. } => (None, id.to_string()),
            CreateTenant { name, .. } | DeleteTenant { name, .. } | SetQuota { name, .. } => {
                (Some(name.clone()), name.to_string())
            }
            CreateMachine { tenant, name, .. } | PutImage { tenant, name, .. } | DeleteImage { tenant, name, .. } => {
                (Some(tenant.clone()), name.to_string())
            }
            SetDesired { machine, .. }
            | UpdateLabels { machine, .. }
            | RestartMachine { machine, .. }
            | Forget { machine, .. }
            | Confirm { machine, .. }
            | Ended { machine, .. }
            | Failed { machine, .. }
            | Release { machine, .. }
            | Takeover { machine, .. }
            | MoveBegin { machine, .. }
            | MoveSwitch { machine, .. }
            | MoveAbort { machine, .. } => self.name_of_machine(*machine),
            Place { items } => self.names_of_batch(items.iter().map(|item| item.machine)),
            RevokeToken { .. } | SetFeatureLevel { .. } | AddCa { .. } => (None, command.about()),
        }
    }

    fn name_of_node(&self, node: NodeId) -> String {
        self.nodes.get(&node).map_or_else(|| node.to_string(), |record| record.name.to_string())
    }

    fn name_of_machine(&self, machine: MachineId) -> Subject {
        let record = self.machines.get(&machine);
        record.map_or_else(|| (None, machine.to_string()), |r| (Some(r.tenant.clone()), r.name.to_string()))
    }

    /// A batch is one link. It is its tenant's if that is one and the same; as many names are kept as there is room for.
    fn names_of_batch(&self, machines: impl Iterator<Item = MachineId>) -> Subject {
        let (mut tenants, mut names) = (std::collections::BTreeSet::new(), Vec::new());
        for (tenant, name) in machines.map(|machine| self.name_of_machine(machine)) {
            tenants.insert(tenant);
            names.push(name);
        }
        let one = if tenants.len() == 1 { tenants.pop_first().flatten() } else { None };
        (one, names.join(", "))
    }

    /// Adds a link to the audit chain.
    pub(super) fn note(
        &mut self,
        index: u64,
        envelope: &Envelope,
        (tenant, about): Subject,
        result: &Result<Outcome, Refusal>,
    ) {
        let entry = AuditEntry {
            index,
            at_ms: self.settings.at_ms,
            node: envelope.actor.node,
            subject: clip(&envelope.actor.subject, SUBJECT_BYTES_MAX),
            verb: envelope.command.verb().into(),
            tenant: tenant.filter(Name::is_valid),
            about: clip(&about, 2 * SUBJECT_BYTES_MAX),
            result: word_of(result),
            prev: self.settings.audit_head,
        };
        self.settings.audit_head = entry.hash();
        self.settings.audit_count += 1;
        self.audit.push_back(Arc::new(entry));
        while self.audit.len() > AUDIT_ENTRIES_MAX {
            self.audit.pop_front();
        }
    }

    /// The audit behind `index`, oldest first: what every node tells as the ledger's events.
    ///
    /// # Errors
    /// The oldest index that can be asked for, when links behind `index` are gone.
    pub fn audit_since(&self, index: u64) -> Result<impl Iterator<Item = &AuditEntry> + '_, u64> {
        let oldest = self.audit_oldest();
        if index < oldest {
            return Err(oldest);
        }
        let start = self.audit.partition_point(|entry| entry.index <= index);
        Ok(self.audit.range(start..).map(|entry| &**entry))
    }

    /// The oldest index that [`State::audit_since`] answers for.
    pub fn audit_oldest(&self) -> u64 {
        let all_kept = self.settings.audit_count == self.audit.len() as u64;
        self.audit.front().filter(|_| !all_kept).map_or(0, |first| first.index.saturating_sub(1))
    }
}
