//! TLS 1.3 with ring, the node's clock, and [`Trust`] as the only judge of certificates.
//!
//! There is no session resumption: a ticket would let a removed node back in, and carries randomness of its own.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};

use super::Alpn;
use crate::identity::{Credentials, IdentityError, SharedTrust, Trust, wanted_node};
use crate::ids::Digest;
use crate::model::Role;
use crate::seams::Clock;

/// The wall clock seam as rustls and quinn want it.
#[derive(Debug, Clone)]
pub(super) struct Wall(pub(super) Arc<dyn Clock>);

impl rustls::time_provider::TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.wall()))
    }
}

impl quinn::TimeSource for Wall {
    fn now(&self) -> std::time::SystemTime {
        std::time::SystemTime::UNIX_EPOCH + self.0.wall()
    }
}

/// The certificate that this node shows; a renewal replaces it without a new endpoint.
pub(super) struct Shown(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl Shown {
    pub(super) fn new(credentials: &Credentials) -> Self {
        Shown(RwLock::new(Self::certified(credentials)))
    }

    pub(super) fn replace(&self, credentials: &Credentials) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Self::certified(credentials);
    }

    fn certified(credentials: &Credentials) -> Arc<CertifiedKey> {
        let key = PrivatePkcs8KeyDer::from(credentials.key.pkcs8());
        let key = rustls::crypto::ring::sign::any_eddsa_type(&key).expect("a node key is PKCS#8 Ed25519");
        let chain = [&credentials.cert_der, &credentials.ca];
        Arc::new(CertifiedKey::new(chain.map(|der| CertificateDer::from(der.clone())).to_vec(), key))
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// The reason is for people here, and travels to the peer as text in the close frame. A removal has an alert of its own,
/// since the removed node acts on it.
fn refused(error: IdentityError) -> rustls::Error {
    match error {
        IdentityError::Removed(_) => rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked),
        error => rustls::Error::General(error.to_string()),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Signature checks that all verifiers share: TLS 1.3 and Ed25519, nothing else.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.3 only".into()))
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    };
}

/// Judges peers by [`Trust`].
#[derive(Debug)]
struct PeerVerifier {
    trust: SharedTrust,
    provider: Arc<CryptoProvider>,
    /// Whether a certificate that has run out is good enough: for renewals.
    any_age: bool,
}

impl PeerVerifier {
    fn trust(&self) -> std::sync::RwLockReadGuard<'_, Trust> {
        self.trust.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now = Duration::from_secs(now.as_secs());
        let trust = self.trust();
        let judged = if self.any_age { trust.verify_any_age(certificate) } else { trust.verify(certificate, now) };
        let peer = judged.map_err(refused)?;
        let want =
            wanted_node(&name.to_str()).ok_or_else(|| refused(IdentityError::Malformed("no node was wanted")))?;
        if peer.id != want {
            return Err(refused(IdentityError::OtherNode { found: peer.id, want }));
        }
        Ok(ServerCertVerified::assertion())
    }
    signatures!();
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    /// Age is judged after the handshake, when the protocol is known: an expired certificate opens renewal.
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.trust().verify_any_age(certificate).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }
    signatures!();
}

/// Judges the server of a join by the CA fingerprint in the token, before the secret is sent.
#[derive(Debug)]
pub(super) struct JoinVerifier {
    ca: Digest,
    provider: Arc<CryptoProvider>,
    /// Why the server was refused.
    pub(super) fault: Mutex<Option<IdentityError>>,
}

impl JoinVerifier {
    pub(super) fn new(ca: Digest) -> Self {
        JoinVerifier { ca, provider: provider(), fault: Mutex::default() }
    }

    fn judge(&self, chain: &[CertificateDer<'_>], leaf: &[u8], now: Duration) -> Result<(), IdentityError> {
        let [ca] = chain else { return Err(IdentityError::Malformed("the peer shows no CA")) };
        let found = Digest::of(ca);
        if found != self.ca {
            return Err(IdentityError::ForeignToken { want: self.ca, found });
        }
        Trust::new([ca.to_vec()])?.verify(leaf, now).map(|_| ())
    }
}

impl ServerCertVerifier for JoinVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Err(error) = self.judge(chain, certificate, Duration::from_secs(now.as_secs())) {
            let text =
                rustls::Error::General("the token's CA is not this cluster's, or the certificate is not good".into());
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return Err(text);
        }
        Ok(ServerCertVerified::assertion())
    }
    signatures!();
}

/// What the admin port speaks inside TLS.
const ADMIN_ALPN: &[u8] = b"http/1.1";

/// Judges a node that a client of its admin port has dialled by address, so that no particular node is wanted: any of
/// role voter will do. Such a node may do whatever a token that it is shown allows. A worker may not, so it must not be
/// taken for a voter whose address it answers at.
#[derive(Debug)]
struct AdminVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AdminVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let peer = self.trust.verify(certificate, Duration::from_secs(now.as_secs())).map_err(refused)?;
        if peer.role != Role::Voter {
            return Err(rustls::Error::General(
                "a worker answers, which serves its own host alone: ask a voter".into(),
            ));
        }
        Ok(ServerCertVerified::assertion())
    }
    signatures!();
}

/// The one TLS configuration of the accepting side; the protocol decides afterwards what a client may do.
pub(super) fn server(clock: Arc<dyn Clock>, trust: SharedTrust, shown: Arc<Shown>) -> QuicServerConfig {
    let provider = provider();
    let verifier = Arc::new(PeerVerifier { trust, provider: provider.clone(), any_age: true });
    let mut config = rustls::ServerConfig::builder_with_details(provider, Arc::new(Wall(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    config.alpn_protocols = Alpn::ALL.map(|alpn| alpn.name().to_vec()).to_vec();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    QuicServerConfig::try_from(config).expect("ring has QUIC's first cipher suite")
}

/// TLS of the admin port for other hosts: the node's certificate; clients show tokens, not certificates.
pub(super) fn admin_server(clock: Arc<dyn Clock>, shown: Arc<Shown>) -> rustls::ServerConfig {
    let mut config = rustls::ServerConfig::builder_with_details(provider(), Arc::new(Wall(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![ADMIN_ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config
}

/// TLS of a client of that port.
pub(super) fn admin_client(clock: Arc<dyn Clock>, trust: Trust) -> rustls::ClientConfig {
    let verifier = Arc::new(AdminVerifier { trust, provider: provider() });
    let mut config = builder(clock).with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![ADMIN_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config
}

/// TLS of a node that dials a peer.
pub(super) fn client(clock: Arc<dyn Clock>, trust: SharedTrust, shown: Arc<Shown>, alpn: Alpn) -> QuicClientConfig {
    let any_age = alpn == Alpn::Renew;
    let verifier = Arc::new(PeerVerifier { trust, provider: provider(), any_age });
    finish(builder(clock).with_custom_certificate_verifier(verifier).with_client_cert_resolver(shown), alpn)
}

/// TLS of a joiner, who has no certificate yet.
pub(super) fn joiner(clock: Arc<dyn Clock>, verifier: Arc<JoinVerifier>) -> QuicClientConfig {
    finish(builder(clock).with_custom_certificate_verifier(verifier).with_no_client_auth(), Alpn::Join)
}

fn builder(clock: Arc<dyn Clock>) -> rustls::client::danger::DangerousClientConfigBuilder {
    rustls::ClientConfig::builder_with_details(provider(), Arc::new(Wall(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .dangerous()
}

fn finish(mut config: rustls::ClientConfig, alpn: Alpn) -> QuicClientConfig {
    config.alpn_protocols = vec![alpn.name().to_vec()];
    config.resumption = Resumption::disabled();
    // The name holds the wanted node's id: nobody on the way needs to read it.
    config.enable_sni = false;
    QuicClientConfig::try_from(config).expect("ring has QUIC's first cipher suite")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{CaKey, NodeKey};
    use crate::seams::real::{KernelClock, KernelEntropy};

    fn node(ca: &CaKey, role: Role) -> Credentials {
        let key = NodeKey::generate(&KernelEntropy);
        let certificate = ca.issue(&key.public_key(), role, KernelClock.wall(), Duration::from_secs(3600));
        Credentials::new(key, certificate, ca.cert_der().to_vec()).unwrap()
    }

    /// Shakes hands in memory; what the client says of it.
    fn shake(node: &Credentials, trusted: &CaKey) -> Result<(), rustls::Error> {
        let clock: Arc<dyn Clock> = Arc::new(KernelClock);
        let server = admin_server(clock.clone(), Arc::new(Shown::new(node)));
        let client = admin_client(clock, Trust::new([trusted.cert_der().to_vec()]).unwrap());
        let mut server = rustls::ServerConnection::new(Arc::new(server))?;
        let name = ServerName::try_from("admin.smartnode").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name)?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            if client.write_tls(&mut bytes).unwrap() > 0 {
                server.read_tls(&mut &bytes[..]).unwrap();
                server.process_new_packets()?;
            }
            bytes.clear();
            if server.write_tls(&mut bytes).unwrap() > 0 {
                client.read_tls(&mut &bytes[..]).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_client_of_the_admin_port_takes_voters_of_its_cluster_alone() {
        let (ca, other) =
            (CaKey::generate(&KernelEntropy, KernelClock.wall()), CaKey::generate(&KernelEntropy, KernelClock.wall()));
        assert_eq!(shake(&node(&ca, Role::Voter), &ca), Ok(()));
        let refused = |node: &Credentials| shake(node, &ca).unwrap_err().to_string();
        assert!(refused(&node(&other, Role::Voter)).contains("another cluster"));
        assert!(refused(&node(&ca, Role::Worker)).contains("worker"));
    }
}
