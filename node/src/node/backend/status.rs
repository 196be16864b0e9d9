//! `status`, readiness and metrics.

use fabric::model::{MachineState, Name};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::views;
use crate::api::backend::{Liveness, StatusView, VoterView};
use crate::api::failure::Failure;
use crate::node::context::Context;

/// Ready when the ledger's records have arrived here.
pub fn ready(context: &Context) -> Result<(), Failure> {
    if context.shutdown.is_cancelled() {
        return Err(Failure::new("not-ready", "this node is stopping"));
    }
    let status = context.ledger.status();
    if let Some(reason) = status.halted {
        return Err(Failure::new("not-ready", format!("the ledger has halted on this node: {reason}")));
    }
    if !context.ledger.read(|state| state.nodes.contains_key(&context.me)) {
        return Err(Failure::new("not-ready", "the ledger has not reached this node yet"));
    }
    Ok(())
}

/// This node and the cluster as it sees it.
pub fn view(context: &Context) -> StatusView {
    let ledger = context.ledger.status();
    let name = |node| -> Name { context.node_name(node).parse().unwrap_or_else(|_| context.name.clone()) };
    let alive = |node| matches!(views::liveness(context, node).0, Liveness::Alive | Liveness::Suspect);
    let (ids, machines, unplaced, feature_level, epoch) = context.ledger.read(|state| {
        let ids: Vec<_> = state.nodes.keys().copied().collect();
        let unplaced = state.unplaced().count() as u32;
        (ids, state.machines.len() as u32, unplaced, state.settings.feature_level, state.settings.epoch)
    });
    let mut nodes = [0; 3];
    for id in ids {
        let at = match views::liveness(context, id).0 {
            Liveness::Alive => 0,
            Liveness::Suspect => 1,
            Liveness::Down | Liveness::Unknown => 2,
        };
        nodes[at] += 1;
    }
    let mut voters: Vec<_> =
        ledger.voters.iter().map(|voter| VoterView { name: name(*voter), alive: alive(*voter) }).collect();
    voters.sort_by(|a, b| a.name.cmp(&b.name));
    let living = voters.iter().filter(|voter| voter.alive).count();
    let quorum = voters.len() / 2 + 1;
    StatusView {
        cluster: context.cluster,
        node: context.me,
        name: context.name.clone(),
        address: context.advertise.to_string(),
        role: context.role,
        raft: ledger.part,
        leader: ledger.leader.map(name),
        term: ledger.term,
        applied: ledger.applied,
        epoch,
        tolerance: living.saturating_sub(quorum) as u32,
        tolerance_words: ledger.tolerance_words,
        voters,
        standbys: ledger.standbys.iter().map(|node| name(*node)).collect(),
        nodes,
        machines: [machines, unplaced],
        no_machines: context.runtime.unsupported().map(str::to_owned),
        feature_level,
        started_ms: context.started_ms,
        staleness_ms: super::staleness_ms(context),
    }
}

/// OpenMetrics text. Families are made at each scrape from what is known then: nothing is counted twice.
pub async fn metrics(context: &Context) -> String {
    let mut registry = Registry::with_prefix("smartnode");
    let mut gauge = |name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    let status = view(context);
    gauge("raft_term", "Raft's term", status.term as i64);
    gauge("raft_applied_index", "Ledger index that this node has applied", status.applied as i64);
    gauge("raft_tolerance", "Live voters that may be lost before writes stop", i64::from(status.tolerance));
    gauge("ledger_staleness_ms", "Age of this node's copy of the ledger", status.staleness_ms as i64);
    gauge("ledger_syncs", "Syncs of the ledger's database since this daemon started", context.ledger.syncs() as i64);
    for (state, count) in [("alive", 0), ("suspect", 1), ("down", 2)].map(|(state, at)| (state, status.nodes[at])) {
        gauge(&format!("nodes_{state}"), "Admitted nodes by liveness", i64::from(count));
    }
    gauge("machines", "Machines in the ledger", i64::from(status.machines[0]));
    gauge("machines_unplaced", "Machines that wait for a place", i64::from(status.machines[1]));
    let observed = context.runtime.list().await.unwrap_or_default();
    let running = observed.iter().filter(|machine| machine.status.state == MachineState::Running).count();
    gauge("machines_running", "Machines that run on this node", running as i64);
    gauge("peers_connected", "Open connections to peers", context.transport.peers().len() as i64);
    let swim = context.membership.counters();
    gauge("membership_datagrams_in", "Membership datagrams received", swim.datagrams_in as i64);
    gauge("membership_datagrams_out", "Membership datagrams sent", swim.datagrams_out as i64);
    gauge("membership_refused", "Membership datagrams refused", swim.refused as i64);
    gauge("membership_health", "Local health: 0 is good", i64::from(swim.health));
    let mut text = String::new();
    if encode(&mut text, &registry).is_err() {
        tracing::warn!("metrics were not encoded");
    }
    text.trim_end().trim_end_matches("# EOF").to_owned()
}
