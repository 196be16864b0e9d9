//! The ledger under load, beside etcd: acknowledged writes, the death of the leader, local reads.
//!
//! Both have three members in namespaces with data directories on the same disk, sync before they acknowledge, and are
//! asked by the same clients over HTTP inside the hosts' namespaces. Rounds of both take turns, so that what else the
//! host does meets both.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use smartnode_tests::report::{Aim, Row, Statistic};
use smartnode_tests::{Cluster, poll};

use crate::Voice;
use crate::load::{self, Door, Load, Question};
use crate::peers::etcd::{self, Etcd};

const LEVELS: [usize; 4] = [1, 16, 64, 256];
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
const KILLS: usize = 10;
const READERS: usize = 16;
/// Digits of a label's value.
const VALUE_BYTES: usize = 100;

/// The admin port of a node, with its own token.
fn door(cluster: &Cluster, at: usize) -> Result<Door> {
    let host = cluster.lab.host(at);
    let token = std::fs::read_to_string(host.data_dir.join("admin.token")).context("the node's token")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 7421));
    Door::of(host, address, &format!("Authorization: Bearer {}\r\n", token.trim()))
}

/// etcd's HTTP gateway.
fn gateway(etcd: &Etcd, at: usize) -> Result<Door> {
    let host = etcd.lab.host(at);
    Door::of(host, SocketAddr::new(host.address, 2379), "")
}

/// Another value each time.
fn value(client: usize, number: usize) -> String {
    format!("{:0>VALUE_BYTES$}", format!("{client}-{number}"))
}

/// Changes the label of the client's own machine.
fn label(client: usize, number: usize) -> Question {
    let body = json!({ "labels": { "bench": value(client, number) } });
    ("PATCH", format!("/v1/tenants/default/machines/m{client}"), body.to_string())
}

/// Puts a value under the client's own key.
fn put(client: usize, number: usize) -> Question {
    let body = json!({ "key": base64(&format!("m{client}")), "value": base64(&value(client, number)) });
    ("POST", "/v3/kv/put".into(), body.to_string())
}

/// As etcd's gateway wants keys and values.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let triple = |three: &[u8]| {
        let bits = three.iter().chain([&0; 2]).take(3).fold(0_usize, |bits, byte| (bits << 8) | usize::from(*byte));
        let digit = |at: usize| if at <= three.len() { DIGITS[(bits >> (18 - 6 * at)) & 63] as char } else { '=' };
        (0..4).map(digit).collect::<String>()
    };
    text.as_bytes().chunks(3).map(triple).collect()
}

/// Three nodes with `machines` stopped machines.
fn fabric(machines: usize, tag: &str) -> Result<Cluster> {
    let cluster = Cluster::of(3, tag);
    cluster.pack(0);
    let first = door(&cluster, 0)?;
    for number in 0..machines {
        let spec = json!({ "image": smartnode_tests::machines::IMAGE });
        let body = json!({ "name": format!("m{number}"), "desired": "stopped", "spec": spec });
        load::ask(&first, &("POST", "/v1/tenants/default/machines".into(), body.to_string()))?;
    }
    // Every node's copy has them all.
    let last = format!("/v1/tenants/default/machines/m{}?consistency=linearizable", machines - 1);
    for at in 0..3 {
        load::ask(&door(&cluster, at)?, &("GET", last.clone(), String::new()))?;
    }
    Ok(cluster)
}

/// (syncs of all nodes' ledgers, entries applied)
fn counted(doors: &[Door]) -> Result<(f64, f64)> {
    let (mut syncs, mut applied) = (0.0, 0.0);
    for door in doors {
        let text = load::ask(door, &("GET", "/metrics".into(), String::new()))?;
        let metric = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.with_context(|| format!("no {name}"))?.trim().parse::<f64>().context("a number")
        };
        syncs += metric("smartnode_ledger_syncs")?;
        applied = metric("smartnode_raft_applied_index")?.max(applied);
    }
    Ok((syncs, applied))
}

fn told(voice: &Voice, who: &str, clients: usize, load: &Load) {
    let (median, p99) = (load.percentile(50), load.percentile(99));
    voice.say(&format!("{who}, {clients} clients: {:.0}/s, median {median:.2} ms, p99 {p99:.2} ms", load.per_second));
}

/// Acknowledged writes a second at 1, 16, 64 and 256 clients, spread over the three nodes.
pub fn writes(voice: &Voice) -> Result<Vec<Row>> {
    let most = *LEVELS.last().context("levels")?;
    let cluster = fabric(most, "bled")?;
    let doors = (0..3).map(|at| door(&cluster, at)).collect::<Result<Vec<_>>>()?;
    let etcd = Etcd::of(3, "eled").map_err(|error| format!("{error:#}"));
    let mut rows = Vec::new();
    for clients in LEVELS {
        let what = format!("acknowledged ledger writes: distinct 100-byte labels, three nodes, clients: {clients}");
        let aims = [Aim::at_least_peer(Statistic::Median)];
        let mut row = Row::new(&format!("writes-{clients}"), &what, "1/s", &aims);
        let before = counted(&doors)?;
        let (mut tails, mut peers, mut failed) = (Vec::new(), Vec::new(), None);
        for _ in 0..ROUNDS {
            let ours = load::closed_loop(&doors, clients, ROUND, label)?;
            told(voice, "smartnode", clients, &ours);
            row.ours.push(ours.per_second);
            tails.push(ours.percentile(99));
            match etcd.as_ref().map_err(|reason| anyhow!("{reason}")).and_then(|etcd| put_round(etcd, clients)) {
                Ok(load) => {
                    told(voice, etcd::NAME, clients, &load);
                    peers.push(load.per_second);
                }
                Err(error) => failed = Some(error),
            }
        }
        let after = counted(&doors)?;
        let per_write = (after.0 - before.0) / (after.1 - before.1).max(1.0);
        row.peer(etcd::NAME, failed.map_or(Ok(peers), Err));
        row.note(
            "the machines are stopped ones, made before; clients keep their connections and are spread over the three \
             nodes (etcd: its HTTP gateways); both sync before they acknowledge, on the same disk; rounds take turns",
        );
        let are = if clients == 1 { "client" } else { "clients" };
        row.note(format!(
            "{clients} {are}: {per_write:.2} syncs a write, of all three nodes together; worst p99 of a round {:.1} ms",
            tails.into_iter().fold(0.0, f64::max)
        ));
        rows.push(row);
    }
    Ok(rows)
}

fn put_round(etcd: &Etcd, clients: usize) -> Result<Load> {
    let doors = (0..3).map(|at| gateway(etcd, at)).collect::<Result<Vec<_>>>()?;
    load::closed_loop(&doors, clients, ROUND, put)
}

/// SIGKILL of the leader until a write begun after it is acknowledged by another node.
pub fn leader(voice: &Voice) -> Result<Vec<Row>> {
    let aims = [Aim::at_most(Statistic::Median, 800.0), Aim::at_most_peer(Statistic::Median)];
    let what = "leader SIGKILL to the next acknowledged write, through a node that survives";
    let mut row = Row::new("leader", what, "ms", &aims);
    row.note("the client asks at once and anew every 50 ms, without giving up on what it asked before");
    let mut cluster = fabric(1, "bkill")?;
    for kill in 0..KILLS {
        let leader = cluster.leader(kill % 3);
        let other = cluster.other_than(&[leader]);
        let door = door(&cluster, other)?;
        load::ask(&door, &label(0, 2 * kill))?;
        cluster.kill_daemon(leader);
        row.ours.push(load::poll_until_good(&door, &label(0, 2 * kill + 1), Instant::now())?);
        cluster.start(leader);
        cluster.wait_members(3);
        cluster.cli(other, &["status", "--wait-tolerance", "1", "--timeout", "60s"]).ok();
    }
    drop(cluster);
    voice.say(&format!("{:.0?} ms", row.ours));
    row.peer(etcd::NAME, etcd_leader(voice));
    Ok(vec![row])
}

fn etcd_leader(voice: &Voice) -> Result<Vec<f64>> {
    let mut etcd = Etcd::of(3, "ekill")?;
    let mut samples = Vec::new();
    for kill in 0..KILLS {
        let leader = poll::until("etcd has a leader", Duration::from_secs(30), || etcd_leads(&etcd)).0;
        let door = gateway(&etcd, (leader + 1) % 3)?;
        load::ask(&door, &put(0, 2 * kill))?;
        etcd.kill(leader);
        samples.push(load::poll_until_good(&door, &put(0, 2 * kill + 1), Instant::now())?);
        etcd.start(leader)?;
        etcd.until_serves(leader);
    }
    voice.say(&format!("{}: {samples:.0?} ms", etcd::NAME));
    Ok(samples)
}

/// Position of the member that leads, once all know it.
fn etcd_leads(etcd: &Etcd) -> Option<usize> {
    let status = |at: usize| -> Option<Value> {
        let text = load::ask(&gateway(etcd, at).ok()?, &("POST", "/v3/maintenance/status".into(), "{}".into())).ok()?;
        serde_json::from_str(&text).ok()
    };
    let all = (0..3).map(status).collect::<Option<Vec<_>>>()?;
    let leader = &all[0]["leader"];
    let agreed = all.iter().all(|status| status["leader"] == *leader);
    all.iter().position(|status| agreed && status["header"]["member_id"] == *leader)
}

/// Reads of one node by clients beside it.
pub fn reads(voice: &Voice) -> Result<Vec<Row>> {
    let what = "admin reads of one node by 16 clients beside it: inspecting a machine";
    let mut rate = Row::new("reads", what, "1/s", &[Aim::at_least(Statistic::Median, 10_000.0)]);
    let mut tail = Row::new("reads-p99", "the same: p99 of a round", "ms", &[Aim::at_most(Statistic::Max, 5.0)]);
    rate.note(
        "from the node's own copy of the ledger; the machines are stopped ones. etcd: serializable ranges of one key",
    );
    let cluster = fabric(READERS, "bread")?;
    let door = [door(&cluster, 1)?];
    let inspect = |client: usize, _| ("GET", format!("/v1/tenants/default/machines/m{client}"), String::new());
    let etcd = Etcd::of(3, "eread").map_err(|error| format!("{error:#}"));
    let (mut rates, mut tails, mut failed) = (Vec::new(), Vec::new(), None);
    for _ in 0..ROUNDS {
        let load = load::closed_loop(&door, READERS, ROUND, inspect)?;
        told(voice, "smartnode", READERS, &load);
        rate.ours.push(load.per_second);
        tail.ours.push(load.percentile(99));
        match etcd.as_ref().map_err(|reason| anyhow!("{reason}")).and_then(range_round) {
            Ok(load) => {
                told(voice, etcd::NAME, READERS, &load);
                rates.push(load.per_second);
                tails.push(load.percentile(99));
            }
            Err(error) => failed = Some(format!("{error:#}")),
        }
    }
    let peer = |samples| failed.clone().map_or(Ok(samples), |reason| Err(anyhow::Error::msg(reason)));
    rate.peer(etcd::NAME, peer(rates));
    tail.peer(etcd::NAME, peer(tails));
    Ok(vec![rate, tail])
}

fn range_round(etcd: &Etcd) -> Result<Load> {
    let door = gateway(etcd, 1)?;
    for client in 0..READERS {
        load::ask(&door, &put(client, 0))?;
    }
    let range = |client: usize, _| {
        let body = json!({ "key": base64(&format!("m{client}")), "serializable": true });
        ("POST", "/v3/kv/range".into(), body.to_string())
    };
    load::closed_loop(&[door], READERS, ROUND, range)
}
