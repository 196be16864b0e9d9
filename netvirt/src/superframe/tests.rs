//! Frames go through in pieces, whole or in part, and whatever comes in their place.

use fabric::model::Vni;
use proptest::prelude::*;

use super::*;
use crate::fixtures::{data, endpoint, train};

const ROOM: usize = 1_400;

fn plain(bytes: usize) -> Vec<u8> {
    let mut whole = Vnet::default().to_bytes().to_vec();
    whole.extend_from_slice(&data(&endpoint(1, 1, 1), &endpoint(2, 2, 1)));
    whole.resize(bytes, 9);
    whole
}

fn header(number: u16, index: usize, pieces: usize) -> PieceHeader {
    let vni = Vni::new(7).unwrap();
    PieceHeader { forwarded: false, vni, epoch: 3, number, index: index as u8, pieces: pieces as u8 }
}

/// The pieces of a frame, as they are received.
fn pieces(frame: &[u8], number: u16) -> Vec<(PieceHeader, Bytes)> {
    let ranges = cut(frame, ROOM, false).unwrap();
    let count = ranges.len();
    let piece = |(at, range): (usize, Range<usize>)| {
        let mut datagram = Vec::new();
        header(number, at, count).write(&mut datagram);
        datagram.extend_from_slice(&frame[range]);
        assert!(datagram.len() <= ROOM + PIECE_HEADER_BYTES);
        PieceHeader::parse(&datagram.into()).unwrap()
    };
    ranges.into_iter().enumerate().map(piece).collect()
}

fn put(assembler: &mut Assembler, at_ms: u64, pieces: impl IntoIterator<Item = (PieceHeader, Bytes)>) -> Vec<Arrived> {
    let mut out = Vec::new();
    for (header, piece) in pieces {
        assembler.push(Duration::from_millis(at_ms), header, piece, &mut out);
    }
    out
}

fn whole(arrived: &[Arrived]) -> Vec<u8> {
    match arrived {
        [Arrived::Whole(_, pieces)] => pieces.concat(),
        other => panic!("not one whole frame: {other:?}"),
    }
}

#[test]
fn headers_are_read_as_they_were_written() {
    let one = PieceHeader { forwarded: true, epoch: u64::MAX - 1, ..header(513, 4, 9) };
    let mut datagram = Vec::new();
    one.write(&mut datagram);
    assert_eq!(datagram.len(), PIECE_HEADER_BYTES);
    datagram.extend_from_slice(b"piece");
    let (read, piece) = PieceHeader::parse(&datagram.clone().into()).unwrap();
    assert_eq!((read, &piece[..]), (one, &b"piece"[..]));
    for (at, value) in [(0, 0), (0, 3), (15, 4), (15, 0)] {
        let mut bad = datagram.clone();
        bad[at] = value;
        assert_eq!(PieceHeader::parse(&bad.into()), None, "byte {at} = {value}");
    }
    let mut nowhere = datagram.clone();
    nowhere[1..4].copy_from_slice(&[0; 3]);
    assert_eq!(PieceHeader::parse(&nowhere.into()), None);
    assert_eq!(PieceHeader::parse(&Bytes::from_static(&[1; 15])), None);
}

#[test]
fn a_frame_that_fits_is_one_piece() {
    let frame = plain(ROOM);
    assert_eq!(cut(&frame, ROOM, true).unwrap().len(), 1);
    assert_eq!(whole(&put(&mut Assembler::default(), 0, pieces(&frame, 1))), frame);
}

#[test]
fn a_train_is_cut_between_its_segments_and_arrives_in_any_order() {
    for v6 in [false, true] {
        for segment in [100, 536, 1_200] {
            let frame = train(v6, &[5; 20_000], segment);
            let mut cut = pieces(&frame, 1);
            let head = frame.len() - 20_000;
            assert_eq!((cut[0].1.len() - head) % usize::from(segment), 0);
            assert_eq!(cut[1].1.len(), cut[0].1.len() - head);
            cut.reverse();
            assert_eq!(whole(&put(&mut Assembler::default(), 0, cut)), frame);
        }
    }
}

#[test]
fn what_may_not_be_cut_is_too_big() {
    assert_eq!(cut(&plain(1_500), ROOM, true), Err(CutError::TooBig));
    assert_eq!(cut(&plain(1_500), ROOM, false), Ok(vec![0..1_400, 1_400..1_500]));
    let wide = train(false, &[5; 9_000], 1_380);
    assert_eq!(cut(&wide, ROOM, true), Err(CutError::TooBig), "a segment does not fit");
    assert!(cut(&wide, ROOM, false).unwrap().iter().all(|range| range.len() <= ROOM));
    let pieces = pieces(&wide, 1);
    assert_eq!(whole(&put(&mut Assembler::default(), 0, pieces.clone())), wide);
    let late = put(&mut Assembler::default(), 0, pieces[1..].to_vec());
    assert_eq!(late, [], "and nothing of it can be used without all of it");
    assert_eq!(cut(&plain(1_500), 4, false), Err(CutError::TooBig), "too many pieces");
    assert_eq!(cut(b"short", ROOM, false), Err(CutError::Malformed));
    assert_eq!(cut(&plain(FRAME_BYTES_MAX + 1), ROOM, false), Err(CutError::Malformed));
    let mut unsound = plain(1_000);
    unsound[1] = 3;
    assert_eq!(cut(&unsound, ROOM, false), Err(CutError::Malformed));
}

#[test]
fn the_segments_around_a_lost_piece_are_delivered() {
    for v6 in [false, true] {
        let carried: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
        let frame = train(v6, &carried, 1_000);
        let cut = pieces(&frame, 1);
        assert_eq!(cut.len(), 10);
        let mut assembler = Assembler::default();
        let without = cut.into_iter().enumerate().filter(|(at, _)| ![3, 8].contains(at)).map(|(_, piece)| piece);
        assert_eq!(put(&mut assembler, 5, without), []);
        let mut out = Vec::new();
        let over = Duration::from_millis(5) + ASSEMBLY_TIMEOUT;
        assert_eq!(assembler.deadline(), Some(over));
        assembler.expire(over - Duration::from_millis(1), &mut out);
        assert_eq!(out, []);
        assembler.expire(over, &mut out);
        let [Arrived::Parts(_, parts)] = &out[..] else { panic!("no parts: {out:?}") };
        let head = frame.len() - carried.len();
        let carry: Vec<&[u8]> = parts.iter().map(|part| &part[head..]).collect();
        assert_eq!(carry, [&carried[..3_000], &carried[4_000..8_000], &carried[9_000..]]);
        for part in parts {
            let (vnet, inner) = Vnet::parse(part).unwrap();
            assert!(vnet.is_sound(inner, inner.len()));
        }
        assert_eq!(assembler.deadline(), None);
    }
}

#[test]
fn without_the_first_piece_or_a_train_nothing_is_left() {
    let lost = |frame: &[u8], missing: usize| {
        let mut cut = pieces(frame, 1);
        cut.remove(missing);
        let mut assembler = Assembler::default();
        assert_eq!(put(&mut assembler, 0, cut), []);
        let mut out = Vec::new();
        assembler.expire(ASSEMBLY_TIMEOUT, &mut out);
        matches!(out[..], [Arrived::Lost(_)])
    };
    assert!(lost(&train(false, &[5; 9_000], 1_000), 0));
    assert!(lost(&plain(4_000), 1));
}

#[test]
fn the_oldest_frame_gives_way_and_a_piece_counts_once() {
    let frame = train(false, &[5; 3_000], 1_000);
    let mut assembler = Assembler::default();
    let mut out = Vec::new();
    for number in 0..=ASSEMBLIES_MAX as u16 {
        let first = pieces(&frame, number).swap_remove(0);
        out.extend(put(&mut assembler, 0, [first.clone(), first]));
    }
    assert!(matches!(&out[..], [Arrived::Parts(header, parts)] if header.number == 0 && parts.len() == 1));
    // The others still come together.
    let rest: Vec<_> = pieces(&frame, 1).split_off(1);
    assert_eq!(whole(&put(&mut assembler, 0, rest)), frame);
}

#[test]
fn what_later_frames_have_overtaken_is_given_up_at_once() {
    let mut assembler = Assembler::default();
    let cut = pieces(&train(false, &[5; 3_000], 1_000), u16::MAX - 3);
    assert_eq!(put(&mut assembler, 0, [cut[0].clone(), cut[2].clone()]), []);
    let small = plain(100);
    let next = |assembler: &mut Assembler, number: u16| put(assembler, 0, pieces(&small, number));
    for ahead in 1..ASSEMBLIES_MAX as u16 {
        assert_eq!(next(&mut assembler, (u16::MAX - 3).wrapping_add(ahead)).len(), 1);
    }
    let out = next(&mut assembler, (u16::MAX - 3).wrapping_add(ASSEMBLIES_MAX as u16));
    assert!(matches!(&out[..], [Arrived::Parts(_, parts), Arrived::Whole(..)] if parts.len() == 2), "{out:?}");
    put(&mut assembler, 0, cut[..1].to_vec());
    let mut rest = Vec::new();
    assembler.end(&mut rest);
    assert_eq!((rest.len(), assembler.deadline()), (1, None));
}

#[test]
fn pieces_that_are_too_much_together_are_lost() {
    let mut assembler = Assembler::default();
    let large = Bytes::from(vec![0; ROOM]);
    let out = put(&mut assembler, 0, (0..60).map(|at| (header(1, at, 60), large.clone())));
    assert!(matches!(out[..], [Arrived::Lost(_)]), "{out:?}");
}

#[test]
fn each_segment_can_travel_by_itself() {
    let carried: Vec<u8> = (0..2_500u32).map(|n| n as u8).collect();
    let alone = segments(&train(true, &carried, 1_000)).unwrap();
    let head = alone[0].len() - 1_000;
    assert_eq!(alone.iter().map(Vec::len).collect::<Vec<_>>(), [head + 1_000, head + 1_000, head + 500]);
    assert_eq!(alone.iter().flat_map(|frame| frame[head..].to_vec()).collect::<Vec<_>>(), carried);
    for frame in &alone {
        let (vnet, inner) = Vnet::parse(frame).unwrap();
        assert!(!vnet.is_train() && vnet.is_sound(inner, inner.len()));
    }
    assert_eq!(segments(&plain(500)), None);
}

/// The first piece of a train, with the piece count and lengths that a hostile peer likes.
fn forged(carried: usize, pieces: usize, longer: usize) -> Vec<(PieceHeader, Bytes)> {
    let frame = train(false, &vec![5; carried], 1_310);
    let head = frame.len() - carried;
    let first = Bytes::copy_from_slice(&frame[..head + 1_310]);
    let other = Bytes::from(vec![6; 1_310 + longer]);
    let rest = (1..50).map(|at| (header(1, at, pieces), other.clone()));
    std::iter::once((header(1, 0, pieces), first)).chain(rest).collect()
}

#[test]
fn pieces_that_say_more_than_their_train_are_lost() {
    for (carried, pieces, longer) in [(1_400, 60, 0), (65_000, 60, 0), (65_000, 50, 1), (60_000, 50, 0)] {
        let mut assembler = Assembler::default();
        let mut out = put(&mut assembler, 0, forged(carried, pieces, longer));
        assembler.expire(ASSEMBLY_TIMEOUT, &mut out);
        assert!(matches!(out[..], [Arrived::Lost(_)]), "{carried} {pieces} {longer}: {out:?}");
    }
}

#[test]
fn a_frame_that_no_kernel_should_see_is_lost() {
    let mut unsound = plain(200);
    unsound[1] = 3;
    let out = put(&mut Assembler::default(), 0, [(header(1, 0, 1), unsound.into())]);
    assert!(matches!(out[..], [Arrived::Lost(_)]));
    for short in [&b""[..], b"\0\0\0"] {
        let out = put(&mut Assembler::default(), 0, [(header(1, 0, 1), Bytes::from_static(short))]);
        assert!(matches!(out[..], [Arrived::Lost(_)]), "{short:?}");
    }
}

#[test]
fn a_slow_frame_comes_together_and_a_late_piece_begins_another_one() {
    let cut = pieces(&train(false, &[5; 3_000], 1_000), 1);
    let late = ASSEMBLY_TIMEOUT.as_millis() as u64;
    let mut assembler = Assembler::default();
    let slow: Vec<_> = (0..3).flat_map(|at| put(&mut assembler, late / 2 * at, [cut[at as usize].clone()])).collect();
    assert!(matches!(&slow[..], [Arrived::Whole(..)]), "{slow:?}");
    let mut assembler = Assembler::default();
    assert_eq!(put(&mut assembler, 0, cut[..2].to_vec()), []);
    let out = put(&mut assembler, late, cut[2..].to_vec());
    assert!(matches!(&out[..], [Arrived::Parts(_, parts)] if parts.len() == 1), "{out:?}");
}

proptest! {
    #[test]
    fn nothing_that_comes_breaks_the_assembler(
        datagrams in prop::collection::vec((any::<[u8; 16]>(), prop::collection::vec(any::<u8>(), 0..80)), 0..60)
    ) {
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        for (at, (mut head, piece)) in datagrams.into_iter().enumerate() {
            // Few numbers and pieces, so that frames do come together.
            (head[0], head[12], head[13]) = (1 + head[0] % 2, 0, head[13] % 3);
            (head[14], head[15]) = (head[14] % 4, head[15] % 5);
            let datagram = Bytes::from([&head[..], &piece].concat());
            let Some((header, piece)) = PieceHeader::parse(&datagram) else { continue };
            let now = Duration::from_millis(at as u64);
            assembler.push(now, PieceHeader { epoch: 1, ..header }, piece, &mut out);
            assembler.expire(now, &mut out);
        }
        assembler.expire(Duration::MAX, &mut out);
        prop_assert_eq!(assembler.deadline(), None);
    }

    #[test]
    fn damaged_trains_give_sound_frames_or_none(
        length in 1usize..9_000, segment in 1u16..1_200, v6: bool, missing in 0usize..9,
        damage in prop::collection::vec((0usize..100, any::<u8>()), 0..6),
        hostile in prop::collection::vec((0usize..90, any::<u8>()), 0..3)
    ) {
        let mut frame = train(v6, &vec![3; length], segment);
        for (at, value) in damage {
            let at = at % frame.len();
            frame[at] = value;
        }
        let Ok(ranges) = cut(&frame, ROOM, false) else { return Ok(()) };
        let count = ranges.len();
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        for (at, range) in ranges.into_iter().enumerate().filter(|(at, _)| *at != missing) {
            let mut piece = frame[range].to_vec();
            // A peer need not have cut what it sends.
            hostile.iter().for_each(|(at, value)| piece.get_mut(*at).into_iter().for_each(|byte| *byte = *value));
            assembler.push(Duration::ZERO, header(1, at, count), piece.into(), &mut out);
            prop_assert!(assembler.open.len() <= ASSEMBLIES_MAX);
        }
        assembler.expire(ASSEMBLY_TIMEOUT, &mut out);
        for arrived in out {
            match arrived {
                Arrived::Whole(_, pieces) => prop_assert!(!hostile.is_empty() || pieces.concat() == frame),
                Arrived::Parts(_, parts) => {
                    for part in parts {
                        let (vnet, inner) = Vnet::parse(&part).unwrap();
                        prop_assert!(vnet.is_sound(inner, inner.len()));
                    }
                }
                Arrived::Lost(_) => {}
            }
        }
    }
}
