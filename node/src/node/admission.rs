//! Serving joins and renewals: the ledger admits, a holder of the CA key signs.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use fabric::ids::{Digest, NodeId};
use fabric::limits::{CALL_TIMEOUT, CERTIFICATE_TTL};
use fabric::model::{NodeRecord, Role};
use fabric::rpc::{Peer, Refusal, Rpc};
use fabric::token::JoinToken;
use fabric::transport::join::{JoinAnswer, JoinRequest, RenewAnswer, RenewRequest};
use fabric::wire;
use raft_store::command::{Actor, Command, Outcome};

use super::asks::{ISSUE, IssueAnswerV1, IssueAskV1};
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

/// Signs here when this node holds the CA key, or else asks the voters one by one.
async fn issue(context: &Context, node: &NodeRecord) -> Result<IssueAnswerV1, Refusal> {
    if let Some(answer) = sign(context, node) {
        return Ok(answer);
    }
    let question = wire::encode(&IssueAskV1 { public_key: node.public_key });
    for voter in context.ledger.status().voters {
        let Ok(answer) = context.transport.call(voter, ISSUE, question.clone(), CALL_TIMEOUT).await else { continue };
        if let Ok(answer) = wire::decode(&answer) {
            return Ok(answer);
        }
    }
    Err(Refusal::new("unreachable", "no voter that holds the CA key answers").hint("try again when a voter is back"))
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

fn cas(context: &Context) -> Vec<Vec<u8>> {
    let trust = context.trust.read().expect("no holder of this lock panics");
    trust.cas().map(<[u8]>::to_vec).collect()
}

fn peers(context: &Context) -> Vec<(NodeId, SocketAddr)> {
    let own = (context.me, context.advertise);
    let others = context.membership.active().into_iter().filter(|(node, _)| *node != context.me);
    std::iter::once(own).chain(others).take(PEERS_MAX).collect()
}
