//! `smartnode-sim`: runs one seed in this process, and prints one line about it.

#![expect(clippy::print_stdout, reason = "the result line is this program's output")]

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use smartnode_sim::actor::Software;
use smartnode_sim::ambient;
use smartnode_sim::faults::Faults;
use smartnode_sim::software::calls::Calls;
use smartnode_sim::software::cluster::Cluster;
use smartnode_sim::software::leaky::Leak;
use smartnode_sim::software::ledger::Ledgers;
use smartnode_sim::software::node::Nodes;
use smartnode_sim::software::ping::{Ping, Pings};
use smartnode_sim::trace::Trace;
use smartnode_sim::world::{Config, World};

mod interpose;
mod logs;

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
}

#[derive(Debug, Args)]
struct Run {
    /// Everything follows from it
    #[arg(long)]
    seed: u64,
    /// Simulated seconds, faults first and a calm at the end
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Hosts
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// What may go wrong: all, none, or a list such as loss,crash
    #[arg(long, default_value = "all")]
    faults: Faults,
    /// What runs on the hosts
    #[arg(long, value_enum, default_value_t = What::Node)]
    software: What,
    /// Write every record to this file
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Write the software's logs to standard error: error, warn, info, debug or trace
    #[arg(long)]
    log: Option<tracing::Level>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// The world's own control: pings over QUIC
    Ping,
    /// The fabric's transport alone
    Calls,
    /// The ledger over the transport
    Ledger,
    /// Whole nodes
    Node,
    #[value(hide = true)]
    LeakWallClock,
    #[value(hide = true)]
    LeakThread,
    #[value(hide = true)]
    LeakSocket,
    #[value(hide = true)]
    LeakFile,
}

/// Length of the calm at the end.
const CALM: Duration = Duration::from_secs(15);
/// Length of the peace at the beginning.
const PEACE: Duration = Duration::from_secs(3);

impl Run {
    fn software(&self) -> anyhow::Result<Arc<dyn Software>> {
        Ok(match self.software {
            What::Ping => Arc::new(Pings(Arc::new(Ping::new(self.seed)?))),
            What::Calls => Arc::new(Calls::new(Cluster::new(self.seed, self.nodes)?, self.calm_us())),
            What::Ledger => Arc::new(Ledgers::new(Cluster::new(self.seed, self.nodes)?, self.calm_us())),
            What::Node => Arc::new(Nodes::new(self.calm_us())),
            What::LeakWallClock => Arc::new(Leak::WallClock),
            What::LeakThread => Arc::new(Leak::Thread),
            What::LeakSocket => Arc::new(Leak::Socket),
            What::LeakFile => Arc::new(Leak::File),
        })
    }

    fn calm_us(&self) -> u64 {
        Duration::from_secs(self.seconds).saturating_sub(CALM).as_micros() as u64
    }

    fn sink(&self) -> anyhow::Result<Option<Box<dyn Write + Send>>> {
        let Some(path) = &self.trace else { return Ok(None) };
        #[expect(clippy::disallowed_methods, reason = "the trace is a file of the real host")]
        let file = std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Some(Box::new(BufWriter::new(file))))
    }

    fn run(&self) -> anyhow::Result<ExitCode> {
        let config = Config {
            seed: self.seed,
            hosts: self.nodes,
            length: Duration::from_secs(self.seconds),
            peace: PEACE,
            calm: CALM,
            faults: self.faults.clone(),
        };
        let report = World::new(config, self.software()?, Trace::new(self.sink()?))?.run()?;
        println!("{}", report.line());
        report.violations.iter().for_each(|violation| println!("  {violation}"));
        if report.violations.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        println!(
            "  replay: smartnode-sim run --seed {} --seconds {} --nodes {} --faults {} --software {}",
            self.seed,
            self.seconds,
            self.nodes,
            self.faults_argument(),
            self.software_argument()
        );
        Ok(ExitCode::FAILURE)
    }

    fn faults_argument(&self) -> String {
        let faults = self.faults.to_string();
        if faults.is_empty() { "none".to_owned() } else { faults }
    }

    fn software_argument(&self) -> String {
        self.software.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        ambient::note_panic(panic.to_string());
    }));
    let Command::Run(run) = Cli::parse().command;
    if let Some(level) = run.log {
        logs::start(level);
    }
    match run.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
