//! The cluster's authority: signs node certificates and tombstones. Voters and standbys hold it (design section 3).

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SerialNumber,
    SignatureAlgorithm,
};

use super::key::Pair;
use super::{IdentityError, certificate};
use crate::ids::{Digest, NodeId};
use crate::limits::CERTIFICATE_BACKDATE;
use crate::model::{Role, Tombstone};
use crate::seams::{Entropy, draw};

/// How long a CA certificate says that it lives. Rotation is by the list of trusted CAs, not by this date.
const CA_TTL: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Last time that a certificate may name: within year 9999.
const TIME_MAX: Duration = Duration::from_secs(253_000_000_000);

/// A CA's key and its self-signed certificate.
pub struct CaKey {
    pair: Pair,
    certificate: Vec<u8>,
}

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaKey({:?})", self.fingerprint())
    }
}

/// A public key whose private half is elsewhere.
struct Foreign([u8; 32]);

impl PublicKeyData for Foreign {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

/// Bytes that a tombstone's signature covers.
pub(super) fn tombstone_message(node: NodeId, removed_ms: u64) -> Vec<u8> {
    [&b"smartnode tombstone v1"[..], &node.0, &removed_ms.to_le_bytes()].concat()
}

/// A positive serial number that depends on nothing but its inputs, so that an issue can be repeated.
fn serial(parts: &[&[u8]]) -> SerialNumber {
    let mut hasher = blake3::Hasher::new_derive_key("smartnode certificate serial v1");
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn validity(params: &mut CertificateParams, now: Duration, ttl: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = now.min(TIME_MAX);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(CERTIFICATE_BACKDATE).as_secs());
    params.not_after = epoch + Duration::from_secs(now.saturating_add(ttl).min(TIME_MAX).as_secs());
}

impl CaKey {
    /// Draws a new CA. `now` is wall time since the Unix epoch.
    pub fn generate(entropy: &dyn Entropy, now: Duration) -> Self {
        let pair = Pair::from_seed(draw(entropy));
        let mut params = Self::params(&pair);
        validity(&mut params, now, CA_TTL);
        let certificate = params.self_signed(&pair).expect("these parameters make a certificate").der().to_vec();
        CaKey { pair, certificate }
    }

    /// The CA as the ledger keeps it.
    ///
    /// # Errors
    /// When one part is malformed or they do not belong together.
    pub fn from_parts(certificate: Vec<u8>, key_pkcs8: &[u8]) -> Result<Self, IdentityError> {
        let pair = Pair::from_pkcs8(key_pkcs8)?;
        if certificate::parse(&certificate)?.public_key != pair.public_key() {
            return Err(IdentityError::Malformed("the CA's certificate is not of the CA's key"));
        }
        Ok(CaKey { pair, certificate })
    }

    /// Names and uses of the CA; the name holds a part of the key's hash, so that two CAs differ to the eye.
    fn params(pair: &Pair) -> CertificateParams {
        let mut params = CertificateParams::default();
        let name = format!("smartnode CA {}", Digest::of(&pair.public_key()).short());
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.serial_number = Some(serial(&[b"ca", &pair.public_key()]));
        params
    }

    /// The CA's own certificate, DER.
    pub fn cert_der(&self) -> &[u8] {
        &self.certificate
    }

    /// The private key as PKCS#8 v1 DER. Secret.
    pub fn key_pkcs8(&self) -> Vec<u8> {
        self.pair.pkcs8()
    }

    /// blake3 of the certificate: what a join token holds.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// A certificate (DER) for the node with `public_key`, valid from a few minutes before `now` (wall time since the
    /// Unix epoch) until `ttl` after it. The same inputs give the same bytes.
    pub fn issue(&self, public_key: &[u8; 32], role: Role, now: Duration, ttl: Duration) -> Vec<u8> {
        let node = NodeId::of_public_key(public_key);
        let names = vec![certificate::server_name(node), certificate::role_name(role)];
        let mut params = CertificateParams::new(names).expect("hexadecimal labels are DNS names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("smartnode {}", node.short()));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let stamp = [now.as_nanos().to_le_bytes(), ttl.as_nanos().to_le_bytes()].concat();
        params.serial_number = Some(serial(&[b"node", public_key, &[role as u8], &stamp]));
        validity(&mut params, now, ttl);
        let issuer = Issuer::new(Self::params(&self.pair), &self.pair);
        let certificate = params.signed_by(&Foreign(*public_key), &issuer);
        certificate.expect("these parameters make a certificate").der().to_vec()
    }

    /// The signed statement that `node` was removed at `now_ms` (Unix milliseconds).
    pub fn tombstone(&self, node: NodeId, now_ms: u64) -> Tombstone {
        let signature = self.pair.sign(&tombstone_message(node, now_ms));
        Tombstone { node, removed_ms: now_ms, ca: self.fingerprint(), signature }
    }
}
