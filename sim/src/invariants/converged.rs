//! I9, for the fabric: after the faults everybody sees everybody, and as many vote as should.
//!
//! Source: design sections 3, 4 and 14. (That machines run once is `machines_once`, that states agree `same_state`.)

use std::collections::{BTreeMap, BTreeSet};

use fabric::ids::NodeId;

use crate::actor::HostId;

/// What one host knows of the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Its node.
    pub node: NodeId,
    /// Whom its membership holds alive.
    pub alive: BTreeSet<NodeId>,
    /// Who votes, as its ledger has it.
    pub voters: BTreeSet<NodeId>,
    /// Who is in the cluster, as its ledger has it.
    pub nodes: BTreeSet<NodeId>,
}

/// What does not hold of the hosts that are up, when `target` nodes should vote.
pub fn check(views: &BTreeMap<HostId, View>, target: usize) -> Vec<String> {
    let mut failed = Vec::new();
    let hosts: BTreeSet<NodeId> = views.values().map(|view| view.node).collect();
    for (host, view) in views {
        if view.nodes != hosts {
            let strangers = view.nodes.difference(&hosts).map(|node| node.short());
            let missing = hosts.difference(&view.nodes).map(|node| node.short());
            let (strangers, missing) = (strangers.collect::<Vec<_>>(), missing.collect::<Vec<_>>());
            failed.push(format!("I9: the ledger of {host} has {strangers:?}, who are no hosts, and lacks {missing:?}"));
        }
        let missing = views.iter().filter(|(_, other)| other.node != view.node && !view.alive.contains(&other.node));
        let missing: Vec<String> = missing.map(|(other, _)| other.to_string()).collect();
        if !missing.is_empty() {
            failed.push(format!("I9: {host} does not see {}", missing.join(", ")));
        }
        if view.voters.len() != target {
            failed.push(format!("I9: {} nodes vote as {host} has it, {target} should", view.voters.len()));
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_seen_and_who_does_not_vote_is_told() {
        let node = |n| NodeId([n; 32]);
        let view = |n, alive: &[u8], voters: &[u8]| View {
            node: node(n),
            alive: alive.iter().map(|n| node(*n)).collect(),
            voters: voters.iter().map(|n| node(*n)).collect(),
            nodes: [1, 2].map(node).into(),
        };
        let good = BTreeMap::from([(HostId(1), view(1, &[2], &[1])), (HostId(2), view(2, &[1, 2], &[1]))]);
        assert_eq!(check(&good, 1), Vec::<String>::new());
        let bad = BTreeMap::from([(HostId(1), view(1, &[], &[1])), (HostId(2), view(2, &[1], &[1, 2]))]);
        let found = check(&bad, 1);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("h1 does not see h2") && found[1].contains("2 nodes vote as h2 has it, 1 should"));
        let mut stranger = good.clone();
        stranger.get_mut(&HostId(2)).unwrap().nodes.insert(node(7));
        assert!(check(&stranger, 1)[0].contains("the ledger of h2 has [\"0707"), "{:?}", check(&stranger, 1));
    }
}
