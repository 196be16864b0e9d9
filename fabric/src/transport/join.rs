//! Joining and renewing, on protocols of their own.
//!
//! A joiner checks the server's chain against the CA fingerprint in its token before it says the secret. Both requests
//! carry a proof of the node key: its signature over a value that TLS exports from this very connection, so that nobody
//! can ask with another node's key, or replay what was heard.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use quinn::{Connection, ConnectionError};
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;
use tokio::time::{Instant, timeout};

use super::dial::{handshake, shown_by};
use super::link::silent;
use super::request::{self, AskError, Tag};
use super::{Alpn, Shared, endpoint, fault, tls};
use crate::identity::{IdentityError, NodeKey, Trust, verify_signature};
use crate::ids::{ClusterId, NodeId, TokenId};
use crate::limits::*;
use crate::model::{Capacity, Labels, Name, check};
use crate::records;
use crate::rpc::{BoxFuture, CallError, Kind, Peer, Refusal};
use crate::seams::Seams;
use crate::token::JoinToken;
use crate::wire;

const KIND_JOIN: Kind = 1;
const KIND_RENEW: Kind = 2;
const CLOCK_SKEW: &str = "clock-skew";
const PROOF_LABEL: &[u8] = b"EXPORTER-smartnode-proof-v1";

/// What a joiner says.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq)]
pub struct JoinRequestV1 {
    /// The token's public half.
    pub token: TokenId,
    /// The token's secret half.
    pub secret: [u8; 16],
    /// The joiner's raw Ed25519 public key.
    pub public_key: [u8; 32],
    /// The name it wants.
    pub name: Name,
    /// Where it will listen.
    pub address: SocketAddr,
    /// What it offers.
    pub capacity: Capacity,
    /// Failure domain, or empty.
    pub zone: String,
    /// Operator's labels.
    pub labels: Labels,
    /// Its wall clock, Unix milliseconds.
    pub wall_ms: u64,
    /// Signature of the node key over the connection's exported value.
    pub proof: Vec<u8>,
}
/// Current version of a request to join.
pub type JoinRequest = JoinRequestV1;

impl std::fmt::Debug for JoinRequestV1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinRequest({:?} with token {:?})", self.name, self.token)
    }
}

/// What a joiner gets.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct JoinAnswerV1 {
    /// The cluster.
    pub cluster: ClusterId,
    /// The joiner's certificate, DER.
    pub certificate: Vec<u8>,
    /// Certificate of the CA that issued it, DER.
    pub ca: Vec<u8>,
    /// All trusted CAs, DER.
    pub cas: Vec<Vec<u8>>,
    /// The joiner's id.
    pub node: NodeId,
    /// The name it was admitted under.
    pub name: Name,
    /// Members to begin with.
    pub peers: Vec<(NodeId, SocketAddr)>,
    /// The server's wall clock, Unix milliseconds.
    pub wall_ms: u64,
}
/// Current version of the answer to a join.
pub type JoinAnswer = JoinAnswerV1;

/// A member asks for a new certificate.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct RenewRequestV1 {
    /// Its raw Ed25519 public key.
    pub public_key: [u8; 32],
    /// Signature of the node key over the connection's exported value.
    pub proof: Vec<u8>,
}
/// Current version of a request to renew.
pub type RenewRequest = RenewRequestV1;

/// The new certificate.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct RenewAnswerV1 {
    /// DER.
    pub certificate: Vec<u8>,
    /// Certificate of the CA that issued it, DER.
    pub ca: Vec<u8>,
    /// All trusted CAs, DER.
    pub cas: Vec<Vec<u8>>,
}
/// Current version of the answer to a renewal.
pub type RenewAnswer = RenewAnswerV1;

records!(JoinRequestV1 = (33, 1), JoinAnswerV1 = (34, 1), RenewRequestV1 = (35, 1), RenewAnswerV1 = (36, 1));

/// Admits a joiner. Proof, clock and bounds were checked; the token was not.
pub type JoinHandler = Arc<dyn Fn(JoinRequest, SocketAddr) -> BoxFuture<Result<JoinAnswer, Refusal>> + Send + Sync>;

/// Renews the certificate of a member (its old one may have expired). The proof was checked.
pub type RenewHandler = Arc<dyn Fn(Peer, RenewRequest) -> BoxFuture<Result<RenewAnswer, Refusal>> + Send + Sync>;

/// What a joiner tells about itself.
#[derive(Debug, Clone)]
pub struct Joiner {
    /// The name it wants.
    pub name: Name,
    /// Where it will listen.
    pub address: SocketAddr,
    /// What it offers.
    pub capacity: Capacity,
    /// Failure domain, or empty.
    pub zone: String,
    /// Operator's labels.
    pub labels: Labels,
}

/// Why a join failed.
#[derive(Debug, Error)]
pub enum JoinError {
    /// No answer at the address.
    #[error("cannot reach {peer}: {cause}")]
    Unreachable {
        /// Where.
        peer: SocketAddr,
        /// Why.
        cause: String,
    },
    /// Something else answers there.
    #[error("{peer} is not a smartnode, or of a version with other protocols")]
    NotSmartnode {
        /// Where.
        peer: SocketAddr,
    },
    /// The server's certificate is not what the token asks for; the secret was not sent.
    #[error("the peer at {peer} is not trusted")]
    Untrusted {
        /// Where.
        peer: SocketAddr,
        /// What is wrong: for a token of another cluster, [`IdentityError::ForeignToken`].
        #[source]
        source: IdentityError,
    },
    /// The clocks differ too much.
    #[error("this node's clock is {} {} the cluster's: set it and try again", human(*skew), if *ahead { "ahead of" } else { "behind" })]
    Clock {
        /// By how much.
        skew: Duration,
        /// Whether this node's clock is ahead.
        ahead: bool,
    },
    /// The cluster said no.
    #[error(transparent)]
    Refused(Refusal),
    /// The request was sent and no answer came; asking again is safe.
    #[error("{peer} did not answer within {after:?}: try again, a join can be repeated")]
    NoAnswer {
        /// Where.
        peer: SocketAddr,
        /// The deadline.
        after: Duration,
    },
    /// The answer is not one.
    #[error("{peer} answered with {cause}")]
    Garbled {
        /// Where.
        peer: SocketAddr,
        /// What is wrong.
        cause: String,
    },
    /// This host has no socket for it.
    #[error("cannot open a UDP socket")]
    Socket(#[source] std::io::Error),
}

fn human(skew: Duration) -> String {
    match skew.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        // Rounded: five hours less the way of a packet are five hours.
        seconds @ 120..=7199 => format!("{} min", (seconds + 30) / 60),
        seconds @ 7200..=172_799 => format!("{} h", (seconds + 1800) / 3600),
        seconds => format!("{} days", (seconds + 43_200) / 86_400),
    }
}

/// What the proof signs: nobody but the two ends of the connection can know it.
fn exported(connection: &Connection) -> Option<Vec<u8>> {
    let mut out = [0; 32];
    connection.export_keying_material(&mut out, PROOF_LABEL, b"").ok()?;
    Some([PROOF_LABEL, &out].concat())
}

/// Milliseconds by which `ours` and `theirs` differ when that is too much, and whether ours is ahead.
fn skew(ours_ms: u64, theirs_ms: u64) -> Option<(Duration, bool)> {
    let skew = Duration::from_millis(ours_ms.abs_diff(theirs_ms));
    (skew > CLOCK_SKEW_MAX).then_some((skew, ours_ms > theirs_ms))
}

fn millis(wall: Duration) -> u64 {
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

/// Asks the member at `peer` to admit this node. Needs no running transport: it makes a socket of its own.
///
/// Repeating it is safe: an admission is idempotent by token and node.
///
/// # Errors
/// See [`JoinError`].
pub async fn ask(
    seams: &Seams,
    peer: SocketAddr,
    token: &JoinToken,
    key: &NodeKey,
    joiner: Joiner,
) -> Result<JoinAnswer, JoinError> {
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let endpoint = endpoint::bind(seams, any, key, None).map_err(JoinError::Socket)?;
    let asked = ask_from(&endpoint, seams, peer, token, key, joiner).await;
    endpoint.close(fault::CLOSE_SHUTDOWN, b"done");
    // The good-bye needs some round trips to drain; nobody has to wait for it.
    tokio::spawn(async move {
        let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    });
    asked
}

async fn ask_from(
    endpoint: &quinn::Endpoint,
    seams: &Seams,
    peer: SocketAddr,
    token: &JoinToken,
    key: &NodeKey,
    joiner: Joiner,
) -> Result<JoinAnswer, JoinError> {
    let unreachable = |cause: String| JoinError::Unreachable { peer, cause };
    let verifier = Arc::new(tls::JoinVerifier::new(token.ca));
    let config = endpoint::dialling(seams, tls::joiner(seams.clock.clone(), verifier.clone()));
    let connecting = endpoint.connect_with(config, peer, "join.smartnode");
    let connecting = connecting.map_err(|error| unreachable(error.to_string()))?;
    let connection = match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let fault = verifier.fault.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(refused_server(peer, fault, &error));
        }
        Err(_) => return Err(unreachable(format!("no answer within {HANDSHAKE_TIMEOUT:?}"))),
    };
    let proof = exported(&connection).map(|exported| key.sign(&exported));
    let Joiner { name, address, capacity, zone, labels } = joiner;
    let ours_ms = millis(seams.clock.wall());
    let request = JoinRequest {
        token: token.id,
        secret: token.secret,
        public_key: key.public_key(),
        name,
        address,
        capacity,
        zone,
        labels,
        wall_ms: ours_ms,
        proof: proof.ok_or_else(|| unreachable("TLS exports nothing".into()))?,
    };
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let answer = ask_while_heard(&connection, KIND_JOIN, &wire::encode(&request), deadline).await;
    let answer = answer.map_err(|error| match error {
        AskError::NotSent { cause, .. } => unreachable(cause),
        AskError::Late => JoinError::NoAnswer { peer, after: JOIN_TIMEOUT },
        AskError::Broken(_) => JoinError::NoAnswer { peer, after: SILENCE },
        AskError::Garbled(cause) => JoinError::Garbled { peer, cause },
        AskError::Refused(refusal) => clock_or(refusal, ours_ms),
    })?;
    admitted(peer, token, key, &answer, ours_ms)
}

/// Asks for as long as anything comes back: a peer that takes its time acknowledges, and one that is gone leaves time for
/// the next.
async fn ask_while_heard(
    connection: &Connection,
    kind: Kind,
    body: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, AskError> {
    tokio::select! {
        biased;
        answer = request::ask(connection, kind, body, deadline) => answer,
        () = silent(connection) => Err(AskError::Broken("it fell silent".into())),
    }
}

/// Why there is no connection, by what the verifier found or the peer said.
fn refused_server(peer: SocketAddr, fault: Option<IdentityError>, error: &ConnectionError) -> JoinError {
    match fault {
        Some(IdentityError::NotYetValid(skew)) => JoinError::Clock { skew, ahead: false },
        Some(source) => JoinError::Untrusted { peer, source },
        None if fault::is_foreign_protocol(error) => JoinError::NotSmartnode { peer },
        None => JoinError::Unreachable { peer, cause: fault::text(error) },
    }
}

/// A refusal for the clock carries the server's time.
fn clock_or(refusal: Refusal, ours_ms: u64) -> JoinError {
    let theirs_ms = refusal.value.as_ref().filter(|_| refusal.code == CLOCK_SKEW).and_then(|value| value.parse().ok());
    match theirs_ms {
        Some(theirs_ms) => {
            JoinError::Clock { skew: Duration::from_millis(ours_ms.abs_diff(theirs_ms)), ahead: ours_ms > theirs_ms }
        }
        None => JoinError::Refused(refusal),
    }
}

/// Believes an answer only when its certificate is of this key and of the token's CA.
fn admitted(
    peer: SocketAddr,
    token: &JoinToken,
    key: &NodeKey,
    answer: &[u8],
    ours_ms: u64,
) -> Result<JoinAnswer, JoinError> {
    let garbled = |cause: String| JoinError::Garbled { peer, cause };
    let answer: JoinAnswer = wire::decode(answer).map_err(|error| garbled(error.to_string()))?;
    if let Some((skew, ahead)) = skew(ours_ms, answer.wall_ms) {
        return Err(JoinError::Clock { skew, ahead });
    }
    let trust = Trust::new(answer.cas.clone()).map_err(|error| garbled(error.to_string()))?;
    let subject = trust.verify_any_age(&answer.certificate).map_err(|error| garbled(error.to_string()))?;
    if subject.id != key.id() || answer.node != key.id() || !answer.name.is_valid() {
        return Err(garbled("a certificate of another node".into()));
    }
    if !trust.cas().any(|ca| crate::ids::Digest::of(ca) == token.ca) {
        return Err(garbled("a list of CAs without the token's".into()));
    }
    Ok(answer)
}

/// Asks a member for a new certificate.
pub(super) async fn renew(shared: &Shared, to: NodeId, within: Duration) -> Result<RenewAnswer, CallError> {
    let deadline = Instant::now() + within;
    let unreachable = |cause: String| CallError::Unreachable { node: to, cause };
    let address = shared.pool().address_of(to).ok_or_else(|| unreachable("its address is not known".into()))?;
    let dialled = timeout(within.min(HANDSHAKE_TIMEOUT), handshake(shared, to, Alpn::Renew, address)).await;
    let connection = dialled.map_err(|_| unreachable("no answer".into()))?.map_err(unreachable)?;
    let exported = exported(&connection).ok_or_else(|| unreachable("TLS exports nothing".into()))?;
    let request = RenewRequest { public_key: shared.key.public_key(), proof: shared.key.sign(&exported) };
    let asked = ask_while_heard(&connection, KIND_RENEW, &wire::encode(&request), deadline).await;
    connection.close(fault::CLOSE_SHUTDOWN, b"done");
    let answer = asked.map_err(|error| super::call_error(to, within, error))?;
    wire::decode(&answer).map_err(|error| CallError::Garbled { node: to, cause: error.to_string() })
}

/// Serves a connection of the join or renew protocol: one question, one answer.
pub(super) async fn serve(shared: &Shared, connection: Connection, renewal: bool) {
    let Ok(_permit) = shared.joins.clone().try_acquire_owned() else {
        return connection.close(fault::CLOSE_REFUSED, b"too many joins at once: try again");
    };
    let Ok(Ok((mut send, mut recv))) = timeout(HANDSHAKE_TIMEOUT, connection.accept_bi()).await else { return };
    let Some(question) = request::accept(shared, &mut send, &mut recv, JOIN_BYTES_MAX).await else { return };
    let answer = match (question.tag, question.kind, renewal) {
        (Tag::Request, KIND_JOIN, false) => serve_join(shared, &connection, &question.body).await,
        (Tag::Request, KIND_RENEW, true) => serve_renewal(shared, &connection, &question.body).await,
        _ => Err(Refusal::new("unknown-request", "this protocol has no such request")),
    };
    request::answer(&mut send, answer.as_deref(), HANDSHAKE_TIMEOUT).await;
    // The client closes when it has the answer.
    let _ = timeout(HANDSHAKE_TIMEOUT, connection.closed()).await;
}

fn garbled(error: wire::WireError) -> Refusal {
    Refusal::new("request-garbled", format!("the request cannot be read: {error}"))
}

fn proven(connection: &Connection, public_key: &[u8; 32], proof: &[u8]) -> Result<(), Refusal> {
    let proven = exported(connection).is_some_and(|exported| verify_signature(public_key, &exported, proof));
    let refusal = || Refusal::new("proof-failed", "the request is not signed by the key that it names");
    if proven { Ok(()) } else { Err(refusal()) }
}

async fn serve_join(shared: &Shared, connection: &Connection, body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let request: JoinRequest = wire::decode(body).map_err(garbled)?;
    proven(connection, &request.public_key, &request.proof)?;
    if !request.name.is_valid() {
        return Err(Refusal::new("invalid", "the node's name is not a name").field("name", &request.name));
    }
    if request.zone.len() > LABEL_VALUE_BYTES_MAX {
        return Err(Refusal::new("invalid", "a zone has at most 255 bytes").field("zone", &request.zone));
    }
    check::labels(&request.labels)?;
    let now_ms = millis(shared.seams.clock.wall());
    if skew(now_ms, request.wall_ms).is_some() {
        let message = "the clocks of the joiner and of the cluster differ too much";
        return Err(Refusal::new(CLOCK_SKEW, message).field("wall_ms", now_ms));
    }
    let handler = shared.join.as_ref().ok_or_else(|| Refusal::new("no-joins", "this node admits nobody"))?;
    let admitted = timeout(JOIN_TIMEOUT, handler(request, connection.remote_address())).await;
    let answer = admitted.unwrap_or_else(|_| Err(Refusal::new("timeout", "the ledger did not decide in time")))?;
    Ok(wire::encode(&answer))
}

async fn serve_renewal(shared: &Shared, connection: &Connection, body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let request: RenewRequest = wire::decode(body).map_err(garbled)?;
    proven(connection, &request.public_key, &request.proof)?;
    let shown = shown_by(connection).ok_or_else(|| Refusal::new("no-certificate", "no certificate was shown"))?;
    let judged = shared.trust.read().unwrap_or_else(PoisonError::into_inner).verify_any_age(&shown);
    let peer = judged.map_err(|error| Refusal::new("not-trusted", error.to_string()))?;
    if peer.id != NodeId::of_public_key(&request.public_key) {
        return Err(Refusal::new("not-trusted", "the certificate is of another key"));
    }
    let handler = shared.renew.as_ref().ok_or_else(|| Refusal::new("no-renewals", "this node renews nobody"))?;
    let renewed = timeout(JOIN_TIMEOUT, handler(peer, request)).await;
    let answer = renewed.unwrap_or_else(|_| Err(Refusal::new("timeout", "the ledger did not decide in time")))?;
    Ok(wire::encode(&answer))
}
