//! Moves: announced with room reserved, then decided once, for the destination (SWITCH) or the source (ABORT).
//!
//! Whichever of the two is committed first decides: SWITCH changes the epoch that ABORT names, ABORT takes away the move
//! that SWITCH names.

use fabric::ids::{IdempotencyKey, MachineId, MoveId, NodeId};
use fabric::model::{Desired, MoveV1 as Move, Placement, PreviousV1 as Previous};
use fabric::rpc::Refusal;

use super::State;
use super::audit::move_key;
use super::placing::{not_settled, unsettled};
use crate::codes;
use crate::command::{Answer, Outcome};

/// What became of the move that a client's key asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyedMove {
    /// It is not decided.
    UnderWay,
    /// The destination owns the machine, and has not said yet that it runs there.
    Switched,
    /// The machine was moved, wherever it went since.
    Done,
    /// The source kept the machine, or lost it otherwise.
    GivenUp,
    /// It was not begun.
    Refused(Refusal),
}

impl State {
    /// What became of the move that this key, in its client's scope, asked for; none when the ledger knows of none.
    pub fn keyed_move(&self, machine: MachineId, key: IdempotencyKey) -> Option<KeyedMove> {
        let answer = |verb| self.answered(move_key(verb, machine, key)).map(|record| &record.answer);
        let (id, epoch) = match answer("move-begin")? {
            Answer::Done(Outcome::Moving { id, epoch }) => (*id, *epoch),
            Answer::Done(_) => return None,
            Answer::Refused(refusal) => return Some(KeyedMove::Refused(refusal.clone())),
        };
        let placement = self.machines.get(&machine).and_then(|record| record.placement);
        if matches!(answer("move-switch"), Some(Answer::Done(_))) {
            let starts = placement.is_some_and(|placement| placement.epoch == epoch + 1 && !placement.confirmed);
            return Some(if starts { KeyedMove::Switched } else { KeyedMove::Done });
        }
        let open = placement.and_then(|placement| placement.moving).is_some_and(|moving| moving.id == id);
        Some(if open { KeyedMove::UnderWay } else { KeyedMove::GivenUp })
    }

    pub(super) fn move_begin(
        &mut self,
        machine: MachineId,
        from_epoch: u64,
        id: MoveId,
        to: NodeId,
    ) -> Result<Outcome, Refusal> {
        let (record, placement) = self.placement_in(machine, from_epoch)?;
        let refuse = |code, message: String| Err(Refusal::new(code, message).field("machine", &record.name));
        match placement.moving {
            Some(moving) if moving.id == id && moving.to == to => return Ok(Outcome::Moving { id, epoch: from_epoch }),
            Some(moving) => {
                let to = self.name_of(moving.to);
                return refuse(codes::MOVING, format!("machine {} is being moved to {to}", record.name));
            }
            None => {}
        }
        if record.desired == Desired::Deleted {
            return refuse(codes::DELETED, format!("machine {} is being deleted", record.name));
        }
        if unsettled(&placement).is_some() {
            return Err(not_settled(record));
        }
        if to == placement.node {
            let owner = self.name_of(to);
            return refuse(codes::PLACED, format!("machine {} is on {owner} already", record.name));
        }
        self.check_destination(record, to)?;
        let since_ms = self.now_ms();
        self.change_placement(machine, |placement| placement.moving = Some(Move { id, to, since_ms }));
        Ok(Outcome::Moving { id, epoch: from_epoch })
    }

    pub(super) fn move_switch(
        &mut self,
        actor: NodeId,
        machine: MachineId,
        id: MoveId,
        from_epoch: u64,
    ) -> Result<Outcome, Refusal> {
        let (record, placement) = self.owned_placement(actor, machine, from_epoch)?;
        let Some(moving) = placement.moving.filter(|moving| moving.id == id) else {
            return Err(Refusal::new(codes::NO_MOVE, format!("move {} was given up", id.short()))
                .field("machine", &record.name)
                .hint("the source keeps the machine"));
        };
        let since_ms = self.now_ms();
        self.change_machine(machine, |record| {
            record.epoch += 1;
            record.placement = Some(Placement {
                node: moving.to,
                epoch: record.epoch,
                since_ms,
                confirmed: false,
                fresh: false,
                previous: Some(Previous { node: placement.node, epoch: placement.epoch }),
                moving: None,
            });
        });
        Ok(self.owner_of(machine))
    }

    /// Idempotent while the source's epoch lasts: a source in doubt asks until it has an answer.
    pub(super) fn move_abort(&mut self, machine: MachineId, id: MoveId, from_epoch: u64) -> Result<Outcome, Refusal> {
        let (record, placement) = self.placement_in(machine, from_epoch)?;
        match placement.moving {
            Some(moving) if moving.id == id => {
                self.change_placement(machine, |placement| placement.moving = None);
                Ok(self.owner_of(machine))
            }
            Some(moving) => {
                Err(Refusal::new(codes::NO_MOVE, format!("another move {} is under way", moving.id.short()))
                    .field("machine", &record.name))
            }
            None => Ok(self.owner_of(machine)),
        }
    }

    fn change_placement(&mut self, machine: MachineId, change: impl FnOnce(&mut Placement)) {
        self.change_machine(machine, |record| {
            if let Some(placement) = &mut record.placement {
                change(placement);
            }
        });
    }
}
