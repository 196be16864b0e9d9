//! `scenario`: runs a script in this process, and records beside it what held.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use smartnode_sim::faults::Skip;
use smartnode_sim::limits::SCENARIO_BYTES_MAX;
use smartnode_sim::report::Report;
use smartnode_sim::scenario::{Scenario, parse};
use smartnode_sim::software::budget::Budget;
use smartnode_sim::software::node::Nodes;
use smartnode_sim::trace::Trace;
use smartnode_sim::world::{Config, World};

use crate::commands::{CALM, PEACE};

/// Runs a scenario.
#[derive(Debug, Args)]
pub struct RunScenario {
    /// The script
    file: PathBuf,
    /// Another seed than the script's
    #[arg(long)]
    seed: Option<u64>,
    /// Leave the record beside the script alone, and fail when it says something else
    #[arg(long)]
    check: bool,
}

/// What is kept of a run: what later code must still do, not how it came about.
fn transcript(scenario: &Scenario, report: &Report) -> String {
    let result = |text: &str| if report.violations.iter().any(|found| found.contains(text)) { "FAILED" } else { "ok" };
    let mut lines: Vec<String> =
        scenario.steps.iter().map(|step| format!("{:<6} {}", result(&step.text), step.text)).collect();
    lines.push(format!(
        "{:<6} invariants, and convergence in the calm",
        if report.is_clean() { "ok" } else { "FAILED" }
    ));
    lines.join("\n") + "\n"
}

impl RunScenario {
    /// Runs it.
    ///
    /// # Errors
    /// When the script cannot be read, or the record not be written.
    pub fn go(&self) -> anyhow::Result<ExitCode> {
        let shown = self.file.display();
        #[expect(clippy::disallowed_methods, reason = "the script is a file of the real host")]
        let text = std::fs::read(&self.file).with_context(|| format!("cannot read {shown}"))?;
        ensure!(text.len() <= SCENARIO_BYTES_MAX, "{shown} has more than {SCENARIO_BYTES_MAX} bytes");
        let text = String::from_utf8(text).with_context(|| format!("{shown} is not text"))?;
        let scenario = parse(&text, CALM).with_context(|| format!("cannot read {shown}"))?;
        let report = self.run(&scenario)?;
        let transcript = transcript(&scenario, &report);
        print!("{transcript}");
        eprintln!("{}", report.line());
        report.violations.iter().for_each(|violation| println!("  {violation}"));
        let beside = self.file.with_extension("out");
        if self.check {
            #[expect(clippy::disallowed_methods, reason = "the record is a file of the real host")]
            let recorded = std::fs::read(&beside).with_context(|| format!("cannot read {}", beside.display()))?;
            ensure!(
                recorded == transcript.as_bytes(),
                "{} says something else; if that is right: smartnode-sim scenario {shown}",
                beside.display()
            );
        } else {
            #[expect(clippy::disallowed_methods, reason = "the record is a file of the real host")]
            std::fs::write(&beside, &transcript).with_context(|| format!("cannot write {}", beside.display()))?;
        }
        Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn run(&self, scenario: &Scenario) -> anyhow::Result<Report> {
        let length = Duration::from_secs(scenario.seconds);
        let config = Config {
            seed: self.seed.unwrap_or(scenario.seed),
            hosts: scenario.nodes,
            length,
            peace: PEACE,
            calm: CALM,
            faults: scenario.faults.clone(),
            skip: Skip::default(),
        };
        let calm_us = length.saturating_sub(CALM).as_micros() as u64;
        let software = Arc::new(Nodes::new(calm_us, Budget::default()));
        let world = World::new(config, software, Trace::new(None))?.with_script(scenario.steps.clone());
        Ok(world.run()?)
    }
}
