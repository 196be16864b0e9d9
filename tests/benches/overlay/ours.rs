//! smartnode's own: two nodes' data planes in this process, each on a host of its own.

use std::net::IpAddr;
use std::sync::{Arc, RwLock};

use anyhow::Result;
use fabric::identity::{CaKey, Credentials, NodeKey, Trust};
use fabric::ids::MachineId;
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::{Mac, Role, Vni};
use fabric::seams::Clock;
use fabric::seams::real::{KernelClock, KernelEntropy, seams};
use fabric::transport::{Handlers, Transport, TransportConfig};
use netvirt::directory::{Endpoint, Network};
use netvirt::netns::Netns;
use netvirt::plane::{Paths, Plane};
use netvirt::switch::{Port, Switch};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{ADDRESSES, Underlay, Way, Workers};

/// Port of the nodes.
const PORT: u16 = 7420;
/// Bytes of a packet inside, where the link has 1500: what is left of it beside IPv6, UDP, QUIC and our own header.
const MTU: u16 = 1_350;

/// Two nodes with a machine each; all gone when dropped.
pub struct Nodes {
    runtime: Option<Runtime>,
    namespaces: Vec<String>,
    kept: Vec<Node>,
}

struct Node {
    transport: Transport,
    plane: Plane,
    _paths: Arc<dyn Paths>,
    _directory: TempDir,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.kept.clear();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        for name in &self.namespaces {
            let _ = Netns::remove(name);
        }
    }
}

fn node(ca: &CaKey, host: &str, address: &str) -> Result<Node> {
    let directory = tempfile::tempdir()?;
    let seams = seams(directory.path())?;
    let key = NodeKey::generate(&KernelEntropy);
    let certificate = ca.issue(&key.public_key(), Role::Worker, KernelClock.wall(), CERTIFICATE_TTL);
    let credentials = Credentials::new(key, certificate, ca.cert_der().to_vec())?;
    let trust = Arc::new(RwLock::new(Trust::new([ca.cert_der().to_vec()])?));
    let plane = Plane::new(credentials.id(), seams.clock.clone());
    let handlers = Handlers { data: Some(Arc::new(plane.clone())), ..Handlers::default() };
    let config = TransportConfig { listen: format!("{address}:{PORT}").parse()? };
    let begin = || {
        Transport::start(&config, &seams, &credentials, trust, handlers)
            .map_err(|error| std::io::Error::other(error.to_string()))
    };
    let transport = Netns::make(host)?.within(begin)?;
    let paths: Arc<dyn Paths> = Arc::new(transport.clone());
    plane.connect(Arc::downgrade(&paths));
    Ok(Node { transport, plane, _paths: paths, _directory: directory })
}

fn endpoint(n: u8, at: &Node, vni: Vni) -> Endpoint {
    let machine = MachineId([n; 16]);
    let addresses = vec![IpAddr::from([10, 41, 0, 10 + n])];
    Endpoint { machine, mac: Mac::of(machine, vni), addresses, node: at.transport.id(), epoch: 1, previous: None }
}

/// Both nodes, and a machine on each.
pub fn way(underlay: &Underlay) -> Result<Way> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ca = CaKey::generate(&KernelEntropy, KernelClock.wall());
    let vni = Vni::new(41).expect("a number of a network");
    let network = Network::new(vni, vec!["10.41.0.0/24".parse()?], MTU);
    let mut nodes = Nodes { runtime: None, namespaces: Vec::new(), kept: Vec::new() };
    let mut machines = Vec::new();
    let made: Result<()> = runtime.block_on(async {
        for (host, address) in underlay.names.iter().zip(ADDRESSES) {
            nodes.kept.push(node(&ca, host, address)?);
        }
        let [a, b] = &nodes.kept[..] else { unreachable!("two hosts") };
        a.transport.learn(b.transport.id(), format!("{}:{PORT}", ADDRESSES[1]).parse()?);
        b.transport.learn(a.transport.id(), format!("{}:{PORT}", ADDRESSES[0]).parse()?);
        let all = [endpoint(1, a, vni), endpoint(2, b, vni)];
        for ((node, own), host) in nodes.kept.iter().zip(&all).zip(&underlay.names) {
            let [switch_name, machine] = ["n", "m"].map(|kind| format!("{host}-{kind}"));
            nodes.namespaces.extend([switch_name.clone(), machine.clone()]);
            let port = Port { machine: own.machine, mac: own.mac, addresses: own.addresses.clone() };
            let switch = Arc::new(Switch::open(&switch_name, &network, std::slice::from_ref(&port)).await?);
            switch.attach(&port, &Netns::make(&machine)?, "eth0", true).await?;
            node.plane.set(&network, switch.clone(), 1, all.to_vec())?;
            let (plane, tap) = (node.plane.clone(), switch.tap());
            tokio::spawn(async move { drop(plane.carry(vni, &tap).await) });
            machines.push(machine);
        }
        Ok(())
    });
    nodes.runtime = Some(runtime);
    made?;
    let [client, server] = [0, 1].map(|at| machines[at].clone());
    let target = "10.41.0.12".to_owned();
    Ok(Way { name: "smartnode", client, server, target, workers: Workers::Own { _nodes: Box::new(nodes) } })
}
