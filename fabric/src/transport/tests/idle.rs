//! What takes time, or a network that misbehaves: on a paused clock and UDP in memory.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::*;

#[derive(Debug, Default)]
struct Net {
    cards: Mutex<BTreeMap<SocketAddr, Arc<Card>>>,
    /// Nothing is delivered.
    cut: AtomicBool,
    /// Nothing is delivered to these addresses: the senders of forged packets.
    deaf: Mutex<BTreeSet<std::net::IpAddr>>,
    packets: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inbox {
    packets: VecDeque<(SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Card {
    address: SocketAddr,
    net: Arc<Net>,
    inbox: Mutex<Inbox>,
}

#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Card {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.net.packets.fetch_add(1, Ordering::Relaxed);
        let to = self.net.cards.lock().unwrap().get(&transmit.destination).cloned();
        let deaf = self.net.deaf.lock().unwrap().contains(&transmit.destination.ip());
        let Some(to) = to.filter(|_| !deaf && !self.net.cut.load(Ordering::Relaxed)) else { return Ok(()) };
        let mut inbox = to.inbox.lock().unwrap();
        inbox.packets.push_back((self.address, transmit.contents.to_vec()));
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
        Ok(())
    }
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap();
        let Some((from, packet)) = inbox.packets.pop_front() else {
            inbox.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        buffers[0][..packet.len()].copy_from_slice(&packet);
        metas[0] = RecvMeta { addr: from, len: packet.len(), stride: packet.len(), ..RecvMeta::default() };
        Poll::Ready(Ok(1))
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct MemoryUdp(Arc<Net>);

impl Udp for MemoryUdp {
    fn bind(&self, listen: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut cards = self.0.cards.lock().unwrap();
        let port = if listen.port() == 0 { 1_000 + cards.len() as u16 } else { listen.port() };
        let address = SocketAddr::new(listen.ip(), port);
        let card = Arc::new(Card { address, net: self.0.clone(), inbox: Mutex::default() });
        cards.insert(address, card.clone());
        Ok(card)
    }
}

fn pair_on(net: &Arc<Net>) -> (Node, Node) {
    pair_of(&Cluster::new(), net)
}

fn pair_of(cluster: &Cluster, net: &Arc<Net>) -> (Node, Node) {
    let udp: Arc<dyn Udp> = Arc::new(MemoryUdp(net.clone()));
    let node = || cluster.start_on(NodeKey::generate(&KernelEntropy), loopback(), Duration::ZERO, udp.clone());
    let (a, b) = (node(), node());
    a.knows(&b);
    b.knows(&a);
    (a, b)
}

#[tokio::test(start_paused = true)]
async fn an_unused_connection_ends_and_the_next_call_makes_another() {
    let net = Arc::new(Net::default());
    let (a, b) = pair_on(&net);
    a.echo(&b, b"x").await.unwrap();
    tokio::time::sleep(IDLE_TIMEOUT + SECOND).await;
    assert_eq!((a.links_to(&b), b.links_to(&a)), (0, 0));
    let quiet = net.packets.load(Ordering::Relaxed);
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(net.packets.load(Ordering::Relaxed), quiet, "an idle fabric sends nothing");
    assert_eq!(a.echo(&b, b"x").await.unwrap(), b"x");
}

/// What a joiner is told, and when, by a peer that takes so long over it and is cut off meanwhile or not.
async fn asked_of_a_peer_that_takes(length: Duration, cut: bool) -> (Result<JoinAnswer, JoinError>, Duration) {
    let (cluster, net) = (Cluster::new(), Arc::<Net>::default());
    let udp: Arc<dyn Udp> = Arc::new(MemoryUdp(net.clone()));
    let (admit, cable) = (cluster.join_handler(), net.clone());
    let join: JoinHandler = Arc::new(move |request, from| {
        let (admit, cable) = (admit.clone(), cable.clone());
        Box::pin(async move {
            cable.cut.store(cut, Ordering::Relaxed);
            tokio::time::sleep(length).await;
            admit(request, from).await
        })
    });
    let own = (NodeKey::generate(&KernelEntropy), Duration::ZERO);
    let node = cluster.start_admitting(own, loopback(), udp, join);
    let (key, begun) = (NodeKey::generate(&KernelEntropy), Instant::now());
    let answer = join::ask(&node.seams, node.addr(), &cluster.token(), &key, joiner()).await;
    (answer, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_joiner_leaves_a_peer_that_falls_silent_and_waits_for_one_that_takes_its_time() {
    let (answer, took) = asked_of_a_peer_that_takes(2 * IDLE_TIMEOUT, false).await;
    assert!(answer.is_ok() && took >= 2 * IDLE_TIMEOUT, "{took:?}");
    let (answer, took) = asked_of_a_peer_that_takes(SECOND, true).await;
    assert!(matches!(answer, Err(JoinError::NoAnswer { .. })), "{:?}", answer.err());
    assert!(took >= SILENCE && took < 2 * SILENCE, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_lives_as_long_as_a_stream_or_a_long_call_uses_it() {
    let (a, b) = pair_on(&Arc::default());
    let mut stream = a.transport.open(b.id(), Class::Bulk, PIPE, vec![], SECOND).await.unwrap();
    tokio::time::sleep(6 * IDLE_TIMEOUT).await;
    stream.write_all(b"still there").await.unwrap();
    let mut back = [0; 11];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still there");
    let long = a.transport.call(b.id(), SLOW, vec![], 60 * SECOND).await.unwrap_err();
    assert!(matches!(long, CallError::Timeout { after, .. } if after == 60 * SECOND), "{long:?}");
    assert!(a.links_to(&b) >= 1, "the call itself was waited for");
    drop(stream);
    tokio::time::sleep(2 * IDLE_TIMEOUT).await;
    assert_eq!(a.links_to(&b), 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_control_connection_is_left_and_a_stream_outlives_the_silence() {
    let net = Arc::new(Net::default());
    let (a, b) = pair_on(&net);
    let mut stream = a.transport.open(b.id(), Class::Bulk, PIPE, vec![], SECOND).await.unwrap();
    a.echo(&b, b"x").await.unwrap();
    net.cut.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let long = a.transport.call(b.id(), SLOW, vec![], 60 * SECOND).await.unwrap_err();
    let took = begun.elapsed();
    assert!(matches!(long, CallError::Broken { .. }), "{long:?}");
    assert!(took >= SILENCE && took < 2 * SILENCE, "{took:?}");
    net.cut.store(false, Ordering::Relaxed);
    assert_eq!(a.echo(&b, b"x").await.unwrap(), b"x", "over a new one");
    stream.write_all(b"still there").await.unwrap();
    let mut back = [0; 11];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still there");
}

#[tokio::test(start_paused = true)]
async fn gossip_alone_notices_that_a_connection_is_silent() {
    let net = Arc::new(Net::default());
    let (a, b) = pair_on(&net);
    a.echo(&b, b"x").await.unwrap();
    let begun = Instant::now();
    while a.links_to(&b) > 0 {
        // For a while it is answered: then it lives.
        net.cut.store(begun.elapsed() >= 2 * IDLE_TIMEOUT, Ordering::Relaxed);
        a.transport.send_datagram(b.id(), Bytes::from_static(b"ping"));
        tokio::time::sleep(SECOND / 3).await;
    }
    let silent = begun.elapsed() - 2 * IDLE_TIMEOUT;
    assert!(silent >= SILENCE && silent < 2 * SILENCE, "{silent:?}");
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_ends_the_connections_of_its_former_life_of_every_class() {
    let (cluster, net) = (Cluster::new(), Arc::new(Net::default()));
    let (a, b) = pair_of(&cluster, &net);
    a.echo(&b, b"x").await.unwrap();
    for class in [Class::Bulk, Class::Session] {
        drop(a.transport.open(b.id(), class, PIPE, vec![], SECOND).await.unwrap());
    }
    assert_eq!(a.links_to(&b), 3);
    // `b` hears nothing from here on: the one that has come back has its address.
    let udp: Arc<dyn Udp> = Arc::new(MemoryUdp(net.clone()));
    let again = cluster.start_on(b.key.clone(), b.addr(), Duration::ZERO, udp);
    again.knows(&a);
    again.echo(&a, b"x").await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(a.links_to(&again), 1, "only the new one is left");
    for class in [Class::Bulk, Class::Session] {
        drop(a.transport.open(again.id(), class, PIPE, vec![], SECOND).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_is_unknown_first_and_unreachable_then_and_heals() {
    let net = Arc::new(Net::default());
    let (a, b) = pair_on(&net);
    a.echo(&b, b"x").await.unwrap();
    net.cut.store(true, Ordering::Relaxed);
    // The question may have arrived: nobody can tell.
    assert!(matches!(a.echo(&b, b"x").await, Err(CallError::Timeout { .. })));
    tokio::time::sleep(2 * IDLE_TIMEOUT).await;
    let started = Instant::now();
    assert!(cause(a.echo(&b, b"x").await.unwrap_err()).contains("no"));
    assert!(started.elapsed() <= 5 * SECOND);
    net.cut.store(false, Ordering::Relaxed);
    tokio::time::sleep(HANDSHAKE_TIMEOUT).await;
    assert_eq!(a.echo(&b, b"x").await.unwrap(), b"x");
}

#[tokio::test(start_paused = true)]
async fn of_two_connections_the_unused_one_ends() {
    for _ in 0..4 {
        let (a, b) = pair_on(&Arc::default());
        let (there, back) = tokio::join!(a.echo(&b, b"x"), b.echo(&a, b"x"));
        there.unwrap();
        back.unwrap();
        for _ in 0..20 {
            a.echo(&b, b"x").await.unwrap();
            b.echo(&a, b"x").await.unwrap();
            tokio::time::sleep(SECOND).await;
        }
        let smaller = if a.id() < b.id() { &a } else { &b };
        assert_eq!((a.links_to(&b), b.links_to(&a)), (1, 1), "both use the same one");
        assert!(smaller.transport.peers()[0].dialled, "the one that the smaller node dialled");
    }
}

#[tokio::test(start_paused = true)]
async fn datagrams_to_a_silent_peer_are_bounded_and_forgotten() {
    let net = Arc::new(Net::default());
    let (a, b) = pair_on(&net);
    let mut datagrams = b.transport.datagrams().unwrap();
    for n in 0..100u8 {
        a.transport.send_datagram(b.id(), Bytes::from(vec![n]));
    }
    let first = datagrams.recv().await.unwrap().1[0];
    assert_eq!(usize::from(first), 100 - DATAGRAMS_WAITING_MAX, "the oldest gave way");
}

#[tokio::test(start_paused = true)]
async fn half_open_handshakes_do_not_block_service() {
    let net = Arc::new(Net::default());
    let (a, b) = pair_on(&net);
    let seams = Seams { udp: Arc::new(MemoryUdp(net.clone())), ..a.seams.clone() };
    let mut half_open = vec![];
    // Forged senders never hear an answer. They are more than the doors have room for, in all and by address.
    for n in 0..8u8 {
        let address = SocketAddr::from(([127, 0, 1, n], 0));
        net.deaf.lock().unwrap().insert(address.ip());
        let endpoint = endpoint::bind(&seams, address, &a.key, None).unwrap();
        for _ in 0..HANDSHAKES_PER_ADDRESS_MAX + 16 {
            let verifier = Arc::new(tls::JoinVerifier::new(Digest::default()));
            let config = endpoint::dialling(&seams, tls::joiner(seams.clock.clone(), verifier));
            half_open.push(endpoint.connect_with(config, b.addr(), "join.smartnode").unwrap());
        }
    }
    tokio::time::sleep(SECOND / 10).await;
    assert!(b.transport.shared.doors.are_busy(), "the flood has arrived");
    assert_eq!(a.echo(&b, b"x").await.unwrap(), b"x");
    drop(half_open);
    tokio::time::sleep(4 * HANDSHAKE_TIMEOUT).await;
    assert!(!b.transport.shared.doors.are_busy(), "half-open handshakes end");
}
