//! Who is where: the endpoints of the networks that have machines on this node, derived from placements.
//!
//! Pure. Nothing here is learned from traffic: a network is as a view of the ledger has it, and an older view than the one
//! that is known is refused, so that a copy of a machine that lost its placement cannot take its address back.

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

/// Why a list of endpoints was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refused {
    /// Two have the same address.
    #[error("{address} belongs to two machines, {} and {}", one.short(), other.short())]
    Twice {
        /// The address: the IP address, or the link-local one of the hardware address.
        address: IpAddr,
        /// One of them.
        one: MachineId,
        /// The other one.
        other: MachineId,
    },
    /// No machine may have an address.
    #[error("{address} of machine {} is no machine's in this network", machine.short())]
    Unfit {
        /// The address: the IP address, or the link-local one of the hardware address.
        address: IpAddr,
        /// Whose it was to be.
        machine: MachineId,
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
    /// How new the view of the ledger is that its endpoints are of.
    revision: u64,
    endpoints: BTreeMap<Mac, Endpoint>,
    /// Hardware addresses by address.
    owners: BTreeMap<IpAddr, Mac>,
    nodes: BTreeSet<NodeId>,
}

impl Network {
    /// A network without machines.
    pub fn new(vni: Vni, subnets: Vec<Subnet>, mtu: u16) -> Self {
        let (endpoints, owners, nodes) = Default::default();
        Network { vni, subnets, mtu, revision: 0, endpoints, owners, nodes }
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

    /// Takes in all endpoints as a view of the ledger has them; false, and nothing has changed, when a newer one is known.
    /// Epochs and addresses therefore never go back.
    ///
    /// # Errors
    /// When two have an address in common, or one has an address that no machine may have; nothing has changed then.
    pub fn replace(&mut self, revision: u64, endpoints: Vec<Endpoint>) -> Result<bool, Refused> {
        if revision < self.revision {
            return Ok(false);
        }
        let mut next = Network { revision, ..Network::new(self.vni, self.subnets.clone(), self.mtu) };
        for endpoint in endpoints {
            next.add(endpoint)?;
        }
        *self = next;
        Ok(true)
    }

    fn add(&mut self, endpoint: Endpoint) -> Result<(), Refused> {
        let (mac, machine) = (endpoint.mac, endpoint.machine);
        let own = IpAddr::V6(mac.link_local());
        if !mac.is_unicast() || mac == self.gateway() {
            return Err(Refused::Unfit { address: own, machine });
        }
        let unfit = endpoint.addresses.iter().find(|address| !self.may_be_assigned(**address));
        if let Some(address) = unfit {
            return Err(Refused::Unfit { address: *address, machine });
        }
        for address in endpoint.addresses.iter().copied().chain([own]) {
            if let Some(holder) = self.owners.insert(address, mac) {
                let one = self.endpoints.get(&holder).map_or(machine, |endpoint| endpoint.machine);
                return Err(Refused::Twice { address, one, other: machine });
            }
        }
        self.nodes.insert(endpoint.node);
        self.endpoints.insert(mac, endpoint);
        Ok(())
    }

    /// Whether an address of its subnets may be a machine's: not the first, which names the subnet, nor the gateway's, nor
    /// the last of IPv4, which means all.
    pub fn may_be_assigned(&self, address: IpAddr) -> bool {
        self.subnet_of(address).is_some_and(|subnet| {
            let to_all = address.is_ipv4() && subnet.last() == address;
            subnet.base() != address && !self.is_gateway(address) && !to_all
        })
    }

    /// The endpoint with a hardware address.
    pub fn endpoint(&self, mac: Mac) -> Option<&Endpoint> {
        self.endpoints.get(&mac)
    }

    /// The endpoint with an address, the link-local one of its card, too.
    pub fn owner_of(&self, address: IpAddr) -> Option<&Endpoint> {
        self.endpoints.get(self.owners.get(&address)?)
    }

    /// Every endpoint.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// The nodes that have machines in it.
    pub fn nodes(&self) -> &BTreeSet<NodeId> {
        &self.nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{endpoint, ip, machine, network, node};

    #[test]
    fn a_machine_is_where_the_newest_view_says() {
        let mut network = network();
        let first = endpoint(1, 1, 1);
        assert_eq!(network.replace(5, vec![first.clone(), endpoint(2, 2, 1)]), Ok(true));
        let moved = Endpoint { node: node(2), epoch: 2, ..first.clone() };
        assert_eq!(network.replace(6, vec![moved.clone()]), Ok(true));
        assert_eq!(network.endpoint(first.mac), Some(&moved));
        assert_eq!((network.nodes(), network.endpoints().count()), (&BTreeSet::from([node(2)]), 1));
        assert_eq!(network.owner_of(ip("10.0.0.12")), None, "the other one has gone");
        assert_eq!(network.replace(5, vec![first.clone()]), Ok(false));
        assert_eq!(network.endpoint(first.mac), Some(&moved));
    }

    #[test]
    fn an_address_has_one_owner() {
        let mut network = network();
        network.replace(1, vec![endpoint(1, 1, 1)]).unwrap();
        let before = network.clone();
        let mut refused = |other: Endpoint| {
            let refused = network.replace(2, vec![endpoint(1, 1, 1), other]);
            assert_eq!(network, before);
            refused.unwrap_err()
        };
        let (one, other) = (machine(1), machine(2));
        let address = ip("10.0.0.11");
        let thief = Endpoint { addresses: vec![ip("10.0.0.99"), address], ..endpoint(2, 2, 1) };
        assert_eq!(refused(thief), Refused::Twice { address, one, other });
        let double = Endpoint { mac: endpoint(1, 1, 1).mac, ..endpoint(2, 2, 9) };
        assert!(matches!(refused(double), Refused::Twice { .. }));
        // They may change places at once.
        let swapped = |n, address: &str| Endpoint { addresses: vec![ip(address)], ..endpoint(n, 1, 1) };
        network.replace(2, vec![swapped(1, "10.0.0.12"), swapped(2, "10.0.0.11")]).unwrap();
        network.replace(3, vec![swapped(1, "10.0.0.11"), swapped(2, "10.0.0.12")]).unwrap();
        assert_eq!(network.owner_of(address).map(|owner| owner.machine), Some(one));
    }

    #[test]
    fn no_machine_has_an_address_of_the_network_itself() {
        let mut network = network();
        let gateway = network.gateway();
        for text in ["10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.1", "0.0.0.0", "::", "fd00::", "fd00::1", "fe80::1"]
        {
            let address = ip(text);
            let unfit = Endpoint { addresses: vec![address], ..endpoint(1, 1, 1) };
            assert_eq!(network.replace(1, vec![unfit]), Err(Refused::Unfit { address, machine: machine(1) }));
        }
        for mac in [gateway, Mac::BROADCAST] {
            let unfit = Endpoint { mac, ..endpoint(1, 1, 1) };
            assert!(matches!(network.replace(1, vec![unfit]), Err(Refused::Unfit { .. })), "{mac}");
        }
    }

    #[test]
    fn link_local_addresses_lead_to_their_cards() {
        let mut network = network();
        let known = endpoint(1, 1, 1);
        network.replace(1, vec![known.clone()]).unwrap();
        let own = IpAddr::V6(known.mac.link_local());
        assert_eq!(network.owner_of(own), Some(&known));
        assert!(known.owns(own) && !known.owns(ip("fe80::1")));
        assert_eq!(network.owner_of(ip("fe80::1")), None);
        assert!(network.is_gateway(IpAddr::V6(network.gateway().link_local())));
        assert!(network.is_gateway(ip("10.0.0.1")) && network.is_gateway(ip("fd00::1")));
        assert!(!network.is_gateway(ip("10.0.0.11")));
    }
}
