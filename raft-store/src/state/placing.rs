//! Ownership: placement, confirmation, failure, release and takeover (design sections 6 and 7).
//!
//! Every change of owner gives out the machine's next epoch. While a move is not settled (the destination has not
//! reported the machine running), its disk is in two places only, so ownership goes to one of these two.

use fabric::ids::{MachineId, NodeId};
use fabric::limits::{PLACE_BATCH_MAX, PLACE_CANDIDATES_MAX};
use fabric::model::{Desired, MachineRecord, NodeRecord, Placement, PreviousV1 as Previous, Resources};
use fabric::rpc::Refusal;

use super::cluster::millis;
use super::{State, clip, words};
use crate::codes;
use crate::command::{Outcome, PlaceItem, PlaceResult};
use crate::limits::{BACK_OFF_MAX, REASON_BYTES_MAX};

/// The two ends of a move whose destination has not reported the machine running: (owner, the other one).
pub fn unsettled(placement: &Placement) -> Option<(NodeId, NodeId)> {
    placement.previous.filter(|_| !placement.fresh).map(|previous| (placement.node, previous.node))
}

/// Why a node cannot take a machine.
enum Unfit {
    /// It may not, whatever it has.
    Barred(String),
    /// It has too little.
    Short { cpu_millis: u64, memory_bytes: u64 },
}

impl State {
    pub(super) fn name_of(&self, node: NodeId) -> String {
        self.nodes.get(&node).map_or_else(|| node.short(), |record| record.name.to_string())
    }

    /// The machine's placement, if it is in `epoch`.
    pub(super) fn placement_in(&self, id: MachineId, epoch: u64) -> Result<(&MachineRecord, Placement), Refusal> {
        let machine = self.machine_of(id)?;
        let Some(placement) = machine.placement else {
            return Err(
                Refusal::new(codes::NOT_PLACED, format!("machine {} has no owner", machine.name)).field("machine", id)
            );
        };
        if placement.epoch != epoch {
            let owner = self.name_of(placement.node);
            let message = format!("machine {} is owned by {owner} in epoch {}", machine.name, placement.epoch);
            return Err(Refusal::new(codes::STALE_EPOCH, message).field("epoch", epoch));
        }
        Ok((machine, placement))
    }

    /// The same, if `actor` is the owner.
    pub(super) fn owned_placement(
        &self,
        actor: NodeId,
        id: MachineId,
        epoch: u64,
    ) -> Result<(&MachineRecord, Placement), Refusal> {
        let (machine, placement) = self.placement_in(id, epoch)?;
        if placement.node != actor {
            let owner = self.name_of(placement.node);
            return Err(Refusal::new(codes::DENIED, format!("machine {} is owned by {owner}", machine.name))
                .field("node", actor));
        }
        Ok((machine, placement))
    }

    pub(super) fn place(&mut self, items: &[PlaceItem]) -> Result<Outcome, Refusal> {
        if !(1..=PLACE_BATCH_MAX).contains(&items.len()) {
            return Err(Refusal::new(codes::INVALID, format!("a batch has 1 to {PLACE_BATCH_MAX} machines"))
                .field("items", items.len()));
        }
        items.iter().try_for_each(|item| check_candidates(&item.candidates))?;
        let items = items.iter().map(|item| self.place_one(item)).collect();
        Ok(Outcome::Placed { items })
    }

    fn place_one(&mut self, item: &PlaceItem) -> PlaceResult {
        let id = item.machine;
        let refused = |refusal| PlaceResult::Refused { machine: id, refusal };
        let machine = match self.placeable(item) {
            Ok(machine) => machine,
            Err(refusal) => return refused(refusal),
        };
        let fresh = machine.epoch > 0;
        match self.first_fit(machine, &item.candidates, item.reason.as_deref()) {
            Ok(node) => self.hand_over(id, node, None, fresh),
            Err(refusal) => {
                self.set_waiting(id, &refusal.message);
                refused(refusal)
            }
        }
    }

    fn placeable(&self, item: &PlaceItem) -> Result<&MachineRecord, Refusal> {
        let machine = self.machine_of(item.machine)?;
        let refuse = |code, message| Err(Refusal::new(code, message).field("machine", &machine.name));
        if let Some(placement) = machine.placement {
            let owner = self.name_of(placement.node);
            return refuse(codes::PLACED, format!("machine {} is placed on {owner}", machine.name));
        }
        if machine.epoch != item.expected_epoch {
            return refuse(
                codes::STALE_EPOCH,
                format!("machine {} is past epoch {}", machine.name, item.expected_epoch),
            );
        }
        wanted(machine)?;
        if machine.not_before_ms > self.now_ms() {
            let wait = machine.not_before_ms - self.now_ms();
            return refuse(codes::TOO_EARLY, format!("machine {} is tried again in {wait} ms", machine.name));
        }
        Ok(machine)
    }

    /// Gives the machine its next epoch on `node`.
    fn hand_over(&mut self, id: MachineId, node: NodeId, previous: Option<Previous>, fresh: bool) -> PlaceResult {
        let since_ms = self.now_ms();
        let mut epoch = 0;
        self.change_machine(id, |machine| {
            machine.epoch += 1;
            epoch = machine.epoch;
            machine.waiting = None;
            machine.placement =
                Some(Placement { node, epoch, since_ms, confirmed: false, fresh, previous, moving: None });
        });
        PlaceResult::Placed { machine: id, node, epoch }
    }

    /// Tells the user why there is no place. The same text again is no change, so sweeps leave revisions alone.
    fn set_waiting(&mut self, id: MachineId, reason: &str) {
        let reason = clip(reason, REASON_BYTES_MAX);
        let known = self.machines.get(&id).is_some_and(|m| m.waiting.as_deref() == Some(&reason));
        if !known {
            self.change_machine(id, |machine| machine.waiting = Some(reason));
        }
    }

    /// The first candidate that may and can take the machine.
    fn first_fit(
        &self,
        machine: &MachineRecord,
        candidates: &[NodeId],
        reason: Option<&str>,
    ) -> Result<NodeId, Refusal> {
        let mut barred = Vec::new();
        let mut freest: Option<(u64, u64, NodeId)> = None;
        for node in candidates {
            match self.check_fit(machine, *node) {
                Ok(()) => return Ok(*node),
                Err(Unfit::Barred(why)) => barred.push(why),
                Err(Unfit::Short { cpu_millis, memory_bytes }) => {
                    let this = (memory_bytes, cpu_millis, *node);
                    if freest.is_none_or(|best| (best.0, best.1) < (this.0, this.1)) {
                        freest = Some(this);
                    }
                }
            }
        }
        if let Some((memory_bytes, cpu_millis, node)) = freest {
            return Err(self.too_large(&machine.spec.resources, node, cpu_millis, memory_bytes));
        }
        let why = match (barred.is_empty(), reason) {
            (false, _) => barred.join(", "),
            (true, Some(reason)) => clip(reason, REASON_BYTES_MAX),
            (true, None) => "no node can take it".into(),
        };
        Err(Refusal::new(codes::NO_NODE, why).field("machine", &machine.name).hint("`smartnode node list` shows why"))
    }

    fn too_large(&self, needs: &Resources, node: NodeId, cpu_millis: u64, memory_bytes: u64) -> Refusal {
        let name = self.name_of(node);
        let (field, need, has) = if needs.memory_bytes > memory_bytes {
            ("memory", words::bytes(needs.memory_bytes, true), words::bytes(memory_bytes, false))
        } else {
            ("cpu", words::cores(needs.cpu_millis.into()), words::cores(cpu_millis))
        };
        Refusal::new(codes::CAPACITY, format!("needs {need} guaranteed, the freest node {name} has {has}"))
            .field(field, need)
            .hint("ask for less, delete machines or add a node")
    }

    fn check_fit(&self, machine: &MachineRecord, node: NodeId) -> Result<(), Unfit> {
        let record = self.check_present(node)?;
        let barred = |why: &str| Err(Unfit::Barred(format!("{} {why}", record.name)));
        if record.draining {
            return barred("is draining");
        }
        if record.cordoned {
            return barred("is cordoned");
        }
        if machine.spec.pinned.is_some_and(|pinned| pinned != node) {
            return barred("is not the node that it is pinned to");
        }
        if let Some((port, by)) = self.taken_port(machine, node) {
            return Err(Unfit::Barred(format!("port {port} of {} is taken by {by}", record.name)));
        }
        self.check_room(&machine.spec.resources, machine.id, node)
    }

    fn check_present(&self, node: NodeId) -> Result<&NodeRecord, Unfit> {
        match self.nodes.get(&node) {
            None => Err(Unfit::Barred(format!("{} is not in the cluster", node.short()))),
            Some(record) if self.is_absent(node) => Err(Unfit::Barred(format!("{} is absent as planned", record.name))),
            Some(record) => Ok(record),
        }
    }

    /// I4: guarantees stay within the declared capacity. A claim that is there already needs no second room.
    fn check_room(&self, resources: &Resources, id: MachineId, node: NodeId) -> Result<(), Unfit> {
        let free = self.free(node);
        let fits = resources.cpu_millis <= free.cpu_millis && resources.memory_bytes <= free.memory_bytes;
        if fits || self.index.holds(node, id) {
            return Ok(());
        }
        Err(Unfit::Short { cpu_millis: free.cpu_millis.into(), memory_bytes: free.memory_bytes })
    }

    /// Whether the machine may go to `node`, in words.
    pub(super) fn check_destination(&self, machine: &MachineRecord, node: NodeId) -> Result<(), Refusal> {
        self.node_of(node)?;
        if let Some(pinned) = machine.spec.pinned.filter(|pinned| *pinned != node) {
            let name = self.name_of(pinned);
            return Err(Refusal::new(codes::PINNED, format!("machine {} is pinned to {name}", machine.name))
                .field("node", self.name_of(node)));
        }
        self.first_fit(machine, &[node], None).map(drop)
    }

    pub(super) fn confirm(&mut self, actor: NodeId, id: MachineId, epoch: u64) -> Result<Outcome, Refusal> {
        let (machine, placement) = self.owned_placement(actor, id, epoch)?;
        if placement.confirmed && machine.failures == 0 && machine.waiting.is_none() {
            return Ok(Outcome::Done { revision: machine.revision });
        }
        self.change_machine(id, |machine| {
            (machine.failures, machine.not_before_ms, machine.waiting) = (0, 0, None);
            if let Some(placement) = &mut machine.placement {
                placement.confirmed = true;
                placement.previous = None;
            }
        });
        Ok(Outcome::Done { revision: self.revision() })
    }

    pub(super) fn ended(
        &mut self,
        actor: NodeId,
        id: MachineId,
        epoch: u64,
        restarts: u64,
        code: i32,
    ) -> Result<Outcome, Refusal> {
        let (machine, _) = self.owned_placement(actor, id, epoch)?;
        wanted(machine)?;
        if machine.restarts != restarts {
            return Err(Refusal::new(codes::REVISION, format!("machine {} is to be started again", machine.name))
                .field("restarts", restarts));
        }
        self.change_machine(id, |machine| {
            machine.desired = Desired::Stopped;
            machine.ended = Some(code);
            machine.waiting = None;
        });
        Ok(Outcome::Done { revision: self.revision() })
    }

    /// `here`: the owner's disk is the machine's, and whoever went elsewhere without it would begin with an empty one.
    pub(super) fn failed(
        &mut self,
        (actor, here): (NodeId, bool),
        id: MachineId,
        epoch: u64,
        reason: &str,
        back_off_ms: u64,
    ) -> Result<Outcome, Refusal> {
        let (machine, placement) = self.owned_placement(actor, id, epoch)?;
        let bound = machine.spec.pinned == Some(actor) || here;
        // A move that failed at one end goes back to the other, where the disk and the room are kept.
        let back = unsettled(&placement).map(|(_, other)| other).filter(|other| self.nodes.contains_key(other));
        let stays = bound || (unsettled(&placement).is_some() && back.is_none());
        if let (Some(other), false) = (back, stays) {
            self.hand_over(id, other, Some(Previous { node: actor, epoch }), false);
        }
        let not_before_ms = self.now_ms().saturating_add(back_off_ms.min(millis(BACK_OFF_MAX)));
        let reason = clip(reason, REASON_BYTES_MAX);
        self.change_machine(id, |machine| {
            machine.failures = machine.failures.saturating_add(1);
            machine.not_before_ms = not_before_ms;
            machine.waiting = Some(reason);
            match &mut machine.placement {
                Some(placement) if here => {
                    placement.confirmed = true;
                    (placement.moving, placement.previous) = (None, None);
                }
                Some(placement) if stays => placement.moving = None,
                Some(_) if back.is_some() => {}
                _ => machine.placement = None,
            }
        });
        Ok(self.owner_of(id))
    }

    pub(super) fn release(&mut self, actor: NodeId, id: MachineId, epoch: u64) -> Result<Outcome, Refusal> {
        let (machine, placement) = self.owned_placement(actor, id, epoch)?;
        if unsettled(&placement).is_some() {
            return Err(not_settled(machine));
        }
        self.change_machine(id, |machine| machine.placement = None);
        Ok(self.owner_of(id))
    }

    pub(super) fn owner_of(&self, id: MachineId) -> Outcome {
        let machine = self.machines.get(&id);
        Outcome::Owner {
            node: machine.and_then(|m| m.placement).map(|p| p.node),
            epoch: machine.map_or(0, |m| m.epoch),
            revision: machine.map_or(0, |m| m.revision),
        }
    }

    pub(super) fn takeover(
        &mut self,
        id: MachineId,
        epoch: u64,
        from: NodeId,
        candidates: &[NodeId],
        judged_in_this_term: bool,
    ) -> Result<Outcome, Refusal> {
        check_candidates(candidates)?;
        let (machine, placement) = self.owned_placement(from, id, epoch)?;
        wanted(machine)?;
        if machine.spec.exclusive && !judged_in_this_term {
            return Err(Refusal::new(codes::OTHER_TERM, "the lease was judged by the leader of another term")
                .hint("ask again: the leader of now judges anew"));
        }
        if self.is_absent(from) {
            return Err(
                Refusal::new(codes::ABSENT, format!("{} is absent as planned", self.name_of(from))).field("node", from)
            );
        }
        let result = match self.successor(machine, &placement, candidates) {
            Ok((node, previous, fresh)) => self.hand_over(id, node, Some(previous), fresh),
            Err(refusal) => {
                self.set_waiting(id, &refusal.message);
                PlaceResult::Refused { machine: id, refusal }
            }
        };
        Ok(Outcome::Placed { items: vec![result] })
    }

    /// Where a takeover brings a machine, with its former owner, and whether it begins with a new disk.
    fn successor(
        &self,
        machine: &MachineRecord,
        placement: &Placement,
        candidates: &[NodeId],
    ) -> Result<(NodeId, Previous, bool), Refusal> {
        match unsettled(placement) {
            Some((_, source)) if self.nodes.contains_key(&source) => {
                self.either_end(machine, placement, source, candidates)
            }
            // Elsewhere than on the dead owner; its disk died with it.
            _ => {
                let from = placement.node;
                let others: Vec<NodeId> = candidates.iter().copied().filter(|node| *node != from).collect();
                let bound = self.bound_to(machine, from);
                let node = self.first_fit(machine, &others, bound.as_deref())?;
                Ok((node, Previous { node: from, epoch: placement.epoch }, true))
            }
        }
    }

    /// What a takeover with these candidates would tell the user while it finds no place; none when it finds one, or the
    /// machine has no owner. Where the record says so already, asking for it would only write.
    pub fn takeover_waits(&self, machine: &MachineRecord, candidates: &[NodeId]) -> Option<String> {
        let refusal = self.successor(machine, &machine.placement?, candidates).err()?;
        Some(clip(&refusal.message, REASON_BYTES_MAX))
    }

    /// Why a machine can go nowhere else than to the owner that it is taken from.
    fn bound_to(&self, machine: &MachineRecord, from: NodeId) -> Option<String> {
        machine.spec.pinned.filter(|pinned| *pinned == from)?;
        Some(match self.nodes.get(&from) {
            Some(record) => format!("pinned to {}, which does not answer: it runs again when {0} is back", record.name),
            None => {
                format!("pinned to {}, which was removed from the cluster: delete it and make it anew", from.short())
            }
        })
    }

    /// Design section 8: until the destination runs, ownership goes to destination or source only. Cordons do not count:
    /// the disk is there.
    fn either_end(
        &self,
        machine: &MachineRecord,
        placement: &Placement,
        source: NodeId,
        candidates: &[NodeId],
    ) -> Result<(NodeId, Previous, bool), Refusal> {
        let ends = candidates.iter().copied().filter(|node| *node == source || *node == placement.node);
        for node in ends {
            if self.check_present(node).is_ok() && self.check_room(&machine.spec.resources, machine.id, node).is_ok() {
                let kept = placement.previous.filter(|_| node == placement.node);
                let previous = kept.unwrap_or(Previous { node: placement.node, epoch: placement.epoch });
                return Ok((node, previous, false));
            }
        }
        let (to, from) = (self.name_of(placement.node), self.name_of(source));
        Err(Refusal::new(codes::NO_NODE, format!("its move from {from} to {to} is not settled: waiting for either"))
            .field("machine", &machine.name)
            .hint(format!("bring {from} or {to} back")))
    }
}

/// A machine that is not to run needs no owner.
fn wanted(machine: &MachineRecord) -> Result<(), Refusal> {
    if machine.desired == Desired::Running {
        return Ok(());
    }
    Err(Refusal::new(codes::NOT_WANTED, format!("machine {} is not to run", machine.name))
        .field("machine", &machine.name))
}

pub(super) fn not_settled(machine: &MachineRecord) -> Refusal {
    Refusal::new(codes::MOVING, format!("the last move of machine {} is not settled yet", machine.name))
        .field("machine", &machine.name)
        .hint("wait until it runs")
}

fn check_candidates(candidates: &[NodeId]) -> Result<(), Refusal> {
    if candidates.len() <= PLACE_CANDIDATES_MAX {
        return Ok(());
    }
    Err(Refusal::new(codes::INVALID, format!("a machine has at most {PLACE_CANDIDATES_MAX} candidates"))
        .field("candidates", candidates.len()))
}
