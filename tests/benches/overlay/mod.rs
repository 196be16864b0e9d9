//! Overlay networks beside what else joins machines of two hosts: all ways stand at once on one link and are measured by turns.

mod ours;
mod peers;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use netvirt::netns::Netns;
use serde_json::Value;
use smartnode_tests::report::{Aim, Row, Statistic};

use crate::Voice;
use crate::peers::{Process, run};

/// Times that each way has its turn.
const ROUNDS: usize = 3;
/// Seconds of one TCP stream, and of one stream of small packets.
const TCP_SECONDS: &str = "4";
const UDP_SECONDS: &str = "2";
/// Bytes of the payload of a small packet.
const SMALL_BYTES: &str = "64";
/// Echoes that a round-trip time is taken from.
const ECHOES: &str = "500";

/// Two hosts on one link, which is a pair of virtual cards.
pub struct Underlay {
    /// The hosts' names, which their namespaces have, too.
    pub names: [String; 2],
}

/// The hosts' addresses.
pub const ADDRESSES: [&str; 2] = ["192.168.217.1", "192.168.217.2"];

fn ip(arguments: &str) -> Result<String> {
    run(Command::new("ip").args(arguments.split_whitespace()))
}

/// A command on a host.
pub fn on(host: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{host}")).args(program.split_whitespace());
    command
}

impl Underlay {
    fn new() -> Result<Self> {
        let underlay = Underlay { names: ["a", "b"].map(|end| format!("snbo-{}-{end}", std::process::id())) };
        let [a, b] = &underlay.names;
        for name in &underlay.names {
            Netns::make(name)?;
        }
        ip(&format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"))?;
        for (name, address) in underlay.names.iter().zip(ADDRESSES) {
            ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(underlay)
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Netns::remove(name);
        }
    }
}

/// Who works for a way.
pub enum Workers {
    /// The kernel alone.
    Kernel,
    /// Daemons.
    Processes(Vec<Process>),
    /// This process.
    Own {
        /// What stands as long as this does.
        _nodes: Box<ours::Nodes>,
    },
}

/// A way from one namespace to another.
pub struct Way {
    /// As the table names it.
    pub name: &'static str,
    /// Where the client is.
    pub client: String,
    /// Where the server is.
    pub server: String,
    /// Under which address the client reaches it.
    pub target: String,
    /// Who carries it.
    pub workers: Workers,
}

impl Way {
    /// CPU time that its daemons have used, in seconds.
    fn cpu_seconds(&self) -> Result<f64> {
        match &self.workers {
            Workers::Kernel => Ok(0.0),
            Workers::Own { .. } => {
                let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
                let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
                Ok(seconds(used.user_time()) + seconds(used.system_time()))
            }
            Workers::Processes(daemons) => daemons.iter().map(|daemon| cpu_of(daemon.id())).sum(),
        }
    }

    fn listen(&self) -> Result<std::process::Child> {
        let mut server = on(&self.server, "iperf3 --server --one-off --forceflush").stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(server.stdout.take().context("a pipe")?).lines();
        lines
            .find(|line| line.as_ref().is_ok_and(|line| line.contains("Server listening")))
            .context("iperf3 has ended")??;
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }

    fn iperf(&self, arguments: &str) -> Result<Value> {
        let mut server = self.listen()?;
        let told = run(&mut on(&self.client, &format!("iperf3 --client {} --json {arguments}", self.target)));
        if told.is_err() {
            let _ = server.kill();
        }
        server.wait()?;
        Ok(serde_json::from_str(&told?)?)
    }

    /// Gbit/s of one TCP stream, and CPU seconds of the daemons for each Gbit.
    fn tcp(&self) -> Result<(f64, f64)> {
        let before = self.cpu_seconds()?;
        let told = self.iperf(&format!("--time {TCP_SECONDS}"))?;
        let used = self.cpu_seconds()? - before;
        let received = &told["end"]["sum_received"];
        let gbits = received["bytes"].as_f64().context("iperf3 tells no bytes")? * 8.0 / 1e9;
        Ok((received["bits_per_second"].as_f64().context("iperf3 tells no rate")? / 1e9, used / gbits))
    }

    /// Small packets a second that arrive, in thousands.
    fn small(&self) -> Result<f64> {
        let told = self.iperf(&format!("--udp --bitrate 0 --length {SMALL_BYTES} --time {UDP_SECONDS}"))?;
        let sum = &told["end"]["sum"];
        let number = |name: &str| sum[name].as_f64().with_context(|| format!("iperf3 tells no {name}"));
        Ok((number("packets")? - number("lost_packets")?) / number("seconds")? / 1e3)
    }

    /// Half of the echoes come back within so many microseconds.
    fn echo(&self) -> Result<f64> {
        let told = run(&mut on(&self.client, &format!("ping -n -i 0.002 -c {ECHOES} -W 1 {}", self.target)))?;
        let times = told.split("time=").skip(1).filter_map(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        let mut times: Vec<f64> = times.collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).map(|ms| ms * 1e3).context("ping tells no times")
    }
}

fn cpu_of(process: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after_name = text.rsplit_once(')').context("no process")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: f64 = fields.get(11..13).context("a short stat")?.iter().filter_map(|it| it.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}

/// What one way was measured to do, a sample for each round.
#[derive(Default)]
struct Samples {
    tcp: Vec<f64>,
    cpu: Vec<f64>,
    echo: Vec<f64>,
    small: Vec<f64>,
}

fn measure(way: &Way, samples: &mut Samples, voice: &Voice) -> Result<()> {
    let (tcp, cpu) = way.tcp()?;
    let (echo, small) = (way.echo()?, way.small()?);
    voice.say(&format!("{}: {tcp:.2} Gbit/s, {cpu:.2} CPU-s/Gbit, {echo:.0} us, {small:.0} kpps", way.name));
    samples.tcp.push(tcp);
    samples.cpu.push(cpu);
    samples.echo.push(echo);
    samples.small.push(small);
    Ok(())
}

/// All ways that stand, and why the others do not.
fn ways(underlay: &Underlay) -> Vec<(&'static str, Result<Way>)> {
    let mut ways = vec![("smartnode", ours::way(underlay))];
    ways.extend(peers::ways(underlay));
    ways
}

/// One stream, its cost, echoes and small packets.
pub fn rows(voice: &Voice) -> Result<Vec<Row>> {
    let underlay = Underlay::new()?;
    let mut all: Vec<(&str, Result<(Way, Samples)>)> = Vec::new();
    for (name, way) in ways(&underlay) {
        all.push((name, way.map(|way| (way, Samples::default()))));
    }
    for _ in 0..ROUNDS {
        for (_, way) in &mut all {
            let Ok((standing, samples)) = way else { continue };
            if let Err(error) = measure(standing, samples, voice) {
                *way = Err(error);
            }
        }
    }
    let (_, first) = all.remove(0);
    let (_, own) = first.context("smartnode")?;
    let raw = all.iter().find(|(name, _)| *name == peers::RAW).and_then(|(_, way)| way.as_ref().ok());
    let raw: Vec<f64> = raw.map(|(_, samples)| samples.echo.clone()).unwrap_or_default();
    let added = own.echo.iter().zip(&raw).map(|(ours, raw)| ours - raw).collect();
    let median = Statistic::Median;
    let row = |id: &str, what: &str, unit: &str, aims: &[Aim], ours: Vec<f64>, of: &dyn Fn(&Samples) -> Vec<f64>| {
        let mut row = Row::new(id, what, unit, aims);
        row.ours = ours;
        for (name, way) in &all {
            let samples = way.as_ref().map(|(_, samples)| of(samples));
            row.peer(name, samples.map_err(|error| anyhow::anyhow!("{error:#}")));
        }
        row
    };
    let tcp = "one TCP stream between machines of two hosts";
    let mut rows = vec![
        row("overlay-tcp", tcp, "Gbit/s", &[], own.tcp.clone(), &|it| it.tcp.clone()),
        row("overlay-cpu", "the same: CPU seconds of both daemons for a Gbit", "s", &[], own.cpu.clone(), &|it| {
            it.cpu.clone()
        }),
        row("overlay-echo", "an echo between them, p50", "us", &[], own.echo.clone(), &|it| it.echo.clone()),
        row("overlay-small", "packets of 64 bytes a second between them", "k/s", &[], own.small.clone(), &|it| {
            it.small.clone()
        }),
    ];
    let mut more =
        Row::new("overlay-added", "the same echo, beyond the bare link's", "us", &[Aim::at_most(median, 60.0)]);
    more.ours = added;
    rows.push(more);
    let best = |of: &dyn Fn(&Samples) -> &Vec<f64>, better: fn(f64, f64) -> f64| -> Vec<f64> {
        let peers =
            all.iter().filter(|(name, _)| peers::ENCRYPTED.contains(name)).filter_map(|(_, way)| way.as_ref().ok());
        let samples: Vec<&Vec<f64>> = peers.map(|(_, samples)| of(samples)).collect();
        (0..ROUNDS).filter_map(|round| samples.iter().filter_map(|it| it.get(round).copied()).reduce(better)).collect()
    };
    let over = |ours: &[f64], theirs: Vec<f64>| ours.iter().zip(theirs).map(|(ours, best)| ours / best).collect();
    let mut faster = Row::new(
        "overlay-tcp-ratio",
        "the TCP stream, in those of the best encrypted peer",
        "x",
        &[Aim::at_least(median, 2.0)],
    );
    faster.ours = over(&own.tcp, best(&|it| &it.tcp, f64::max));
    let mut cheaper = Row::new(
        "overlay-cpu-ratio",
        "its CPU time, in that of the cheapest encrypted peer",
        "x",
        &[Aim::at_most(median, 0.5)],
    );
    cheaper.ours = over(&own.cpu, best(&|it| &it.cpu, f64::min));
    rows.extend([faster, cheaper]);
    Ok(rows)
}
