//! `membership`: who is alive, at the size of thousands of nodes.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use smartnode_sim::crowd::{Crowd, Outcome, Plan};
use smartnode_sim::limits::CROWD_MAX;
use tokio::time::Instant;

use crate::commands::Output;

/// Runs the membership of many nodes alone.
#[derive(Debug, Args)]
pub struct RunMembership {
    /// How many nodes, all of which know each other: 10000 take 22 GiB of memory
    #[arg(long, default_value_t = 1_000)]
    nodes: usize,
    /// Simulated seconds; nobody dies in the last forty
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Everything follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Percent of the datagrams that are lost
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Nodes that die
    #[arg(long, default_value_t = 10)]
    deaths: usize,
    /// Percent of the nodes that are paused once
    #[arg(long, default_value_t = 0.0)]
    paused: f64,
    /// Seconds of such a pause
    #[arg(long, default_value_t = 20)]
    pause: u64,
    /// How the result is told
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What is told.
#[derive(Debug, Serialize)]
struct Summary {
    nodes: usize,
    seconds: u64,
    seed: u64,
    /// From a death to a survivor's knowledge of it, over all survivors.
    detection_p50_ms: u64,
    detection_p99_ms: u64,
    detection_max_ms: u64,
    /// Survivors that did not know of a death at the end.
    unaware: usize,
    /// Nodes held for dead that had not crashed nor been paused beyond two seconds.
    false_deaths: usize,
    bytes_per_node_second: f64,
    datagrams_per_node_second: f64,
    /// Worst local health at the end.
    health_worst: u8,
    node_seconds_per_second: f64,
}

impl RunMembership {
    fn plan(&self) -> anyhow::Result<Plan> {
        ensure!((2..=CROWD_MAX).contains(&self.nodes), "--nodes {}: 2 to {CROWD_MAX}", self.nodes);
        ensure!((0.0..=50.0).contains(&self.loss), "--loss {}: 0 to 50 percent", self.loss);
        ensure!((0.0..=100.0).contains(&self.paused), "--paused {}: 0 to 100 percent", self.paused);
        ensure!((1..=86_400).contains(&self.seconds), "--seconds {}: 1 to 86400", self.seconds);
        ensure!((1..=3_600).contains(&self.pause), "--pause {}: 1 to 3600", self.pause);
        let pauses = (self.nodes as f64 * self.paused / 100.0) as usize;
        let (touched, most) = (self.deaths.saturating_add(pauses), self.nodes - 2);
        ensure!(touched <= most, "{touched} nodes die or are paused: at most {most} of {}", self.nodes);
        Ok(Plan {
            seed: self.seed,
            nodes: self.nodes,
            length: Duration::from_secs(self.seconds),
            loss_permille: (self.loss * 10.0).round() as u32,
            deaths: self.deaths,
            pauses,
            pause: Duration::from_secs(self.pause),
        })
    }

    /// Runs it and tells what came of it.
    ///
    /// # Errors
    /// When the numbers are out of bounds.
    pub fn go(&self) -> anyhow::Result<ExitCode> {
        let plan = self.plan()?;
        let meeting = bar(self.nodes as u64, "nodes know each other");
        let crowd = Crowd::new(plan, |ready| meeting.set_position(ready as u64));
        meeting.finish_and_clear();
        let passing = bar(self.seconds, "simulated seconds");
        let begun = Instant::now();
        let (outcome, counters) = crowd.run(|second| passing.set_position(second));
        let wall = begun.elapsed();
        passing.finish_and_clear();
        let worst = counters.iter().map(|counters| counters.health).max().unwrap_or_default();
        let summary = self.summary(&outcome, worst, wall);
        if self.output == Output::Json {
            println!("{}", serde_json::to_string(&summary)?);
        } else {
            tell(&summary, &outcome);
        }
        let clean = outcome.false_deaths.is_empty() && outcome.unaware == 0;
        Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn summary(&self, outcome: &Outcome, health_worst: u8, wall: Duration) -> Summary {
        let at = |permille: usize| {
            let place = (outcome.detections.len() * permille).div_ceil(1_000).max(1) - 1;
            outcome.detections.get(place).map_or(0, |took| took.as_millis() as u64)
        };
        let node_seconds = self.nodes as f64 * self.seconds as f64;
        Summary {
            nodes: self.nodes,
            seconds: self.seconds,
            seed: self.seed,
            detection_p50_ms: at(500),
            detection_p99_ms: at(990),
            detection_max_ms: at(1_000),
            unaware: outcome.unaware,
            false_deaths: outcome.false_deaths.len(),
            bytes_per_node_second: outcome.bytes as f64 / node_seconds,
            datagrams_per_node_second: outcome.datagrams as f64 / node_seconds,
            health_worst,
            node_seconds_per_second: node_seconds / wall.as_secs_f64(),
        }
    }
}

fn bar(length: u64, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{pos} of {len} {msg} {wide_bar}").expect("the template is right");
    ProgressBar::new(length).with_style(style).with_message(what.to_owned())
}

fn tell(summary: &Summary, outcome: &Outcome) {
    println!("{} nodes, {} s, seed {}", summary.nodes, summary.seconds, summary.seed);
    if !outcome.detections.is_empty() {
        println!(
            "a death is known: median {} ms, p99 {} ms, at worst {} ms ({} times)",
            summary.detection_p50_ms,
            summary.detection_p99_ms,
            summary.detection_max_ms,
            outcome.detections.len()
        );
    }
    println!("survivors that do not know of a death: {}", summary.unaware);
    println!("false deaths: {}", summary.false_deaths);
    for (by, of, when) in outcome.false_deaths.iter().take(10) {
        println!("  node {by} held node {of} for dead at {:.3} s", when.as_secs_f64());
    }
    println!(
        "a node sends {:.0} bytes in {:.1} datagrams a second",
        summary.bytes_per_node_second, summary.datagrams_per_node_second
    );
    println!("{:.0} node-seconds a second", summary.node_seconds_per_second);
}
