//! What was asked and answered: the audit chain and the idempotency records, both bounded.

use std::sync::Arc;

use fabric::ids::IdempotencyKey;
use fabric::limits::{AUDIT_ENTRIES_MAX, IDEMPOTENCY_RECORDS_MAX, IDEMPOTENCY_TTL};
use fabric::rpc::Refusal;

use super::{AuditEntry, IdempotencyRecord, State, clip};
use crate::codes;
use crate::command::{Answer, Envelope, Outcome};
use crate::limits::{PRUNED_PER_ENTRY_MAX, SUBJECT_BYTES_MAX};

/// Keys are the clients' own, so one client's key must not answer another's request.
fn scoped(envelope: &Envelope, key: IdempotencyKey) -> IdempotencyKey {
    let mut hash = blake3::Hasher::new();
    let tenant = envelope.actor.tenant.as_ref().map_or("", |name| name.as_str());
    hash.update(&(tenant.len() as u64).to_le_bytes()).update(tenant.as_bytes());
    hash.update(envelope.actor.subject.as_bytes()).update(&[0]).update(&key.0);
    let mut out = [0; 16];
    out.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    IdempotencyKey(out)
}

/// Recognises a repeated request: verb and subject, since the ids in it may be drawn anew.
fn fingerprint(envelope: &Envelope) -> [u8; 8] {
    let mut hash = blake3::Hasher::new();
    hash.update(envelope.command.verb().as_bytes()).update(&[0]).update(envelope.command.about().as_bytes());
    let mut out = [0; 8];
    out.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    out
}

impl State {
    /// The answer that a request with this key had before.
    pub(super) fn remembered(&self, envelope: &Envelope) -> Option<Result<Outcome, Refusal>> {
        let record = self.idempotency.get(&scoped(envelope, envelope.idempotency?))?;
        if self.expired(record) {
            return None;
        }
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
        let key = scoped(envelope, key);
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

    /// Adds a link to the audit chain.
    pub(super) fn note(&mut self, index: u64, envelope: &Envelope, result: &Result<Outcome, Refusal>) {
        let entry = AuditEntry {
            index,
            at_ms: self.settings.at_ms,
            node: envelope.actor.node,
            subject: clip(&envelope.actor.subject, SUBJECT_BYTES_MAX),
            verb: envelope.command.verb().into(),
            about: clip(&envelope.command.about(), 2 * SUBJECT_BYTES_MAX),
            result: result.as_ref().map_or_else(|refusal| refusal.code.clone(), |_| "ok".into()),
            prev: self.settings.audit_head,
        };
        self.settings.audit_head = entry.hash();
        self.settings.audit_count += 1;
        self.audit.push_back(Arc::new(entry));
        while self.audit.len() > AUDIT_ENTRIES_MAX {
            self.audit.pop_front();
        }
    }
}
