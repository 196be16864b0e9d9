//! The world's own control: hosts that ping each other over real QUIC and TLS, and count on disk what they sent.
//!
//! It needs nothing of the product, so that a difference between two runs of it is the simulator's fault.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fabric::rpc::BoxFuture;
use fabric::seams::Clock;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use tokio::time::{sleep, timeout};

use crate::actor::{Boot, HostId, Software};
use crate::ambient::{Ambient, within};
use crate::net::address;
use crate::random;
use crate::report::tally;

const PORT: u16 = 7420;
const ANSWER_BYTES_MAX: usize = 64;
/// Between two pings, or two tries to count one.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Wall(Arc<dyn Clock>);

impl rustls::time_provider::TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.wall()))
    }
}

impl quinn::TimeSource for Wall {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.0.wall()
    }
}

/// What the observer knows of a host.
#[derive(Debug, Default)]
struct Known {
    /// The highest count that the host's disk said it keeps.
    counted: u64,
    pongs: u64,
    last_pong_us: u64,
}

/// Hosts that ping each other.
#[derive(Debug)]
pub struct Ping {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
    known: Mutex<BTreeMap<HostId, Known>>,
    calm: Mutex<u64>,
}

impl Ping {
    /// For the run of `seed`.
    ///
    /// # Errors
    /// When the shared certificate cannot be made.
    pub fn new(seed: u64) -> Result<Self, rcgen::Error> {
        let mut maker = Ambient::new(0, random::stream(seed, "ping", &[]));
        let (certificate, key) = within(&mut maker, 0, || {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
            let certificate = rcgen::CertificateParams::new(vec!["ping".to_owned()])?.self_signed(&key)?;
            Ok::<_, rcgen::Error>((certificate.der().clone(), key.serialize_der()))
        })?;
        Ok(Ping { certificate, key, known: Mutex::default(), calm: Mutex::new(0) })
    }

    fn endpoint(certificate: CertificateDer<'static>, key: Vec<u8>, boot: &Boot) -> anyhow::Result<quinn::Endpoint> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let wall = || Arc::new(Wall(boot.seams.clock.clone()));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone())?;
        let versions = &[&rustls::version::TLS13];
        let server = rustls::ServerConfig::builder_with_details(provider.clone(), wall())
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivatePkcs8KeyDer::from(key).into())?;
        let client = rustls::ClientConfig::builder_with_details(provider, wall())
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
        server.time_source(wall());
        let socket = boot.seams.udp.bind(SocketAddr::from(([0, 0, 0, 0], PORT)))?;
        let config = quinn::EndpointConfig::default();
        let runtime = Arc::new(quinn::TokioRuntime);
        let mut endpoint = quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)?;
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?)));
        Ok(endpoint)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<HostId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((mut out, mut question)) = connection.accept_bi().await {
                if let Ok(bytes) = question.read_to_end(ANSWER_BYTES_MAX).await {
                    let _ = out.write_all(&bytes).await;
                    let _ = out.finish();
                }
            }
        });
    }
}

async fn ask(endpoint: &quinn::Endpoint, to: HostId, question: &[u8]) -> anyhow::Result<Vec<u8>> {
    let connection = endpoint.connect(SocketAddr::new(address(to), PORT), "ping")?.await?;
    let (mut out, mut answer) = connection.open_bi().await?;
    out.write_all(question).await?;
    out.finish()?;
    Ok(answer.read_to_end(ANSWER_BYTES_MAX).await?)
}

fn stored_count(boot: &Boot) -> io::Result<u64> {
    let bytes = boot.seams.disk.read("count")?.unwrap_or_default();
    Ok(bytes.try_into().map_or(0, u64::from_le_bytes))
}

/// What one boot does. An error ends it: its disk has no power any more.
async fn ping(endpoint: quinn::Endpoint, boot: Boot, this: Arc<Ping>) -> io::Result<()> {
    let mut count = stored_count(&boot)?;
    let counted = this.known().entry(boot.host).or_default().counted;
    if count < counted {
        boot.recorder.violation(&format!("its disk kept {counted} and now has {count}"));
    }
    tokio::spawn(serve(endpoint.clone()));
    loop {
        count += 1;
        if let Err(error) = boot.seams.disk.write("count", &count.to_le_bytes()) {
            if !boot.has_power() {
                return Err(error);
            }
            sleep(PAUSE).await;
            continue;
        }
        this.known().entry(boot.host).or_default().counted = count;
        let to = HostId((boot.host.0 + count) % boot.hosts + 1);
        let answer = timeout(Duration::from_secs(1), ask(&endpoint, to, &count.to_le_bytes())).await;
        let good = matches!(answer, Ok(Ok(bytes)) if bytes == count.to_le_bytes());
        boot.recorder.event(format_args!("ping {count} to {to}: {good}"));
        if good {
            let mut known = this.known();
            let known = known.entry(boot.host).or_default();
            known.pongs += 1;
            known.last_pong_us = boot.recorder.world_us();
        }
        sleep(PAUSE).await;
    }
}

/// Shares one [`Ping`] between the boots.
#[derive(Debug)]
pub struct Pings(pub Arc<Ping>);

impl Software for Pings {
    fn boot(&self, boot: Boot) -> BoxFuture<()> {
        let this = self.0.clone();
        *this.calm.lock().unwrap_or_else(PoisonError::into_inner) = boot.calm_us;
        Box::pin(async move {
            match Ping::endpoint(this.certificate.clone(), this.key.clone(), &boot) {
                Ok(endpoint) => drop(ping(endpoint, boot, this).await),
                Err(error) => boot.recorder.violation(&format!("no endpoint: {error:#}")),
            }
        })
    }

    fn ended(&self, _: HostId) {}

    fn verdict(&self, up: &[HostId]) -> Vec<String> {
        let (known, calm_us) = (self.0.known(), *self.0.calm.lock().unwrap_or_else(PoisonError::into_inner));
        let silent = |host: &&HostId| known.get(host).is_none_or(|known| known.last_pong_us <= calm_us);
        up.iter().filter(silent).map(|host| format!("{host} got no answer in the calm")).collect()
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        let known = self.0.known();
        let pongs: u64 = known.values().map(|known| known.pongs).sum();
        let counted: u64 = known.values().map(|known| known.counted).sum();
        tally([("pings", counted), ("pongs", pongs)])
    }
}
