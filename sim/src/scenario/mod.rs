//! A scenario: a small script of what is done to which hosts and what must hold when. A run without drawn faults unless it
//! asks for some, under the same workload, invariants and calm as every other run.
//!
//! ```text
//! nodes 5
//! seconds 60
//! at 10s cut leader to others       # nothing it sends arrives
//! at 20s expect leader other        # somebody else leads
//! at 25s heal
//! ```
//!
//! `parse` reads it; here is what it says, and how the words for hosts become hosts.

use crate::actor::HostId;
use crate::disk::Loss;
use crate::faults::{Action, Faults};

mod parse;

pub use parse::{ScenarioError, decode, parse};

/// Hosts, by number or by what they are at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// These.
    Hosts(Vec<HostId>),
    /// Whoever leads the ledger.
    Leader,
    /// The first host that does not.
    Follower,
    /// All hosts that the rest of the line does not name.
    Others,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Nothing passes between two groups, or only from the second to the first.
    Cut {
        /// The first group.
        from: Who,
        /// The second one.
        to: Who,
        /// In both directions.
        both: bool,
    },
    /// What the first group sends to the second takes so many microseconds longer.
    Slow(Who, Who, u64),
    /// Ends cuts and slow links.
    Heal,
    /// Power cuts of so many microseconds; what was not synced is lost.
    Crash(Who, u64),
    /// The daemons end, and come back after so many microseconds.
    Kill(Who, u64),
    /// The daemons stand still.
    Pause(Who, u64),
    /// The hosts stand still with their clocks.
    StopClock(Who, u64),
    /// Wall clocks are set, off by so many microseconds.
    Wall(Who, i64),
    /// Each sync takes so many microseconds.
    SlowDisk(Who, u64),
    /// The disks have no room left.
    FillDisk(Who),
    /// So many syncs fail.
    FailSyncs(Who, u32),
    /// The disks are well again.
    Mend(Who),
    /// One machine of each ends with its supervisor.
    EndMachine(Who),
    /// So many starts of machines fail.
    FailStarts(Who, u32),
    /// The supervisors hang for so many microseconds.
    Hang(Who, u64),
    /// A bit of what was synced flips while the power is away for so many microseconds.
    Rot(Who, u64),
    /// The disks are lost with the power; empty ones come with it after so many microseconds.
    LoseDisk(Who, u64),
    /// They leave, and join again.
    Leave(Who),
}

impl Deed {
    /// Whether it speaks of the leader.
    pub fn names_leader(&self) -> bool {
        let (first, second) = match self {
            Deed::Cut { from, to, .. } | Deed::Slow(from, to, _) => (Some(from), Some(to)),
            Deed::Heal => (None, None),
            Deed::Crash(who, _)
            | Deed::Kill(who, _)
            | Deed::Pause(who, _)
            | Deed::StopClock(who, _)
            | Deed::Wall(who, _)
            | Deed::SlowDisk(who, _)
            | Deed::FillDisk(who)
            | Deed::FailSyncs(who, _)
            | Deed::Mend(who)
            | Deed::EndMachine(who)
            | Deed::FailStarts(who, _)
            | Deed::Hang(who, _)
            | Deed::Rot(who, _)
            | Deed::LoseDisk(who, _)
            | Deed::Leave(who) => (Some(who), None),
        };
        first == Some(&Who::Leader) || second == Some(&Who::Leader)
    }
}

/// What must hold at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expectation {
    /// Somebody leads; with `true`, somebody else than the leader that was spoken of last.
    Leader(bool),
    /// Clients of these hosts have had a write acknowledged lately, or with `false` have not.
    Writes(Who, bool),
    /// So many nodes vote.
    Voters(usize),
    /// These hold those alive, or with `false` do not.
    Sees(Who, Who, bool),
    /// Every machine that should run does, once.
    Machines,
}

/// Something at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It is done.
    Do(Deed),
    /// It must hold.
    Expect(Expectation),
}

/// One line of the script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// When, in microseconds.
    pub at_us: u64,
    /// As it was written.
    pub text: String,
    /// What.
    pub what: What,
}

/// A whole script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// The seed of everything that the script does not say.
    pub seed: u64,
    /// Hosts.
    pub nodes: u64,
    /// Simulated seconds.
    pub seconds: u64,
    /// Faults that are drawn besides.
    pub faults: Faults,
    /// The lines, in order of time.
    pub steps: Vec<Step>,
}

/// Who is who at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Cast<'a> {
    /// All hosts.
    pub hosts: &'a [HostId],
    /// Who leads.
    pub leader: Option<HostId>,
}

impl Cast<'_> {
    /// The hosts that are meant, beside those of `rest`.
    ///
    /// # Errors
    /// When nobody leads and the leader is meant.
    pub fn hosts(&self, who: &Who, rest: Option<&Who>) -> Result<Vec<HostId>, String> {
        match who {
            Who::Hosts(hosts) => Ok(hosts.clone()),
            Who::Leader => Ok(vec![self.leader.ok_or("nobody leads")?]),
            Who::Follower => {
                let leader = self.leader.ok_or("nobody leads")?;
                let follower = self.hosts.iter().copied().find(|host| *host != leader);
                Ok(vec![follower.ok_or("nobody follows")?])
            }
            Who::Others => {
                let named = rest.map(|rest| self.hosts(rest, None)).transpose()?.unwrap_or_default();
                Ok(self.hosts.iter().copied().filter(|host| !named.contains(host)).collect())
            }
        }
    }

    fn pairs(&self, from: &Who, to: &Who) -> Result<Vec<(HostId, HostId)>, String> {
        let (from, to) = (self.hosts(from, Some(to))?, self.hosts(to, Some(from))?);
        let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
        Ok(pairs.filter(|(from, to)| from != to).collect())
    }

    fn each(&self, who: &Who, action: impl Fn(HostId) -> Action) -> Result<Vec<Action>, String> {
        Ok(self.hosts(who, None)?.into_iter().map(action).collect())
    }

    /// The world's actions of a deed.
    ///
    /// # Errors
    /// As [`Cast::hosts`].
    pub fn actions(&self, deed: &Deed) -> Result<Vec<Action>, String> {
        match deed {
            Deed::Cut { from, to, both } => {
                let mut pairs = self.pairs(from, to)?;
                if *both {
                    pairs.extend(self.pairs(to, from)?);
                }
                Ok(vec![Action::Cut(pairs)])
            }
            Deed::Slow(from, to, extra_us) => {
                let slow = |(from, to)| Action::Slow(from, to, *extra_us);
                Ok(self.pairs(from, to)?.into_iter().map(slow).collect())
            }
            Deed::Heal => Ok(vec![Action::Heal]),
            Deed::Crash(who, length_us) => self.each(who, |host| Action::Crash(host, Loss::DropAll, *length_us)),
            Deed::Kill(who, length_us) => self.each(who, |host| Action::EndDaemon(host, *length_us)),
            Deed::Pause(who, length_us) => self.each(who, |host| Action::Pause(host, *length_us)),
            Deed::StopClock(who, length_us) => self.each(who, |host| Action::StopClock(host, *length_us)),
            Deed::Wall(who, offset_us) => self.each(who, |host| Action::SetWall(host, *offset_us)),
            Deed::SlowDisk(who, sync_us) => self.each(who, |host| Action::SlowDisk(host, *sync_us)),
            Deed::FillDisk(who) => self.each(who, |host| Action::FillDisk(host, 0, true)),
            Deed::FailSyncs(who, syncs) => self.each(who, |host| Action::FailSyncs(host, *syncs)),
            Deed::Mend(who) => self.each(who, Action::MendDisk),
            Deed::EndMachine(who) => self.each(who, |host| Action::EndMachine(host, 0)),
            Deed::FailStarts(who, starts) => self.each(who, |host| Action::FailStarts(host, *starts)),
            Deed::Hang(who, length_us) => self.each(who, |host| Action::Hang(host, *length_us, false)),
            Deed::Rot(who, length_us) => self.each(who, |host| Action::Rot(host, *length_us)),
            Deed::LoseDisk(who, length_us) => self.each(who, |host| Action::LoseDisk(host, *length_us)),
            Deed::Leave(who) => self.each(who, Action::Leave),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_hosts_become_hosts() {
        let hosts = [HostId(1), HostId(2), HostId(3)];
        let cast = Cast { hosts: &hosts, leader: Some(HostId(2)) };
        let cut = |both| Deed::Cut { from: Who::Leader, to: Who::Others, both };
        let one_way = vec![(HostId(2), HostId(1)), (HostId(2), HostId(3))];
        assert_eq!(cast.actions(&cut(false)).unwrap(), [Action::Cut(one_way)]);
        let Action::Cut(pairs) = &cast.actions(&cut(true)).unwrap()[0] else { panic!("a cut") };
        assert_eq!(pairs.len(), 4);
        let link = Deed::Cut { from: Who::Leader, to: Who::Follower, both: false };
        assert_eq!(cast.actions(&link).unwrap(), [Action::Cut(vec![(HostId(2), HostId(1))])]);
        let nobody = Cast { leader: None, ..cast };
        assert_eq!(nobody.actions(&cut(true)).unwrap_err(), "nobody leads");
        assert_eq!(nobody.hosts(&Who::Follower, None).unwrap_err(), "nobody leads");
        let alone = Cast { hosts: &hosts[..1], leader: Some(HostId(1)) };
        assert_eq!(alone.hosts(&Who::Follower, None).unwrap_err(), "nobody follows");
        assert_eq!(nobody.actions(&Deed::Pause(Who::Others, 5)).unwrap().len(), 3, "all, where nobody is named");
    }
}
