//! Who a node is: its key, its certificate, the cluster's authority, and whom this node trusts.
//!
//! Authentication is a certificate that chains to a trusted CA, names the blake3 of its own public key, and belongs to
//! no removed node. There is no list of admitted nodes in it: such a list would lag behind at a join and in a partition,
//! while a tombstone is signed and travels by itself. Nothing here reads a clock: the caller passes the time.

mod ca;
mod certificate;
mod credentials;
mod key;
mod trust;

use std::time::Duration;

use ring::signature::{ED25519, UnparsedPublicKey};
use thiserror::Error;

use crate::ids::{Digest, NodeId};
use crate::wire::WireError;

pub use ca::CaKey;
pub use credentials::{Credentials, FILE as CERTIFICATE_FILE};
pub use key::{FILE as KEY_FILE, NodeKey};
pub use trust::{FILE as TRUST_FILE, SharedTrust, Trust};

pub(crate) use certificate::{node_of as wanted_node, server_name};

/// Why a key or certificate is not good.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Not a certificate of this fabric.
    #[error("not a node certificate: {0}")]
    Malformed(&'static str),
    /// No trusted CA has signed it.
    #[error("certificate not trusted: it was issued by another cluster")]
    Untrusted,
    /// It names another node than the one wanted, or than its own key.
    #[error("certificate of node {found:?}, expected node {want:?}")]
    OtherNode {
        /// Whose certificate it is.
        found: NodeId,
        /// Who was wanted.
        want: NodeId,
    },
    /// Its node was removed.
    #[error("node {0:?} was removed from the cluster")]
    Removed(NodeId),
    /// It has run out.
    #[error("certificate expired {} ago: it must be renewed (or this node's clock is ahead)", words(.0))]
    Expired(Duration),
    /// It begins in the future: one of the clocks is wrong.
    #[error("certificate not valid for another {}: this node's clock is behind, or its issuer's is ahead", words(.0))]
    NotYetValid(Duration),
    /// The token was made by another cluster than the one that answers.
    #[error("this token is of another cluster: it names CA {want:?}, the peer shows CA {found:?}")]
    ForeignToken {
        /// Fingerprint in the token.
        want: Digest,
        /// Fingerprint that the peer shows.
        found: Digest,
    },
    /// A tombstone's signature is not a trusted CA's.
    #[error("tombstone of node {0:?} is not signed by a trusted CA")]
    ForgedTombstone(NodeId),
    /// More of something than is allowed.
    #[error("{0}")]
    Bound(&'static str),
    /// A stored record cannot be read.
    #[error("{file} is damaged")]
    Damaged {
        /// Name of the file.
        file: &'static str,
        /// What is wrong.
        #[source]
        source: WireError,
    },
    /// The disk failed.
    #[error("cannot access {file}")]
    Disk {
        /// Name of the file.
        file: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn words(span: &Duration) -> String {
    crate::human::duration(*span)
}

/// Whether `signature` is `public_key`'s Ed25519 signature of `message`.
pub fn verify_signature(public_key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests;
