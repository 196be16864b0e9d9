//! What a frame says, as far as its way and its sender's right to it depend on it. Every length is checked; nothing is copied.
//!
//! Checksums are not looked at: between a machine and its node they are often left to the card that is not there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::model::Mac;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv6Message, Icmpv6Packet,
    IpProtocol, Ipv4Packet, Ipv6ExtHeader, Ipv6FragmentHeader, Ipv6Packet, NdiscRepr, RawHardwareAddress, UdpPacket,
};
use thiserror::Error;

/// Bytes of an Ethernet header.
pub const HEADER_BYTES: usize = 14;
/// Extension headers of a packet that are looked behind; IPv6 stacks send two at most.
const EXTENSIONS_MAX: usize = 8;
/// Tags of virtual LANs (IEEE 802.1Q and 802.1ad).
const TAGS: [u16; 2] = [0x8100, 0x88a8];
const BOOTP_SERVER: u16 = 67;
const BOOTP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;
/// Messages of MLD version 1 (RFC 2710).
const MLD1_REPORT: u8 = 131;
const MLD1_DONE: u8 = 132;

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
    /// It may not be cut (always so in IPv6).
    pub whole: bool,
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
    RouterSolicit,
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
        let frame = EthernetFrame::new_checked(bytes)?;
        let packet = match frame.ethertype() {
            EthernetProtocol::Arp => Packet::Arp(arp(frame.payload())?),
            EthernetProtocol::Ipv4 => Packet::Ip(ipv4(frame.payload())?),
            EthernetProtocol::Ipv6 => Packet::Ip(ipv6(frame.payload())?),
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

fn ipv4(bytes: &[u8]) -> Result<Ip<'_>, Malformed> {
    let packet = Ipv4Packet::new_checked(bytes)?;
    if packet.version() != 4 {
        return Err(Malformed);
    }
    let message = match packet.next_header() {
        // The rest of a packet that was cut has no header of its own, and goes where the first part went.
        _ if packet.frag_offset() != 0 => Message::Data,
        // A server could hide behind a first part too short to tell: RFC 1858 says drop.
        IpProtocol::Udp if packet.more_frags() && packet.payload().len() < 8 => return Err(Malformed),
        IpProtocol::Udp => udp(packet.payload(), packet.more_frags())?,
        IpProtocol::Igmp => Message::Groups,
        _ => Message::Data,
    };
    Ok(Ip { source: packet.src_addr().into(), target: packet.dst_addr().into(), whole: packet.dont_frag(), message })
}

/// What a datagram is about; its length is checked only where it is all there.
fn udp(bytes: &[u8], cut: bool) -> Result<Message<'_>, Malformed> {
    let &[from, source, to, target, _, _, _, _, ..] = bytes else { return Err(Malformed) };
    match (u16::from_be_bytes([from, source]), u16::from_be_bytes([to, target])) {
        (BOOTP_CLIENT, BOOTP_SERVER) if !cut => Ok(Message::DhcpAsks(UdpPacket::new_checked(bytes)?.payload())),
        (BOOTP_CLIENT, BOOTP_SERVER) => Err(Malformed),
        // Whatever port it claims to come from: no client listens to anybody else.
        (_, BOOTP_CLIENT | DHCPV6_CLIENT) => Ok(Message::DhcpAnswers),
        _ => Ok(Message::Data),
    }
}

fn ipv6(bytes: &[u8]) -> Result<Ip<'_>, Malformed> {
    let packet = Ipv6Packet::new_checked(bytes)?;
    if packet.version() != 6 {
        return Err(Malformed);
    }
    let message = behind(packet.next_header(), packet.payload())?;
    let limit = packet.hop_limit();
    if matches!(message, Message::Discovery(_)) && limit != 255 {
        return Err(Malformed); // RFC 4861, 7.1: it may have come from anywhere
    }
    Ok(Ip { source: packet.src_addr().into(), target: packet.dst_addr().into(), whole: true, message })
}

/// What stands behind the extension headers. A chain that cannot be followed to its end is refused, since a router or a
/// server could hide in it (RFC 7113).
fn behind(mut next: IpProtocol, mut bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut cut = false;
    for _ in 0..EXTENSIONS_MAX {
        match next {
            IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts => {
                let header = Ipv6ExtHeader::new_checked(bytes)?;
                let length = 8 + 8 * usize::from(header.header_len());
                (next, bytes) = (header.next_header(), bytes.get(length..).ok_or(Malformed)?);
            }
            IpProtocol::Ipv6Frag => {
                let (head, rest) = bytes.split_at_checked(8).ok_or(Malformed)?;
                let fragment = Ipv6FragmentHeader::new_checked(&head[2..])?;
                if fragment.frag_offset() != 0 {
                    return Ok(Message::Data);
                }
                cut |= fragment.more_frags();
                (next, bytes) = (IpProtocol::from(head[0]), rest);
            }
            IpProtocol::Udp => return udp(bytes, cut),
            IpProtocol::Icmpv6 => return icmpv6(bytes, cut),
            _ => return Ok(Message::Data),
        }
    }
    Err(Malformed)
}

fn icmpv6(bytes: &[u8], cut: bool) -> Result<Message<'_>, Malformed> {
    let packet = Icmpv6Packet::new_checked(bytes)?;
    let discovery = match packet.msg_type() {
        Icmpv6Message::MldQuery | Icmpv6Message::MldReport => return Ok(Message::Groups),
        Icmpv6Message::Unknown(MLD1_REPORT | MLD1_DONE) => return Ok(Message::Groups),
        kind if !kind.is_ndisc() => return Ok(Message::Data),
        _ if cut => return Err(Malformed), // RFC 6980
        _ => NdiscRepr::parse(&packet)?,
    };
    Ok(Message::Discovery(match discovery {
        NdiscRepr::RouterSolicit { .. } => Discovery::RouterSolicit,
        NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. } => Discovery::RouterSpeaks,
        NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
            Discovery::Solicit { target: target_addr, own: own(lladdr)? }
        }
        NdiscRepr::NeighborAdvert { target_addr, lladdr, .. } => {
            Discovery::Advertise { target: target_addr, own: own(lladdr)? }
        }
    }))
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
            let _ = Frame::parse(&garbage);
        }
    }
}
