//! Two nodes of one process, each with a machine's interface in a network namespace of its own: what is in one reaches what
//! is in the other by the plane alone, since nothing else connects them.

use std::fs::File;
use std::io::IoSlice;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use fabric::identity::{CaKey, Credentials, NodeKey, Trust};
use fabric::ids::MachineId;
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::{Mac, Role, Vni};
use fabric::seams::Clock;
use fabric::seams::real::{KernelClock, KernelEntropy, seams};
use fabric::transport::{Handlers, Transport, TransportConfig};
use netvirt::directory::{Endpoint, Network};
use netvirt::drops::{Drops, Reason};
use netvirt::limits::FRAME_BYTES_MAX;
use netvirt::plane::{Bridge, Paths, Plane};
use netvirt::tap::Tap;
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

const MTU: u16 = 1_350;
const PATIENCE: Duration = Duration::from_secs(30);

fn vni() -> Vni {
    Vni::new(9).unwrap()
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A namespace with one machine's interface, which is the TAP itself. Gone when dropped.
struct Host {
    namespace: String,
}

impl Host {
    fn new(name: &str) -> Self {
        static HOSTS: AtomicU32 = AtomicU32::new(0);
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("snov-{}-{number}-{name}", std::process::id());
        ip(&format!("netns add {namespace}"));
        Host { namespace }
    }

    /// Opens the TAP inside, by a thread that goes there and ends.
    fn tap(&self) -> Tap {
        let path = format!("/run/netns/{}", self.namespace);
        let runtime = tokio::runtime::Handle::current();
        let open = move || {
            let _inside = runtime.enter();
            #[expect(clippy::disallowed_methods, reason = "a namespace of the kernel")]
            let namespace = File::open(path).unwrap();
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            Tap::open("eth0").unwrap()
        };
        std::thread::scope(|scope| scope.spawn(open).join().unwrap())
    }

    fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.namespace));
    }

    fn command(&self, program: &str) -> tokio::process::Command {
        // Entered by file: `ip netns exec` would make a mount namespace of its own as well.
        let mut command = tokio::process::Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).args(program.split_whitespace()).kill_on_drop(true);
        command
    }

    /// Starts a command inside, and waits until it says so much.
    async fn start(&self, program: &str, ready: &str) -> Child {
        let mut child = self.command(program).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let look = async { while !lines.next_line().await.unwrap().expect("it has ended").contains(ready) {} };
        tokio::time::timeout(PATIENCE, look).await.expect("it does not begin");
        // Whoever writes to a closed pipe dies.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        child
    }

    /// Runs a command inside and gives what it says.
    async fn run(&self, program: &str) -> String {
        let done =
            tokio::time::timeout(PATIENCE, self.command(program).output()).await.expect("it does not end").unwrap();
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert!(done.status.success(), "{program}: {said}");
        said
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).output();
    }
}

struct Card(Arc<Tap>);

impl Bridge for Card {
    fn deliver(&self, pieces: &[&[u8]]) {
        let pieces: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let _ = self.0.write(&pieces);
    }
}

struct Node {
    host: Host,
    plane: Plane,
    transport: Transport,
    _paths: Arc<dyn Paths>,
    _directory: tempfile::TempDir,
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
        Node { host: Host::new(name), plane, transport, _paths: paths, _directory: directory }
    }

    fn machine(&self, n: u8) -> Endpoint {
        let machine = MachineId([n; 16]);
        let addresses = [format!("10.9.0.{n}"), format!("fd09::{n:x}")].map(|text| text.parse::<IpAddr>().unwrap());
        let (mac, node) = (Mac::of(machine, vni()), self.transport.id());
        Endpoint { machine, mac, addresses: addresses.to_vec(), node, epoch: 1, previous: None }
    }

    /// Brings the machine up, and carries what it sends.
    fn bring_up(&self, own: &Endpoint, all: &[Endpoint]) {
        let tap = Arc::new(self.host.tap());
        self.host.ip("link set lo up");
        self.host.ip(&format!("link set eth0 address {} mtu {MTU}", own.mac));
        self.host.ip(&format!("addr add {}/24 dev eth0", own.addresses[0]));
        // Without asking whether it is taken: the ledger says that it is not.
        self.host.ip(&format!("addr add {}/64 dev eth0 nodad", own.addresses[1]));
        self.host.ip("link set eth0 up");
        let subnets = ["10.9.0.0/24", "fd09::/64"].map(|text| text.parse().unwrap()).to_vec();
        let network = Network::new(vni(), subnets, MTU);
        assert!(self.plane.set(&network, Arc::new(Card(tap.clone())), 1, all.to_vec()).unwrap());
        let plane = self.plane.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; FRAME_BYTES_MAX];
            while let Ok(length) = tap.read(&mut buffer).await {
                plane.sent(vni(), Bytes::copy_from_slice(&buffer[..length])).await;
            }
        });
    }

    /// Reasons for which something was dropped that should not have been.
    fn dropped(&self) -> Vec<(Reason, u64)> {
        // What every stack says unasked, and nobody else has to hear.
        let usual = |reason: Reason| matches!(reason, Reason::Answered | Reason::UnknownTarget);
        self.plane.drops(Some(vni())).iter().filter(|(reason, _)| !usual(*reason)).collect()
    }
}

/// Two nodes that know each other, with a machine each: 10 on the first, 11 on the second.
fn pair() -> (Node, Node, [Endpoint; 2]) {
    let ca = CaKey::generate(&KernelEntropy, KernelClock.wall());
    let (a, b) = (Node::start(&ca, "a"), Node::start(&ca, "b"));
    a.transport.learn(b.transport.id(), b.transport.local_addr().unwrap());
    b.transport.learn(a.transport.id(), a.transport.local_addr().unwrap());
    let machines = [a.machine(10), b.machine(11)];
    a.bring_up(&machines[0], &machines);
    b.bring_up(&machines[1], &machines);
    (a, b, machines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and namespaces"]
async fn machines_of_two_nodes_reach_each_other_by_ipv4_and_ipv6() {
    let (a, b, machines) = pair();
    for target in ["10.9.0.11", "fd09::b"] {
        let said = a.host.run(&format!("ping -n -c 5 -i 0.2 -W 2 {target}")).await;
        assert!(said.contains("5 received"), "{said}");
    }
    // Packets as large as the network takes.
    a.host.run(&format!("ping -n -c 2 -i 0.2 -W 2 -M do -s {} 10.9.0.11", MTU - 28)).await;
    let neighbours = a.host.run("ip neigh show 10.9.0.11").await;
    assert!(neighbours.contains(&machines[1].mac.to_string()), "{neighbours}");
    assert_eq!((a.dropped(), b.dropped(), a.plane.drops(None)), (vec![], vec![], Drops::default()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and namespaces"]
async fn tcp_gets_through_in_both_directions() {
    let (a, b, _) = pair();
    for target in ["10.9.0.11", "fd09::b"] {
        let _server = b.host.start("iperf3 --server --one-off --forceflush", "Server listening").await;
        let said = a.host.run(&format!("iperf3 --client {target} --bytes 20M --json")).await;
        assert!(!said.contains("\"error\""), "{said}");
        let _server = b.host.start("iperf3 --server --one-off --forceflush", "Server listening").await;
        let said = a.host.run(&format!("iperf3 --client {target} --bytes 20M --reverse --json")).await;
        assert!(!said.contains("\"error\""), "{said}");
    }
    let spoofed = |node: &Node| node.dropped().into_iter().find(|(reason, _)| !is_of_load(*reason));
    assert_eq!((spoofed(&a), spoofed(&b)), (None, None));
}

/// What a path that is full brings about, and TCP bears.
fn is_of_load(reason: Reason) -> bool {
    matches!(reason, Reason::Congested | Reason::Incomplete)
}
