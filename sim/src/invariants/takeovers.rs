//! I7: no takeover of an exclusive machine commits while its owner's lease may still be valid.
//!
//! Source: design sections 7 and 14. Stricter than I1: it demands that the owner's own supervisor sees its deadline
//! passed, on its own clock, at the moment the takeover is first applied anywhere, whether or not the machine has been
//! started elsewhere. A host whose clock stood still is the documented limit and left out by the caller.

use fabric::ids::MachineId;

use crate::actor::HostId;

/// A takeover that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takeover {
    /// Of which machine.
    pub machine: MachineId,
    /// The epoch that it began.
    pub epoch: u64,
}

/// What does not hold: `held` are the epochs in which hosts have the machine up under a deadline that has not passed.
pub fn check(takeover: Takeover, held: impl IntoIterator<Item = (HostId, u64)>) -> Option<String> {
    let Takeover { machine, epoch } = takeover;
    let (host, old) = held.into_iter().find(|(_, held)| *held < epoch)?;
    Some(format!("I7: machine {machine:?} was taken over into epoch {epoch} while {host} held a lease in epoch {old}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_older_epoch_under_a_lease_is_a_violation() {
        let takeover = Takeover { machine: MachineId([1; 16]), epoch: 3 };
        assert_eq!(check(takeover, []), None);
        assert_eq!(check(takeover, [(HostId(2), 3)]), None, "the new owner");
        assert!(
            check(takeover, [(HostId(2), 3), (HostId(1), 2)]).unwrap().contains("while h1 held a lease in epoch 2")
        );
    }
}
