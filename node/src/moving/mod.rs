//! Moving a machine, strategy `cold` (design section 8).
//!
//! `preflight -> reserve -> sync (while it runs) -> stop -> final delta -> prepared -> SWITCH -> running -> clean-up`
//!
//! The source drives and alone proposes SWITCH; ABORT competes, and the first one committed decides. Before it proposes,
//! the source syncs a marker to disk: from then on it starts the machine again only once the ledger has decided against
//! the move, never on a time-out or a restart of the daemon. Bulk data goes from source to destination, never through the
//! leader. Deciding is in [`verdict`]; the rest is a driver.

pub mod driver;
pub mod incoming;
pub mod marker;
pub mod repeated;

use fabric::ids::{MoveId, NodeId};
use fabric::model::MachineRecord;

/// What the ledger says of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Neither SWITCH nor ABORT is committed.
    Open,
    /// The destination owns the machine.
    Switched,
    /// The source keeps it.
    Aborted,
}

/// Reads the verdict on the move `id` of the source `me`, which owned the machine at `epoch`, from a record that is known
/// to be current.
pub fn verdict(record: Option<&MachineRecord>, me: NodeId, id: MoveId, epoch: u64) -> Verdict {
    let Some(placement) = record.and_then(|record| record.placement) else {
        return Verdict::Switched; // gone or taken away: it is not the source's any more
    };
    if (placement.node, placement.epoch) != (me, epoch) {
        return Verdict::Switched;
    }
    match placement.moving {
        Some(moving) if moving.id == id => Verdict::Open,
        _ => Verdict::Aborted,
    }
}

/// Whether the record proves that the machine was moved away by the SWITCH of the source `me`, which owned it at `epoch` and
/// had announced a move. (A takeover leaves its owner behind as well, but with a new disk.)
pub fn moved_away(record: Option<&MachineRecord>, me: NodeId, epoch: u64) -> bool {
    let placement = record.and_then(|record| record.placement);
    placement.is_some_and(|placement| {
        let from_here = placement.previous.is_some_and(|previous| (previous.node, previous.epoch) == (me, epoch));
        from_here && placement.epoch == epoch + 1 && !placement.fresh
    })
}

/// Of the moves that the ledger has announced for this node's machines and that nobody here drives, those that no note
/// names: no SWITCH can have been proposed for them. One with a note is its own driver's to settle.
pub fn stale(reserved: Vec<marker::MarkerV1>, noted: &[marker::MarkerV1]) -> Vec<marker::MarkerV1> {
    reserved.into_iter().filter(|open| noted.iter().all(|note| note.machine != open.machine)).collect()
}

/// Where the disk of a machine is that has come here by a move which is not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Staged: it came from the other end, and is the machine's from now on.
    Staged,
    /// In its place: adopted before, or this is the end that it was to leave.
    InPlace,
    /// Not here, though it should be.
    Lost,
}

/// Finds the disk for a placement at `epoch`. `note` is this node's note of a move that brings the machine, `ready` says
/// whether that move's layer is prepared, `local` is the epoch of the disk that is in place, if one is.
///
/// A move's destination owns the machine at the note's epoch + 1; a disk in place of before then is an old copy.
pub fn disk(note: Option<&marker::MarkerV1>, ready: bool, local: Option<u64>, epoch: u64) -> Disk {
    match (note, local) {
        (Some(note), _) if ready && local.is_none_or(|local| local <= note.epoch + 1) => Disk::Staged,
        (_, Some(local)) if local == epoch => Disk::InPlace,
        // It went back: the destination could not start it, or died.
        (note, Some(local)) if note.is_none_or(|note| note.epoch < local) => Disk::InPlace,
        _ => Disk::Lost,
    }
}

#[cfg(test)]
mod tests;
