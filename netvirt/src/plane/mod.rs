//! Carries frames: from the machines of this node to other nodes, and from these to the machines here.
//!
//! [`Plane`] is between two seams: a [`Bridge`] for each network, through which frames reach the machines here, and
//! [`Paths`], datagrams to other nodes. What becomes of a frame is decided in [`crate::forward`]. Every peer has a lane:
//! short queues, and a task that cuts their frames into datagrams. A full queue makes the sender wait; only when it stays
//! full are frames dropped. Networks get equal shares of a lane.

mod fair;
mod health;
mod lane;
mod rate;
mod receive;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use fabric::ids::NodeId;
use fabric::model::{Mac, Vni};
use fabric::rpc::BoxFuture;
use fabric::seams::Clock;
use fabric::transport::Transport;
use fabric::transport::data::{DataPath, DataService, DataTaker};

use self::lane::{Lane, Outgoing};
use self::rate::Bucket;
use crate::directory::{Endpoint, Network, Refused};
use crate::drops::{Drops, Reason};
use crate::forward::{self, Ingress};
use crate::limits::{BROADCAST_BURST, BROADCASTS_PER_SECOND, LANE_CONNECT};
use crate::vnet::{VNET_BYTES, Vnet};

/// How frames reach the machines of one network on this node.
pub trait Bridge: Send + Sync {
    /// Hands over a frame in pieces, the first with its [`Vnet`]. Must not wait; what cannot be taken is dropped.
    fn deliver(&self, pieces: &[&[u8]]);
}

/// Connections with other nodes.
pub trait Paths: Send + Sync {
    /// The data connection with a node, or a new one; the error is for people.
    fn path(&self, to: NodeId) -> BoxFuture<Result<DataPath, String>>;
}

impl Paths for Transport {
    fn path(&self, to: NodeId) -> BoxFuture<Result<DataPath, String>> {
        let transport = self.clone();
        Box::pin(async move { transport.data(to, LANE_CONNECT).await.map_err(|error| error.to_string()) })
    }
}

/// A network that has machines on this node.
struct Port {
    network: RwLock<Arc<Network>>,
    bridge: Arc<dyn Bridge>,
    drops: Mutex<Drops>,
    broadcasts: Mutex<Bucket>,
}

impl Port {
    fn network(&self) -> Arc<Network> {
        self.network.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, reason: Reason) {
        self.drops.lock().unwrap_or_else(PoisonError::into_inner).count(reason);
    }

    /// A frame of the network's own to a machine here.
    fn tell(&self, frame: &[u8]) {
        self.bridge.deliver(&[&Vnet::default().to_bytes(), frame]);
    }
}

struct Inner {
    me: NodeId,
    clock: Arc<dyn Clock>,
    ports: RwLock<BTreeMap<Vni, Arc<Port>>>,
    lanes: Mutex<BTreeMap<NodeId, Lane>>,
    paths: std::sync::OnceLock<Arc<dyn Paths>>,
    /// Of frames of networks that have no machine here.
    strays: Mutex<Drops>,
}

/// The overlay networks of a node. Clones share it.
#[derive(Clone)]
pub struct Plane(Arc<Inner>);

impl fmt::Debug for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plane({})", self.0.me.short())
    }
}

impl Plane {
    /// That of node `me`, without networks. It takes what comes from others as a [`DataService`], and reaches them once it
    /// has [`Plane::connect`].
    pub fn new(me: NodeId, clock: Arc<dyn Clock>) -> Self {
        let (ports, lanes, paths, strays) = Default::default();
        Plane(Arc::new(Inner { me, clock, ports, lanes, paths, strays }))
    }

    /// How it reaches others from now on. The first one counts.
    pub fn connect(&self, paths: Arc<dyn Paths>) {
        let _first = self.0.paths.set(paths);
    }

    /// Takes in a network that has machines here, or its endpoints of a newer view; see [`Network::replace`].
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub fn set(
        &self,
        network: Network,
        bridge: Arc<dyn Bridge>,
        revision: u64,
        endpoints: Vec<Endpoint>,
    ) -> Result<bool, Refused> {
        let known = self.port(network.vni);
        let mut next = known.as_ref().map_or(network, |port| (*port.network()).clone());
        let newer = next.replace(revision, endpoints)?;
        match known {
            Some(port) => *port.network.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next),
            None => {
                let broadcasts = Mutex::new(Bucket::new(BROADCASTS_PER_SECOND, BROADCAST_BURST));
                let vni = next.vni;
                let port = Port { network: RwLock::new(Arc::new(next)), bridge, drops: Mutex::default(), broadcasts };
                self.0.ports.write().unwrap_or_else(PoisonError::into_inner).insert(vni, Arc::new(port));
            }
        }
        Ok(newer)
    }

    /// The network has no machine here any more.
    pub fn remove(&self, vni: Vni) {
        self.0.ports.write().unwrap_or_else(PoisonError::into_inner).remove(&vni);
    }

    /// What was dropped in a network here, or of networks that are not here.
    pub fn drops(&self, vni: Option<Vni>) -> Drops {
        let of = |drops: &Mutex<Drops>| drops.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match vni {
            None => of(&self.0.strays),
            Some(vni) => self.port(vni).map(|port| of(&port.drops)).unwrap_or_default(),
        }
    }

    fn stray(&self, reason: Reason) {
        self.0.strays.lock().unwrap_or_else(PoisonError::into_inner).count(reason);
    }

    fn port(&self, vni: Vni) -> Option<Arc<Port>> {
        self.0.ports.read().unwrap_or_else(PoisonError::into_inner).get(&vni).cloned()
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Lane>> {
        self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A machine here has sent a frame into its network: a [`Vnet`] and what follows it. Waits while the way to its target
    /// is full.
    pub async fn sent(&self, vni: Vni, bytes: Bytes) {
        let Some(port) = self.port(vni) else { return };
        let network = port.network();
        let Some((_, frame)) = Vnet::parse(&bytes) else { return port.count(Reason::Malformed) };
        match forward::ingress(&network, self.0.me, frame) {
            Ingress::Here => {}
            Ingress::Drop(reason) => port.count(reason),
            Ingress::Answer(answer) => port.tell(&answer),
            Ingress::To(node) => self.carry(&port, &network, &[node], bytes).await,
            Ingress::All(nodes) => {
                let now = self.0.clock.boottime();
                if port.broadcasts.lock().unwrap_or_else(PoisonError::into_inner).take(now) {
                    self.carry(&port, &network, &nodes, bytes).await;
                } else {
                    port.count(Reason::Flood);
                }
            }
        }
    }

    async fn carry(&self, port: &Arc<Port>, network: &Network, nodes: &[NodeId], bytes: Bytes) {
        // The source was judged: it is a machine's.
        let source = bytes.get(VNET_BYTES + 6..VNET_BYTES + 12).and_then(|mac| Some(Mac(mac.try_into().ok()?)));
        let Some(sender) = source.and_then(|mac| network.endpoint(mac)) else { return };
        for node in nodes {
            let frame = Outgoing { port: port.clone(), epoch: sender.epoch, forwarded: false, bytes: bytes.clone() };
            if !lane::push(self, *node, network.vni, frame).await {
                port.count(Reason::Congested);
            }
        }
    }
}

impl DataService for Plane {
    fn taker(&self, peer: NodeId) -> Box<dyn DataTaker> {
        Box::new(receive::Taker::new(self.clone(), peer))
    }
}

#[cfg(test)]
mod tests;
