//! The commands, and what they share: which run a seed stands for.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use smartnode_sim::actor::Software;
use smartnode_sim::coverage::Heard;
use smartnode_sim::faults::{Faults, Skip};
use smartnode_sim::limits::OPERATIONS_MAX;
use smartnode_sim::report::Report;
use smartnode_sim::software::budget::Budget;
use smartnode_sim::software::calls::Calls;
use smartnode_sim::software::cluster::Cluster;
use smartnode_sim::software::fragile::Fragile;
use smartnode_sim::software::ledger::Ledgers;
use smartnode_sim::software::node::Nodes;
use smartnode_sim::software::ping::{Ping, Pings};
use smartnode_sim::trace::{Sink, Trace};
use smartnode_sim::world::{Config, RunError, World};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;

pub mod child;
mod leaks;
pub mod membership;
pub mod replay;
pub mod run;
pub mod scenario;
pub mod shrink;
pub mod swarm;

/// Length of the calm at the end.
const CALM: Duration = Duration::from_secs(15);
/// Length of the peace at the beginning.
const PEACE: Duration = Duration::from_secs(3);

/// What of a run is not its seed. Together with the seed it is the whole run.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Settings {
    /// Simulated seconds, faults first and a calm at the end
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Hosts
    #[arg(long, default_value_t = 3)]
    pub nodes: u64,
    /// What may go wrong: all, usual, none, or a list such as loss,crash
    #[arg(long, default_value = "all")]
    pub faults: Faults,
    /// What runs on the hosts
    #[arg(long, value_enum, default_value_t = What::Node)]
    pub software: What,
    /// Operations that the clients may begin before the calm
    #[arg(long, default_value_t = OPERATIONS_MAX)]
    pub operations: u64,
    /// Actions of the faults' plan to leave out, by number from 0, such as 0-3,7
    #[arg(long)]
    pub skip: Option<Skip>,
}

/// How a result is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What runs on the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// The world's own control: pings over QUIC
    Ping,
    /// The fabric's transport alone
    Calls,
    /// The ledger over the transport
    Ledger,
    /// Whole nodes
    Node,
    #[value(hide = true)]
    Fragile,
    #[value(hide = true)]
    LeakWallClock,
    #[value(hide = true)]
    LeakThread,
    #[value(hide = true)]
    LeakProcess,
    #[value(hide = true)]
    LeakFork,
    #[value(hide = true)]
    LeakSocket,
    #[value(hide = true)]
    LeakName,
    #[value(hide = true)]
    LeakFile,
    #[value(hide = true)]
    LeakMetadata,
    #[value(hide = true)]
    LeakRename,
    #[value(hide = true)]
    LeakRemoval,
    #[value(hide = true)]
    LeakDirectory,
    #[value(hide = true)]
    LeakListing,
}

impl Settings {
    fn software(&self, seed: u64) -> anyhow::Result<Arc<dyn Software>> {
        let (calm_us, budget) = (self.calm_us(), Budget::of(self.operations));
        Ok(match self.software {
            What::Ping => Arc::new(Pings(Arc::new(Ping::new(seed)?))),
            What::Calls => Arc::new(Calls::new(Cluster::new(seed, self.nodes)?, calm_us)),
            What::Ledger => Arc::new(Ledgers::new(Cluster::new(seed, self.nodes)?, calm_us, budget)),
            What::Node => Arc::new(Nodes::new(calm_us, budget)),
            What::Fragile => Arc::new(Fragile),
            What::LeakWallClock => Arc::new(leaks::WALL_CLOCK),
            What::LeakThread => Arc::new(leaks::THREAD),
            What::LeakProcess => Arc::new(leaks::PROCESS),
            What::LeakFork => Arc::new(leaks::FORK),
            What::LeakSocket => Arc::new(leaks::SOCKET),
            What::LeakName => Arc::new(leaks::NAME),
            What::LeakFile => Arc::new(leaks::FILE),
            What::LeakMetadata => Arc::new(leaks::METADATA),
            What::LeakRename => Arc::new(leaks::RENAME),
            What::LeakRemoval => Arc::new(leaks::REMOVAL),
            What::LeakDirectory => Arc::new(leaks::DIRECTORY),
            What::LeakListing => Arc::new(leaks::LISTING),
        })
    }

    fn calm_us(&self) -> u64 {
        Duration::from_secs(self.seconds).saturating_sub(CALM).as_micros() as u64
    }

    fn config(&self, seed: u64) -> Config {
        Config {
            seed,
            hosts: self.nodes,
            length: Duration::from_secs(self.seconds),
            peace: PEACE,
            calm: CALM,
            faults: self.faults.clone(),
            skip: self.skip.clone().unwrap_or_default(),
        }
    }

    /// Whether there can be such a run. Asked first of all: whatever is made of these numbers takes them for granted.
    ///
    /// # Errors
    /// When a number is out of bounds.
    pub fn check(&self) -> Result<(), RunError> {
        self.config(0).check()
    }

    /// Runs a seed in this process, recorded in `sink` too.
    ///
    /// # Errors
    /// When it cannot begin, or its record cannot be written: then with the command that runs it again.
    pub fn run(&self, seed: u64, sink: Option<Box<dyn Sink>>) -> anyhow::Result<Report> {
        let world = World::new(self.config(seed), self.software(seed)?, Trace::new(sink))?;
        let heard = Heard::default();
        let listening = LevelFilter::current() == LevelFilter::OFF;
        let _listens =
            listening.then(|| tracing::subscriber::set_default(tracing_subscriber::registry().with(heard.clone())));
        let ran = world.run().map(|report| report.with(heard.counts()));
        ran.map_err(|error| match error {
            RunError::Trace { .. } => anyhow::Error::new(error).context(format!(
                "the run ended early; once there is room, run it again: smartnode-sim run --seed {seed} {}",
                self.arguments()
            )),
            other => other.into(),
        })
    }

    /// The options that say all this again.
    pub fn arguments(&self) -> String {
        let software = self.software.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let Settings { seconds, nodes, faults, operations, .. } = self;
        let mut text = format!("--seconds {seconds} --nodes {nodes} --faults {faults} --software {software}");
        if *operations < OPERATIONS_MAX {
            let _ = write!(text, " --operations {operations}");
        }
        if let Some(skip) = self.skip.as_ref().filter(|skip| !skip.is_empty()) {
            let _ = write!(text, " --skip {skip}");
        }
        text
    }
}
