//! `run`: one seed in this process.

use std::io::BufWriter;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use smartnode_sim::trace::{Lines, Sink};

use crate::commands::{Output, Settings};
use crate::logs;

/// Runs one seed.
#[derive(Debug, Args)]
pub struct Run {
    /// Everything follows from it
    #[arg(long)]
    seed: u64,
    #[command(flatten)]
    settings: Settings,
    /// Write every record to this file
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Write the software's logs to standard error: error, warn, info, debug or trace
    #[arg(long)]
    log: Option<tracing::Level>,
    /// How the result is told
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Run {
    fn sink(&self) -> anyhow::Result<Option<Box<dyn Sink>>> {
        let Some(path) = &self.trace else { return Ok(None) };
        #[expect(clippy::disallowed_methods, reason = "the trace is a file of the real host")]
        let file = std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Some(Box::new(Lines(BufWriter::new(file)))))
    }

    /// Runs it and tells what came of it.
    ///
    /// # Errors
    /// When it cannot begin or its trace cannot be written.
    pub fn go(&self) -> anyhow::Result<ExitCode> {
        self.settings.check()?;
        if let Some(level) = self.log {
            logs::start(level);
        }
        let report = self.settings.run(self.seed, self.sink()?)?;
        if self.output == Output::Json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            println!("{}", report.line());
            report.violations.iter().for_each(|violation| println!("  {violation}"));
            if !report.is_clean() {
                println!("  replay: smartnode-sim replay {} {}", self.seed, self.settings.arguments());
            }
        }
        Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
