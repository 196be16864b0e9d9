//! The fabric's transport alone: hosts that know each other's addresses call each other.
//!
//! The cluster is set up beforehand (one CA, a certificate for each host), so that a failure is the transport's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use fabric::identity::{CaKey, Credentials, IdentityError, NodeKey, Trust};
use fabric::ids::NodeId;
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::Role;
use fabric::rpc::{BoxFuture, Kind, Router, Rpc};
use fabric::transport::{Handlers, Transport, TransportConfig};
use tokio::time::sleep;

use crate::actor::{Boot, HostId, Software};
use crate::ambient::{Ambient, within};
use crate::clock::EPOCH;
use crate::entropy::SeededEntropy;
use crate::net::address;
use crate::random;

const PORT: u16 = 7420;
/// A kind of request that the product does not use.
const ECHO: Kind = 60_000;

/// When each pair (from, to) last spoke, in microseconds.
type Spoken = BTreeMap<(HostId, HostId), u64>;

/// Hosts that call each other.
#[derive(Debug)]
pub struct Calls {
    trust: Trust,
    credentials: BTreeMap<HostId, Credentials>,
    spoken: Arc<Mutex<Spoken>>,
    answered: Arc<Mutex<(u64, u64)>>,
    calm_us: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Calls {
    /// A cluster of so many hosts for the run of `seed`, whose calm begins at `calm_us`.
    ///
    /// # Errors
    /// When its certificates cannot be made.
    pub fn new(seed: u64, hosts: u64, calm_us: u64) -> Result<Self, IdentityError> {
        let entropy = SeededEntropy::new(random::stream(seed, "calls", &[]));
        let mut maker = Ambient::new(0, random::stream(seed, "maker", &[]));
        within(&mut maker, 0, || {
            let ca = CaKey::generate(&entropy, EPOCH);
            let admit = |host| {
                let key = NodeKey::generate(&entropy);
                let certificate = ca.issue(&key.public_key(), Role::Voter, EPOCH, CERTIFICATE_TTL);
                Ok((HostId(host), Credentials::new(key, certificate, ca.cert_der().to_vec())?))
            };
            let credentials = (1..=hosts).map(admit).collect::<Result<_, IdentityError>>()?;
            let trust = Trust::new([ca.cert_der().to_vec()])?;
            Ok(Calls { trust, credentials, spoken: Arc::default(), answered: Arc::default(), calm_us })
        })
    }

    fn ids(&self) -> BTreeMap<HostId, NodeId> {
        self.credentials.iter().map(|(host, credentials)| (*host, credentials.id())).collect()
    }
}

impl Software for Calls {
    fn boot(&self, boot: Boot) -> BoxFuture<()> {
        let Some(credentials) = self.credentials.get(&boot.host).cloned() else { return Box::pin(async {}) };
        let (trust, ids) = (self.trust.clone(), self.ids());
        let (spoken, answered) = (self.spoken.clone(), self.answered.clone());
        Box::pin(async move {
            let mut router = Router::default();
            router.on(ECHO, |_, body| async move { Ok(body) });
            let handlers = Handlers { router, ..Handlers::default() };
            let config = TransportConfig { listen: SocketAddr::from(([0, 0, 0, 0], PORT)) };
            let trust = Arc::new(RwLock::new(trust));
            let transport = match Transport::start(&config, &boot.seams, &credentials, trust, handlers) {
                Ok(transport) => transport,
                Err(error) => return boot.recorder.violation(&format!("no transport: {error}")),
            };
            ids.iter().for_each(|(host, id)| transport.learn(*id, SocketAddr::new(address(*host), PORT)));
            for count in 0_u64.. {
                let to = HostId((boot.host.0 + count) % boot.hosts + 1);
                let question = vec![count as u8; 1 + (count as usize * 97) % 5_000];
                let answer = transport.call(ids[&to], ECHO, question.clone(), Duration::from_secs(2)).await;
                boot.recorder.event(format_args!("call {count} to {to}: {:?}", answer.as_ref().map(Vec::len)));
                lock(&answered).0 += 1;
                match answer {
                    Ok(answer) if answer == question => {
                        lock(&answered).1 += 1;
                        lock(&spoken).insert((boot.host, to), boot.recorder.world_us());
                    }
                    Ok(_) => boot.recorder.violation(&format!("another answer than the question, from {to}")),
                    Err(_) => {}
                }
                sleep(Duration::from_millis(70)).await;
            }
        })
    }

    fn ended(&self, _: HostId) {}

    fn verdict(&self, up: &[HostId]) -> Vec<String> {
        let spoken = lock(&self.spoken);
        let pairs = up.iter().flat_map(|from| up.iter().map(move |to| (*from, *to)));
        let silent = |pair: &(HostId, HostId)| spoken.get(pair).is_none_or(|at_us| *at_us <= self.calm_us);
        pairs.filter(silent).map(|(from, to)| format!("no call from {from} to {to} in the calm")).collect()
    }

    fn summary(&self) -> String {
        let (calls, answered) = *lock(&self.answered);
        format!("calls={calls} answered={answered}")
    }
}
