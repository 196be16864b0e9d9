//! The command line: a client of the admin API, and the one place where a daemon begins.
//!
//! Data goes to stdout, everything else to stderr. An error is its cause, an empty line and the next command to try;
//! exit codes are in [`error`]. What is absent: nothing here knows the ledger or a machine but through the API.

mod args;
mod cluster;
mod context;
mod daemon;
mod demo;
mod error;
mod image;
mod logfile;
mod machine;
mod node;
mod output;
mod progress;
mod service;
mod session;
mod streams;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use fabric::rpc::BoxFuture;

use crate::config::{NodeOptions, Start};

pub use args::{Cli, Command};
use args::{ImageCommand, MachineCommand, NodeCommand, TenantCommand, TokenCommand};
pub use error::{CliError, Exit};
pub use logfile::{LOG_FILE, LOG_FILE_OLD};
use session::Session;

/// Runs a node until it is told to stop: `smartnode::node` gives it, so that this module knows nothing of a node.
pub type Daemon = fn(NodeOptions, Start) -> BoxFuture<Result<(), CliError>>;

/// Parses the arguments of this process and does what they say; `daemon` runs a node.
pub fn main(daemon: Daemon) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            return code.into();
        }
    };
    let quiet = cli.global.quiet;
    match dispatch(cli, daemon) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error.print(quiet);
            error.exit.into()
        }
    }
}

/// Which code a command ends with: 0, or that of a program run by `exec`.
fn dispatch(cli: Cli, daemon: Daemon) -> Result<u8, CliError> {
    if cli.global.dry_run {
        can_rehearse(&cli.command)?;
    }
    if cli.global.idempotency_key.is_some() && !is_known_by_key(&cli.command) {
        return Err(CliError::new(Exit::Usage, "this command is not known by an --idempotency-key; nothing was done")
            .hint("without it the command may be repeated as it is"));
    }
    match cli.command {
        Command::Init(init) => daemon::run(&cli.global, init.into_node(), daemon).map(|()| 0),
        Command::Join(join) => daemon::run(&cli.global, join.into_node()?, daemon).map(|()| 0),
        Command::Start(start) => daemon::run(&cli.global, start.into_node(), daemon).map(|()| 0),
        Command::Version => cluster::version(cli.global.output).map(|()| 0),
        Command::Completion { shell } => {
            // In memory first: the generator panics when its reader has had enough.
            let mut script = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "smartnode", &mut script);
            output::print(&String::from_utf8_lossy(&script)).map(|()| 0)
        }
        Command::Service(service) => service::run(service, &cli.global).map(|()| 0),
        Command::Demo => here(demo::run(&cli.global)).map(|()| 0),
        Command::CounterServer { port, file } => Ok(crate::demo::counter::serve(port, &file).map(|()| 0)?),
        command => {
            let session = Session::new(cli.global)?;
            here(client(session, command))
        }
    }
}

/// Refuses a dry run of what has none. Nothing may be done by a command that was told to change nothing.
fn can_rehearse(command: &Command) -> Result<(), CliError> {
    let name = match command {
        Command::Init(_) => "init",
        Command::Join(_) => "join",
        Command::Start(_) => "start",
        Command::Demo => "demo",
        Command::CounterServer { .. } => "counter-server",
        Command::Machine(MachineCommand::Exec { .. }) => "machine exec",
        Command::Machine(MachineCommand::Forward { .. }) => "machine forward",
        _ => return Ok(()),
    };
    Err(CliError::new(Exit::Usage, format!("smartnode {name} has no dry run; nothing was done"))
        .hint(format!("without --dry-run it is done; what it does: smartnode {name} --help")))
}

/// Whether a command is one request to the ledger, which knows it by its key when it comes again.
fn is_known_by_key(command: &Command) -> bool {
    match command {
        Command::Token(command) => !matches!(command, TokenCommand::List(_)),
        Command::Tenant(command) => !matches!(command, TenantCommand::List(_) | TenantCommand::Inspect { .. }),
        Command::Node(command) => !matches!(command, NodeCommand::List(_) | NodeCommand::Inspect(_)),
        Command::Image(command) => !matches!(command, ImageCommand::List(_)),
        Command::Machine(command) => {
            use MachineCommand::*;
            matches!(command, Create(_) | Start(_) | Stop(_) | Restart(_) | Delete(_) | Move { .. })
        }
        _ => false,
    }
}

/// Runs on this thread.
fn here<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(Exit::Failed, format!("the program cannot start: {error}")))?;
    let done = runtime.block_on(work);
    // A read of standard input that nobody ends must not hold the program.
    runtime.shutdown_background();
    done
}

async fn client(mut session: Session, command: Command) -> Result<u8, CliError> {
    let session = &mut session;
    match command {
        Command::Status(status) => cluster::status(session, status).await,
        Command::Stop(stop) => cluster::stop(session, stop).await,
        Command::Leave(leave) => cluster::leave(session, leave).await,
        Command::Token(token) => cluster::token(session, token).await,
        Command::Tenant(tenant) => cluster::tenant(session, tenant).await,
        Command::Events(events) => streams::events(session, events).await,
        Command::Node(node) => node::run(session, node).await,
        Command::Machine(machine) => return machine::run(session, machine).await,
        Command::Image(image) => image::run(session, image).await,
        Command::Init(_) | Command::Join(_) | Command::Start(_) => Ok(()),
        Command::Version | Command::Completion { .. } | Command::Service(_) => Ok(()),
        Command::Demo | Command::CounterServer { .. } => Ok(()),
    }?;
    Ok(0)
}
