//! I1: an exclusive machine is running unfrozen on at most one node, at any moment of world time.
//!
//! Source: design sections 7 and 14. A host whose clock stopped altogether (a paused virtual one) is the documented limit
//! of leases, and is left out by the caller for as long as such a lease could reach.

use std::collections::BTreeMap;

use crate::actor::HostId;
use crate::kernel::Running;

/// The first violation among what runs now, in words.
pub fn check(running: impl IntoIterator<Item = (HostId, Running)>) -> Option<String> {
    let mut owners = BTreeMap::new();
    for (host, machine) in running.into_iter().filter(|(_, machine)| machine.exclusive) {
        if let Some((other, epoch)) = owners.insert(machine.id, (host, machine.epoch)) {
            let (id, second) = (machine.id, machine.epoch);
            return Some(format!(
                "I1: exclusive machine {id:?} runs on {other} (epoch {epoch}) and on {host} (epoch {second})"
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Content;
    use fabric::ids::MachineId;

    #[test]
    fn two_owners_are_a_violation_only_of_an_exclusive_machine() {
        let disk = Content { born: 1, writes: 0 };
        let on = |host, machine, exclusive| {
            (HostId(host), Running { id: MachineId([machine; 16]), epoch: host, exclusive, disk })
        };
        assert_eq!(check([on(1, 1, true), on(2, 2, true), on(1, 3, false), on(2, 3, false)]), None);
        let found = check([on(1, 1, true), on(2, 1, true)]).unwrap();
        assert!(found.contains("runs on h1 (epoch 1) and on h2 (epoch 2)"), "{found}");
    }
}
