//! Trains are cut and their parts checked as a card would: lengths, sequence, and the sum that is left to make.

use super::*;
use crate::fixtures::{pseudo, train};

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
        assert!(vnet.is_sound(&inner));
        let train = vnet.train(&inner).unwrap();
        assert_eq!((train.head, train.segment), (inner.len() - 5_000, 1_300));
        assert_eq!(vnet.train_head(&inner[..2_000]), Some((train, inner.len())));
        assert_eq!(vnet.train(&inner[..2_000]), None);
    }
}

#[test]
fn a_header_that_no_kernel_wrote_is_not_sound() {
    let good = train(false, &[7; 3_000], 1_300);
    let changed = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        let (vnet, inner) = split(&bad);
        vnet.is_sound(&inner)
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
    assert!(!vnet.is_sound(&inner));
    // Where a sum would be made outside of the frame.
    let outside = Vnet { flags: 1, csum_start: 60, csum_offset: 16, ..Vnet::default() };
    assert!(!outside.is_sound(&[0; 60]) && outside.is_sound(&[0; 78]));
}

#[test]
fn a_part_of_a_train_is_a_train_or_a_segment() {
    for v6 in [false, true] {
        let carried: Vec<u8> = (0..5_000u32).map(|n| n as u8).collect();
        let (vnet, inner) = split(&train(v6, &carried, 1_300));
        let whole = vnet.train(&inner).unwrap();
        let (head, _) = inner.split_at(whole.head);
        for (start, end) in [(0, 1_300), (1_300, 3_900), (2_600, 5_000), (3_900, 5_000)] {
            let part = whole.part(head, start..end, &[&carried[start..end - 1], &carried[end - 1..end]], carried.len());
            let (vnet, inner) = split(&part);
            assert!(vnet.is_sound(&inner), "{start}..{end}");
            assert_eq!(vnet.is_train(), end - start > 1_300);
            assert_eq!(&inner[whole.head..], &carried[start..end]);
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
