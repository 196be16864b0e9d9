//! What a node costs that has nothing to do, and what it believes when its host has too much to do.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use smartnode_tests::report::{Aim, Row, Statistic};
use smartnode_tests::{Cluster, poll};

use crate::Voice;
use crate::nodes::list;
use crate::peers::etcd::{self, Etcd};
use crate::peers::serf::{self, Serf};

const NODES: usize = 10;
const ETCD_MEMBERS: usize = 3;
/// Until what the founding of a fabric sets in motion has come to rest.
const SETTLE: Duration = Duration::from_secs(20);
/// What is looked at.
const WINDOW: Duration = Duration::from_secs(30);
/// With both cores busy.
const BUSY: Duration = Duration::from_secs(600);
/// Between two looks at who is held for dead.
const GLANCE: Duration = Duration::from_secs(1);

/// Resident memory in MiB, and CPU time so far in seconds.
fn usage(pid: u32) -> Result<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = resident.trim().trim_end_matches(" kB").parse()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks = |at: usize| after.split_whitespace().nth(at).and_then(|word| word.parse::<f64>().ok());
    let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system).context("no times in stat")?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")? as f64;
    Ok((kib / 1024.0, ticks / per_second))
}

fn rest(what: &str, limit: Duration) {
    poll::stays(what, limit, || true);
}

/// MiB and percent of a core of each process over the window.
pub fn watched(pids: &[u32]) -> Result<(Vec<f64>, Vec<f64>)> {
    rest("it comes to rest", SETTLE);
    let before = pids.iter().map(|pid| usage(*pid)).collect::<Result<Vec<_>>>()?;
    rest("it is watched", WINDOW);
    let after = pids.iter().map(|pid| usage(*pid)).collect::<Result<Vec<_>>>()?;
    let percent = before.iter().zip(&after).map(|(old, new)| (new.1 - old.1) * 100.0 / WINDOW.as_secs_f64());
    Ok((after.iter().map(|usage| usage.0).collect(), percent.collect()))
}

/// Ten nodes without a machine.
pub fn idle(voice: &Voice) -> Result<Vec<Row>> {
    let (most, median) = (Statistic::Max, Statistic::Median);
    let mut memory =
        Row::new("idle-memory", "an idle node in a fabric of ten: resident", "MiB", &[Aim::at_most(most, 30.0)]);
    let mut cpu =
        Row::new("idle-cpu", "the same: of a core", "%", &[Aim::at_most(median, 1.0), Aim::at_most(most, 2.0)]);
    let cluster = Cluster::of(NODES, "bidle");
    let pids: Vec<u32> = (0..NODES).filter_map(|at| cluster.lab.daemon_pid(at)).collect();
    (memory.ours, cpu.ours) = watched(&pids)?;
    voice.say(&format!("{:.1?} MiB, {:.2?} %", memory.ours, cpu.ours));
    drop(cluster);
    let etcd = || Etcd::of(ETCD_MEMBERS, "eidle").and_then(|etcd| watched(&etcd.pids()));
    let serf = || Serf::of(NODES, "sidle").and_then(|serf| watched(&serf.pids()));
    for (name, watched) in [(etcd::NAME, etcd()), (serf::NAME, serf())] {
        let watched = watched.map_err(|error| format!("{error:#}"));
        memory.peer(name, watched.clone().map(|both| both.0).map_err(anyhow::Error::msg));
        cpu.peer(name, watched.map(|both| both.1).map_err(anyhow::Error::msg));
    }
    memory.note("etcd: 3 members; serf: 10 agents. The first is a ledger alone, the second membership alone");
    Ok(vec![memory, cpu])
}

/// Programs that do nothing but take all of a core each. Ended when dropped.
struct Burners(Vec<Child>);

impl Burners {
    fn start() -> Result<Self> {
        let mut burners = Burners(Vec::new());
        for _ in 0..std::thread::available_parallelism()?.get() {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            burners.0.push(command.spawn()?);
        }
        Ok(burners)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for burner in &mut self.0 {
            let _ = burner.kill();
            let _ = burner.wait();
        }
    }
}

/// Ten minutes in which every core is busy with something else.
pub fn busy(voice: &Voice) -> Result<Vec<Row>> {
    let what = "nodes held for dead, and not dead, in ten minutes with every core busy (ten nodes)";
    let mut row = Row::new("busy", what, "", &[Aim::at_most(Statistic::Max, 0.0)]);
    row.note("ten serf agents ran beside, under the same load");
    let cluster = Cluster::of(NODES, "bbusy");
    let serf = Serf::of(NODES, "sbusy").map_err(|error| format!("{error:#}"));
    let burners = Burners::start()?;
    // Deaths that any node believed, each counted when it begins.
    let (mut down, mut deaths, mut looks) = (vec![Vec::new(); NODES], 0usize, 0usize);
    let mut at = 0;
    let begun = std::time::Instant::now();
    poll::until_every(
        GLANCE / NODES as u32,
        BUSY + Duration::from_secs(60),
        || {
            if let Some(nodes) = list(&cluster, at) {
                let now: Vec<_> = nodes.iter().filter(|node| node["liveness"] == "down").cloned().collect();
                let now: Vec<String> = now.iter().filter_map(|node| Some(node["name"].as_str()?.to_owned())).collect();
                let fresh = now.iter().filter(|name| !down[at].contains(*name)).count();
                if fresh > 0 {
                    voice.say(&format!("n{} holds {now:?} for dead", at + 1));
                }
                (deaths, looks, down[at]) = (deaths + fresh, looks + 1, now);
            }
            at = (at + 1) % NODES;
            (begun.elapsed() >= BUSY).then_some(())
        },
        || "ten busy minutes pass".to_owned(),
    );
    drop(burners);
    voice.say(&format!("{deaths} false deaths in {looks} answers"));
    row.ours = vec![deaths as f64];
    let peer = serf.map_err(anyhow::Error::msg).and_then(|serf| Ok(vec![serf.deaths_seen()? as f64]));
    row.peer(serf::NAME, peer);
    Ok(vec![row])
}
