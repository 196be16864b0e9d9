//! The header that a TAP device puts before each frame: what the sender left for the card to do (virtio 1.3, 5.1.6; Linux
//! `struct virtio_net_hdr`). TCP hands over up to 64 KiB at once and leaves its checksum open; both go through the tunnel as
//! they are, so that no node cuts or sums what the other end would put together again.

use std::ops::Range;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, checksum};

use crate::frame::HEADER_BYTES;

/// Bytes of the header.
pub const VNET_BYTES: usize = 10;
/// The checksum is still to be made.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// A flag beside the kind: the sender uses ECN.
const GSO_ECN: u8 = 0x80;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
const TCP_CSUM_AT: usize = 16;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// A header, as this host's kernel reads and writes it.
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

    /// Whether a peer's header is one that this host's own kernel could have written for the frame. Anything else is not
    /// handed to a kernel.
    pub fn is_sound(&self, frame: &[u8]) -> bool {
        let summed = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
        let known = matches!(self.gso_type & !GSO_ECN, GSO_NONE | GSO_TCPV4 | GSO_TCPV6);
        let sums =
            self.flags & NEEDS_CSUM == 0 || (usize::from(self.csum_start) >= HEADER_BYTES && summed <= frame.len());
        known && self.flags & !(NEEDS_CSUM | 2) == 0 && sums && (!self.is_train() || self.train(frame).is_some())
    }

    /// Whether the frame is a train of TCP segments.
    pub fn is_train(&self) -> bool {
        self.gso_type != GSO_NONE
    }

    /// The train that a frame is; none when it is no well-formed one of TCP.
    pub fn train(&self, frame: &[u8]) -> Option<Train> {
        self.train_head(frame).filter(|(_, bytes)| *bytes == frame.len()).map(|(train, _)| train)
    }

    /// The train whose headers and first segments `bytes` are, and how many bytes its whole frame has; none when it is no
    /// train of TCP.
    pub fn train_head(&self, bytes: &[u8]) -> Option<(Train, usize)> {
        let packet = bytes.get(HEADER_BYTES..)?;
        let (ip_bytes, packet_bytes) = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 if packet.len() >= IPV4_BYTES => {
                let packet = Ipv4Packet::new_unchecked(packet);
                let whole = packet.frag_offset() == 0 && !packet.more_frags();
                let right = packet.version() == 4 && packet.next_header() == IpProtocol::Tcp && whole;
                let header = usize::from(packet.header_len());
                (right && header >= IPV4_BYTES).then(|| (header, usize::from(packet.total_len())))?
            }
            GSO_TCPV6 if packet.len() >= IPV6_BYTES => {
                let packet = Ipv6Packet::new_unchecked(packet);
                let right = packet.version() == 6 && packet.next_header() == IpProtocol::Tcp;
                right.then(|| (IPV6_BYTES, packet.total_len()))?
            }
            _ => return None,
        };
        let tcp_at = HEADER_BYTES + ip_bytes;
        let tcp = bytes.get(tcp_at..).filter(|tcp| tcp.len() >= TCP_BYTES)?;
        let tcp_bytes = usize::from(tcp[12] >> 4) * 4;
        let head = tcp_at + tcp_bytes;
        let right = self.flags & NEEDS_CSUM != 0
            && usize::from(self.csum_start) == tcp_at
            && usize::from(self.csum_offset) == TCP_CSUM_AT
            && self.gso_bytes > 0
            && tcp_bytes >= TCP_BYTES
            && head < bytes.len().min(HEADER_BYTES + packet_bytes);
        let train = Train { vnet: *self, tcp_at, head, segment: self.gso_bytes.into() };
        right.then_some((train, HEADER_BYTES + packet_bytes))
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
}

impl Train {
    /// The part of the train that carries `part` of its bytes, as a frame of its own with the header before it. `head` holds
    /// the train's headers, `carried` what the part carries, and `total` is how many bytes the whole train carries. `part`
    /// begins with a segment.
    pub fn part(&self, head: &[u8], part: Range<usize>, carried: &[&[u8]], total: usize) -> Vec<u8> {
        let length = part.len();
        let mut vnet = self.vnet;
        if length <= self.segment {
            (vnet.gso_type, vnet.gso_bytes) = (GSO_NONE, 0);
        }
        let mut whole = Vec::with_capacity(VNET_BYTES + self.head + length);
        whole.extend_from_slice(&vnet.to_bytes());
        whole.extend_from_slice(head);
        carried.iter().for_each(|bytes| whole.extend_from_slice(bytes));
        self.mend(&mut whole[VNET_BYTES..VNET_BYTES + self.head], &part, total);
        whole
    }

    /// Makes the headers of the train those of a part.
    fn mend(&self, head: &mut [u8], part: &Range<usize>, total: usize) {
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
        if part.end < total {
            tcp[13] &= !FIN_PSH; // the last one's
        }
        // The sum over what comes before it; the rest is left to the card (virtio 1.3, 5.1.6.2.1).
        tcp[TCP_CSUM_AT..TCP_CSUM_AT + 2].copy_from_slice(&pseudo.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
