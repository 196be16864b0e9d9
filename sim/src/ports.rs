//! Published ports of simulated hosts: nothing listens, but no two machines of a host have one at a time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fabric::ids::MachineId;
use netvirt::proxy::{ProxyConfig, ProxyError};
use smartnode::reconcile::publish::{Open, Ports};

type Taken = Arc<Mutex<BTreeSet<SocketAddr>>>;

fn lock(taken: &Taken) -> MutexGuard<'_, BTreeSet<SocketAddr>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ports that one daemon has opened: they close with it.
#[derive(Debug, Default)]
pub struct FakePorts(Taken);

struct Port {
    taken: Taken,
    listen: SocketAddr,
}

impl Drop for Port {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.listen);
    }
}

impl Ports for FakePorts {
    fn open(&self, _: MachineId, config: ProxyConfig) -> Result<Open, ProxyError> {
        let listen = config.listen;
        match lock(&self.0).insert(listen) {
            true => Ok(Box::new(Port { taken: self.0.clone(), listen })),
            false => Err(ProxyError::InUse(listen)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_opened_once_at_a_time() {
        let ports = FakePorts::default();
        let config = ProxyConfig { listen: "[::]:8000".parse().unwrap(), port: 80 };
        let machine = MachineId([1; 16]);
        let first = ports.open(machine, config).unwrap();
        assert!(matches!(ports.open(machine, config), Err(ProxyError::InUse(_))));
        drop(first);
        assert!(ports.open(machine, config).is_ok());
    }
}
