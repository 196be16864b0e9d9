//! `smartnode-sim`: runs seeds, each in one process, and tells what came of them.

#![expect(clippy::print_stdout, reason = "the results are this program's output")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use smartnode_sim::ambient;

mod commands;
mod interpose;
mod logs;

use commands::membership::RunMembership;
use commands::replay::Replay;
use commands::run::Run;
use commands::scenario::RunScenario;
use commands::shrink::Shrink;
use commands::swarm::Swarm;

#[derive(Debug, Parser)]
#[command(name = "smartnode-sim", version, about = "The same code, every fault, bit for bit")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one seed
    Run(Run),
    /// Run many seeds, each in a process of its own
    Swarm(Swarm),
    /// Run one seed and tell what happens in it
    Replay(Replay),
    /// Look for a smaller run of a seed that fails in the same way
    Shrink(Shrink),
    /// Run a script of faults and expectations, and record beside it what held
    Scenario(RunScenario),
    /// Run the membership of many nodes alone: how soon deaths are known, false ones, the cost
    Membership(RunMembership),
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        ambient::note_panic(panic.to_string());
    }));
    let result = match Cli::parse().command {
        Command::Run(run) => run.go(),
        Command::Swarm(swarm) => swarm.go(),
        Command::Replay(replay) => replay.go(),
        Command::Shrink(shrink) => shrink.go(),
        Command::Scenario(scenario) => scenario.go(),
        Command::Membership(membership) => membership.go(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
