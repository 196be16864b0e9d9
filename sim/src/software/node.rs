//! Whole nodes, as `main` starts them but for the seams: founding, joining, membership, gossip, ledger, machines.
//!
//! The first host founds the cluster; once it runs it makes a join token, and the others join through whoever answers.
//! Every step is repeated after a crash, as an operator's start script would.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fabric::identity::NodeKey;
use fabric::ids::{Digest, NodeId, TokenId};
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::{Capacity, Labels, Role};
use fabric::rpc::BoxFuture;
use fabric::seams::draw;
use fabric::token::JoinToken;
use fabric::transport::Stream;
use raft_store::command::{Actor, Command};
use smartnode::api::failure::Failure;
use smartnode::host::{DiskSpace, Host, Pressure};
use smartnode::images::Packed;
use smartnode::images::service::{Images, Ready};
use smartnode::node::context::Context;
use smartnode::node::dir::ClusterFile;
use smartnode::node::founding::{self, Own};
use smartnode::node::{Node, NodeConfig, Parts};
use tokio::time::sleep;

use crate::actor::{Boot, Ending, HostId, Moment, Software};
use crate::disk::HostDisk;
use crate::invariants::converged::{self, View};
use crate::invariants::moved::Destroyed;
use crate::invariants::takeovers::Takeover;
use crate::kernel::Running;
use crate::net::address;
use crate::ports::FakePorts;
use crate::scenario::Expectation;
use crate::software::admins::Admins;
use crate::software::budget::Budget;
use crate::software::cluster::PORT;
use crate::software::gremlins::Gremlins;
use crate::software::history::{History, is_whole};
use crate::software::operators::Operators;
use crate::software::roster::Roster;

/// Between two tries of anything.
const RETRY: Duration = Duration::from_millis(300);
/// A node that has run for so long on what its disk holds has read what it needs of it.
const PROVEN: Duration = Duration::from_secs(3);
/// Entries between two snapshots of a ledger: so few that a run makes, sends and begins from several.
const SNAPSHOT_EVERY: std::ops::Range<u64> = 100..400;
/// An operation of the disk that failed explains for about so long why a node ends.
const EXPLAINS: Duration = Duration::from_secs(2);
/// The host that founds the cluster.
const FOUNDER: HostId = HostId(1);

/// A host of fixed size, never busy, whose disk fills up.
#[derive(Debug)]
struct QuietHost(HostDisk);

impl Host for QuietHost {
    fn total(&self) -> Capacity {
        Capacity { cpu_millis: 8_000, memory_bytes: 16 << 30, disk_bytes: 1 << 40 }
    }
    fn pressure(&self) -> Pressure {
        Pressure { memory_available_bytes: 8 << 30, load_millis: 100 }
    }
    fn disk(&self) -> Option<DiskSpace> {
        let (total_bytes, free_bytes) = self.0.space();
        Some(DiskSpace { total_bytes, free_bytes })
    }
}

/// Every image is everywhere.
#[derive(Debug)]
struct AllImages;

#[async_trait]
impl Images for AllImages {
    async fn ensure(&self, _: Digest, _: Vec<NodeId>) -> Result<Ready, Failure> {
        let (command, env, workdir) = (vec!["simulated".to_owned()], Vec::new(), String::new());
        Ok(Ready { rootfs: PathBuf::from("simulated"), command, env, workdir })
    }
    async fn pack(&self, _: Vec<String>, _: bool) -> Result<Packed, Failure> {
        Err(Failure::internal("simulated hosts have no files to pack".to_owned()))
    }
    fn held(&self) -> Vec<Digest> {
        Vec::new()
    }
    async fn collect(&self, _: BTreeSet<Digest>, _: Duration) -> Result<(), Failure> {
        Ok(())
    }
    async fn serve(&self, stream: Stream) {
        drop(stream);
    }
}

/// Hosts that run nodes.
#[derive(Clone)]
pub struct Nodes {
    history: History,
    operators: Operators,
    /// The running nodes.
    running: Arc<Mutex<BTreeMap<HostId, Arc<Context>>>>,
    roster: Roster,
    admins: Admins,
    gremlins: Gremlins,
    calm_us: u64,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("history", &self.history).finish_non_exhaustive()
    }
}

impl Nodes {
    /// The calm begins at `calm_us`; clients and operators together may do what `budget` allows.
    pub fn new(calm_us: u64, budget: Budget) -> Self {
        let roster = Roster::default();
        let (history, operators) = (History::new(budget.clone()), Operators::new(budget.clone()));
        let (admins, gremlins) = (Admins::new(roster.clone(), budget), Gremlins::new(roster.clone()));
        Nodes { history, operators, running: Arc::default(), roster, admins, gremlins, calm_us }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<HostId, Arc<Context>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every host in `up` knows of the others.
    fn views(&self, up: &[HostId]) -> BTreeMap<HostId, View> {
        let running = self.running();
        let view = |host: &HostId| {
            let context = running.get(host)?;
            let nodes = context.ledger.read(|state| state.nodes.iter().map(|(id, node)| (*id, node.role)).collect());
            let nodes = is_whole(&context.ledger).then_some(nodes);
            let alive = context.membership.active().into_keys().collect();
            let heard = context.gossip.states().keys().copied().collect();
            let voters = context.ledger.status().voters.into_iter().collect();
            Some((*host, View { node: context.me, alive, heard, voters, nodes }))
        };
        up.iter().filter_map(view).collect()
    }

    /// What does not hold of an expectation; an error when it speaks of somebody who is not there.
    fn judge(&self, expectation: &Expectation, moment: &Moment<'_>) -> Result<Option<String>, String> {
        let Moment { now_us, up, cast, last_leader } = *moment;
        Ok(match expectation {
            Expectation::Leader(other) => match cast.leader {
                None => Some("nobody leads".to_owned()),
                Some(leader) if *other && Some(leader) == last_leader => Some(format!("{leader} leads still")),
                Some(_) => None,
            },
            Expectation::Writes(who, wanted) => {
                let hosts = cast.hosts(who, None)?;
                let wrong = hosts.into_iter().find(|host| self.history.has_written(*host, now_us) != *wanted);
                wrong.map(|host| format!("{host} {}", if *wanted { "writes nothing" } else { "writes" }))
            }
            Expectation::Voters(count) => {
                let voters = self.history.ledger(up).map_or(0, |ledger| ledger.status().voters.len());
                (voters != *count).then(|| format!("{voters} vote"))
            }
            Expectation::Sees(who, whom, wanted) => {
                let views = self.views(up);
                let (who, whom) = (cast.hosts(who, Some(whom))?, cast.hosts(whom, Some(who))?);
                let pairs = who.iter().flat_map(|one| whom.iter().map(move |other| (one, other)));
                let sees = |one: &HostId, other: &HostId| {
                    Some(views.get(one)?.alive.contains(&views.get(other).map(|view| view.node)?))
                };
                let mut wrong = pairs.filter(|(one, other)| one != other && sees(one, other) != Some(*wanted));
                wrong.next().map(|(one, other)| format!("{one} {} {other}", if *wanted { "misses" } else { "sees" }))
            }
            Expectation::Machines => {
                let ledger = self.history.ledger(up).ok_or("nobody has a ledger")?;
                self.operators.verdict(up, &ledger).into_iter().next()
            }
        })
    }

    /// Founds or joins, until this directory is a member's.
    async fn enter(&self, boot: &Boot) -> anyhow::Result<()> {
        let installs = self.roster.installs(boot.host);
        let name = if installs == 0 { boot.host.to_string() } else { format!("{}-{installs}", boot.host) };
        let own = Own {
            name: name.parse()?,
            advertise: SocketAddr::new(address(boot.host), PORT),
            zone: String::new(),
            labels: Labels::new(),
        };
        if boot.host == FOUNDER && installs == 0 {
            founding::init(&boot.seams, &QuietHost(boot.disk.clone()), &own)?;
            return Ok(());
        }
        let peers: Vec<SocketAddr> = (1..=boot.hosts)
            .map(HostId)
            .filter(|host| *host != boot.host)
            .map(|host| SocketAddr::new(address(host), PORT))
            .collect();
        loop {
            let member = ClusterFile::load(&*boot.seams.disk)?.is_some();
            if member {
                return Ok(());
            }
            let node = NodeKey::load_or_generate(&*boot.seams.disk, &*boot.seams.entropy)?.id();
            self.roster.is(boot.host, node);
            if let Some(token) = self.roster.token(boot.host) {
                match founding::join(&boot.seams, &QuietHost(boot.disk.clone()), &own, &peers, &token).await {
                    Ok(_) => {
                        let found = self.roster.admitted(&token, node);
                        found.into_iter().for_each(|found| boot.recorder.violation(&found));
                        return Ok(());
                    }
                    Err(error) => boot.recorder.event(format_args!("not joined: {error}")),
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Makes the join token, once.
    async fn make_token(&self, boot: &Boot, node: &Node) {
        let context = node.context();
        let ca = { context.trust.read().unwrap_or_else(PoisonError::into_inner).cas().next().map(Digest::of) };
        let Some(ca) = ca else { return boot.recorder.violation("a founder trusts no CA") };
        let uses = boot.hosts.saturating_sub(1).max(1);
        while !self.roster.has_first() {
            let token = JoinToken { id: TokenId(draw(&*boot.seams.entropy)), secret: draw(&*boot.seams.entropy), ca };
            let create = Command::CreateToken {
                id: token.id,
                secret_hash: token.secret_hash(),
                role: Role::Voter,
                uses: uses as u32,
                ttl_ms: CERTIFICATE_TTL.as_millis() as u64,
            };
            match context.ledger.write(Actor::fabric(context.me), None, create).await {
                Ok(_) => self.roster.give_first(token, uses as usize),
                Err(error) => boot.recorder.event(format_args!("no token: {error}")),
            }
        }
    }

    /// Runs a node until its daemon ends, and tells what is to follow.
    async fn run(&self, boot: &Boot) -> anyhow::Result<Ending> {
        self.enter(boot).await?;
        let parts = Parts {
            host: Arc::new(QuietHost(boot.disk.clone())),
            runtime: boot.machines.clone(),
            layers: boot.layers.clone(),
            ports: Arc::new(FakePorts::default()),
            images: Box::new(|_| Arc::new(AllImages)),
        };
        let listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
        let data_dir = PathBuf::from("simulated");
        let snapshot_every = Some(SNAPSHOT_EVERY.start + boot.seed % (SNAPSHOT_EVERY.end - SNAPSHOT_EVERY.start));
        let config = NodeConfig { listen, advertise: None, data_dir, zone: None, labels: None, snapshot_every };
        let node = Node::start(boot.seams.clone(), parts, config).await?;
        boot.recorder.event(format_args!("node {:?} runs", node.context().me));
        self.roster.is(boot.host, node.context().me);
        if boot.host == FOUNDER && self.roster.installs(boot.host) == 0 {
            self.make_token(boot, &node).await;
        }
        self.running().insert(boot.host, node.context().clone());
        let ledger = node.context().ledger.clone();
        let work = async {
            tokio::join!(
                self.history.follow(boot, ledger.clone()),
                self.operators.work(boot, node.context()),
                self.admins.work(boot, &node),
                self.gremlins.work(boot, &node),
                self.prove(boot),
            );
            std::future::pending::<()>().await;
        };
        // The daemon ends when its ledger has stopped, and is started again.
        let ending = tokio::select! {
            biased;
            reason = ledger.halted() => anyhow::bail!("the ledger has stopped: {reason}"),
            () = self.admins.leave(boot, &node) => {
                let me = node.context().me;
                anyhow::ensure!(self.roster.has_left(me), "{} was removed, and nobody had asked for that", me.short());
                self.roster.reached("left");
                Ending::Reinstall
            }
            down_us = self.admins.stop(boot, &node) => Ending::Stopped(down_us),
            () = work => Ending::Restart,
        };
        if let Ending::Stopped(_) = ending {
            node.stop().await;
        }
        Ok(ending)
    }

    /// What a disk holds is good when a node has gone on with it for a while.
    async fn prove(&self, boot: &Boot) {
        sleep(PROVEN).await;
        self.roster.is_well(boot.host);
    }
}

/// Keeps how many operations of the disk had failed a while ago: they explain no end any more. Never returns.
async fn forget<T>(boot: &Boot, failures: &AtomicU64) -> T {
    loop {
        let now = boot.disk.counts().failures();
        sleep(EXPLAINS).await;
        failures.store(now, Ordering::Relaxed);
    }
}

impl Software for Nodes {
    fn boot(&self, boot: Boot) -> BoxFuture<()> {
        let this = self.clone();
        self.roster.boots(boot.host);
        Box::pin(async move {
            let failures = AtomicU64::new(boot.disk.counts().failures());
            let running = async {
                tokio::select! {
                    biased;
                    ending = this.run(&boot) => ending,
                    never = forget(&boot, &failures) => never,
                }
            };
            let ending = running.await.unwrap_or_else(|error| {
                boot.recorder.event(format_args!("the daemon ends: {error:#}"));
                // What a disk that fails does to a node is to end it; without such a reason it must go on.
                if !boot.has_power() || boot.disk.counts().failures() > failures.load(Ordering::Relaxed) {
                    return Ending::Restart;
                }
                let told = format!("{error:#}");
                // Data that has rotted is refused, as what it is; whoever runs the node lets it join anew then.
                if this.roster.is_rotten(boot.host) && ["damaged", "corrupted"].iter().any(|word| told.contains(word)) {
                    this.roster.reached("rot-refused");
                    return Ending::Reinstall;
                }
                // A panic has been told already, as what it is.
                if !told.contains("panicked") {
                    boot.recorder.violation(&format!("I8: the node ends: {told}"));
                }
                Ending::Restart
            });
            boot.exit.leave(ending);
        })
    }

    fn ended(&self, host: HostId) {
        self.operators.ended(host);
        self.history.ended(host);
        let gone = self.running().remove(&host);
        drop(gone);
    }

    fn verdict(&self, up: &[HostId]) -> Vec<String> {
        let mut failed = self.history.verdict(up, self.calm_us);
        let views = self.views(up);
        let newcomer =
            |(host, view): &(&HostId, &View)| self.roster.installs(**host) > 0 && view.voters.contains(&view.node);
        views.iter().filter(newcomer).for_each(|_| self.roster.reached("voter-replaced"));
        failed.extend(self.gremlins.verdict(up));
        failed.extend(converged::check(&views));
        if let Some(ledger) = self.history.ledger(up) {
            failed.extend(self.operators.verdict(up, &ledger));
            failed.extend(self.operators.settled(&ledger));
        }
        failed
    }

    fn may_lose(&self, host: HostId, up: &[HostId]) -> bool {
        let gone = self.roster.gone();
        if self.roster.has_others_without_data(host) || up.len() < 3 {
            return false;
        }
        // Whoever was lost before must have been replaced in all views, so that the next one is the only one.
        let ledgers = up.iter().map(|host| self.history.ledger(&[*host]));
        ledgers.into_iter().all(|ledger| {
            ledger.is_some_and(|ledger| {
                let (voters, learned) =
                    (ledger.status().voters, ledger.read(|state| !state.nodes.keys().any(|id| gone.contains(id))));
                learned && voters.len() >= 3 && !voters.iter().any(|id| gone.contains(id))
            })
        })
    }

    fn rotted(&self, host: HostId) {
        self.roster.rotted(host);
    }

    fn wiped(&self, host: HostId) {
        self.roster.wiped(host);
    }

    fn leaves(&self, host: HostId) {
        self.roster.leaves(host);
    }

    fn stops(&self, host: HostId, down_us: u64) {
        self.roster.stops(host, down_us);
    }

    fn takeovers(&self) -> Vec<Takeover> {
        self.history.takeovers()
    }

    fn judge(&self, running: &[(HostId, Running)], destroyed: &[Destroyed], takeovers: &[Takeover]) -> Option<String> {
        self.operators.judge(running, destroyed, (takeovers, &self.history.told()))
    }

    fn leader(&self, up: &[HostId]) -> Option<HostId> {
        self.history.leader(up)
    }

    fn expect(&self, expectation: &Expectation, moment: &Moment<'_>) -> Option<String> {
        self.judge(expectation, moment).unwrap_or_else(Some)
    }

    fn facts(&self, up: &[HostId]) -> String {
        let leads = self.views(self.history.leader(up).as_slice()).into_iter().next();
        let leads = leads.map_or("nobody leads".to_owned(), |(host, view)| {
            let others = view.alive.iter().filter(|node| **node != view.node).count();
            format!("{host} leads, others alive to it: {others}, voters: {}", view.voters.len())
        });
        let takeovers = self.history.counts().get("takeovers").copied().unwrap_or_default();
        format!("{leads}, takeovers so far: {takeovers}")
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = self.history.counts();
        counts.extend(self.operators.counts());
        counts.extend(self.roster.counts());
        counts.insert("garbage".to_owned(), self.gremlins.played());
        counts
    }
}
