//! Published ports: a listener of the owner's host for each, while the machine is up.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use fabric::events::Happening;
use fabric::ids::MachineId;
use fabric::model::{MachineRecord, Publish};
use netvirt::proxy::{Proxy, ProxyConfig, ProxyError};

use super::Local;
use crate::node::context::Context;
use crate::node::failures::words;
use crate::runtime::Runtime;

/// An open port: dropping it closes it.
pub type Open = Box<dyn Any + Send>;

/// The seam of published ports: who opens them on this host.
pub trait Ports: Send + Sync {
    /// Opens a port of this host that leads to one of a machine.
    ///
    /// # Errors
    /// When it is another program's, or none that this node may have.
    fn open(&self, machine: MachineId, config: ProxyConfig) -> Result<Open, ProxyError>;
}

/// The ports of the real host.
pub struct HostPorts(pub Arc<dyn Runtime>);

impl Ports for HostPorts {
    fn open(&self, machine: MachineId, config: ProxyConfig) -> Result<Open, ProxyError> {
        let runtime = self.0.clone();
        let connect = move |port| {
            let runtime = runtime.clone();
            async move { runtime.connect(machine, port).await.map_err(std::io::Error::other) }
        };
        Ok(Box::new(Proxy::start(config, connect)?))
    }
}

/// The listeners of this node.
pub struct Published {
    context: Arc<Context>,
    open: BTreeMap<Key, (Publish, Open)>,
}

/// A port of a machine: the host's, at one address or all.
type Key = (MachineId, u16, Option<IpAddr>);

impl Published {
    /// None yet.
    pub fn new(context: Arc<Context>) -> Self {
        Published { context, open: BTreeMap::new() }
    }

    /// Opens what is missing and closes what is no longer wanted. A port that another program of the host has is told, by
    /// an event and in the machine's status, and tried again at the next look.
    pub fn follow(&mut self, records: &BTreeMap<MachineId, MachineRecord>, locals: &BTreeMap<MachineId, Local>) {
        let mut wanted = BTreeMap::new();
        for (id, record) in records {
            let mine = record.placement.is_some_and(|placement| placement.node == self.context.me);
            let up = locals.get(id).is_some_and(|local| local.runs());
            if mine && up {
                wanted.extend(record.spec.publish.iter().map(|port| ((*id, port.host_port, port.ip), *port)));
            }
        }
        self.open.retain(|key, (port, _)| wanted.get(key) == Some(port));
        let mut failed: BTreeMap<MachineId, String> = BTreeMap::new();
        for (key, port) in wanted {
            if self.open.contains_key(&key) {
                continue;
            }
            match self.open_one(key.0, port) {
                Ok(proxy) => drop(self.open.insert(key, (port, proxy))),
                Err(error) => {
                    let text = words(&error);
                    tracing::debug!(machine = %key.0.short(), port = port.host_port, reason = %text, "cannot publish");
                    let why = failed.entry(key.0).or_insert_with(|| "not reachable from outside".into());
                    why.push_str(&format!("; port {}: {text}", port.host_port));
                }
            }
        }
        self.tell(records, failed);
    }

    /// Tells what has changed of the ports that could not be opened.
    fn tell(&self, records: &BTreeMap<MachineId, MachineRecord>, failed: BTreeMap<MachineId, String>) {
        let known = self.context.unpublished.borrow().clone();
        if failed == known {
            return;
        }
        for (id, why) in failed.iter().filter(|(id, why)| known.get(*id) != Some(*why)) {
            let name = records.get(id).map_or_else(|| id.short(), |record| record.name.to_string());
            let message = format!("{name} on {}: {why}", self.context.name);
            tracing::warn!("{message}");
            self.context.events.record(Happening { kind: "port-taken", subject: name, message, data: vec![] });
        }
        self.context.unpublished.send_replace(failed);
    }

    fn open_one(&self, machine: MachineId, port: Publish) -> Result<Open, ProxyError> {
        let listen = SocketAddr::new(port.ip.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), port.host_port);
        self.context.ports.open(machine, ProxyConfig { listen, port: port.machine_port })
    }
}
