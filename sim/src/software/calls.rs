//! The fabric's transport alone: hosts that know each other's addresses call each other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::rpc::{BoxFuture, Kind, Router, Rpc};
use fabric::transport::Transport;
use tokio::time::sleep;

use crate::actor::{Boot, HostId, Software};
use crate::report::tally;
use crate::software::cluster::Cluster;

/// A kind of request that the product does not use.
const ECHO: Kind = 60_000;

/// What the observer knows.
#[derive(Debug, Default)]
struct Known {
    calls: u64,
    answered: u64,
    /// When each pair (from, to) last spoke, in microseconds.
    spoken: BTreeMap<(HostId, HostId), u64>,
}

/// Hosts that call each other.
#[derive(Debug)]
pub struct Calls {
    cluster: Arc<Cluster>,
    known: Arc<Mutex<Known>>,
    calm_us: u64,
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Calls {
    /// On this cluster; the calm begins at `calm_us`.
    pub fn new(cluster: Cluster, calm_us: u64) -> Self {
        Calls { cluster: Arc::new(cluster), known: Arc::default(), calm_us }
    }
}

async fn call(cluster: &Cluster, transport: &Transport, boot: &Boot, known: &Mutex<Known>) {
    let ids = cluster.ids();
    for count in 0_u64.. {
        let to = HostId((boot.host.0 + count) % boot.hosts + 1);
        let question = vec![count as u8; 1 + (count as usize * 97) % 5_000];
        let answer = transport.call(ids[&to], ECHO, question.clone(), Duration::from_secs(2)).await;
        boot.recorder.event(format_args!("call {count} to {to}: {:?}", answer.as_ref().map(Vec::len)));
        lock(known).calls += 1;
        match answer {
            Ok(answer) if answer == question => {
                let mut known = lock(known);
                known.answered += 1;
                known.spoken.insert((boot.host, to), boot.recorder.world_us());
            }
            Ok(_) => boot.recorder.violation(&format!("another answer than the question, from {to}")),
            Err(_) => {}
        }
        sleep(Duration::from_millis(70)).await;
    }
}

impl Software for Calls {
    fn boot(&self, boot: Boot) -> BoxFuture<()> {
        let (cluster, known) = (self.cluster.clone(), self.known.clone());
        Box::pin(async move {
            let mut router = Router::default();
            router.on(ECHO, |_, body| async move { Ok(body) });
            match cluster.transport(&boot, router) {
                Ok(transport) => call(&cluster, &transport, &boot, &known).await,
                Err(error) => boot.recorder.violation(&format!("no transport: {error}")),
            }
        })
    }

    fn ended(&self, _: HostId) {}

    fn verdict(&self, up: &[HostId]) -> Vec<String> {
        let known = lock(&self.known);
        let pairs = up.iter().flat_map(|from| up.iter().map(move |to| (*from, *to)));
        let silent = |pair: &(HostId, HostId)| known.spoken.get(pair).is_none_or(|at_us| *at_us <= self.calm_us);
        pairs.filter(silent).map(|(from, to)| format!("no call from {from} to {to} in the calm")).collect()
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        let known = lock(&self.known);
        tally([("calls", known.calls), ("answered", known.answered)])
    }
}
