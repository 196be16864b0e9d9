//! What else joins two hosts' networks: the link itself, the kernel's tunnels, and other people's daemons.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{ADDRESSES, Underlay, Way, Workers, ip, on};
use crate::nodes::until;
use crate::peers::{Process, run, run_with};

/// The link without anything on it.
pub const RAW: &str = "the link itself";
/// Those that encrypt, in programs of their own, as we do.
pub const ENCRYPTED: [&str; 3] = ["nebula 1.6.1", "wireguard-go 0.0.20220316", "tinc 1.0.36"];

/// Each with why it does not stand, if so.
pub fn ways(underlay: &Underlay) -> Vec<(&'static str, Result<Way>)> {
    let [nebula, wireguard, tinc] = ENCRYPTED;
    vec![
        (nebula, self::nebula(underlay, nebula)),
        (wireguard, self::wireguard(underlay, wireguard)),
        (tinc, self::tinc(underlay, tinc)),
        ("VXLAN in the kernel, not encrypted", vxlan(underlay)),
        (RAW, Ok(way(underlay, RAW, ADDRESSES[1], Workers::Kernel))),
    ]
}

fn way(underlay: &Underlay, name: &'static str, target: &str, workers: Workers) -> Way {
    let [client, server] = underlay.names.clone();
    Way { name, client, server, target: target.to_owned(), workers }
}

fn reached(way: Way) -> Result<Way> {
    until(&format!("{} reaches the other host", way.name), || {
        run(&mut on(&way.client, &format!("ping -n -c 1 -W 1 {}", way.target))).ok()
    });
    Ok(way)
}

fn quietly(command: &mut Command) -> Result<Process> {
    Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

fn vxlan(underlay: &Underlay) -> Result<Way> {
    for (n, host) in underlay.names.iter().enumerate() {
        let (own, other) = (ADDRESSES[n], ADDRESSES[1 - n]);
        ip(&format!("-n {host} link add vx0 type vxlan id 44 local {own} remote {other} dstport 4789 dev eth0"))?;
        ip(&format!("-n {host} addr add 10.44.0.{}/24 dev vx0", n + 1))?;
        ip(&format!("-n {host} link set vx0 up"))?;
    }
    reached(way(underlay, "VXLAN in the kernel, not encrypted", "10.44.0.2", Workers::Kernel))
}

fn wireguard(underlay: &Underlay, name: &'static str) -> Result<Way> {
    let mut keys = Vec::new();
    for _ in &underlay.names {
        let private = run(Command::new("wg").arg("genkey")).context("wg is not installed")?;
        let public = run_with(Command::new("wg").arg("pubkey"), &private)?;
        keys.push((private, public.trim().to_owned()));
    }
    let mut daemons = Vec::new();
    for (n, host) in underlay.names.iter().enumerate() {
        // Its control socket is named after the interface, in a directory that all hosts here share.
        let interface = format!("snwg{}{n}", std::process::id() % 100_000);
        daemons.push(quietly(&mut on(host, &format!("wireguard-go --foreground {interface}")))?);
        let socket = format!("/var/run/wireguard/{interface}.sock");
        until("wireguard-go is ready", || Path::new(&socket).exists().then_some(()));
        let (peer, other) = (&keys[1 - n].1, ADDRESSES[1 - n]);
        let set = format!(
            "wg set {interface} private-key /dev/stdin listen-port 51820 peer {peer} endpoint {other}:51820 allowed-ips 10.45.0.0/24"
        );
        run_with(&mut on(host, &set), &keys[n].0)?;
        ip(&format!("-n {host} addr add 10.45.0.{}/24 dev {interface}", n + 1))?;
        ip(&format!("-n {host} link set {interface} mtu 1420 up"))?;
    }
    reached(way(underlay, name, "10.45.0.2", Workers::Processes(daemons)))
}

fn nebula(underlay: &Underlay, name: &'static str) -> Result<Way> {
    let directory = tempfile::tempdir()?.keep();
    let at = |file: &str| directory.join(file).display().to_string();
    let cert = |arguments: &str| {
        run(Command::new("nebula-cert").args(arguments.split_whitespace()).current_dir(&directory))
            .context("nebula is not installed")
    };
    cert("ca -name bench")?;
    let mut daemons = Vec::new();
    for (n, host) in underlay.names.iter().enumerate() {
        cert(&format!("sign -name h{n} -ip 10.46.0.{}/24", n + 1))?;
        let config = format!(
            "pki: {{ca: {}, cert: {}, key: {}}}
static_host_map: {{\"10.46.0.{}\": [\"{}:4242\"]}}
lighthouse: {{am_lighthouse: false, hosts: []}}
listen: {{host: 0.0.0.0, port: 4242}}
tun: {{dev: neb0, mtu: 1400}}
logging: {{level: error}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
",
            at("ca.crt"),
            at(&format!("h{n}.crt")),
            at(&format!("h{n}.key")),
            2 - n,
            ADDRESSES[1 - n]
        );
        fs::write(directory.join(format!("h{n}.yml")), config)?;
        daemons.push(quietly(&mut on(host, &format!("nebula -config {}", at(&format!("h{n}.yml")))))?);
    }
    let reached = reached(way(underlay, name, "10.46.0.2", Workers::Processes(daemons)));
    fs::remove_dir_all(&directory)?;
    reached
}

fn tinc(underlay: &Underlay, name: &'static str) -> Result<Way> {
    let directory = tempfile::tempdir()?.keep();
    let home = |n: usize| directory.join(format!("h{n}"));
    for (n, address) in ADDRESSES.iter().enumerate() {
        fs::create_dir_all(home(n).join("hosts"))?;
        fs::write(home(n).join("tinc.conf"), format!("Name = h{n}\nConnectTo = h{}\nInterface = tinc0\n", 1 - n))?;
        let own = format!("Address = {address}\nSubnet = 10.47.0.{}/32\n", n + 1);
        fs::write(home(n).join(format!("hosts/h{n}")), own)?;
        run(Command::new("tincd").arg("-c").arg(home(n)).args(["-K", "2048"])).context("tinc is not installed")?;
    }
    for n in 0..2 {
        let file = format!("hosts/h{n}");
        fs::copy(home(n).join(&file), home(1 - n).join(&file))?;
    }
    let mut daemons = Vec::new();
    for (n, host) in underlay.names.iter().enumerate() {
        let (config, pidfile) = (home(n).display().to_string(), home(n).join("pid").display().to_string());
        daemons.push(quietly(&mut on(host, &format!("tincd -c {config} --pidfile={pidfile} -D")))?);
        until("tinc has its interface", || ip(&format!("-n {host} link show tinc0")).ok());
        ip(&format!("-n {host} addr add 10.47.0.{}/24 dev tinc0", n + 1))?;
        ip(&format!("-n {host} link set tinc0 mtu 1400 up"))?;
    }
    let reached = reached(way(underlay, name, "10.47.0.2", Workers::Processes(daemons)));
    fs::remove_dir_all(&directory)?;
    reached
}
