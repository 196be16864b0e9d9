//! quinn's settings: everything random or keyed comes from the entropy seam or the node's key.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, VarInt};

use super::tls::Wall;
use crate::identity::NodeKey;
use crate::limits::*;
use crate::seams::{Entropy, Seams, draw};

/// Connection ids of eight random bytes.
struct RandomIds(Arc<dyn Entropy>);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&draw::<8>(&*self.0))
    }
    fn cid_len(&self) -> usize {
        8
    }
    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Settings of the endpoint. The reset key derives from the node's key, so that a peer notices a restart with the first
/// packet that it sends on an old connection.
fn settings(seams: &Seams, key: &NodeKey) -> EndpointConfig {
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key.derive("smartnode stateless reset v1"));
    let mut config = EndpointConfig::new(Arc::new(reset));
    let entropy = seams.entropy.clone();
    config.cid_generator(move || Box::new(RandomIds(entropy.clone())));
    config.rng_seed(Some(draw(&*seams.entropy)));
    // A peer has connections of several classes and probes them together: a pause between resets (20 ms in quinn) would
    // leave all but one of them standing. A reset costs an HMAC and is smaller than what it answers (RFC 9000, 10.3.3).
    config.min_reset_interval(Duration::ZERO);
    config
}

/// Settings of every connection. There is no keep-alive of quinn's: an unused connection shall end, and a used one is
/// kept by its link.
fn connection() -> Arc<quinn::TransportConfig> {
    let mut config = quinn::TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("the idle timeout is short");
    config
        .max_idle_timeout(Some(idle))
        .max_concurrent_bidi_streams(VarInt::from_u32(PEER_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(PEER_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .datagram_receive_buffer_size(Some(256 * 1024))
        .datagram_send_buffer_size(256 * 1024);
    Arc::new(config)
}

/// Settings of a connection that this node dials.
pub(super) fn dialling(seams: &Seams, tls: QuicClientConfig) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    let entropy = seams.entropy.clone();
    config.transport_config(connection());
    config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&draw::<16>(&*entropy))));
    config.token_store(Arc::new(quinn::NoneTokenStore));
    config
}

fn accepting(seams: &Seams, key: &NodeKey, tls: QuicServerConfig) -> quinn::ServerConfig {
    let salt = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, b"smartnode retry tokens v1");
    let token_key = salt.extract(&key.derive("smartnode retry token v1"));
    let mut config = quinn::ServerConfig::new(Arc::new(tls), Arc::new(token_key));
    let mut tokens = quinn::ValidationTokenConfig::default();
    tokens.sent(0).log(Arc::new(quinn::NoneTokenLog));
    config
        .transport_config(connection())
        .time_source(Arc::new(Wall(seams.clock.clone())))
        .validation_token_config(tokens)
        .max_incoming(HANDSHAKES_MAX)
        .incoming_buffer_size(64 * 1024)
        .incoming_buffer_size_total(8 * 1024 * 1024);
    config
}

/// Binds an endpoint; without `tls` it only dials.
pub(super) fn bind(
    seams: &Seams,
    listen: SocketAddr,
    key: &NodeKey,
    tls: Option<QuicServerConfig>,
) -> io::Result<quinn::Endpoint> {
    let socket = seams.udp.bind(listen)?;
    let server = tls.map(|tls| accepting(seams, key, tls));
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new_with_abstract_socket(settings(seams, key), server, socket, runtime)
}
