//! Two nodes of one process, each with a network's switch, and machines that are namespaces: what is in one reaches what is in
//! the other by the plane alone, since nothing else connects them.

mod common;

use std::net::IpAddr;
use std::sync::{Arc, RwLock};

use common::{Host, unique};
use fabric::identity::{CaKey, Credentials, NodeKey, Trust};
use fabric::ids::MachineId;
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::{Labels, Mac, Role, Vni};
use fabric::seams::Clock;
use fabric::seams::real::{KernelClock, KernelEntropy, seams};
use fabric::transport::{Handlers, Transport, TransportConfig};
use netvirt::directory::{Endpoint, Network};
use netvirt::drops::{Drops, Reason};
use netvirt::netns::Netns;
use netvirt::plane::{Paths, Plane};
use netvirt::switch::{Guarded, Port, Switch, Tagged};
use tokio_util::task::AbortOnDropHandle;

const MTU: u16 = 1_350;

fn vni() -> Vni {
    Vni::new(9).unwrap()
}

fn network() -> Network {
    Network::new(vni(), ["10.9.0.0/24", "fd09::/64"].map(|text| text.parse().unwrap()).to_vec(), MTU)
}

fn port(endpoint: &Endpoint) -> Port {
    Port { machine: endpoint.machine, mac: endpoint.mac, addresses: endpoint.addresses.clone() }
}

/// A node's part of the network; its namespace is gone when this is dropped.
struct Node {
    namespace: String,
    plane: Plane,
    transport: Transport,
    _paths: Arc<dyn Paths>,
    _directory: tempfile::TempDir,
}

/// What a daemon holds of a network while it runs.
struct Running {
    switch: Arc<Switch>,
    _carries: AbortOnDropHandle<()>,
}

impl Node {
    fn start(ca: &CaKey, name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let seams = seams(directory.path()).unwrap();
        let key = NodeKey::generate(&KernelEntropy);
        let certificate = ca.issue(&key.public_key(), Role::Worker, KernelClock.wall(), CERTIFICATE_TTL);
        let credentials = Credentials::new(key, certificate, ca.cert_der().to_vec()).unwrap();
        let trust = Arc::new(RwLock::new(Trust::new([ca.cert_der().to_vec()]).unwrap()));
        let plane = Plane::new(credentials.id(), seams.clock.clone());
        let handlers = Handlers { data: Some(Arc::new(plane.clone())), ..Handlers::default() };
        let config = TransportConfig { listen: ([127, 0, 0, 1], 0).into() };
        let transport = Transport::start(&config, &seams, &credentials, trust, handlers).unwrap();
        let paths: Arc<dyn Paths> = Arc::new(transport.clone());
        plane.connect(Arc::downgrade(&paths));
        Node { namespace: unique(name), plane, transport, _paths: paths, _directory: directory }
    }

    fn endpoint(&self, n: u8) -> Endpoint {
        let machine = MachineId([n; 16]);
        let addresses = [format!("10.9.0.{n}"), format!("fd09::{n:x}")].map(|text| text.parse::<IpAddr>().unwrap());
        let (mac, node) = (Mac::of(machine, vni()), self.transport.id());
        Endpoint { machine, mac, addresses: addresses.to_vec(), node, epoch: 1, previous: None }
    }

    /// Begins to carry the network, in which there are these endpoints.
    async fn run(&self, all: &[Endpoint]) -> Running {
        let own = all.iter().filter(|endpoint| endpoint.node == self.transport.id()).map(port);
        let switch = Switch::open(&self.namespace, &network(), &own.collect::<Vec<_>>()).await.unwrap();
        let switch = Arc::new(switch);
        self.plane.set(&network(), switch.clone(), 1, all.to_vec()).unwrap();
        let (plane, tap) = (self.plane.clone(), switch.tap());
        let carries = tokio::spawn(async move { drop(plane.carry(vni(), &tap).await) });
        Running { switch, _carries: AbortOnDropHandle::new(carries) }
    }

    /// Reasons for which something was dropped that should not have been.
    fn dropped(&self) -> Vec<(Reason, u64)> {
        // What every stack says unasked, and nobody else has to hear.
        let usual = |reason: Reason| matches!(reason, Reason::Answered | Reason::UnknownTarget);
        self.plane.drops(Some(vni())).iter().filter(|(reason, _)| !usual(*reason)).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Netns::remove(&self.namespace);
    }
}

/// A machine that has its interface.
async fn machine(on: &Running, endpoint: &Endpoint) -> Host {
    let host = Host::new(&format!("m{}", endpoint.machine.0[0]));
    on.switch.attach(&port(endpoint), &host.namespace, "eth0", true).await.unwrap();
    host
}

/// How often the switch dropped something for this reason.
async fn count(on: &Running, reason: Reason) -> u64 {
    on.switch.dropped().await.unwrap().into_iter().find(|(of, _)| *of == reason).unwrap().1
}

/// Two nodes that know each other.
fn pair() -> (Node, Node) {
    let ca = CaKey::generate(&KernelEntropy, KernelClock.wall());
    let (a, b) = (Node::start(&ca, "a"), Node::start(&ca, "b"));
    a.transport.learn(b.transport.id(), b.transport.local_addr().unwrap());
    b.transport.learn(a.transport.id(), a.transport.local_addr().unwrap());
    (a, b)
}

async fn pings(from: &Host, to: &str) {
    let said = from.run(&format!("ping -n -c 3 -i 0.2 -W 2 {to}")).await;
    assert!(said.contains("3 received"), "{said}");
}

async fn pings_in_vain(from: &Host, arguments: &str) {
    let (well, said) = from.try_run(&format!("ping -n -c 2 -i 0.2 -W 1 {arguments}")).await;
    assert!(!well, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and namespaces"]
async fn machines_of_two_nodes_reach_each_other_by_ipv4_and_ipv6() {
    let (a, b) = pair();
    let all = [a.endpoint(10), b.endpoint(11)];
    let (on_a, on_b) = (a.run(&all).await, b.run(&all).await);
    let (one, _other) = (machine(&on_a, &all[0]).await, machine(&on_b, &all[1]).await);
    for target in ["10.9.0.11", "fd09::b", "10.9.0.1", "fd09::1"] {
        pings(&one, target).await;
    }
    // Packets as large as the network takes.
    one.run(&format!("ping -n -c 2 -i 0.2 -W 2 -M do -s {} 10.9.0.11", MTU - 28)).await;
    let neighbours = one.run("ip neigh show 10.9.0.11").await;
    assert!(neighbours.contains(&all[1].mac.to_string()), "{neighbours}");
    let routes = one.run("ip route show default").await;
    assert!(routes.contains("via 10.9.0.1 dev eth0"), "{routes}");
    assert_eq!((a.dropped(), b.dropped(), a.plane.drops(None)), (vec![], vec![], Drops::default()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and namespaces"]
async fn tcp_gets_through_in_both_directions() {
    let (a, b) = pair();
    let all = [a.endpoint(10), b.endpoint(11), a.endpoint(12)];
    let (on_a, on_b) = (a.run(&all).await, b.run(&all).await);
    let client = machine(&on_a, &all[0]).await;
    let servers = [machine(&on_b, &all[1]).await, machine(&on_a, &all[2]).await];
    for (server, targets) in servers.iter().zip([["10.9.0.11", "fd09::b"], ["10.9.0.12", "fd09::c"]]) {
        for target in targets {
            for reverse in ["", "--reverse"] {
                let _server = server.start("iperf3 --server --one-off --forceflush", "Server listening").await;
                let said = client.run(&format!("iperf3 --client {target} --bytes 20M --json {reverse}")).await;
                assert!(!said.contains("\"error\""), "{said}");
            }
        }
    }
    let other = |node: &Node| node.dropped().into_iter().find(|(reason, _)| !is_of_load(*reason));
    assert_eq!((other(&a), other(&b)), (None, None));
}

/// What a path that is full brings about, and TCP bears.
fn is_of_load(reason: Reason) -> bool {
    matches!(reason, Reason::Congested | Reason::Incomplete)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and namespaces"]
async fn machines_of_one_node_go_on_while_its_daemon_is_away_and_reach_others_when_it_is_back() {
    let (a, b) = pair();
    let all = [a.endpoint(10), b.endpoint(11), a.endpoint(12)];
    let (on_a, on_b) = (a.run(&all).await, b.run(&all).await);
    let (one, _two) = (machine(&on_a, &all[0]).await, machine(&on_a, &all[2]).await);
    let _other = machine(&on_b, &all[1]).await;
    pings(&one, "10.9.0.11").await;
    a.plane.remove(vni());
    drop(on_a);
    pings(&one, "10.9.0.12").await;
    pings(&one, "fd09::c").await;
    pings_in_vain(&one, "10.9.0.11").await;
    let on_a = a.run(&all).await;
    pings(&one, "10.9.0.11").await;
    pings(&one, "fd09::b").await;
    // Plugged in again, as a daemon does that does not know; and unplugged, by itself and as one that nobody wants any more.
    on_a.switch.attach(&port(&all[0]), &one.namespace, "eth0", true).await.unwrap();
    pings(&one, "10.9.0.12").await;
    on_a.switch.detach(all[2].machine).await.unwrap();
    on_a.switch.detach(all[2].machine).await.unwrap();
    pings_in_vain(&one, "10.9.0.12").await;
    a.plane.remove(vni());
    drop(on_a);
    let on_a = a.run(&all[1..2]).await;
    let (_, said) = one.try_run("ip link show eth0").await;
    assert!(said.contains("does not exist"), "{said}");
    a.plane.remove(vni());
    Arc::into_inner(on_a.switch).unwrap().close().unwrap();
    assert_eq!(Netns::names(&a.namespace).unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and namespaces"]
async fn a_machine_may_use_its_own_addresses_alone_and_sends_to_all_at_a_bounded_rate() {
    let (a, _b) = pair();
    let all = [a.endpoint(10), a.endpoint(12)];
    let on_a = a.run(&all).await;
    let (one, _two) = (machine(&on_a, &all[0]).await, machine(&on_a, &all[1]).await);
    pings(&one, "10.9.0.12").await;
    assert_eq!(on_a.switch.dropped().await.unwrap().iter().map(|(_, count)| count).sum::<u64>(), 0);

    one.ip("addr add 10.9.0.99/24 dev eth0");
    one.ip("addr add fd09::99/64 dev eth0 nodad");
    pings_in_vain(&one, "-I 10.9.0.99 10.9.0.12").await;
    let of_ipv4 = count(&on_a, Reason::SpoofedAddress).await;
    pings_in_vain(&one, "-I fd09::99 fd09::c").await;
    assert!(of_ipv4 > 0 && count(&on_a, Reason::SpoofedAddress).await > of_ipv4);

    one.namespace.within(flood).unwrap();
    assert!(count(&on_a, Reason::Flood).await > 0);

    one.ip("link set eth0 address 06:00:00:00:00:99");
    pings_in_vain(&one, "10.9.0.12").await;
    assert!(count(&on_a, Reason::SpoofedMac).await > 0);
    one.ip(&format!("link set eth0 address {}", all[0].mac));
    pings(&one, "10.9.0.12").await;
}

/// Far more to all than a machine may say at once.
fn flood() -> std::io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "what a machine does")]
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.set_broadcast(true)?;
    (0..1_000).try_for_each(|_| socket.send_to(b"all", "10.9.0.255:9").map(drop))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and namespaces"]
async fn a_network_has_no_way_to_its_host_nor_to_another_network() {
    let (a, b) = pair();
    // The same subnet, by two switches that are not joined: two tenants.
    let (of_one, of_other) = ([a.endpoint(10)], [b.endpoint(11)]);
    let (on_a, on_b) = (a.run(&of_one).await, b.run(&of_other).await);
    let (one, _other) = (machine(&on_a, &of_one[0]).await, machine(&on_b, &of_other[0]).await);
    pings(&one, "10.9.0.1").await;
    pings_in_vain(&one, "10.9.0.11").await;
    // A server of the host that listens everywhere is not here.
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (reached, said) = one.try_run(&format!("bash -c :</dev/tcp/10.9.0.1/{port}")).await;
    assert!(!reached && said.contains("refused"), "{said}");
    let inside = on_a.switch.interfaces().await.unwrap();
    assert_eq!(inside.iter().filter(|name| !name.starts_with("m-")).collect::<Vec<_>>(), ["br0", "fabric", "lo"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and namespaces"]
async fn a_firewall_judges_what_begins_and_lets_answers_pass() {
    let (a, b) = pair();
    let all = [a.endpoint(10), b.endpoint(11)];
    let (on_a, on_b) = (a.run(&all).await, b.run(&all).await);
    let (one, two) = (machine(&on_a, &all[0]).await, machine(&on_b, &all[1]).await);
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let guard = |rules| [Guarded { port: port(&all[1]), rules }];

    // Nobody begins anything with machine 11, and it may begin what it likes.
    on_b.switch.guard(&guard(rules(&["deny in any"])), &Tagged::new()).await.unwrap();
    pings(&two, "10.9.0.10").await;
    pings(&two, "fd09::a").await;
    for target in ["10.9.0.11", "fd09::b"] {
        pings_in_vain(&one, target).await;
    }
    let denied = on_b.switch.denied().await.unwrap();
    assert!(denied >= 4, "{denied}");

    // Machine 10 may, on one port, since it is what it is; and nobody else.
    let labels = Labels::from([("role".to_owned(), "web".to_owned())]);
    let tagged: Tagged = all[0].addresses.iter().map(|ip| (*ip, labels.clone())).collect();
    let allowed = rules(&["allow in tcp 5201 from tag role=web", "deny in any"]);
    on_b.switch.guard(&guard(allowed), &tagged).await.unwrap();
    for target in ["10.9.0.11", "fd09::b"] {
        let _server = two.start("iperf3 --server --one-off --forceflush", "Server listening").await;
        one.run(&format!("iperf3 --client {target} --bytes 1M")).await;
    }
    let _server = two.start("iperf3 --server --one-off --forceflush --port 5202", "Server listening").await;
    let (well, _) = one.try_run("timeout 2 iperf3 --client 10.9.0.11 --port 5202 --connect-timeout 1000").await;
    assert!(!well && on_b.switch.denied().await.unwrap() > denied);

    // Where it begins something, machine 10 may be held back as well.
    let own = Guarded { port: port(&all[0]), rules: rules(&["deny out icmp to 10.9.0.0/24"]) };
    on_b.switch.guard(&[], &Tagged::new()).await.unwrap();
    on_a.switch.guard(&[own], &Tagged::new()).await.unwrap();
    pings_in_vain(&one, "10.9.0.11").await;
    pings(&one, "fd09::b").await;
    pings(&one, "10.9.0.1").await;
}
