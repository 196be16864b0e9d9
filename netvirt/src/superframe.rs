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

use crate::limits::{ASSEMBLIES_MAX, ASSEMBLY_TIMEOUT, FRAME_BYTES_MAX};
use crate::vnet::{Train, VNET_BYTES, Vnet};

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
/// `whole` says that the network must not cut it by itself; a train of segments is cut between them all the same.
///
/// # Errors
/// See [`CutError`].
pub fn cut(frame: &[u8], room: usize, whole: bool) -> Result<Vec<Range<usize>>, CutError> {
    let (vnet, inner) = Vnet::parse(frame).ok_or(CutError::Malformed)?;
    if frame.len() > FRAME_BYTES_MAX || !vnet.is_sound(inner) {
        return Err(CutError::Malformed);
    }
    if frame.len() <= room {
        return Ok(vec![0..frame.len()]);
    }
    let (head, step) = match vnet.train(inner) {
        Some(train) => {
            let head = VNET_BYTES + train.head;
            (head, room.saturating_sub(head) / train.segment * train.segment)
        }
        None if whole => return Err(CutError::TooBig),
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
    let train = vnet.train(inner)?;
    let (head, carried) = inner.split_at(train.head);
    let starts = (0..carried.len()).step_by(train.segment);
    let part = |start: usize| {
        let part = start..(start + train.segment).min(carried.len());
        train.part(head, part.clone(), &[&carried[part]], carried.len())
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
    /// None of it can be used.
    Lost(PieceHeader),
}

/// A frame of which pieces are missing.
#[derive(Debug)]
struct Assembly {
    header: PieceHeader,
    pieces: Vec<Option<Bytes>>,
    missing: usize,
    bytes: usize,
    since: Duration,
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
        if header.pieces == 1 {
            return out.push(Arrived::Whole(header, vec![piece]));
        }
        let key = PieceHeader { index: 0, ..header };
        let at = match self.open.iter().position(|assembly| assembly.header == key) {
            Some(at) => at,
            None => {
                if self.open.len() >= ASSEMBLIES_MAX {
                    self.open.pop_front().into_iter().for_each(|assembly| out.push(assembly.salvage()));
                }
                let pieces = vec![None; header.pieces.into()];
                let missing = pieces.len();
                self.open.push_back(Assembly { header: key, pieces, missing, bytes: 0, since: now });
                self.open.len() - 1
            }
        };
        let assembly = &mut self.open[at];
        let place = &mut assembly.pieces[usize::from(header.index)];
        if place.is_some() {
            return; // it came twice
        }
        assembly.missing -= 1;
        assembly.bytes += piece.len();
        *place = Some(piece);
        let (done, too_long) = (assembly.missing == 0, assembly.bytes > FRAME_BYTES_MAX);
        if (done || too_long)
            && let Some(Assembly { header, pieces, .. }) = self.open.remove(at)
        {
            let pieces: Vec<Bytes> = pieces.into_iter().flatten().collect();
            out.push(if too_long { Arrived::Lost(header) } else { Arrived::Whole(header, pieces) });
        }
    }

    /// Gives up what is older than `ASSEMBLY_TIMEOUT`, and adds what can be used of it to `out`.
    pub fn expire(&mut self, now: Duration, out: &mut Vec<Arrived>) {
        while self.open.front().is_some_and(|assembly| now.saturating_sub(assembly.since) >= ASSEMBLY_TIMEOUT) {
            self.open.pop_front().into_iter().for_each(|assembly| out.push(assembly.salvage()));
        }
    }

    /// When [`Assembler::expire`] has something to do next.
    pub fn deadline(&self) -> Option<Duration> {
        self.open.front().map(|assembly| assembly.since + ASSEMBLY_TIMEOUT)
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
        let (train, head, carried) = opened(first)?;
        // Every piece but the last carries as much as the first.
        let step = carried.len();
        let places = self.pieces.iter().enumerate();
        let carried = |(at, piece): (usize, &Option<Bytes>)| {
            let piece = piece.as_ref()?;
            Some(if at == 0 { &first[first.len() - step..] } else { &piece[..] }).map(<[u8]>::to_vec)
        };
        let pieces: Vec<Option<Vec<u8>>> = places.map(carried).collect();
        let last = pieces.len() - 1;
        let fits = |at: usize, piece: &[u8]| if at == last { piece.len() <= step } else { piece.len() == step };
        if pieces.iter().enumerate().any(|(at, piece)| piece.as_ref().is_some_and(|piece| !fits(at, piece))) {
            return None;
        }
        // How long the last one is only matters when it is there: the others are not the end.
        let total = pieces[last].as_ref().map_or(usize::MAX, |piece| last * step + piece.len());
        let mut parts = Vec::new();
        let mut at = 0;
        while at < pieces.len() {
            let run: Vec<&[u8]> = pieces[at..].iter().map_while(Option::as_deref).collect();
            let length: usize = run.iter().map(|piece| piece.len()).sum();
            if length > 0 {
                parts.push(train.part(head, at * step..at * step + length, &run, total));
            }
            at += run.len() + 1;
        }
        Some(parts)
    }
}

/// The first piece of a train: its headers, and the segments that it carries itself.
fn opened(first: &[u8]) -> Option<(Train, &[u8], &[u8])> {
    let (vnet, inner) = Vnet::parse(first)?;
    let (train, _) = vnet.train_head(inner)?;
    let (head, carried) = inner.split_at_checked(train.head)?;
    (!carried.is_empty() && carried.len() % train.segment == 0).then_some((train, head, carried))
}

#[cfg(test)]
mod tests;
