//! Membership and gossip of real nodes over QUIC on loopback, in real time.

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use fabric::events::{EventId, Events};
use fabric::gossip::{self, Gossip, GossipConfig};
use fabric::identity::{CaKey, Credentials, NodeKey, Trust};
use fabric::ids::{ClusterId, Digest, NodeId};
use fabric::limits::CERTIFICATE_TTL;
use fabric::membership::{Member, Membership, MembershipConfig, State, boot_stamp};
use fabric::model::{Capacity, NodeState, RaftRole, Role};
use fabric::seams::real::{KernelClock, KernelEntropy};
use fabric::seams::{Clock, Seams};
use fabric::transport::{Handlers, Transport, TransportConfig};

struct Node {
    key: NodeKey,
    directory: tempfile::TempDir,
    address: SocketAddr,
    up: Option<Up>,
}

/// A daemon; on a runtime of its own, so that dropping it is a kill.
struct Up {
    membership: Membership,
    gossip: Gossip,
    events: Events,
    runtime: tokio::runtime::Runtime,
}

/// A killed node's runtime lets go of its socket in the background.
#[expect(clippy::disallowed_methods, reason = "asks the real host for the port")]
fn until_free(address: SocketAddr) {
    let begun = std::time::Instant::now();
    while address.port() != 0 && std::net::UdpSocket::bind(address).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{address} stays in use");
        std::thread::yield_now();
    }
}

fn start(ca: &CaKey, node: &mut Node, peers: &[(NodeId, SocketAddr)]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let seams: Seams = fabric::seams::real::seams(node.directory.path()).unwrap();
    let boot = boot_stamp(&*seams.disk, &*seams.clock).unwrap();
    let certificate = ca.issue(&node.key.public_key(), Role::Voter, KernelClock.wall(), CERTIFICATE_TTL);
    let credentials = Credentials::new(node.key.clone(), certificate, ca.cert_der().to_vec()).unwrap();
    let trust = Arc::new(RwLock::new(Trust::new([ca.cert_der().to_vec()]).unwrap()));
    let _inside = runtime.enter();
    let mut handlers = Handlers::default();
    let incoming = gossip::messages(&mut handlers.streams);
    until_free(node.address);
    let config = TransportConfig { listen: node.address };
    let transport = Transport::start(&config, &seams, &credentials, trust, handlers).unwrap();
    node.address = transport.local_addr().unwrap();
    let events = Events::new(seams.clock.clone(), boot);
    let config =
        MembershipConfig { node: node.key.id(), address: node.address, incarnation: boot, peers: peers.to_vec() };
    let datagrams = transport.datagrams().unwrap();
    let link = Arc::new(transport);
    let membership = Membership::start(config, &seams, link.clone(), datagrams, events.clone());
    let config = GossipConfig { cluster: ClusterId([1; 16]), key: node.key.clone(), boot };
    let gossip = Gossip::start(config, &seams, link, incoming, membership.members());
    gossip.publish(state(node));
    node.up = Some(Up { membership, gossip, events, runtime });
}

fn state(node: &Node) -> NodeState {
    NodeState {
        node: node.key.id(),
        sequence: 0,
        address: node.address,
        version: "0.1.0".into(),
        capacity: Capacity::default(),
        free: Capacity::default(),
        memory_available_bytes: 0,
        load_millis: 0,
        machines: [0; 4],
        images: vec![],
        raft: RaftRole::Spare,
        leader: None,
        applied: (0, 0),
        tombstones: Digest::default(),
    }
}

fn kill(node: &mut Node) {
    if let Some(up) = node.up.take() {
        up.runtime.shutdown_background();
    }
}

async fn until(what: &str, within: Duration, done: impl Fn() -> bool) -> Duration {
    let start = tokio::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

fn sees(node: &Node, other: NodeId) -> Option<Member> {
    node.up.as_ref()?.membership.members().borrow().get(&other).copied()
}

#[tokio::test]
async fn nodes_meet_gossip_die_and_return() {
    let ca = CaKey::generate(&KernelEntropy, KernelClock.wall());
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..5 {
        let mut node = Node {
            key: NodeKey::generate(&KernelEntropy),
            directory: tempfile::tempdir().unwrap(),
            address: ([127, 0, 0, 1], 0).into(),
            up: None,
        };
        // Everybody knows the first one only.
        let first: Vec<(NodeId, SocketAddr)> =
            nodes.first().map(|node| (node.key.id(), node.address)).into_iter().collect();
        start(&ca, &mut node, &first);
        nodes.push(node);
    }
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.key.id()).collect();
    let alive =
        |nodes: &[Node], from: usize, who: usize| sees(&nodes[from], ids[who]).is_some_and(|m| m.state == State::Alive);
    let all = |nodes: &[Node]| (0..5).all(|a| (0..5).all(|b| a == b || alive(nodes, a, b)));
    let met = until("all meet", Duration::from_secs(20), || all(&nodes)).await;
    let told = until("all know all states", Duration::from_secs(20), || {
        nodes.iter().all(|node| node.up.as_ref().unwrap().gossip.states().len() == 5)
    })
    .await;

    // A daemon that is back at once is never down.
    let life = sees(&nodes[0], ids[4]).unwrap().incarnation;
    kill(&mut nodes[4]);
    let peers: Vec<(NodeId, SocketAddr)> = nodes[..4].iter().map(|node| (node.key.id(), node.address)).collect();
    start(&ca, &mut nodes[4], &peers);
    let back = until("the new life is seen", Duration::from_secs(10), || {
        nodes[..4]
            .iter()
            .all(|node| sees(node, ids[4]).is_some_and(|m| m.incarnation > life && m.state == State::Alive))
    })
    .await;
    for node in &nodes[..4] {
        let events = &node.up.as_ref().unwrap().events;
        let from = EventId { sequence: 0, ..events.latest() };
        let kinds: Vec<&str> = events.since(from, 1_000).unwrap().iter().map(|event| event.kind).collect();
        assert!(!kinds.contains(&"node-down"), "{kinds:?}");
    }

    // A dead one is, everywhere, and its state is still known.
    kill(&mut nodes[4]);
    let down = until("the death is known", Duration::from_secs(10), || {
        nodes[..4].iter().all(|node| sees(node, ids[4]).is_some_and(|m| m.state == State::Down))
    })
    .await;
    eprintln!("met after {met:?}, told after {told:?}, back after {back:?}, down after {down:?}");
    assert!(nodes[0].up.as_ref().unwrap().gossip.states().contains_key(&ids[4]));
    assert!((1..4).all(|n| alive(&nodes, 0, n)), "nobody else died");
    start(&ca, &mut nodes[4], &peers);
    until("it returns", Duration::from_secs(20), || all(&nodes)).await;
    nodes.iter_mut().for_each(kill);
}
