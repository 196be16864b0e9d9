//! `smartnode demo`: a throw-away fabric of three nodes on this host, and what it does when one of them dies.
//!
//! The daemons are real processes of this binary on the hosts of a [`lab`](crate::lab); the demo asks them through the
//! admin API as any client would. Everything is removed at the end: after a failure, Ctrl-C and SIGTERM too.
#![expect(clippy::disallowed_methods, reason = "makes and removes its own temporary directory")]

pub mod counter;
mod fabric;
pub mod outside;
mod report;
mod story;

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use self::fabric::Fabric;
pub use self::report::Report;
use crate::cli::{CliError, Exit};
use crate::lab::{Isolation, Lab};
use crate::runtime::preflight::preflight;

/// Nodes of the demo: as many as one may be lost of.
const NODES: usize = 3;
/// Most tries to remove the directory: the kernel may hold a dead machine's files for a moment.
const REMOVALS_MAX: u32 = 100;
/// Between two of them.
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// How the demo runs.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Each wait is given up after this.
    pub patience: Duration,
    /// Say nothing of the progress.
    pub quiet: bool,
}

/// Says on stderr what happens.
#[derive(Debug)]
struct Voice {
    quiet: bool,
    begun: Instant,
}

impl Voice {
    fn say(&self, words: &str) {
        if !self.quiet {
            let seconds = self.begun.elapsed().as_secs_f64();
            // Nobody is left to tell when stderr is gone.
            let _ = writeln!(anstream::stderr(), "{seconds:6.1}s  {words}");
        }
    }
}

/// A directory of the demo's own, removed when dropped.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn make() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("smartnode-demo-{}", std::process::id()));
        // Fails when it is there: what others put into a shared directory is never used.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for _ in 0..REMOVALS_MAX {
            match std::fs::remove_dir_all(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => std::thread::sleep(REMOVAL_PAUSE),
                _ => return,
            }
        }
        let _ = writeln!(anstream::stderr(), "{} could not be removed", self.0.display());
    }
}

/// Runs the demo to its end.
///
/// # Errors
/// What a step failed with, or that it was interrupted. Everything is removed by then.
pub async fn run(options: Options) -> Result<Report, CliError> {
    // Caught from the beginning: from here on a signal leads through the cleaning.
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let voice = Voice { quiet: options.quiet, begun: Instant::now() };
    let directory = Directory::make()?;
    let (isolation, left_out) = what_runs_here();
    voice.say(&match isolation {
        Isolation::Namespaces => format!("{NODES} nodes on this host, each in a network namespace of its own"),
        Isolation::Loopback => format!("{NODES} nodes on this host, each on a loopback address of its own"),
    });
    for words in &left_out {
        voice.say(words);
    }
    let program = std::env::current_exe()?;
    let lab = Lab::new("demo", directory.path(), &program, isolation).map_err(|error| lab_failed(&error))?;
    let mut fabric = Fabric::new(lab, options.patience, voice);
    let done = tokio::select! {
        biased;
        _ = interrupt.recv() => Err(interrupted()),
        _ = terminate.recv() => Err(interrupted()),
        _ = hangup.recv() => Err(interrupted()),
        done = story::tell(&mut fabric, &program, left_out) => done,
    };
    fabric.voice.say("removing everything");
    drop(fabric);
    drop(directory);
    done
}

impl Directory {
    fn path(&self) -> &Path {
        &self.0
    }
}

fn interrupted() -> CliError {
    CliError::new(Exit::Failed, "the demo was interrupted; what it had made is removed")
}

fn lab_failed(error: &crate::lab::LabError) -> CliError {
    CliError::of(Exit::Failed, error).hint("is another demo running? It needs ip (iproute2) and nsenter (util-linux)")
}

/// How the nodes are kept apart, and what this host cannot show.
fn what_runs_here() -> (Isolation, Vec<String>) {
    let isolation = Isolation::detect();
    let mut left_out = Vec::new();
    if isolation == Isolation::Loopback {
        left_out
            .push("left out: machines, their failover and their moves: they need root and network namespaces".into());
    } else if let Some(missing) = preflight().missing() {
        left_out.push(format!("left out: machines, their failover and their moves: this host lacks {missing}"));
    }
    (isolation, left_out)
}
