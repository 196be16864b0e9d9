use super::rules::{base, counts, packets, port, ports, without};
use super::*;
use crate::fixtures::{endpoint, machine};

fn plugged(n: u8, addresses: &[&str]) -> Port {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    Port { machine: machine(n), mac: endpoint(n, 1, 1).mac, addresses }
}

#[test]
fn a_port_may_use_what_is_its_machines_and_nothing_else() {
    let port_of = plugged(1, &["10.9.0.2", "fd09::2"]);
    let text = port("m-010101010101", &port_of);
    let (mac, own) = (port_of.mac, port_of.mac.link_local());
    for rule in [
        format!("ether saddr != {mac} goto spoofed-mac"),
        format!("arp saddr ether != {mac} goto spoofed-mac"),
        "arp saddr ip != { 10.9.0.2, 0.0.0.0 } goto spoofed-address".into(),
        "\nadd rule bridge smartnode m-010101010101 ip saddr != { 10.9.0.2 } goto spoofed-address".into(),
        format!("ip6 saddr != {{ fd09::2, {own} }} goto spoofed-address"),
        format!("@th,64,128 != {{ 0xfd090000000000000000000000000002, {:#034x} }}", u128::from(own)),
    ] {
        assert!(text.contains(&rule), "{rule:?} is not in\n{text}");
    }
}

#[test]
fn a_machine_without_an_ipv4_address_sends_no_ipv4() {
    let text = port("m-010101010101", &plugged(1, &["fd09::2"]));
    assert!(text.contains("ether type ip goto spoofed-address") && !text.contains("{  }"), "{text}");
    assert!(text.contains("arp saddr ip != { 0.0.0.0 }"), "{text}");
}

#[test]
fn names_of_ports_are_names_of_interfaces_and_all_different() {
    let names: std::collections::BTreeSet<String> = (0..200).map(|n| plugged(n, &[]).name()).collect();
    assert!(names.len() == 200 && names.iter().all(|name| name.len() <= 15 && name.starts_with(PORT)));
}

#[test]
fn every_chain_that_a_rule_goes_to_is_there() {
    let (base, rules) = (base(), port("m-1", &plugged(1, &["10.9.0.2"])));
    let targets = rules.split("goto ").skip(1).filter_map(|rest| rest.split_whitespace().next());
    for target in targets.filter(|target| *target != "m-1") {
        assert!(base.contains(&format!("  chain {target} {{")), "{target}");
    }
    assert!(without("m-1").contains("delete chain bridge smartnode m-1"));
}

#[test]
fn what_nft_lists_is_read_and_garbage_is_not() {
    let listing = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"chain": {"family": "bridge", "name": "ingress"}},
        {"chain": {"family": "bridge", "name": "m-22a24ce4b60d"}}, {"counter": {"name": "flood", "packets": 7, "bytes": 1}},
        {"counter": {"name": "other", "packets": 3, "bytes": 1}}]}"#;
    assert_eq!((packets(listing, "flood"), packets(listing, "tagged")), (Some(7), None));
    assert_eq!(ports(listing), Some(vec!["m-22a24ce4b60d".to_owned()]));
    for garbage in [&b""[..], b"{}", b"[]", b"\xff"] {
        assert_eq!((counts(garbage), packets(garbage, "flood"), ports(garbage)), (None, None, None));
    }
}
