//! Serving joins and renewals: the ledger admits, a holder of the CA key signs.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use fabric::ids::{Digest, NodeId};
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::{NodeRecord, Role, Tombstone};
use fabric::rpc::{Peer, Refusal};
use fabric::token::JoinToken;
use fabric::transport::join::{JoinAnswer, JoinRequest, RenewAnswer, RenewRequest};
use fabric::wire;
use raft_store::command::{Actor, Command, Outcome};

use super::asks::{BURY, BuryAskV1, ISSUE, IssueAnswerV1, IssueAskV1, TombstonesV1};
use super::backend::ca_key;
use super::context::Context;
use crate::api::failure::Failure;

/// Peers told to a joiner.
const PEERS_MAX: usize = 16;

/// The context, once the node has started: the transport listens a moment before.
pub type Late = Arc<OnceLock<Arc<Context>>>;

/// The context, or a refusal that asks to come back.
///
/// # Errors
/// `not-ready` while the node starts.
pub fn started(late: &Late) -> Result<Arc<Context>, Refusal> {
    late.get().cloned().ok_or_else(|| Refusal::new("not-ready", "this node is starting").hint("try again in a moment"))
}

/// Admits a joiner. Idempotent by (token, node), so that a crash before the certificate arrives burns nothing.
///
/// # Errors
/// The ledger's refusal (unknown, expired or used-up token, a name in use), or that no leader can be reached.
pub async fn admit(late: Late, request: JoinRequest, _from: SocketAddr) -> Result<JoinAnswer, Refusal> {
    let context = started(&late)?;
    let id = NodeId::of_public_key(&request.public_key);
    let token = JoinToken { id: request.token, secret: request.secret, ca: Digest::default() };
    let node = NodeRecord {
        id,
        name: request.name,
        public_key: request.public_key,
        role: Role::Worker, // the ledger takes the role from the token
        zone: request.zone,
        labels: request.labels,
        capacity: request.capacity,
        address: request.address.to_string(),
        cordoned: false,
        draining: false,
        absent_until_ms: None,
        admitted_ms: 0,
        revision: 0,
    };
    let command = Command::AdmitNode { token: request.token, secret_hash: token.secret_hash(), node: Box::new(node) };
    let written = context.ledger.write(Actor::fabric(context.me), None, command).await;
    let admitted = match written.map_err(Failure::from)?.outcome {
        Outcome::Admitted { node } => node,
        other => return Err(Refusal::new("internal", format!("the ledger answered with {other:?}"))),
    };
    context.transport.learn(id, request.address);
    let issued = issue(&context, &admitted).await?;
    Ok(JoinAnswer {
        cluster: context.cluster,
        certificate: issued.certificate,
        ca: issued.ca,
        cas: cas(&context),
        node: id,
        name: admitted.name.clone(),
        peers: peers(&context),
        wall_ms: context.now_ms(),
    })
}

/// Renews the certificate of an admitted node.
///
/// # Errors
/// When the node is not admitted (any more), or nobody with the CA key can be reached.
pub async fn renew(late: Late, peer: Peer, request: RenewRequest) -> Result<RenewAnswer, Refusal> {
    let context = started(&late)?;
    if NodeId::of_public_key(&request.public_key) != peer.id {
        return Err(Refusal::new("denied", "a node renews its own certificate alone"));
    }
    let record = context.ledger.read(|state| state.nodes.get(&peer.id).cloned());
    let record = record.ok_or_else(|| Refusal::new("denied", "this node is not admitted"))?;
    let issued = issue(&context, &record).await?;
    Ok(RenewAnswer { certificate: issued.certificate, ca: issued.ca, cas: cas(&context) })
}

/// Signs here when this node holds the CA key, or else asks the voters.
async fn issue(context: &Context, node: &NodeRecord) -> Result<IssueAnswerV1, Refusal> {
    match sign(context, node) {
        Some(answer) => Ok(answer),
        None => context.ask_voters(ISSUE, wire::encode(&IssueAskV1 { public_key: node.public_key })).await,
    }
}

/// The tombstone of a node, signed here when this node holds the CA key, or else by a voter. It is in force once the
/// ledger has it.
///
/// # Errors
/// When nobody with the CA key can be reached.
pub async fn tombstone(context: &Context, node: NodeId) -> Result<Tombstone, Refusal> {
    if let Some(ca) = ca_key(context) {
        return Ok(ca.tombstone(node, context.now_ms()));
    }
    let answer: TombstonesV1 = context.ask_voters(BURY, wire::encode(&BuryAskV1 { node })).await?;
    let signed = answer.tombstones.into_iter().find(|tombstone| tombstone.node == node);
    signed.ok_or_else(|| Refusal::new("internal", "a voter signed another tombstone than it was asked for"))
}

fn sign(context: &Context, node: &NodeRecord) -> Option<IssueAnswerV1> {
    let ca = ca_key(context)?;
    let certificate = ca.issue(&node.public_key, node.role, context.seams.clock.wall(), CERTIFICATE_TTL);
    Some(IssueAnswerV1 { certificate, ca: ca.cert_der().to_vec() })
}

/// Serves [`ISSUE`]: only for keys that the ledger has admitted, so that it grants nothing by itself.
///
/// # Errors
/// When the key is not admitted or this node has no CA key.
pub async fn serve_issue(late: Late, body: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    let context = started(&late)?;
    let ask: IssueAskV1 = super::asks::read(&body)?;
    let id = NodeId::of_public_key(&ask.public_key);
    let find = || context.ledger.read(|state| state.nodes.get(&id).cloned());
    let mut record = find();
    if record.is_none() {
        // Admitted through another node a moment ago: this copy may lag behind.
        context.ledger.linearizable().await.map_err(Failure::from)?;
        record = find();
    }
    let record = record.ok_or_else(|| Refusal::new("denied", "this key is not admitted"))?;
    let answer = sign(&context, &record).ok_or_else(|| Refusal::new("not-ready", "this node has no CA key"))?;
    Ok(wire::encode(&answer))
}

/// Serves [`BURY`]: to nodes that may operate the cluster, and to a worker for itself, which so can leave.
///
/// # Errors
/// When the peer may not ask that, or this node has no CA key.
pub async fn serve_bury(late: Late, peer: Peer, body: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    let context = started(&late)?;
    let ask: BuryAskV1 = super::asks::read(&body)?;
    if peer.role != Role::Voter && peer.id != ask.node {
        return Err(Refusal::new("denied", "a worker removes itself alone"));
    }
    let ca = ca_key(&context).ok_or_else(|| Refusal::new("not-ready", "this node has no CA key"))?;
    Ok(wire::encode(&TombstonesV1 { tombstones: vec![ca.tombstone(ask.node, context.now_ms())] }))
}

fn cas(context: &Context) -> Vec<Vec<u8>> {
    let trust = context.trust.read().expect("no holder of this lock panics");
    trust.cas().map(<[u8]>::to_vec).collect()
}

fn peers(context: &Context) -> Vec<(NodeId, SocketAddr)> {
    let own = (context.me, context.advertise);
    let others = context.membership.active().into_iter().filter(|(node, _)| *node != context.me);
    std::iter::once(own).chain(others).take(PEERS_MAX).collect()
}
