//! I6: a move, whatever ends in the middle of it, leaves the machine with exactly one owner and its acknowledged state.
//!
//! Source: design sections 8 and 14. A machine that runs writes all the time, so what its disk held when it last ran is
//! acknowledged. In the next epoch it runs on that disk, with all of it, unless it was taken over, which loses what its dead
//! owner wrote; and once it runs where it was moved to, it runs nowhere in the epoch that it was moved away from. A disk that
//! its owner has told the ledger of is not given up for a new one while that owner lives. And a copy is destroyed only when
//! the machine is deleted, or was moved away from just this copy and has arrived; all others are kept aside. Copies in older epochs are of no
//! interest otherwise: a partition leaves them running where the machine is not exclusive (I1 is for those that are).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use fabric::ids::MachineId;
use fabric::model::Placement;

use crate::actor::HostId;
use crate::invariants::takeovers::Takeover;
use crate::kernel::{Content, Running};

/// What is known of a machine's last owner.
#[derive(Debug, Clone, Copy)]
struct Seen {
    host: HostId,
    epoch: u64,
    disk: Content,
    /// The epoch that it was moved away from, if it came by a move.
    left: Option<u64>,
}

/// What the ledger tells of a machine's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The owner in this epoch has it.
    Confirmed(MachineId, u64),
    /// A move has ended this epoch.
    Left(MachineId, u64),
}

/// A copy of a machine that is gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destroyed {
    /// Where.
    pub host: HostId,
    /// Of which machine.
    pub machine: MachineId,
    /// The epoch that it was last started or prepared in.
    pub epoch: u64,
}

/// What every machine's disk has held.
#[derive(Debug, Default)]
pub struct Moved {
    seen: BTreeMap<MachineId, Seen>,
    /// Epochs that a takeover began: what the former owner wrote may be lost.
    taken: BTreeSet<(MachineId, u64)>,
    /// Epochs whose owner has told that it has the disk.
    confirmed: BTreeSet<(MachineId, u64)>,
    /// Epochs in which a machine has run, or into which a move has brought what it had written before.
    written: BTreeSet<(MachineId, u64)>,
    /// Epochs that a move has ended.
    left: BTreeSet<(MachineId, u64)>,
    /// Machines that were seen to run on the disk that a move had brought.
    arrived: u64,
}

impl Moved {
    /// A takeover was applied.
    pub fn taken_over(&mut self, takeover: Takeover) {
        self.taken.insert((takeover.machine, takeover.epoch));
    }

    /// What the ledger tells.
    pub fn told(&mut self, told: Told) {
        match told {
            Told::Confirmed(machine, epoch) => self.confirmed.insert((machine, epoch)),
            Told::Left(machine, epoch) => {
                if self.written.contains(&(machine, epoch)) {
                    self.written.insert((machine, epoch + 1));
                }
                self.left.insert((machine, epoch))
            }
        };
    }

    /// A copy was destroyed of a machine that may have been deleted, or not; what does not hold.
    pub fn destroyed(&self, copy: &Destroyed, may_be_deleted: bool) -> Option<String> {
        let Destroyed { host, machine, epoch } = *copy;
        let arrived = self.confirmed.range((machine, epoch + 1)..=(machine, u64::MAX)).next().is_some();
        let good = may_be_deleted || (arrived && self.left.contains(&(machine, epoch)));
        (!good).then(|| {
            format!("I6: {host} has destroyed its copy of machine {machine:?} (epoch {epoch}), which has neither arrived elsewhere nor was deleted")
        })
    }

    /// What does not hold of what runs now. `placement` tells where a host's ledger has a machine.
    pub fn check(
        &mut self,
        running: &[(HostId, Running)],
        placement: impl Fn(HostId, MachineId) -> Option<Placement>,
    ) -> Option<String> {
        running.iter().find_map(|(host, machine)| self.one(*host, machine, &placement))
    }

    fn one(
        &mut self,
        host: HostId,
        machine: &Running,
        placement: &impl Fn(HostId, MachineId) -> Option<Placement>,
    ) -> Option<String> {
        let Running { id, epoch, disk, .. } = *machine;
        self.written.insert((id, epoch));
        let fresh = Seen { host, epoch, disk, left: None };
        let before = self.seen.get(&id).copied().unwrap_or(fresh);
        if epoch < before.epoch {
            let Seen { host: new, epoch: now, left, .. } = before;
            return (left == Some(epoch)).then(|| {
                format!(
                    "I6: machine {id:?} runs on {host} in epoch {epoch}, from which it was moved to {new} (epoch {now})"
                )
            });
        }
        let taken = (before.epoch + 1..=epoch).any(|epoch| self.taken.contains(&(id, epoch)));
        let come = || placement(host, id).filter(|at| at.epoch == epoch && !at.fresh && !taken);
        let left = if epoch == before.epoch { before.left } else { come().and_then(|at| Some(at.previous?.epoch)) };
        self.seen.insert(id, Seen { left, ..fresh });
        if epoch > before.epoch && left.is_some() {
            self.arrived += 1;
            if disk.born == epoch {
                return Some(format!(
                    "I6: machine {id:?} was moved to {host} (epoch {epoch}) and runs on an empty disk"
                ));
            }
        }
        let (old, then) = (before.host, before.epoch);
        match disk.born.cmp(&before.disk.born) {
            Ordering::Greater => self
                .given_up(id, disk.born, before.epoch)
                .map(|had| format!("I6: machine {id:?} had a disk in epoch {had}, and runs on {host} on an empty one")),
            Ordering::Less => {
                let (born, newer) = (disk.born, before.disk.born);
                Some(format!(
                    "I6: machine {id:?} runs on {host} on a disk of epoch {born}; it had one of epoch {newer}"
                ))
            }
            Ordering::Equal => {
                let lost = before.disk.writes.saturating_sub(disk.writes);
                (lost > 0 && !taken).then(|| {
                    format!("I6: machine {id:?} runs on {host} in epoch {epoch} without {lost} writes of {old} in epoch {then}")
                })
            }
        }
    }

    /// The newest epoch since `since` whose disk the one of `born` replaced, though nobody was taken over from. An owner that
    /// was never told to start a machine has an empty one, whatever it says.
    fn given_up(&self, id: MachineId, born: u64, since: u64) -> Option<u64> {
        let had = |at: &&(MachineId, u64)| self.written.contains(at);
        let (_, had) = *self.confirmed.range((id, since)..(id, born)).rev().find(had)?;
        let taken = self.taken.range((id, had + 1)..=(id, born)).next().is_some();
        (!taken).then_some(had)
    }

    /// How many machines were seen to run on after a move.
    pub fn arrived(&self) -> u64 {
        self.arrived
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::ids::NodeId;
    use fabric::model::PreviousV1;

    fn on(host: u64, epoch: u64, born: u64, writes: u64) -> (HostId, Running) {
        let disk = Content { born, writes };
        (HostId(host), Running { id: MachineId([1; 16]), epoch, exclusive: false, disk })
    }

    /// The end of a move away from epoch `left`, or of a takeover.
    fn came(left: u64, fresh: bool) -> Option<Placement> {
        let node = NodeId([1; 32]);
        let previous = Some(PreviousV1 { node, epoch: left });
        Some(Placement { node, epoch: left + 1, since_ms: 0, confirmed: false, fresh, previous, moving: None })
    }

    fn check(moved: &mut Moved, running: &[(HostId, Running)]) -> Option<String> {
        moved.check(running, |_, _| None)
    }

    #[test]
    fn a_moved_machine_goes_on_and_a_lost_write_is_named() {
        let mut moved = Moved::default();
        assert_eq!(check(&mut moved, &[on(1, 1, 1, 10)]), None);
        assert_eq!(moved.check(&[on(2, 2, 1, 10)], |_, _| came(1, false)), None);
        assert_eq!(moved.arrived(), 1);
        assert_eq!(check(&mut moved, &[on(2, 2, 1, 11)]), None);
        let found = check(&mut moved, &[on(1, 3, 1, 10)]).unwrap();
        assert!(found.contains("runs on h1 in epoch 3 without 1 writes of h2 in epoch 2"), "{found}");
    }

    #[test]
    fn an_empty_disk_is_right_after_a_takeover_only() {
        let judged = |fresh| {
            let mut moved = Moved::default();
            check(&mut moved, &[on(1, 1, 1, 10)]);
            moved.check(&[on(2, 2, 2, 1)], |_, _| came(1, fresh))
        };
        assert_eq!(judged(true), None);
        assert!(judged(false).unwrap().contains("runs on an empty disk"));
    }

    #[test]
    fn what_was_written_where_a_move_was_not_settled_dies_with_that_node() {
        let mut moved = Moved::default();
        check(&mut moved, &[on(1, 1, 1, 10)]);
        moved.check(&[on(2, 2, 1, 15)], |_, _| came(1, false));
        moved.taken_over(Takeover { machine: MachineId([1; 16]), epoch: 3 });
        assert_eq!(moved.check(&[on(1, 3, 1, 11), on(2, 2, 1, 16)], |_, _| came(2, false)), None);
        assert!(check(&mut moved, &[on(1, 3, 1, 10)]).is_some());
    }

    #[test]
    fn a_disk_that_was_told_of_is_not_given_up_while_its_owner_lives() {
        let judged = |came: bool, confirmed: Option<u64>, taken: bool| {
            let mut moved = Moved::default();
            check(&mut moved, &[on(1, 1, 1, 10)]);
            if came {
                moved.told(Told::Left(MachineId([1; 16]), 1));
            }
            confirmed.into_iter().for_each(|epoch| moved.told(Told::Confirmed(MachineId([1; 16]), epoch)));
            if taken {
                moved.taken_over(Takeover { machine: MachineId([1; 16]), epoch: 3 });
            }
            check(&mut moved, &[on(3, 3, 3, 1)])
        };
        let moved = judged(true, Some(2), false).unwrap();
        assert!(moved.contains("had a disk in epoch 2, and runs on h3 on an empty one"), "{moved}");
        assert!(judged(false, Some(1), false).is_some(), "in which it was seen to run");
        assert_eq!(judged(true, None, false), None, "it failed before anybody was told");
        assert_eq!(judged(true, Some(2), true), None, "its owner died");
        assert_eq!(judged(false, Some(2), false), None, "what has never run there has nothing to lose");
    }

    #[test]
    fn whoever_gave_a_machine_away_must_not_run_it_again() {
        let mut moved = Moved::default();
        check(&mut moved, &[on(1, 1, 1, 10)]);
        moved.check(&[on(2, 2, 1, 10)], |_, _| came(1, false));
        let found = check(&mut moved, &[on(2, 2, 1, 11), on(1, 1, 1, 11)]).unwrap();
        assert!(found.contains("runs on h1 in epoch 1, from which it was moved to h2 (epoch 2)"), "{found}");
    }

    #[test]
    fn an_older_copy_runs_unheeded_and_never_again_as_the_newest() {
        let mut moved = Moved::default();
        check(&mut moved, &[on(1, 1, 1, 10)]);
        assert_eq!(check(&mut moved, &[on(1, 1, 1, 11), on(2, 2, 2, 1)]), None, "a takeover in a partition");
        assert_eq!(check(&mut moved, &[on(1, 1, 1, 12), on(2, 2, 2, 2)]), None);
        assert!(check(&mut moved, &[on(1, 3, 1, 12)]).unwrap().contains("on a disk of epoch 1; it had one of epoch 2"));
    }

    #[test]
    fn a_copy_goes_only_when_its_machine_has_arrived_elsewhere_or_is_deleted() {
        let (mut moved, machine) = (Moved::default(), MachineId([1; 16]));
        let copy = Destroyed { host: HostId(1), machine, epoch: 2 };
        assert!(moved.destroyed(&copy, false).unwrap().contains("h1 has destroyed its copy"));
        assert_eq!(moved.destroyed(&copy, true), None);
        moved.told(Told::Left(machine, 2));
        assert!(moved.destroyed(&copy, false).is_some(), "it is on its way");
        moved.told(Told::Confirmed(machine, 3));
        assert_eq!(moved.destroyed(&copy, false), None);
        assert!(moved.destroyed(&Destroyed { epoch: 1, ..copy }, false).is_some(), "an older one");
    }
}
