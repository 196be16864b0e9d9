//! One network on this node: a bridge in a network namespace of its own, to which machines are plugged.
//!
//! ```text
//! machine's namespace      the network's namespace                    daemon
//!   eth0 ---- veth ------- m-22a24ce4b60d --+-- br0 (the gateway)
//!   eth0 ---- veth ------- m-9e5a743cb40a --+-- fabric ---- TAP ----- Plane ---- other nodes
//! ```
//!
//! Machines of one node reach each other by the bridge alone; it learns nothing: each port has its machine's hardware address,
//! and what is for nobody here goes to the daemon. What a machine may send is in [`rules`], with whom it may speak in [`firewall`]. The namespace has no way to the
//! host. It outlives the daemon, so machines here go on talking to each other while there is none; who comes after opens the
//! same switch again, and reaches the others through a TAP of its own.

mod firewall;
mod links;
mod rules;

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::net::IpAddr;
use std::process::Stdio;
use std::sync::Arc;

use fabric::ids::MachineId;
use fabric::model::Mac;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

pub use self::firewall::{Guarded, Tagged};
use self::links::Links;
use self::rules::{FABRIC, TABLE};
use crate::directory::Network;
use crate::drops::Reason;
use crate::limits::RULES_TIMEOUT;
use crate::netns::Netns;
use crate::plane::Bridge;
use crate::tap::Tap;

/// Name of the bridge.
const BRIDGE: &str = "br0";
/// What names of ports begin with.
const PORT: &str = "m-";

/// Why a switch does not do what it should.
#[derive(Debug, Error)]
pub enum SwitchError {
    /// The kernel refuses.
    #[error("{what}: {source}")]
    Kernel {
        /// What was asked for.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// It refuses an interface, an address or a route.
    #[error("{what}: {source}")]
    Links {
        /// What was asked for.
        what: String,
        /// Why not.
        source: rtnetlink::Error,
    },
    /// An interface that should be there is not.
    #[error("there is no interface {name}")]
    Missing {
        /// Its name.
        name: String,
    },
    /// The rules for what machines may send are not in place.
    #[error("nft: {0}; is the package nftables installed?")]
    Rules(String),
}

fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> SwitchError {
    |source| SwitchError::Kernel { what: what.into(), source }
}

/// A machine's place in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Whose it is.
    pub machine: MachineId,
    /// Its hardware address.
    pub mac: Mac,
    /// Its addresses, without the link-local one.
    pub addresses: Vec<IpAddr>,
}

impl Port {
    /// The name of its interface at the bridge; of 15 bytes at most, as names of interfaces are.
    fn name(&self) -> String {
        name_of(self.machine)
    }
}

fn name_of(machine: MachineId) -> String {
    let [a, b, c, d, e, f, ..] = machine.0;
    format!("{PORT}{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}")
}

/// A network's bridge on this node.
#[derive(Debug)]
pub struct Switch {
    name: String,
    namespace: Netns,
    links: Links,
    tap: Arc<Tap>,
    network: Network,
}

impl Switch {
    /// Makes the switch of a network in the namespace `name`, or goes on with one that is there. Ports that are not among
    /// `ports` are unplugged; those that are stay as they are. Needs a tokio runtime with IO.
    ///
    /// # Errors
    /// See [`SwitchError`]; what there is stays, so that another try goes on with it.
    pub async fn open(name: &str, network: &Network, ports: &[Port]) -> Result<Self, SwitchError> {
        let namespace = Netns::make(name).map_err(kernel(format!("making the network namespace {name}")))?;
        let links = Links::inside(&namespace)?;
        // Before there is anything to judge.
        nft(&namespace, &rules::base()).await?;
        namespace.within(quiet).map_err(kernel("settings of the network namespace"))?;
        if links.index(BRIDGE).await?.is_none() {
            links.make_bridge(BRIDGE, network.gateway()).await?;
        }
        namespace.within(gateway).map_err(kernel("settings of the bridge"))?;
        let addresses = network.subnets.iter().filter_map(|subnet| Some((subnet.gateway()?, subnet.prefix())));
        links.bring_up(BRIDGE, network.mtu, addresses).await?;
        let tap = namespace.within(|| Tap::open(FABRIC)).map_err(kernel("making the TAP device"))?;
        links.plug(FABRIC, BRIDGE, network.mtu, true).await?;
        let switch = Switch { name: name.to_owned(), namespace, links, tap: Arc::new(tap), network: network.clone() };
        let wanted: Vec<String> = ports.iter().map(Port::name).collect();
        for stale in switch.ports().await?.into_iter().filter(|port| !wanted.contains(port)) {
            switch.unplug(&stale).await?;
        }
        Ok(switch)
    }

    /// Plugs a machine in: in the namespace `of_machine` it has the interface `interface` then, with its addresses, and the
    /// gateway as its way out where `is_default`. Who has it already keeps it.
    ///
    /// # Errors
    /// See [`SwitchError`]; the machine may be plugged in by half, and another try does the rest.
    pub async fn attach(
        &self,
        port: &Port,
        of_machine: &Netns,
        interface: &str,
        is_default: bool,
    ) -> Result<(), SwitchError> {
        let name = port.name();
        nft(&self.namespace, &rules::port(&name, port)).await?;
        if self.links.index(&name).await?.is_none() {
            // Named after the machine until it is where no other interface can have its name.
            let end = name.replace(PORT, "e-");
            self.links.make_pair(&name, &end, of_machine).await?;
        }
        let inside = Links::inside(of_machine)?;
        let end = name.replace(PORT, "e-");
        if inside.index(&end).await?.is_some() {
            inside.rename(&end, interface, port.mac).await?;
        }
        of_machine.within(|| no_probing(interface)).map_err(kernel(format!("settings of {interface}")))?;
        let prefix = |ip: IpAddr| Some((ip, self.network.subnet_of(ip)?.prefix()));
        inside.bring_up(interface, self.network.mtu, port.addresses.iter().copied().filter_map(prefix)).await?;
        self.links.plug(&name, BRIDGE, self.network.mtu, false).await?;
        self.links.place(&name, port.mac).await?;
        if is_default {
            let gateways = self.network.subnets.iter().filter_map(|subnet| subnet.gateway());
            inside.route_by(interface, gateways).await?;
        }
        Ok(())
    }

    /// Unplugs a machine; nothing when it is not plugged in.
    ///
    /// # Errors
    /// See [`SwitchError`].
    pub async fn detach(&self, machine: MachineId) -> Result<(), SwitchError> {
        let name = name_of(machine);
        if self.ports().await?.contains(&name) { self.unplug(&name).await } else { Ok(()) }
    }

    async fn unplug(&self, name: &str) -> Result<(), SwitchError> {
        self.links.remove(name).await?;
        nft(&self.namespace, &rules::without(name)).await
    }

    /// Names of ports that there are rules for.
    async fn ports(&self) -> Result<Vec<String>, SwitchError> {
        rules::ports(&self.listing().await?).ok_or_else(|| SwitchError::Rules("its list of chains is none".into()))
    }

    async fn listing(&self) -> Result<Vec<u8>, SwitchError> {
        run_nft(&self.namespace, &["--json", "list", "table", "bridge", "smartnode"], "").await
    }

    /// What was dropped on its way into the bridge, with how often.
    ///
    /// # Errors
    /// When nothing can be learnt of it.
    pub async fn dropped(&self) -> Result<Vec<(Reason, u64)>, SwitchError> {
        rules::counts(&self.listing().await?).ok_or_else(|| SwitchError::Rules(format!("its list of {TABLE} is none")))
    }

    /// Sets which rules hold for machines here, in place of all that held; of the others, no rule does.
    ///
    /// # Errors
    /// When they are not in place: those that were hold on then.
    pub async fn guard(&self, guarded: &[Guarded], tagged: &Tagged) -> Result<(), SwitchError> {
        nft(&self.namespace, &firewall::rules(guarded, tagged)).await
    }

    /// How many packets its firewall has dropped.
    ///
    /// # Errors
    /// When nothing can be learnt of it.
    pub async fn denied(&self) -> Result<u64, SwitchError> {
        let listing = run_nft(&self.namespace, &["--json", "list", "table", "inet", "smartnode"], "").await?;
        rules::packets(&listing, firewall::DENIED).ok_or_else(|| SwitchError::Rules("it counts nothing".into()))
    }

    /// Names of the interfaces in its namespace, in order.
    ///
    /// # Errors
    /// See [`SwitchError`].
    pub async fn interfaces(&self) -> Result<Vec<String>, SwitchError> {
        self.links.names().await
    }

    /// The other end of the bridge's port to the fabric: what is for other nodes is read from it.
    pub fn tap(&self) -> Arc<Tap> {
        self.tap.clone()
    }

    /// Ends the network on this node, with all ports.
    ///
    /// # Errors
    /// See [`SwitchError`].
    pub fn close(self) -> Result<(), SwitchError> {
        Netns::remove(&self.name).map(drop).map_err(kernel(format!("removing the network namespace {}", self.name)))
    }
}

impl Bridge for Switch {
    fn deliver(&self, pieces: &[&[u8]]) {
        let pieces: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        if let Err(error) = self.tap.write(&pieces) {
            tracing::debug!(network = %self.name, reason = %error, "a frame was not taken");
        }
    }
}

/// Interfaces of the namespace have no IPv6 addresses of their own: they are ports.
fn quiet() -> io::Result<()> {
    setting("ipv6/conf/default/disable_ipv6", "1")
}

/// The bridge has those of the gateway, which nobody else may have, so it does not ask.
fn gateway() -> io::Result<()> {
    setting(&format!("ipv6/conf/{BRIDGE}/accept_ra"), "0")?;
    no_probing(BRIDGE)?;
    setting(&format!("ipv6/conf/{BRIDGE}/disable_ipv6"), "0")
}

/// Nobody need ask whether an address is taken: the ledger says that it is not.
fn no_probing(interface: &str) -> io::Result<()> {
    setting(&format!("ipv6/conf/{interface}/accept_dad"), "0")
}

/// Sets what `ip-sysctl.rst` of the kernel describes, in the namespace of the calling thread.
fn setting(name: &str, value: &str) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a setting of the kernel, not a file")]
    let mut file = File::options().write(true).open(format!("/proc/sys/net/{name}"))?;
    file.write_all(value.as_bytes())
}

async fn nft(namespace: &Netns, rules: &str) -> Result<(), SwitchError> {
    run_nft(namespace, &["--file", "-"], rules).await.map(drop)
}

/// Runs `nft` in a namespace and gives what it says.
async fn run_nft(namespace: &Netns, arguments: &[&str], input: &str) -> Result<Vec<u8>, SwitchError> {
    let begin = || {
        let mut command = Command::new("nft");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true).spawn()
    };
    let failed = |error: io::Error| SwitchError::Rules(error.to_string());
    let mut child = namespace.within(begin).map_err(failed)?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let done = timeout(RULES_TIMEOUT, talk).await.map_err(|late| failed(late.into()))?.map_err(failed)?;
    if done.status.success() {
        return Ok(done.stdout);
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(SwitchError::Rules(said.lines().next().unwrap_or("it failed and said nothing").to_owned()))
}

#[cfg(test)]
mod tests;
