//! Planes of two or three nodes over real QUIC on loopback, with bridges that only listen.

use std::sync::RwLock as StdRwLock;
use std::time::Duration;

use fabric::identity::{CaKey, Credentials, NodeKey, Trust};
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::Role;
use fabric::seams::real::{KernelClock, KernelEntropy, seams};
use fabric::transport::{Handlers, TransportConfig};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use fabric::model::Mac;

use crate::fixtures::{self, arp, cards, data, endpoint, network};
use crate::vnet::VNET_BYTES;

const PATIENCE: Duration = Duration::from_secs(5);

/// So that nothing here depends on how fast the host is.
#[derive(Debug)]
struct StandsStill;

impl Clock for StandsStill {
    fn boottime(&self) -> Duration {
        Duration::from_secs(1)
    }
    fn wall(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// Hands what it is given to the test.
struct Inbox(mpsc::UnboundedSender<Vec<u8>>);

impl Bridge for Inbox {
    fn deliver(&self, pieces: &[&[u8]]) {
        let _ = self.0.send(pieces.concat());
    }
}

struct Node {
    plane: Plane,
    transport: Transport,
    bridge: Arc<dyn Bridge>,
    inbox: mpsc::UnboundedReceiver<Vec<u8>>,
    _paths: Arc<dyn Paths>,
    _directory: tempfile::TempDir,
}

impl Node {
    fn start(ca: &CaKey) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let seams = seams(directory.path()).unwrap();
        let key = NodeKey::generate(&KernelEntropy);
        let certificate = ca.issue(&key.public_key(), Role::Worker, KernelClock.wall(), CERTIFICATE_TTL);
        let credentials = Credentials::new(key, certificate, ca.cert_der().to_vec()).unwrap();
        let trust = Arc::new(StdRwLock::new(Trust::new([ca.cert_der().to_vec()]).unwrap()));
        let plane = Plane::new(credentials.id(), Arc::new(StandsStill));
        let handlers = Handlers { data: Some(Arc::new(plane.clone())), ..Handlers::default() };
        let config = TransportConfig { listen: ([127, 0, 0, 1], 0).into() };
        let transport = Transport::start(&config, &seams, &credentials, trust, handlers).unwrap();
        let paths: Arc<dyn Paths> = Arc::new(transport.clone());
        plane.connect(Arc::downgrade(&paths));
        let (tell, inbox) = mpsc::unbounded_channel();
        Node { plane, transport, bridge: Arc::new(Inbox(tell)), inbox, _paths: paths, _directory: directory }
    }

    fn id(&self) -> NodeId {
        self.transport.id()
    }

    fn knows(&self, other: &Node) {
        self.transport.learn(other.id(), other.transport.local_addr().unwrap());
    }

    fn set(&self, revision: u64, endpoints: &[Endpoint]) {
        assert!(self.plane.set(&network(), self.bridge.clone(), revision, endpoints.to_vec()).unwrap());
    }

    async fn send(&self, frame: &[u8]) {
        let bytes = [&Vnet::default().to_bytes()[..], frame].concat();
        self.plane.sent(network().vni, bytes.into()).await;
    }

    async fn came(&mut self) -> Vec<u8> {
        timeout(PATIENCE, self.inbox.recv()).await.expect("nothing has come").unwrap()
    }

    /// Waits until so many frames were dropped for this reason.
    async fn dropped(&self, reason: Reason, count: u64) {
        let look = async {
            while self.plane.drops(Some(network().vni)).of(reason) < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("{:?}", self.plane.drops(Some(network().vni))));
    }
}

fn cluster<const N: usize>() -> [Node; N] {
    let ca = CaKey::generate(&KernelEntropy, KernelClock.wall());
    let nodes: [Node; N] = std::array::from_fn(|_| Node::start(&ca));
    for one in &nodes {
        nodes.iter().for_each(|other| one.knows(other));
    }
    nodes
}

/// Machine `n` on a node.
fn on(n: u8, node: &Node, epoch: u64) -> Endpoint {
    Endpoint { node: node.id(), ..endpoint(n, 0, epoch) }
}

fn whole(frame: &[u8]) -> Vec<u8> {
    [&Vnet::default().to_bytes()[..], frame].concat()
}

#[tokio::test]
async fn frames_cross_in_both_directions_and_trains_stay_whole() {
    let [mut a, mut b] = cluster();
    let machines = [on(1, &a, 1), on(2, &b, 1)];
    [&a, &b].into_iter().for_each(|node| node.set(1, &machines));
    let (there, back) = (data(&machines[0], &machines[1]), data(&machines[1], &machines[0]));
    a.send(&there).await;
    assert_eq!(b.came().await, whole(&there));
    b.send(&back).await;
    assert_eq!(a.came().await, whole(&back));

    let carried: Vec<u8> = (0..40_000_u32).map(|n| n as u8).collect();
    for v6 in [false, true] {
        let train = fixtures::train(v6, &carried, 1_300);
        a.plane.sent(network().vni, train.clone().into()).await;
        assert_eq!(b.came().await, train);
    }
    assert_eq!(a.plane.drops(Some(network().vni)), Drops::default());
}

#[tokio::test]
async fn questions_are_answered_here_and_spoofed_frames_go_nowhere() {
    let [mut a, b] = cluster();
    let machines = [on(1, &a, 1), on(2, &b, 1)];
    [&a, &b].into_iter().for_each(|node| node.set(1, &machines));
    let ((mac, ip), _) = cards(&machines[0]);
    let ((_, other), _) = cards(&machines[1]);
    a.send(&arp(true, (mac, ip), other)).await;
    assert_eq!(a.came().await, whole(&crate::answers::arp((mac, ip), other, machines[1].mac)));
    a.send(&arp(true, (mac, other), ip)).await;
    a.send(&data(&machines[1], &machines[0])).await;
    a.plane.sent(network().vni, Bytes::from_static(&[0; 4])).await;
    let drops = a.plane.drops(Some(network().vni));
    let counts = [Reason::SpoofedAddress, Reason::NotOwner, Reason::Malformed].map(|reason| drops.of(reason));
    assert_eq!(counts, [1, 1, 1]);
    assert!(a.plane.lanes().is_empty(), "nobody else hears of it");
    drop(b);
}

#[tokio::test]
async fn who_does_not_own_a_machine_cannot_speak_for_it() {
    let [a, mut b] = cluster();
    let (mine, theirs) = (on(1, &a, 1), on(2, &b, 1));
    a.set(1, &[mine.clone(), theirs.clone()]);
    // As b knows it, the machine was placed anew since; and then elsewhere.
    b.set(1, &[on(1, &a, 2), theirs.clone()]);
    a.send(&data(&mine, &theirs)).await;
    b.dropped(Reason::StaleEpoch, 1).await;
    b.set(2, &[on(1, &b, 1), theirs.clone()]);
    a.send(&data(&mine, &theirs)).await;
    b.dropped(Reason::NotOwner, 1).await;
    b.plane.remove(network().vni);
    a.send(&data(&mine, &theirs)).await;
    let stray = async {
        while b.plane.drops(None).of(Reason::UnknownNetwork) == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, stray).await.unwrap();
    assert!(b.inbox.try_recv().is_err());
}

#[tokio::test]
async fn what_is_under_way_to_a_machine_that_has_moved_is_sent_after_it() {
    let [a, b, mut c] = cluster();
    let (one, there) = (on(1, &a, 1), on(2, &b, 1));
    let moved = Endpoint { previous: Some(b.id()), ..on(2, &c, 2) };
    a.set(1, &[one.clone(), there.clone()]);
    [&b, &c].into_iter().for_each(|node| node.set(2, &[one.clone(), moved.clone()]));
    let frame = data(&one, &there);
    a.send(&frame).await;
    assert_eq!(c.came().await, whole(&frame));
}

#[tokio::test]
async fn floods_to_all_and_frames_to_nobody_are_counted() {
    let [a, mut b] = cluster();
    let machines = [on(1, &a, 1), on(2, &b, 1)];
    [&a, &b].into_iter().for_each(|node| node.set(1, &machines));
    let ((mac, ip), _) = cards(&machines[0]);
    let to_all = fixtures::udp((Mac::BROADCAST, "10.0.0.255".parse().unwrap()), (mac, ip.into()), (9, 9), b"hello");
    for _ in 0..300 {
        a.send(&to_all).await;
    }
    assert_eq!(b.came().await, whole(&to_all));
    assert_eq!(a.plane.drops(Some(network().vni)).of(Reason::Flood), 300 - u64::from(BROADCAST_BURST));
    b.transport.close().await;
    a.transport.cut(b.id());
    a.send(&data(&machines[0], &machines[1])).await;
    a.dropped(Reason::Unreachable, 1).await;
}

#[tokio::test]
async fn a_packet_that_is_too_large_is_told_to_its_sender() {
    let [mut a, b] = cluster();
    let machines = [on(1, &a, 1), on(2, &b, 1)];
    [&a, &b].into_iter().for_each(|node| node.set(1, &machines));
    let (_, (mac, ip)) = cards(&machines[0]);
    let (_, (to, target)) = cards(&machines[1]);
    a.send(&fixtures::udp((to, target.into()), (mac, ip.into()), (9, 9), &[0; 8_000])).await;
    let told = a.came().await;
    let icmp = &told[VNET_BYTES + crate::frame::HEADER_BYTES + crate::frame::IPV6_BYTES..];
    assert_eq!(icmp[0], 2, "packet too big");
    let mtu = u32::from_be_bytes(icmp[4..8].try_into().unwrap());
    assert_eq!(mtu, u32::from(network().mtu));
    assert_eq!(a.plane.drops(Some(network().vni)).of(Reason::TooBig), 1);
}
