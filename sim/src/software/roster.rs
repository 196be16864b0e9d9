//! Who is who: which node each host is, whose data is gone, and the tokens that let hosts in. What people would write down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fabric::ids::NodeId;
use fabric::model::Role;
use fabric::token::JoinToken;

use crate::actor::HostId;
use crate::invariants::admissions::Admissions;

#[derive(Debug, Default)]
struct Known {
    /// Hosts that have booted.
    hosts: BTreeSet<HostId>,
    /// The node that each host is, from the moment on that it has a key.
    nodes: BTreeMap<HostId, NodeId>,
    /// Nodes whose data is gone: they never come back.
    gone: BTreeSet<NodeId>,
    /// How often each host was installed anew.
    installs: BTreeMap<HostId, u64>,
    /// The founder's token.
    first: Option<JoinToken>,
    /// Tokens for hosts that were installed anew.
    tokens: BTreeMap<HostId, JoinToken>,
    /// Hosts that wait for one.
    waiting: BTreeSet<HostId>,
    /// Hosts that are to leave.
    leaving: BTreeSet<HostId>,
    /// Hosts whose daemon is to stop, and for how long, in microseconds.
    stopping: BTreeMap<HostId, u64>,
    /// Nodes that were ever to leave: their removal may be a word that came late.
    left: BTreeSet<NodeId>,
    /// Hosts whose disk has rotted, and that have not been up for long since.
    rotten: BTreeSet<HostId>,
    admissions: Admissions,
    /// Hosts that run machines only.
    workers: BTreeSet<HostId>,
    /// What was reached how often.
    reached: BTreeMap<String, u64>,
}

/// Who is who. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<Known>>);

impl Roster {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that only luck brings about was reached.
    pub fn reached(&self, what: &str) {
        *self.known().reached.entry(what.to_owned()).or_default() += 1;
    }

    /// What was reached how often.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.known().reached.clone()
    }

    /// A host boots.
    pub fn boots(&self, host: HostId) {
        let mut known = self.known();
        known.hosts.insert(host);
        known.stopping.remove(&host);
    }

    /// A host's daemon is to stop.
    pub fn stops(&self, host: HostId, down_us: u64) {
        self.known().stopping.insert(host, down_us);
    }

    /// For how long a host's daemon is to stop, if it is.
    pub fn stopping(&self, host: HostId) -> Option<u64> {
        self.known().stopping.get(&host).copied()
    }

    /// How often a host was installed anew.
    pub fn installs(&self, host: HostId) -> u64 {
        self.known().installs.get(&host).copied().unwrap_or(0)
    }

    /// A host is this node.
    pub fn is(&self, host: HostId, node: NodeId) {
        self.known().nodes.insert(host, node);
    }

    /// The nodes that the other hosts are.
    pub fn others(&self, host: HostId) -> Vec<(HostId, NodeId)> {
        self.known().nodes.iter().filter(|(other, _)| **other != host).map(|(host, node)| (*host, *node)).collect()
    }

    /// A host's data is gone, and the node that it was with it.
    pub fn wiped(&self, host: HostId) {
        let mut known = self.known();
        let node = known.nodes.remove(&host);
        known.gone.extend(node);
        *known.installs.entry(host).or_default() += 1;
        known.tokens.remove(&host);
        known.leaving.remove(&host);
        known.rotten.remove(&host);
    }

    /// Nodes whose data is gone.
    pub fn gone(&self) -> BTreeSet<NodeId> {
        self.known().gone.clone()
    }

    /// Whether another host than this one may be without good data.
    pub fn has_others_without_data(&self, host: HostId) -> bool {
        let known = self.known();
        let missing = known.hosts.iter().any(|other| *other != host && !known.nodes.contains_key(other));
        missing || known.rotten.iter().any(|other| *other != host)
    }

    /// A host's disk has rotted.
    pub fn rotted(&self, host: HostId) {
        self.known().rotten.insert(host);
    }

    /// Whether a host's disk has rotted, and it has not been up for long since.
    pub fn is_rotten(&self, host: HostId) -> bool {
        self.known().rotten.contains(&host)
    }

    /// A host has read what is on its disk and goes on with it.
    pub fn is_well(&self, host: HostId) {
        self.known().rotten.remove(&host);
    }

    /// A host is to leave.
    pub fn leaves(&self, host: HostId) {
        let mut known = self.known();
        let Some(node) = known.nodes.get(&host).copied() else { return };
        known.leaving.insert(host);
        known.left.insert(node);
    }

    /// Whether a host is to leave.
    pub fn is_leaving(&self, host: HostId) -> bool {
        self.known().leaving.contains(&host)
    }

    /// A host stays after all.
    pub fn stays(&self, host: HostId) {
        self.known().leaving.remove(&host);
    }

    /// Whether somebody ever asked this node to leave.
    pub fn has_left(&self, node: NodeId) -> bool {
        self.known().left.contains(&node)
    }

    /// The token with which a host joins; it waits for one.
    pub fn token(&self, host: HostId) -> Option<JoinToken> {
        let mut known = self.known();
        let token = match known.installs.get(&host) {
            None => known.first.clone(),
            Some(_) => known.tokens.get(&host).cloned(),
        };
        if token.is_none() {
            known.waiting.insert(host);
        }
        token
    }

    /// Whether the founder has made its token.
    pub fn has_first(&self) -> bool {
        self.known().first.is_some()
    }

    /// The founder's token, for so many nodes.
    pub fn give_first(&self, token: JoinToken, uses: usize) {
        let mut known = self.known();
        known.admissions.made(token.id, uses);
        known.first = Some(token);
    }

    /// A host that waits for a token of its own, if there is one; it waits no more.
    pub fn next_waiting(&self) -> Option<HostId> {
        let mut known = self.known();
        let host = known.waiting.iter().copied().find(|host| known.installs.contains_key(host))?;
        known.waiting.remove(&host);
        Some(host)
    }

    /// How many other hosts than this one may vote.
    pub fn others_who_vote(&self, host: HostId) -> usize {
        let known = self.known();
        known.hosts.iter().filter(|other| **other != host && !known.workers.contains(other)).count()
    }

    /// A host is to join in this role.
    pub fn joins_as(&self, host: HostId, role: Role) {
        let mut known = self.known();
        known.workers.remove(&host);
        if role == Role::Worker {
            known.workers.insert(host);
            *known.reached.entry("worker".to_owned()).or_default() += 1;
        }
    }

    /// A token for one node.
    pub fn give(&self, host: HostId, token: JoinToken) {
        let mut known = self.known();
        known.admissions.made(token.id, 1);
        known.tokens.insert(host, token);
    }

    /// A token has admitted a node; what does not hold.
    pub fn admitted(&self, token: &JoinToken, node: NodeId) -> Option<String> {
        self.known().admissions.admitted(token.id, node)
    }

    /// A token that is used up.
    pub fn used_up(&self) -> Option<JoinToken> {
        let known = self.known();
        let used: BTreeSet<_> = known.admissions.used_up().collect();
        known.first.iter().chain(known.tokens.values()).find(|token| used.contains(&token.id)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use fabric::ids::{Digest, TokenId};

    use super::*;

    #[test]
    fn a_host_that_was_wiped_is_nobody_until_it_has_a_token_of_its_own() {
        let (roster, host, other) = (Roster::default(), HostId(2), HostId(1));
        let token = |n| JoinToken { id: TokenId([n; 8]), secret: [n; 16], ca: Digest::default() };
        [host, other].into_iter().for_each(|host| roster.boots(host));
        roster.give_first(token(1), 1);
        assert_eq!(roster.token(host).map(|token| token.id), Some(TokenId([1; 8])));
        roster.is(host, NodeId([2; 32]));
        roster.is(other, NodeId([1; 32]));
        assert!(!roster.has_others_without_data(other));
        roster.leaves(host);
        roster.wiped(host);
        assert!(roster.has_others_without_data(other) && !roster.is_leaving(host) && roster.has_left(NodeId([2; 32])));
        assert_eq!(roster.gone(), BTreeSet::from([NodeId([2; 32])]));
        assert_eq!(
            (roster.token(host).is_none(), roster.next_waiting(), roster.next_waiting()),
            (true, Some(host), None)
        );
        roster.give(host, token(2));
        assert_eq!(roster.admitted(&token(2), NodeId([3; 32])), None);
        assert_eq!(roster.used_up().map(|token| token.id), Some(TokenId([2; 8])));
    }
}
