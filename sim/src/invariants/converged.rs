//! I9, for the fabric: after the faults everybody sees everybody and nobody else, has heard of everybody, all agree who votes,
//! and as many do as should.
//!
//! Source: design sections 3, 4 and 14. (That machines run once is `machines_once`, that states agree `same_state`.)

use std::collections::{BTreeMap, BTreeSet};

use fabric::ids::NodeId;
use fabric::model::Role;
use raft_store::voters;

use crate::actor::HostId;

/// What one host knows of the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Its node.
    pub node: NodeId,
    /// Whom its membership holds alive.
    pub alive: BTreeSet<NodeId>,
    /// Whose state its gossip has.
    pub heard: BTreeSet<NodeId>,
    /// Who votes, as its ledger has it.
    pub voters: BTreeSet<NodeId>,
    /// Who is in the cluster, as its ledger has it, and as what; none where only a part of the ledger is.
    pub nodes: Option<BTreeMap<NodeId, Role>>,
}

fn short(nodes: impl IntoIterator<Item = NodeId>) -> Vec<String> {
    nodes.into_iter().map(|node| node.short()).collect()
}

/// What does not hold of the hosts that are up.
pub fn check(views: &BTreeMap<HostId, View>) -> Vec<String> {
    let mut failed = Vec::new();
    let hosts: BTreeSet<NodeId> = views.values().map(|view| view.node).collect();
    let reference = views.values().next().map(|view| &view.voters);
    for (host, view) in views {
        let View { node, alive, heard, voters, nodes } = view;
        let nobody = |known: &BTreeSet<NodeId>| short(known.difference(&hosts).copied());
        let missing = |known: &BTreeSet<NodeId>| short(hosts.difference(known).copied().filter(|other| other != node));
        let listed = nodes.as_ref().map(|nodes| nodes.keys().copied().collect::<BTreeSet<_>>());
        let known = [("ledger", listed.as_ref()), ("membership", Some(alive)), ("gossip", Some(heard))];
        for (what, known) in known.into_iter().filter_map(|(what, known)| Some((what, known?))) {
            // What a node said last may be known for a while after it was removed, to whoever has not heard of that yet.
            let strangers = if what == "gossip" { Vec::new() } else { nobody(known) };
            let missing = missing(known);
            if !strangers.is_empty() || !missing.is_empty() {
                failed.push(format!(
                    "I9: the {what} of {host} has {strangers:?}, who are no hosts, and lacks {missing:?}"
                ));
            }
        }
        let may = nodes.as_ref().map(|nodes| nodes.values().filter(|role| **role == Role::Voter).count());
        let target = may.map_or(voters.len(), |may| voters::target(may, &voters::Config::default()));
        if voters.len() != target || !voters.is_subset(&hosts) || Some(voters) != reference {
            let voters = short(voters.iter().copied());
            failed.push(format!("I9: {voters:?} vote as {host} has it, {target} of the hosts should"));
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(n: u8, alive: &[u8], voters: &[u8]) -> View {
        let node = |n| NodeId([n; 32]);
        let set = |of: &[u8]| of.iter().map(|n| node(*n)).collect::<BTreeSet<_>>();
        let nodes = Some([1, 2].map(|n| (node(n), Role::Voter)).into());
        View { node: node(n), alive: set(alive), heard: set(&[1, 2]), voters: set(voters), nodes }
    }

    #[test]
    fn who_is_not_seen_or_not_there_and_who_does_not_vote_is_told() {
        let views = |one, two| BTreeMap::from([(HostId(1), one), (HostId(2), two)]);
        let good = views(view(1, &[2], &[1]), view(2, &[1, 2], &[1]));
        assert_eq!(check(&good), Vec::<String>::new());
        let found = check(&views(view(1, &[], &[1]), view(2, &[1], &[1, 2])));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("the membership of h1") && found[0].contains("lacks [\"0202"), "{found:?}");
        assert!(found[1].contains("vote as h2 has it, 1 of the hosts should"), "{found:?}");
        assert_eq!(check(&views(view(1, &[2], &[1]), view(2, &[1], &[2]))).len(), 1, "they do not agree");
        assert_eq!(check(&views(view(1, &[2], &[7]), view(2, &[1], &[7]))).len(), 2, "a node that is gone votes");
        let mut strange = good.clone();
        strange.get_mut(&HostId(2)).unwrap().nodes.as_mut().unwrap().insert(NodeId([7; 32]), Role::Worker);
        strange.get_mut(&HostId(1)).unwrap().heard.remove(&NodeId([2; 32]));
        let found = check(&strange);
        assert!(
            found[0].contains("the gossip of h1") && found[1].contains("the ledger of h2 has [\"0707"),
            "{found:?}"
        );
    }
}
