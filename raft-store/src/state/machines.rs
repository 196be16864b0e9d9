//! Machines as tenants see them: creation, wanted state, labels, restarts, and the end of a deleted one.

use fabric::ids::{MachineId, NodeId};
use fabric::limits::MACHINES_MAX;
use fabric::model::{Desired, MachineRecord, MachineSpec, Name, check};
use fabric::rpc::Refusal;

use super::nodes::patched;
use super::{State, check_name, check_revision};
use crate::codes;
use crate::command::{LabelPatch, Outcome};

pub(super) fn no_machine(id: MachineId) -> Refusal {
    Refusal::new(codes::NOT_FOUND, format!("there is no machine {}", id.short()))
        .field("machine", id)
        .hint("`smartnode machine list` shows them")
}

impl State {
    pub(super) fn machine_of(&self, id: MachineId) -> Result<&MachineRecord, Refusal> {
        self.machines.get(&id).ok_or_else(|| no_machine(id))
    }

    /// The machine, unless it is on its way out.
    fn living(&self, id: MachineId, expected: Option<u64>) -> Result<&MachineRecord, Refusal> {
        let machine = self.machine_of(id)?;
        check_revision(expected, machine.revision)?;
        if machine.desired == Desired::Deleted {
            return Err(Refusal::new(codes::DELETED, format!("machine {} is being deleted", machine.name))
                .field("machine", &machine.name));
        }
        Ok(machine)
    }

    pub(super) fn create_machine(
        &mut self,
        id: MachineId,
        tenant: &Name,
        name: &Name,
        spec: &MachineSpec,
        desired: Desired,
    ) -> Result<Outcome, Refusal> {
        check_name("name", name)?;
        if desired == Desired::Deleted {
            return Err(
                Refusal::new(codes::INVALID, "a machine is made running or stopped").field("desired", "deleted")
            );
        }
        self.tenant_of(tenant)?;
        check::spec(spec)?;
        if self.machine_by_name(tenant, name).is_some() || self.machines.contains_key(&id) {
            return Err(Refusal::new(codes::EXISTS, format!("tenant {tenant} has a machine {name} already"))
                .field("name", name)
                .hint("choose another name, or delete that one first"));
        }
        let image = self.image_of(tenant, &spec.image)?.digest;
        if let Some(node) = spec.pinned {
            self.node_of(node)?;
        }
        if self.machines.len() >= MACHINES_MAX {
            return Err(Refusal::new(codes::LIMIT, format!("there are {MACHINES_MAX} machines, and no more fit")));
        }
        self.check_quota(tenant, &spec.resources)?;
        let revision = self.revision();
        self.insert_machine(MachineRecord {
            id,
            tenant: tenant.clone(),
            name: name.clone(),
            spec: spec.clone(),
            image,
            desired,
            restarts: 0,
            epoch: 0,
            placement: None,
            failures: 0,
            not_before_ms: 0,
            waiting: None,
            ended: None,
            created_ms: self.now_ms(),
            revision,
        });
        Ok(Outcome::Created { id, revision })
    }

    pub(super) fn set_desired(
        &mut self,
        id: MachineId,
        desired: Desired,
        over: Option<u64>,
        expected: Option<u64>,
    ) -> Result<Outcome, Refusal> {
        let machine = self.machine_of(id)?;
        let anew = desired == Desired::Running && over == Some(machine.restarts);
        if desired == machine.desired && !anew {
            check_revision(expected, machine.revision)?;
            return Ok(Outcome::Done { revision: machine.revision });
        }
        let machine = self.living(id, expected)?;
        let owner = machine.placement.map(|p| p.node);
        if desired == Desired::Deleted && owner.is_none_or(|node| !self.nodes.contains_key(&node)) {
            // Nobody is left to destroy it first.
            self.delete_machine(id);
            return Ok(Outcome::Removed);
        }
        self.change_machine(id, |machine| {
            machine.desired = desired;
            machine.waiting = None;
            if desired == Desired::Running {
                // The user asks anew: the back-off of earlier failures is over, and a run that has ended is over, too.
                (machine.failures, machine.not_before_ms) = (0, 0);
                machine.restarts += 1;
                machine.ended = None;
            }
            if let (Desired::Deleted, Some(placement)) = (desired, &mut machine.placement) {
                // What is to be destroyed is not moved: this competes with SWITCH as an ABORT does.
                placement.moving = None;
            }
        });
        Ok(Outcome::Done { revision: self.revision() })
    }

    pub(super) fn update_labels(
        &mut self,
        id: MachineId,
        patch: &LabelPatch,
        expected: Option<u64>,
    ) -> Result<Outcome, Refusal> {
        let labels = patched(&self.living(id, expected)?.spec.labels, patch)?;
        let revision = self.revision();
        // Nothing follows from labels, so the index is left alone.
        match self.machines.get_mut(&id) {
            Some(machine) if machine.spec.labels != labels => {
                machine.spec.labels = labels;
                machine.revision = revision;
                Ok(Outcome::Done { revision })
            }
            Some(machine) => Ok(Outcome::Done { revision: machine.revision }),
            None => Err(no_machine(id)),
        }
    }

    pub(super) fn restart_machine(&mut self, id: MachineId, expected: Option<u64>) -> Result<Outcome, Refusal> {
        let machine = self.living(id, expected)?;
        if machine.desired != Desired::Running {
            return Err(Refusal::new(codes::NOT_WANTED, format!("machine {} is stopped", machine.name))
                .field("machine", &machine.name)
                .hint("start it: `smartnode machine start`"));
        }
        self.change_machine(id, |machine| {
            machine.restarts += 1;
            // The user asks anew, as by a start.
            (machine.failures, machine.not_before_ms) = (0, 0);
        });
        Ok(Outcome::Done { revision: self.revision() })
    }

    pub(super) fn forget(&mut self, actor: NodeId, id: MachineId, epoch: u64) -> Result<Outcome, Refusal> {
        let Some(machine) = self.machines.get(&id) else { return Ok(Outcome::Removed) };
        if machine.desired != Desired::Deleted {
            return Err(Refusal::new(codes::NOT_DELETED, format!("machine {} is not to be deleted", machine.name))
                .field("machine", id));
        }
        if machine.placement.is_some() {
            self.owned_placement(actor, id, epoch)?;
        }
        self.delete_machine(id);
        Ok(Outcome::Removed)
    }
}
