//! Room on the host's disk: what is done before machines leave none to the node itself.
//!
//! Machines share one file system with the node, and nothing caps what each writes. So the node looks at what is left, and
//! keeps a reserve, a file that can be given up. When little is left, nothing is started here and no scheduler sends
//! anything, the machine whose writable layer takes most is stopped, and only then the reserve is given up, so that what
//! was stopped does not eat it. Layers that come by moves are admitted together, and one is given up before it eats what
//! the node needs: its machine stays where it was. A further machine is stopped when even the reserve shrinks. All of it ends when there is
//! room again. (The ledger has its own headroom, in its file: `fabric::seams::real`.)
//!
//! Decides here, acts in [`driver`]; the reconciler stops the machine. Absent: quotas per machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use fabric::human;
use fabric::ids::MachineId;
use fabric::model::{Capacity, NodeState};

use crate::api::failure::Failure;
use crate::host::DiskSpace;
use crate::limits::{DISK_BYTES_MIN, DISK_LOW_BYTES_MAX, DISK_LOW_DIVISOR, RESERVE_BYTES_MAX, RESERVE_DIVISOR};

pub mod driver;

/// What is known of the room, as told to the rest of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Room {
    /// Little is left: nothing is started.
    pub full: bool,
    /// Machines that were stopped for it, until there is room again.
    pub held: BTreeSet<MachineId>,
}

impl Room {
    /// Whether the machine was stopped for want of room.
    pub fn holds(&self, machine: MachineId) -> bool {
        self.held.contains(&machine)
    }

    /// Why nothing new is started on the node.
    pub fn refusal(&self, node: &fabric::model::Name) -> Failure {
        Failure::new("disk-full", format!("the disk of {node} is nearly full"))
            .hint("delete machines that fill it, or make room in its data directory")
    }
}

/// Whether a node says by gossip that its disk is full: it has no free disk, and something else free. (One that does not
/// know its own record yet says that nothing is free.)
pub fn says_full(said: &NodeState) -> bool {
    said.capacity.disk_bytes > 0 && said.free.disk_bytes == 0 && said.free != Capacity::default()
}

/// Where the lines are drawn on a disk of `total` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Size of the reserve; none on a disk that is too small to share.
    pub reserve: u64,
    /// Below this much free space the disk is full.
    pub low: u64,
    /// From this much on there is room again, and a reserve is made.
    pub high: u64,
}

/// Draws them.
pub fn marks(total: u64) -> Marks {
    if total < DISK_BYTES_MIN {
        return Marks { reserve: 0, low: 0, high: 0 };
    }
    let reserve = (total / RESERVE_DIVISOR).min(RESERVE_BYTES_MAX);
    let low = (total / DISK_LOW_DIVISOR).min(DISK_LOW_BYTES_MAX);
    // Giving the reserve up does not end it, nor does making it anew begin it.
    Marks { reserve, low, high: 2 * low + 2 * reserve }
}

/// Bytes that may be written before the disk counts as full.
pub fn to_spare(disk: DiskSpace) -> u64 {
    disk.free_bytes.saturating_sub(marks(disk.total_bytes).low)
}

/// The content of layers that come to this node and is not written yet: several may come at once, and each must leave the
/// others their room.
#[derive(Debug, Clone, Default)]
pub struct Coming(Arc<Mutex<u64>>);

impl Coming {
    /// For one layer; it has no part yet.
    pub fn claim(&self) -> Claim {
        Claim { coming: self.clone(), bytes: 0 }
    }

    fn total(&self) -> std::sync::MutexGuard<'_, u64> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// One layer's part of what is [`Coming`], until this goes.
#[derive(Debug)]
pub struct Claim {
    coming: Coming,
    bytes: u64,
}

impl Claim {
    /// Bytes that may come for this layer, of `spare` on the disk. Its part is `needed` from now on if that fits, and
    /// nothing otherwise.
    pub fn ask(&mut self, needed: u64, spare: u64) -> u64 {
        let mut total = self.coming.total();
        let others = *total - self.bytes;
        let room = spare.saturating_sub(others);
        self.bytes = if needed <= room { needed } else { 0 };
        *total = others + self.bytes;
        room
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        *self.coming.total() -= self.bytes;
    }
}

/// What the decision needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The file system that machines and the node share.
    pub disk: DiskSpace,
    /// The reserve is there.
    pub reserve: bool,
    /// A machine that was stopped for want of room still runs.
    pub stopping: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// There is room: end what was done for want of it.
    Resume,
    /// There is room enough for a reserve: make it.
    Reserve,
    /// Stop the machine that takes most; without one, give the reserve up.
    Stop,
    /// Give the reserve up.
    Release,
}

/// Decides.
pub fn decide(room: &Room, look: &Look) -> Step {
    let marks = marks(look.disk.total_bytes);
    let free = look.disk.free_bytes;
    if free >= marks.high {
        let lacks_reserve = !look.reserve && marks.reserve > 0;
        return if room.full {
            Step::Resume
        } else if lacks_reserve {
            Step::Reserve
        } else {
            Step::Rest
        };
    }
    // Without a reserve there is less to lose, and somebody is writing still when even that shrinks.
    let line = if look.reserve { marks.low } else { marks.reserve / 2 };
    if free >= line || look.stopping {
        return Step::Rest;
    }
    if look.reserve && !room.held.is_empty() { Step::Release } else { Step::Stop }
}

/// Whether the disk counts as full, once the step is done.
pub fn is_full(room: &Room, look: &Look) -> bool {
    let marks = marks(look.disk.total_bytes);
    look.disk.free_bytes < if room.full { marks.high } else { marks.low }
}

/// The machine to stop: the one whose layer takes most, if that is worth it.
pub fn largest(layers: &BTreeMap<MachineId, u64>, total: u64) -> Option<MachineId> {
    let worth = |bytes: u64| bytes > 0 && bytes >= marks(total).reserve;
    let found = layers.iter().filter(|(_, bytes)| worth(**bytes)).max_by_key(|(id, bytes)| (**bytes, **id));
    found.map(|(id, _)| *id)
}

/// Why a machine is down, for people.
pub fn words(free: u64, held: bool) -> String {
    let free = human::bytes(free);
    match held {
        true => {
            format!("disk full: stopped, since its disk takes most and {free} are left; it starts when there is room")
        }
        false => format!("disk full: not started while {free} are left; it starts when there is room"),
    }
}

#[cfg(test)]
mod tests;
