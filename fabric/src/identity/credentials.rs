//! What a node shows to its peers: its key, its certificate, and the certificate of the CA that issued it.

use std::time::Duration;

use rkyv::{Archive, Deserialize, Serialize};

use super::{IdentityError, NodeKey, Trust, certificate};
use crate::ids::NodeId;
use crate::model::Role;
use crate::records;
use crate::seams::Disk;
use crate::wire;

/// The certificate's file in the data directory.
pub const FILE: &str = "node.crt";

#[derive(Archive, Serialize, Deserialize)]
struct CertificateV1 {
    certificate: Vec<u8>,
    ca: Vec<u8>,
}
records!(CertificateV1 = (32, 1));

/// A node's key with its certificate.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The node's key.
    pub key: NodeKey,
    /// The node's certificate, DER.
    pub cert_der: Vec<u8>,
    /// Certificate of the CA that issued it, DER; shown along, so that a joiner can compare its fingerprint.
    pub ca: Vec<u8>,
    role: Role,
    not_before: i64,
    not_after: i64,
}

impl Credentials {
    /// Puts them together.
    ///
    /// # Errors
    /// When the certificate is not of this key or not issued by this CA. Its age does not matter here.
    pub fn new(key: NodeKey, cert_der: Vec<u8>, ca: Vec<u8>) -> Result<Self, IdentityError> {
        let peer = Trust::new([ca.clone()])?.verify_any_age(&cert_der)?;
        if peer.id != key.id() {
            return Err(IdentityError::OtherNode { found: peer.id, want: key.id() });
        }
        let parsed = certificate::parse(&cert_der)?;
        let (not_before, not_after) = (parsed.not_before, parsed.not_after);
        Ok(Credentials { key, cert_der, ca, role: peer.role, not_before, not_after })
    }

    /// The certificate in `node.crt` with the node's key; none when there is none yet.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is not of this key.
    pub fn load(disk: &dyn Disk, key: NodeKey) -> Result<Option<Self>, IdentityError> {
        let content = disk.read(FILE).map_err(|source| IdentityError::Disk { file: FILE, source })?;
        let Some(content) = content else { return Ok(None) };
        let record: CertificateV1 =
            wire::decode(&content).map_err(|source| IdentityError::Damaged { file: FILE, source })?;
        Self::new(key, record.certificate, record.ca).map(Some)
    }

    /// Writes `node.crt`; the key has its own file.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn save(&self, disk: &dyn Disk) -> Result<(), IdentityError> {
        let content = wire::encode(&CertificateV1 { certificate: self.cert_der.clone(), ca: self.ca.clone() });
        disk.write(FILE, &content).map_err(|source| IdentityError::Disk { file: FILE, source })
    }

    /// The node.
    pub fn id(&self) -> NodeId {
        self.key.id()
    }

    /// What the certificate admits the node as.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Wall time since the Unix epoch at which the certificate runs out.
    pub fn expires(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.not_after).unwrap_or(0))
    }

    /// Whether less than a third of the certificate's life is left at `now` (wall time since the Unix epoch).
    pub fn renewal_due(&self, now: Duration) -> bool {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.not_after.saturating_sub(now) < (self.not_after - self.not_before) / 3
    }
}
