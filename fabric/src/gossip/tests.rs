//! Gossip of several nodes over in-memory links in paused time, with liars among them.

use std::sync::Mutex;

use async_trait::async_trait;

use super::statement::tests::{Fixed, key, state};
use super::*;
use crate::membership::{Member, State};
use crate::rpc::CallError;
use crate::seams::real::{Directory, HostUdp};

#[derive(Debug)]
struct Still;
impl Clock for Still {
    fn boottime(&self) -> Duration {
        Duration::ZERO
    }
    fn wall(&self) -> Duration {
        Duration::from_millis(WALL_MS)
    }
}
const WALL_MS: u64 = 1_700_000_000_000;

type Inbox = mpsc::Sender<(NodeId, Bytes)>;

/// All nodes, and the largest message of late.
#[derive(Debug, Default)]
struct Hub {
    inboxes: Mutex<BTreeMap<NodeId, Inbox>>,
    largest: Mutex<usize>,
}

#[derive(Debug)]
struct Link {
    from: NodeId,
    hub: Arc<Hub>,
}

#[async_trait]
impl Uni for Link {
    async fn send(&self, to: NodeId, bytes: Bytes) -> Result<(), CallError> {
        let inbox = self.hub.inboxes.lock().unwrap().get(&to).cloned();
        let mut largest = self.hub.largest.lock().unwrap();
        *largest = (*largest).max(bytes.len());
        let unreachable = || CallError::Unreachable { node: to, cause: "no such node".into() };
        inbox.ok_or_else(unreachable)?.try_send((self.from, bytes)).map_err(|_| unreachable())
    }
}

struct Fabric {
    hub: Arc<Hub>,
    members: watch::Sender<Arc<Members>>,
    seams: Seams,
    _directory: tempfile::TempDir,
}

impl Fabric {
    fn new(keys: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let seams = Seams {
            clock: Arc::new(Still),
            entropy: Arc::new(Fixed(1)),
            disk: Arc::new(Directory::open(directory.path()).unwrap()),
            udp: Arc::new(HostUdp),
        };
        let member = Member { address: ([10, 0, 0, 1], 1).into(), incarnation: 1, state: State::Alive, since_ms: 0 };
        // Each node finds itself among its members here, which harms nobody.
        let members: Members = keys.iter().map(|n| (key(*n).id(), member)).collect();
        Fabric { hub: Arc::default(), members: watch::Sender::new(Arc::new(members)), seams, _directory: directory }
    }

    fn plug(&self, n: u8) -> (Arc<Link>, mpsc::Receiver<(NodeId, Bytes)>) {
        let (inbox, incoming) = mpsc::channel(1_000);
        self.hub.inboxes.lock().unwrap().insert(key(n).id(), inbox);
        (Arc::new(Link { from: key(n).id(), hub: self.hub.clone() }), incoming)
    }

    fn start(&self, n: u8, life: u64) -> Gossip {
        let (link, incoming) = self.plug(n);
        let config = GossipConfig { cluster: ClusterId([9; 16]), key: key(n), boot: WALL_MS + life };
        let gossip = Gossip::start(config, &self.seams, link, incoming, self.members.subscribe());
        gossip.publish(state(key(n).id(), 0));
        gossip
    }

    /// A member whose chitchat says `text` where its state should be.
    async fn liar(&self, n: u8, text: &str) -> ChitchatHandle {
        let (link, incoming) = self.plug(n);
        let id = ChitchatId::new("", WALL_MS, Slot::of(key(n).id()).address());
        let shared = Shared::new(key(n).id(), self.seams.clock.clone(), link, self.members.subscribe(), incoming);
        let config = ChitchatConfig {
            listen_addr: id.gossip_advertise_addr,
            chitchat_id: id,
            cluster_id: ClusterId([9; 16]).to_string(),
            gossip_interval: INTERVAL,
            seed_nodes: vec![Slot::of(key(1).id()).address().to_string()],
            failure_detector_config: FailureDetectorConfig::default(),
            marked_for_deletion_grace_period: DEAD_GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        spawn_chitchat(config, vec![(KEY.into(), text.into())], &Transport(Arc::new(shared))).await.unwrap()
    }
}

/// Waits, in virtual time, until `done`.
async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not within a minute: {what}");
}

fn knows(gossip: &Gossip, n: u8) -> bool {
    gossip.states().contains_key(&key(n).id())
}

#[tokio::test(start_paused = true)]
async fn three_nodes_converge_and_hear_updates() {
    let fabric = Fabric::new(&[1, 2, 3]);
    let nodes = [1, 2, 3].map(|n| fabric.start(n, 0));
    until("all know all", || nodes.iter().all(|node| node.states().len() == 3)).await;
    let mut changed = nodes[2].changed();
    changed.mark_unchanged();
    let mut news = state(key(1).id(), 0);
    news.load_millis = 777;
    nodes[0].publish(news);
    changed.changed().await.unwrap();
    until("the update arrives", || nodes[2].states()[&key(1).id()].load_millis == 777).await;
    let sequence = nodes[2].states()[&key(1).id()].sequence;
    assert_eq!(sequence, nodes[0].states()[&key(1).id()].sequence);
    assert_eq!(nodes.iter().map(|node| node.counters().states_refused).sum::<u64>(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_fabric_of_ten_says_little() {
    let all: Vec<u8> = (1..=10).collect();
    let fabric = Fabric::new(&all);
    let nodes: Vec<Gossip> = all.iter().map(|n| fabric.start(*n, 0)).collect();
    until("all know all", || nodes.iter().all(|node| node.states().len() == 10)).await;
    let before = nodes[0].counters();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let after = nodes[0].counters();
    let (sent, bytes) = (after.messages_out - before.messages_out, after.bytes_out - before.bytes_out);
    assert!(sent <= 60 * 12, "{sent} messages in a minute");
    assert!(bytes <= 60 * 8_000, "{bytes} bytes in a minute");
    assert_eq!(after.messages_refused, 0);
}

#[tokio::test(start_paused = true)]
async fn lies_are_refused_and_the_rest_still_arrives() {
    let forged = statement::seal(&key(2), &state(key(2).id(), u64::MAX)).unwrap();
    let huge = "00".repeat(20_000);
    for text in [forged.as_str(), huge.as_str(), "nonsense", ""] {
        let fabric = Fabric::new(&[1, 2, 3]);
        let liar = fabric.liar(3, text).await;
        let nodes = [1, 2].map(|n| fabric.start(n, 0));
        until("the lie is refused", || nodes.iter().all(|node| node.counters().states_refused > 0)).await;
        until("the honest know each other", || knows(&nodes[0], 2) && knows(&nodes[1], 1)).await;
        assert!(nodes.iter().all(|node| !knows(node, 3)));
        assert_ne!(nodes[0].states()[&key(2).id()].sequence, u64::MAX);
        let refused = nodes[0].counters().states_refused;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(nodes[0].counters().states_refused, refused, "a lie is looked at once");
        drop(liar);
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_and_strangers_are_ignored() {
    let fabric = Fabric::new(&[1, 2]);
    let nodes = [1, 2].map(|n| fabric.start(n, 0));
    let inbox = fabric.hub.inboxes.lock().unwrap()[&key(1).id()].clone();
    for bytes in [b"".as_slice(), b"garbage", &[0xff; 200_000]] {
        inbox.send((key(2).id(), Bytes::copy_from_slice(bytes))).await.unwrap();
        inbox.send((key(5).id(), Bytes::copy_from_slice(bytes))).await.unwrap();
    }
    until("all is refused", || nodes[0].counters().messages_refused == 6).await;
    until("both converge", || nodes.iter().all(|node| node.states().len() == 2)).await;
    assert_eq!(nodes[0].counters().restarts, 0);
}

/// chitchat 0.11.1 slices the first byte off a key, which breaks in the middle of a letter.
#[tokio::test(start_paused = true)]
async fn a_chitchat_that_breaks_is_replaced() {
    let fabric = Fabric::new(&[1, 2, 3]);
    let nodes = [1, 2].map(|n| fabric.start(n, 0));
    until("both converge", || nodes.iter().all(|node| node.states().len() == 2)).await;
    let place = {
        let mut place = vec![0, 0];
        place.extend(WALL_MS.to_le_bytes());
        place.push(6);
        place.extend(&key(3).id().0[..16]);
        place.extend([key(3).id().0[17], key(3).id().0[16]]);
        place
    };
    let head = |kind| [45_139u16.to_le_bytes().as_slice(), &[0, kind]].concat();
    let cluster = ClusterId([9; 16]).to_string();
    let length = (cluster.len() as u16).to_le_bytes();
    let syn = [head(0).as_slice(), &[1, 0], &place, &[1; 24], &length, cluster.as_bytes()].concat();
    let key_value = [&[1, 2, 0][..], "é".as_bytes(), &[0, 0], &[2, 0, 0, 0, 0, 0, 0, 2], &[0]].concat();
    // Nothing was collected, nothing comes before: 16 zero bytes.
    let block = [&[0][..], &place, &[0; 16], &key_value].concat();
    let ack = [head(2).as_slice(), &[2], &(block.len() as u16).to_le_bytes(), &block, &[0]].concat();
    let inbox = fabric.hub.inboxes.lock().unwrap()[&key(1).id()].clone();
    for message in [syn, ack] {
        inbox.send((key(3).id(), message.into())).await.unwrap();
    }
    until("chitchat was replaced", || nodes[0].counters().restarts == 1).await;
    let mut news = state(key(1).id(), 0);
    news.load_millis = 5;
    nodes[0].publish(news);
    until("news still travels", || nodes[1].states()[&key(1).id()].load_millis == 5).await;
    inbox.send((key(3).id(), Bytes::from_static(b"x"))).await.unwrap();
    until("the culprit is not heard", || nodes[0].counters().messages_refused > 0).await;
}

#[tokio::test(start_paused = true)]
async fn earlier_lives_do_not_pile_up_on_the_wire() {
    let fabric = Fabric::new(&[1, 2, 3]);
    let nodes = [1, 2].map(|n| fabric.start(n, 0));
    until("both converge", || nodes.iter().all(|node| node.states().len() == 2)).await;
    for life in 1..=20 {
        let gossip = fabric.start(3, life * 1_000);
        until("the new life is heard", || {
            let first = (WALL_MS + life * 1_000) * STATEMENTS_PER_STAMP;
            nodes.iter().all(|node| node.states().get(&key(3).id()).is_some_and(|state| state.sequence > first))
        })
        .await;
        drop(gossip);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    *fabric.hub.largest.lock().unwrap() = 0;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let largest = *fabric.hub.largest.lock().unwrap();
    assert!(largest < 400, "three nodes need no {largest} bytes");
}

#[tokio::test(start_paused = true)]
async fn the_removed_are_forgotten_and_not_heard() {
    let fabric = Fabric::new(&[1, 2, 3]);
    let nodes = [1, 2, 3].map(|n| fabric.start(n, 0));
    until("all know all", || nodes.iter().all(|node| node.states().len() == 3)).await;
    let mut left = (**fabric.members.borrow()).clone();
    left.remove(&key(3).id());
    fabric.members.send_replace(Arc::new(left));
    until("the removed is forgotten", || nodes[..2].iter().all(|node| !knows(node, 3))).await;
    until("and not heard", || nodes[0].counters().messages_refused > 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_directory_was_put_back_is_heard_again() {
    let fabric = Fabric::new(&[1, 2]);
    let other = fabric.start(2, 0);
    let later = fabric.start(1, 50_000);
    until("they converge", || knows(&other, 1)).await;
    drop(later);
    let earlier = fabric.start(1, 0);
    let mut news = state(key(1).id(), 0);
    news.load_millis = 9;
    earlier.publish(news);
    until("the earlier boot stamp catches up", || other.states()[&key(1).id()].load_millis == 9).await;
}
