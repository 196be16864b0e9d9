//! Becoming a member: `init` founds a cluster, `join` enters one. Both may be repeated after a crash at any step.
//!
//! The key comes first and stays; the file `cluster` comes last and is the commit point. A founder also keeps its first
//! ledger command there until the ledger has it.

use std::net::SocketAddr;

use fabric::identity::{CaKey, Credentials, IdentityError, NodeKey, Trust};
use fabric::ids::ClusterId;
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::{Labels, Name, NodeRecord, Role};
use fabric::seams::{Disk, Seams, draw};
use fabric::token::JoinToken;
use fabric::transport::join::{self, JoinError, Joiner};
use fabric::wire;
use raft_store::command::{Actor, Ca, Command, Envelope};
use thiserror::Error;

use super::dir::{ClusterFile, DirError, Told};
use super::trusted;
use crate::host::{Host, offered};

/// The tenant that every cluster begins with.
pub const DEFAULT_TENANT: &str = "default";
/// The feature level at which a cluster of this version begins.
pub use raft_store::limits::FEATURE_LEVEL;

/// What the operator says about a node.
#[derive(Debug, Clone)]
pub struct Own {
    /// Its name, unique in the cluster.
    pub name: Name,
    /// Where peers reach it.
    pub advertise: SocketAddr,
    /// Failure domain, or empty.
    pub zone: String,
    /// Labels.
    pub labels: Labels,
}

/// Why a node did not become a member.
#[derive(Debug, Error)]
pub enum FoundingError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// Keys or certificates cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No peer admitted this node.
    #[error("no peer admitted this node")]
    Join(#[from] JoinError),
    /// The directory is another cluster's.
    #[error("this data directory belongs to another cluster ({found}); the token is of {asked}")]
    OtherCluster {
        /// Cluster of the directory.
        found: ClusterId,
        /// CA of the token.
        asked: String,
    },
    /// A member without its key is nobody.
    #[error("node.key is missing in the data directory of a member")]
    NoKey,
    /// No peer was named.
    #[error("name at least one peer to join")]
    NoPeer,
}

/// Founds a cluster, unless this directory has one already. Returns its id.
///
/// # Errors
/// When the disk fails.
pub fn init(seams: &Seams, host: &dyn Host, own: &Own) -> Result<ClusterId, FoundingError> {
    let disk = &*seams.disk;
    if let Some(file) = ClusterFile::load(disk)? {
        return Ok(file.cluster);
    }
    let now = seams.clock.wall();
    let key = NodeKey::load_or_generate(disk, &*seams.entropy)?;
    let ca = CaKey::generate(&*seams.entropy, now);
    let certificate = ca.issue(&key.public_key(), Role::Voter, now, CERTIFICATE_TTL);
    let credentials = Credentials::new(key.clone(), certificate, ca.cert_der().to_vec())?;
    let cluster = ClusterId(draw(&*seams.entropy));
    let now_ms = now.as_millis() as u64;
    let node = NodeRecord {
        id: key.id(),
        name: own.name.clone(),
        public_key: key.public_key(),
        role: Role::Voter,
        zone: own.zone.clone(),
        labels: own.labels.clone(),
        capacity: offered(host.total()),
        address: own.advertise.to_string(),
        cordoned: false,
        draining: false,
        absent_until_ms: None,
        admitted_ms: now_ms,
        revision: 0,
    };
    let command = Command::InitCluster {
        cluster_id: cluster,
        feature_level: FEATURE_LEVEL,
        ca: Ca { cert_der: ca.cert_der().to_vec(), key_pkcs8: ca.key_pkcs8() },
        node: Box::new(node),
        tenant: DEFAULT_TENANT.parse().expect("a valid name"),
    };
    let founding = Envelope { actor: Actor::fabric(key.id()), idempotency: None, at_ms: now_ms, command };
    Trust::new([ca.cert_der().to_vec()])?.save(disk)?;
    credentials.save(disk)?;
    let file = ClusterFile {
        cluster,
        name: own.name.clone(),
        role: Role::Voter,
        zone: own.zone.clone(),
        labels: own.labels.clone(),
        advertise: own.advertise.to_string(),
        founding: Some(wire::encode(&founding)),
        begun: false,
        peers: Vec::new(),
        told: Told::default(),
        removed: false,
    };
    file.save(disk)?;
    Ok(cluster)
}

/// Joins the cluster of the token through the first peer that answers, unless this directory is a member already.
///
/// A member whose certificate is lost or damaged is given a new one: its key says who it is, so it keeps its membership, its
/// ledger and its machines.
///
/// # Errors
/// The last peer's error, when none admitted this node; nothing that counts was written then.
pub async fn join(
    seams: &Seams,
    host: &dyn Host,
    own: &Own,
    peers: &[SocketAddr],
    token: &JoinToken,
) -> Result<ClusterId, FoundingError> {
    let disk = &*seams.disk;
    let member = ClusterFile::load(disk)?;
    let key = match &member {
        Some(_) => NodeKey::load(disk)?.ok_or(FoundingError::NoKey)?,
        None => NodeKey::load_or_generate(disk, &*seams.entropy)?,
    };
    if let Some(file) = &member
        && let Some(credentials) = certified(disk, &key)?
    {
        let trust = trusted(disk, &credentials)?;
        if !trust.cas().any(|der| fabric::ids::Digest::of(der) == token.ca) {
            return Err(FoundingError::OtherCluster { found: file.cluster, asked: token.ca.short() });
        }
        return Ok(file.cluster);
    }
    let joiner = Joiner {
        name: own.name.clone(),
        address: own.advertise,
        capacity: offered(host.total()),
        zone: own.zone.clone(),
        labels: own.labels.clone(),
    };
    let mut last = FoundingError::NoPeer;
    for peer in peers {
        match join::ask(seams, *peer, token, &key, joiner.clone()).await {
            Ok(answer) => return enter(seams, own, key, answer, member),
            // The cluster has heard the request and said no: other members would say the same.
            Err(error @ (JoinError::Refused(_) | JoinError::Untrusted { .. } | JoinError::Clock { .. })) => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::warn!(%peer, reason = %error, "this peer did not admit us");
                last = error.into();
            }
        }
    }
    Err(last)
}

/// The certificate of a member; none when it is lost.
fn certified(disk: &dyn Disk, key: &NodeKey) -> Result<Option<Credentials>, IdentityError> {
    match Credentials::load(disk, key.clone()) {
        Ok(loaded) => Ok(loaded),
        Err(error @ IdentityError::Disk { .. }) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "this member's certificate cannot be used: it asks for another");
            Ok(None)
        }
    }
}

fn enter(
    seams: &Seams,
    own: &Own,
    key: NodeKey,
    answer: join::JoinAnswer,
    member: Option<ClusterFile>,
) -> Result<ClusterId, FoundingError> {
    let disk = &*seams.disk;
    if let Some(file) = member.as_ref().filter(|file| file.cluster != answer.cluster) {
        return Err(FoundingError::OtherCluster { found: file.cluster, asked: answer.cluster.to_string() });
    }
    let credentials = Credentials::new(key, answer.certificate, answer.ca)?;
    let mut trust = Trust::new(answer.cas)?;
    // A member that gets a new certificate still knows who was removed.
    if let Some(known) = Trust::load(disk).ok().flatten() {
        trust.merge(known.tombstones().values().cloned())?;
    }
    trust.save(disk)?;
    credentials.save(disk)?;
    if member.is_some() {
        return Ok(answer.cluster);
    }
    let file = ClusterFile {
        cluster: answer.cluster,
        name: answer.name,
        role: credentials.role(),
        zone: own.zone.clone(),
        labels: own.labels.clone(),
        advertise: own.advertise.to_string(),
        founding: None,
        begun: false,
        peers: answer.peers.into_iter().map(|(node, address)| (node, address.to_string())).collect(),
        told: Told::default(),
        removed: false,
    };
    file.save(disk)?;
    Ok(file.cluster)
}
