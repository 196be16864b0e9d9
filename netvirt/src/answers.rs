//! What the network answers in place of others: who has an address, which addresses a machine has, who the gateway is, and
//! that a packet is too large. Each gives a whole frame for the machine that asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::model::Mac;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
    Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr,
    NdiscRouterFlags, RawHardwareAddress, UdpPacket, UdpRepr, checksum,
};

use crate::directory::{Endpoint, Network};
use crate::frame::HEADER_BYTES;
use crate::limits::{DHCP_LEASE, ROUTER_LIFETIME};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The frame that carries it is the first of its kind: nothing was routed.
const HOP_LIMIT: u8 = 255;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
/// What an ICMP error quotes at most, so that it fits the least packet of its kind with its own headers (RFC 1812, 4.3.2.3;
/// RFC 4443, 2.4).
const QUOTE_V4_MAX: usize = 576 - IPV4_BYTES - ICMP_BYTES;
const QUOTE_V6_MAX: usize = 1_280 - IPV6_BYTES - ICMP_BYTES;
const ICMP_BYTES: usize = 8;
/// DHCP option 26: bytes of a packet (RFC 2132, 5.1).
const OPTION_MTU: u8 = 26;

fn address(mac: Mac) -> EthernetAddress {
    EthernetAddress(mac.0)
}

/// A frame with room for so many bytes behind its header.
pub(crate) fn frame(target: Mac, source: Mac, ethertype: EthernetProtocol, bytes: usize) -> Vec<u8> {
    let mut whole = vec![0; HEADER_BYTES + bytes];
    let header = EthernetRepr { src_addr: address(source), dst_addr: address(target), ethertype };
    header.emit(&mut EthernetFrame::new_unchecked(&mut whole));
    whole
}

/// An IPv4 packet in a frame; `fill` writes what it carries.
pub(crate) fn ipv4(
    to: (Mac, Ipv4Addr),
    from: (Mac, Ipv4Addr),
    next: IpProtocol,
    bytes: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut whole = frame(to.0, from.0, EthernetProtocol::Ipv4, IPV4_BYTES + bytes);
    let header =
        Ipv4Repr { src_addr: from.1, dst_addr: to.1, next_header: next, payload_len: bytes, hop_limit: HOP_LIMIT };
    let mut packet = Ipv4Packet::new_unchecked(&mut whole[HEADER_BYTES..]);
    header.emit(&mut packet, &ChecksumCapabilities::default());
    fill(packet.payload_mut());
    whole
}

/// An ICMPv6 message in a frame.
pub(crate) fn icmpv6(
    to: (Mac, Ipv6Addr),
    from: (Mac, Ipv6Addr),
    bytes: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut whole = frame(to.0, from.0, EthernetProtocol::Ipv6, IPV6_BYTES + bytes);
    let header = Ipv6Repr {
        src_addr: from.1,
        dst_addr: to.1,
        next_header: IpProtocol::Icmpv6,
        payload_len: bytes,
        hop_limit: HOP_LIMIT,
    };
    let mut packet = Ipv6Packet::new_unchecked(&mut whole[HEADER_BYTES..]);
    header.emit(&mut packet);
    fill(packet.payload_mut());
    whole
}

/// "`ip` is at `mac`", to whom asked by ARP.
pub fn arp(asker: (Mac, Ipv4Addr), ip: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: address(mac),
        source_protocol_addr: ip,
        target_hardware_addr: address(asker.0),
        target_protocol_addr: asker.1,
    };
    let mut whole = frame(asker.0, mac, EthernetProtocol::Arp, answer.buffer_len());
    answer.emit(&mut ArpPacket::new_unchecked(&mut whole[HEADER_BYTES..]));
    whole
}

pub(crate) fn discovery(to: (Mac, Ipv6Addr), from: (Mac, Ipv6Addr), answer: NdiscRepr<'_>) -> Vec<u8> {
    let answer = Icmpv6Repr::Ndisc(answer);
    icmpv6(to, from, answer.buffer_len(), |bytes| {
        let mut packet = Icmpv6Packet::new_unchecked(bytes);
        answer.emit(&from.1, &to.1, &mut packet, &ChecksumCapabilities::default());
    })
}

/// "`ip` is at `mac`", to whom asked by neighbour discovery; to all when it asked whether it may take the address for itself
/// (RFC 4862, 5.4).
pub fn neighbor(asker: (Mac, Ipv6Addr), ip: Ipv6Addr, mac: Mac, is_router: bool) -> Vec<u8> {
    let probes = asker.1.is_unspecified();
    let mut flags = NdiscNeighborFlags::OVERRIDE;
    flags.set(NdiscNeighborFlags::SOLICITED, !probes);
    flags.set(NdiscNeighborFlags::ROUTER, is_router);
    let lladdr = Some(RawHardwareAddress::from_bytes(&mac.0));
    let to = (asker.0, if probes { ALL_NODES } else { asker.1 });
    discovery(to, (mac, ip), NdiscRepr::NeighborAdvert { flags, target_addr: ip, lladdr })
}

/// "I am the gateway, and these are the addresses here", to whom asked for routers (RFC 4861, 4.2). None where the network has
/// no IPv6.
pub fn router(network: &Network, asker: (Mac, Ipv6Addr)) -> Option<Vec<u8>> {
    let subnet = network.subnets.iter().find(|subnet| subnet.base().is_ipv6())?;
    let IpAddr::V6(prefix) = subnet.base() else { return None };
    let gateway = network.gateway();
    let lifetime = Duration::from_secs(ROUTER_LIFETIME.as_secs());
    // Addresses are assigned; a card's own one in a /64 is what is assigned.
    let mut flags = NdiscPrefixInfoFlags::ON_LINK;
    flags.set(NdiscPrefixInfoFlags::ADDRCONF, subnet.prefix() == 64);
    let answer = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: lifetime,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(RawHardwareAddress::from_bytes(&gateway.0)),
        mtu: Some(network.mtu.into()),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: subnet.prefix(),
            flags,
            valid_lifetime: lifetime,
            preferred_lifetime: lifetime,
            prefix,
        }),
    };
    let to = (asker.0, if asker.1.is_unspecified() { ALL_NODES } else { asker.1 });
    Some(discovery(to, (gateway, gateway.link_local()), answer))
}

/// What a DHCP client is answered: the addresses that its machine was assigned, and never others (RFC 2131). None where it
/// wants no answer, the network has no IPv4, or the message is none.
pub fn dhcp(network: &Network, endpoint: &Endpoint, message: &[u8]) -> Option<Vec<u8>> {
    let message = DhcpPacket::new_checked(message).ok()?;
    let asked = DhcpRepr::parse(&message).ok()?;
    if asked.client_hardware_address != address(endpoint.mac) || !asked.relay_agent_ip.is_unspecified() {
        return None;
    }
    let (ip, subnet) = endpoint.addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some((*v4, network.subnet_of(*address)?)),
        IpAddr::V6(_) => None,
    })?;
    let IpAddr::V4(gateway) = subnet.gateway()? else { return None };
    let wanted = asked.requested_ip.unwrap_or(asked.client_ip);
    let message_type = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if asked.server_identifier.is_some_and(|server| server != gateway) => return None,
        DhcpMessageType::Request if wanted != ip => DhcpMessageType::Nak,
        DhcpMessageType::Request | DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    let informs = asked.message_type == DhcpMessageType::Inform;
    let granted = message_type != DhcpMessageType::Nak;
    let mtu = network.mtu.to_be_bytes();
    let more = [DhcpOption { kind: OPTION_MTU, data: &mtu }];
    let mask = u32::MAX.checked_shl(32 - u32::from(subnet.prefix())).unwrap_or(0);
    let seconds = (granted && !informs).then_some(DHCP_LEASE.as_secs() as u32);
    let answer = DhcpRepr {
        message_type,
        transaction_id: asked.transaction_id,
        secs: 0,
        client_hardware_address: asked.client_hardware_address,
        client_ip: if informs { asked.client_ip } else { Ipv4Addr::UNSPECIFIED },
        your_ip: if granted && !informs { ip } else { Ipv4Addr::UNSPECIFIED },
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: granted.then_some(gateway),
        subnet_mask: granted.then_some(mask.into()),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: asked.broadcast,
        requested_ip: None,
        client_identifier: asked.client_identifier,
        server_identifier: Some(gateway),
        parameter_request_list: None,
        dns_servers: granted.then(|| std::iter::once(gateway).collect()),
        max_size: None,
        lease_duration: seconds,
        renew_duration: seconds.map(|whole| whole / 2),
        rebind_duration: seconds.map(|whole| whole / 8 * 7),
        additional_options: if granted { &more } else { &[] },
    };
    // Its card takes no packet for an address that it does not have yet, unless it is for all (RFC 2131, 4.1).
    let has = granted && !asked.broadcast && !asked.client_ip.is_unspecified();
    let to = if has { (endpoint.mac, asked.client_ip) } else { (endpoint.mac, Ipv4Addr::BROADCAST) };
    Some(server_says(to, (network.gateway(), gateway), &answer))
}

fn server_says(to: (Mac, Ipv4Addr), from: (Mac, Ipv4Addr), answer: &DhcpRepr<'_>) -> Vec<u8> {
    let bytes = answer.buffer_len();
    let ports = UdpRepr { src_port: 67, dst_port: 68 };
    ipv4(to, from, IpProtocol::Udp, UDP_BYTES + bytes, |udp| {
        let fill = |bytes: &mut [u8]| {
            // It has as much room as it asked for.
            let _ = answer.emit(&mut DhcpPacket::new_unchecked(bytes));
        };
        let (source, target) = (from.1.into(), to.1.into());
        let caps = ChecksumCapabilities::default();
        ports.emit(&mut UdpPacket::new_unchecked(udp), &source, &target, bytes, fill, &caps);
    })
}

/// "Your packet is larger than the `mtu` bytes that get through", to who sent it (RFC 1191, RFC 8201). None for what no error
/// may answer, and where the network has no gateway of the kind to say so.
pub fn too_big(network: &Network, sender: Mac, packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let gateway = network.gateway();
    match packet.first()? >> 4 {
        4 => {
            let about = Ipv4Packet::new_checked(packet).ok()?;
            let subnet = network.subnets.iter().find(|subnet| subnet.base().is_ipv4())?;
            let (IpAddr::V4(from), to) = (subnet.gateway()?, about.src_addr()) else { return None };
            if to.is_unspecified() || about.dst_addr().is_multicast() || about.dst_addr().is_broadcast() {
                return None;
            }
            let quote = &packet[..packet.len().min(QUOTE_V4_MAX)];
            let whole = ipv4((sender, to), (gateway, from), IpProtocol::Icmp, ICMP_BYTES + quote.len(), |icmp| {
                let [high, low] = mtu.to_be_bytes();
                // Destination unreachable, fragmentation needed.
                icmp[..ICMP_BYTES].copy_from_slice(&[3, 4, 0, 0, 0, 0, high, low]);
                icmp[ICMP_BYTES..].copy_from_slice(quote);
                let sum = !checksum::data(icmp);
                icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            });
            Some(whole)
        }
        6 => {
            let about = Ipv6Packet::new_checked(packet).ok()?;
            let (from, to) = (gateway.link_local(), about.src_addr());
            if to.is_unspecified() || to.is_multicast() {
                return None;
            }
            let quote = &packet[..packet.len().min(QUOTE_V6_MAX)];
            let whole = icmpv6((sender, to), (gateway, from), ICMP_BYTES + quote.len(), |icmp| {
                icmp[..4].copy_from_slice(&[2, 0, 0, 0]);
                icmp[4..ICMP_BYTES].copy_from_slice(&u32::from(mtu).to_be_bytes());
                icmp[ICMP_BYTES..].copy_from_slice(quote);
                let pseudo = checksum::pseudo_header_v6(&from, &to, IpProtocol::Icmpv6, icmp.len() as u32);
                let sum = !checksum::combine(&[pseudo, checksum::data(icmp)]);
                icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            });
            Some(whole)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
