//! Runs the clean-up, a bounded part of it in each round.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fabric::ids::{Digest, MoveId};

use super::is_needed;
use crate::moving::incoming::staging;
use crate::moving::marker::{self, MarkerV1};
use crate::node::context::Context;
use crate::transfer::{self, frames::blocking};

/// The first round comes this long after the start: there are better things to do first.
const FIRST: Duration = Duration::from_secs(5);
/// Between two rounds.
const ROUND: Duration = Duration::from_secs(10);
/// Staged layers that one round removes.
const LAYERS_MAX: usize = 8;
/// How long a disk that lost its machine to another owner is kept aside (design section 6).
const QUARANTINE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Cleans up until the node stops.
pub async fn run(context: Arc<Context>) {
    let mut pause = FIRST;
    loop {
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = ROUND;
        layers(&context).await;
        images(&context).await;
        if let Err(error) = context.runtime.sweep(QUARANTINE).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "what no machine needs could not all be removed");
        }
    }
}

/// Layers that were staged for moves which have ended otherwise, and the notes about them.
async fn layers(context: &Arc<Context>) {
    let root = staging(context);
    // Listed before the notes are read: a move is noted before anything of it is staged.
    let staged = match transfer::staged(&root) {
        Ok(staged) => staged,
        Err(error) => return tracing::warn!(error = &error as &dyn std::error::Error, "cannot list staged layers"),
    };
    let Some((notes, stale)) = notes(context) else { return };
    let is_loose = |id: &MoveId, notes: &[MarkerV1], stale: &[MarkerV1]| {
        !notes.iter().any(|note| note.id == *id) || stale.iter().any(|note| note.id == *id)
    };
    if stale.is_empty() && !staged.iter().any(|id| is_loose(id, &notes, &stale)) {
        return;
    }
    // This node's copy may be of before the move that it would judge.
    if context.ledger.linearizable().await.is_err() {
        return;
    }
    let Some((notes, stale)) = self::notes(context) else { return };
    let gone: Vec<MoveId> = staged.into_iter().filter(|id| is_loose(id, &notes, &stale)).take(LAYERS_MAX).collect();
    for id in gone {
        let root = root.clone();
        match blocking(move || transfer::abort(&root, id)).await {
            Ok(Ok(())) => tracing::info!(%id, "removed the layer of a move that did not come about"),
            Ok(Err(error)) => tracing::warn!(%id, %error, "a staged layer was not removed"),
            Err(error) => tracing::warn!(%id, %error, "a staged layer was not removed"),
        }
    }
    for note in stale {
        if let Err(error) = marker::remove(&*context.seams.disk, marker::IN, note) {
            tracing::warn!(%error, "the note of a move that did not come about stays");
        }
    }
}

/// All notes of this node as a destination, and those that are needed no more by this node's copy of the ledger.
fn notes(context: &Context) -> Option<(Vec<MarkerV1>, Vec<MarkerV1>)> {
    let notes = marker::load(&*context.seams.disk, marker::IN)
        .inspect_err(|error| tracing::warn!(%error, "the notes of moves cannot be read"))
        .ok()?;
    let stale = context.ledger.read(|state| {
        let needed = |note: &MarkerV1| is_needed(note, state.machines.get(&note.machine), context.me);
        notes.iter().filter(|note| !needed(note)).copied().collect()
    });
    Some((notes, stale))
}

/// Images that neither the ledger names nor a machine of this node uses.
async fn images(context: &Context) {
    let Some(mut needed) = needed_images(context).await else { return };
    if !context.images.held().iter().all(|digest| needed.contains(digest)) {
        // An old copy of the ledger may not know yet who wants them.
        if context.ledger.linearizable().await.is_err() {
            return;
        }
        let Some(now_needed) = needed_images(context).await else { return };
        needed = now_needed;
    }
    if let Err(failure) = context.images.collect(needed, context.seams.clock.boottime()).await {
        tracing::warn!(reason = %failure, "images that nobody needs were not removed");
    }
}

/// None when this node's machines cannot be listed: they may use any.
async fn needed_images(context: &Context) -> Option<BTreeSet<Digest>> {
    let observed = context.runtime.list().await.ok()?;
    let mut needed: BTreeSet<Digest> = observed.into_iter().filter_map(|machine| machine.image).collect();
    context.ledger.read(|state| {
        needed.extend(state.images.values().map(|image| image.digest));
        needed.extend(state.machines.values().map(|machine| machine.image));
    });
    Some(needed)
}
