//! Ed25519 keys, drawn from the entropy seam and kept as 32-byte seeds.

use std::fmt;
use std::sync::Arc;

use ring::signature::{Ed25519KeyPair, KeyPair};
use rkyv::{Archive, Deserialize, Serialize};

use super::IdentityError;
use crate::ids::NodeId;
use crate::records;
use crate::seams::{Disk, Entropy, draw};
use crate::wire;

/// Everything of a PKCS#8 v1 Ed25519 key before its seed (RFC 8410).
const PKCS8_PREFIX: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// Its file in the data directory.
pub const FILE: &str = "node.key";

#[derive(Archive, Serialize, Deserialize)]
struct NodeKeyV1 {
    seed: [u8; 32],
}
records!(NodeKeyV1 = (30, 1));

/// An Ed25519 key pair that can be written down.
pub(super) struct Pair {
    seed: [u8; 32],
    ring: Ed25519KeyPair,
}

impl Pair {
    pub(super) fn from_seed(seed: [u8; 32]) -> Self {
        let ring = Ed25519KeyPair::from_seed_unchecked(&seed).expect("32 bytes are a seed");
        Pair { seed, ring }
    }

    pub(super) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, IdentityError> {
        let seed = pkcs8.strip_prefix(&PKCS8_PREFIX).and_then(|seed| seed.try_into().ok());
        seed.map(Pair::from_seed).ok_or(IdentityError::Malformed("not a PKCS#8 Ed25519 key"))
    }

    pub(super) fn pkcs8(&self) -> Vec<u8> {
        [&PKCS8_PREFIX[..], &self.seed].concat()
    }

    pub(super) fn public_key(&self) -> [u8; 32] {
        self.ring.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes")
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.ring.sign(message).as_ref().to_vec()
    }
}

impl rcgen::PublicKeyData for Pair {
    fn der_bytes(&self) -> &[u8] {
        self.ring.public_key().as_ref()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Pair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Pair::sign(self, message))
    }
}

/// A node's key: what it is, as long as its data directory lives.
#[derive(Clone)]
pub struct NodeKey(Arc<Pair>);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({:?})", self.id())
    }
}

impl NodeKey {
    /// Draws a new key.
    pub fn generate(entropy: &dyn Entropy) -> Self {
        NodeKey(Arc::new(Pair::from_seed(draw(entropy))))
    }

    /// The key in `node.key`, or none when there is none yet.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn load(disk: &dyn Disk) -> Result<Option<Self>, IdentityError> {
        let content = disk.read(FILE).map_err(|source| IdentityError::Disk { file: FILE, source })?;
        let Some(content) = content else { return Ok(None) };
        let record: NodeKeyV1 =
            wire::decode(&content).map_err(|source| IdentityError::Damaged { file: FILE, source })?;
        Ok(Some(NodeKey(Arc::new(Pair::from_seed(record.seed)))))
    }

    /// Writes `node.key` (mode 0600).
    ///
    /// # Errors
    /// When the disk fails.
    pub fn save(&self, disk: &dyn Disk) -> Result<(), IdentityError> {
        let content = wire::encode(&NodeKeyV1 { seed: self.0.seed });
        disk.write(FILE, &content).map_err(|source| IdentityError::Disk { file: FILE, source })
    }

    /// The key in `node.key`; draws and saves one when there is none.
    ///
    /// # Errors
    /// When the disk fails or the file is damaged.
    pub fn load_or_generate(disk: &dyn Disk, entropy: &dyn Entropy) -> Result<Self, IdentityError> {
        if let Some(key) = Self::load(disk)? {
            return Ok(key);
        }
        let key = Self::generate(entropy);
        key.save(disk)?;
        Ok(key)
    }

    /// Raw Ed25519 public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.0.public_key()
    }

    /// The node's id: blake3 of the public key.
    pub fn id(&self) -> NodeId {
        NodeId::of_public_key(&self.public_key())
    }

    /// Ed25519 signature (64 bytes).
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message)
    }

    /// The key as PKCS#8 v1 DER, as TLS wants it.
    pub fn pkcs8(&self) -> Vec<u8> {
        self.0.pkcs8()
    }

    /// 32 secret bytes for another purpose, the same at every start. `context` names the purpose.
    pub(crate) fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0.seed)
    }
}
