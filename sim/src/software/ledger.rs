//! The ledger over the transport, without membership: every node is held alive, the voters choose themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fabric::ids::{ClusterId, Digest, NodeId, TokenId};
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::{Capacity, NodeRecord, Role};
use fabric::rpc::{BoxFuture, Router};
use fabric::transport::Transport;
use raft_store::command::{Actor, Ca, Command};
use raft_store::ledger::{Ledger, LedgerConfig, LedgerError, StartError, Surroundings};

use crate::actor::{Boot, Ending, HostId, Software};
use crate::invariants::takeovers::Takeover;
use crate::software::budget::Budget;
use crate::software::cluster::Cluster;
use crate::software::history::History;

/// Holds every node alive.
struct Everybody(BTreeSet<NodeId>);

impl Surroundings for Everybody {
    fn alive(&self) -> BTreeSet<NodeId> {
        self.0.clone()
    }
    fn ledger_nodes(&self) -> Vec<NodeId> {
        self.0.iter().copied().collect()
    }
}

/// Hosts with a ledger.
#[derive(Debug)]
pub struct Ledgers {
    cluster: Arc<Cluster>,
    history: History,
    calm_us: u64,
}

impl Ledgers {
    /// On this cluster; the calm begins at `calm_us`, and clients may do what `budget` allows.
    pub fn new(cluster: Cluster, calm_us: u64, budget: Budget) -> Self {
        Ledgers { cluster: Arc::new(cluster), history: History::new(budget), calm_us }
    }
}

fn record(cluster: &Cluster, host: HostId) -> Option<NodeRecord> {
    let credentials = cluster.credentials.get(&host)?;
    Some(NodeRecord {
        id: credentials.id(),
        name: host.to_string().parse().ok()?,
        public_key: credentials.key.public_key(),
        role: Role::Voter,
        zone: String::new(),
        labels: Default::default(),
        capacity: Capacity { cpu_millis: 4_000, memory_bytes: 8 << 30, disk_bytes: 1 << 40 },
        address: cluster.address(host).to_string(),
        cordoned: false,
        draining: false,
        absent_until_ms: None,
        admitted_ms: 0,
        revision: 0,
    })
}

/// The first host founds the cluster and admits the others; each step may be repeated after a crash.
async fn found(cluster: &Cluster, boot: &Boot, ledger: &Ledger) -> Result<(), LedgerError> {
    let actor = Actor::fabric(ledger.node());
    let Some(node) = record(cluster, boot.host) else { return Ok(()) };
    let (token, secret_hash) = (TokenId([1; 8]), Digest([1; 32]));
    let ttl_ms = CERTIFICATE_TTL.as_millis() as u64;
    let init = Command::InitCluster {
        cluster_id: ClusterId([1; 16]),
        feature_level: raft_store::limits::FEATURE_LEVEL,
        ca: Ca { cert_der: cluster.ca.cert_der().to_vec(), key_pkcs8: cluster.ca.key_pkcs8() },
        node: Box::new(node),
        tenant: "default".parse().expect("a valid name"),
    };
    ledger.init(actor.clone(), init).await?;
    let create = Command::CreateToken { id: token, secret_hash, role: Role::Voter, uses: boot.hosts as u32, ttl_ms };
    let made = ledger.write(actor.clone(), None, create).await;
    boot.recorder.event(format_args!("token: {:?}", made.map(|made| made.index)));
    for host in (2..=boot.hosts).map(HostId) {
        let Some(node) = record(cluster, host) else { continue };
        let admit = Command::AdmitNode { token, secret_hash, node: Box::new(node) };
        let admitted = ledger.write(actor.clone(), None, admit).await?;
        boot.recorder.event(format_args!("admitted {host} at {}", admitted.index));
    }
    Ok(())
}

async fn start(cluster: &Cluster, boot: &Boot) -> anyhow::Result<(Transport, Ledger)> {
    let mut router = Router::default();
    let registration = Ledger::register(&mut router);
    let transport = cluster.transport(boot, router)?;
    let address = cluster.address(boot.host).to_string();
    let config = LedgerConfig { node: transport.id(), address, role: Role::Voter, begun: false };
    let around = Arc::new(Everybody(cluster.ids().into_values().collect()));
    let started = registration.start(config, &boot.seams, Arc::new(transport.clone()), around).await;
    Ok((transport, started.map_err(|error: StartError| anyhow::Error::from(error))?))
}

impl Software for Ledgers {
    fn boot(&self, boot: Boot) -> BoxFuture<()> {
        let (cluster, history) = (self.cluster.clone(), self.history.clone());
        Box::pin(async move {
            let failures = boot.disk.counts().failures();
            let (_transport, ledger) = match start(&cluster, &boot).await {
                Ok(started) => started,
                Err(error) if !boot.has_power() => {
                    return boot.recorder.event(format_args!("died starting: {error:#}"));
                }
                // A disk that fails ends the program; whoever watches over it starts it again.
                Err(error) if boot.disk.counts().failures() > failures => {
                    boot.recorder.event(format_args!("does not start: {error:#}"));
                    return boot.exit.leave(Ending::Restart);
                }
                Err(error) => return boot.recorder.violation(&format!("does not start: {error:#}")),
            };
            if boot.host == HostId(1) {
                while let Err(error) = found(&cluster, &boot, &ledger).await {
                    boot.recorder.event(format_args!("founding: {error}"));
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
            let work = async {
                history.follow(&boot, ledger.clone()).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                reason = ledger.halted() => {
                    boot.recorder.event(format_args!("the ledger has stopped: {reason}"));
                    boot.exit.leave(Ending::Restart);
                }
                () = work => {}
            }
        })
    }

    fn ended(&self, host: HostId) {
        self.history.ended(host);
    }

    fn verdict(&self, up: &[HostId]) -> Vec<String> {
        self.history.verdict(up, self.calm_us)
    }

    fn takeovers(&self) -> Vec<Takeover> {
        self.history.takeovers()
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        self.history.counts()
    }
}
