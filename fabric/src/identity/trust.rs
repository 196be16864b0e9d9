//! Whom this node trusts: a list of CAs (so that one can be rotated) and a grow-only set of tombstones.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rkyv::{Archive, Deserialize, Serialize};

use super::ca::tombstone_message;
use super::{IdentityError, certificate, verify_signature};
use crate::ids::{Digest, NodeId};
use crate::limits::{CAS_MAX, TOMBSTONES_MAX};
use crate::model::Tombstone;
use crate::records;
use crate::rpc::Peer;
use crate::seams::Disk;
use crate::wire;

/// Its name in the data directory.
pub const FILE: &str = "trust";

/// The tag of a certificate in PEM.
const CERTIFICATE: &str = "CERTIFICATE";

/// Trust as transport, node and gossip share it. Locked for moments only, never across an await.
pub type SharedTrust = Arc<RwLock<Trust>>;

#[derive(Archive, Serialize, Deserialize)]
struct TrustV1 {
    cas: Vec<Vec<u8>>,
    tombstones: Vec<Tombstone>,
}
records!(TrustV1 = (31, 1));

#[derive(Clone, Debug)]
struct Ca {
    der: Vec<u8>,
    fingerprint: Digest,
    public_key: [u8; 32],
}

/// Trusted CAs and removed nodes.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    cas: Vec<Ca>,
    tombstones: BTreeMap<NodeId, Tombstone>,
}

impl Trust {
    /// Trusts the CAs whose certificates (DER) are given.
    ///
    /// # Errors
    /// When one is malformed, or there are more than `CAS_MAX`.
    pub fn new(cas: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, IdentityError> {
        let mut trust = Trust::default();
        for ca in cas {
            trust.add_ca(ca)?;
        }
        Ok(trust)
    }

    /// Trusts one more CA (DER). One that is known already changes nothing.
    ///
    /// # Errors
    /// When it is malformed or there are `CAS_MAX` already.
    pub fn add_ca(&mut self, der: Vec<u8>) -> Result<(), IdentityError> {
        // First, since whoever follows the ledger says the same with each of its entries.
        let fingerprint = Digest::of(&der);
        if self.cas.iter().any(|ca| ca.fingerprint == fingerprint) {
            return Ok(());
        }
        let parsed = certificate::parse(&der)?;
        if !verify_signature(&parsed.public_key, &parsed.signed, &parsed.signature) {
            return Err(IdentityError::Malformed("the CA has not signed itself"));
        }
        if self.cas.len() == CAS_MAX {
            return Err(IdentityError::Bound("too many CAs are trusted"));
        }
        self.cas.push(Ca { der, fingerprint, public_key: parsed.public_key });
        Ok(())
    }

    /// No longer trusts the CA with this fingerprint.
    pub fn drop_ca(&mut self, fingerprint: Digest) {
        self.cas.retain(|ca| ca.fingerprint != fingerprint);
    }

    /// Trusts the CAs of a PEM file, as [`Trust::to_pem`] writes it.
    ///
    /// # Errors
    /// When there is none in it, one is malformed, or there are more than `CAS_MAX`.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let blocks = pem::parse_many(text).map_err(|_| IdentityError::Malformed("it is no PEM text"))?;
        let trust =
            Trust::new(blocks.into_iter().filter(|block| block.tag() == CERTIFICATE).map(pem::Pem::into_contents))?;
        if trust.cas.is_empty() { Err(IdentityError::Malformed("there is no certificate in it")) } else { Ok(trust) }
    }

    /// The certificates of the trusted CAs as PEM, for clients on other hosts.
    pub fn to_pem(&self) -> String {
        let blocks: Vec<_> = self.cas().map(|der| pem::Pem::new(CERTIFICATE, der)).collect();
        pem::encode_many_config(&blocks, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
    }

    /// Certificates (DER) of the trusted CAs.
    pub fn cas(&self) -> impl Iterator<Item = &[u8]> {
        self.cas.iter().map(|ca| &ca.der[..])
    }

    /// Tombstones by node.
    pub fn tombstones(&self) -> &BTreeMap<NodeId, Tombstone> {
        &self.tombstones
    }

    /// Whether the node was removed.
    pub fn is_removed(&self, node: NodeId) -> bool {
        self.tombstones.contains_key(&node)
    }

    /// Who presents this certificate, if it is good at `now` (wall time since the Unix epoch).
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn verify(&self, der: &[u8], now: Duration) -> Result<Peer, IdentityError> {
        let (peer, parsed) = self.authenticate(der)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let seconds = |n: i64| Duration::from_secs(n.unsigned_abs());
        if now < parsed.not_before {
            return Err(IdentityError::NotYetValid(seconds(parsed.not_before - now)));
        }
        if now > parsed.not_after {
            return Err(IdentityError::Expired(seconds(now - parsed.not_after)));
        }
        Ok(peer)
    }

    /// As [`Trust::verify`] whatever the time: enough to ask for a renewal, and for nothing else.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn verify_any_age(&self, der: &[u8]) -> Result<Peer, IdentityError> {
        self.authenticate(der).map(|(peer, _)| peer)
    }

    fn authenticate(&self, der: &[u8]) -> Result<(Peer, certificate::Parsed), IdentityError> {
        let parsed = certificate::parse(der)?;
        let signed_by = |ca: &Ca| verify_signature(&ca.public_key, &parsed.signed, &parsed.signature);
        if !self.cas.iter().any(signed_by) {
            return Err(IdentityError::Untrusted);
        }
        let (id, role) = parsed.subject()?;
        if self.is_removed(id) {
            return Err(IdentityError::Removed(id));
        }
        Ok((Peer { id, role }, parsed))
    }

    /// Takes over tombstones that are not known yet and returns how many those were.
    ///
    /// Beyond `TOMBSTONES_MAX` the latest removals are kept: the certificates of the others have long expired, and a
    /// renewal asks the ledger.
    ///
    /// # Errors
    /// At the first one that no trusted CA has signed; those before it are kept.
    pub fn merge(&mut self, tombstones: impl IntoIterator<Item = Tombstone>) -> Result<usize, IdentityError> {
        let mut added = 0;
        for stone in tombstones {
            if self.is_removed(stone.node) {
                continue;
            }
            let message = tombstone_message(stone.node, stone.removed_ms);
            let signed =
                |ca: &Ca| ca.fingerprint == stone.ca && verify_signature(&ca.public_key, &message, &stone.signature);
            if !self.cas.iter().any(signed) {
                return Err(IdentityError::ForgedTombstone(stone.node));
            }
            self.tombstones.insert(stone.node, stone);
            added += 1;
            if self.tombstones.len() > TOMBSTONES_MAX {
                let oldest = self.tombstones.values().min_by_key(|stone| (stone.removed_ms, stone.node));
                let oldest = oldest.map(|stone| stone.node).expect("there are more than the bound");
                self.tombstones.remove(&oldest);
            }
        }
        Ok(added)
    }

    /// Digest of the set of removed nodes: two nodes with the same one hold the same set.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for node in self.tombstones.keys() {
            hasher.update(&node.0);
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// Reads `trust`; none when there is none yet. Everything in it is verified again.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn load(disk: &dyn Disk) -> Result<Option<Self>, IdentityError> {
        let content = disk.read(FILE).map_err(|source| IdentityError::Disk { file: FILE, source })?;
        let Some(content) = content else { return Ok(None) };
        let record: TrustV1 = wire::decode(&content).map_err(|source| IdentityError::Damaged { file: FILE, source })?;
        let mut trust = Trust::new(record.cas)?;
        trust.merge(record.tombstones)?;
        Ok(Some(trust))
    }

    /// Writes `trust`. To be done before anybody is told that a removal holds.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn save(&self, disk: &dyn Disk) -> Result<(), IdentityError> {
        let cas = self.cas().map(<[u8]>::to_vec).collect();
        let content = wire::encode(&TrustV1 { cas, tombstones: self.tombstones.values().cloned().collect() });
        disk.write(FILE, &content).map_err(|source| IdentityError::Disk { file: FILE, source })
    }
}
