//! Trains are cut and their parts checked as a card would: lengths, sequence, and the sum that is left to make.

use super::*;
use crate::fixtures::{data, endpoint, pseudo, train};

fn split(whole: &[u8]) -> (Vnet, Vec<u8>) {
    let (vnet, inner) = Vnet::parse(whole).unwrap();
    (vnet, inner.to_vec())
}

#[test]
fn a_header_is_read_and_written_alike() {
    let bytes = [1, 0x81, 66, 0, 0x78, 5, 34, 0, 16, 0];
    let (vnet, rest) = Vnet::parse(&bytes).unwrap();
    assert_eq!((vnet.to_bytes(), rest), (bytes, &[][..]));
    assert_eq!(Vnet::parse(&bytes[..9]), None);
}

#[test]
fn a_train_knows_its_headers_and_segments() {
    for v6 in [false, true] {
        let whole = train(v6, &[7; 5_000], 1_300);
        let (vnet, inner) = split(&whole);
        assert!(vnet.is_sound(&inner, inner.len()));
        let train = vnet.train(&inner, inner.len()).unwrap();
        assert_eq!((train.head, train.segment), (inner.len() - 5_000, 1_300));
        assert_eq!(vnet.train(&inner[..2_000], inner.len()), Some(train), "its first piece says as much");
        assert_eq!(vnet.train(&inner[..2_000], 2_000), None);
        assert_eq!(vnet.train(&inner[..60], inner.len()), None, "not all headers");
    }
}

#[test]
fn a_header_that_no_kernel_wrote_is_not_sound() {
    let good = train(false, &[7; 3_000], 1_300);
    let changed = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        let (vnet, inner) = split(&bad);
        vnet.is_sound(&inner, inner.len())
    };
    assert!(changed(0, 1), "as it was");
    let bad = [
        (0, 0),               // a train whose sum is made already
        (0, 4),               // an unknown flag
        (1, 3),               // UDP fragmentation, which Linux has given up
        (1, 4),               // IPv6
        (6, 33),              // the sum begins elsewhere
        (8, 6),               // and stands elsewhere
        (10 + 14, 0x65),      // another version
        (10 + 14 + 3, 0),     // another length
        (10 + 14 + 9, 17),    // not TCP
        (10 + 34 + 12, 0x40), // headers shorter than TCP's
    ];
    for (at, value) in bad {
        assert!(!changed(at, value), "byte {at} = {value}");
    }
    // Segments of no bytes.
    let mut none = good.clone();
    none[4..6].copy_from_slice(&[0, 0]);
    let (vnet, inner) = split(&none);
    assert!(!vnet.is_sound(&inner, inner.len()));
    // So many segments that one frame would be a flood.
    let mut dust = train(false, &[7; 9_000], 1_300);
    dust[4..6].copy_from_slice(&[1, 0]);
    let (vnet, inner) = split(&dust);
    assert!(!vnet.is_sound(&inner, inner.len()));
}

#[test]
fn only_the_sum_of_tcp_or_udp_is_left_to_make() {
    let (one, two) = (endpoint(1, 1, 1), endpoint(2, 2, 1));
    let frame = data(&one, &two);
    let sound = |start: u16, offset: u16, header: u16| {
        let vnet = Vnet { flags: 1, csum_start: start, csum_offset: offset, header_bytes: header, ..Vnet::default() };
        vnet.is_sound(&frame, frame.len())
    };
    assert!(sound(34, 6, 42));
    assert!(!sound(14, 12, 42), "the address of the sender");
    assert!(!sound(34, 2, 42), "the port");
    assert!(!sound(34, 16, 42), "that of another protocol");
    assert!(!sound(34, 6, 900), "more headers than bytes");
    let mut other = frame.clone();
    other[23] = 1;
    let vnet = Vnet { flags: 1, csum_start: 34, csum_offset: 6, ..Vnet::default() };
    assert!(!vnet.is_sound(&other, other.len()), "ICMP has its own");
    assert!(Vnet { flags: DATA_VALID, ..Vnet::default() }.is_sound(&frame, frame.len()));
}

#[test]
fn a_part_of_a_train_is_a_train_or_a_segment() {
    for v6 in [false, true] {
        let carried: Vec<u8> = (0..5_000u32).map(|n| n as u8).collect();
        let (vnet, inner) = split(&train(v6, &carried, 1_300));
        let whole = vnet.train(&inner, inner.len()).unwrap();
        let (head, _) = inner.split_at(whole.head);
        for (start, end) in [(0, 1_300), (1_300, 3_900), (2_600, 5_000), (3_900, 5_000)] {
            let part = whole.part(head, start..end, &[&carried[start..end - 1], &carried[end - 1..end]]);
            let (vnet, inner) = split(&part);
            assert!(vnet.is_sound(&inner, inner.len()), "{start}..{end}");
            assert_eq!(vnet.is_train(), end - start > 1_300);
            assert_eq!(&inner[whole.head..], &carried[start..end]);
            assert_eq!(usize::from(vnet.header_bytes), whole.head);
            let tcp = &inner[whole.tcp_at..];
            let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
            assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(start as u32));
            assert_eq!(&tcp[16..18], &pseudo(&inner).to_be_bytes());
            assert_eq!(tcp[13] & CWR != 0, start == 0);
            assert_eq!(tcp[13] & FIN_PSH != 0, end == carried.len());
            if !v6 {
                let packet = Ipv4Packet::new_checked(&inner[HEADER_BYTES..]).unwrap();
                assert!(packet.verify_checksum());
                assert_eq!(usize::from(packet.ident()), start / 1_300);
            }
        }
    }
}
