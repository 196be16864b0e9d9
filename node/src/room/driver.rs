//! Looks at the disk, and runs what [`super::decide`] says.

use std::collections::BTreeMap;
use std::sync::Arc;

use fabric::events::Happening;
use fabric::human;
use fabric::ids::MachineId;
use tokio::time::Instant;

use super::{Look, Step, decide, is_full, largest, marks};
use crate::host::DiskSpace;
use crate::limits::{DISK_LOOK, DISK_MEASURE_REST};
use crate::node::context::Context;
use crate::runtime::Observed;

/// Looks until the node stops.
pub async fn run(context: Arc<Context>) {
    let mut rest = None;
    loop {
        if let Some(disk) = context.host.disk() {
            round(&context, disk, &mut rest).await;
        }
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return,
            () = tokio::time::sleep(DISK_LOOK) => {}
        }
    }
}

/// Whether the disk is nearly full when the daemon starts: nothing is to be started before the first look. Without a
/// reserve it may have been full before: then there must be room for one first.
pub fn first(disk: Option<DiskSpace>, reserve: bool) -> super::Room {
    let before = super::Room { full: !reserve, ..super::Room::default() };
    let look = disk.map(|disk| Look { disk, reserve, stopping: false });
    super::Room { full: look.is_some_and(|look| is_full(&before, &look)), ..before }
}

/// One look. Machines are not measured before `rest`.
async fn round(context: &Context, disk: DiskSpace, rest: &mut Option<Instant>) {
    let room = context.room.borrow().clone();
    let observed = match room.held.is_empty() {
        true => Vec::new(),
        false => context.runtime.list().await.unwrap_or_default(),
    };
    let stopping = observed.iter().any(|machine| room.holds(machine.id) && machine.is_up());
    let look = Look { disk, reserve: context.host.has_reserve(), stopping };
    let step = decide(&room, &look);
    let full = is_full(&room, &look);
    if full && !room.full {
        tell(context, "disk-full", format!("the disk of {} is nearly full: {}", context.name, left(disk)));
    }
    context.room.send_if_modified(|room| std::mem::replace(&mut room.full, full) != full);
    match step {
        Step::Rest => {}
        Step::Resume => {
            context.room.send_modify(|room| room.held.clear());
            tell(context, "disk-room", format!("the disk of {} has room again: {}", context.name, left(disk)));
        }
        Step::Reserve | Step::Stop if rest.is_some_and(|rest| rest > Instant::now()) => {}
        Step::Reserve => {
            if !reserve(context, marks(disk.total_bytes).reserve) {
                *rest = Some(Instant::now() + DISK_MEASURE_REST);
            }
        }
        Step::Release => drop(reserve(context, 0)),
        Step::Stop => match to_blame(context, disk).await {
            Some(machine) => stop(context, machine, disk),
            None => {
                *rest = Some(Instant::now() + DISK_MEASURE_REST);
                if look.reserve {
                    reserve(context, 0);
                }
            }
        },
    }
}

fn left(disk: DiskSpace) -> String {
    format!("{} of {} are left", human::bytes(disk.free_bytes), human::bytes(disk.total_bytes))
}

fn tell(context: &Context, kind: &'static str, message: String) {
    tracing::warn!("{message}");
    context.events.record(Happening { kind, subject: context.name.to_string(), message, data: vec![] });
}

/// Makes a reserve of so many bytes; none gives it up. Whether it could.
fn reserve(context: &Context, bytes: u64) -> bool {
    let done = context.host.set_reserve(bytes);
    match &done {
        Ok(()) if bytes == 0 => tracing::warn!("the reserve on the disk was given up"),
        Ok(()) => tracing::debug!(bytes, "there is a reserve on the disk"),
        Err(error) => tracing::warn!(%error, "the reserve on the disk could not be changed"),
    }
    done.is_ok()
}

/// The machine that is to be stopped, of those that run.
async fn to_blame(context: &Context, disk: DiskSpace) -> Option<MachineId> {
    let observed = context.runtime.list().await.ok()?;
    let mut layers = BTreeMap::new();
    for machine in observed.iter().filter(|machine| machine.is_up()).map(|machine: &Observed| machine.id) {
        match context.runtime.layer_bytes(machine).await {
            Ok(bytes) => drop(layers.insert(machine, bytes)),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell what a machine's disk takes")
            }
        }
    }
    largest(&layers, disk.total_bytes)
}

/// The reconciler does it.
fn stop(context: &Context, machine: MachineId, disk: DiskSpace) {
    context.room.send_modify(|room| {
        room.held.insert(machine);
    });
    let name = context.ledger.read(|state| state.machines.get(&machine).map(|record| record.name.to_string()));
    let name = name.unwrap_or_else(|| machine.short());
    let message = format!("{name} is stopped: its disk takes most on {}, where only {}", context.name, left(disk));
    tracing::warn!("{message}");
    context.events.record(Happening { kind: "machine-disk-full", subject: name, message, data: vec![] });
}
