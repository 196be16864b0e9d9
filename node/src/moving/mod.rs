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

#[cfg(test)]
mod tests;
