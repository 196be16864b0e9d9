//! Datagrams of overlay networks.

use super::super::data::{DataError, DataTaker};
use super::*;

/// What comes to a taker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    Datagram(NodeId, Bytes),
    Rest,
}

pub(super) struct Service(pub(super) mpsc::UnboundedSender<Came>);

/// Makes a taker want to be asked again three times.
const IMPATIENT: &[u8] = b"impatient";

struct Taker(NodeId, mpsc::UnboundedSender<Came>, u32);

impl DataService for Service {
    fn taker(&self, peer: NodeId) -> Box<dyn DataTaker> {
        Box::new(Taker(peer, self.0.clone(), 0))
    }
}

impl DataTaker for Taker {
    fn take(&mut self, datagram: Bytes) {
        self.2 = if datagram == IMPATIENT { 3 } else { self.2 };
        let _ = self.1.send(Came::Datagram(self.0, datagram));
    }
    fn rest(&mut self) -> Option<Duration> {
        let _ = self.1.send(Came::Rest);
        self.2 = self.2.checked_sub(1)?;
        Some(Duration::from_millis(1))
    }
}

impl Node {
    /// The next datagram of a peer.
    async fn frame(&mut self) -> (NodeId, Bytes) {
        loop {
            match timeout(SECOND, self.frames.recv()).await.expect("nothing has come").unwrap() {
                Came::Datagram(from, datagram) => return (from, datagram),
                Came::Rest => {}
            }
        }
    }
}

fn numbered(number: u32) -> Bytes {
    Bytes::copy_from_slice(&[&[7], &number.to_be_bytes()[..]].concat())
}

#[tokio::test]
async fn datagrams_come_in_order_on_a_connection_of_their_own() {
    let cluster = Cluster::new();
    let (a, mut b) = cluster.pair();
    let path = a.transport.data(b.id(), SECOND).await.unwrap();
    assert_eq!((path.peer(), path.is_live()), (b.id(), true));
    for number in 0..100 {
        path.send(numbered(number)).await.unwrap();
    }
    for number in 0..100 {
        assert_eq!(b.frame().await, (a.id(), numbered(number)));
    }
    a.transport.call(b.id(), ECHO, vec![1], SECOND).await.unwrap();
    let classes = |node: &Node| node.transport.peers().into_iter().map(|open| open.class).collect::<Vec<_>>();
    assert_eq!(classes(&a), [Class::Control, Class::Data]);
    assert!(path.state().sent > 0 && path.state().datagram_bytes > 1_000);
}

#[tokio::test]
async fn both_ends_send_on_one_connection_and_what_had_come_is_told() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.pair();
    a.transport.data(b.id(), SECOND).await.unwrap().send(numbered(1)).await.unwrap();
    assert_eq!(b.frame().await, (a.id(), numbered(1)));
    assert_eq!(timeout(SECOND, b.frames.recv()).await.unwrap(), Some(Came::Rest));
    b.transport.data_now(a.id()).expect("the one that was accepted").send(numbered(2)).await.unwrap();
    assert_eq!(a.frame().await, (b.id(), numbered(2)));
    assert_eq!(a.transport.peers().len(), 1);
}

#[tokio::test]
async fn what_keeps_a_connection_alive_is_nobodys_and_what_is_too_large_is_told() {
    let cluster = Cluster::new();
    let (a, mut b) = cluster.pair();
    let path = a.transport.data(b.id(), SECOND).await.unwrap();
    a.transport.shared.pool().ready(b.id(), Class::Data).unwrap().poke();
    assert_eq!(path.send(Bytes::from(vec![1; 65_000])).await, Err(DataError::TooBig));
    path.send(numbered(1)).await.unwrap();
    assert_eq!(b.frame().await, (a.id(), numbered(1)), "and not the poke");
    a.transport.cut(b.id());
    assert!(matches!(path.send(numbered(2)).await, Err(DataError::Ended(_))) && !path.is_live());
}

#[tokio::test]
async fn more_than_there_is_room_for_waits_and_nothing_is_dropped_before_it_is_sent() {
    let cluster = Cluster::new();
    let (a, mut b) = cluster.pair();
    let path = a.transport.data(b.id(), SECOND).await.unwrap();
    // Four times what quinn keeps: without waiting it would drop three quarters.
    for number in 0..1_000 {
        path.send([&numbered(number)[..], &[0; 1_000]].concat().into()).await.unwrap();
    }
    let last = async { while b.frame().await.1[..5] != numbered(999) {} };
    timeout(5 * SECOND, last).await.expect("the last one has got lost");
    let sent = a.transport.shared.pool().ready(b.id(), Class::Data).unwrap().connection.stats().frame_tx.datagram;
    assert!(sent >= 1_000, "{sent}");
}

#[tokio::test]
async fn a_taker_that_waits_for_time_is_asked_again_though_nothing_comes() {
    let cluster = Cluster::new();
    let (a, mut b) = cluster.pair();
    a.transport.data(b.id(), SECOND).await.unwrap().send(Bytes::from_static(IMPATIENT)).await.unwrap();
    assert_eq!(b.frame().await.1, IMPATIENT);
    for _ in 0..4 {
        assert_eq!(timeout(SECOND, b.frames.recv()).await.unwrap(), Some(Came::Rest));
    }
}
