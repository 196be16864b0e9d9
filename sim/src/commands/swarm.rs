//! `swarm`: many seeds, one process each, so many at once.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use smartnode_sim::coverage;
use smartnode_sim::limits::{FAILURES_LISTED_MAX, JOBS_MAX, SEEDS_MAX};
use smartnode_sim::report;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::commands::child::{self, Outcome};
use crate::commands::{Output, Settings, What};

/// A swarm of so many seeds, of whole nodes under all faults, must reach every situation of `coverage`.
const LONG_SWARM: u64 = 500;

/// Runs many seeds, each in a process of its own.
#[derive(Debug, Args)]
pub struct Swarm {
    /// How many seeds
    #[arg(long)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Runs at once; as many as there are processors when it is not said
    #[arg(long)]
    jobs: Option<u64>,
    /// Seconds of real time that one seed may take
    #[arg(long, default_value_t = 900)]
    wall: u64,
    /// Stop at the first run in which an invariant does not hold
    #[arg(long)]
    until_found: bool,
    #[command(flatten)]
    settings: Settings,
    /// How the result is told
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A seed that failed.
#[derive(Debug, Serialize)]
struct Failure {
    seed: u64,
    violations: Vec<String>,
    /// What replays it.
    replay: String,
}

/// What came of a swarm.
#[derive(Debug, Default, Serialize)]
struct Summary {
    from: u64,
    seeds: u64,
    clean: u64,
    failed: u64,
    /// The first failures, by seed.
    failures: Vec<Failure>,
    /// What happened how often, in all runs.
    tally: BTreeMap<String, u64>,
    /// What an invariant saw, and in which run, if that ended the swarm.
    found: Option<String>,
    /// Situations that were to be reached and were not.
    unreached: Vec<&'static str>,
    wall_seconds: f64,
    /// Simulated seconds of nodes for each second and process.
    node_seconds_per_second: f64,
}

impl Summary {
    fn take(&mut self, outcome: Outcome, settings: &Settings) {
        for (what, count) in outcome.report.into_iter().flat_map(|report| report.tally) {
            *self.tally.entry(what).or_default() += count;
        }
        if outcome.failed.is_empty() {
            self.clean += 1;
            return;
        }
        self.failed += 1;
        let (seed, violations) = (outcome.seed, outcome.failed);
        let replay = format!("smartnode-sim replay {seed} {}", settings.arguments());
        self.failures.push(Failure { seed, violations, replay });
        self.failures.sort_by_key(|failure| failure.seed);
        self.failures.truncate(FAILURES_LISTED_MAX);
    }

    /// How many seeds have been run.
    fn ran(&self) -> u64 {
        self.clean + self.failed
    }

    fn tell(&self) {
        for Failure { seed, violations, replay } in &self.failures {
            println!("seed {seed} FAILED");
            violations.iter().for_each(|violation| println!("  {violation}"));
            println!("  replay: {replay}");
        }
        let unlisted = self.failed - self.failures.len() as u64;
        if unlisted > 0 {
            println!("{unlisted} more seeds failed");
        }
        let Summary { from, seeds, clean, failed, wall_seconds, node_seconds_per_second, .. } = self;
        let last = from + (seeds - 1);
        let left = match seeds - self.ran() {
            0 => String::new(),
            left => format!(", {left} not run"),
        };
        println!("seeds {from} to {last}: {clean} clean, {failed} failed{left}");
        println!("{wall_seconds:.1} s, {node_seconds_per_second:.0} node-seconds a second for each process");
        let tally: Vec<String> = self.tally.iter().map(|(what, count)| format!("{what}={count}")).collect();
        println!("{}", tally.join(" "));
        if let Some(found) = &self.found {
            println!("found by {found}");
        }
        if !self.unreached.is_empty() {
            println!("never reached: {}", self.unreached.join(", "));
        }
    }
}

fn bar(seeds: u64) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(seeds);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {elapsed} of {duration}, {msg}")?);
    bar.set_message("none failed");
    Ok(bar)
}

impl Swarm {
    /// Runs all of them and tells what came of it.
    ///
    /// # Errors
    /// When it cannot begin.
    pub fn go(&self) -> anyhow::Result<ExitCode> {
        self.settings.check()?;
        ensure!((1..=SEEDS_MAX).contains(&self.seeds), "--seeds is {}, allowed are 1 to {SEEDS_MAX}", self.seeds);
        let last = self.from.checked_add(self.seeds).context("the last seed does not fit 64 bits: lower --from")?;
        let jobs = self.jobs.unwrap_or_else(|| available_parallelism().map_or(1, |n| JOBS_MAX.min(n.get() as u64)));
        ensure!((1..=JOBS_MAX).contains(&jobs), "--jobs is {jobs}, allowed are 1 to {JOBS_MAX}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut summary = runtime.block_on(self.run(self.from..last, jobs))?;
        // One that is short, or was cut short, need not come everywhere.
        let whole = self.settings.software == What::Node && self.settings.faults.is_all();
        if whole && summary.found.is_none() && summary.seeds >= LONG_SWARM {
            summary.unreached = coverage::missing(&summary.tally);
        }
        match self.output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&summary)?),
            Output::Text => summary.tell(),
        }
        Ok(if summary.failed == 0 && summary.unreached.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn run(&self, mut seeds: std::ops::Range<u64>, jobs: u64) -> anyhow::Result<Summary> {
        let (began, bar) = (Instant::now(), bar(self.seeds)?);
        let wall = Duration::from_secs(self.wall);
        let mut summary = Summary { from: self.from, seeds: self.seeds, ..Summary::default() };
        let mut running = JoinSet::new();
        loop {
            while (running.len() as u64) < jobs
                && let Some(seed) = seeds.next()
            {
                let settings = self.settings.clone();
                running.spawn(async move { child::run(seed, &settings, wall).await });
            }
            let Some(ended) = running.join_next().await else { break };
            let outcome = ended?.context("cannot start a run: is there memory for another process?")?;
            self.progress(&bar, &outcome, &mut summary);
            let mut failed = outcome.failed.iter();
            let found = failed.find(|violation| report::is_of_invariant(violation));
            let found = found.map(|violation| format!("seed {}: {violation}", outcome.seed));
            summary.take(outcome, &self.settings);
            bar.inc(1);
            if let Some(found) = found.filter(|_| self.until_found) {
                summary.found = Some(found);
                break;
            }
            if summary.failed > 0 {
                bar.set_message(format!("{} failed", summary.failed));
            }
        }
        bar.finish_and_clear();
        summary.wall_seconds = began.elapsed().as_secs_f64();
        let simulated = [summary.ran(), self.settings.nodes, self.settings.seconds].map(|n| n as f64);
        let spent = summary.wall_seconds * jobs.min(self.seeds) as f64;
        summary.node_seconds_per_second = simulated.into_iter().product::<f64>() / spent;
        Ok(summary)
    }

    /// Tells of a failure at once; where no bar can be drawn, of every tenth of the way too.
    fn progress(&self, bar: &ProgressBar, outcome: &Outcome, summary: &mut Summary) {
        if let Some(first) = outcome.failed.first() {
            bar.suspend(|| eprintln!("seed {}: {first}", outcome.seed));
        }
        let done = summary.ran() + 1;
        if bar.is_hidden() && done.is_multiple_of(self.seeds.div_ceil(10)) {
            eprintln!("{done} of {} seeds", self.seeds);
        }
    }
}
