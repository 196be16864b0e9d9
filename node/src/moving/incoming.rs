//! The destination's end: takes a machine's layer, and makes it the machine's disk once the ledger says so.

use std::time::Duration;

use fabric::ids::{MachineId, MoveId, NodeId};
use fabric::model::MachineRecord;
use fabric::rpc::Refusal;
use fabric::transport::StreamRequest;

use super::Disk;
use super::marker::MarkerV1;
use crate::api::failure::Failure;
use crate::node::admission::{Late, started};
use crate::node::context::Context;
use crate::runtime::Launch;
use crate::transfer;

/// How long this node waits for its copy of the ledger to show a move that the source announced.
const ANNOUNCED_WAIT: Duration = Duration::from_secs(5);

/// Serves a stream that carries a machine's layer.
pub async fn serve(late: Late, request: StreamRequest) {
    let peer = request.peer.id;
    let Ok(context) = started(&late) else { return };
    let Ok(mut stream) = request.accept().await else { return };
    let (id, machine) = match transfer::accept(&mut stream.reader).await {
        Ok(open) => open,
        Err(error) => {
            tracing::debug!(%error, "a layer was announced and did not come");
            return;
        }
    };
    if let Err(refusal) = expect(&context, peer, id, machine).await {
        let _ = transfer::refuse(&mut stream.writer, refusal).await;
        return;
    }
    let mut claim = context.coming.claim();
    let mut room = |needed| context.host.disk().map(|disk| claim.ask(needed, crate::room::to_spare(disk)));
    match context.layers.receive(&mut stream, id, &mut room).await {
        Ok(prepared) => tracing::info!(machine = %machine.short(), bytes = prepared.sent_bytes, "a layer is prepared"),
        Err(error) => {
            tracing::warn!(machine = %machine.short(), %error, "a layer did not arrive");
            if matches!(error, transfer::ReceiveError::NoRoom { .. }) {
                // The next clean-up tries again.
                if let Err(error) = context.layers.abort(id).await {
                    tracing::warn!(%error, "what is staged of a layer that found no room stays");
                }
            }
        }
    }
    let _ = stream.writer.finish().await;
}

/// The ledger must name this node as the destination and the peer as the source. The move is noted before its first byte
/// comes, and the image is fetched before the source goes on, so that it does not add to the outage.
async fn expect(context: &Context, source: NodeId, id: MoveId, machine: MachineId) -> Result<(), Refusal> {
    let announced = || {
        context.ledger.read(|state| {
            let record = state.machines.get(&machine)?;
            let placement = record.placement?;
            let moving = placement.moving?;
            let ours = moving.id == id && moving.to == context.me && placement.node == source;
            ours.then_some((record.image, placement.epoch))
        })
    };
    let mut changed = context.ledger.changed();
    let wait = async {
        loop {
            if let Some(found) = announced() {
                return Some(found);
            }
            changed.changed().await.ok()?;
        }
    };
    let found = tokio::time::timeout(ANNOUNCED_WAIT, wait).await.ok().flatten();
    let (image, epoch) =
        found.ok_or_else(|| Refusal::new("no-move", "the ledger knows of no such move to this node"))?;
    let note = MarkerV1 { machine, id, epoch };
    context.notes.coming.add(note).map_err(unusable)?;
    Ok(context.image(image).await.map(drop)?)
}

/// Gives the machine the disk that came with its move, if this placement is the end of one.
///
/// # Errors
/// When the disk should be here and is not: starting without it would lose acknowledged data.
pub async fn adopt(context: &Context, record: &MachineRecord, launch: &Launch) -> Result<(), Failure> {
    let Some(placement) = record.placement else { return Ok(()) };
    let comes_from_elsewhere = placement.previous.is_some_and(|previous| previous.node != context.me);
    if !comes_from_elsewhere || placement.fresh || placement.confirmed {
        return Ok(());
    }
    let local = context.runtime.list().await?.into_iter().find(|machine| machine.id == record.id);
    if local.as_ref().is_some_and(|local| local.epoch == placement.epoch && local.is_up()) {
        return Ok(());
    }
    let notes = context.notes.coming.load().map_err(unusable)?;
    let note = notes.into_iter().find(|note| note.machine == record.id);
    let ready = match note {
        Some(note) => context.layers.is_prepared(note.id).map_err(|error| unusable(std::io::Error::other(error)))?,
        None => false,
    };
    // A disk of unknown age is an old copy beside a staged one, and without one nobody knows what it is.
    if local.as_ref().is_some_and(|local| local.image.is_none()) && !ready {
        return Err(Failure::new("damaged", "the launch record of the disk here is missing or damaged"));
    }
    let note = match (super::disk(note.as_ref(), ready, local.as_ref().map(|local| local.epoch), placement.epoch), note)
    {
        (Disk::Staged, Some(note)) => note,
        (Disk::InPlace, note) => return note.map_or(Ok(()), |note| forget(context, note)),
        _ => {
            let lost = "the disk that was moved here is not here";
            return Err(Failure::new("damaged", lost).hint("its former node has it"));
        }
    };
    if local.is_some_and(|local| local.epoch < placement.epoch) {
        context.runtime.quarantine(record.id).await?;
    }
    context.runtime.prepare(launch).await?;
    context.layers.adopt(note.id, record.id).map_err(|error| unusable(std::io::Error::other(error)))?;
    forget(context, note)
}

fn forget(context: &Context, note: MarkerV1) -> Result<(), Failure> {
    context.notes.coming.remove(note).map_err(unusable)
}

fn unusable(error: std::io::Error) -> Failure {
    Failure::internal(format!("the notes or the disk of a move cannot be used: {error}"))
}
