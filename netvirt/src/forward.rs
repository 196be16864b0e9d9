//! Where a frame goes. Pure: the directory and the frame decide, nothing is learned.
//!
//! A frame is judged twice. Where it enters, its sender must be a machine of this node and may only use its own addresses;
//! what the network itself answers goes no further. Where it leaves the tunnel, its sender must be owned, in the epoch that
//! the frame was sent in, by the node that sent it.

use std::net::IpAddr;

use fabric::ids::NodeId;

use crate::answers;
use crate::directory::{Endpoint, Network};
use crate::drops::Reason;
use crate::frame::{Arp, Discovery, Frame, Ip, Message, Packet};

/// Where a frame of a machine here goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ingress {
    /// Nowhere; its sender gets this frame instead.
    Answer(Vec<u8>),
    /// To the node that has its target.
    To(NodeId),
    /// To every other node that has machines in the network, at the rate that its sender may.
    All(Vec<NodeId>),
    /// Nowhere else: its target is on this node, where the bridge brings it.
    Here,
    /// Nowhere.
    Drop(Reason),
}

/// Where a frame from another node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// To the machines here: the bridge finds the right one.
    Deliver,
    /// To the node to which its target has moved from here.
    Forward(NodeId),
    /// Nowhere.
    Drop(Reason),
}

/// How a frame came from another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The node at the other end of the connection.
    pub by: NodeId,
    /// The epoch of its sender's placement, as that node knows it.
    pub epoch: u64,
    /// That node had it from another one, and its target has moved.
    pub forwarded: bool,
}

/// Decides about a frame that a machine here has sent.
pub fn ingress(network: &Network, me: NodeId, bytes: &[u8]) -> Ingress {
    let Ok(frame) = Frame::parse(bytes) else { return Ingress::Drop(Reason::Malformed) };
    let Some(sender) = network.endpoint(frame.source) else { return Ingress::Drop(Reason::SpoofedMac) };
    if sender.node != me {
        return Ingress::Drop(Reason::NotOwner);
    }
    if let Err(reason) = check_source(sender, &frame) {
        return Ingress::Drop(reason);
    }
    match frame.packet {
        Packet::Arp(arp) => resolve_v4(network, me, &arp),
        Packet::Ip(Ip { source, message, .. }) => match message {
            Message::DhcpAsks(asked) => answered(answers::dhcp(network, sender, asked)),
            Message::Discovery(discovery) => resolve_v6(network, me, (sender, source), discovery),
            Message::Groups | Message::DhcpAnswers => Ingress::Drop(Reason::Answered),
            Message::Data => carry(network, me, &frame),
        },
        Packet::Tagged => Ingress::Drop(Reason::Tagged),
        Packet::Other(_) => Ingress::Drop(Reason::Protocol),
    }
}

fn answered(answer: Option<Vec<u8>>) -> Ingress {
    answer.map_or(Ingress::Drop(Reason::Answered), Ingress::Answer)
}

fn carry(network: &Network, me: NodeId, frame: &Frame<'_>) -> Ingress {
    if !frame.target.is_unicast() {
        let others: Vec<NodeId> = network.nodes().into_iter().filter(|node| *node != me).collect();
        return if others.is_empty() { Ingress::Here } else { Ingress::All(others) };
    }
    match network.endpoint(frame.target) {
        Some(target) if target.node == me => Ingress::Here,
        Some(target) => Ingress::To(target.node),
        None if frame.target == network.gateway() => Ingress::Here,
        None => Ingress::Drop(Reason::UnknownTarget),
    }
}

/// What becomes of the question who has an address.
enum Holder<'a> {
    /// Whoever asks, in order to tell or to make sure.
    Asker,
    /// A machine on this node or the gateway: it answers itself.
    Here,
    /// A machine elsewhere.
    Elsewhere(&'a Endpoint),
    Nobody,
}

fn holder<'a>(network: &'a Network, me: NodeId, asker: &Endpoint, address: IpAddr) -> Holder<'a> {
    if asker.owns(address) {
        return Holder::Asker;
    }
    match network.owner_of(address) {
        Some(owner) if owner.node == me => Holder::Here,
        Some(owner) => Holder::Elsewhere(owner),
        None if network.is_gateway(address) => Holder::Here,
        None => Holder::Nobody,
    }
}

fn resolve_v4(network: &Network, me: NodeId, arp: &Arp) -> Ingress {
    let Some(asker) = network.endpoint(arp.sender).filter(|_| arp.asks) else {
        return Ingress::Drop(Reason::Answered); // nobody elsewhere has asked
    };
    match holder(network, me, asker, arp.target_ip.into()) {
        Holder::Asker => Ingress::Drop(Reason::Answered),
        Holder::Here => Ingress::Here,
        Holder::Elsewhere(owner) => {
            Ingress::Answer(answers::arp((arp.sender, arp.sender_ip), arp.target_ip, owner.mac))
        }
        Holder::Nobody => Ingress::Drop(Reason::UnknownTarget),
    }
}

fn resolve_v6(network: &Network, me: NodeId, asker: (&Endpoint, IpAddr), message: Discovery) -> Ingress {
    let (asker, IpAddr::V6(source)) = asker else { return Ingress::Drop(Reason::Malformed) };
    match message {
        Discovery::RouterSolicit => answered(answers::router(network, (asker.mac, source))),
        Discovery::Advertise { .. } | Discovery::RouterSpeaks => Ingress::Drop(Reason::Answered),
        Discovery::Solicit { target, .. } => match holder(network, me, asker, target.into()) {
            Holder::Asker => Ingress::Drop(Reason::Answered),
            Holder::Here => Ingress::Here,
            Holder::Elsewhere(owner) => {
                Ingress::Answer(answers::neighbor((asker.mac, source), target, owner.mac, false))
            }
            Holder::Nobody => Ingress::Drop(Reason::UnknownTarget),
        },
    }
}

/// Whether a frame uses the addresses of its sender alone, and claims no service of the network.
fn check_source(sender: &Endpoint, frame: &Frame<'_>) -> Result<(), Reason> {
    let own_mac = |mac| if mac == sender.mac { Ok(()) } else { Err(Reason::SpoofedMac) };
    own_mac(frame.source)?;
    match frame.packet {
        Packet::Arp(Arp { sender: mac, sender_ip, .. }) => {
            own_mac(mac)?;
            let own = sender_ip.is_unspecified() || sender.owns(sender_ip.into());
            if own { Ok(()) } else { Err(Reason::SpoofedAddress) }
        }
        Packet::Ip(Ip { source, message, .. }) => {
            if !sender.owns(source) && !(source.is_unspecified() && may_be_nobody(&message)) {
                return Err(Reason::SpoofedAddress);
            }
            match message {
                Message::DhcpAnswers | Message::Discovery(Discovery::RouterSpeaks) => Err(Reason::RogueService),
                Message::Discovery(Discovery::Solicit { own: Some(mac), .. }) => own_mac(mac),
                Message::Discovery(Discovery::Advertise { target, own }) => {
                    own.map_or(Ok(()), own_mac)?;
                    if sender.owns(target.into()) { Ok(()) } else { Err(Reason::SpoofedAddress) }
                }
                _ => Ok(()),
            }
        }
        Packet::Tagged => Err(Reason::Tagged),
        Packet::Other(_) => Err(Reason::Protocol),
    }
}

/// What a machine may say that has no address yet.
fn may_be_nobody(message: &Message<'_>) -> bool {
    match message {
        Message::DhcpAsks(_) | Message::Groups => true,
        // No hardware address goes with no address (RFC 4861, 4.3).
        Message::Discovery(Discovery::Solicit { own, .. }) => own.is_none(),
        Message::Discovery(Discovery::RouterSolicit) => true,
        _ => false,
    }
}

/// Decides about a frame that another node has sent.
pub fn egress(network: &Network, me: NodeId, sent: Sent, bytes: &[u8]) -> Egress {
    let Ok(frame) = Frame::parse(bytes) else { return Egress::Drop(Reason::Malformed) };
    let target = network.endpoint(frame.target);
    if let Err(reason) = check_sender(network, sent, target, &frame) {
        return Egress::Drop(reason);
    }
    match target {
        None if !frame.target.is_unicast() && !sent.forwarded => Egress::Deliver,
        None => Egress::Drop(Reason::UnknownTarget),
        Some(target) if target.node == me => Egress::Deliver,
        // It goes on once, and never back.
        Some(target) if sent.forwarded || target.node == sent.by => Egress::Drop(Reason::NotHere),
        Some(target) => Egress::Forward(target.node),
    }
}

/// Whether the node that sent a frame may speak for its sender, and the sender may say what it says.
fn check_sender(network: &Network, sent: Sent, target: Option<&Endpoint>, frame: &Frame<'_>) -> Result<(), Reason> {
    let sender = network.endpoint(frame.source).ok_or(Reason::NotOwner)?;
    if sent.epoch < sender.epoch {
        return Err(Reason::StaleEpoch);
    }
    if sent.epoch > sender.epoch {
        return Err(Reason::NewerEpoch);
    }
    // Whoever had the target before it moved here has judged the frame, and sends it after.
    let speaks = match sent.forwarded {
        false => sender.node == sent.by,
        true => target.is_some_and(|target| target.previous == Some(sent.by)),
    };
    if !speaks {
        return Err(Reason::NotOwner);
    }
    check_source(sender, frame)?;
    match frame.packet {
        Packet::Ip(Ip { message: Message::Data, .. }) => Ok(()),
        _ => Err(Reason::Answered), // the sender's own node answers
    }
}

#[cfg(test)]
mod tests;
