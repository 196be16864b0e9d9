//! Carries frames: from the machines of this node to other nodes, and from these to the machines here.
//!
//! [`Plane`] is between two seams: a [`Bridge`] for each network, through which frames reach the machines here, and
//! [`Paths`], datagrams to other nodes. What becomes of a frame is decided in [`crate::forward`]. Every peer has a lane:
//! short queues, and a task that cuts their frames into datagrams. Networks get equal shares of a lane. A full queue makes
//! whoever reads a network's frames wait, once, and with it the kernel's queue of the device; while it stays full, frames
//! for that peer are dropped, and those for others are not held up.

mod fair;
mod health;
mod lane;
mod rate;
mod receive;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use fabric::ids::NodeId;
use fabric::model::Vni;
use fabric::rpc::BoxFuture;
use fabric::seams::Clock;
use fabric::transport::Transport;
use fabric::transport::data::{DataPath, DataService, DataTaker};

use self::lane::{Lane, Outgoing};
use self::rate::Bucket;
use crate::directory::{Endpoint, Network, Refused};
use crate::drops::{Drops, Reason};
use crate::forward::{self, Ingress};
use crate::limits::{BROADCAST_BURST, BROADCASTS_PER_SECOND, FRAME_BYTES_MAX, LANE_CONNECT};
use crate::tap::Tap;
use crate::vnet::Vnet;

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

/// A network that has machines on this node, as of one view of the ledger.
struct Port {
    network: Network,
    bridge: Arc<dyn Bridge>,
    /// The same from view to view.
    counts: Arc<Counts>,
}

struct Counts {
    drops: Mutex<Drops>,
    broadcasts: Mutex<Bucket>,
}

impl Port {
    fn count(&self, reason: Reason) {
        self.counts.drops.lock().unwrap_or_else(PoisonError::into_inner).count(reason);
    }

    /// Whether the machines here may send one more frame to all.
    fn may_send_to_all(&self, now: Duration) -> bool {
        self.counts.broadcasts.lock().unwrap_or_else(PoisonError::into_inner).take(now)
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
    /// Weak: whoever carries datagrams owns this, as its taker.
    paths: OnceLock<Weak<dyn Paths>>,
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
    pub fn connect(&self, paths: Weak<dyn Paths>) {
        let _first = self.0.paths.set(paths);
    }

    /// Takes in a network that has machines here, with all its endpoints as a view of the ledger has them; `false`, and
    /// nothing has changed, when a newer view is known. See [`Network::replace`].
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub fn set(
        &self,
        network: &Network,
        bridge: Arc<dyn Bridge>,
        revision: u64,
        endpoints: Vec<Endpoint>,
    ) -> Result<bool, Refused> {
        let mut ports = self.0.ports.write().unwrap_or_else(PoisonError::into_inner);
        let known = ports.get(&network.vni);
        let mut next = known.map_or_else(|| network.clone(), |port| port.network.clone());
        (next.subnets, next.mtu) = (network.subnets.clone(), network.mtu);
        let newer = next.replace(revision, endpoints)?;
        if newer {
            let counts = known.map_or_else(Counts::new, |port| port.counts.clone());
            ports.insert(next.vni, Arc::new(Port { network: next, bridge, counts }));
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
            Some(vni) => self.port(vni).map(|port| of(&port.counts.drops)).unwrap_or_default(),
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

    /// Carries what the machines here send into a network, until its device is gone.
    ///
    /// # Errors
    /// Why nothing can be read from the device any more.
    pub async fn carry(&self, vni: Vni, tap: &Tap) -> io::Result<Infallible> {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        loop {
            let length = tap.read(&mut buffer).await?;
            self.sent(vni, Bytes::copy_from_slice(&buffer[..length])).await;
        }
    }

    /// A machine here has sent a frame into its network: a [`Vnet`] and what follows it. Waits while the way to its target
    /// is full.
    pub async fn sent(&self, vni: Vni, bytes: Bytes) {
        let Some(port) = self.port(vni) else { return };
        let Some((_, frame)) = Vnet::parse(&bytes) else { return port.count(Reason::Malformed) };
        match forward::ingress(&port.network, self.0.me, frame) {
            Ingress::Here => {}
            Ingress::Drop(reason) => port.count(reason),
            Ingress::Answer(answer) => port.tell(&answer),
            Ingress::To(node) => {
                let Some(frame) = Outgoing::of(&port, bytes) else { return };
                if !lane::push(self, node, frame).await {
                    port.count(Reason::Congested);
                }
            }
            Ingress::All(nodes) => {
                if !port.may_send_to_all(self.0.clock.boottime()) {
                    return port.count(Reason::Flood);
                }
                for node in nodes {
                    let Some(frame) = Outgoing::of(&port, bytes.clone()) else { return };
                    if !lane::push_now(self, node, frame) {
                        port.count(Reason::Congested);
                    }
                }
            }
        }
    }
}

impl Counts {
    fn new() -> Arc<Self> {
        let broadcasts = Mutex::new(Bucket::new(BROADCASTS_PER_SECOND, BROADCAST_BURST));
        Arc::new(Counts { drops: Mutex::default(), broadcasts })
    }
}

impl DataService for Plane {
    fn taker(&self, peer: NodeId) -> Box<dyn DataTaker> {
        Box::new(receive::Taker::new(self.clone(), peer))
    }
}

#[cfg(test)]
mod tests;
