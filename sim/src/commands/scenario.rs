//! `scenario`: runs a script in this process, and records beside it what held.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use smartnode_sim::faults::Skip;
use smartnode_sim::limits::SCENARIO_BYTES_MAX;
use smartnode_sim::report::Report;
use smartnode_sim::scenario::{Scenario, decode, parse};
use smartnode_sim::software::budget::Budget;
use smartnode_sim::software::node::Nodes;
use smartnode_sim::trace::{Record, Sink, Trace};
use smartnode_sim::world::{Config, World};

use crate::commands::{CALM, PEACE};

/// Runs a scenario.
#[derive(Debug, Args)]
pub struct RunScenario {
    /// The script
    file: PathBuf,
    /// Another seed than the script's; its run is not recorded
    #[arg(long, conflicts_with = "check")]
    seed: Option<u64>,
    /// Leave the record beside the script alone, and fail when it says something else
    #[arg(long)]
    check: bool,
}

/// What is kept of a run: what later code must still do, and before it how things were then, where that has changed since
/// the last time. So what behaves differently shows even where nothing fails. Clones share it.
#[derive(Debug, Clone, Default)]
struct Transcript(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    text: String,
    /// What was told last.
    facts: String,
}

impl Transcript {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, held: bool, line: &str) {
        self.kept().text += &format!("{:<6} {line}\n", if held { "ok" } else { "FAILED" });
    }
}

impl Sink for Transcript {
    fn take(&mut self, _: u64, record: &Record<'_>) -> io::Result<()> {
        let Record::Script { line, held, facts } = record else { return Ok(()) };
        let before = std::mem::replace(&mut self.kept().facts, (*facts).to_owned());
        if before != *facts {
            self.kept().text += &format!("       {facts}\n");
        }
        self.line(*held, line);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is in a file; one byte more than `most` if there is more: a device has no end.
fn read(path: &Path, most: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    #[expect(clippy::disallowed_methods, reason = "script and record are files of the real host")]
    let read = File::open(path).and_then(|file| file.take(most as u64 + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

impl RunScenario {
    /// Runs it.
    ///
    /// # Errors
    /// When the script cannot be read, or the record not be written.
    pub fn go(&self) -> anyhow::Result<ExitCode> {
        let (shown, beside) = (self.file.display(), self.file.with_extension("out"));
        ensure!(beside != self.file, "{shown} is where its own record would go: name the script otherwise");
        let bytes = read(&self.file, SCENARIO_BYTES_MAX)?;
        ensure!(bytes.len() <= SCENARIO_BYTES_MAX, "{shown} has more than {SCENARIO_BYTES_MAX} bytes");
        let scenario = decode(&bytes).and_then(|text| parse(text, CALM));
        let scenario = scenario.with_context(|| format!("cannot read {shown}"))?;
        let (report, transcript) = self.run(&scenario)?;
        print!("{transcript}");
        eprintln!("{}", report.line());
        report.violations.iter().for_each(|violation| println!("  {violation}"));
        if self.check {
            ensure!(
                read(&beside, transcript.len())? == transcript.as_bytes(),
                "{} says something else; if that is right: smartnode-sim scenario {shown}",
                beside.display()
            );
        } else if self.seed.is_none() {
            #[expect(clippy::disallowed_methods, reason = "the record is a file of the real host")]
            std::fs::write(&beside, &transcript).with_context(|| format!("cannot write {}", beside.display()))?;
        }
        Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn run(&self, scenario: &Scenario) -> anyhow::Result<(Report, String)> {
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
        let transcript = Transcript::default();
        let world = World::new(config, software, Trace::new(Some(Box::new(transcript.clone()))))?;
        let report = world.with_script(scenario.steps.clone()).run()?;
        transcript.line(report.is_clean(), "invariants, and convergence in the calm");
        let text = std::mem::take(&mut transcript.kept().text);
        Ok((report, text))
    }
}
