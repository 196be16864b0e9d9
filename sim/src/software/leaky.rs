//! Software that breaks replay on purpose, so that a test sees the simulator refuse it.
#![expect(clippy::disallowed_methods, reason = "this is what must not be done")]

use std::collections::BTreeMap;

use fabric::rpc::BoxFuture;

use crate::actor::{Boot, HostId, Software};

/// What is reached for behind the seams.
#[derive(Debug, Clone, Copy)]
pub enum Leak {
    /// The host's wall clock.
    WallClock,
    /// A thread.
    Thread,
    /// A socket of the host.
    Socket,
    /// A file of the host.
    File,
}

impl Software for Leak {
    fn boot(&self, _: Boot) -> BoxFuture<()> {
        let this = *self;
        Box::pin(async move {
            match this {
                Leak::WallClock => drop(std::time::SystemTime::now()),
                Leak::Thread => drop(std::thread::spawn(|| {})),
                Leak::Socket => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
                Leak::File => drop(std::fs::read("/dev/null")),
            }
        })
    }

    fn ended(&self, _: HostId) {}

    fn verdict(&self, _: &[HostId]) -> Vec<String> {
        vec!["nobody stopped the leak".to_owned()]
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}
