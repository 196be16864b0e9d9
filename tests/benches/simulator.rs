//! How fast the simulator is, and what it says of membership at size. One core each; nothing here has a peer.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use smartnode_tests::report::{Aim, Row, Statistic};

use crate::Voice;

/// Seeds of a round, and rounds.
const SEEDS: u64 = 10;
const ROUNDS: u64 = 3;
/// Where the seeds begin: none that a test runs.
const FROM: u64 = 900_000;
/// Runs of sixty seconds that the aim speaks of, and those that stand for them.
const MANY: f64 = 1_000.0;
const SOME: u64 = 100;
/// Nodes of the crowd.
const CROWD: &str = "1000";

/// The simulator as `make swarm` builds it.
fn simulator() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().find(|path| path.ends_with("target"));
    let found = target.context("this program is not in a target directory")?.join("swarm/smartnode-sim");
    ensure!(found.exists(), "{} is missing: cargo build --profile swarm -p smartnode-sim", found.display());
    Ok(found)
}

fn json(arguments: &[&str]) -> Result<Value> {
    let ran = Command::new(simulator()?).args(arguments).args(["--output", "json"]).stderr(Stdio::null()).output()?;
    let told = serde_json::from_slice(&ran.stdout);
    told.with_context(|| format!("smartnode-sim {} told nothing", arguments.join(" ")))
}

fn number(value: &Value, name: &str) -> Result<f64> {
    value[name].as_f64().with_context(|| format!("no {name} in what the simulator told"))
}

fn swarm(from: u64, seeds: u64, jobs: u64) -> Result<Value> {
    let [from, seeds, jobs] = [from, seeds, jobs].map(|number| number.to_string());
    let told =
        json(&["swarm", "--from", &from, "--seeds", &seeds, "--jobs", &jobs, "--nodes", "5", "--seconds", "60"])?;
    match number(&told, "failed")? {
        0.0 => Ok(told),
        failed => bail!("{failed} seeds failed: their figures are worth nothing"),
    }
}

/// Whole nodes under all faults.
pub fn runs(voice: &Voice) -> Result<Vec<Row>> {
    let (median, what) =
        (Statistic::Median, "five whole nodes under all faults: simulated node-seconds a second, one core");
    let mut one = Row::new("simulator", what, "1/s", &[Aim::at_least(median, 300.0)]);
    for round in 0..ROUNDS {
        one.ours.push(number(&swarm(FROM + round * SEEDS, SEEDS, 1)?, "node_seconds_per_second")?);
        voice.say(&format!("{:.0} node-seconds a second", one.ours.last().copied().unwrap_or_default()));
    }
    let what = "a thousand of their runs of 60 s, on two cores";
    let mut many = Row::new("simulator-swarm", what, "min", &[Aim::at_most(median, 20.0)]);
    let took = number(&swarm(FROM, SOME, 2)?, "wall_seconds")?;
    many.ours.push(took * MANY / SOME as f64 / 60.0);
    many.note(format!("{SOME} were run; the figure is ten times their time"));
    Ok(vec![one, many])
}

/// Membership alone.
pub fn crowd(voice: &Voice) -> Result<Vec<Row>> {
    let most = Statistic::Max;
    let what = "membership of 1000 nodes alone: simulated node-seconds a second, one core";
    let mut speed = Row::new("crowd", what, "1/s", &[Aim::at_least(Statistic::Median, 100_000.0)]);
    let what = "the same: a death is known to all, p99 of all survivors";
    let mut death = Row::new("crowd-death", what, "ms", &[Aim::at_most(most, 5_000.0)]);
    for seed in ["1", "2", "3"] {
        let told = json(&["membership", "--nodes", CROWD, "--seconds", "120", "--seed", seed])?;
        ensure!(number(&told, "unaware")? == 0.0, "some do not know of a death at all");
        speed.ours.push(number(&told, "node_seconds_per_second")?);
        death.ours.push(number(&told, "detection_p99_ms")?);
        voice.say(&format!("seed {seed}: {:.0} node-seconds a second", number(&told, "node_seconds_per_second")?));
    }
    speed.note("each node probes every 300 ms, which is 6.7 datagrams a second; foca 2.0 finds a member by going through all of them");
    let what = "the same for an hour with 5 % loss, a tenth of them paused for 20 s: nodes held for dead, and not dead";
    let mut wrong = Row::new("crowd-false", what, "", &[Aim::at_most(most, 0.0)]);
    let hour = ["--seconds", "3600", "--loss", "5", "--paused", "10", "--pause", "20", "--deaths", "0"];
    let told = json(&[&["membership", "--nodes", CROWD][..], &hour].concat())?;
    wrong.ours.push(number(&told, "false_deaths")?);
    Ok(vec![speed, death, wrong])
}
