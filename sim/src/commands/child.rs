//! A run in a process of its own, as replay demands: this program again, its result read as JSON.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use smartnode_sim::report::Report;
use tokio::process::Command;
use tokio::time::timeout;

use crate::commands::Settings;

/// Characters kept of what a run that gave no report said first.
const FIRST_WORDS_MAX: usize = 2_000;

/// What came of a run in its own process.
#[derive(Debug)]
pub struct Outcome {
    /// The run.
    pub seed: u64,
    /// What its process told, if it came to its end.
    pub report: Option<Report>,
    /// What did not hold, or why there is no report.
    pub failed: Vec<String>,
}

/// This program.
///
/// # Errors
/// When the kernel does not say where it is.
pub fn program() -> io::Result<std::path::PathBuf> {
    std::env::current_exe()
}

/// The line that says why: whatever ends a run says that first, and backtraces follow.
fn first_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    first.chars().take(FIRST_WORDS_MAX).collect()
}

/// Runs a seed, for at most so long of the real world's time; its process ends with the future.
///
/// # Errors
/// When no process can be started.
pub async fn run(seed: u64, settings: &Settings, wall: Duration) -> io::Result<Outcome> {
    let mut command = Command::new(program()?);
    command.args(["run", "--output", "json", "--seed", &seed.to_string()]);
    command.args(settings.arguments().split(' '));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn()?;
    let Ok(output) = timeout(wall, child.wait_with_output()).await else {
        let failed = vec![format!("not done: {} s of real time were not enough", wall.as_secs())];
        return Ok(Outcome { seed, report: None, failed });
    };
    let output = output?;
    Ok(match serde_json::from_slice::<Report>(&output.stdout) {
        Ok(report) => Outcome { seed, failed: report.violations.clone(), report: Some(report) },
        Err(_) => {
            let failed = vec![format!("died: {}: {}", output.status, first_words(&output.stderr))];
            Outcome { seed, report: None, failed }
        }
    })
}
