//! A network's firewall on this node, as rules for `nft(8)`: pure text.
//!
//! It stands where the bridge forwards (`br_netfilter` hands IP packets to the `inet` family there), and knows machines by their
//! addresses, which nobody else can use. Each machine here has a chain for what it begins and one for what others begin with
//! it; the first rule that something meets decides. Connections that are known pass, and TCP that is under way: a machine that
//! has moved here brings connections along that this kernel has not seen begin. What a link needs (ARP, neighbour discovery)
//! and what comes from or goes to the gateway does not pass here or passes always.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use fabric::model::Labels;
use fabric::model::firewall::{Action, Direction, FirewallRule, Peer, Protocol, Tag};

use super::Port;

/// The table of a network's firewall.
pub(super) const TABLE: &str = "inet smartnode";
/// Name of the counter of what it dropped.
pub(super) const DENIED: &str = "denied";

/// Maps from addresses to chains, with what they are looked up by.
const MAPS: [(&str, &str); 4] =
    [("from4", "ipv4_addr"), ("from6", "ipv6_addr"), ("to4", "ipv4_addr"), ("to6", "ipv6_addr")];
/// What everything meets first. Of TCP only what opens a connection is judged.
const FORWARD: [&str; 7] = [
    "ct state established,related accept",
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept",
    "tcp flags & (fin | syn | rst | ack) != syn accept",
    "ip saddr vmap @from4",
    "ip6 saddr vmap @from6",
    "ip daddr vmap @to4",
    "ip6 daddr vmap @to6",
];

/// Which rules hold for a machine on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// The machine.
    pub port: Port,
    /// In the order in which they are looked at: its own ones first, and then the network's.
    pub rules: Vec<FirewallRule>,
}

/// Whom tags mean: all machines of the network, wherever they are, with their addresses.
pub type Tagged = BTreeMap<IpAddr, Labels>;

/// The whole firewall, in place of the one that was there; what was counted stays.
pub(super) fn rules(guarded: &[Guarded], tagged: &Tagged) -> String {
    let mut text = format!("table {TABLE} {{\n  counter {DENIED} {{ }}\n  chain deny {{ }}\n");
    for (map, kind) in MAPS {
        let _ = writeln!(text, "  map {map} {{ type {kind} : verdict; }}");
    }
    // Chains are numbered, so that there are never more than there were machines here at once.
    for n in 0..guarded.len() {
        let _ = writeln!(text, "  chain in-{n} {{ }}\n  chain out-{n} {{ }}");
    }
    let _ = writeln!(text, "  chain forward {{ type filter hook forward priority filter; policy accept; }}\n}}");
    let _ = writeln!(text, "flush table {TABLE}");
    for (map, _) in MAPS {
        let _ = writeln!(text, "flush map {TABLE} {map}");
    }
    let _ = writeln!(text, "add rule {TABLE} deny counter name {DENIED} drop");
    for rule in FORWARD {
        let _ = writeln!(text, "add rule {TABLE} forward {rule}");
    }
    for (n, of_machine) in guarded.iter().enumerate() {
        for ip in &of_machine.port.addresses {
            let version = if ip.is_ipv4() { 4 } else { 6 };
            let _ = writeln!(text, "add element {TABLE} from{version} {{ {ip} : jump out-{n} }}");
            let _ = writeln!(text, "add element {TABLE} to{version} {{ {ip} : jump in-{n} }}");
        }
        for rule in &of_machine.rules {
            let chain = if rule.direction == Direction::In { "in" } else { "out" };
            for matches in meets(rule, tagged) {
                let verdict = if rule.action == Action::Allow { "return" } else { "goto deny" };
                let _ = writeln!(text, "add rule {TABLE} {chain}-{n} {matches}{verdict}");
            }
        }
    }
    text
}

/// What meets a rule: one condition for each kind of address, when its peer has both.
fn meets(rule: &FirewallRule, tagged: &Tagged) -> Vec<String> {
    let end = if rule.direction == Direction::In { "saddr" } else { "daddr" };
    let ports = || super::rules::set(&rule.ports);
    let said = match rule.protocol {
        Protocol::Any => String::new(),
        Protocol::Icmp => "meta l4proto { icmp, ipv6-icmp } ".into(),
        Protocol::Tcp if rule.ports.is_empty() => "meta l4proto tcp ".into(),
        Protocol::Udp if rule.ports.is_empty() => "meta l4proto udp ".into(),
        Protocol::Tcp => format!("tcp dport {} ", ports()),
        Protocol::Udp => format!("udp dport {} ", ports()),
    };
    let family = |is_v4: bool| if is_v4 { "ip" } else { "ip6" };
    match &rule.peer {
        Peer::Any => vec![said],
        Peer::Subnet(subnet) => vec![format!("{} {end} {subnet} {said}", family(subnet.base().is_ipv4()))],
        Peer::Tag(Tag { key, value }) => {
            let has = |labels: &Labels| labels.get(key) == Some(value);
            let all = || tagged.iter().filter(|(_, labels)| has(labels)).map(|(ip, _)| ip);
            let of = |is_v4: bool| {
                let members: Vec<_> = all().filter(|ip| ip.is_ipv4() == is_v4).collect();
                (!members.is_empty()).then(|| format!("{} {end} {} {said}", family(is_v4), super::rules::set(members)))
            };
            [true, false].into_iter().filter_map(of).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Endpoint;
    use crate::fixtures::{endpoint, machine};

    fn guarded(n: u8, rules: &[&str]) -> Guarded {
        let Endpoint { mac, addresses, .. } = endpoint(n, 1, 1);
        Guarded {
            port: Port { machine: machine(n), mac, addresses },
            rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        }
    }

    fn lines(of: &[Guarded], tagged: &Tagged) -> Vec<String> {
        let text = rules(of, tagged);
        let lines = text.lines().filter_map(|line| line.strip_prefix("add rule inet smartnode "));
        lines.filter(|line| line.starts_with("in-") || line.starts_with("out-")).map(str::to_owned).collect()
    }

    #[test]
    fn rules_stand_in_their_order_and_in_their_direction() {
        let one =
            guarded(1, &["allow in tcp 80,8000-8099 from 10.0.0.0/24", "deny in any", "deny out udp to fd00::/64"]);
        let two = guarded(2, &["deny in icmp"]);
        assert_eq!(
            lines(&[one, two], &Tagged::new()),
            [
                "in-0 ip saddr 10.0.0.0/24 tcp dport { 80, 8000-8099 } return",
                "in-0 goto deny",
                "out-0 ip6 daddr fd00::/64 meta l4proto udp goto deny",
                "in-1 meta l4proto { icmp, ipv6-icmp } goto deny",
            ]
        );
    }

    #[test]
    fn a_tag_means_the_machines_that_have_it_now() {
        let labels = |value: &str| Labels::from([("role".to_owned(), value.to_owned())]);
        let tagged = Tagged::from([
            ("10.0.0.12".parse().unwrap(), labels("db")),
            ("fd00::c".parse().unwrap(), labels("db")),
            ("10.0.0.13".parse().unwrap(), labels("web")),
        ]);
        let one = guarded(1, &["allow out tcp 5432 to tag role=db", "deny out any to tag role=nobody"]);
        assert_eq!(
            lines(&[one], &tagged),
            [
                "out-0 ip daddr { 10.0.0.12 } tcp dport { 5432 } return",
                "out-0 ip6 daddr { fd00::c } tcp dport { 5432 } return",
            ]
        );
    }

    #[test]
    fn every_address_leads_to_its_machines_chains() {
        let text = rules(&[guarded(1, &[])], &Tagged::new());
        for element in
            ["from4 { 10.0.0.11 : jump out-0 }", "to4 { 10.0.0.11 : jump in-0 }", "to6 { fd00::b : jump in-0 }"]
        {
            assert!(text.contains(&format!("add element inet smartnode {element}\n")), "{element}\n{text}");
        }
    }
}
