//! What the network answers in place of others: who has an address, which addresses a machine has, who the gateway is, and
//! that a packet is too large. Each gives a whole frame for the machine that asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::model::Mac;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpFlags, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
    Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr,
    NdiscRouterFlags, RawHardwareAddress, UdpPacket, UdpRepr, checksum,
};

use crate::directory::{Endpoint, Network};
use crate::frame::{HEADER_BYTES, IPV4_BYTES, IPV6_BYTES, IPV6_MTU_MIN};
use crate::limits::{DHCP_LEASE, ROUTER_LIFETIME};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The frame that carries it is the first of its kind: nothing was routed.
const HOP_LIMIT: u8 = 255;
const UDP_BYTES: usize = 8;
/// What an ICMP error quotes at most, so that it fits the least packet of its kind with its own headers (RFC 1812, 4.3.2.3;
/// RFC 4443, 2.4).
const QUOTE_V4_MAX: usize = 576 - IPV4_BYTES - ICMP_BYTES;
const QUOTE_V6_MAX: usize = IPV6_MTU_MIN - IPV6_BYTES - ICMP_BYTES;
const ICMP_BYTES: usize = 8;
/// Messages of ICMP that are no errors: echo, time stamps, router discovery, and the answers.
const ICMP_QUESTIONS: [u8; 6] = [0, 8, 9, 10, 13, 14];
/// Least bytes of a message of BOOTP, and so of DHCP.
const BOOTP_BYTES_MIN: usize = 300;
/// DHCP options (RFC 2132): bytes of a packet, the address that is wanted, type of the message, server, client.
const OPTION_MTU: u8 = 26;
const OPTION_WANTED: u8 = 50;
const OPTION_TYPE: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_CLIENT: u8 = 61;

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
pub fn neighbor(asker: (Mac, Ipv6Addr), ip: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let probes = asker.1.is_unspecified();
    let mut flags = NdiscNeighborFlags::OVERRIDE;
    flags.set(NdiscNeighborFlags::SOLICITED, !probes);
    let lladdr = Some(RawHardwareAddress::from_bytes(&mac.0));
    let to = (asker.0, if probes { ALL_NODES } else { asker.1 });
    discovery(to, (mac, ip), NdiscRepr::NeighborAdvert { flags, target_addr: ip, lladdr })
}

/// "I am the gateway, and these are the addresses here", to a machine that asked for routers from `source`, and from time to
/// time unasked, which is to all (RFC 4861, 4.2 and 6.2.4). None where the network has no IPv6.
pub fn router(network: &Network, endpoint: &Endpoint, source: Ipv6Addr) -> Option<Vec<u8>> {
    let (subnet, prefix) = network.subnets.iter().find_map(|subnet| match subnet.base() {
        IpAddr::V6(base) => Some((subnet, base)),
        IpAddr::V4(_) => None,
    })?;
    let gateway = network.gateway();
    // Addresses are assigned: a machine makes itself the one that goes with its card only where that is its own.
    let mut flags = NdiscPrefixInfoFlags::ON_LINK;
    let makes = endpoint.mac.address_in(prefix);
    flags.set(NdiscPrefixInfoFlags::ADDRCONF, subnet.prefix() == 64 && endpoint.addresses.contains(&makes.into()));
    let (always, lifetime) = (Duration::from_secs(u32::MAX.into()), Duration::from_secs(ROUTER_LIFETIME.as_secs()));
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
            valid_lifetime: always,
            preferred_lifetime: always,
            prefix,
        }),
    };
    let to = (endpoint.mac, if source.is_unspecified() { ALL_NODES } else { source });
    Some(discovery(to, (gateway, gateway.link_local()), answer))
}

/// What a DHCP client asks for, as far as the answer depends on it.
struct Asked<'a> {
    kind: DhcpMessageType,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    /// What the client calls itself; it is told so again (RFC 6842).
    client: Option<DhcpOption<'a>>,
}

fn asked<'a>(message: &'a DhcpPacket<&'a [u8]>) -> Option<Asked<'a>> {
    let address = |data: &[u8]| <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
    let (mut kind, mut wanted, mut server, mut client) = (None, None, None, None);
    for option in message.options() {
        match (option.kind, option.data) {
            (OPTION_TYPE, [byte]) => kind = Some(DhcpMessageType::from(*byte)),
            (OPTION_WANTED, data) => wanted = address(data),
            (OPTION_SERVER, data) => server = address(data),
            (OPTION_CLIENT, _) => client = Some(option),
            _ => {}
        }
    }
    Some(Asked { kind: kind?, wanted, server, client })
}

/// What a DHCP client is answered: the addresses that its machine was assigned, and never others (RFC 2131). None where it
/// wants no answer, the network has no IPv4, or the message is none.
pub fn dhcp(network: &Network, endpoint: &Endpoint, message: &[u8]) -> Option<Vec<u8>> {
    let message = DhcpPacket::new_checked(message).ok()?;
    if message.client_hardware_address() != address(endpoint.mac) || !message.relay_agent_ip().is_unspecified() {
        return None;
    }
    let (ip, subnet) = endpoint.addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some((*v4, network.subnet_of(*address)?)),
        IpAddr::V6(_) => None,
    })?;
    let IpAddr::V4(gateway) = subnet.gateway()? else { return None };
    let (asked, has) = (asked(&message)?, message.client_ip());
    let message_type = match asked.kind {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if asked.server.is_some_and(|server| server != gateway) => return None,
        DhcpMessageType::Request if asked.wanted.unwrap_or(has) != ip => DhcpMessageType::Nak,
        DhcpMessageType::Request | DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    let informs = asked.kind == DhcpMessageType::Inform;
    let granted = message_type != DhcpMessageType::Nak;
    let (mtu, mask) = (network.mtu.to_be_bytes(), u32::MAX.checked_shl(32 - u32::from(subnet.prefix())).unwrap_or(0));
    let mtu = granted.then_some(DhcpOption { kind: OPTION_MTU, data: &mtu });
    let more: Vec<DhcpOption<'_>> = asked.client.into_iter().chain(mtu).collect();
    let answer = DhcpRepr {
        message_type,
        transaction_id: message.transaction_id(),
        secs: 0,
        client_hardware_address: address(endpoint.mac),
        client_ip: if informs { has } else { Ipv4Addr::UNSPECIFIED },
        your_ip: if granted && !informs { ip } else { Ipv4Addr::UNSPECIFIED },
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: granted.then_some(gateway),
        subnet_mask: granted.then_some(mask.into()),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: message.flags().contains(DhcpFlags::BROADCAST),
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(gateway),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: (granted && !informs).then_some(DHCP_LEASE.as_secs() as u32),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &more,
    };
    // Its card takes no packet for an address that it does not have yet, unless it is for all (RFC 2131, 4.1).
    let to = if granted && !has.is_unspecified() { has } else { Ipv4Addr::BROADCAST };
    Some(server_says((endpoint.mac, to), (network.gateway(), gateway), &answer))
}

fn server_says(to: (Mac, Ipv4Addr), from: (Mac, Ipv4Addr), answer: &DhcpRepr<'_>) -> Vec<u8> {
    // Some relays and clients take no less (RFC 1542, 2.1).
    let bytes = answer.buffer_len().max(BOOTP_BYTES_MIN);
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
/// may answer (RFC 1122, 3.2.2; RFC 4443, 2.4), and where the network has no gateway of the kind to say so.
pub fn too_big(network: &Network, sender: Mac, packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    match packet.first()? >> 4 {
        4 => too_big_v4(network, sender, packet, mtu),
        6 => too_big_v6(network, sender, packet, mtu),
        _ => None,
    }
}

fn too_big_v4(network: &Network, sender: Mac, packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let about = Ipv4Packet::new_checked(packet).ok()?;
    let (to, target) = (about.src_addr(), about.dst_addr());
    let subnet = network.subnet_of(to.into())?;
    let IpAddr::V4(from) = subnet.gateway()? else { return None };
    let to_many = target.is_multicast() || target.is_broadcast() || subnet.last() == IpAddr::V4(target);
    let kind = about.payload().first().copied();
    let is_error = about.next_header() == IpProtocol::Icmp && kind.is_none_or(|kind| !ICMP_QUESTIONS.contains(&kind));
    if to_many || about.frag_offset() != 0 || is_error {
        return None;
    }
    let quote = &packet[..packet.len().min(QUOTE_V4_MAX)];
    Some(ipv4((sender, to), (network.gateway(), from), IpProtocol::Icmp, ICMP_BYTES + quote.len(), |icmp| {
        let [high, low] = mtu.to_be_bytes();
        // Destination unreachable, fragmentation needed.
        icmp[..ICMP_BYTES].copy_from_slice(&[3, 4, 0, 0, 0, 0, high, low]);
        icmp[ICMP_BYTES..].copy_from_slice(quote);
        let sum = !checksum::data(icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    }))
}

fn too_big_v6(network: &Network, sender: Mac, packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let about = Ipv6Packet::new_checked(packet).ok()?;
    let (gateway, to) = (network.gateway(), about.src_addr());
    let kind = about.payload().first().copied();
    // Below 128 are errors; 137 redirects. To many it may be told: that is how multicast finds its size.
    let is_error = about.next_header() == IpProtocol::Icmpv6 && kind.is_none_or(|kind| kind < 128 || kind == 137);
    if to.is_unspecified() || to.is_multicast() || is_error {
        return None;
    }
    let from = gateway.link_local();
    let quote = &packet[..packet.len().min(QUOTE_V6_MAX)];
    Some(icmpv6((sender, to), (gateway, from), ICMP_BYTES + quote.len(), |icmp| {
        icmp[..4].copy_from_slice(&[2, 0, 0, 0]);
        let mtu = u32::from(mtu).max(IPV6_MTU_MIN as u32); // less is not heeded
        icmp[4..ICMP_BYTES].copy_from_slice(&mtu.to_be_bytes());
        icmp[ICMP_BYTES..].copy_from_slice(quote);
        let pseudo = checksum::pseudo_header_v6(&from, &to, IpProtocol::Icmpv6, icmp.len() as u32);
        let sum = !checksum::combine(&[pseudo, checksum::data(icmp)]);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    }))
}

#[cfg(test)]
mod tests;
