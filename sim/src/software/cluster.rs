//! A cluster that is set up beforehand: one CA, a key and a certificate for each host, addresses known.
//!
//! For software that tests a part of the product without its ways of joining.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use fabric::identity::{CaKey, Credentials, IdentityError, NodeKey, Trust};
use fabric::ids::NodeId;
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::Role;
use fabric::rpc::Router;
use fabric::transport::{Handlers, Transport, TransportConfig, TransportError};

use crate::actor::{Boot, HostId};
use crate::ambient::{Ambient, within};
use crate::clock::EPOCH;
use crate::entropy::SeededEntropy;
use crate::net::address;
use crate::random;

/// Where every node listens.
pub const PORT: u16 = 7420;

/// Who is who.
pub struct Cluster {
    /// The CA.
    pub ca: CaKey,
    /// Each host's key and certificate.
    pub credentials: BTreeMap<HostId, Credentials>,
    trust: Trust,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.ids()).finish()
    }
}

impl Cluster {
    /// A cluster of so many hosts for the run of `seed`.
    ///
    /// # Errors
    /// When its certificates cannot be made.
    pub fn new(seed: u64, hosts: u64) -> Result<Self, IdentityError> {
        let entropy = SeededEntropy::new(random::stream(seed, "cluster", &[]));
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
            Ok(Cluster { ca, credentials, trust })
        })
    }

    /// The nodes' ids.
    pub fn ids(&self) -> BTreeMap<HostId, NodeId> {
        self.credentials.iter().map(|(host, credentials)| (*host, credentials.id())).collect()
    }

    /// Where a host listens.
    pub fn address(&self, host: HostId) -> SocketAddr {
        SocketAddr::new(address(host), PORT)
    }

    /// Starts a boot's transport, which knows everybody's address.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn transport(&self, boot: &Boot, router: Router) -> Result<Transport, TransportError> {
        let handlers = Handlers { router, ..Handlers::default() };
        let config = TransportConfig { listen: SocketAddr::from(([0, 0, 0, 0], PORT)) };
        let trust = Arc::new(RwLock::new(self.trust.clone()));
        let credentials = &self.credentials[&boot.host];
        let transport = Transport::start(&config, &boot.seams, credentials, trust, handlers)?;
        self.ids().into_iter().for_each(|(host, id)| transport.learn(id, self.address(host)));
        Ok(transport)
    }
}
