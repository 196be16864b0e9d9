//! From records and observations to what the API shows.

use std::time::Duration;

use fabric::human;
use fabric::ids::NodeId;
use fabric::membership::State as MemberState;
use fabric::model::{MachineRecord, MachineState, MachineStatus, Name, NodeRecord, NodeState};
use raft_store::state::State;

use crate::api::backend::{Liveness, MachineView, NodeView};
use crate::api::failure::Failure;
use crate::node::context::Context;

/// Fewest digits by which a node may be named.
const ID_DIGITS_MIN: usize = 6;
/// Digits of a short id.
const SHORT_ID_DIGITS: usize = 10;
/// Depth of the tenants' tree that is looked at.
const TENANT_DEPTH_MAX: usize = 64;

/// A node by name, id, or the beginning of its id when that is unambiguous.
pub fn find_node(context: &Context, text: &str) -> Result<NodeRecord, Failure> {
    context.ledger.read(|state| {
        let named = text.parse::<Name>().ok().and_then(|name| state.node_by_name(&name));
        if let Some(record) = named {
            return Ok(record.clone());
        }
        if text.len() < ID_DIGITS_MIN || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Failure::not_found("node", text));
        }
        let mut found = state.nodes.values().filter(|record| record.id.to_string().starts_with(text));
        match (found.next(), found.next()) {
            (Some(record), None) => Ok(record.clone()),
            (Some(_), Some(_)) => Err(Failure::invalid("node", text, "several nodes begin with this id")),
            _ => Err(Failure::not_found("node", text)),
        }
    })
}

/// Everything about a node.
pub fn node(context: &Context, record: NodeRecord) -> NodeView {
    let (liveness, liveness_since_ms) = liveness(context, record.id);
    let state = context.gossiped().get(&record.id).map(|state| NodeState::clone(state));
    let (free, machines) =
        context.ledger.read(|ledger| (ledger.free(record.id), ledger.machines_on(record.id).count() as u32));
    NodeView { record, liveness, liveness_since_ms, state, free, machines }
}

/// What membership says of a node; this one is alive.
pub fn liveness(context: &Context, node: NodeId) -> (Liveness, u64) {
    if node == context.me {
        return (Liveness::Alive, context.started_ms);
    }
    let members = context.membership.members();
    let members = members.borrow();
    match members.get(&node) {
        None => (Liveness::Unknown, context.started_ms),
        Some(member) => {
            let liveness = match member.state {
                MemberState::Alive => Liveness::Alive,
                MemberState::Suspect => Liveness::Suspect,
                MemberState::Down => Liveness::Down,
            };
            (liveness, member.since_ms)
        }
    }
}

fn name_of(state: &State, node: NodeId) -> Name {
    let record = state.nodes.get(&node).map(|record| record.name.clone());
    // A removed node has no record any more; its short id is a valid name.
    record.unwrap_or_else(|| node.short().parse().expect("hexadecimal digits are a name"))
}

/// A machine with the names of its nodes.
pub fn machine(context: &Context, mut record: MachineRecord, status: Option<MachineStatus>) -> MachineView {
    let now_ms = context.ledger.now_ms();
    let waits = record.failures > 0 && (record.placement.is_none() || record.not_before_ms > now_ms);
    if let Some(why) = record.waiting.as_mut().filter(|_| waits) {
        let left = human::duration(Duration::from_millis(record.not_before_ms.saturating_sub(now_ms)));
        why.push_str(&format!("; attempt {} in {left}", record.failures + 1));
    }
    let (node, pinned, moving_to) = context.ledger.read(|state| {
        let placement = record.placement;
        (
            placement.map(|placement| name_of(state, placement.node)),
            record.spec.pinned.map(|node| name_of(state, node)),
            placement.and_then(|placement| placement.moving).map(|moving| name_of(state, moving.to)),
        )
    });
    let status = ended(&record, status);
    MachineView { record, node, pinned, moving_to, status }
}

/// What is told of a machine that has run to its end: the ledger knows it, also when its node is gone, or had the machine
/// brought to it later.
fn ended(record: &MachineRecord, status: Option<MachineStatus>) -> Option<MachineStatus> {
    let Some(code) = record.ended else { return status };
    let mut status = status.unwrap_or_else(|| MachineStatus {
        id: record.id,
        epoch: record.epoch,
        state: MachineState::Stopped,
        pid: None,
        started_ms: None,
        restarts: 0,
        requested_restarts: record.restarts,
        exit_code: None,
        reason: None,
        cpu_micros: 0,
        memory_bytes: 0,
        memory_floor: String::new(),
    });
    if matches!(status.state, MachineState::Stopped | MachineState::Exited) {
        status.state = MachineState::Exited;
        status.exit_code = Some(code);
        status.reason.get_or_insert_with(|| format!("its program ended with {code}"));
    }
    Some(status)
}

/// `tenant` is `root` or below it.
pub fn is_below(context: &Context, tenant: &Name, root: &Name) -> bool {
    context.ledger.read(|state| {
        let mut at = Some(tenant.clone());
        for _ in 0..TENANT_DEPTH_MAX {
            match at {
                Some(name) if name == *root => return true,
                Some(name) => at = state.tenants.get(&name).and_then(|record| record.parent.clone()),
                None => return false,
            }
        }
        false
    })
}

/// Words with the names of nodes in place of their short ids, where `name_of` knows them.
pub fn in_names(words: &str, name_of: impl Fn(&str) -> Option<String>) -> String {
    let is_id = |word: &&str| word.len() == SHORT_ID_DIGITS && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut out = String::with_capacity(words.len());
    for piece in words.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        out.push_str(Some(word).filter(is_id).and_then(&name_of).as_deref().unwrap_or(word));
        out.push_str(&piece[word.len()..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_speak_of_nodes_by_name() {
        let name_of = |short: &str| (short == "213fbb09fc").then(|| "n2".to_owned());
        let said = |words: &str| in_names(words, name_of);
        assert_eq!(said("node 213fbb09fc did not answer within 5s"), "node n2 did not answer within 5s");
        assert_eq!(said("voters: [213fbb09fc, 0011223344]"), "voters: [n2, 0011223344]", "others stay");
        assert_eq!(said("x213fbb09fc, 213fbb09fcé 213fbb09fc"), "x213fbb09fc, n2é n2");
        assert_eq!(said(""), "");
    }
}
