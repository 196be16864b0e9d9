//! Records that only the ledger keeps; those that others share are in `fabric::model`.

use std::collections::BTreeSet;
use std::fmt;

use fabric::ids::{ClusterId, Digest, IdempotencyKey, NodeId, TokenId};
use fabric::model::{Name, Role};
use fabric::records;
use rkyv::{Archive, Deserialize, Serialize};

use crate::command::Answer;

/// What the whole cluster agrees on, and how far the state has come.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsV1 {
    /// All zero before `InitCluster`.
    pub cluster_id: ClusterId,
    /// Grows when an operator rebuilds the ledger after its quorum was lost for good: fences nodes of the time before.
    pub epoch: u64,
    /// Which behaviour `apply` follows.
    pub feature_level: u32,
    /// Index of the last command that was applied.
    pub index: u64,
    /// The cluster's time: the largest leader's stamp so far, Unix milliseconds.
    pub at_ms: u64,
    /// Hash of the last audit entry.
    pub audit_head: Digest,
    /// How many audit entries there ever were.
    pub audit_count: u64,
}
/// Current version of the settings.
pub type Settings = SettingsV1;

/// A trusted CA.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq)]
pub struct CaRecordV1 {
    /// Certificate, DER.
    pub cert_der: Vec<u8>,
    /// Private key, PKCS#8 DER; none where it must not be (spares).
    pub key_pkcs8: Option<Vec<u8>>,
    /// When it was added, Unix milliseconds.
    pub added_ms: u64,
    /// Ledger index of the last change.
    pub revision: u64,
}
/// Current version of a CA's record.
pub type CaRecord = CaRecordV1;

impl fmt::Debug for CaRecordV1 {
    /// The key never reaches a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({:?}, key: {})", Digest::of(&self.cert_der), self.key_pkcs8.is_some())
    }
}

/// A join token, without its secret.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TokenRecordV1 {
    /// Its public half.
    pub id: TokenId,
    /// Hash of the secret half.
    pub secret_hash: Digest,
    /// What it admits as.
    pub role: Role,
    /// How many nodes it may admit in all.
    pub uses: u32,
    /// Whom it has admitted.
    pub admitted: BTreeSet<NodeId>,
    /// When it was made, Unix milliseconds.
    pub created_ms: u64,
    /// When it ends, Unix milliseconds.
    pub expires_ms: u64,
    /// Ledger index of the last change.
    pub revision: u64,
}
/// Current version of a token's record.
pub type TokenRecord = TokenRecordV1;

/// A planned absence in force. The node's own record tells the end by the cluster's time; leases count by lengths.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbsenceRecordV1 {
    /// The absent node.
    pub node: NodeId,
    /// Length, milliseconds.
    pub for_ms: u64,
}
/// Current version of an absence.
pub type AbsenceRecord = AbsenceRecordV1;

/// How new a view of the ledger must be to show every placement that names this node, and none that no longer does.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedRecordV1 {
    /// The node.
    pub node: NodeId,
    /// Ledger index of the last change of a placement that named the node before or after it.
    pub revision: u64,
}
/// Current version of the record.
pub type PlacedRecord = PlacedRecordV1;

/// What a request with an idempotency key was answered.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyRecordV1 {
    /// The key, within its actor's scope.
    pub key: IdempotencyKey,
    /// Hash of verb and subject: the same key for something else is an error of the client.
    pub request: [u8; 8],
    /// When, cluster's time.
    pub at_ms: u64,
    /// Ledger index of the first entry with the key.
    pub index: u64,
    /// The answer.
    pub answer: Answer,
}
/// Current version of an idempotency record.
pub type IdempotencyRecord = IdempotencyRecordV1;

/// One link of the audit chain.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct AuditEntryV1 {
    /// Ledger index of the command.
    pub index: u64,
    /// Cluster's time, Unix milliseconds.
    pub at_ms: u64,
    /// The node that the command came through.
    pub node: NodeId,
    /// Whose credential.
    pub subject: String,
    /// What was asked.
    pub verb: String,
    /// Whose it is about; none for what belongs to the cluster.
    pub tenant: Option<Name>,
    /// Of what, by name where it had one.
    pub about: String,
    /// `ok`, or the code of the refusal.
    pub result: String,
    /// Hash of the entry before.
    pub prev: Digest,
}
/// Current version of an audit entry.
pub type AuditEntry = AuditEntryV1;

impl AuditEntryV1 {
    /// Hash of the entry, which the next one carries. Over its framed bytes, so that it can be checked anywhere.
    pub fn hash(&self) -> Digest {
        Digest::of(&fabric::wire::encode(self))
    }
}

records!(
    SettingsV1 = (110, 1),
    CaRecordV1 = (111, 1),
    TokenRecordV1 = (112, 1),
    AbsenceRecordV1 = (113, 1),
    IdempotencyRecordV1 = (114, 1),
    AuditEntryV1 = (115, 1),
    PlacedRecordV1 = (116, 1),
);
