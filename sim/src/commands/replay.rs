//! `replay`: one seed as a story to read.

use std::io::{self, BufWriter};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;
use smartnode_sim::actor::HostId;
use smartnode_sim::timeline::{Filter, Timeline};

use crate::commands::Settings;

/// Tells what happens in a seed's run.
#[derive(Debug, Args)]
pub struct Replay {
    /// Everything follows from it
    seed: u64,
    #[command(flatten)]
    settings: Settings,
    /// Only what concerns this node, by number
    #[arg(long)]
    node: Option<u64>,
    /// Only what concerns this machine: its name, or the begin of its id
    #[arg(long)]
    machine: Option<String>,
    /// Packets too
    #[arg(long)]
    packets: bool,
    /// JSON lines
    #[arg(long)]
    json: bool,
}

impl Replay {
    fn filter(&self) -> anyhow::Result<Filter> {
        let nodes = self.settings.nodes;
        if let Some(node) = self.node {
            ensure!((1..=nodes).contains(&node), "there is no node {node}: this run has nodes 1 to {nodes}");
        }
        if let Some(machine) = &self.machine {
            ensure!(!machine.is_empty(), "a machine's name or id is not empty");
        }
        let (node, machine) = (self.node.map(HostId), self.machine.clone());
        Ok(Filter { node, machine, packets: self.packets, json: self.json })
    }

    /// Runs the seed and tells it.
    ///
    /// # Errors
    /// When it cannot begin, node or machine are not in it, or it cannot be told to its end.
    pub fn go(&self) -> anyhow::Result<ExitCode> {
        self.settings.check()?;
        let (timeline, findings) = Timeline::new(BufWriter::new(io::stdout()), self.filter()?);
        let report =
            self.settings.run(self.seed, Some(Box::new(timeline))).context("the story was not told to its end")?;
        eprintln!("{}", report.line());
        if let Some(machine) = self.machine.as_ref().filter(|_| !findings.machine()) {
            match findings.names() {
                names if names.is_empty() => bail!("there is no machine {machine:?}: this run made none"),
                names => bail!("there is no machine {machine:?}: this run made {}", names.join(", ")),
            }
        }
        Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
