//! status, stop, leave, version, token, tenant.

use std::time::Duration;

use axum::http::Method;
use fabric::human;
use serde_json::json;

use super::args::{LeaveArgs, ListArgs, Output, StatusArgs, StopArgs, TenantCommand, TokenCommand};
use super::error::{CliError, Exit};
use super::output::{self, Row};
use super::progress::Progress;
use super::session::Session;
use crate::api::client::segment;
use crate::api::failure::Class;
use crate::api::types::*;

type Result<T> = std::result::Result<T, CliError>;

/// `version`.
pub fn version(output: Output) -> Result<()> {
    let version = Version::of_this_program();
    output::one(output, &version, &version.version, || {
        format!("smartnode {} (API {}, wire protocol {})\n", version.version, version.api, version.protocol)
    })
}

/// `status`.
pub async fn status(session: &mut Session, args: StatusArgs) -> Result<()> {
    let status: Status = match args.wait_tolerance {
        None => session.client.get("/v1/status").await?,
        Some(wanted) => {
            let answer = session.wait_for(&format!("/v1/status?wait_tolerance={wanted}"), "smartnode status").await?;
            answer.ok_or_else(|| CliError::new(Exit::Failed, "the node answered nothing"))?
        }
    };
    output::one(session.global.output, &status, &status.node, || status_text(&status))?;
    if status.role == Role::Worker {
        session.say(&format!("{}: nodes and machines are those that it is told of", output::WORKER));
    }
    Ok(())
}

fn status_text(status: &Status) -> String {
    let voters: Vec<_> = status
        .voters
        .iter()
        .map(|voter| if voter.alive { voter.name.clone() } else { format!("{} (down)", voter.name) })
        .collect();
    let leader = status.leader.as_deref().unwrap_or("none");
    let mut rows = vec![
        ("cluster", status.cluster.clone()),
        ("node", format!("{} at {}, {:?}", status.node, status.address, status.raft).to_lowercase()),
        ("leader", format!("{leader}, term {}", status.term)),
        ("voters", voters.join(", ")),
    ];
    if !status.standbys.is_empty() {
        rows.push(("standbys", status.standbys.join(", ")));
    }
    let nodes = &status.nodes;
    rows.push(("nodes", format!("{} alive, {} suspect, {} down", nodes.alive, nodes.suspect, nodes.down)));
    let machines = &status.machines;
    rows.push(("machines", format!("{}, {} of them without a place", machines.total, machines.waiting)));
    rows.extend(status.no_machines.as_ref().map(|why| ("no machines", format!("can run on this node: {why}"))));
    rows.push(("ledger", format!("{} entries, epoch {}", status.applied, status.epoch)));
    let up = Duration::from_millis(output::now_ms().saturating_sub(status.started_ms));
    rows.push(("daemon", format!("version {}, up {}", status.version, human::duration(up))));
    let lines: String = rows.iter().map(|(key, value)| format!("{key:<9} {value}\n")).collect();
    format!("{}\n\n{lines}", status.summary)
}

/// Asks until nobody answers any more.
async fn wait_until_gone(session: &mut Session) -> Result<()> {
    let progress = Progress::new(session.global.quiet);
    let deadline = tokio::time::Instant::now() + session.global.timeout;
    loop {
        // A new connection each time: an old one may outlive the listener.
        let mut client = session.client.another();
        client.timeout = Duration::from_secs(1);
        match client.get_text("/healthz").await {
            // Its port closes first; its directory is free for the next daemon when all else has ended.
            Err(failure) if failure.class == Class::Unreachable && session.daemon_has_ended() => return Ok(()),
            _ => progress.say("the daemon is stopping"),
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(CliError::new(Exit::Timeout, "the daemon has not stopped yet")
                .hint("it goes on stopping; look again: smartnode status"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `stop`.
pub async fn stop(session: &mut Session, args: StopArgs) -> Result<()> {
    let body = StopNode { absence_ms: args.absence.as_millis() as u64 };
    session.write_only(Method::POST, "/v1/self/stop", &body).await?;
    if session.global.dry_run {
        return session.say_done("the daemon would stop; its machines would go on");
    }
    wait_until_gone(session).await?;
    session.say_done(&format!(
        "stopped; its machines go on. Back within {}: smartnode start",
        human::duration(args.absence)
    ))
}

/// `leave`.
pub async fn leave(session: &mut Session, args: LeaveArgs) -> Result<()> {
    let data = if args.purge { " and delete its data" } else { "" };
    session.confirm(&format!("Take this node out of its cluster for good{data}"))?;
    let body = LeaveCluster { purge: args.purge };
    let operation: Operation = session.write(Method::POST, "/v1/self/leave", &body).await?;
    if session.global.dry_run {
        return session.say_done("this node would leave its cluster");
    }
    match session.follow(operation).await {
        // The daemon ends with its membership, perhaps before its last answer.
        Err(error) if error.exit == Exit::Unreachable => {}
        other => drop(other?),
    }
    wait_until_gone(session).await?;
    let mut words = "this node has left its cluster".to_owned();
    let left = if args.purge { session.data_left() } else { vec![] };
    if let Some((directory, names)) = left.split_first() {
        words.push_str(&format!("; {directory} holds what is not this node's and was left: {}", names.join(", ")));
    }
    session.say_done(&words)
}

impl Row for Token {
    const COLUMNS: &'static [&'static str] = &["id", "role", "uses left", "expires in", "created"];
    fn name(&self) -> String {
        self.id.clone()
    }
    fn cells(&self, now_ms: u64) -> Vec<String> {
        let left = Duration::from_millis(self.expires_ms.saturating_sub(now_ms));
        vec![
            self.id.clone(),
            format!("{:?}", self.role).to_lowercase(),
            self.uses_left.to_string(),
            if left.is_zero() { "expired".into() } else { human::duration(left) },
            human::age(now_ms, self.created_ms),
        ]
    }
}

/// The query of a list.
pub fn list_query(args: &ListArgs) -> String {
    let labels: String = args.labels.iter().map(|label| format!("&label={}", segment(label))).collect();
    format!("limit={}{labels}", crate::limits::API_LIST_MAX)
}

/// All parts of a list.
pub async fn list_all<T: serde::de::DeserializeOwned>(
    session: &mut Session,
    path: &str,
    query: &str,
) -> Result<List<T>> {
    let mut all: List<T> = session.client.get(&format!("{path}?{query}")).await?;
    while let Some(cursor) = all.next_cursor.take() {
        let part: List<T> = session.client.get(&format!("{path}?{query}&cursor={}", segment(&cursor))).await?;
        all.items.extend(part.items);
        all.staleness_ms = all.staleness_ms.max(part.staleness_ms);
        all.unreachable.extend(part.unreachable);
        all.next_cursor = part.next_cursor;
    }
    all.unreachable.sort();
    all.unreachable.dedup();
    Ok(all)
}

/// `token`.
pub async fn token(session: &mut Session, command: TokenCommand) -> Result<()> {
    let output = session.global.output;
    match command {
        TokenCommand::Create { role, ttl, uses } => {
            let body = CreateToken { role, ttl_ms: ttl.as_millis() as u64, uses };
            let made: NewTokenAnswer = session.write(Method::POST, "/v1/tokens", &body).await?;
            let left = Duration::from_millis(made.expires_ms.saturating_sub(output::now_ms()));
            if session.global.dry_run && output == Output::Table {
                return Ok(());
            }
            let nodes = human::count(uses as usize, "node");
            session.say(&format!("valid for {}, for {nodes}; run this on the new node:", human::duration(left)));
            output::one(output, &made, &made.id, || format!("{}\n", made.join))
        }
        TokenCommand::List(args) => {
            output::list(output, &list_all::<Token>(session, "/v1/tokens", &list_query(&args)).await?)
        }
        TokenCommand::Revoke { id } => {
            session.write_only(Method::DELETE, &format!("/v1/tokens/{}", segment(&id)), &json!({})).await?;
            session.say_done(&format!("token {id} is revoked"))
        }
    }
}

impl Row for Tenant {
    const COLUMNS: &'static [&'static str] = &["name", "parent", "created"];
    fn name(&self) -> String {
        self.name.clone()
    }
    fn cells(&self, now_ms: u64) -> Vec<String> {
        vec![self.name.clone(), self.parent.clone().unwrap_or_else(|| "-".into()), human::age(now_ms, self.created_ms)]
    }
}

/// `tenant`.
pub async fn tenant(session: &mut Session, command: TenantCommand) -> Result<()> {
    let output = session.global.output;
    match command {
        TenantCommand::Create { name, parent } => {
            let body = CreateTenant { name, parent, quota: Quota::default() };
            let tenant: Tenant = session.write(Method::POST, "/v1/tenants", &body).await?;
            output::one(output, &tenant, &tenant.name, || format!("{}\n", tenant.name))
        }
        TenantCommand::List(args) => {
            output::list(output, &list_all::<Tenant>(session, "/v1/tenants", &list_query(&args)).await?)
        }
        TenantCommand::Inspect { name } => {
            let tenant: Answer<Tenant> = session.client.get(&format!("/v1/tenants/{}", segment(&name))).await?;
            output::inspect(output, &tenant, &name)
        }
        TenantCommand::Delete { name } => {
            session.confirm(&format!("Delete the tenant {name}"))?;
            session.write_only(Method::DELETE, &format!("/v1/tenants/{}", segment(&name)), &json!({})).await?;
            session.say_done(&format!("tenant {name} is deleted"))
        }
    }
}
