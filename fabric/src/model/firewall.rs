//! What machines may say to whom: the rules of a network's firewall.

use std::fmt;
use std::str::FromStr;

use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use super::{Labels, Subnet, check};

/// Most ranges of ports of one rule.
pub const PORT_RANGES_MAX: usize = 16;

/// What becomes of what a rule is about.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionV1 {
    /// It passes.
    Allow,
    /// It is dropped, and counted.
    Deny,
}
/// Current version of an action.
pub type Action = ActionV1;

/// Which way, as the machine sees it.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectionV1 {
    /// Others begin it.
    In,
    /// The machine begins it.
    Out,
}
/// Current version of a direction.
pub type Direction = DirectionV1;

/// What is said.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolV1 {
    /// Anything over IP.
    Any,
    /// ICMP, and ICMPv6 but for what a link needs.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}
/// Current version of a protocol.
pub type Protocol = ProtocolV1;

/// Ports from `first` to `last`.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRangeV1 {
    /// The first one.
    pub first: u16,
    /// The last one; not before the first.
    pub last: u16,
}
/// Current version of a range of ports.
pub type PortRange = PortRangeV1;

/// A label, by which machines are meant.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TagV1 {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}
/// Current version of a tag.
pub type Tag = TagV1;

/// Who is at the other end.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum PeerV1 {
    /// Anybody.
    Any,
    /// Whoever has an address in it.
    Subnet(Subnet),
    /// Machines of the network with this label.
    Tag(TagV1),
}
/// Current version of a peer.
pub type Peer = PeerV1;

/// One rule. The first one that something meets decides; what meets none passes. Answers to what was allowed pass always.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct FirewallRuleV1 {
    /// What becomes of it.
    pub action: Action,
    /// Which way.
    pub direction: Direction,
    /// What is said.
    pub protocol: Protocol,
    /// The machine's ports inwards, the peer's outwards; none means all. Of TCP and UDP alone.
    pub ports: Vec<PortRange>,
    /// Who is at the other end.
    pub peer: Peer,
}
/// Current version of a rule.
pub type FirewallRule = FirewallRuleV1;

/// Why a text is no rule.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum RuleError {
    /// It is not written as rules are.
    #[error(
        "{0:?} is no rule: write it as in \"allow in tcp 80,443 from 10.0.0.0/24\" or \"deny out any to tag role=db\""
    )]
    Syntax(String),
    /// A port or a range of ports.
    #[error("{0:?} are no ports: write them as in 80,443,8000-8099, at most {PORT_RANGES_MAX} of them")]
    Ports(String),
    /// Ports of what has none.
    #[error("only tcp and udp have ports")]
    NoPorts,
    /// The other end.
    #[error("{0:?} is nobody: write any, a subnet such as 10.0.0.0/24, or tag KEY=VALUE")]
    Peer(String),
}

impl FirewallRuleV1 {
    /// Whether a decoded one keeps the rules; always true for one that was parsed.
    pub fn is_valid(&self) -> bool {
        let of_ports = matches!(self.protocol, Protocol::Tcp | Protocol::Udp);
        let ranges = self.ports.iter().all(|range| range.first <= range.last && range.first > 0);
        let peer = match &self.peer {
            Peer::Any => true,
            Peer::Subnet(subnet) => subnet.is_valid(),
            Peer::Tag(Tag { key, value }) => is_label(key, value),
        };
        (of_ports || self.ports.is_empty()) && self.ports.len() <= PORT_RANGES_MAX && ranges && peer
    }
}

impl FromStr for FirewallRuleV1 {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let refuse = || RuleError::Syntax(shown(text));
        let mut words = text.split_whitespace().peekable();
        let action = match words.next() {
            Some("allow") => Action::Allow,
            Some("deny") => Action::Deny,
            _ => return Err(refuse()),
        };
        let (direction, preposition) = match words.next() {
            Some("in") => (Direction::In, "from"),
            Some("out") => (Direction::Out, "to"),
            _ => return Err(refuse()),
        };
        let protocol = match words.next() {
            Some("any") => Protocol::Any,
            Some("icmp") => Protocol::Icmp,
            Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            _ => return Err(refuse()),
        };
        let ports = match words.next_if(|word| *word != preposition) {
            Some(_) if matches!(protocol, Protocol::Any | Protocol::Icmp) => return Err(RuleError::NoPorts),
            Some(word) => ports(word)?,
            None => Vec::new(),
        };
        let peer = match (words.next(), words.next(), words.next(), words.next()) {
            (None, ..) => Peer::Any,
            (Some(word), Some(who), tag, None) if word == preposition => peer(who, tag)?,
            _ => return Err(refuse()),
        };
        Ok(FirewallRuleV1 { action, direction, protocol, ports, peer })
    }
}

fn is_label(key: &str, value: &str) -> bool {
    check::labels(&Labels::from([(key.to_owned(), value.to_owned())])).is_ok()
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn ports(text: &str) -> Result<Vec<PortRange>, RuleError> {
    let refuse = || RuleError::Ports(shown(text));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(refuse);
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = PortRangeV1 { first: number(first)?, last: number(last)? };
        if range.first <= range.last { Ok(range) } else { Err(refuse()) }
    };
    let ranges: Vec<PortRange> = text.split(',').take(PORT_RANGES_MAX + 1).map(range).collect::<Result<_, _>>()?;
    if ranges.len() <= PORT_RANGES_MAX { Ok(ranges) } else { Err(refuse()) }
}

fn peer(who: &str, tag: Option<&str>) -> Result<Peer, RuleError> {
    let refuse = || RuleError::Peer(shown(tag.unwrap_or(who)));
    match (who, tag) {
        ("any", None) => Ok(Peer::Any),
        ("tag", Some(tag)) => {
            let (key, value) = tag.split_once('=').ok_or_else(refuse)?;
            if !is_label(key, value) {
                return Err(refuse());
            }
            Ok(Peer::Tag(TagV1 { key: key.to_owned(), value: value.to_owned() }))
        }
        (subnet, None) => subnet.parse().map(Peer::Subnet).map_err(|_| refuse()),
        _ => Err(refuse()),
    }
}

impl fmt::Display for FirewallRuleV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = if self.action == Action::Allow { "allow" } else { "deny" };
        let (direction, preposition) = if self.direction == Direction::In { ("in", "from") } else { ("out", "to") };
        let protocol = match self.protocol {
            Protocol::Any => "any",
            Protocol::Icmp => "icmp",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{action} {direction} {protocol}")?;
        for (n, range) in self.ports.iter().enumerate() {
            f.write_str(if n == 0 { " " } else { "," })?;
            range.fmt(f)?;
        }
        match &self.peer {
            Peer::Any => write!(f, " {preposition} any"),
            Peer::Subnet(subnet) => write!(f, " {preposition} {subnet}"),
            Peer::Tag(Tag { key, value }) => write!(f, " {preposition} tag {key}={value}"),
        }
    }
}

impl fmt::Display for PortRangeV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_told() {
        for text in [
            "allow in tcp 80,443,8000-8099 from 10.0.0.0/24",
            "deny out any to tag role=db",
            "deny in udp from any",
            "allow in icmp from fd00::/64",
        ] {
            let rule: FirewallRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
            assert!(rule.is_valid());
        }
        assert_eq!("allow out  any".parse::<FirewallRule>().unwrap().to_string(), "allow out any to any");
    }

    #[test]
    fn what_is_no_rule_says_what_is() {
        let refused = |text: &str| text.parse::<FirewallRule>().unwrap_err();
        for text in
            ["", "allow", "permit in any", "allow up any", "allow in sctp", "allow in any from", "deny in any to any"]
        {
            assert!(matches!(refused(text), RuleError::Syntax(_) | RuleError::NoPorts), "{text}: {:?}", refused(text));
        }
        let many = vec!["1"; PORT_RANGES_MAX + 1].join(",");
        for ports in ["0", "80-", "90-80", "65536", "a", many.as_str()] {
            assert!(matches!(refused(&format!("allow in tcp {ports} from any")), RuleError::Ports(_)), "{ports}");
        }
        assert_eq!(refused("allow in icmp 8 from any"), RuleError::NoPorts);
        for peer in ["10.0.0.1/24", "tag role", "tag =x", "somebody", "any more"] {
            assert!(matches!(refused(&format!("allow in any from {peer}")), RuleError::Peer(_)), "{peer}");
        }
    }

    #[test]
    fn a_decoded_rule_that_nobody_could_write_is_told_apart() {
        let good: FirewallRule = "allow in tcp 80 from tag role=db".parse().unwrap();
        let ports = vec![PortRangeV1 { first: 9, last: 8 }];
        assert!(!FirewallRuleV1 { ports, ..good.clone() }.is_valid());
        assert!(!FirewallRuleV1 { protocol: Protocol::Icmp, ..good.clone() }.is_valid());
        let peer = Peer::Tag(TagV1 { key: String::new(), value: String::new() });
        assert!(!FirewallRuleV1 { peer, ..good }.is_valid());
    }
}
