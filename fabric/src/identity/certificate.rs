//! Reading certificates: strict, since both ends are this program. Anything unusual is refused.

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::IdentityError;
use crate::ids::NodeId;
use crate::limits::CERTIFICATE_BYTES_MAX;
use crate::model::Role;

/// Object identifier of Ed25519 (RFC 8410).
const ED25519_OID: &str = "1.3.101.112";

/// The algorithm and the head of the signature's bit string: the only bytes that no signature covers, so that the parser
/// must not be lenient about them.
const BEFORE_SIGNATURE: [u8; 10] = *b"\x30\x05\x06\x03\x2b\x65\x70\x03\x41\x00";

/// What a certificate says, before anybody believes it.
pub(super) struct Parsed {
    /// Subject's raw Ed25519 public key.
    pub(super) public_key: [u8; 32],
    /// DNS names in order.
    pub(super) names: Vec<String>,
    /// Seconds since the Unix epoch.
    pub(super) not_before: i64,
    /// Seconds since the Unix epoch.
    pub(super) not_after: i64,
    /// The bytes that are signed.
    pub(super) signed: Vec<u8>,
    /// Their signature.
    pub(super) signature: Vec<u8>,
}

/// The name under which a node is dialled, and the first of its certificate. Its id takes two labels, since one holds
/// at most 63 characters.
pub(crate) fn server_name(node: NodeId) -> String {
    let hex = node.to_string();
    format!("{}.{}.node.smartnode", &hex[..32], &hex[32..])
}

/// The second name of a node's certificate.
pub(super) fn role_name(role: Role) -> String {
    match role {
        Role::Voter => "voter.role.smartnode".into(),
        Role::Worker => "worker.role.smartnode".into(),
    }
}

/// The node that a server name asks for; none when it is not of the form of [`server_name`].
pub(crate) fn node_of(name: &str) -> Option<NodeId> {
    let (head, tail) = name.strip_suffix(".node.smartnode")?.split_once('.')?;
    format!("{head}{tail}").parse().ok().filter(|_| head.len() == 32)
}

/// Reads a certificate.
pub(super) fn parse(der: &[u8]) -> Result<Parsed, IdentityError> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(IdentityError::Malformed("it is too large"));
    }
    let (rest, cert) =
        X509Certificate::from_der(der).map_err(|_| IdentityError::Malformed("not an X.509 certificate"))?;
    if !rest.is_empty() {
        return Err(IdentityError::Malformed("bytes follow it"));
    }
    let tbs = &cert.tbs_certificate;
    let algorithms = [&cert.signature_algorithm, &tbs.signature, &tbs.subject_pki.algorithm];
    if algorithms.iter().any(|used| used.algorithm.to_id_string() != ED25519_OID) {
        return Err(IdentityError::Malformed("it is not of Ed25519"));
    }
    let signature = cert.signature_value.data.as_ref();
    if der.strip_suffix(signature).is_none_or(|head| !head.ends_with(&BEFORE_SIGNATURE)) {
        return Err(IdentityError::Malformed("its signature is not in the canonical form"));
    }
    let public_key = tbs.subject_pki.subject_public_key.data.as_ref();
    let mut names = Vec::new();
    for extension in cert.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) => {
                for name in &san.general_names {
                    let GeneralName::DNSName(name) = name else {
                        return Err(IdentityError::Malformed("a name of an unknown form"));
                    };
                    names.push((*name).to_owned());
                }
            }
            ParsedExtension::BasicConstraints(_) | ParsedExtension::KeyUsage(_) => {}
            _ if extension.critical => return Err(IdentityError::Malformed("an unknown critical extension")),
            _ => {}
        }
    }
    Ok(Parsed {
        public_key: public_key.try_into().map_err(|_| IdentityError::Malformed("its key is not of 32 bytes"))?,
        names,
        not_before: tbs.validity.not_before.timestamp(),
        not_after: tbs.validity.not_after.timestamp(),
        signed: tbs.as_ref().to_vec(),
        signature: signature.to_vec(),
    })
}

impl Parsed {
    /// Who the certificate says that its subject is: both names must be exactly those that the key and a role give.
    pub(super) fn subject(&self) -> Result<(NodeId, Role), IdentityError> {
        let node = NodeId::of_public_key(&self.public_key);
        let [name, role] = &self.names[..] else { return Err(IdentityError::Malformed("it names no node")) };
        if *name != server_name(node) {
            let found = node_of(name).ok_or(IdentityError::Malformed("its name is not of a node"))?;
            return Err(IdentityError::OtherNode { found, want: node });
        }
        let role = [Role::Voter, Role::Worker].into_iter().find(|known| *role == role_name(*known));
        Ok((node, role.ok_or(IdentityError::Malformed("its role is unknown"))?))
    }
}
