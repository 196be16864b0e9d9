//! machine create, list, inspect, start, stop, restart, delete, move; its streams are in `streams`.

use axum::http::Method;
use fabric::human;
use serde_json::json;

use super::args::{CreateArgs, MachineCommand, MachineListArgs};
use super::cluster::{list_all, list_query};
use super::error::CliError;
use super::output::{self, Row};
use super::session::Session;
use super::streams;
use crate::api::client::segment;
use crate::api::types::{Answer, CreateMachine, Desired, Machine, MachineSpec, MachineState, MoveMachine, Operation};

type Result<T> = std::result::Result<T, CliError>;

impl Row for Machine {
    const COLUMNS: &'static [&'static str] =
        &["name", "state", "node", "image", "cpu", "memory", "restarts", "created"];
    fn name(&self) -> String {
        self.name.clone()
    }
    fn cells(&self, now_ms: u64) -> Vec<String> {
        let mut state = format!("{:?}", self.status.state).to_lowercase();
        if let Some(to) = self.placement.as_ref().and_then(|placement| placement.moving_to.as_ref()) {
            state.push_str(&format!(" (moving to {to})"));
        } else if let Some(why) = self.status.reason.as_ref().or_else(|| {
            // What it waited for before it ran is over.
            self.waiting.as_ref().filter(|_| self.status.state != MachineState::Running)
        }) {
            state.push_str(&format!(" ({why})"));
        }
        vec![
            self.name.clone(),
            state,
            self.placement.as_ref().map_or_else(|| "-".into(), |placement| placement.node.clone()),
            self.spec.image.clone(),
            human::cpu(self.spec.cpu_millis.into()),
            human::bytes(self.spec.memory_bytes),
            self.status.restarts.to_string(),
            human::age(now_ms, self.created_ms),
        ]
    }
}

fn path(session: &Session, name: &str, rest: &str) -> String {
    session.tenant_path(&format!("machines/{}{rest}", segment(name)))
}

/// `machine`. The code is that of the program, for `exec`.
pub async fn run(session: &mut Session, command: MachineCommand) -> Result<u8> {
    match command {
        MachineCommand::Create(args) => create(session, *args).await,
        MachineCommand::List(args) => list(session, args).await,
        MachineCommand::Inspect(args) => {
            let machine: Answer<Machine> = session.client.get(&path(session, &args.name, "")).await?;
            output::inspect(session.global.output, &machine, &machine.item.name)
        }
        MachineCommand::Start(args) => desire(session, &args.name, "/start", Some("running")).await,
        MachineCommand::Stop(args) => desire(session, &args.name, "/stop", Some("stopped")).await,
        MachineCommand::Restart(args) => restart(session, &args.name).await,
        MachineCommand::Delete(args) => delete(session, &args.name).await,
        MachineCommand::Exec { name, argv } => {
            return streams::exec(session, &path(session, &name, "/exec"), argv).await;
        }
        MachineCommand::Logs { name, follow, tail, timestamps } => {
            streams::logs(session, &path(session, &name, "/logs"), follow, tail, timestamps).await
        }
        MachineCommand::Forward { name, ports } => {
            // Known before anybody connects.
            let _: Answer<Machine> = session.client.get(&path(session, &name, "")).await?;
            streams::forward(session, &path(session, &name, "/forward"), &name, ports).await
        }
        MachineCommand::Move { name, to } => {
            let path = path(session, &name, "/move");
            let operation: Operation = session.write(Method::POST, &path, &MoveMachine { to }).await?;
            let operation = if session.waits() { session.follow(operation).await? } else { operation };
            output::one(session.global.output, &operation, &operation.id, || format!("{}\n", operation.id))
        }
    }?;
    Ok(0)
}

fn print(session: &Session, machine: &Machine) -> Result<()> {
    output::one(session.global.output, machine, &machine.name, || format!("{}\n", machine.name))
}

async fn list(session: &mut Session, args: MachineListArgs) -> Result<()> {
    let mut query = list_query(&args.list);
    if let Some(state) = args.state {
        query.push_str(&format!("&state={}", format!("{state:?}").to_lowercase()));
    }
    if let Some(node) = args.node {
        query.push_str(&format!("&node={}", segment(&node)));
    }
    let path = session.tenant_path("machines");
    output::list(session.global.output, &list_all::<Machine>(session, &path, &query).await?)
}

async fn create(session: &mut Session, args: CreateArgs) -> Result<()> {
    let defaults = MachineSpec::with_image(args.image);
    let spec = MachineSpec {
        command: args.command,
        env: args.environment.into_iter().collect(),
        cpu_millis: args.cpu.unwrap_or(defaults.cpu_millis),
        memory_bytes: args.memory.unwrap_or(defaults.memory_bytes),
        burst_cpu_millis: args.burst_cpu,
        burst_memory_bytes: args.burst_memory,
        publish: args.publish,
        labels: args.labels.into_iter().collect(),
        exclusive: args.exclusive,
        restart: args.restart,
        node: args.node,
        ..defaults
    };
    let body = CreateMachine { name: args.name, spec, desired: Desired::Running };
    let collection = session.tenant_path("machines");
    let made: Machine = session.write(Method::POST, &collection, &body).await?;
    let made = match session.waits() {
        true => wait(session, &made.name, "running").await?.unwrap_or(made),
        false => made,
    };
    print(session, &made)
}

/// Waits for a state; none when it is gone as wanted.
async fn wait(session: &mut Session, name: &str, wanted: &str) -> Result<Option<Machine>> {
    let path = path(session, name, &format!("?wait={wanted}"));
    Ok(session
        .wait_for::<Answer<Machine>>(&path, &format!("smartnode machine inspect {name}"))
        .await?
        .map(|answer| answer.item))
}

async fn desire(session: &mut Session, name: &str, verb: &str, wanted: Option<&str>) -> Result<()> {
    let machine: Machine = session.write(Method::POST, &path(session, name, verb), &json!({})).await?;
    let machine = match wanted.filter(|_| session.waits()) {
        Some(wanted) => wait(session, name, wanted).await?.unwrap_or(machine),
        None => machine,
    };
    print(session, &machine)
}

/// Running is not enough to wait for: the process from before runs, too, until it is stopped.
async fn restart(session: &mut Session, name: &str) -> Result<()> {
    let before: Answer<Machine> = session.client.get(&path(session, name, "")).await?;
    let mut machine: Machine = session.write(Method::POST, &path(session, name, "/restart"), &json!({})).await?;
    if session.waits() {
        let begun = |status: &crate::api::types::MachineStatus| (status.pid, status.started_ms);
        let deadline = tokio::time::Instant::now() + session.global.timeout;
        loop {
            machine = wait(session, name, "running").await?.unwrap_or(machine);
            if begun(&machine.status) != begun(&before.item.status) {
                break;
            }
            if tokio::time::Instant::now() >= deadline {
                let words = format!("machine {name} has not been restarted yet");
                return Err(
                    CliError::new(super::Exit::Timeout, words).hint(format!("smartnode machine inspect {name}"))
                );
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    print(session, &machine)
}

async fn delete(session: &mut Session, name: &str) -> Result<()> {
    session.confirm(&format!("Delete the machine {name} of tenant {} and its disk", session.global.tenant()))?;
    let machine: Machine = session.write(Method::DELETE, &path(session, name, ""), &json!({})).await?;
    if session.waits() {
        wait(session, name, "gone").await?;
    }
    print(session, &machine)
}
