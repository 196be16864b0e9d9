//! What nobody needs any more, removed after a start and now and then: layers that were staged for moves, notes about
//! moves, images that no record names, and what a crash left of machines (the runtime's own sweep).
//!
//! What is absent: deciding that a machine may go. That is `reconcile`, on a positive record; this comes after it. Nothing
//! is removed on the word of an old copy of the ledger: before anything goes, a linearizable read has succeeded. A worker's
//! own view says enough about its moves; about images it asks a voter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fabric::ids::{Digest, NodeId};
use fabric::model::MachineRecord;

use crate::moving::marker::MarkerV1;

pub mod driver;

/// Whether this node, the destination of a noted move, may still be asked for the layer that the move brings: the move is
/// open, or it has been decided and neither end has said yet that the machine runs.
pub fn is_needed(note: &MarkerV1, record: Option<&MachineRecord>, me: NodeId) -> bool {
    let Some(placement) = record.and_then(|record| record.placement) else { return false };
    let open = placement.moving.is_some_and(|moving| moving.id == note.id);
    let unsettled = placement.previous.filter(|_| !placement.confirmed && !placement.fresh);
    open || unsettled.is_some_and(|previous| placement.node == me || previous.node == me)
}

/// Images that have not been needed for a while. It remembers since when, so an image that is just being packed, fetched
/// or named is not taken for one that nobody wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unneeded {
    since: BTreeMap<Digest, Duration>,
}

impl Unneeded {
    /// Somebody wants the image now.
    pub fn wanted(&mut self, digest: &Digest) {
        self.since.remove(digest);
    }

    /// Looks at what is held at `now`; gives what nothing has needed for `grace`, the longest unneeded first.
    pub fn look(
        &mut self,
        now: Duration,
        grace: Duration,
        held: &BTreeSet<Digest>,
        needed: &BTreeSet<Digest>,
    ) -> Vec<Digest> {
        self.since.retain(|digest, _| held.contains(digest) && !needed.contains(digest));
        for digest in held.difference(needed) {
            self.since.entry(*digest).or_insert(now);
        }
        let mut over: Vec<_> = self.since.iter().filter(|(_, since)| **since + grace <= now).collect();
        over.sort_by_key(|(digest, since)| (**since, **digest));
        over.into_iter().map(|(digest, _)| *digest).collect()
    }

    /// Whether the image is still unwanted: asked again at the moment of its removal.
    pub fn is_unwanted(&self, digest: &Digest) -> bool {
        self.since.contains_key(digest)
    }
}

#[cfg(test)]
mod tests;
