//! Copies of images: a machine can start elsewhere only where its image is, so no image may live on one node alone.
//!
//! Which nodes keep a copy is a pure function of the ledger: every node finds the same answer, and nobody has to tell
//! another. Whoever packed an image or runs a machine of it has it besides.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fabric::ids::{Digest, NodeId};
use fabric::model::{NodeRecord, Role};

use super::context::Context;

/// Nodes that keep a copy of each image: two may be lost at once.
const COPIES: usize = 3;
/// An image that could not be fetched is asked for again after this.
const RETRY: Duration = Duration::from_secs(5);

/// Whether `me` is to keep a copy: the nodes that can run machines and know of images (workers do not), in an order that each image shuffles anew, so that
/// copies spread evenly and the loss of a node changes little.
fn keeps<'a>(nodes: impl Iterator<Item = &'a NodeRecord>, me: NodeId, image: Digest) -> bool {
    let place = |node: NodeId| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&image.0).update(&node.0);
        (*hasher.finalize().as_bytes(), node)
    };
    let mine = place(me);
    let (mut able, mut before) = (false, 0);
    let able_to = |node: &&NodeRecord| node.role == Role::Voter && node.capacity.memory_bytes > 0 && !node.draining;
    for node in nodes.filter(able_to) {
        able |= node.id == me;
        before += usize::from(place(node.id) < mine);
    }
    able && before < COPIES
}

/// Fetches the images that this node is to keep, one after the other.
pub async fn keep(context: Arc<Context>) {
    let mut ledger = context.ledger.changed();
    let mut held: BTreeSet<Digest> = BTreeSet::new();
    loop {
        ledger.borrow_and_update();
        let wanted: BTreeSet<Digest> = context.ledger.read(|state| {
            let digests: BTreeSet<Digest> = state.images.values().map(|image| image.digest).collect();
            digests.into_iter().filter(|digest| keeps(state.nodes.values(), context.me, *digest)).collect()
        });
        held.retain(|digest| wanted.contains(digest));
        let mut failed = false;
        for digest in wanted.difference(&held.clone()) {
            let fetched = tokio::select! {
                biased;
                () = context.shutdown.cancelled() => return,
                fetched = context.image(*digest) => fetched,
            };
            match fetched {
                Ok(_) => drop(held.insert(*digest)),
                Err(failure) => {
                    failed = true;
                    tracing::debug!(image = %digest, reason = %failure.refusal.message, "no copy yet");
                }
            }
        }
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return,
            changed = ledger.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::model::{Capacity, Labels};

    fn node(number: u8) -> NodeRecord {
        let id = NodeId([number; 32]);
        NodeRecord {
            id,
            name: format!("n{number}").parse().unwrap(),
            public_key: [0; 32],
            role: Role::Voter,
            zone: String::new(),
            labels: Labels::default(),
            capacity: Capacity { cpu_millis: 1000, memory_bytes: 1 << 30, disk_bytes: 1 << 30 },
            address: String::new(),
            cordoned: false,
            draining: false,
            absent_until_ms: None,
            admitted_ms: 0,
            revision: 1,
        }
    }

    #[test]
    fn every_image_has_as_many_keepers_as_there_can_be() {
        let mut nodes: Vec<_> = (1..=9).map(node).collect();
        nodes[0].capacity.memory_bytes = 0;
        nodes[1].draining = true;
        nodes[8].role = Role::Worker;
        let keepers = |nodes: &[NodeRecord], image: Digest| -> Vec<NodeId> {
            nodes.iter().map(|node| node.id).filter(|id| keeps(nodes.iter(), *id, image)).collect()
        };
        let mut all = BTreeSet::new();
        for image in (0..32).map(|number| Digest([number; 32])) {
            let chosen = keepers(&nodes, image);
            assert_eq!(chosen.len(), COPIES);
            assert!([0, 1, 8].iter().all(|at| !chosen.contains(&nodes[*at].id)));
            assert_eq!(keepers(&nodes[2..4], image).len(), 2);
            all.extend(chosen);
        }
        assert_eq!(all.len(), 6, "copies are spread over all that can keep them");
    }
}
