//! Who is where: the endpoints of the networks that have machines on this node, derived from placements.
//!
//! Pure. Nothing here is learned from traffic. An endpoint of a lower epoch than one that was known is refused, so that a
//! copy of a machine that lost its placement cannot take its address back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fabric::ids::{MachineId, NodeId};
use fabric::model::{Mac, Subnet, Vni};
use thiserror::Error;

/// A machine's interface in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whose it is.
    pub machine: MachineId,
    /// Its hardware address.
    pub mac: Mac,
    /// Its addresses, without the link-local one.
    pub addresses: Vec<IpAddr>,
    /// The node that owns the machine.
    pub node: NodeId,
    /// The epoch of its placement there.
    pub epoch: u64,
    /// The node that owned it before, while the move from there is not long over: what was under way to that node is sent
    /// after.
    pub previous: Option<NodeId>,
}

impl Endpoint {
    /// Whether it may send from an address.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || address == IpAddr::V6(self.mac.link_local())
    }
}

/// Why an endpoint was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// It is of an earlier placement than the one that is known.
    #[error("epoch {offered} of machine {machine:?} is older than epoch {known}")]
    Older {
        /// The machine.
        machine: MachineId,
        /// The epoch that was offered.
        offered: u64,
        /// The one that is known.
        known: u64,
    },
    /// Another machine has an address of it.
    #[error("{address} belongs to machine {holder:?}")]
    Taken {
        /// The address: an IP address or a hardware address.
        address: String,
        /// Who has it.
        holder: MachineId,
    },
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its number.
    pub vni: Vni,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// Bytes of an IP packet in it, at most.
    pub mtu: u16,
    endpoints: BTreeMap<Mac, Endpoint>,
    /// Hardware addresses by address.
    owners: BTreeMap<IpAddr, Mac>,
}

impl Network {
    /// A network without machines.
    pub fn new(vni: Vni, subnets: Vec<Subnet>, mtu: u16) -> Self {
        Network { vni, subnets, mtu, endpoints: BTreeMap::new(), owners: BTreeMap::new() }
    }

    /// The hardware address of its gateway.
    pub fn gateway(&self) -> Mac {
        Mac::of_gateway(self.vni)
    }

    /// Whether an address is the gateway's.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        address == IpAddr::V6(self.gateway().link_local())
            || self.subnets.iter().any(|subnet| subnet.gateway() == Some(address))
    }

    /// The subnet in which an address lies.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.contains(address))
    }

    /// Takes in an endpoint, in place of an earlier one of its machine.
    ///
    /// # Errors
    /// When a later one is known, or an address is another machine's; nothing has changed then.
    pub fn put(&mut self, endpoint: Endpoint) -> Result<(), Refused> {
        if let Some(known) = self.endpoints.get(&endpoint.mac) {
            let machine = known.machine;
            if machine != endpoint.machine {
                return Err(Refused::Taken { address: endpoint.mac.to_string(), holder: machine });
            }
            if known.epoch > endpoint.epoch {
                return Err(Refused::Older { machine, offered: endpoint.epoch, known: known.epoch });
            }
        }
        let taken = endpoint.addresses.iter().find_map(|address| {
            let holder = self.endpoints.get(self.owners.get(address)?)?;
            (holder.machine != endpoint.machine).then_some((address, holder.machine))
        });
        if let Some((address, holder)) = taken {
            return Err(Refused::Taken { address: address.to_string(), holder });
        }
        self.remove(endpoint.mac);
        self.owners.extend(endpoint.addresses.iter().map(|address| (*address, endpoint.mac)));
        self.endpoints.insert(endpoint.mac, endpoint);
        Ok(())
    }

    /// Takes an endpoint away: its machine is in the network no more.
    pub fn remove(&mut self, mac: Mac) -> Option<Endpoint> {
        let endpoint = self.endpoints.remove(&mac)?;
        for address in &endpoint.addresses {
            self.owners.remove(address);
        }
        Some(endpoint)
    }

    /// The endpoint with a hardware address.
    pub fn endpoint(&self, mac: Mac) -> Option<&Endpoint> {
        self.endpoints.get(&mac)
    }

    /// The endpoint with an address, a link-local one, too.
    pub fn owner_of(&self, address: IpAddr) -> Option<&Endpoint> {
        let mac = self.owners.get(&address).copied().or_else(|| link_local_mac(address))?;
        self.endpoints.get(&mac).filter(|endpoint| endpoint.owns(address))
    }

    /// Every endpoint.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// The nodes that have machines in it.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        self.endpoints.values().map(|endpoint| endpoint.node).collect()
    }
}

/// The hardware address that a link-local address was made from (RFC 4291, appendix A), if it was.
fn link_local_mac(address: IpAddr) -> Option<Mac> {
    let IpAddr::V6(address) = address else { return None };
    let [.., a, b, c, 0xff, 0xfe, d, e, f] = address.octets() else { return None };
    let mac = Mac([a ^ 2, b, c, d, e, f]);
    (mac.link_local() == address).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{endpoint, ip, machine, network, node};

    #[test]
    fn a_machine_is_where_its_latest_placement_says() {
        let mut network = network();
        let first = endpoint(1, 1, 1);
        network.put(first.clone()).unwrap();
        let moved = Endpoint { node: node(2), epoch: 2, ..first.clone() };
        network.put(moved.clone()).unwrap();
        assert_eq!(network.endpoint(first.mac), Some(&moved));
        let late = network.put(first.clone());
        assert_eq!(late, Err(Refused::Older { machine: machine(1), offered: 1, known: 2 }));
        assert_eq!(network.nodes(), BTreeSet::from([node(2)]));
        assert_eq!(network.remove(first.mac), Some(moved));
        assert_eq!((network.owner_of(ip("10.0.0.11")), network.endpoints().count()), (None, 0));
    }

    #[test]
    fn an_address_has_one_owner() {
        let mut network = network();
        network.put(endpoint(1, 1, 1)).unwrap();
        let before = network.clone();
        let thief = Endpoint { addresses: vec![ip("10.0.0.99"), ip("10.0.0.11")], ..endpoint(2, 2, 1) };
        assert!(matches!(network.put(thief), Err(Refused::Taken { holder, .. }) if holder == machine(1)));
        let double = Endpoint { mac: endpoint(1, 1, 1).mac, ..endpoint(2, 2, 9) };
        assert!(matches!(network.put(double), Err(Refused::Taken { holder, .. }) if holder == machine(1)));
        assert_eq!(network, before);
        // Another address of the same machine frees the one before.
        network.put(Endpoint { addresses: vec![ip("10.0.0.12")], epoch: 2, ..endpoint(1, 1, 1) }).unwrap();
        assert_eq!(network.owner_of(ip("10.0.0.11")), None);
        network.put(endpoint(2, 2, 1)).unwrap_err();
    }

    #[test]
    fn link_local_addresses_lead_to_their_cards() {
        let mut network = network();
        let known = endpoint(1, 1, 1);
        network.put(known.clone()).unwrap();
        let own = IpAddr::V6(known.mac.link_local());
        assert_eq!(network.owner_of(own), Some(&known));
        assert!(known.owns(own) && !known.owns(ip("fe80::1")));
        assert_eq!(network.owner_of(ip("fe80::1")), None);
        assert!(network.is_gateway(IpAddr::V6(network.gateway().link_local())));
        assert!(network.is_gateway(ip("10.0.0.1")) && network.is_gateway(ip("fd00::1")));
        assert!(!network.is_gateway(ip("10.0.0.11")));
    }
}
