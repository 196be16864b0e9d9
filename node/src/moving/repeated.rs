//! A move that was asked for before: nothing is begun, and whoever asks learns how it ends.
//!
//! A client's request is known by its `Idempotency-Key` to the ledger, which has the outcome of MOVE-BEGIN and of SWITCH under
//! it, whichever node was asked and whichever owns the machine by now.

use fabric::ids::IdempotencyKey;
use fabric::model::{MachineRecord, Name};
use raft_store::state::KeyedMove;

use super::driver::{GIVEN_UP, RUNNING_TIMEOUT, not_running_yet, unknown_end, until};
use crate::api::failure::Failure;
use crate::node::context::Context;
use crate::node::operations::Progress;

/// Waits for the end of the move that the key asked for, as the ledger tells it; none when it knows of none, or nobody can
/// be asked.
pub async fn end(
    context: &Context,
    record: &MachineRecord,
    key: IdempotencyKey,
    progress: &Progress,
) -> Option<Result<(), Failure>> {
    context.ledger.linearizable().await.ok()?;
    let found = || context.ledger.read(|state| state.keyed_move(record.id, key));
    found()?;
    progress.phase("under way", progress.view().progress_permille);
    let decided = until(context, |state| state.keyed_move(record.id, key) != Some(KeyedMove::UnderWay));
    tokio::select! {
        biased;
        () = context.shutdown.cancelled() => {}
        () = decided => {
            let running = until(context, |state| state.keyed_move(record.id, key) != Some(KeyedMove::Switched));
            // What it has come to is read below.
            let _ = tokio::time::timeout(RUNNING_TIMEOUT, running).await;
        }
    }
    Some(result(found(), &record.name))
}

/// How a request for a move of `name` ends of which the ledger says this.
fn result(found: Option<KeyedMove>, name: &Name) -> Result<(), Failure> {
    match found {
        Some(KeyedMove::Done) => Ok(()),
        Some(KeyedMove::Refused(refusal)) => Err(refusal.into()),
        Some(KeyedMove::GivenUp) => Err(Failure::new("aborted", GIVEN_UP)),
        Some(KeyedMove::Switched) => Err(not_running_yet(name)),
        Some(KeyedMove::UnderWay) | None => Err(unknown_end(name)),
    }
}

#[cfg(test)]
mod tests {
    use fabric::rpc::Refusal;
    use raft_store::codes;

    use super::*;

    #[test]
    fn a_request_that_is_repeated_ends_as_its_move_did() {
        let name = "m".parse().unwrap();
        let code = |found| result(found, &name).map_err(|failure| failure.refusal.code);
        assert_eq!(code(Some(KeyedMove::Done)), Ok(()));
        assert_eq!(code(Some(KeyedMove::GivenUp)), Err("aborted".into()));
        let full = Refusal::new(codes::CAPACITY, "n2 is full");
        assert_eq!(code(Some(KeyedMove::Refused(full))), Err(codes::CAPACITY.into()));
        // What is not known is told apart from what was refused.
        assert_eq!(code(Some(KeyedMove::Switched)), Err("timeout".into()));
        assert_eq!(code(Some(KeyedMove::UnderWay)), Err("not-ready".into()));
    }
}
