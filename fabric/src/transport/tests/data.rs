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

struct Taker(NodeId, mpsc::UnboundedSender<Came>);

impl DataService for Service {
    fn taker(&self, peer: NodeId) -> Box<dyn DataTaker> {
        Box::new(Taker(peer, self.0.clone()))
    }
}

impl DataTaker for Taker {
    fn take(&mut self, datagram: Bytes) {
        let _ = self.1.send(Came::Datagram(self.0, datagram));
    }
    fn rest(&mut self) {
        let _ = self.1.send(Came::Rest);
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
async fn more_than_there_is_room_for_waits_and_calls_do_not_wait_for_it() {
    let cluster = Cluster::new();
    let (a, mut b) = cluster.pair();
    let path = a.transport.data(b.id(), SECOND).await.unwrap();
    let flood = tokio::spawn(async move {
        let mut sent = 0;
        while path.send(Bytes::from(vec![7; 1_000])).await.is_ok() {
            sent += 1;
        }
        sent
    });
    for _ in 0..20 {
        a.transport.call(b.id(), ECHO, vec![0; 1_000], 5 * SECOND).await.unwrap();
    }
    for _ in 0..2_000 {
        b.frame().await;
    }
    a.transport.cut(b.id());
    assert!(flood.await.unwrap() >= 2_000);
}
