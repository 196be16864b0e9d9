//! Who votes: chosen by the leader among voter-role nodes, without an operator (after Consul's autopilot, dqlite's roles
//! and CockroachDB).
//!
//! Pure: [`plan`] names the next single change, or none. It looks only at what it is given, so the driver calls it again
//! after every change and on a timer. Incumbents stay as long as they can: each change costs a configuration entry and a
//! catch-up. Sets are odd, since an even one tolerates no more and stalls sooner.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fabric::ids::NodeId;
use fabric::model::Role;

use crate::limits::VOTER_SILENCE;

/// What is known of an admitted node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub id: NodeId,
    /// Only [`Role::Voter`] may vote or stand by.
    pub role: Role,
    /// Failure domain; empty when unknown.
    pub zone: String,
    /// Membership says that it is alive.
    pub alive: bool,
    /// How long ago it acknowledged something of Raft; none when it never did in this term.
    pub silent_for: Option<Duration>,
    /// It has (nearly) all of the log: it may be made a voter or leader.
    pub caught_up: bool,
    /// It is about to be removed: another one takes its seat, and until then it counts.
    pub leaving: bool,
    /// When it was admitted, Unix milliseconds.
    pub admitted_ms: u64,
}

/// The effective membership, which is also the committed one: nothing is planned while a change is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// The node that plans.
    pub leader: NodeId,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who follows without a vote.
    pub learners: BTreeSet<NodeId>,
}

/// How eager the planner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// A voter that is down and silent this long is replaced.
    pub silence: Duration,
    /// Learners kept ready to replace a voter.
    pub standbys: usize,
    /// Most voters.
    pub voters_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { silence: VOTER_SILENCE, standbys: 2, voters_max: 5 }
    }
}

/// One change of membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Let a node follow.
    AddLearner(NodeId),
    /// Let a node follow no more.
    RemoveLearner(NodeId),
    /// Make exactly these the voters, in one joint change. All of them are voters or caught-up learners.
    ReplaceVoters(BTreeSet<NodeId>),
    /// Let this voter lead, since the leader is to be demoted.
    TransferLeadership(NodeId),
}

/// How many of `nodes` voter-role nodes vote.
pub fn target(nodes: usize, config: &Config) -> usize {
    let target = match nodes {
        0..=2 => 1,
        3..=6 => 3,
        _ => 5,
    };
    target.min(config.voters_max)
}

/// The next change, if one is due.
pub fn plan(membership: &Membership, nodes: &[Candidate], config: &Config) -> Option<Change> {
    let planner = Planner::new(membership, nodes, config);
    if !planner.quorum(&membership.voters) {
        return None;
    }
    let desired = planner.desired();
    // Standbys wait until the voters are settled, or a replacement that catches up would be sent away as surplus.
    if desired == membership.voters || desired.is_empty() { planner.standbys() } else { planner.voters(desired) }
}

struct Planner<'a> {
    membership: &'a Membership,
    /// Those that may vote at all.
    nodes: BTreeMap<NodeId, &'a Candidate>,
    config: &'a Config,
}

impl<'a> Planner<'a> {
    fn new(membership: &'a Membership, nodes: &'a [Candidate], config: &'a Config) -> Self {
        let nodes = nodes.iter().filter(|node| node.role == Role::Voter).map(|node| (node.id, node)).collect();
        Planner { membership, nodes, config }
    }

    fn alive(&self, id: NodeId) -> bool {
        id == self.membership.leader || self.nodes.get(&id).is_some_and(|node| node.alive)
    }

    /// Removed from the cluster, or no voter-role node.
    fn gone(&self, id: NodeId) -> bool {
        !self.nodes.contains_key(&id)
    }

    /// Down, and silent for long enough that it is not a hiccup.
    fn lost(&self, id: NodeId) -> bool {
        let silent = |node: &&Candidate| node.silent_for.is_none_or(|silent| silent >= self.config.silence);
        !self.alive(id) && self.nodes.get(&id).is_some_and(silent)
    }

    fn leaving(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.leaving)
    }

    fn caught_up(&self, id: NodeId) -> bool {
        id == self.membership.leader || self.nodes.get(&id).is_some_and(|node| node.caught_up)
    }

    fn quorum(&self, voters: &BTreeSet<NodeId>) -> bool {
        let alive = voters.iter().filter(|id| self.alive(**id)).count();
        alive * 2 > voters.len()
    }

    /// How many of `chosen` share the node's zone. Nodes without a zone each count as their own.
    fn crowding(&self, id: NodeId, chosen: &BTreeSet<NodeId>) -> usize {
        let zone = |id: &NodeId| self.nodes.get(id).map(|node| node.zone.as_str()).filter(|zone| !zone.is_empty());
        zone(&id).map_or(0, |mine| chosen.iter().filter(|other| **other != id && zone(other) == Some(mine)).count())
    }

    /// The best of `pool` to add to `chosen`: least crowded zone, ready, longest admitted, least id.
    fn best(&self, pool: impl Iterator<Item = NodeId>, chosen: &BTreeSet<NodeId>) -> Option<NodeId> {
        pool.min_by_key(|id| {
            let learner = self.membership.learners.contains(id);
            let admitted = self.nodes.get(id).map_or(0, |node| node.admitted_ms);
            (self.crowding(*id, chosen), !learner, admitted, *id)
        })
    }

    /// The one of `chosen` to do without first: never the leader, rather a lost, dead, crowded or young one.
    fn worst(&self, chosen: &BTreeSet<NodeId>) -> Option<NodeId> {
        chosen.iter().copied().filter(|id| *id != self.membership.leader).max_by_key(|id| {
            let outsider = !self.membership.voters.contains(id);
            let admitted = self.nodes.get(id).map_or(0, |node| node.admitted_ms);
            (self.lost(*id), !self.alive(*id), outsider, self.crowding(*id, chosen), admitted, *id)
        })
    }

    /// The voters that the cluster should have now.
    fn desired(&self) -> BTreeSet<NodeId> {
        let want = target(self.nodes.keys().filter(|id| !self.leaving(**id)).count(), self.config);
        let stays = |id: &NodeId| !self.gone(*id) && !self.lost(*id) && !self.leaving(*id);
        let mut chosen: BTreeSet<NodeId> = self.membership.voters.iter().copied().filter(stays).collect();
        while chosen.len() > want {
            let Some(surplus) = self.worst(&chosen) else { break };
            chosen.remove(&surplus);
        }
        while chosen.len() < want {
            let fit = |id: &NodeId| !chosen.contains(id) && self.alive(*id) && !self.leaving(*id);
            let pool = self.nodes.keys().copied().filter(fit);
            let Some(next) = self.best(pool, &chosen) else { break };
            chosen.insert(next);
        }
        // Nobody can replace a lost voter: it keeps its seat, since it may come back.
        while chosen.len() < want {
            let seated = |id: &NodeId| self.lost(*id) && !self.leaving(*id) && !chosen.contains(id);
            let lost = self.membership.voters.iter().copied().find(seated);
            let Some(next) = lost else { break };
            chosen.insert(next);
        }
        if chosen.len() > 1
            && chosen.len().is_multiple_of(2)
            && let Some(odd) = self.worst(&chosen)
        {
            chosen.remove(&odd);
        }
        chosen
    }

    /// The next step from the voters that there are to `next`.
    fn voters(&self, mut next: BTreeSet<NodeId>) -> Option<Change> {
        let Membership { leader, voters, learners } = self.membership;
        let outsider = next.iter().find(|id| !voters.contains(id) && !learners.contains(id));
        let catching_up = next.iter().any(|id| !voters.contains(id) && !self.caught_up(*id));
        if outsider.is_some() || catching_up {
            // A removed voter does not wait for its replacement: it is cut off and only weakens the quorum.
            let without: BTreeSet<NodeId> = voters.iter().copied().filter(|id| !self.gone(*id)).collect();
            if without == *voters || without.is_empty() || !self.quorum(&without) {
                return outsider.map(|id| Change::AddLearner(*id));
            }
            next = without;
        }
        if !next.contains(leader) {
            let heirs = next.iter().copied().filter(|id| voters.contains(id) && self.alive(*id) && self.caught_up(*id));
            match self.best(heirs, &BTreeSet::new()) {
                Some(heir) => return Some(Change::TransferLeadership(heir)),
                // Its heirs have to become voters first.
                None => drop(next.insert(*leader)),
            }
        }
        (next != *voters && self.quorum(&next)).then_some(Change::ReplaceVoters(next))
    }

    fn standbys(&self) -> Option<Change> {
        let Membership { voters, learners, .. } = self.membership;
        if let Some(unfit) = learners.iter().find(|id| self.gone(**id) || self.lost(**id)) {
            return Some(Change::RemoveLearner(*unfit));
        }
        if learners.len() > self.config.standbys {
            let surplus = learners.iter().copied().max_by_key(|id| {
                let admitted = self.nodes.get(id).map_or(0, |node| node.admitted_ms);
                (!self.alive(*id), !self.caught_up(*id), admitted, *id)
            });
            return surplus.map(Change::RemoveLearner);
        }
        if learners.len() == self.config.standbys {
            return None;
        }
        let members: BTreeSet<NodeId> = voters.union(learners).copied().collect();
        let fit = |id: &NodeId| !members.contains(id) && self.alive(*id) && !self.leaving(*id);
        self.best(self.nodes.keys().copied().filter(fit), &members).map(Change::AddLearner)
    }
}

/// How many voters may fail before writes stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tolerance {
    /// Voters that may fail now; none when writes have stopped already.
    pub failures: Option<usize>,
    /// The same for people: `losing n1 stops writes: add a third node`.
    pub words: String,
}

/// The fault tolerance of voters `(name, alive)` in a cluster of `nodes` voter-role nodes.
pub fn tolerance(voters: &[(String, bool)], nodes: usize) -> Tolerance {
    if voters.is_empty() {
        let words = "this node does not know yet which nodes are its cluster's voters".into();
        return Tolerance { failures: None, words };
    }
    let majority = voters.len() / 2 + 1;
    let (up, down): (Vec<_>, Vec<_>) = voters.iter().partition(|(_, alive)| *alive);
    let names = |list: &[&(String, bool)], last: &str| {
        let names: Vec<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
        match names.split_last() {
            Some((end, [])) => (*end).to_owned(),
            Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
            None => "nobody".into(),
        }
    };
    let Some(failures) = up.len().checked_sub(majority) else {
        let (have, all) = (up.len(), voters.len());
        let missing = names(&down, "or");
        return Tolerance {
            failures: None,
            words: format!(
                "writes have stopped: {have} of {all} voters are alive, {majority} are needed: bring {missing} back"
            ),
        };
    };
    let words = match failures {
        0 => {
            let advice = match (down.is_empty(), nodes) {
                (false, _) => format!("bring {} back", names(&down, "and")),
                (true, 0..=1) => "add two nodes".into(),
                (true, 2) => "add a third node".into(),
                (true, _) => "more voters are on their way".into(),
            };
            format!("losing {} stops writes: {advice}", names(&up, "or"))
        }
        1 => format!("any one of {} may fail", names(&up, "and")),
        n => format!("any {n} of {} may fail", names(&up, "and")),
    };
    Tolerance { failures: Some(failures), words }
}

#[cfg(test)]
mod tests;
