//! Two or three nodes on loopback, over real UDP.

mod data;
mod idle;

use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::join::{JoinAnswer, JoinError, JoinRequest, Joiner, RenewAnswer};
use super::*;
use crate::identity::{CaKey, IdentityError, Trust};
use crate::ids::{ClusterId, Digest, TokenId};
use crate::model::{Capacity, Labels, Role};
use crate::rpc::Refusal;
use crate::seams::real::{HostUdp, KernelClock, KernelEntropy};
use crate::seams::{Clock, Udp};
use crate::token::JoinToken;
use crate::wire;

const ECHO: Kind = 50;
const SLOW: Kind = 51;
const PIPE: Kind = 52;
const NOTE: Kind = 53;
const SILENT: Kind = 54;
const SECOND: Duration = Duration::from_secs(1);

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// The kernel's clock, moved.
#[derive(Debug)]
struct Shifted(i64);

impl Clock for Shifted {
    fn boottime(&self) -> Duration {
        KernelClock.boottime()
    }
    fn wall(&self) -> Duration {
        let wall = KernelClock.wall();
        let by = Duration::from_secs(self.0.unsigned_abs());
        if self.0 < 0 { wall - by } else { wall + by }
    }
}

struct Cluster {
    ca: CaKey,
}

struct Node {
    transport: Transport,
    trust: SharedTrust,
    notes: mpsc::Receiver<(Peer, Vec<u8>)>,
    frames: mpsc::UnboundedReceiver<data::Came>,
    served: Arc<AtomicUsize>,
    seams: Seams,
    key: NodeKey,
    _directory: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Self {
        Cluster { ca: CaKey::generate(&KernelEntropy, KernelClock.wall()) }
    }

    fn credentials(&self, key: &NodeKey, age: Duration) -> Credentials {
        let issued = KernelClock.wall() - age;
        let certificate = self.ca.issue(&key.public_key(), Role::Voter, issued, CERTIFICATE_TTL);
        Credentials::new(key.clone(), certificate, self.ca.cert_der().to_vec()).unwrap()
    }

    fn node(&self) -> Node {
        let key = NodeKey::generate(&KernelEntropy);
        self.start(key, loopback(), Duration::ZERO)
    }

    fn start(&self, key: NodeKey, listen: SocketAddr, age: Duration) -> Node {
        self.start_on(key, listen, age, Arc::new(HostUdp))
    }

    fn start_on(&self, key: NodeKey, listen: SocketAddr, age: Duration, udp: Arc<dyn Udp>) -> Node {
        self.start_admitting((key, age), listen, udp, self.join_handler())
    }

    fn start_admitting(
        &self,
        (key, age): (NodeKey, Duration),
        listen: SocketAddr,
        udp: Arc<dyn Udp>,
        join: JoinHandler,
    ) -> Node {
        let directory = tempfile::tempdir().unwrap();
        let seams = Seams { udp, ..crate::seams::real::seams(directory.path()).unwrap() };
        let trust = Arc::new(RwLock::new(Trust::new([self.ca.cert_der().to_vec()]).unwrap()));
        let (note, notes) = mpsc::channel(16);
        let (frame, frames) = mpsc::unbounded_channel();
        let served = Arc::new(AtomicUsize::new(0));
        let mut handlers = Handlers::default();
        serve_test_requests(&mut handlers.router, served.clone());
        handlers.streams.on(PIPE, pipe);
        handlers.streams.on(SILENT, silent);
        handlers.streams.on_message(NOTE, move |peer, body| {
            let note = note.clone();
            async move { note.send((peer, body)).await.unwrap() }
        });
        handlers.join = Some(join);
        handlers.renew = Some(self.renew_handler());
        handlers.data = Some(Arc::new(data::Service(frame)));
        let config = TransportConfig { listen };
        let credentials = self.credentials(&key, age);
        let transport = Transport::start(&config, &seams, &credentials, trust.clone(), handlers).unwrap();
        Node { transport, trust, notes, frames, served, seams, key, _directory: directory }
    }

    /// Two nodes that know each other's address.
    fn pair(&self) -> (Node, Node) {
        let (a, b) = (self.node(), self.node());
        a.knows(&b);
        b.knows(&a);
        (a, b)
    }

    fn token(&self) -> JoinToken {
        JoinToken { id: TokenId([1; 8]), secret: [2; 16], ca: self.ca.fingerprint() }
    }

    fn ca_again(&self) -> CaKey {
        CaKey::from_parts(self.ca.cert_der().to_vec(), &self.ca.key_pkcs8()).unwrap()
    }

    fn join_handler(&self) -> JoinHandler {
        let ca = Arc::new(self.ca_again());
        Arc::new(move |request: JoinRequest, _| {
            let ca = ca.clone();
            Box::pin(async move {
                if request.secret != [2; 16] {
                    return Err(Refusal::new("token-unknown", "this token does not exist"));
                }
                let now = KernelClock.wall();
                Ok(JoinAnswer {
                    cluster: ClusterId([9; 16]),
                    certificate: ca.issue(&request.public_key, Role::Worker, now, CERTIFICATE_TTL),
                    ca: ca.cert_der().to_vec(),
                    cas: vec![ca.cert_der().to_vec()],
                    node: NodeId::of_public_key(&request.public_key),
                    name: request.name,
                    peers: vec![],
                    wall_ms: now.as_millis() as u64,
                })
            })
        })
    }

    fn renew_handler(&self) -> RenewHandler {
        let ca = Arc::new(self.ca_again());
        Arc::new(move |peer, request| {
            let ca = ca.clone();
            Box::pin(async move {
                let certificate = ca.issue(&request.public_key, peer.role, KernelClock.wall(), CERTIFICATE_TTL);
                Ok(RenewAnswer { certificate, ca: ca.cert_der().to_vec(), cas: vec![ca.cert_der().to_vec()] })
            })
        })
    }
}

fn serve_test_requests(router: &mut Router, served: Arc<AtomicUsize>) {
    router.on(ECHO, move |peer, body: Vec<u8>| {
        served.fetch_add(1, Ordering::Relaxed);
        async move {
            if body == b"refuse me" {
                return Err(Refusal::new("refused", format!("{} may not", peer.id)).hint("ask somebody else"));
            }
            Ok(body)
        }
    });
    router.on(SLOW, |_, _| std::future::pending());
}

/// Sends back what comes, and then how much it was.
async fn pipe(request: StreamRequest) {
    if request.header == b"refuse me" {
        return request.refuse(Refusal::new("no-such-pipe", "there is no such pipe")).await;
    }
    let Ok(mut stream) = request.accept().await else { return };
    let Ok(count) = tokio::io::copy(&mut stream.reader, &mut stream.writer).await else { return };
    stream.writer.write_all(&count.to_le_bytes()).await.unwrap();
    stream.writer.finish().await.unwrap();
}

/// Says nothing as long as somebody listens.
async fn silent(request: StreamRequest) {
    let Ok(stream) = request.accept().await else { return };
    stream.writer.abandoned().await;
}

impl Node {
    fn id(&self) -> NodeId {
        self.transport.id()
    }

    fn addr(&self) -> SocketAddr {
        self.transport.local_addr().unwrap()
    }

    fn knows(&self, other: &Node) {
        self.transport.learn(other.id(), other.addr());
    }

    async fn echo(&self, to: &Node, body: &[u8]) -> Result<Vec<u8>, CallError> {
        self.transport.call(to.id(), ECHO, body.to_vec(), 5 * SECOND).await
    }

    fn remove(&self, stone: crate::model::Tombstone) {
        self.trust.write().unwrap().merge([stone]).unwrap();
        self.transport.enforce_trust();
    }

    fn links_to(&self, other: &Node) -> usize {
        self.transport.peers().iter().filter(|open| open.peer.id == other.id()).count()
    }
}

/// Waits until `condition` holds; the deadline is far.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn cause(error: CallError) -> String {
    match error {
        CallError::Unreachable { cause, .. } => cause,
        other => panic!("expected unreachable, found {other:?}"),
    }
}

#[tokio::test]
async fn two_nodes_ask_each_other_over_one_connection() {
    let (a, b) = Cluster::new().pair();
    assert_eq!(a.echo(&b, b"hello").await.unwrap(), b"hello");
    assert_eq!(b.echo(&a, b"there").await.unwrap(), b"there");
    assert_eq!(a.echo(&b, &vec![7; FRAME_BYTES_MAX]).await.unwrap().len(), FRAME_BYTES_MAX);
    assert_eq!((a.links_to(&b), b.links_to(&a)), (1, 1));
    assert!(a.transport.peers()[0].dialled);
    assert_eq!(a.echo(&a, b"myself").await.unwrap(), b"myself");
}

#[tokio::test]
async fn a_peer_is_known_by_its_inbound_connection() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(), cluster.node());
    a.knows(&b);
    assert!(cause(b.echo(&a, b"x").await.unwrap_err()).contains("address is not known"));
    a.echo(&b, b"x").await.unwrap();
    assert_eq!(b.transport.address_of(a.id()), Some(a.addr()));
    assert_eq!(b.echo(&a, b"x").await.unwrap(), b"x");
}

#[tokio::test]
async fn refused_timed_out_and_unreachable_are_told_apart() {
    let (a, b) = Cluster::new().pair();
    let refused = a.echo(&b, b"refuse me").await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(ref refusal) if refusal.hint.is_some()), "{refused:?}");
    let unknown = a.transport.call(b.id(), 999, vec![], SECOND).await.unwrap_err();
    assert!(matches!(unknown, CallError::Refused(ref refusal) if refusal.code == "unknown-request"), "{unknown:?}");
    let slow = a.transport.call(b.id(), SLOW, vec![], Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(slow, CallError::Timeout { .. }), "{slow:?}");

    let nobody = NodeKey::generate(&KernelEntropy).id();
    a.transport.learn(nobody, ([127, 0, 0, 1], 9).into());
    let gone = a.transport.call(nobody, ECHO, vec![], Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(gone, CallError::Unreachable { .. }), "{gone:?}");
}

#[tokio::test]
async fn a_call_that_the_peers_death_interrupts_is_of_unknown_outcome() {
    let (a, b) = Cluster::new().pair();
    let (transport, to) = (a.transport.clone(), b.id());
    let call = tokio::spawn(async move { transport.call(to, SLOW, vec![], 20 * SECOND).await });
    eventually("the call is under way", || b.links_to(&a) == 1).await;
    b.transport.close().await;
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Broken { .. } | CallError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn an_oversized_body_is_refused_on_both_sides() {
    let (a, b) = Cluster::new().pair();
    let huge = vec![0; FRAME_BYTES_MAX + 1];
    assert!(cause(a.echo(&b, &huge).await.unwrap_err()).contains("at most"));

    // A peer that does not keep to it is refused by the other side, and the connection goes on.
    a.echo(&b, b"x").await.unwrap();
    let link = a.transport.shared.pool().ready(b.id(), Class::Control).unwrap();
    let asked = request::ask(&link.connection, ECHO, &huge, Instant::now() + 5 * SECOND).await;
    assert!(matches!(asked, Err(AskError::Refused(ref refusal)) if refusal.code == "request-too-large"), "{asked:?}");
    assert_eq!(a.echo(&b, b"x").await.unwrap(), b"x");
}

#[tokio::test]
async fn concurrent_dials_settle_on_the_smaller_nodes_connection() {
    for _ in 0..8 {
        let (a, b) = Cluster::new().pair();
        let many = |from: &Node, to: &Node| {
            let (transport, to) = (from.transport.clone(), to.id());
            let calls = (0..20).map(move |_| {
                let transport = transport.clone();
                async move { transport.call(to, ECHO, vec![1], 5 * SECOND).await.map(|_| ()) }
            });
            futures_util::future::try_join_all(calls)
        };
        let (there, back) = tokio::join!(many(&a, &b), many(&b, &a));
        there.unwrap();
        back.unwrap();
        let smaller = if a.id() < b.id() { &a } else { &b };
        let both = a.links_to(&b) == 2 && b.links_to(&a) == 2;
        if both {
            for (from, to) in [(&a, &b), (&b, &a)] {
                let used = from.transport.shared.pool().ready(to.id(), Class::Control).unwrap();
                assert_eq!(used.dialled, from.id() == smaller.id(), "both ends prefer the same connection");
            }
        }
        assert!(a.links_to(&b) <= 2, "one dial of each side at most");
    }
}

#[tokio::test]
async fn another_clusters_node_is_refused_and_both_are_told_why() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (a, stranger) = (ours.node(), theirs.node());
    a.knows(&stranger);
    stranger.knows(&a);
    assert!(cause(a.echo(&stranger, b"x").await.unwrap_err()).contains("another cluster"));
    assert!(cause(stranger.echo(&a, b"x").await.unwrap_err()).contains("another cluster"));
    // One that trusts the CA without being a member of its cluster is refused by the member.
    stranger.trust.write().unwrap().add_ca(ours.ca.cert_der().to_vec()).unwrap();
    let refused = cause(stranger.echo(&a, b"x").await.unwrap_err());
    assert!(refused.contains("refused this node") && refused.contains("another cluster"), "{refused}");
    assert_eq!(a.served.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn another_node_at_the_address_is_refused() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(), cluster.node());
    let wanted = NodeKey::generate(&KernelEntropy).id();
    a.transport.learn(wanted, b.addr());
    let error = cause(a.transport.call(wanted, ECHO, vec![], 5 * SECOND).await.unwrap_err());
    assert!(error.contains(&b.id().short()), "{error}");
}

#[tokio::test]
async fn a_removed_peer_is_cut_and_cannot_come_back() {
    let cluster = Cluster::new();
    let (a, b) = cluster.pair();
    a.echo(&b, b"x").await.unwrap();
    a.transport.open(b.id(), Class::Bulk, PIPE, vec![], SECOND).await.unwrap();
    a.remove(cluster.ca.tombstone(b.id(), 1));
    eventually("b notices", || b.links_to(&a) == 0).await;
    assert_eq!(a.links_to(&b), 0);
    let error = cause(b.echo(&a, b"x").await.unwrap_err());
    assert!(error.contains("removed from the cluster"), "{error}");
    assert!(cause(a.echo(&b, b"x").await.unwrap_err()).contains("removed"));
}

#[tokio::test]
async fn an_expired_certificate_opens_renewal_only() {
    let cluster = Cluster::new();
    let a = cluster.node();
    let old = cluster.start(NodeKey::generate(&KernelEntropy), loopback(), CERTIFICATE_TTL + 3600 * SECOND);
    old.knows(&a);
    a.knows(&old);
    let refused = cause(old.echo(&a, b"x").await.unwrap_err());
    assert!(refused.contains("expired"), "{refused}");
    assert!(cause(a.echo(&old, b"x").await.unwrap_err()).contains("expired"));

    let renewed = old.transport.renew(a.id(), 5 * SECOND).await.unwrap();
    let credentials = Credentials::new(old.key.clone(), renewed.certificate, renewed.ca).unwrap();
    old.transport.set_credentials(&credentials);
    assert_eq!(old.echo(&a, b"x").await.unwrap(), b"x");
}

#[tokio::test]
async fn a_restarted_peer_is_noticed_at_once() {
    let cluster = Cluster::new();
    let a = cluster.node();
    // A crash is a runtime that goes with all its tasks: there is no farewell.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let b = {
        let _inside = doomed.enter();
        cluster.node()
    };
    a.knows(&b);
    a.echo(&b, b"x").await.unwrap();
    let (key, addr) = (b.key.clone(), b.addr());
    drop(b);
    doomed.shutdown_background();
    eventually("the port is free", || HostUdp.bind(addr).is_ok()).await;
    let again = cluster.start(key, addr, Duration::ZERO);
    let started = Instant::now();
    while a.echo(&again, b"x").await.is_err() {
        assert!(started.elapsed() < 2 * SECOND, "the old connection is still believed in");
    }
}

#[tokio::test]
async fn streams_carry_ten_megabytes() {
    let (a, b) = Cluster::new().pair();
    for class in [Class::Session, Class::Bulk] {
        let stream = a.transport.open(b.id(), class, PIPE, b"header".to_vec(), 5 * SECOND).await.unwrap();
        let Stream { mut reader, mut writer } = stream;
        let content: Vec<u8> = (0..10_000_000u32).map(|n| (n % 251) as u8).collect();
        let sent = content.clone();
        let send = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.finish().await.unwrap();
        });
        let mut back = vec![];
        reader.read_to_end(&mut back).await.unwrap();
        send.await.unwrap();
        let (body, count) = back.split_at(back.len() - 8);
        assert!(body == content, "{class:?}");
        assert_eq!(count, 10_000_000u64.to_le_bytes());
    }
    assert_eq!(a.links_to(&b), 2, "bulk and sessions have a connection each");
}

#[tokio::test]
async fn a_refused_stream_and_a_broken_one_are_told() {
    let (a, b) = Cluster::new().pair();
    let refused = a.transport.open(b.id(), Class::Session, PIPE, b"refuse me".to_vec(), SECOND).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(ref refusal) if refusal.code == "no-such-pipe"), "{refused:?}");
    let unknown = a.transport.open(b.id(), Class::Session, 999, vec![], SECOND).await.unwrap_err();
    assert!(matches!(unknown, CallError::Refused(_)), "{unknown:?}");
    // A writer that is dropped unfinished is no end of file: the other side's copy fails, and so nothing comes back.
    let Stream { mut reader, writer } = a.transport.open(b.id(), Class::Session, PIPE, vec![], SECOND).await.unwrap();
    drop(writer);
    assert!(reader.read_to_end(&mut vec![]).await.is_err());
}

#[tokio::test]
async fn streams_that_stay_open_take_nothing_from_requests() {
    let (a, b) = Cluster::new().pair();
    let open = |class| a.transport.open(b.id(), class, SILENT, vec![], 5 * SECOND);
    let mixed = open(Class::Control).await.unwrap_err();
    assert!(matches!(mixed, CallError::Refused(ref refusal) if refusal.code == "wrong-connection"), "{mixed:?}");
    let mut held = vec![];
    for _ in 0..STREAMS_OPEN_MAX {
        held.push(open(Class::Session).await.unwrap());
    }
    let full = open(Class::Session).await.unwrap_err();
    assert!(matches!(full, CallError::Refused(ref refusal) if refusal.code == "busy"), "{full:?}");
    assert_eq!(a.echo(&b, b"x").await.unwrap(), b"x");
    assert_eq!(b.echo(&a, b"x").await.unwrap(), b"x");
    // Whoever serves them has nothing to write and learns all the same that they are over.
    held.clear();
    let link = b.transport.shared.pool().ready(a.id(), Class::Session).unwrap();
    eventually("its places are free", || link.streams.available_permits() == STREAMS_OPEN_MAX).await;
    open(Class::Session).await.unwrap();
}

#[tokio::test]
async fn datagrams_and_messages_arrive_with_their_sender() {
    let (a, mut b) = Cluster::new().pair();
    let mut datagrams = b.transport.datagrams().unwrap();
    assert!(b.transport.datagrams().is_none(), "they are handed out once");
    a.transport.send_datagram(b.id(), Bytes::from(vec![5; DATAGRAM_BYTES_MAX]));
    let (from, datagram) = timeout(5 * SECOND, datagrams.recv()).await.unwrap().unwrap();
    assert_eq!((from, datagram.len()), (a.id(), DATAGRAM_BYTES_MAX));
    a.transport.send_uni(b.id(), NOTE, &vec![6; 300_000], SECOND).await.unwrap();
    let (peer, note) = timeout(5 * SECOND, b.notes.recv()).await.unwrap().unwrap();
    assert_eq!((peer.id, note.len()), (a.id(), 300_000));
}

/// The released form of the records: a change of one byte is a new version.
#[test]
fn golden_digests_of_the_records() {
    let key = [7; 32];
    let request = JoinRequest {
        token: TokenId([1; 8]),
        secret: [2; 16],
        public_key: key,
        name: "n2".parse().unwrap(),
        address: ([10, 0, 0, 1], 7420).into(),
        capacity: Capacity { cpu_millis: 1, memory_bytes: 2, disk_bytes: 3 },
        zone: "rack-1".into(),
        labels: Labels::from([("a".into(), "b".into())]),
        wall_ms: 5,
        proof: vec![6; 64],
    };
    let answer = JoinAnswer {
        cluster: ClusterId([9; 16]),
        certificate: vec![1],
        ca: vec![2],
        cas: vec![vec![2]],
        node: NodeId([3; 32]),
        name: "n2".parse().unwrap(),
        peers: vec![(NodeId([4; 32]), ([10, 0, 0, 2], 7420).into())],
        wall_ms: 5,
    };
    let renewal = join::RenewRequest { public_key: key, proof: vec![6; 64] };
    let renewed = RenewAnswer { certificate: vec![1], ca: vec![2], cas: vec![vec![2]] };
    let frames = [wire::encode(&request), wire::encode(&answer), wire::encode(&renewal), wire::encode(&renewed)];
    assert_eq!(wire::decode::<JoinRequest>(&frames[0]), Ok(request));
    assert_eq!(
        frames.map(|frame| Digest::of(&frame).short()),
        ["d8363f2b14", "28e635c898", "33b7c60e9b", "9de838f5c4"]
    );
}

fn joiner() -> Joiner {
    Joiner {
        name: "n2".parse().unwrap(),
        address: ([127, 0, 0, 1], 7420).into(),
        capacity: Capacity::default(),
        zone: "rack-1".into(),
        labels: Labels::new(),
    }
}

#[tokio::test]
async fn a_token_admits_and_the_new_certificate_works() {
    let cluster = Cluster::new();
    let (a, key) = (cluster.node(), NodeKey::generate(&KernelEntropy));
    let answer = join::ask(&a.seams, a.addr(), &cluster.token(), &key, joiner()).await.unwrap();
    assert_eq!((answer.node, answer.name.as_str()), (key.id(), "n2"));
    let credentials = Credentials::new(key, answer.certificate, answer.ca).unwrap();
    assert_eq!(credentials.role(), Role::Worker);
}

#[tokio::test]
async fn a_foreign_token_is_told_before_its_secret_is_sent() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (a, key) = (ours.node(), NodeKey::generate(&KernelEntropy));
    let error = join::ask(&a.seams, a.addr(), &theirs.token(), &key, joiner()).await.unwrap_err();
    let JoinError::Untrusted { source, .. } = error else { panic!("{error:?}") };
    assert!(matches!(source, IdentityError::ForeignToken { .. }));
    assert!(source.to_string().contains("of another cluster"));
}

#[tokio::test]
async fn a_join_tells_refusals_clocks_and_silence_apart() {
    let cluster = Cluster::new();
    let (a, key) = (cluster.node(), NodeKey::generate(&KernelEntropy));
    let bad = JoinToken { secret: [3; 16], ..cluster.token() };
    let refused = join::ask(&a.seams, a.addr(), &bad, &key, joiner()).await.unwrap_err();
    assert!(matches!(refused, JoinError::Refused(ref refusal) if refusal.code == "token-unknown"), "{refused:?}");

    for (by, ahead) in [(3_600, true), (-240 - 3_600, false)] {
        let seams = Seams { clock: Arc::new(Shifted(by)), ..a.seams.clone() };
        let clock = join::ask(&seams, a.addr(), &cluster.token(), &key, joiner()).await.unwrap_err();
        assert!(matches!(clock, JoinError::Clock { ahead: found, .. } if found == ahead), "{by}: {clock}");
    }
    let silent = join::ask(&a.seams, ([127, 0, 0, 1], 9).into(), &cluster.token(), &key, joiner()).await;
    assert!(matches!(silent, Err(JoinError::Unreachable { .. })));
}

#[tokio::test]
async fn a_member_cannot_skip_the_handshakes_checks_by_the_join_protocol() {
    let cluster = Cluster::new();
    let a = cluster.node();
    let verifier = Arc::new(tls::JoinVerifier::new(cluster.ca.fingerprint()));
    let endpoint = endpoint::bind(&a.seams, loopback(), &a.key, None).unwrap();
    let config = endpoint::dialling(&a.seams, tls::joiner(a.seams.clock.clone(), verifier));
    let connection = endpoint.connect_with(config, a.addr(), "join.smartnode").unwrap().await.unwrap();
    let asked = request::ask(&connection, ECHO, b"x", Instant::now() + 5 * SECOND).await;
    assert!(matches!(asked, Err(AskError::Refused(ref refusal)) if refusal.code == "unknown-request"), "{asked:?}");
    assert_eq!(a.served.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn garbage_does_not_block_service() {
    let (a, b) = Cluster::new().pair();
    let noise = noise_socket();
    // A long header of QUIC version 1 with a plausible shape makes the endpoint look at it; the rest is noise.
    let mut packet = vec![0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0];
    packet.resize(1200, 0xaa);
    for n in 0..2_000u32 {
        packet[6..10].copy_from_slice(&n.to_le_bytes());
        let _ = noise.send_to(&packet, b.addr());
        let _ = noise.send_to(&packet[..(n % 60) as usize], b.addr());
    }
    assert_eq!(a.echo(&b, b"x").await.unwrap(), b"x");
}

fn noise_socket() -> std::net::UdpSocket {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
    use std::os::fd::AsRawFd;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_NONBLOCK, None).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    fd.into()
}
