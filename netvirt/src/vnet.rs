//! The header that a TAP device puts before each frame: what the sender left for the card to do (virtio 1.3, 5.1.6; Linux
//! `struct virtio_net_hdr`). TCP hands over up to 64 KiB at once and leaves its checksum open; both go through the tunnel as
//! they are, so that no node cuts or sums what the other end would put together again.

use std::ops::Range;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, checksum};

use crate::frame::{self, HEADER_BYTES, IPV6_BYTES, transport};
use crate::limits::SEGMENTS_MAX;

/// Bytes of the header.
pub const VNET_BYTES: usize = 10;
/// The checksum is still to be made.
const NEEDS_CSUM: u8 = 1;
/// It was made, and is right.
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// A flag beside the kind: the sender uses ECN.
const GSO_ECN: u8 = 0x80;
const TCP_BYTES: usize = 20;
const TCP_CSUM_AT: usize = 16;
const UDP_CSUM_AT: usize = 6;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// A header. Its numbers are little-endian, here and in the tunnel: a device is told so (`TUNSETVNETLE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vnet {
    flags: u8,
    gso_type: u8,
    header_bytes: u16,
    gso_bytes: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Vnet {
    /// Reads the header before a frame; what follows is the frame.
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, frame) = bytes.split_first_chunk::<VNET_BYTES>()?;
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *head;
        let number = |low, high| u16::from_le_bytes([low, high]);
        let header_bytes = number(a, b);
        let (gso_bytes, csum_start, csum_offset) = (number(c, d), number(e, f), number(g, h));
        Some((Vnet { flags, gso_type, header_bytes, gso_bytes, csum_start, csum_offset }, frame))
    }

    /// As it is written before a frame.
    pub fn to_bytes(self) -> [u8; VNET_BYTES] {
        let [a, b] = self.header_bytes.to_le_bytes();
        let [c, d] = self.gso_bytes.to_le_bytes();
        let [e, f] = self.csum_start.to_le_bytes();
        let [g, h] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }

    /// Whether it may be handed to a kernel with the frame of `length` bytes that begins with `head`: nothing but the sum of
    /// TCP or UDP is left to make, since whoever makes it writes where the header says; and the only trains are those of TCP.
    pub fn is_sound(&self, head: &[u8], length: usize) -> bool {
        let sums = self.flags & NEEDS_CSUM == 0
            || transport(head, length).is_some_and(|(at, protocol)| {
                let stands = if protocol == IpProtocol::Tcp { TCP_CSUM_AT } else { UDP_CSUM_AT };
                let (start, offset) = (usize::from(self.csum_start), usize::from(self.csum_offset));
                (start, offset) == (at, stands) && start + offset + 2 <= length
            });
        let train = !self.is_train() || self.train(head, length).is_some();
        self.flags & !(NEEDS_CSUM | DATA_VALID) == 0 && usize::from(self.header_bytes) <= length && sums && train
    }

    /// Whether the frame is a train of TCP segments.
    pub fn is_train(&self) -> bool {
        self.gso_type != GSO_NONE
    }

    /// The train that a frame of `length` bytes is, whose headers are in `head`; none when it is no well-formed one of TCP.
    pub fn train(&self, head: &[u8], length: usize) -> Option<Train> {
        let version = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 => 4,
            GSO_TCPV6 => 6,
            _ => return None,
        };
        let (tcp_at, protocol) = transport(head, length)?;
        let tcp = head.get(tcp_at..).filter(|tcp| protocol == IpProtocol::Tcp && tcp.len() >= TCP_BYTES)?;
        let packet = &head[HEADER_BYTES..];
        // Behind other headers than IP's own a card cuts nothing.
        let plain = version == 4 || tcp_at == HEADER_BYTES + IPV6_BYTES;
        let tcp_bytes = usize::from(tcp[12] >> 4) * 4;
        let (bytes, segment) = (tcp_at + tcp_bytes, usize::from(self.gso_bytes));
        let right = packet[0] >> 4 == version
            && plain
            && self.flags & NEEDS_CSUM != 0
            && (self.csum_start.into(), self.csum_offset.into()) == (tcp_at, TCP_CSUM_AT)
            && frame::length(head) == Some(length)
            && tcp_bytes >= TCP_BYTES
            && bytes <= head.len()
            && (1..length).contains(&bytes)
            && segment > 0
            && (length - bytes).div_ceil(segment) <= SEGMENTS_MAX;
        right.then_some(Train { vnet: *self, tcp_at, head: bytes, segment, total: length - bytes })
    }
}

/// A train of TCP segments: headers once, then what the segments carry, all of the same length but the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Train {
    vnet: Vnet,
    tcp_at: usize,
    /// Bytes of all headers.
    pub head: usize,
    /// Bytes that each segment carries.
    pub segment: usize,
    /// Bytes that all of them carry.
    pub total: usize,
}

impl Train {
    /// The part of the train that carries `part` of its bytes, as a frame of its own with the header before it. `head` holds
    /// the train's headers, and `carried` what the part carries. `part` begins with a segment, and lies within the train.
    pub fn part(&self, head: &[u8], part: Range<usize>, carried: &[&[u8]]) -> Vec<u8> {
        let length = part.len();
        let mut vnet = Vnet { header_bytes: self.head as u16, ..self.vnet };
        if length <= self.segment {
            (vnet.gso_type, vnet.gso_bytes) = (GSO_NONE, 0);
        }
        let mut whole = Vec::with_capacity(VNET_BYTES + self.head + length);
        whole.extend_from_slice(&vnet.to_bytes());
        whole.extend_from_slice(head);
        carried.iter().for_each(|bytes| whole.extend_from_slice(bytes));
        self.mend(&mut whole[VNET_BYTES..VNET_BYTES + self.head], &part);
        whole
    }

    /// Makes the headers of the train those of a part.
    fn mend(&self, head: &mut [u8], part: &Range<usize>) {
        let (ip, tcp) = head.split_at_mut(self.tcp_at);
        let ip = &mut ip[HEADER_BYTES..];
        let tcp_bytes = (tcp.len() + part.len()) as u16;
        let pseudo = if ip[0] >> 4 == 4 {
            let index = (part.start / self.segment) as u16;
            let mut packet = Ipv4Packet::new_unchecked(&mut *ip);
            packet.set_total_len(u16::from(packet.header_len()) + tcp_bytes);
            packet.set_ident(packet.ident().wrapping_add(index));
            packet.fill_checksum();
            checksum::pseudo_header_v4(&packet.src_addr(), &packet.dst_addr(), IpProtocol::Tcp, tcp_bytes.into())
        } else {
            let mut packet = Ipv6Packet::new_unchecked(&mut *ip);
            packet.set_payload_len(tcp_bytes);
            checksum::pseudo_header_v6(&packet.src_addr(), &packet.dst_addr(), IpProtocol::Tcp, tcp_bytes.into())
        };
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(part.start as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if part.start > 0 {
            tcp[13] &= !CWR; // told once (RFC 3168, 6.1.2)
        }
        if part.end < self.total {
            tcp[13] &= !FIN_PSH; // the last one's
        }
        // The sum over what comes before it; the rest is left to the card (virtio 1.3, 5.1.6.2.1).
        tcp[TCP_CSUM_AT..TCP_CSUM_AT + 2].copy_from_slice(&pseudo.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
