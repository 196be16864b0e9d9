//! `shrink`: a smaller run of the same seed that still fails in the same way.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Args;
use smartnode_sim::report::{Report, kind};

use crate::commands::{Settings, child};

mod smaller;

use smaller::Shrinker;

/// Looks for fewer nodes, seconds, faults and operations that still fail.
#[derive(Debug, Args)]
pub struct Shrink {
    /// A seed that fails
    seed: u64,
    #[command(flatten)]
    settings: Settings,
    /// Most runs to try
    #[arg(long, default_value_t = 200)]
    runs: u64,
    /// Seconds of real time that one run may take
    #[arg(long, default_value_t = 900)]
    wall: u64,
}

impl Shrink {
    /// Shrinks, and prints the command of the smallest run that fails.
    ///
    /// # Errors
    /// When a number is out of bounds, or the seed does not fail to begin with.
    pub fn go(&self) -> anyhow::Result<ExitCode> {
        self.settings.check()?;
        ensure!(self.runs > 0, "--runs is 0: at least the first run is needed");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (seed, wall) = (self.seed, Duration::from_secs(self.wall));
        let run = |settings: &Settings| runtime.block_on(child::run(seed, settings, wall));
        let first = run(&self.settings)?;
        let Some(violation) = first.failed.first() else {
            bail!("seed {seed} does not fail: smartnode-sim run --seed {seed} {}", self.settings.arguments());
        };
        let wanted = kind(violation).to_owned();
        eprintln!("seed {seed} fails by {wanted}: {violation}");
        let mut shrinker = Shrinker::new(self.settings.clone(), first.report.as_ref());
        let mut last = first;
        for count in 1..self.runs {
            let Some(candidate) = shrinker.candidate() else { break };
            let outcome = run(&candidate)?;
            let same = outcome.failed.first().is_some_and(|violation| kind(violation) == wanted);
            let result = if same { "still fails" } else { "does not" };
            eprintln!("{count:>4} {result}: {}", candidate.arguments());
            shrinker.learn(same.then_some(outcome.report.as_ref()));
            if same {
                last = outcome;
            }
        }
        last.failed.iter().for_each(|violation| println!("{violation}"));
        println!("smartnode-sim replay {seed} {}", shrinker.smallest().arguments());
        Ok(ExitCode::SUCCESS)
    }
}

/// What a shrinker needs to know of a failing run; without a report it knows nothing.
fn sizes(report: Option<&Report>) -> (u64, u64) {
    report.map_or((0, 0), |report| (report.actions, report.tally.get("operations").copied().unwrap_or(0)))
}
