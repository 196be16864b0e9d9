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
    let (source, target, message) = heard(&neighbor(one, two.1, two.0, false));
    assert_eq!((source, target), (two.1, one.1));
    let NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } = said(&message) else { panic!("no advertisement") };
    assert_eq!((target_addr, lladdr.unwrap().as_bytes()), (two.1, &two.0.0[..]));
    assert_eq!(flags, NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::SOLICITED);
    let (_, target, message) = heard(&neighbor((one.0, Ipv6Addr::UNSPECIFIED), two.1, two.0, false));
    assert_eq!(target, ALL_NODES);
    let NdiscRepr::NeighborAdvert { flags, .. } = said(&message) else { panic!("no advertisement") };
    assert_eq!(flags, NdiscNeighborFlags::OVERRIDE);
}

#[test]
fn the_router_tells_prefix_and_mtu() {
    let network = network();
    let (source, _, message) = heard(&router(&network, cards(&endpoint(1, 1, 1)).1).unwrap());
    assert_eq!(source, network.gateway().link_local());
    let NdiscRepr::RouterAdvert { mtu, prefix_info, router_lifetime, .. } = said(&message) else { panic!("no router") };
    let prefix = prefix_info.unwrap();
    assert_eq!((mtu, prefix.prefix_len, prefix.prefix), (Some(1_400), 64, "fd00::".parse().unwrap()));
    assert!(prefix.is_valid_prefix_info() && router_lifetime.secs() > 0);
    let v4_only = Network::new(network.vni, vec!["10.0.0.0/24".parse().unwrap()], 1_400);
    assert_eq!(router(&v4_only, cards(&endpoint(1, 1, 1)).1), None);
}

/// What a client says; as it stands in a datagram.
fn asks(kind: DhcpMessageType, change: impl FnOnce(&mut DhcpRepr<'_>)) -> Vec<u8> {
    let whole = crate::fixtures::dhcp(&endpoint(1, 1, 1), kind, None);
    let mut asked = DhcpRepr::parse(&DhcpPacket::new_unchecked(&whole[42..])).map(|repr| DhcpRepr {
        parameter_request_list: None,
        dns_servers: None,
        additional_options: &[],
        ..repr
    });
    let asked = asked.as_mut().unwrap();
    change(asked);
    let mut message = vec![0; asked.buffer_len()];
    asked.emit(&mut DhcpPacket::new_unchecked(&mut message)).unwrap();
    message
}

/// The answer: to which hardware and IP address, of which type, with which address for the machine.
fn told(message: &[u8]) -> Option<(Ipv4Addr, DhcpMessageType, Ipv4Addr)> {
    let whole = dhcp(&network(), &endpoint(1, 1, 1), message)?;
    let packet = Ipv4Packet::new_checked(&whole[HEADER_BYTES..]).unwrap();
    assert!(packet.verify_checksum());
    let udp = UdpPacket::new_checked(packet.payload()).unwrap();
    let (source, target) = (IpAddress::from(packet.src_addr()), IpAddress::from(packet.dst_addr()));
    assert!(udp.verify_checksum(&source, &target));
    let answer = DhcpPacket::new_checked(udp.payload()).unwrap();
    let mtu = answer.options().find(|option| option.kind == OPTION_MTU).map(|option| option.data.to_vec());
    let answer = DhcpRepr::parse(&answer).unwrap();
    assert_eq!(answer.transaction_id, 0x1234_5678);
    assert_eq!(answer.server_identifier, Some(Ipv4Addr::new(10, 0, 0, 1)));
    let granted = answer.message_type != DhcpMessageType::Nak;
    assert_eq!(answer.router.is_some(), granted);
    assert_eq!(answer.subnet_mask, granted.then_some(Ipv4Addr::new(255, 255, 255, 0)));
    assert_eq!(mtu, granted.then(|| 1_400u16.to_be_bytes().to_vec()));
    Some((packet.dst_addr(), answer.message_type, answer.your_ip))
}

#[test]
fn a_dhcp_client_gets_the_address_that_was_assigned_and_no_other() {
    use DhcpMessageType::*;
    let own = Ipv4Addr::new(10, 0, 0, 11);
    let nowhere = Ipv4Addr::UNSPECIFIED;
    let all = Ipv4Addr::BROADCAST;
    assert_eq!(told(&asks(Discover, |_| {})), Some((all, Offer, own)));
    assert_eq!(told(&asks(Request, |asked| asked.requested_ip = Some(own))), Some((all, Ack, own)));
    let other = Ipv4Addr::new(10, 0, 0, 12);
    assert_eq!(told(&asks(Request, |asked| asked.requested_ip = Some(other))), Some((all, Nak, nowhere)));
    assert_eq!(told(&asks(Request, |asked| asked.client_ip = own)), Some((own, Ack, own)), "a renewal");
    assert_eq!(told(&asks(Inform, |asked| asked.client_ip = own)), Some((own, Ack, nowhere)));
    for kind in [Release, Decline, Offer, Ack, Nak] {
        assert_eq!(told(&asks(kind, |_| {})), None, "{kind:?}");
    }
    assert_eq!(told(&asks(Request, |asked| asked.server_identifier = Some(other))), None, "another server's");
    assert_eq!(told(&asks(Discover, |asked| asked.relay_agent_ip = other)), None);
    assert_eq!(told(&asks(Discover, |asked| asked.client_hardware_address = EthernetAddress([6; 6]))), None);
    assert_eq!(told(b"not a message"), None);
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
fn no_error_answers_what_nobody_or_everybody_is_told() {
    let one = endpoint(1, 1, 1);
    let to_all = udp((Mac::BROADCAST, ip("255.255.255.255")), (one.mac, one.addresses[0]), (1, 2), &[0; 1_400]);
    let from_none = solicit((one.mac, Ipv6Addr::UNSPECIFIED), "fd00::9".parse().unwrap());
    for frame in [to_all, from_none] {
        assert_eq!(too_big(&network(), one.mac, &frame[HEADER_BYTES..], 1_300), None);
    }
    for garbage in [&b""[..], b"\x45", b"\x60\x00", b"\x12\x34\x56"] {
        assert_eq!(too_big(&network(), one.mac, garbage, 1_300), None);
    }
}
