//! Networks, endpoints and frames for tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::ids::{MachineId, NodeId};
use fabric::model::{Mac, Vni};
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, IpProtocol, Ipv4Packet, Ipv6Packet, NdiscRepr,
    RawHardwareAddress, checksum,
};

use crate::answers;
use crate::directory::{Endpoint, Network};

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn machine(n: u8) -> MachineId {
    MachineId([n; 16])
}

pub fn node(n: u8) -> NodeId {
    NodeId([n; 32])
}

/// A network of both kinds of addresses, without machines.
pub fn network() -> Network {
    let subnets = ["10.0.0.0/24", "fd00::/64"].map(|text| text.parse().unwrap());
    Network::new(Vni::new(7).unwrap(), subnets.to_vec(), 1_400)
}

/// Machine `n` at `10.0.0.(10 + n)` and `fd00::(10 + n)`, hexadecimal there.
pub fn endpoint(n: u8, at: u8, epoch: u64) -> Endpoint {
    let addresses = vec![ip(&format!("10.0.0.{}", 10 + n)), ip(&format!("fd00::{:x}", 10 + n))];
    let mac = Mac::of(machine(n), Vni::new(7).unwrap());
    Endpoint { machine: machine(n), mac, addresses, node: node(at), epoch, previous: None }
}

/// The network with machine 1 here on node 1, 2 there, and 3 on node 1 as well.
pub fn populated() -> Network {
    with([endpoint(1, 1, 1), endpoint(2, 2, 1), endpoint(3, 1, 1)])
}

/// The network with these machines.
pub fn with(endpoints: impl Into<Vec<Endpoint>>) -> Network {
    let mut network = network();
    network.replace(1, endpoints.into()).unwrap();
    network
}

fn v4(endpoint: &Endpoint) -> Ipv4Addr {
    let IpAddr::V4(address) = endpoint.addresses[0] else { unreachable!("the first one is of IPv4") };
    address
}

fn v6(endpoint: &Endpoint) -> Ipv6Addr {
    let IpAddr::V6(address) = endpoint.addresses[1] else { unreachable!("the second one is of IPv6") };
    address
}

/// An address of each kind, with the hardware address.
pub fn cards(endpoint: &Endpoint) -> ((Mac, Ipv4Addr), (Mac, Ipv6Addr)) {
    ((endpoint.mac, v4(endpoint)), (endpoint.mac, v6(endpoint)))
}

/// A datagram in a frame, between ports.
pub fn udp(to: (Mac, IpAddr), from: (Mac, IpAddr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let fill = |bytes: &mut [u8]| {
        bytes[..2].copy_from_slice(&ports.0.to_be_bytes());
        bytes[2..4].copy_from_slice(&ports.1.to_be_bytes());
        bytes[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
        bytes[8..].copy_from_slice(payload);
    };
    match (to.1, from.1) {
        (IpAddr::V4(target), IpAddr::V4(source)) => {
            answers::ipv4((to.0, target), (from.0, source), IpProtocol::Udp, 8 + payload.len(), fill)
        }
        (IpAddr::V6(target), IpAddr::V6(source)) => {
            let mut whole = answers::icmpv6((to.0, target), (from.0, source), 8 + payload.len(), fill);
            whole[20] = IpProtocol::Udp.into();
            whole
        }
        _ => unreachable!("both are of one kind"),
    }
}

/// The same between two machines, by their first addresses.
pub fn data(from: &Endpoint, to: &Endpoint) -> Vec<u8> {
    udp((to.mac, to.addresses[0]), (from.mac, from.addresses[0]), (1_000, 2_000), b"hello")
}

/// An ARP packet.
pub fn arp(asks: bool, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut whole = answers::arp((Mac::BROADCAST, target), sender.1, sender.0);
    whole[21] = if asks { 1 } else { 2 };
    whole
}

/// "Who has `target`?" by neighbour discovery.
pub fn solicit(from: (Mac, Ipv6Addr), target: Ipv6Addr) -> Vec<u8> {
    let lladdr = (!from.1.is_unspecified()).then(|| RawHardwareAddress::from_bytes(&from.0.0));
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let to = (Mac([0x33, 0x33, 0xff, a, b, c]), group);
    answers::discovery(to, from, NdiscRepr::NeighborSolicit { target_addr: target, lladdr })
}

/// "Who is the router?"
pub fn router_solicit(from: (Mac, Ipv6Addr)) -> Vec<u8> {
    let to = (Mac([0x33, 0x33, 0, 0, 0, 2]), "ff02::2".parse().unwrap());
    answers::discovery(to, from, NdiscRepr::RouterSolicit { lladdr: None })
}

/// A message of ICMPv6 of this kind, behind the option that asks routers to look (RFC 2711).
pub fn groups(from: (Mac, Ipv6Addr), kind: u8) -> Vec<u8> {
    let to = (Mac([0x33, 0x33, 0, 0, 0, 0x16]), "ff02::16".parse().unwrap());
    let mut whole = answers::icmpv6(to, from, 32, |bytes| {
        bytes[..8].copy_from_slice(&[IpProtocol::Icmpv6.into(), 0, 5, 2, 0, 0, 1, 0]);
        bytes[8] = kind;
    });
    (whole[20], whole[21]) = (IpProtocol::HopByHop.into(), 1);
    whole
}

/// What a DHCP client says.
pub fn dhcp(from: &Endpoint, kind: DhcpMessageType, wanted: Option<Ipv4Addr>) -> Vec<u8> {
    let asked = DhcpRepr {
        message_type: kind,
        transaction_id: 0x1234_5678,
        secs: 0,
        client_hardware_address: EthernetAddress(from.mac.0),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: wanted,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut message = vec![0; asked.buffer_len()];
    asked.emit(&mut DhcpPacket::new_unchecked(&mut message)).unwrap();
    udp((Mac::BROADCAST, ip("255.255.255.255")), (from.mac, ip("0.0.0.0")), (68, 67), &message)
}

/// A train of TCP segments of `segment` bytes that carries `carried`, as a TAP device gives it.
pub fn train(v6: bool, carried: &[u8], segment: u16) -> Vec<u8> {
    let ((mac, a4), (_, a6)) = cards(&endpoint(1, 1, 1));
    let ((to, b4), (_, b6)) = cards(&endpoint(2, 2, 1));
    let fill = |bytes: &mut [u8]| {
        bytes[..4].copy_from_slice(&[0x10, 0, 0x20, 0]);
        bytes[4..8].copy_from_slice(&0xffff_ff00u32.to_be_bytes());
        // Header of 32 bytes with options; CWR, PSH and ACK.
        bytes[12..14].copy_from_slice(&[0x80, 0x98]);
        bytes[20..32].copy_from_slice(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes[32..].copy_from_slice(carried);
    };
    let bytes = 32 + carried.len();
    let mut inner = if v6 {
        let mut whole = answers::icmpv6((to, b6), (mac, a6), bytes, fill);
        whole[20] = IpProtocol::Tcp.into();
        whole
    } else {
        answers::ipv4((to, b4), (mac, a4), IpProtocol::Tcp, bytes, fill)
    };
    let (kind, at) = if v6 { (4, 54) } else { (1, 34) };
    let [low, high] = segment.to_le_bytes();
    // A kernel says how much it had in one piece, which may be more than the headers.
    let mut frame = vec![1, kind, 200, 0, low, high, at, 0, 16, 0];
    // As a kernel leaves it: the sum of the pseudo header.
    let sum = pseudo(&inner);
    inner[usize::from(at) + 16..usize::from(at) + 18].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(&inner);
    frame
}

/// Sum of the pseudo header of a TCP packet in a frame.
pub fn pseudo(inner: &[u8]) -> u16 {
    if inner[14] >> 4 == 4 {
        let packet = Ipv4Packet::new_checked(&inner[14..]).unwrap();
        let bytes = packet.payload().len() as u32;
        checksum::pseudo_header_v4(&packet.src_addr(), &packet.dst_addr(), IpProtocol::Tcp, bytes)
    } else {
        let packet = Ipv6Packet::new_checked(&inner[14..]).unwrap();
        let bytes = packet.payload().len() as u32;
        checksum::pseudo_header_v6(&packet.src_addr(), &packet.dst_addr(), IpProtocol::Tcp, bytes)
    }
}
