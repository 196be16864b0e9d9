//! What a frame says, as far as its way and its sender's right to it depend on it. Every length is checked; nothing is copied.
//!
//! Checksums are not looked at: between a machine and its node they are often left to the card that is not there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::model::Mac;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv6Packet, IpProtocol,
    Ipv4Packet, Ipv6FragmentHeader, Ipv6Packet, NdiscRepr, RawHardwareAddress, UdpPacket,
};
use thiserror::Error;

use crate::limits::EXTENSIONS_MAX;

/// Bytes of an Ethernet header.
pub const HEADER_BYTES: usize = 14;
/// Bytes of a header of IPv4 without options.
pub(crate) const IPV4_BYTES: usize = 20;
/// Bytes of a header of IPv6.
pub(crate) const IPV6_BYTES: usize = 40;
/// Bytes of a packet that every link carries (RFC 8200, 5).
pub(crate) const IPV6_MTU_MIN: usize = 1_280;
/// Tags of virtual LANs (IEEE 802.1Q and 802.1ad).
const TAGS: [u16; 2] = [0x8100, 0x88a8];
const BOOTP_SERVER: u16 = 67;
const BOOTP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;

/// A frame whose lengths do not fit each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a frame is cut short, or a length in it is wrong")]
pub struct Malformed;

impl From<smoltcp::wire::Error> for Malformed {
    fn from(_: smoltcp::wire::Error) -> Self {
        Malformed
    }
}

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Whom it is for.
    pub target: Mac,
    /// Who says to have sent it.
    pub source: Mac,
    /// What it carries.
    pub packet: Packet<'a>,
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// ARP for IPv4 over Ethernet (RFC 826).
    Arp(Arp),
    /// IPv4 or IPv6.
    Ip(Ip<'a>),
    /// A frame of a virtual LAN inside the network, which there is none.
    Tagged,
    /// Something else.
    Other(u16),
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// A question; otherwise an answer.
    pub asks: bool,
    /// The sender's hardware address.
    pub sender: Mac,
    /// The sender's address; unspecified in a probe (RFC 5227).
    pub sender_ip: Ipv4Addr,
    /// The address in question.
    pub target_ip: Ipv4Addr,
}

/// An IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip<'a> {
    /// From where.
    pub source: IpAddr,
    /// Where to.
    pub target: IpAddr,
    /// The network may not cut it.
    pub dont_fragment: bool,
    /// What it is about.
    pub message: Message<'a>,
}

/// What an IP packet is about, where the network has a part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A question of a DHCPv4 client: the message without its UDP header.
    DhcpAsks(&'a [u8]),
    /// The answer of a DHCP server of either kind, which the network alone may give.
    DhcpAnswers,
    /// IPv6 neighbour discovery (RFC 4861).
    Discovery(Discovery),
    /// Who wants which multicast: IGMP or MLD.
    Groups,
    /// TCP, UDP and all others.
    Data,
}

/// A message of neighbour discovery. A hardware address in it is the sender's or the target's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// Who is the router?
    RouterSolicit {
        /// Who asks.
        own: Option<Mac>,
    },
    /// I am the router, or: take another one. The network alone may say so.
    RouterSpeaks,
    /// Who has this address?
    Solicit {
        /// The address in question.
        target: Ipv6Addr,
        /// Who asks.
        own: Option<Mac>,
    },
    /// I have this address.
    Advertise {
        /// The address.
        target: Ipv6Addr,
        /// Who has it.
        own: Option<Mac>,
    },
}

fn mac(address: EthernetAddress) -> Mac {
    Mac(address.0)
}

fn own(address: Option<RawHardwareAddress>) -> Result<Option<Mac>, Malformed> {
    let Some(address) = address else { return Ok(None) };
    address.as_bytes().try_into().map(|bytes| Some(Mac(bytes))).map_err(|_| Malformed)
}

impl<'a> Frame<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        Self::parse_head(bytes, bytes.len())
    }

    /// Reads a frame of `length` bytes that begins with `head`: all of it, or as much as came in one piece.
    ///
    /// # Errors
    /// When a length does not fit, or `head` ends before what a decision needs.
    pub fn parse_head(head: &'a [u8], length: usize) -> Result<Self, Malformed> {
        let frame = EthernetFrame::new_checked(head)?;
        let (packet, length) = (frame.payload(), length.checked_sub(HEADER_BYTES).ok_or(Malformed)?);
        let packet = match frame.ethertype() {
            EthernetProtocol::Arp => Packet::Arp(arp(packet)?),
            EthernetProtocol::Ipv4 => Packet::Ip(ipv4(packet, length)?),
            EthernetProtocol::Ipv6 => Packet::Ip(ipv6(packet, length)?),
            EthernetProtocol::Unknown(tag) if TAGS.contains(&tag) => Packet::Tagged,
            EthernetProtocol::Unknown(other) => Packet::Other(other),
        };
        Ok(Frame { target: mac(frame.dst_addr()), source: mac(frame.src_addr()), packet })
    }
}

fn arp(bytes: &[u8]) -> Result<Arp, Malformed> {
    let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&ArpPacket::new_checked(bytes)?)?
    else {
        return Err(Malformed);
    };
    let asks = match operation {
        ArpOperation::Request => true,
        ArpOperation::Reply => false,
        ArpOperation::Unknown(_) => return Err(Malformed),
    };
    Ok(Arp {
        asks,
        sender: mac(source_hardware_addr),
        sender_ip: source_protocol_addr,
        target_ip: target_protocol_addr,
    })
}

/// Where what a packet carries begins, and of which protocol it is: behind the headers that are IP's own.
struct Carried<'a> {
    protocol: IpProtocol,
    /// Bytes of the packet before it.
    at: usize,
    /// As much of it as is at hand.
    bytes: &'a [u8],
    /// All of it is at hand.
    all: bool,
    /// It is the first part of a packet that was cut, or says so.
    fragment: bool,
}

/// None for the later part of a packet that was cut: it has no header of its own, and goes where the first part went.
fn carried_v4(packet: &[u8], length: usize) -> Result<Option<Carried<'_>>, Malformed> {
    if packet.len() < IPV4_BYTES {
        return Err(Malformed);
    }
    let header = Ipv4Packet::new_unchecked(packet);
    let (begin, end) = (usize::from(header.header_len()), usize::from(header.total_len()));
    if header.version() != 4 || begin < IPV4_BYTES || begin > end || end > length {
        return Err(Malformed);
    }
    let bytes = packet.get(begin..end.min(packet.len())).ok_or(Malformed)?;
    let (all, fragment) = (end <= packet.len(), header.more_frags());
    Ok((header.frag_offset() == 0).then(|| Carried { protocol: header.next_header(), at: begin, bytes, all, fragment }))
}

/// As [`carried_v4`]. A chain of headers that cannot be followed to its end is refused: a router or a server could hide in it
/// (RFC 7113).
fn carried_v6(packet: &[u8], length: usize) -> Result<Option<Carried<'_>>, Malformed> {
    if packet.len() < IPV6_BYTES {
        return Err(Malformed);
    }
    let header = Ipv6Packet::new_unchecked(packet);
    let end = header.total_len();
    if header.version() != 6 || end > length {
        return Err(Malformed);
    }
    let at_hand = &packet[..end.min(packet.len())];
    let (mut protocol, mut at, mut fragment) = (header.next_header(), IPV6_BYTES, false);
    for _ in 0..=EXTENSIONS_MAX {
        let &[next, length, ref rest @ ..] = &at_hand[at..] else { break };
        let skip = match protocol {
            IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts => 8 + 8 * usize::from(length),
            IpProtocol::IpSecAh => 8 + 4 * usize::from(length), // in words, less two (RFC 4302, 2.2)
            IpProtocol::Ipv6Frag => {
                if Ipv6FragmentHeader::new_checked(rest)?.frag_offset() != 0 {
                    return Ok(None);
                }
                fragment = true;
                8
            }
            _ => break,
        };
        (protocol, at) = (next.into(), at + skip);
        if at > at_hand.len() {
            return Err(Malformed);
        }
    }
    match protocol {
        IpProtocol::HopByHop
        | IpProtocol::Ipv6Route
        | IpProtocol::Ipv6Opts
        | IpProtocol::IpSecAh
        | IpProtocol::Ipv6Frag => Err(Malformed),
        _ => Ok(Some(Carried { protocol, at, bytes: &at_hand[at..], all: end <= packet.len(), fragment })),
    }
}

/// How long the frame is that begins with `head`, by the word of the IP packet in it; none when it is none.
pub fn length(head: &[u8]) -> Option<usize> {
    let packet = head.get(HEADER_BYTES..)?;
    let bytes = match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_BYTES => usize::from(Ipv4Packet::new_unchecked(packet).total_len()),
        6 if packet.len() >= IPV6_BYTES => Ipv6Packet::new_unchecked(packet).total_len(),
        _ => return None,
    };
    Some(HEADER_BYTES + bytes)
}

/// Where the header of TCP or UDP begins in the frame that begins with `head`, and which of the two it is; none for others,
/// and for packets that were cut.
pub fn transport(head: &[u8], length: usize) -> Option<(usize, IpProtocol)> {
    let frame = EthernetFrame::new_checked(head).ok()?;
    let (packet, length) = (frame.payload(), length.checked_sub(HEADER_BYTES)?);
    let carried = match frame.ethertype() {
        EthernetProtocol::Ipv4 => carried_v4(packet, length),
        EthernetProtocol::Ipv6 => carried_v6(packet, length),
        _ => return None,
    };
    let carried = carried.ok()??;
    let known = matches!(carried.protocol, IpProtocol::Tcp | IpProtocol::Udp) && !carried.fragment;
    known.then_some((HEADER_BYTES + carried.at, carried.protocol))
}

fn ipv4(packet: &[u8], length: usize) -> Result<Ip<'_>, Malformed> {
    let message = match carried_v4(packet, length)? {
        Some(carried) if carried.protocol == IpProtocol::Udp => udp_v4(&carried)?,
        Some(carried) if carried.protocol == IpProtocol::Igmp => Message::Groups,
        _ => Message::Data,
    };
    let header = Ipv4Packet::new_unchecked(packet);
    let (source, target) = (header.src_addr().into(), header.dst_addr().into());
    Ok(Ip { source, target, dont_fragment: header.dont_frag(), message })
}

/// The ports of a datagram. A first part too short to have them could hide a server (RFC 1858).
fn ports(bytes: &[u8]) -> Result<(u16, u16), Malformed> {
    let &[a, b, c, d, _, _, _, _, ..] = bytes else { return Err(Malformed) };
    Ok((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn udp_v4<'a>(carried: &Carried<'a>) -> Result<Message<'a>, Malformed> {
    match ports(carried.bytes)? {
        (BOOTP_CLIENT, BOOTP_SERVER) if carried.all && !carried.fragment => {
            Ok(Message::DhcpAsks(UdpPacket::new_checked(carried.bytes)?.payload()))
        }
        (BOOTP_CLIENT, BOOTP_SERVER) => Err(Malformed),
        // Whatever port it claims to come from: a client listens there.
        (_, BOOTP_CLIENT) => Ok(Message::DhcpAnswers),
        _ => Ok(Message::Data),
    }
}

fn ipv6(packet: &[u8], length: usize) -> Result<Ip<'_>, Malformed> {
    let message = match carried_v6(packet, length)? {
        Some(carried) if carried.protocol == IpProtocol::Udp => match ports(carried.bytes)? {
            (_, DHCPV6_CLIENT) => Message::DhcpAnswers,
            _ => Message::Data,
        },
        Some(carried) if carried.protocol == IpProtocol::Icmpv6 => icmpv6(&carried)?,
        _ => Message::Data,
    };
    let header = Ipv6Packet::new_unchecked(packet);
    if matches!(message, Message::Discovery(_)) && header.hop_limit() != 255 {
        return Err(Malformed); // RFC 4861, 7.1: it may have come from anywhere
    }
    let (source, target) = (header.src_addr().into(), header.dst_addr().into());
    // The layer below IPv6 carries packets of this size, cut or not (RFC 8200, 5).
    Ok(Ip { source, target, dont_fragment: header.total_len() > IPV6_MTU_MIN, message })
}

fn icmpv6<'a>(carried: &Carried<'a>) -> Result<Message<'a>, Malformed> {
    match *carried.bytes.first().ok_or(Malformed)? {
        130..=132 | 143 => return Ok(Message::Groups), // MLD of both versions (RFC 2710, RFC 3810)
        133..=137 if carried.fragment || !carried.all => return Err(Malformed), // RFC 6980
        133..=137 => {}
        _ => return Ok(Message::Data),
    }
    let packet = Icmpv6Packet::new_checked(carried.bytes)?;
    if names_twice(packet.payload()) {
        return Err(Malformed);
    }
    Ok(Message::Discovery(match NdiscRepr::parse(&packet)? {
        NdiscRepr::RouterSolicit { lladdr } => Discovery::RouterSolicit { own: own(lladdr)? },
        NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. } => Discovery::RouterSpeaks,
        NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
            Discovery::Solicit { target: target_addr, own: own(lladdr)? }
        }
        NdiscRepr::NeighborAdvert { target_addr, lladdr, .. } => {
            Discovery::Advertise { target: target_addr, own: own(lladdr)? }
        }
    }))
}

/// Whether a hardware address stands in the options twice: which of them counts differs from system to system.
fn names_twice(mut options: &[u8]) -> bool {
    let (mut seen, names) = ([false; 3], [1u8, 2]);
    while let [kind, length, ..] = *options {
        if names.contains(&kind) && std::mem::replace(&mut seen[usize::from(kind)], true) {
            return true;
        }
        options = options.get(8 * usize::from(length.max(1))..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::wire::DhcpMessageType;

    use super::*;
    use crate::fixtures::{arp, cards, data, dhcp, endpoint, router_solicit, solicit};

    fn known() -> Vec<Vec<u8>> {
        let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
        let (own, other) = (cards(&one), cards(&two));
        vec![
            data(&one, &two),
            arp(true, own.0, other.0.1),
            solicit(own.1, other.1.1),
            router_solicit(own.1),
            dhcp(&one, DhcpMessageType::Discover, None),
        ]
    }

    #[test]
    fn a_frame_that_is_cut_short_is_refused() {
        for whole in known() {
            assert!(Frame::parse(&whole).is_ok());
            for length in 0..whole.len() {
                let short = Frame::parse(&whole[..length]);
                assert_eq!(short, Err(Malformed), "{length} of {} bytes", whole.len());
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_machine_sends_breaks_the_parser(
            which in 0usize..5, damage in prop::collection::vec((12usize..90, any::<u8>()), 1..8), garbage: Vec<u8>
        ) {
            let mut frame = known().swap_remove(which);
            for (at, value) in damage {
                let at = at % frame.len();
                frame[at] = value;
            }
            let _ = Frame::parse(&frame);
            let _ = Frame::parse_head(&frame[..garbage.len().min(frame.len())], frame.len());
            let _ = transport(&frame, frame.len());
            let _ = Frame::parse(&garbage);
        }
    }
}
