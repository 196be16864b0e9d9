//! Runs the clean-up, a bounded part of it in each round.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fabric::ids::{Digest, MoveId};
use fabric::model::Role;
use fabric::rpc::Refusal;
use fabric::wire;
use raft_store::state::State;

use super::is_needed;
use crate::api::failure::Failure;
use crate::moving::marker::MarkerV1;
use crate::node::admission::{Late, started};
use crate::node::asks::{self, NAMED, NAMED_IMAGES_MAX, NamedAnswerV1, NamedAskV1};
use crate::node::context::Context;

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
    // Listed before the notes are read: a move is noted before anything of it is staged.
    let staged = match context.layers.staged() {
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
        match context.layers.abort(id).await {
            Ok(()) => tracing::info!(%id, "removed the layer of a move that did not come about"),
            Err(error) => tracing::warn!(%id, %error, "a staged layer was not removed"),
        }
    }
    for note in stale {
        if let Err(error) = context.notes.coming.remove(note) {
            tracing::warn!(%error, "the note of a move that did not come about stays");
        }
    }
}

/// All notes of this node as a destination, and those that are needed no more by this node's copy of the ledger.
fn notes(context: &Context) -> Option<(Vec<MarkerV1>, Vec<MarkerV1>)> {
    let notes = context
        .notes
        .coming
        .load()
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
    let held = context.images.held();
    let unneeded: Vec<Digest> = held.iter().filter(|digest| !needed.contains(digest)).copied().collect();
    if !unneeded.is_empty() {
        // An old copy of the ledger may not know yet who wants them.
        let Ok(named) = named(context, unneeded).await else { return };
        let Some(now_needed) = needed_images(context).await else { return };
        needed = now_needed;
        needed.extend(named);
    }
    if let Err(failure) = context.images.collect(needed, context.seams.clock.boottime()).await {
        tracing::warn!(reason = %failure, "images that nobody needs were not removed");
    }
}

/// None when this node's machines cannot be listed: they may use any.
async fn needed_images(context: &Context) -> Option<BTreeSet<Digest>> {
    let observed = context.runtime.list().await.ok()?;
    let mut needed: BTreeSet<Digest> = observed.into_iter().filter_map(|machine| machine.image).collect();
    needed.extend(context.ledger.read(named_by));
    Some(needed)
}

fn named_by(state: &State) -> BTreeSet<Digest> {
    let images = state.images.values().map(|image| image.digest);
    images.chain(state.machines.values().map(|machine| machine.image)).collect()
}

/// Those of some images that the ledger names, read linearizably. A worker's view names its own machines' alone, so it has
/// a voter look: what it drops may be the last copy.
async fn named(context: &Context, images: Vec<Digest>) -> Result<Vec<Digest>, Refusal> {
    if context.role == Role::Voter {
        context.ledger.linearizable().await.map_err(Failure::from)?;
        let named = context.ledger.read(named_by);
        return Ok(images.into_iter().filter(|image| named.contains(image)).collect());
    }
    let (asked, rest) = images.split_at(images.len().min(NAMED_IMAGES_MAX));
    let question = wire::encode(&NamedAskV1 { images: asked.to_vec() });
    let mut named = context.ask_voters::<NamedAnswerV1>(NAMED, question).await?.images;
    // What there was no room to ask about stays for a later round.
    named.extend(rest);
    Ok(named)
}

/// Serves [`NAMED`].
///
/// # Errors
/// `not-ready` when this node cannot read the ledger linearizably now, or is a worker itself.
pub async fn serve_named(late: Late, body: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    let context = started(&late)?;
    let ask: NamedAskV1 = asks::read(&body)?;
    let not_ready = |_| Refusal::new("not-ready", "this node cannot read the ledger now");
    if context.role != Role::Voter {
        return Err(not_ready(()));
    }
    let images = ask.images.into_iter().take(NAMED_IMAGES_MAX).collect();
    let images = named(&context, images).await.map_err(|_| not_ready(()))?;
    Ok(wire::encode(&NamedAnswerV1 { images }))
}
