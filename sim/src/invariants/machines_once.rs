//! I9, for machines: after the faults every machine that should run does, exactly once and in the epoch that the ledger
//! names, and nothing else runs.
//!
//! Source: design sections 6 and 14.

use std::collections::BTreeMap;

use fabric::ids::MachineId;

use crate::actor::HostId;
use crate::kernel::Running;

/// What does not hold, in words: `wanted` by the ledger, with host and epoch of each placement, against what runs.
pub fn check(wanted: &BTreeMap<MachineId, Option<(HostId, u64)>>, running: &[(HostId, Running)]) -> Vec<String> {
    let mut failed = Vec::new();
    for (id, place) in wanted {
        let Some((host, epoch)) = place else {
            failed.push(format!("I9: machine {id:?} should run and has no owner"));
            continue;
        };
        if !running.iter().any(|(at, machine)| (at, machine.id, machine.epoch) == (host, *id, *epoch)) {
            failed.push(format!("I9: machine {id:?} should run on {host} in epoch {epoch} and does not"));
        }
    }
    for (at, machine) in running {
        let place = wanted.get(&machine.id).copied().flatten();
        if place != Some((*at, machine.epoch)) {
            let (id, epoch) = (machine.id, machine.epoch);
            failed.push(format!("I9: machine {id:?} runs on {at} in epoch {epoch}; the ledger names {place:?}"));
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Content;

    #[test]
    fn what_is_missing_and_what_is_too_much_is_named() {
        let id = |n| MachineId([n; 16]);
        let on = |host, n, epoch| {
            (HostId(host), Running { id: id(n), epoch, exclusive: false, disk: Content { born: epoch, writes: 0 } })
        };
        let wanted = BTreeMap::from([(id(1), Some((HostId(1), 4))), (id(2), Some((HostId(2), 1))), (id(3), None)]);
        assert_eq!(check(&BTreeMap::from([(id(1), Some((HostId(1), 4)))]), &[on(1, 1, 4)]), Vec::<String>::new());
        let found = check(&wanted, &[on(1, 1, 3), on(2, 2, 1), on(3, 2, 1)]);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].contains("should run on h1 in epoch 4"), "{found:?}");
        assert!(found[1].contains("has no owner"), "{found:?}");
        assert!(found[2].contains("runs on h1 in epoch 3"), "{found:?}");
        assert!(found[3].contains("runs on h3"), "{found:?}");
    }
}
