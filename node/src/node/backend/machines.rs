//! Machines and images through the admin port.

use std::collections::BTreeMap;

use fabric::ids::{MachineId, NodeId};
use fabric::model::{Desired, ImageRecord, Labels, MachineRecord, MachineState, MachineStatus, Name};
use fabric::seams::draw;
use raft_store::command::{Command, LabelPatch, Outcome};

use super::{NodeBackend, observed, unexpected, views};
use crate::api::backend::*;
use crate::api::failure::Failure;
use crate::caretaker;

impl NodeBackend {
    pub(super) fn record(&self, tenant: &Name, name: &Name) -> Result<MachineRecord> {
        let found = self.context.ledger.read(|state| state.machine_by_name(tenant, name).cloned());
        found.ok_or_else(|| Failure::not_found("machine", name))
    }

    /// A machine's record and who owns it now.
    pub(super) fn owned(&self, tenant: &Name, name: &Name) -> Result<(MachineRecord, NodeId)> {
        let record = self.record(tenant, name)?;
        let Some(placement) = record.placement else {
            let why = record.waiting.clone().unwrap_or_else(|| "it has no node yet".into());
            return Err(Failure::new("not-placed", format!("machine {name} is not running anywhere: {why}"))
                .hint(format!("smartnode machine inspect {name}")));
        };
        Ok((record, placement.node))
    }

    async fn view(&self, record: MachineRecord) -> MachineView {
        let mut observed = observed::of(&self.context, std::slice::from_ref(&record)).await;
        let status = observed.statuses.remove(&record.id);
        views::machine(&self.context, record, status)
    }

    /// The machine as the ledger has it after a write; the id is known.
    async fn written(&self, id: MachineId) -> Result<MachineView> {
        let found = self.context.ledger.read(|state| state.machines.get(&id).cloned());
        Ok(self.view(found.ok_or_else(|| Failure::not_found("machine", id))?).await)
    }

    pub(super) async fn make_machine(&self, write: &Write, tenant: &Name, new: NewMachine) -> Result<MachineView> {
        let command = Command::CreateMachine {
            id: MachineId(draw(&*self.context.seams.entropy)),
            tenant: tenant.clone(),
            name: new.name.clone(),
            spec: Box::new(new.spec.clone()),
            desired: new.desired,
        };
        let id = match self.write(write, command).await? {
            Outcome::Created { id, .. } => id,
            other => return Err(unexpected(&other)),
        };
        if write.dry_run {
            return Ok(self.imagined(id, tenant, new));
        }
        // The node that receives the request schedules it; should it die here, the caretaker does.
        let record = self.context.ledger.read(|state| state.machines.get(&id).cloned());
        if let Some(record) = record.filter(|record| record.placement.is_none() && record.desired == Desired::Running) {
            caretaker::driver::place(&self.context, &[id], &BTreeMap::from([(id, record)])).await;
        }
        self.written(id).await
    }

    /// What a dry run shows: the machine that would be made.
    fn imagined(&self, id: MachineId, tenant: &Name, new: NewMachine) -> MachineView {
        let image = self.context.ledger.read(|state| {
            state.images.get(&(tenant.clone(), new.spec.image.clone())).map(|image| image.digest).unwrap_or_default()
        });
        let record = MachineRecord {
            id,
            tenant: tenant.clone(),
            name: new.name,
            spec: new.spec,
            image,
            desired: new.desired,
            restarts: 0,
            epoch: 0,
            placement: None,
            failures: 0,
            not_before_ms: 0,
            waiting: Some("a dry run: nothing was made".into()),
            ended: None,
            created_ms: self.context.now_ms(),
            revision: 0,
        };
        views::machine(&self.context, record, None)
    }

    pub(super) async fn machines(&self, tenant: &Name, query: &Query) -> Result<Page<MachineView>> {
        let context = &self.context;
        let node = query.node.as_deref().map(|node| views::find_node(context, node)).transpose()?.map(|node| node.id);
        let wanted = |record: &&MachineRecord| {
            let on = node.is_none_or(|node| record.placement.is_some_and(|placement| placement.node == node));
            let labelled = query.labels.iter().all(|(key, value)| {
                let have = record.spec.labels.get(key);
                have.is_some() && value.as_ref().is_none_or(|value| have == Some(value))
            });
            on && labelled
        };
        let records: Vec<MachineRecord> = context.ledger.read(|state| {
            let after = |record: &&MachineRecord| {
                query.after.as_ref().is_none_or(|after| record.name.as_str() > after.as_str())
            };
            let all = state.machines_of(tenant).filter(after).filter(wanted);
            // A filter on observed state is known only after asking, so then nothing is cut before.
            let bound = if query.state.is_some() { usize::MAX } else { query.limit + 1 };
            all.take(bound).cloned().collect()
        });
        let mut observed = observed::of(context, &records).await;
        let with_status = records.into_iter().map(|record| {
            let status = observed.statuses.remove(&record.id);
            (record, status)
        });
        let views = with_status.map(|(record, status)| views::machine(context, record, status));
        let matching = views.filter(|view| {
            let state = view.status.as_ref().map_or(fabric::model::MachineState::Pending, |status| status.state);
            query.state.is_none_or(|wanted| wanted == state)
        });
        let views = matching.map(|view| (view.record.name.to_string(), view));
        let mut page = self.page(query, views.collect::<Vec<_>>().into_iter());
        page.unreachable = observed.unreachable;
        Ok(page)
    }

    pub(super) async fn inspect(&self, tenant: &Name, name: &Name) -> Result<One<MachineView>> {
        let record = self.record(tenant, name)?;
        let mut observed = observed::of(&self.context, std::slice::from_ref(&record)).await;
        let status = observed.statuses.remove(&record.id);
        let mut one = self.one(views::machine(&self.context, record, status));
        one.unreachable = observed.unreachable;
        Ok(one)
    }

    pub(super) async fn want(
        &self,
        write: &Write,
        tenant: &Name,
        name: &Name,
        desired: Desired,
    ) -> Result<MachineView> {
        let record = self.record(tenant, name)?;
        let runs = desired == Desired::Running && record.desired == Desired::Running;
        let over = if runs { self.run_that_is_over(&record).await } else { None };
        let command = Command::SetDesired { machine: record.id, desired, over, expected_revision: write.if_revision };
        self.write(write, command).await?;
        match self.written(record.id).await {
            // A machine that had no node is gone with the write that deleted it.
            Err(_) if desired == Desired::Deleted => {
                Ok(views::machine(&self.context, MachineRecord { desired, placement: None, ..record }, None))
            }
            result => result,
        }
    }

    /// The run that its owner shows as over, if it does: the ledger may learn of the end only later, and must not take it for
    /// that of the run that is asked for now.
    async fn run_that_is_over(&self, record: &MachineRecord) -> Option<u64> {
        let mut observed = observed::of(&self.context, std::slice::from_ref(record)).await;
        let status = observed.statuses.remove(&record.id)?;
        is_over(record, &status).then_some(record.restarts)
    }

    pub(super) async fn relabel(
        &self,
        write: &Write,
        tenant: &Name,
        name: &Name,
        labels: Labels,
    ) -> Result<MachineView> {
        let record = self.record(tenant, name)?;
        let gone = record.spec.labels.keys().filter(|key| !labels.contains_key(*key)).cloned().collect();
        let patch = LabelPatch { set: labels, remove: gone };
        let command = Command::UpdateLabels { machine: record.id, patch, expected_revision: write.if_revision };
        self.write(write, command).await?;
        // Labels are the ledger's alone: the owner need not be asked.
        let found = self.context.ledger.read(|state| state.machines.get(&record.id).cloned());
        Ok(views::machine(&self.context, found.unwrap_or(record), None))
    }

    pub(super) async fn restart_once(&self, write: &Write, tenant: &Name, name: &Name) -> Result<MachineView> {
        let record = self.record(tenant, name)?;
        let command = Command::RestartMachine { machine: record.id, expected_revision: write.if_revision };
        self.write(write, command).await?;
        self.written(record.id).await
    }

    pub(super) async fn pack_image(
        &self,
        write: &Write,
        tenant: &Name,
        name: Name,
        paths: Vec<String>,
    ) -> Result<ImageRecord> {
        if !matches!(write.caller.rights, Rights::Operator) {
            return Err(Failure::denied("only an operator may read files of the host into an image")
                .hint("run it as root on a node that was admitted as voter"));
        }
        let packed = self.context.images.pack(paths, write.dry_run).await?;
        let command = Command::PutImage {
            tenant: tenant.clone(),
            name: name.clone(),
            digest: packed.digest,
            size_bytes: packed.size_bytes,
            expected_revision: write.if_revision,
        };
        self.write(write, command).await?;
        let found = self.context.ledger.read(|state| state.images.get(&(tenant.clone(), name.clone())).cloned());
        Ok(found.unwrap_or(ImageRecord {
            tenant: tenant.clone(),
            name,
            digest: packed.digest,
            size_bytes: packed.size_bytes,
            created_ms: self.context.now_ms(),
            revision: 0,
        }))
    }
}

/// What its owner observes is over and was the last run that anybody has asked for.
fn is_over(record: &MachineRecord, status: &MachineStatus) -> bool {
    matches!(status.state, MachineState::Exited | MachineState::Failed)
        && record.placement.is_some_and(|placement| placement.epoch == status.epoch)
        && record.restarts == status.requested_restarts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn a_run_is_over_only_when_no_later_one_was_asked_for() {
        let record = fixtures::machine(1, Some(fixtures::placed(NodeId([1; 32]), 1)));
        let of = |state| fixtures::status(record.id, state);
        assert!(is_over(&record, &of(MachineState::Exited)) && is_over(&record, &of(MachineState::Failed)));
        for state in [MachineState::Running, MachineState::Restarting, MachineState::Frozen, MachineState::Stopped] {
            assert!(!is_over(&record, &of(state)), "{state:?}");
        }
        let exited = of(MachineState::Exited);
        assert!(!is_over(&MachineRecord { restarts: 1, ..record.clone() }, &exited), "it is about to be started");
        assert!(!is_over(&record, &MachineStatus { epoch: 2, ..exited.clone() }), "another placement");
        assert!(!is_over(&MachineRecord { placement: None, ..record.clone() }, &exited));
    }
}
