//! What machines may send into their network's bridge, as rules for `nft(8)`: pure text.
//!
//! A port may use its machine's addresses alone, claim no service of the network, and send to all at a bounded rate: the rules
//! of [`crate::forward`] for frames that never leave the node. What comes from another node was judged there and when it came.
//! Every text leaves the same rules behind however often it is applied, and keeps the counts.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Port;
use crate::drops::Reason;
use crate::limits::{BROADCAST_BURST, BROADCASTS_PER_SECOND};

/// The table of a network's rules.
pub(super) const TABLE: &str = "bridge smartnode";
/// Name of the interface through which frames come from other nodes.
pub(super) const FABRIC: &str = "fabric";
/// What the rules count, each under the reason's name.
const COUNTED: [Reason; 6] =
    [Reason::Tagged, Reason::Protocol, Reason::SpoofedMac, Reason::SpoofedAddress, Reason::RogueService, Reason::Flood];

/// The rules of every port.
pub(super) fn base() -> String {
    let mut text = format!(
        "table {TABLE} {{
  map ports {{ type ifname : verdict; }}
  set floods {{ type ifname; size 4096; flags dynamic; }}
"
    );
    for reason in COUNTED {
        let _ = writeln!(text, "  counter {reason} {{ }}\n  chain {reason} {{ }}");
    }
    text += "  chain passes { }
  chain ingress { type filter hook prerouting priority -200; policy drop; }
}
";
    for reason in COUNTED {
        let _ = writeln!(text, "flush chain {TABLE} {reason}\nadd rule {TABLE} {reason} counter name {reason} drop");
    }
    let _ = writeln!(
        text,
        "flush chain {TABLE} passes
add rule {TABLE} passes ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 accept
add rule {TABLE} passes update @floods {{ iifname limit rate over {BROADCASTS_PER_SECOND}/second burst \
         {BROADCAST_BURST} packets }} goto flood
add rule {TABLE} passes accept
flush chain {TABLE} ingress
add rule {TABLE} ingress iifname {FABRIC} accept
add rule {TABLE} ingress iifname vmap @ports"
    );
    text
}

/// The rules of one port.
pub(super) fn port(name: &str, port: &Port) -> String {
    let mac = port.mac;
    let v4: Vec<Ipv4Addr> =
        port.addresses.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None }).collect();
    let v6 = port.addresses.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
    let v6: Vec<Ipv6Addr> = v6.chain([mac.link_local()]).collect();
    let arp = set(v4.iter().copied().chain([Ipv4Addr::UNSPECIFIED]));
    // An empty set is no set: then nothing is one of it.
    let other4 = if v4.is_empty() { "ether type ip".to_owned() } else { format!("ip saddr != {}", set(&v4)) };
    let raw6 = set(v6.iter().map(|ip| format!("{:#034x}", u128::from(*ip))));
    let rules = [
        format!("ether saddr != {mac} goto spoofed-mac"),
        "ether type { 8021q, 8021ad } goto tagged".into(),
        format!("ether type arp arp saddr ether != {mac} goto spoofed-mac"),
        format!("ether type arp arp saddr ip != {arp} goto spoofed-address"),
        "ether type arp goto passes".into(),
        // Before it has an address.
        "ether type ip ip saddr 0.0.0.0 udp sport 68 udp dport 67 goto passes".into(),
        format!("{other4} goto spoofed-address"),
        "ether type ip udp sport 67 goto rogue-service".into(),
        "ether type ip goto passes".into(),
        "ether type != ip6 goto protocol".into(),
        "icmpv6 type { nd-router-advert, nd-redirect } goto rogue-service".into(),
        "udp sport 547 goto rogue-service".into(),
        // The address that a neighbour advertisement is about (RFC 4861, 4.4).
        format!("icmpv6 type nd-neighbor-advert @th,64,128 != {raw6} goto spoofed-address"),
        // The second version of MLD is 143 (RFC 3810, 5.2).
        "ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit, mld-listener-report, 143 } goto passes"
            .into(),
        format!("ip6 saddr != {} goto spoofed-address", set(&v6)),
        "goto passes".into(),
    ];
    let mut text = format!("table {TABLE} {{\n  chain {name} {{ }}\n}}\nflush chain {TABLE} {name}\n");
    for rule in rules {
        let _ = writeln!(text, "add rule {TABLE} {name} {rule}");
    }
    let _ = writeln!(text, "add element {TABLE} ports {{ {name} : goto {name} }}");
    text
}

/// Takes the rules of a port away.
pub(super) fn without(name: &str) -> String {
    format!("delete element {TABLE} ports {{ {name} }}\ndelete chain {TABLE} {name}\n")
}

pub(super) fn set(items: impl IntoIterator<Item = impl ToString>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    format!("{{ {} }}", items.join(", "))
}

/// What `nft --json list table` says was dropped.
pub(super) fn counts(listing: &[u8]) -> Option<Vec<(Reason, u64)>> {
    COUNTED.into_iter().map(|reason| Some((reason, packets(listing, reason.name())?))).collect()
}

/// What `nft --json list table` says was counted under a name.
pub(super) fn packets(listing: &[u8], name: &str) -> Option<u64> {
    let listing: serde_json::Value = serde_json::from_slice(listing).ok()?;
    let mut counters = listing.get("nftables")?.as_array()?.iter().filter_map(|item| item.get("counter"));
    counters.find(|counter| counter.get("name").and_then(|it| it.as_str()) == Some(name))?.get("packets")?.as_u64()
}

/// The ports that `nft --json list table` tells of: chains of their names.
pub(super) fn ports(listing: &[u8]) -> Option<Vec<String>> {
    let listing: serde_json::Value = serde_json::from_slice(listing).ok()?;
    let chains = listing.get("nftables")?.as_array()?.iter().filter_map(|item| item.get("chain"));
    let names = chains.filter_map(|chain| chain.get("name")?.as_str());
    Some(names.filter(|name| name.starts_with(super::PORT)).map(str::to_owned).collect())
}
