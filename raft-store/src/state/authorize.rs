//! Who may ask for what (design section 4).
//!
//! A voter-role node speaks for the operator and for the fabric. A worker node speaks for itself alone: its own record and
//! the machines that it owns. A tenant's token speaks for its tenant and those below it.

use fabric::ids::{MachineId, NodeId};
use fabric::model::{Name, Role};
use fabric::rpc::Refusal;

use super::State;
use crate::codes;
use crate::command::{Actor, Command, CommandV1};

impl State {
    pub(super) fn authorize(&self, actor: &Actor, command: &Command) -> Result<(), Refusal> {
        if !self.initialized() {
            return match command {
                Command::InitCluster { node, .. } if node.id == actor.node && actor.tenant.is_none() => Ok(()),
                _ => Err(Refusal::new(codes::NOT_INITIALIZED, "this ledger has no cluster yet")
                    .hint("run `smartnode init` on the first host, `smartnode join` on the others")),
            };
        }
        let Some(node) = self.nodes.get(&actor.node) else {
            return Err(denied(format!("node {} is not admitted to this cluster", actor.node.short())));
        };
        if let Some(tenant) = &actor.tenant {
            if node.role == Role::Worker {
                return Err(denied(format!("node {} is a worker and speaks for itself alone", node.name))
                    .hint("send the request to a node with role voter"));
            }
            return self.authorize_tenant(tenant, command);
        }
        match node.role {
            Role::Voter => Ok(()),
            Role::Worker if self.is_about(node.id, command) => Ok(()),
            Role::Worker => Err(denied(format!("node {} is a worker and speaks for itself alone", node.name))
                .hint("send the request to a node with role voter")),
        }
    }

    /// Whether a command concerns `node` and what it owns, and nothing else.
    fn is_about(&self, node: NodeId, command: &Command) -> bool {
        use CommandV1::*;
        match command {
            // The token is the credential; a worker only passes it on.
            AdmitNode { .. } => true,
            UpdateNode { node: subject, .. }
            | RemoveNode { node: subject, .. }
            | PlanAbsence { node: subject, .. }
            | EndAbsence { node: subject } => *subject == node,
            Confirm { machine, .. }
            | Ended { machine, .. }
            | Failed { machine, .. }
            | Release { machine, .. }
            | Forget { machine, .. }
            | MoveBegin { machine, .. }
            | MoveSwitch { machine, .. } => self.owns(node, *machine),
            // Either end may give a move up.
            MoveAbort { machine, .. } => self.index.holds(node, *machine),
            _ => false,
        }
    }

    fn owns(&self, node: NodeId, machine: MachineId) -> bool {
        self.machines.get(&machine).and_then(|m| m.placement).is_some_and(|p| p.node == node)
    }

    fn authorize_tenant(&self, actor: &Name, command: &Command) -> Result<(), Refusal> {
        use CommandV1::*;
        let allowed = match command {
            CreateMachine { tenant, .. } | PutImage { tenant, .. } | DeleteImage { tenant, .. } => {
                self.is_within(tenant, actor)
            }
            SetDesired { machine, .. }
            | UpdateLabels { machine, .. }
            | RestartMachine { machine, .. }
            | MoveBegin { machine, .. }
            | MoveAbort { machine, .. } => match self.machines.get(machine) {
                Some(record) => self.is_within(&record.tenant, actor),
                // The same answer as for a machine that is not there: what others own is not told.
                None => true,
            },
            // A tenant rules those below it; its own limits are its parent's business.
            CreateTenant { parent: Some(parent), .. } => self.is_within(parent, actor),
            DeleteTenant { name, .. } | SetQuota { name, .. } => name != actor && self.is_within(name, actor),
            _ => false,
        };
        if allowed {
            return Ok(());
        }
        match command {
            SetDesired { machine, .. }
            | UpdateLabels { machine, .. }
            | RestartMachine { machine, .. }
            | MoveBegin { machine, .. }
            | MoveAbort { machine, .. } => Err(super::machines::no_machine(*machine)),
            _ => Err(denied(format!("a token of tenant {actor} may not {}", command.verb()))
                .hint("use a token of the tenant concerned, or ask an operator")),
        }
    }
}

fn denied(message: String) -> Refusal {
    Refusal::new(codes::DENIED, message)
}

impl State {
    /// `name` and the tenants above it, bottom up. Bounded by the tree's depth, whatever the records say.
    pub(super) fn lineage(&self, name: &Name) -> Vec<Name> {
        let mut line = Vec::new();
        let mut next = Some(name.clone());
        while let Some(name) = next.take() {
            if line.len() >= crate::limits::TENANT_DEPTH_MAX {
                break;
            }
            next = self.tenants.get(&name).and_then(|tenant| tenant.parent.clone());
            line.push(name);
        }
        line
    }

    /// Whether `tenant` is `root` or below it.
    pub fn is_within(&self, tenant: &Name, root: &Name) -> bool {
        self.lineage(tenant).contains(root)
    }
}
