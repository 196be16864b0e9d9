//! Answers are read as a machine would read them, with their checksums.

use smoltcp::wire::{Icmpv4Packet, IpAddress};

use super::*;
use crate::fixtures::{cards, endpoint, ip, network, solicit, udp};
use crate::frame::{Frame, Packet};

fn caps() -> ChecksumCapabilities {
    ChecksumCapabilities::default()
}

/// An ICMPv6 message with its addresses; its checksum is right.
fn heard(whole: &[u8]) -> (Ipv6Addr, Ipv6Addr, Vec<u8>) {
    let packet = Ipv6Packet::new_checked(&whole[HEADER_BYTES..]).unwrap();
    assert_eq!(packet.hop_limit(), 255);
    let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    Icmpv6Repr::parse(&packet.src_addr(), &packet.dst_addr(), &message, &caps()).unwrap();
    (packet.src_addr(), packet.dst_addr(), packet.payload().to_vec())
}

fn said(bytes: &[u8]) -> NdiscRepr<'_> {
    NdiscRepr::parse(&Icmpv6Packet::new_checked(bytes).unwrap()).unwrap()
}

#[test]
fn a_neighbour_is_told_to_who_asked_and_to_all_when_it_had_no_address_yet() {
    let (one, two) = (cards(&endpoint(1, 1, 1)).1, cards(&endpoint(2, 2, 1)).1);
    let (source, target, message) = heard(&neighbor(one, two.1, two.0));
    assert_eq!((source, target), (two.1, one.1));
    let NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } = said(&message) else { panic!("no advertisement") };
    assert_eq!((target_addr, lladdr.unwrap().as_bytes()), (two.1, &two.0.0[..]));
    assert_eq!(flags, NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::SOLICITED);
    let (_, target, message) = heard(&neighbor((one.0, Ipv6Addr::UNSPECIFIED), two.1, two.0));
    assert_eq!(target, ALL_NODES);
    let NdiscRepr::NeighborAdvert { flags, .. } = said(&message) else { panic!("no advertisement") };
    assert_eq!(flags, NdiscNeighborFlags::OVERRIDE);
}

/// What the router says: MTU, prefix, and whether the machine makes itself an address.
fn routed(endpoint: &Endpoint) -> (Option<u32>, NdiscPrefixInformation) {
    let network = network();
    let (source, _, message) = heard(&router(&network, endpoint, cards(endpoint).1.1).unwrap());
    assert_eq!(source, network.gateway().link_local());
    let NdiscRepr::RouterAdvert { mtu, prefix_info, router_lifetime, .. } = said(&message) else { panic!("no router") };
    assert!(router_lifetime.secs() > 0);
    (mtu, prefix_info.unwrap())
}

#[test]
fn the_router_tells_prefix_and_mtu_and_lets_nobody_make_an_address_that_is_not_its_own() {
    let assigned = endpoint(1, 1, 1);
    let (mtu, prefix) = routed(&assigned);
    assert_eq!((mtu, prefix.prefix_len, prefix.prefix), (Some(1_400), 64, "fd00::".parse().unwrap()));
    assert!(!prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF));
    let made = assigned.mac.address_in("fd00::".parse().unwrap());
    let own = Endpoint { addresses: vec![assigned.addresses[0], made.into()], ..assigned.clone() };
    assert!(routed(&own).1.is_valid_prefix_info());
    let (vni, subnets) = (network().vni, vec!["10.0.0.0/24".parse().unwrap()]);
    assert_eq!(router(&Network::new(vni, subnets, 1_400), &assigned, Ipv6Addr::UNSPECIFIED), None);
}

/// What a client says, as it stands in a datagram: type, address that it wants, address that it has.
fn asks(kind: DhcpMessageType, wanted: Option<Ipv4Addr>, has: Option<Ipv4Addr>) -> Vec<u8> {
    let whole = crate::fixtures::dhcp(&endpoint(1, 1, 1), kind, wanted);
    let mut message = whole[HEADER_BYTES + IPV4_BYTES + UDP_BYTES..].to_vec();
    message[12..16].copy_from_slice(&has.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    message
}

/// The answer: to which IP address, of which type, with which address for the machine.
fn told(message: &[u8]) -> Option<(Ipv4Addr, DhcpMessageType, Ipv4Addr)> {
    let whole = dhcp(&network(), &endpoint(1, 1, 1), message)?;
    let packet = Ipv4Packet::new_checked(&whole[HEADER_BYTES..]).unwrap();
    assert!(packet.verify_checksum());
    let udp = UdpPacket::new_checked(packet.payload()).unwrap();
    let (source, target) = (IpAddress::from(packet.src_addr()), IpAddress::from(packet.dst_addr()));
    assert!(udp.verify_checksum(&source, &target) && udp.payload().len() >= 300);
    let answer = DhcpPacket::new_checked(udp.payload()).unwrap();
    let option = |packet: &DhcpPacket<&[u8]>, kind: u8| {
        packet.options().find(|option| option.kind == kind).map(|option| option.data.to_vec())
    };
    let asked = DhcpPacket::new_checked(message).unwrap();
    assert_eq!(option(&answer, OPTION_CLIENT), option(&asked, OPTION_CLIENT), "it is called what it calls itself");
    assert_eq!(answer.transaction_id(), 0x1234_5678);
    assert_eq!(option(&answer, OPTION_SERVER), Some(vec![10, 0, 0, 1]));
    let kind = DhcpMessageType::from(option(&answer, OPTION_TYPE).unwrap()[0]);
    let granted = |value: &[u8]| (kind != DhcpMessageType::Nak).then(|| value.to_vec());
    assert_eq!(option(&answer, 3), granted(&[10, 0, 0, 1]), "the router");
    assert_eq!(option(&answer, 1), granted(&[255, 255, 255, 0]), "the mask");
    assert_eq!(option(&answer, OPTION_MTU), granted(&1_400u16.to_be_bytes()));
    Some((packet.dst_addr(), kind, answer.your_ip()))
}

#[test]
fn a_dhcp_client_gets_the_address_that_was_assigned_and_no_other() {
    use DhcpMessageType::*;
    let (own, other) = (Ipv4Addr::new(10, 0, 0, 11), Ipv4Addr::new(10, 0, 0, 12));
    let (nowhere, all) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    assert_eq!(told(&asks(Discover, None, None)), Some((all, Offer, own)));
    assert_eq!(told(&asks(Request, Some(own), None)), Some((all, Ack, own)));
    assert_eq!(told(&asks(Request, Some(other), None)), Some((all, Nak, nowhere)));
    assert_eq!(told(&asks(Request, None, Some(own))), Some((own, Ack, own)), "a renewal");
    assert_eq!(told(&asks(Request, None, Some(other))), Some((all, Nak, nowhere)), "one of an address that it lost");
    assert_eq!(told(&asks(Inform, None, Some(own))), Some((own, Ack, nowhere)));
    for kind in [Release, Decline, Offer, Ack, Nak] {
        assert_eq!(told(&asks(kind, None, None)), None, "{kind:?}");
    }
    assert_eq!(told(b"not a message"), None);
}

#[test]
fn a_dhcp_client_is_named_as_it_names_itself_and_others_are_not_answered() {
    let with = |more: &[u8]| {
        let mut message = asks(DhcpMessageType::Discover, None, None);
        let end = message.iter().rposition(|byte| *byte == 255).unwrap();
        message.truncate(end);
        message.extend_from_slice(more);
        message.push(255);
        message
    };
    // Seven bytes that are no hardware address, and what systemd sends.
    for name in [&[0, b'h', b'o', b's', b't', b'-', b'1'][..], &[255, 1, 2, 3, 4, 0, 2, 0, 0, 171, 17, 9, 9]] {
        assert!(told(&with(&[&[OPTION_CLIENT, name.len() as u8], name].concat())).is_some());
    }
    let mut to_another = asks(DhcpMessageType::Request, Some(Ipv4Addr::new(10, 0, 0, 11)), None);
    let end = to_another.iter().rposition(|byte| *byte == 255).unwrap();
    to_another.truncate(end);
    to_another.extend_from_slice(&[OPTION_SERVER, 4, 10, 0, 0, 9, 255]);
    assert_eq!(told(&to_another), None, "another server's");
    let mut relayed = asks(DhcpMessageType::Discover, None, None);
    relayed[24..28].copy_from_slice(&[10, 0, 0, 9]);
    assert_eq!(told(&relayed), None);
    let mut foreign = asks(DhcpMessageType::Discover, None, None);
    foreign[28] ^= 4;
    assert_eq!(told(&foreign), None);
}

#[test]
fn the_sender_of_a_packet_that_is_too_large_is_told_the_size_that_fits() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let large = [7; 1_400];
    let packet = udp((two.mac, two.addresses[0]), (one.mac, one.addresses[0]), (1, 2), &large);
    let told = too_big(&network(), one.mac, &packet[HEADER_BYTES..], 1_300).unwrap();
    let Packet::Ip(ip_packet) = Frame::parse(&told).unwrap().packet else { panic!("no packet") };
    assert_eq!((ip_packet.source, ip_packet.target), (ip("10.0.0.1"), one.addresses[0]));
    let outer = Ipv4Packet::new_checked(&told[HEADER_BYTES..]).unwrap();
    assert!(outer.verify_checksum() && outer.total_len() <= 576);
    let icmp = Icmpv4Packet::new_checked(outer.payload()).unwrap();
    assert!(icmp.verify_checksum());
    assert_eq!(&outer.payload()[..2], &[3, 4]);
    assert_eq!(&outer.payload()[6..8], &1_300u16.to_be_bytes());
    assert!(packet[HEADER_BYTES..].starts_with(&outer.payload()[8..]));

    let packet = udp((two.mac, two.addresses[1]), (one.mac, one.addresses[1]), (1, 2), &large);
    let told = too_big(&network(), one.mac, &packet[HEADER_BYTES..], 1_300).unwrap();
    let (_, target, message) = heard_too_big(&told);
    assert_eq!(IpAddr::V6(target), one.addresses[1]);
    assert_eq!(&message[4..8], &1_300u32.to_be_bytes());
    assert!(told.len() <= HEADER_BYTES + 1_280);
}

fn heard_too_big(whole: &[u8]) -> (Ipv6Addr, Ipv6Addr, Vec<u8>) {
    let packet = Ipv6Packet::new_checked(&whole[HEADER_BYTES..]).unwrap();
    let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    assert!(message.verify_checksum(&packet.src_addr(), &packet.dst_addr()));
    assert_eq!(&packet.payload()[..2], &[2, 0]);
    (packet.src_addr(), packet.dst_addr(), packet.payload().to_vec())
}

#[test]
fn no_error_answers_what_nobody_or_everybody_is_told_nor_another_error() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let from = (one.mac, one.addresses[0]);
    let to = |text: &str| udp((Mac::BROADCAST, ip(text)), from, (1, 2), &[0; 1_400]);
    let from_none = solicit((one.mac, Ipv6Addr::UNSPECIFIED), "fd00::9".parse().unwrap());
    let mut later = to("10.0.0.12");
    later[HEADER_BYTES + 7] = 99; // the rest of a packet that was cut
    let (own, other) = (cards(&one).0, cards(&two).0);
    let icmp = |kind: u8| ipv4(other, own, IpProtocol::Icmp, 1_400, |bytes| bytes[0] = kind);
    let (own6, other6) = (cards(&one).1, cards(&two).1);
    let icmp6 = |kind: u8| icmpv6(other6, own6, 1_400, |bytes| bytes[0] = kind);
    let silent =
        [to("255.255.255.255"), to("10.0.0.255"), to("224.0.0.251"), from_none, later, icmp(3), icmp(11), icmp6(2)];
    for frame in silent {
        assert_eq!(too_big(&network(), one.mac, &frame[HEADER_BYTES..], 1_300), None);
    }
    for frame in [icmp(8), icmp6(128)] {
        assert!(too_big(&network(), one.mac, &frame[HEADER_BYTES..], 1_300).is_some(), "an echo is no error");
    }
    for garbage in [&b""[..], b"\x45", b"\x60\x00", b"\x12\x34\x56"] {
        assert_eq!(too_big(&network(), one.mac, garbage, 1_300), None);
    }
    // Less than what every link carries is not heeded (RFC 8201, 4).
    let told = too_big(&network(), one.mac, &icmp6(128)[HEADER_BYTES..], 1_100).unwrap();
    assert_eq!(&heard_too_big(&told).2[4..8], &1_280u32.to_be_bytes());
}
