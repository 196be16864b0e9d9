//! Published ports: a listener of the owner's host for each, while the machine is up.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use fabric::ids::MachineId;
use fabric::model::{MachineRecord, Publish};
use netvirt::proxy::{Proxy, ProxyConfig, ProxyError};

use super::{Local, Phase};
use crate::node::context::Context;

/// The listeners of this node.
pub struct Published {
    context: Arc<Context>,
    open: BTreeMap<(MachineId, u16, Option<IpAddr>), (Publish, Proxy)>,
}

impl Published {
    /// None yet.
    pub fn new(context: Arc<Context>) -> Self {
        Published { context, open: BTreeMap::new() }
    }

    /// Opens what is missing and closes what is no longer wanted. A port that another program of the host has is logged
    /// and tried again at the next look.
    pub fn follow(&mut self, records: &BTreeMap<MachineId, MachineRecord>, locals: &BTreeMap<MachineId, Local>) {
        let mut wanted = BTreeMap::new();
        for (id, record) in records {
            let mine = record.placement.is_some_and(|placement| placement.node == self.context.me);
            let up = locals.get(id).is_some_and(|local| matches!(local.phase, Phase::Up | Phase::Frozen));
            if mine && up {
                wanted.extend(record.spec.publish.iter().map(|port| ((*id, port.host_port, port.ip), *port)));
            }
        }
        self.open.retain(|key, (port, _)| wanted.get(key) == Some(port));
        for (key, port) in wanted {
            if self.open.contains_key(&key) {
                continue;
            }
            match self.open_one(key.0, port) {
                Ok(proxy) => drop(self.open.insert(key, (port, proxy))),
                Err(error) => {
                    tracing::warn!(machine = %key.0.short(), port = port.host_port, reason = %error, "cannot publish");
                }
            }
        }
    }

    fn open_one(&self, machine: MachineId, port: Publish) -> Result<Proxy, ProxyError> {
        let runtime = self.context.runtime.clone();
        let listen = SocketAddr::new(port.ip.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), port.host_port);
        let connect = move |port| {
            let runtime = runtime.clone();
            async move { runtime.connect(machine, port).await.map_err(std::io::Error::other) }
        };
        Proxy::start(ProxyConfig { listen, port: port.machine_port }, connect)
    }
}
