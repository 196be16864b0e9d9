//! What the demo does, step by step.
#![expect(clippy::disallowed_methods, reason = "times the steps of real processes")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use axum::http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fabric::{Fabric, schedulable};
use super::outside::{self, Outside};
use super::{NODES, Report};
use crate::api::types::*;
use crate::cli::{CliError, Exit};
use crate::lab::Isolation;

type Result<T> = std::result::Result<T, CliError>;

/// Name of the demo's tenant and prefix of its things.
const TENANT: &str = "demo";
/// The machine.
const MACHINE: &str = "counter";
/// Port of the machine, published on its owner under the same number.
const PORT: u16 = 8080;
/// The machine's path in the API.
const MACHINE_PATH: &str = "/v1/tenants/demo/machines/counter";
/// Bytes of the machine's answer.
const ANSWER_BYTES_MAX: u64 = 4096;
/// One connection through the fabric is given up after this.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

fn millis(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

/// Tells it all.
///
/// # Errors
/// What a step failed with.
pub async fn tell(fabric: &mut Fabric, program: &Path, left_out: Vec<String>) -> Result<Report> {
    let isolation = match fabric.lab.isolation() {
        Isolation::Namespaces => "namespaces",
        Isolation::Loopback => "loopback",
    };
    let with_machines = left_out.is_empty();
    let mut report = Report { isolation: isolation.into(), nodes: NODES, left_out, ..Report::default() };
    assemble(fabric, &mut report).await?;
    let tenant = CreateTenant { name: TENANT.into(), parent: None, quota: Quota::default() };
    let _: Tenant = fabric.client(1).send(Method::POST, "/v1/tenants", &tenant).await?;
    fabric.voice.say("the tenant demo is made, through n2: any node takes any request");
    if with_machines {
        start_machine(fabric, program, &mut report).await?;
        let addresses = fabric.lab.hosts().iter().map(|host| SocketAddr::new(host.address, PORT)).collect();
        let outside = Outside::start(&fabric.lab.switch(), addresses)?;
        let owner = serving(fabric, &outside).await?;
        let now_at = fail_over(fabric, &outside, owner, &mut report).await?;
        bring_back(fabric, owner, &mut report).await?;
        relocate(fabric, &outside, now_at, owner, &mut report).await?;
    } else {
        let status: Status = fabric.client(0).get("/v1/status").await?;
        let leader = status.leader.as_deref().unwrap_or("n1");
        let victim = fabric.position(leader)?;
        fabric.voice.say(&format!("killing {leader}, which leads the ledger"));
        kill(fabric, victim, &mut report).await?;
        bring_back(fabric, victim, &mut report).await?;
    }
    Ok(report)
}

/// init, token, join, join, tolerance.
async fn assemble(fabric: &mut Fabric, report: &mut Report) -> Result<()> {
    for _ in 0..NODES {
        fabric.lab.add_host().map_err(|error| super::lab_failed(&error))?;
    }
    let begun = Instant::now();
    fabric.start(0, &["init"]).await?;
    report.init_ms = millis(begun);
    fabric.voice.say(&format!("n1 has founded a fabric ({} ms)", report.init_ms));
    let token = CreateToken { role: Role::Voter, ttl_ms: 600_000, uses: NODES as u32 - 1 };
    let token: NewTokenAnswer = fabric.client(0).send(Method::POST, "/v1/tokens", &token).await?;
    let peer = format!("{}:{}", fabric.lab.host(0).address, crate::config::FABRIC_PORT);
    let mut joined = Instant::now();
    for at in 1..NODES {
        let begun = Instant::now();
        fabric.start(at, &["join", &peer, "--token", &token.token]).await?;
        fabric.all_say(&[0], at, schedulable).await?;
        let took = millis(begun);
        fabric.voice.say(&format!("{} has joined ({took} ms)", fabric.name(at)));
        report.join_ms = report.join_ms.max(took);
        joined = Instant::now();
    }
    let status = fabric.tolerant(0).await?;
    report.tolerance_ms = millis(joined);
    fabric.voice.say(&format!("{} ({} ms)", status.summary, report.tolerance_ms));
    Ok(())
}

/// image from-host, machine create.
async fn start_machine(fabric: &mut Fabric, program: &Path, report: &mut Report) -> Result<()> {
    let program = program.display().to_string();
    let begun = Instant::now();
    let image = CreateImage { name: MACHINE.into(), from_host: vec![program.clone()] };
    let path = format!("/v1/tenants/{TENANT}/images");
    let mut client = fabric.client(0);
    client.timeout = fabric.patience;
    let image: Image = client.send(Method::POST, &path, &image).await?;
    report.image_ms = Some(millis(begun));
    let size = ::fabric::human::bytes(image.size_bytes);
    fabric.voice.say(&format!("the image counter is packed from this host: {size} ({} ms)", millis(begun)));

    let port = PORT.to_string();
    let command = [program.as_str(), "counter-server", "--port", &port, "--file", "/data/count"];
    let mut spec = MachineSpec::with_image(MACHINE);
    spec.command = command.map(str::to_owned).to_vec();
    spec.publish = vec![Publish { ip: None, host_port: PORT, machine_port: PORT }];
    let body = CreateMachine { name: MACHINE.into(), spec, desired: Desired::Running };
    let begun = Instant::now();
    let path = format!("/v1/tenants/{TENANT}/machines");
    let _: Machine = fabric.client(1).send(Method::POST, &path, &body).await?;
    let made: Answer<Machine> = fabric.wait_at(1, &format!("{MACHINE_PATH}?wait=running")).await?;
    report.machine_start_ms = Some(millis(begun));
    let owner = made.item.placement.map(|placement| placement.node).unwrap_or_default();
    fabric.voice.say(&format!("the machine counter runs on {owner} ({} ms)", millis(begun)));
    Ok(())
}

/// The position of the machine's owner, as a node knows it.
async fn owner(fabric: &Fabric, asked: usize) -> Result<usize> {
    let answer: Answer<Machine> = fabric.client(asked).get(MACHINE_PATH).await?;
    let placement = answer.item.placement;
    let placement = placement.ok_or_else(|| CliError::new(Exit::Failed, "the machine has no place"))?;
    fabric.position(&placement.node)
}

/// Any other position than those.
fn other_than(taken: &[usize]) -> usize {
    (0..NODES).find(|at| !taken.contains(at)).unwrap_or(0)
}

/// Read from outside, and through a node that does not own it. Gives the owner.
async fn serving(fabric: &Fabric, outside: &Outside) -> Result<usize> {
    let owner = owner(fabric, 0).await?;
    fabric
        .until("the first answer outside", async || outside.last(Instant::now(), |answer| answer.node == owner))
        .await?;
    let through = other_than(&[owner]);
    let count = read_through(fabric, through).await?;
    let (through, owner_name) = (fabric.name(through), fabric.name(owner));
    fabric.voice.say(&format!("read through {through}: {count} requests counted on {owner_name}'s disk"));
    for at in 0..NODES {
        fabric
            .all_say(&[other_than(&[at])], at, |node| node.gossip.as_ref().is_some_and(|told| told.images > 0))
            .await?;
    }
    fabric.voice.say("every node has a copy of the image by now");
    Ok(owner)
}

/// What `machine forward` does, at a node of choice.
async fn read_through(fabric: &Fabric, at: usize) -> Result<u64> {
    let mut client = fabric.client(at);
    let read = async {
        let mut stream = client.upgrade(&format!("{MACHINE_PATH}/forward?port={PORT}"), &json!({})).await?;
        stream.write_all(outside::REQUEST).await?;
        let mut text = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text).await?;
        outside::count(&text)
            .ok_or_else(|| CliError::new(Exit::Failed, format!("the machine's answer is none: {text:?}")))
    };
    let late = |_| CliError::new(Exit::Timeout, format!("no answer of the machine through {}", fabric.name(at)));
    tokio::time::timeout(READ_TIMEOUT, read).await.map_err(late)?
}

/// Kills all of a node, and times what the survivors notice and can do.
async fn kill(fabric: &mut Fabric, victim: usize, report: &mut Report) -> Result<Instant> {
    let survivors: Vec<usize> = (0..NODES).filter(|at| *at != victim).collect();
    let killed = Instant::now();
    fabric.lab.kill_host(victim);
    let detected = async {
        fabric.all_say(&survivors, victim, |node| node.liveness == Liveness::Down).await?;
        Ok::<_, CliError>(millis(killed))
    };
    let written = async {
        let tenant = CreateTenant { name: "after".into(), parent: None, quota: Quota::default() };
        let mut client = fabric.client(survivors[0]);
        // A write is unknown, not absent, when its answer was lost: it may have been done by the try before.
        let write = async || match client.send::<_, Tenant>(Method::POST, "/v1/tenants", &tenant).await {
            Ok(_) => Some(()),
            Err(failure) => (failure.class == crate::api::failure::Class::Conflict).then_some(()),
        };
        fabric.until("a write of the survivors", write).await?;
        Ok::<_, CliError>(millis(killed))
    };
    let (detected, written) = tokio::join!(detected, written);
    (report.detect_ms, report.write_failover_ms) = (detected?, written?);
    let name = fabric.name(victim);
    fabric.voice.say(&format!("both survivors hold {name} for dead ({} ms after the kill)", report.detect_ms));
    fabric.voice.say(&format!("the ledger has taken a write again ({} ms)", report.write_failover_ms));
    Ok(killed)
}

/// Kills the owner and waits until the machine serves elsewhere. Gives where.
async fn fail_over(fabric: &mut Fabric, outside: &Outside, owner: usize, report: &mut Report) -> Result<usize> {
    let name = fabric.name(owner);
    let before = outside.last(Instant::now(), |answer| answer.node == owner);
    let before = before.map_or(0, |answer| answer.count);
    fabric.voice.say(&format!("killing all of {name}: daemon, supervisor and machine (the counter is at {before})"));
    let killed = kill(fabric, owner, report).await?;
    let elsewhere = async || outside.first(killed, |answer| answer.node != owner);
    let first = fabric.until("the machine serves elsewhere", elsewhere).await?;
    let took = (first.at - killed).as_millis() as u64;
    report.failover_ms = Some(took);
    let now_at = fabric.name(first.node);
    fabric.voice.say(&format!("the machine serves on {now_at} ({took} ms after the kill)"));
    fabric.voice.say(&format!(
        "its counter starts afresh at {}: what it had written was on the disk of {name}, which is dead",
        first.count
    ));
    Ok(first.node)
}

/// Starts the dead node again.
async fn bring_back(fabric: &mut Fabric, at: usize, report: &mut Report) -> Result<()> {
    let begun = Instant::now();
    let others: Vec<usize> = (0..NODES).filter(|other| *other != at).collect();
    fabric.start(at, &["start"]).await?;
    fabric.all_say(&others, at, |node| node.liveness == Liveness::Alive).await?;
    report.return_ms = millis(begun);
    fabric.voice.say(&format!("{} is back ({} ms)", fabric.name(at), report.return_ms));
    fabric.all_say(&others, at, schedulable).await?;
    fabric.tolerant(others[0]).await.map(drop)
}

/// Moves the machine and times its outage for the client outside.
async fn relocate(fabric: &Fabric, outside: &Outside, from: usize, to: usize, report: &mut Report) -> Result<()> {
    let (from_name, to_name) = (fabric.name(from), fabric.name(to));
    fabric.voice.say(&format!("moving the machine from {from_name} to {to_name}"));
    let begun = Instant::now();
    let relocation = MoveMachine { to: Some(to_name.clone()) };
    let operation: Operation =
        fabric.client(from).send(Method::POST, &format!("{MACHINE_PATH}/move"), &relocation).await?;
    fabric.follow(from, &operation).await?;
    report.move_ms = Some(millis(begun));
    let arrived = async || outside.first(begun, |answer| answer.node == to);
    let first = fabric.until("the machine serves where it was moved to", arrived).await?;
    let last = outside.last(first.at, |answer| answer.node == from);
    let last = last.ok_or_else(|| CliError::new(Exit::Failed, "no answer was seen before the move"))?;
    let outage = (first.at - last.at).as_millis() as u64;
    report.move_outage_ms = Some(outage);
    if first.count <= last.count {
        let words = format!("the move lost data: the counter was at {} and is at {}", last.count, first.count);
        return Err(CliError::new(Exit::Failed, words));
    }
    fabric.voice.say(&format!(
        "it serves on {to_name}: {outage} ms without an answer, and the counter goes on from {} to {}",
        last.count, first.count
    ));
    Ok(())
}
