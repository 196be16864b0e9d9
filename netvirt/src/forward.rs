//! Where a frame goes. Pure: the directory and the frame decide, nothing is learned.
//!
//! A frame is judged twice. Where it enters, its sender must be a machine of this node and may only use its own addresses;
//! what the network itself answers goes no further. Where it leaves the tunnel, its sender must be owned, in the epoch that
//! the frame was sent in, by the node that sent it; or the node that sent it had its target before and sends it after, and
//! is believed to have judged it. Between machines of one node the bridge brings frames by itself, and these rules are those
//! of its ports.

use std::net::{IpAddr, Ipv6Addr};

use fabric::ids::NodeId;
use fabric::model::Mac;

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
    if frame.source == network.gateway() {
        // What a node's gateway says is for the machines there; none of them can send this.
        return Ingress::Drop(Reason::Answered);
    }
    let Some(sender) = network.endpoint(frame.source) else { return Ingress::Drop(Reason::SpoofedMac) };
    if sender.node != me {
        return Ingress::Drop(Reason::NotOwner);
    }
    if let Err(reason) = check_source(network, sender, &frame) {
        return Ingress::Drop(reason);
    }
    match frame.packet {
        Packet::Arp(arp) if arp.asks => resolve_v4(network, me, sender, &arp),
        Packet::Arp(_) => tell(network, me, frame.target),
        Packet::Ip(Ip { source, message, .. }) => match (message, source) {
            (Message::DhcpAsks(asked), _) => answered(answers::dhcp(network, sender, asked)),
            (Message::Discovery(discovery), IpAddr::V6(source)) => match discovery {
                Discovery::RouterSolicit { .. } => answered(answers::router(network, sender, source)),
                Discovery::Solicit { target, .. } => resolve_v6(network, me, (sender, source), target),
                Discovery::Advertise { .. } | Discovery::RouterSpeaks => tell(network, me, frame.target),
            },
            (Message::Data, _) => carry(network, me, &frame),
            _ => Ingress::Drop(Reason::Answered),
        },
        Packet::Tagged | Packet::Other(_) => Ingress::Drop(Reason::Protocol),
    }
}

/// An answer to a question of somebody here is heard here; nobody elsewhere has asked.
fn tell(network: &Network, me: NodeId, target: Mac) -> Ingress {
    let here = network.endpoint(target).is_some_and(|target| target.node == me) || target == network.gateway();
    if here { Ingress::Here } else { Ingress::Drop(Reason::Answered) }
}

fn answered(answer: Option<Vec<u8>>) -> Ingress {
    answer.map_or(Ingress::Drop(Reason::Answered), Ingress::Answer)
}

fn carry(network: &Network, me: NodeId, frame: &Frame<'_>) -> Ingress {
    if !frame.target.is_unicast() {
        let others: Vec<NodeId> = network.nodes().iter().copied().filter(|node| *node != me).collect();
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

fn resolve_v4(network: &Network, me: NodeId, asker: &Endpoint, arp: &Arp) -> Ingress {
    match holder(network, me, asker, arp.target_ip.into()) {
        Holder::Asker => Ingress::Drop(Reason::Answered),
        Holder::Here => Ingress::Here,
        Holder::Elsewhere(owner) => {
            Ingress::Answer(answers::arp((arp.sender, arp.sender_ip), arp.target_ip, owner.mac))
        }
        Holder::Nobody => Ingress::Drop(Reason::UnknownTarget),
    }
}

fn resolve_v6(network: &Network, me: NodeId, (asker, source): (&Endpoint, Ipv6Addr), target: Ipv6Addr) -> Ingress {
    match holder(network, me, asker, target.into()) {
        Holder::Asker => Ingress::Drop(Reason::Answered),
        Holder::Here => Ingress::Here,
        Holder::Elsewhere(owner) => Ingress::Answer(answers::neighbor((asker.mac, source), target, owner.mac)),
        Holder::Nobody => Ingress::Drop(Reason::UnknownTarget),
    }
}

/// Whether a frame uses the addresses of its sender alone, and claims no service of the network.
fn check_source(network: &Network, sender: &Endpoint, frame: &Frame<'_>) -> Result<(), Reason> {
    let own_mac = |mac| if mac == sender.mac { Ok(()) } else { Err(Reason::SpoofedMac) };
    let own_ip = |own: bool| if own { Ok(()) } else { Err(Reason::SpoofedAddress) };
    match frame.packet {
        Packet::Arp(Arp { sender: mac, sender_ip, .. }) => {
            own_mac(mac)?;
            own_ip(sender_ip.is_unspecified() || sender.owns(sender_ip.into()))
        }
        Packet::Ip(Ip { source, message, .. }) => {
            own_ip(sender.owns(source) || may_say_without(network, source, &message))?;
            match message {
                Message::DhcpAnswers | Message::Discovery(Discovery::RouterSpeaks) => Err(Reason::RogueService),
                Message::Discovery(Discovery::Solicit { own, .. } | Discovery::RouterSolicit { own }) => {
                    own.map_or(Ok(()), own_mac)
                }
                Message::Discovery(Discovery::Advertise { target, own }) => {
                    own.map_or(Ok(()), own_mac)?;
                    own_ip(sender.owns(target.into()))
                }
                _ => Ok(()),
            }
        }
        Packet::Tagged => Err(Reason::Tagged),
        Packet::Other(_) => Err(Reason::Protocol),
    }
}

/// Whether a machine may say this from an address that it was not assigned: from none, before it has one; and from a
/// link-local one of its own making (RFC 7217), that is nobody's, what its own node answers.
fn may_say_without(network: &Network, source: IpAddr, message: &Message<'_>) -> bool {
    let nobody = source.is_unspecified();
    match message {
        Message::DhcpAsks(_) => nobody,
        Message::Groups => nobody || is_free_link_local(network, source),
        // No hardware address goes with no address (RFC 4861, 4.3 and 6.1.1).
        Message::Discovery(Discovery::Solicit { own, .. } | Discovery::RouterSolicit { own }) => {
            (nobody && own.is_none()) || is_free_link_local(network, source)
        }
        _ => false,
    }
}

fn is_free_link_local(network: &Network, source: IpAddr) -> bool {
    let link_local = matches!(source, IpAddr::V6(source) if source.is_unicast_link_local());
    link_local && !network.is_gateway(source) && network.owner_of(source).is_none()
}

/// Decides about a frame of `length` bytes that another node has sent and that begins with `head`.
pub fn egress(network: &Network, me: NodeId, sent: Sent, head: &[u8], length: usize) -> Egress {
    let Ok(frame) = Frame::parse_head(head, length) else { return Egress::Drop(Reason::Malformed) };
    let target = network.endpoint(frame.target);
    if let Err(reason) = check_sender(network, sent, target, &frame) {
        return Egress::Drop(reason);
    }
    match target {
        None if !frame.target.is_unicast() && !sent.forwarded => Egress::Deliver,
        None => Egress::Drop(Reason::UnknownTarget),
        Some(target) if target.node == me => Egress::Deliver,
        // From here it goes on where the target went from here; once, and never back.
        Some(target) if sent.forwarded || target.node == sent.by || target.previous != Some(me) => {
            Egress::Drop(Reason::NotHere)
        }
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
    check_source(network, sender, frame)?;
    match frame.packet {
        Packet::Ip(Ip { message: Message::Data, .. }) => Ok(()),
        _ => Err(Reason::Answered), // the sender's own node answers
    }
}

#[cfg(test)]
mod tests;
