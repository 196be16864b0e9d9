//! Every way that a frame can take, and every reason that it may not.

use std::net::{Ipv4Addr, Ipv6Addr};

use fabric::model::Mac;
use smoltcp::wire::{DhcpMessageType, IpProtocol, NdiscNeighborFlags, NdiscRepr, NdiscRouterFlags};

use super::*;
use crate::fixtures::*;

const ME: u8 = 1;

fn goes(bytes: &[u8]) -> Ingress {
    ingress(&populated(), node(ME), bytes)
}

fn dropped(bytes: &[u8]) -> Reason {
    match goes(bytes) {
        Ingress::Drop(reason) => reason,
        other => panic!("it went {other:?}"),
    }
}

/// Where a frame of node 2 goes here.
fn comes(bytes: &[u8]) -> Egress {
    egress(&populated(), node(ME), from(2), bytes, bytes.len())
}

fn from(n: u8) -> Sent {
    Sent { by: node(n), epoch: 1, forwarded: false }
}

#[test]
fn a_frame_goes_to_the_node_of_its_target_and_stays_where_that_is_here() {
    let (one, two, three) = (endpoint(1, 1, 1), endpoint(2, 2, 1), endpoint(3, 1, 1));
    assert_eq!(goes(&data(&one, &two)), Ingress::To(node(2)));
    assert_eq!(goes(&data(&one, &three)), Ingress::Here);
    let gateway = (populated().gateway(), ip("9.9.9.9"));
    assert_eq!(goes(&udp(gateway, (one.mac, one.addresses[0]), (1, 2), b"out")), Ingress::Here);
    assert_eq!(dropped(&udp((two.mac, two.addresses[0]), gateway, (1, 2), b"in")), Reason::Answered);
    let nobody = (Mac([6; 6]), ip("10.0.0.77"));
    assert_eq!(dropped(&udp(nobody, (one.mac, one.addresses[0]), (1, 2), b"")), Reason::UnknownTarget);
}

#[test]
fn a_frame_to_all_goes_to_the_nodes_that_have_machines_there() {
    let one = endpoint(1, 1, 1);
    let mdns = udp((Mac([1, 0, 0x5e, 0, 0, 0xfb]), ip("224.0.0.251")), (one.mac, one.addresses[0]), (5353, 5353), b"?");
    assert_eq!(goes(&mdns), Ingress::All(vec![node(2)]));
    assert_eq!(ingress(&with([one]), node(ME), &mdns), Ingress::Here);
}

#[test]
fn who_has_an_address_is_answered_here() {
    let (one, two, three) = (endpoint(1, 1, 1), endpoint(2, 2, 1), endpoint(3, 1, 1));
    let (v4, v6) = cards(&one);
    let of = |other: &Endpoint| (cards(other).0.1, cards(other).1.1);
    let (two_v4, two_v6) = of(&two);
    let Ingress::Answer(answer) = goes(&arp(true, v4, two_v4)) else { panic!("no answer") };
    assert_eq!(answer, answers::arp(v4, two_v4, two.mac));
    let Ingress::Answer(answer) = goes(&solicit(v6, two_v6)) else { panic!("no answer") };
    assert_eq!(answer, answers::neighbor(v6, two_v6, two.mac));
    // What is on this node answers itself.
    let (three_v4, three_v6) = of(&three);
    for frame in [arp(true, v4, three_v4), arp(true, v4, Ipv4Addr::new(10, 0, 0, 1)), solicit(v6, three_v6)] {
        assert_eq!(goes(&frame), Ingress::Here);
    }
    let nobody: (Ipv4Addr, Ipv6Addr) = ("10.0.0.200".parse().unwrap(), "fd00::200".parse().unwrap());
    for frame in [arp(true, v4, nobody.0), solicit(v6, nobody.1)] {
        assert_eq!(dropped(&frame), Reason::UnknownTarget);
    }
    // Telling all who one is, and answers to nobody's question.
    for frame in [arp(true, v4, v4.1), arp(false, v4, two_v4), solicit(v6, v6.1)] {
        assert_eq!(dropped(&frame), Reason::Answered);
    }
    // An answer to somebody here is heard.
    for target in [three.mac, populated().gateway()] {
        let mut answer = arp(false, v4, three_v4);
        answer[..6].copy_from_slice(&target.0);
        assert_eq!(goes(&answer), Ingress::Here);
    }
}

#[test]
fn whoever_tries_an_address_before_taking_it_is_told_that_it_is_taken() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let two_v6 = cards(&two).1.1;
    let probe = solicit((one.mac, Ipv6Addr::UNSPECIFIED), two_v6);
    let Ingress::Answer(answer) = goes(&probe) else { panic!("no answer") };
    assert_eq!(answer, answers::neighbor((one.mac, Ipv6Addr::UNSPECIFIED), two_v6, two.mac));
    let probe = arp(true, (one.mac, Ipv4Addr::UNSPECIFIED), cards(&two).0.1);
    assert!(matches!(goes(&probe), Ingress::Answer(_)));
}

#[test]
fn addresses_and_routers_are_told_by_the_network() {
    let one = endpoint(1, 1, 1);
    assert!(matches!(goes(&dhcp(&one, DhcpMessageType::Discover, None)), Ingress::Answer(_)));
    assert_eq!(dropped(&dhcp(&one, DhcpMessageType::Release, None)), Reason::Answered);
    assert!(matches!(goes(&router_solicit(cards(&one).1)), Ingress::Answer(_)));
    assert!(matches!(goes(&router_solicit((one.mac, Ipv6Addr::UNSPECIFIED))), Ingress::Answer(_)));
    let own = cards(&one).1;
    for kind in [130, 131, 132, 143] {
        for source in [own.1, Ipv6Addr::UNSPECIFIED, one.mac.link_local()] {
            assert_eq!(dropped(&groups((one.mac, source), kind)), Reason::Answered);
        }
    }
    let mut igmp = data(&one, &endpoint(2, 2, 1));
    igmp[23] = IpProtocol::Igmp.into();
    assert_eq!(dropped(&igmp), Reason::Answered);
}

#[test]
fn a_link_local_address_of_ones_own_making_may_ask_and_no_more() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let made: Ipv6Addr = "fe80::1234:5678:9abc:def0".parse().unwrap();
    assert!(matches!(goes(&router_solicit((one.mac, made))), Ingress::Answer(_)));
    assert!(matches!(goes(&solicit((one.mac, made), cards(&two).1.1)), Ingress::Answer(_)));
    let gateway = populated().gateway().link_local();
    for taken in [two.mac.link_local(), gateway] {
        assert_eq!(dropped(&router_solicit((one.mac, taken))), Reason::SpoofedAddress);
    }
    let sent = udp((two.mac, two.addresses[1]), (one.mac, made.into()), (1, 2), b"");
    assert_eq!(dropped(&sent), Reason::SpoofedAddress);
}

#[test]
fn packets_that_were_cut_go_where_whole_ones_go() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let cut = |flags: u16, ports: (u16, u16), bytes: usize| {
        let mut frame = udp((two.mac, two.addresses[0]), (one.mac, one.addresses[0]), ports, &vec![7; bytes]);
        frame[20..22].copy_from_slice(&flags.to_be_bytes());
        goes(&frame)
    };
    const MORE: u16 = 0x2000;
    assert_eq!(cut(MORE, (1, 2), 64), Ingress::To(node(2)));
    assert_eq!(cut(185, (1, 68), 64), Ingress::To(node(2)), "no ports are there, whatever the bytes say");
    assert_eq!(cut(MORE, (1, 68), 64), Ingress::Drop(Reason::RogueService));
    assert_eq!(cut(MORE, (68, 67), 64), Ingress::Drop(Reason::Malformed));
    // IPv6: behind a header of fragments, and one of authentication.
    let mut frame = udp((two.mac, two.addresses[1]), (one.mac, one.addresses[1]), (1, 2), &[7; 64]);
    let udp_bytes = frame.split_off(54);
    let behind = |next: u8, header: &[u8]| {
        let mut frame = frame.clone();
        frame[20] = next;
        frame[19] += header.len() as u8;
        frame.extend_from_slice(header);
        frame.extend_from_slice(&udp_bytes);
        goes(&frame)
    };
    let udp = IpProtocol::Udp.into();
    assert_eq!(behind(44, &[udp, 0, 0, 1, 0, 0, 0, 9]), Ingress::To(node(2)));
    assert_eq!(behind(44, &[udp, 0, 1, 0, 0, 0, 0, 9]), Ingress::To(node(2)));
    assert_eq!(behind(51, &[udp, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]), Ingress::To(node(2)));
    let long: Vec<u8> = [[60u8, 0, 1, 4, 0, 0, 0, 0]; 9].concat();
    assert_eq!(behind(60, &long), Ingress::Drop(Reason::Malformed), "a chain without an end");
}

#[test]
fn a_frame_is_judged_by_its_first_piece() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let whole = train(false, &[7; 20_000], 1_300);
    let inner = &whole[crate::vnet::VNET_BYTES..];
    let judged = |head: &[u8]| {
        egress(&populated(), node(2), Sent { by: node(1), epoch: 1, forwarded: false }, head, inner.len())
    };
    assert_eq!(judged(&inner[..1_300]), Egress::Deliver);
    assert_eq!(judged(&inner[..33]), Egress::Drop(Reason::Malformed));
    let short = egress(&populated(), node(ME), from(2), &data(&two, &one), 30);
    assert_eq!(short, Egress::Drop(Reason::Malformed));
}

#[test]
fn a_machine_that_borrows_an_address_is_not_heard() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let (own, other) = (cards(&one), cards(&two));
    let target = (two.mac, two.addresses[0]);
    let spoofs = [
        (udp(target, (two.mac, two.addresses[0]), (1, 2), b""), Reason::NotOwner),
        (udp(target, (Mac([6; 6]), one.addresses[0]), (1, 2), b""), Reason::SpoofedMac),
        (udp(target, (one.mac, ip("10.0.0.13")), (1, 2), b""), Reason::SpoofedAddress),
        (udp(target, (one.mac, ip("0.0.0.0")), (1, 2), b""), Reason::SpoofedAddress),
        (udp(target, (one.mac, ip("10.0.0.1")), (1, 2), b""), Reason::SpoofedAddress),
        (udp((two.mac, two.addresses[1]), (one.mac, ip("fe80::1")), (1, 2), b""), Reason::SpoofedAddress),
        (arp(true, (one.mac, other.0.1), own.0.1), Reason::SpoofedAddress),
        (solicit((one.mac, other.1.1), own.1.1), Reason::SpoofedAddress),
    ];
    for (frame, reason) in spoofs {
        assert_eq!(dropped(&frame), reason);
    }
    // The frame is its sender's, and what it says inside is not.
    let mut inside = arp(true, own.0, other.0.1);
    inside[22..28].copy_from_slice(&two.mac.0);
    assert_eq!(dropped(&inside), Reason::SpoofedMac);
    let advert = |target_addr, lladdr: Mac| {
        let lladdr = Some(smoltcp::wire::RawHardwareAddress::from_bytes(&lladdr.0));
        let flags = NdiscNeighborFlags::OVERRIDE;
        answers::discovery(other.1, own.1, NdiscRepr::NeighborAdvert { flags, target_addr, lladdr })
    };
    assert_eq!(dropped(&advert(other.1.1, one.mac)), Reason::SpoofedAddress);
    assert_eq!(dropped(&advert(own.1.1, two.mac)), Reason::SpoofedMac);
    assert_eq!(dropped(&advert(own.1.1, one.mac)), Reason::Answered);
}

#[test]
fn no_machine_plays_the_network() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let (own, other) = (cards(&one), cards(&two));
    let source = (one.mac, one.addresses[0]);
    let server = udp((Mac::BROADCAST, ip("255.255.255.255")), source, (67, 68), b"take this");
    assert_eq!(dropped(&server), Reason::RogueService);
    let server = udp((two.mac, two.addresses[1]), (one.mac, one.addresses[1]), (547, 546), b"take this");
    assert_eq!(dropped(&server), Reason::RogueService);
    let advert = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: smoltcp::time::Duration::from_secs(9),
        reachable_time: smoltcp::time::Duration::ZERO,
        retrans_time: smoltcp::time::Duration::ZERO,
        lladdr: None,
        mtu: None,
        prefix_info: None,
    };
    let advert = answers::discovery(other.1, own.1, advert);
    assert_eq!(dropped(&advert), Reason::RogueService);
    // Behind a header of options that a switch would not look past (RFC 7113).
    let mut hidden = advert[..54].to_vec();
    hidden[20] = IpProtocol::Ipv6Opts.into();
    hidden[19] += 8;
    hidden.extend_from_slice(&[IpProtocol::Icmpv6.into(), 0, 1, 4, 0, 0, 0, 0]);
    hidden.extend_from_slice(&advert[54..]);
    assert_eq!(dropped(&hidden), Reason::RogueService);
    // In the first of two fragments.
    let mut cut = advert[..54].to_vec();
    cut[20] = IpProtocol::Ipv6Frag.into();
    cut[19] += 8;
    cut.extend_from_slice(&[IpProtocol::Icmpv6.into(), 0, 0, 1, 0, 0, 0, 9]);
    cut.extend_from_slice(&advert[54..]);
    assert_eq!(dropped(&cut), Reason::Malformed);
    // From beyond a router.
    let mut far = solicit(own.1, other.1.1);
    far[21] = 64;
    assert_eq!(dropped(&far), Reason::Malformed);
}

#[test]
fn other_protocols_and_tags_stay_out() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let other = |ethertype: u16| {
        let mut frame = data(&one, &two);
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        dropped(&frame)
    };
    assert_eq!(other(0x8100), Reason::Tagged);
    assert_eq!(other(0x88a8), Reason::Tagged);
    assert_eq!(other(0x88cc), Reason::Protocol);
}

#[test]
fn a_frame_from_elsewhere_counts_by_its_senders_owner_and_epoch() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let frame = data(&two, &one);
    assert_eq!(comes(&frame), Egress::Deliver);
    let judged = |sent| egress(&populated(), node(ME), sent, &frame, frame.len());
    assert_eq!(judged(from(3)), Egress::Drop(Reason::NotOwner));
    assert_eq!(judged(Sent { epoch: 0, ..from(2) }), Egress::Drop(Reason::StaleEpoch));
    assert_eq!(judged(Sent { epoch: 2, ..from(2) }), Egress::Drop(Reason::NewerEpoch));
    let spoofed = udp((one.mac, one.addresses[0]), (two.mac, ip("10.0.0.13")), (1, 2), b"");
    assert_eq!(comes(&spoofed), Egress::Drop(Reason::SpoofedAddress));
    let stranger = udp((one.mac, one.addresses[0]), (Mac([6; 6]), two.addresses[0]), (1, 2), b"");
    assert_eq!(comes(&stranger), Egress::Drop(Reason::NotOwner));
    let to_nobody = udp((Mac([6; 6]), one.addresses[0]), (two.mac, two.addresses[0]), (1, 2), b"");
    assert_eq!(comes(&to_nobody), Egress::Drop(Reason::UnknownTarget));
    let to_all = udp((Mac::BROADCAST, ip("10.0.0.255")), (two.mac, two.addresses[0]), (1, 2), b"");
    assert_eq!(comes(&to_all), Egress::Deliver);
}

#[test]
fn what_the_senders_own_node_answers_comes_from_nowhere_else() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let (own, other) = (cards(&one), cards(&two));
    for frame in [
        arp(true, other.0, own.0.1),
        arp(false, other.0, own.0.1),
        solicit(other.1, own.1.1),
        router_solicit(other.1),
        dhcp(&two, DhcpMessageType::Discover, None),
    ] {
        assert_eq!(comes(&frame), Egress::Drop(Reason::Answered));
    }
}

#[test]
fn a_frame_follows_a_machine_that_has_moved_once() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let frame = data(&two, &one);
    let gone_to = |at: u8| {
        let moved = Endpoint { node: node(at), epoch: 2, previous: Some(node(1)), ..one.clone() };
        with([moved, two.clone()])
    };
    let judged = |network: &Network, me: u8, sent: Sent| egress(network, node(me), sent, &frame, frame.len());
    // Machine 1 has gone from node 1 to node 3.
    let here = gone_to(3);
    assert_eq!(judged(&here, 1, from(2)), Egress::Forward(node(3)));
    let after = Sent { by: node(1), epoch: 1, forwarded: true };
    assert_eq!(judged(&here, 3, after), Egress::Deliver);
    // By anybody else, from where it never was, or in a circle, it does not go on.
    assert_eq!(judged(&here, 3, Sent { by: node(4), ..after }), Egress::Drop(Reason::NotOwner));
    assert_eq!(judged(&here, 4, from(2)), Egress::Drop(Reason::NotHere));
    assert_eq!(judged(&here, 1, Sent { forwarded: true, ..from(2) }), Egress::Drop(Reason::NotOwner));
    assert_eq!(judged(&gone_to(2), 1, from(2)), Egress::Drop(Reason::NotHere));
}
