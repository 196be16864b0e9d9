//! `make bench`: what smartnode does in figures, each beside what its peers do on the same host in the same run.
//!
//! `cargo bench --bench fabric [-- ROW...] [--record]`. Progress goes to stderr, the table to stdout, raw samples to
//! `target/bench/<row>.json`. `--record` writes the short form of all samples there to `tests/benches/results.json` and
//! the section of README.md made from it. A figure is never an assertion: an aim that is missed is said, and the exit
//! code stays 0. What cannot be measured at all is an error.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "measures real processes and prints a table")]

mod deaths;
mod idle;
mod joins;
mod ledger;
mod load;
mod machines;
mod moves;
mod nodes;
mod overlay;
mod peers;
mod simulator;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use smartnode_tests::poll;
use smartnode_tests::report::{self, Results, Row};

/// Tells the progress.
pub struct Voice(Instant);

impl Voice {
    /// One line.
    pub fn say(&self, words: &str) {
        eprintln!("{:7.1}s  {words}", self.0.elapsed().as_secs_f64());
    }
}

type Measure = fn(&Voice) -> Result<Vec<Row>>;

/// What `ROW=` selects, in the order of a full run. One measure may give several rows.
const MEASURES: &[(&str, Measure)] = &[
    ("join", joins::one),
    ("join-ten", joins::ten),
    ("death", deaths::confirmed),
    ("failover", deaths::failover),
    ("writes", ledger::writes),
    ("leader", ledger::leader),
    ("reads", ledger::reads),
    ("create", machines::create),
    ("move", moves::small),
    ("move-64", moves::large),
    ("idle", idle::idle),
    ("busy", idle::busy),
    ("simulator", simulator::runs),
    ("crowd", simulator::crowd),
    ("overlay", overlay::rows),
];

/// Where the committed results are, in the repository.
const RESULTS: &str = "tests/benches/results.json";

fn main() -> ExitCode {
    let (flags, rows): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with("--"));
    match run(&rows, flags.iter().any(|flag| flag == "--record")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(wanted: &[String], record: bool) -> Result<()> {
    if let Some(unknown) = wanted.iter().find(|row| !MEASURES.iter().any(|(name, _)| name == row)) {
        let names: Vec<_> = MEASURES.iter().map(|(name, _)| *name).collect();
        bail!("no row {unknown:?}; there are {}", names.join(", "));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the hosts are network namespaces and the machines containers: run this as root");
    }
    on_interrupt(poll::end)?;
    let directory = samples_directory()?;
    let voice = Voice(Instant::now());
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (name, measure) in MEASURES {
        if poll::ended() || !(wanted.is_empty() || wanted.iter().any(|row| row == name)) {
            continue;
        }
        voice.say(&format!("== {name}"));
        match measured(*measure, &voice) {
            Ok(found) => {
                for (place, mut row) in found.into_iter().enumerate() {
                    (row.group, row.place) = ((*name).to_owned(), place);
                    let json = serde_json::to_string(&row)?;
                    std::fs::write(directory.join(format!("{}.json", row.id)), json)?;
                    rows.push(row.summary());
                }
            }
            Err(error) => {
                voice.say(&format!("{name} could not be measured: {error:#}"));
                failed.push(*name);
            }
        }
    }
    println!("{}raw samples: {}", report::text(&rows), directory.display());
    if poll::ended() {
        bail!("ended by the user; what had been made is removed");
    }
    if !failed.is_empty() {
        bail!("could not be measured: {}", failed.join(", "));
    }
    if record { write_record(&directory) } else { Ok(()) }
}

/// One measure. The DSL panics where a test would fail; here the next row is still to come.
fn measured(measure: Measure, voice: &Voice) -> Result<Vec<Row>> {
    catch_unwind(AssertUnwindSafe(|| measure(voice))).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        bail!("{}", words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked"))
    })
}

/// Calls `then` at the first Ctrl-C or SIGTERM: from then on every wait ends, and what was made is removed on the way out.
fn on_interrupt(then: fn()) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals =
        runtime.block_on(async { anyhow::Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)) })?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = signals.0.recv() => {}, _ = signals.1.recv() => {} }
        });
        then();
        eprintln!("ending, and cleaning up");
    });
    Ok(())
}

fn samples_directory() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().find(|path| path.join("CACHEDIR.TAG").exists() || path.ends_with("target"));
    let directory = target.context("this program is not in a target directory")?.join("bench");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// The host in a line.
fn host() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kib = read("/proc/meminfo").split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    let gib = kib.unwrap_or_default().div_ceil(1 << 20);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores, {gib} GiB of memory, Linux {}", kernel.trim())
}

fn write_record(directory: &Path) -> Result<()> {
    let mut rows: Vec<Row> = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        rows.push(serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))?);
    }
    report::sort(&mut rows, &MEASURES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    let results = Results { host: host(), rows: rows.iter().map(Row::summary).collect() };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a package has a parent")?;
    let mut json = serde_json::to_string_pretty(&results)?;
    json.push('\n');
    std::fs::write(root.join(RESULTS), json)?;
    let page = root.join("README.md");
    let text = report::replaced(&std::fs::read_to_string(&page)?, &results).context("README.md has lost its marks")?;
    std::fs::write(page, text)?;
    eprintln!("written: {RESULTS}, README.md");
    Ok(())
}
