//! What comes from one peer: datagrams are put together to frames, which are judged and handed to the machines here.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fabric::ids::NodeId;
use fabric::transport::data::DataTaker;

use super::lane::{self, Outgoing};
use super::{Plane, Port};
use crate::drops::Reason;
use crate::forward::{self, Egress, Sent};
use crate::superframe::{Arrived, Assembler, PieceHeader};
use crate::vnet::VNET_BYTES;

/// One connection's frames.
pub(super) struct Taker {
    plane: Plane,
    peer: NodeId,
    assembler: Assembler,
    came: Vec<Arrived>,
}

impl Taker {
    pub(super) fn new(plane: Plane, peer: NodeId) -> Self {
        Taker { plane, peer, assembler: Assembler::default(), came: Vec::new() }
    }

    fn hand_over(&mut self) {
        for arrived in std::mem::take(&mut self.came) {
            self.arrived(arrived);
        }
    }

    fn arrived(&self, arrived: Arrived) {
        match arrived {
            Arrived::Whole(header, pieces) => {
                let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
                self.judge(header, &pieces);
            }
            Arrived::Parts(header, parts) => {
                self.count(header, Reason::Incomplete);
                parts.iter().for_each(|part| self.judge(header, &[part]));
            }
            Arrived::Lost(header) => self.count(header, Reason::Incomplete),
        }
    }

    fn count(&self, header: PieceHeader, reason: Reason) {
        match self.plane.port(header.vni) {
            Some(port) => port.count(reason),
            None => self.plane.stray(reason),
        }
    }

    fn judge(&self, header: PieceHeader, pieces: &[&[u8]]) {
        let Some(port) = self.plane.port(header.vni) else { return self.plane.stray(Reason::UnknownNetwork) };
        let Some(head) = pieces.first().and_then(|first| first.get(VNET_BYTES..)) else {
            return port.count(Reason::Malformed);
        };
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>() - VNET_BYTES;
        let sent = Sent { by: self.peer, epoch: header.epoch, forwarded: header.forwarded };
        match forward::egress(&port.network, self.plane.0.me, sent, head, length) {
            Egress::Deliver => port.bridge.deliver(pieces),
            Egress::Drop(reason) => port.count(reason),
            Egress::Forward(to) => self.forward(port, header.epoch, to, pieces),
        }
    }

    /// Sends a frame after the machine that it was for and that has moved from here.
    fn forward(&self, port: Arc<Port>, epoch: u64, to: NodeId, pieces: &[&[u8]]) {
        let mut bytes = BytesMut::new();
        pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
        let frame = Outgoing { port: port.clone(), epoch, forwarded: true, bytes: bytes.freeze() };
        if !lane::push_now(&self.plane, to, frame) {
            port.count(Reason::Congested);
        }
    }
}

impl DataTaker for Taker {
    fn take(&mut self, datagram: Bytes) {
        let Some((header, piece)) = PieceHeader::parse(&datagram) else { return self.plane.stray(Reason::Malformed) };
        let now = self.plane.0.clock.boottime();
        self.assembler.push(now, header, piece, &mut self.came);
        self.hand_over();
    }

    fn rest(&mut self) -> Option<Duration> {
        let now = self.plane.0.clock.boottime();
        self.assembler.expire(now, &mut self.came);
        self.hand_over();
        self.assembler.deadline().map(|at| at.saturating_sub(now))
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.assembler.end(&mut self.came);
        self.hand_over();
    }
}
