//! Super-frames: how frames of a network go through QUIC datagrams (RFC 9221).
//!
//! A frame is what a TAP device gives: up to 64 KiB of TCP at once. It is cut where its segments begin, and put together again
//! without being copied. Where pieces get lost, the segments of the others are still delivered, since the first piece has
//! everybody's headers. Where much gets lost, each segment travels with headers of its own.
//!
//! ```text
//! kind (1) | network (3) | epoch (8) | number (2) | index (1) | pieces (1) | piece
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use fabric::model::Vni;
use thiserror::Error;

use crate::frame;
use crate::limits::{ASSEMBLIES_MAX, ASSEMBLY_TIMEOUT, FRAME_BYTES_MAX, PIECE_COPIED_BYTES};
use crate::vnet::{VNET_BYTES, Vnet};

/// Bytes of the header of a piece.
pub const PIECE_HEADER_BYTES: usize = 16;
const KIND_FRAME: u8 = 1;
const KIND_FORWARDED: u8 = 2;

/// What stands before each piece of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceHeader {
    /// The frame was under way to a machine that has moved.
    pub forwarded: bool,
    /// The network.
    pub vni: Vni,
    /// The epoch of its sender's placement.
    pub epoch: u64,
    /// The frame's number on its connection; numbers come again.
    pub number: u16,
    /// Which piece this is.
    pub index: u8,
    /// How many there are.
    pub pieces: u8,
}

impl PieceHeader {
    /// Reads a datagram: the header, and the piece behind it. None when it is no piece.
    pub fn parse(datagram: &Bytes) -> Option<(Self, Bytes)> {
        let (head, _) = datagram.split_first_chunk::<PIECE_HEADER_BYTES>()?;
        let [kind, v0, v1, v2, e0, e1, e2, e3, e4, e5, e6, e7, n0, n1, index, pieces] = *head;
        let forwarded = match kind {
            KIND_FRAME => false,
            KIND_FORWARDED => true,
            _ => return None,
        };
        let header = PieceHeader {
            forwarded,
            vni: Vni::from_be_bytes([v0, v1, v2])?,
            epoch: u64::from_be_bytes([e0, e1, e2, e3, e4, e5, e6, e7]),
            number: u16::from_be_bytes([n0, n1]),
            index,
            pieces,
        };
        (index < pieces).then(|| (header, datagram.slice(PIECE_HEADER_BYTES..)))
    }

    /// Writes it.
    pub fn write(&self, out: &mut impl BufMut) {
        out.put_u8(if self.forwarded { KIND_FORWARDED } else { KIND_FRAME });
        out.put_slice(&self.vni.to_be_bytes());
        out.put_u64(self.epoch);
        out.put_u16(self.number);
        out.put_u8(self.index);
        out.put_u8(self.pieces);
    }
}

/// Why a frame cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CutError {
    /// It is larger than the path takes, and may not be cut.
    #[error("the frame is larger than the path takes")]
    TooBig,
    /// It is no frame.
    #[error("the header before the frame does not fit it")]
    Malformed,
}

/// Where a frame is cut so that each piece has at most `room` bytes: ranges of `frame`, which begins with its [`Vnet`].
/// A train is cut between its segments, or anywhere when not one of them fits. `dont_fragment` forbids to cut what is no
/// train, and a segment.
///
/// # Errors
/// See [`CutError`].
pub fn cut(frame: &[u8], room: usize, dont_fragment: bool) -> Result<Vec<Range<usize>>, CutError> {
    let (vnet, inner) = Vnet::parse(frame).ok_or(CutError::Malformed)?;
    if frame.len() > FRAME_BYTES_MAX || !vnet.is_sound(inner, inner.len()) {
        return Err(CutError::Malformed);
    }
    if frame.len() <= room {
        return Ok(std::iter::once(0..frame.len()).collect());
    }
    let (head, step) = match vnet.train(inner, inner.len()) {
        Some(train) => {
            let head = VNET_BYTES + train.head;
            let step = room.saturating_sub(head) / train.segment * train.segment;
            if step > 0 || dont_fragment { (head, step) } else { (0, room) }
        }
        None if dont_fragment => return Err(CutError::TooBig),
        None => (0, room),
    };
    if step == 0 || (frame.len() - head).div_ceil(step) > usize::from(u8::MAX) {
        return Err(CutError::TooBig);
    }
    // The first piece has the headers as well.
    let starts = std::iter::once(0).chain((head + step..frame.len()).step_by(step));
    Ok(starts.map(|start| start..(start.max(head) + step).min(frame.len())).collect())
}

/// A frame that is a train, as frames of one segment each; none when it is no train.
pub fn segments(frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (vnet, inner) = Vnet::parse(frame)?;
    let train = vnet.train(inner, inner.len())?;
    let (head, carried) = inner.split_at(train.head);
    let starts = (0..carried.len()).step_by(train.segment);
    let part = |start: usize| {
        let part = start..(start + train.segment).min(carried.len());
        train.part(head, part.clone(), &[&carried[part]])
    };
    Some(starts.map(part).collect())
}

/// What came of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrived {
    /// All of it: its pieces in order, the first with its [`Vnet`].
    Whole(PieceHeader, Vec<Bytes>),
    /// Some of it: frames of their own, each with its [`Vnet`].
    Parts(PieceHeader, Vec<Vec<u8>>),
    /// None of it can be used, or what came is nothing that a kernel should see.
    Lost(PieceHeader),
}

/// A frame of which pieces are missing.
#[derive(Debug)]
struct Assembly {
    header: PieceHeader,
    pieces: Vec<Option<Bytes>>,
    missing: usize,
    bytes: usize,
    /// When its last piece came.
    at: Duration,
}

/// Puts the frames of one connection together.
#[derive(Debug, Default)]
pub struct Assembler {
    /// In the order of their first pieces.
    open: VecDeque<Assembly>,
}

impl Assembler {
    /// Takes a piece, at a time. What comes of it, and of older frames that make room, is added to `out`.
    pub fn push(&mut self, now: Duration, header: PieceHeader, piece: Bytes, out: &mut Vec<Arrived>) {
        self.expire(now, out);
        // A sender's numbers go up by one: what is so far behind has got lost.
        self.give_up(out, |open| {
            let ahead = header.number.wrapping_sub(open.header.number);
            (ASSEMBLIES_MAX as u16..u16::MAX / 2).contains(&ahead)
        });
        if header.pieces == 1 {
            return out.push(judged(header, vec![piece]));
        }
        let piece = if piece.len() < PIECE_COPIED_BYTES { Bytes::copy_from_slice(&piece) } else { piece };
        let key = PieceHeader { index: 0, ..header };
        let at = match self.open.iter().position(|assembly| assembly.header == key) {
            Some(at) => at,
            None => {
                if self.open.len() >= ASSEMBLIES_MAX {
                    self.open.pop_front().into_iter().for_each(|assembly| out.push(assembly.salvage()));
                }
                let pieces = vec![None; header.pieces.into()];
                let missing = pieces.len();
                self.open.push_back(Assembly { header: key, pieces, missing, bytes: 0, at: now });
                self.open.len() - 1
            }
        };
        let assembly = &mut self.open[at];
        let place = &mut assembly.pieces[usize::from(header.index)];
        if place.is_some() {
            return; // it came twice
        }
        assembly.at = now;
        assembly.missing -= 1;
        assembly.bytes += piece.len();
        *place = Some(piece);
        let (done, too_long) = (assembly.missing == 0, assembly.bytes > FRAME_BYTES_MAX);
        if (done || too_long)
            && let Some(Assembly { header, pieces, .. }) = self.open.remove(at)
        {
            let pieces: Vec<Bytes> = pieces.into_iter().flatten().collect();
            out.push(if too_long { Arrived::Lost(header) } else { judged(header, pieces) });
        }
    }

    /// Gives up frames of which nothing has come for `ASSEMBLY_TIMEOUT`, and adds what can be used of them to `out`.
    pub fn expire(&mut self, now: Duration, out: &mut Vec<Arrived>) {
        self.give_up(out, |open| now.saturating_sub(open.at) >= ASSEMBLY_TIMEOUT);
    }

    fn give_up(&mut self, out: &mut Vec<Arrived>, is_lost: impl Fn(&Assembly) -> bool) {
        while let Some(at) = self.open.iter().position(&is_lost) {
            self.open.remove(at).into_iter().for_each(|assembly| out.push(assembly.salvage()));
        }
    }

    /// When [`Assembler::expire`] has something to do next.
    pub fn deadline(&self) -> Option<Duration> {
        self.open.iter().map(|assembly| assembly.at + ASSEMBLY_TIMEOUT).min()
    }

    /// Gives up everything: the connection has ended.
    pub fn end(&mut self, out: &mut Vec<Arrived>) {
        self.give_up(out, |_| true);
    }
}

impl Assembly {
    /// The segments that did come.
    fn salvage(self) -> Arrived {
        match self.parts() {
            Some(parts) if !parts.is_empty() => Arrived::Parts(self.header, parts),
            _ => Arrived::Lost(self.header),
        }
    }

    fn parts(&self) -> Option<Vec<Vec<u8>>> {
        let first = self.pieces.first()?.as_ref()?;
        let (vnet, inner) = Vnet::parse(first)?;
        let length = frame::length(inner)?;
        let train = vnet.train(inner, length).filter(|_| vnet.is_sound(inner, length))?;
        let (head, carried) = inner.split_at(train.head);
        // Every piece carries as much as the first; the last one carries the rest.
        let step = carried.len();
        if step == 0 || step % train.segment != 0 || train.total.div_ceil(step) != self.pieces.len() {
            return None;
        }
        let ranges = (0..train.total).step_by(step).map(|start| start..(start + step).min(train.total));
        let pieces = self.pieces.iter().enumerate().map(|(at, piece)| match at {
            0 => Some(carried),
            _ => piece.as_deref(),
        });
        let pieces: Vec<(Range<usize>, Option<&[u8]>)> = ranges.zip(pieces).collect();
        if pieces.iter().any(|(range, piece)| piece.is_some_and(|piece| piece.len() != range.len())) {
            return None;
        }
        let runs = pieces.chunk_by(|(_, one), (_, other)| one.is_some() == other.is_some());
        let part = |run: &[(Range<usize>, Option<&[u8]>)]| {
            let carried: Vec<&[u8]> = run.iter().filter_map(|(_, piece)| *piece).collect();
            let (first, last) = (run.first()?, run.last()?);
            (!carried.is_empty()).then(|| train.part(head, first.0.start..last.0.end, &carried))
        };
        Some(runs.filter_map(part).collect())
    }
}

/// A frame that has come whole, if a kernel may see it.
fn judged(header: PieceHeader, pieces: Vec<Bytes>) -> Arrived {
    let length = pieces.iter().map(Bytes::len).sum::<usize>().checked_sub(VNET_BYTES);
    let parsed = pieces.first().and_then(|first| Vnet::parse(first)).zip(length);
    match parsed.is_some_and(|((vnet, head), length)| vnet.is_sound(head, length)) {
        true => Arrived::Whole(header, pieces),
        false => Arrived::Lost(header),
    }
}

#[cfg(test)]
mod tests;
