//! What a node does all the time, each a small loop: tell peers about itself, follow whom to trust, renew its
//! certificate, announce its address, remember peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fabric::identity::Credentials;
use fabric::ids::NodeId;
use fabric::model::{Capacity, Labels, MachineState, NodeRecord, NodeState};
use fabric::rpc::Rpc;
use fabric::wire;
use raft_store::command::{Actor, Command, LabelPatch, NodePatch};
use raft_store::ledger::{Ledger, LedgerError};
use tokio::sync::watch;

use super::asks::{TOMBSTONES, TombstonesV1};
use super::context::Context;
use super::dir::{ClusterFile, PEERS_MAX};
use super::lease;

/// A node looks at its state this often, and tells what changed.
const TELL: Duration = Duration::from_secs(1);
/// Changes of its pressure alone wait so many looks: each statement costs every node of the cell a signature check.
const TELL_PRESSURE: u32 = 10;
/// Digests of images that fit a statement.
const IMAGES_TOLD_MAX: usize = 64;
/// Certificates are looked at this often; a renewal that failed is tried again then.
const RENEWAL_LOOK: Duration = Duration::from_secs(60);
/// A renewal's deadline.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Peers are written down at most this often.
const REMEMBER: Duration = Duration::from_secs(10);
/// Deadline of a question about tombstones.
const TRUST_TIMEOUT: Duration = Duration::from_secs(2);
/// Nodes asked about tombstones in one round, until one answers.
const TRUST_ASKED_MAX: usize = 3;
/// Between two tries to announce this node's address and capacity.
const ANNOUNCE_RETRY: Duration = Duration::from_secs(2);
/// The same after the ledger has refused something.
const ANNOUNCE_REFUSED: Duration = Duration::from_secs(60);

/// Waits, or returns false because the node stops.
async fn pause(context: &Context, how_long: Duration) -> bool {
    tokio::select! {
        biased;
        () = context.shutdown.cancelled() => false,
        () = tokio::time::sleep(how_long) => true,
    }
}

/// Gossips this node's state.
pub async fn tell(context: Arc<Context>) {
    let (mut told, mut looks) = (None, 0);
    loop {
        let now = statement(&context).await;
        looks += 1;
        if looks >= TELL_PRESSURE || told.as_ref().is_none_or(|told| !same_but_for_pressure(told, &now)) {
            context.gossip.publish(now.clone());
            (told, looks) = (Some(now), 0);
        }
        if !pause(&context, TELL).await {
            return;
        }
    }
}

/// Whether two statements differ in nothing but what wavers all the time: how busy the host is, how far its ledger.
fn same_but_for_pressure(told: &NodeState, now: &NodeState) -> bool {
    let steady = NodeState {
        memory_available_bytes: told.memory_available_bytes,
        load_millis: told.load_millis,
        applied: told.applied,
        ..now.clone()
    };
    steady == *told
}

async fn statement(context: &Context) -> NodeState {
    let ledger = context.ledger.status();
    let pressure = context.host.pressure();
    let observed = context.runtime.list().await.unwrap_or_default();
    let mut machines = [0; 4];
    for machine in &observed {
        let at = match machine.status.state {
            MachineState::Running | MachineState::Restarting | MachineState::Preparing => 0,
            MachineState::Frozen => 1,
            MachineState::Failed => 3,
            _ => 2,
        };
        machines[at] += 1;
    }
    let mut images = context.images.held();
    images.truncate(IMAGES_TOLD_MAX);
    let mut free: Capacity = context.ledger.read(|state| state.free(context.me));
    if context.room.borrow().full {
        free.disk_bytes = 0;
    }
    let tombstones = context.trust.read().expect("no holder of this lock panics").digest();
    NodeState {
        node: context.me,
        sequence: 0, // gossip numbers its statements
        address: context.advertise,
        version: env!("CARGO_PKG_VERSION").into(),
        capacity: context.offered,
        free,
        memory_available_bytes: pressure.memory_available_bytes,
        load_millis: pressure.load_millis,
        machines,
        images,
        raft: ledger.part,
        leader: ledger.leader,
        applied: (ledger.epoch, ledger.applied),
        tombstones,
    }
}

/// Takes in CAs and tombstones from the ledger, and tombstones from peers whose set differs: a removed node is cut off
/// wherever word of its removal comes first.
pub async fn follow_trust(context: Arc<Context>) {
    let (mut ledger, mut gossip) = (context.ledger.changed(), context.gossip.changed());
    let (mut applied, mut asked) = (u64::MAX, None);
    loop {
        let index = *ledger.borrow_and_update();
        if applied != index {
            applied = index;
            from_ledger(&context);
        }
        from_peers(&context, &mut asked).await;
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return,
            changed = ledger.changed() => if changed.is_err() { return },
            changed = gossip.changed() => if changed.is_err() { return },
        }
    }
}

fn from_ledger(context: &Context) {
    let known: BTreeSet<NodeId> = {
        let trust = context.trust.read().expect("no holder of this lock panics");
        trust.tombstones().keys().copied().collect()
    };
    let (tombstones, cas) = context.ledger.read(|state| {
        let news: Vec<_> = state.tombstones.values().filter(|stone| !known.contains(&stone.node)).cloned().collect();
        (news, state.cas.values().map(|ca| ca.cert_der.clone()).collect::<Vec<_>>())
    });
    accept(context, tombstones, cas);
}

async fn from_peers(context: &Context, asked: &mut Option<NodeId>) {
    let own = context.trust.read().expect("no holder of this lock panics").digest();
    // What the dead said is kept for a while, and they answer nobody.
    let alive = context.membership.active();
    let differing: BTreeSet<NodeId> =
        context.gossiped().values().filter(|said| said.tombstones != own).map(|said| said.node).collect();
    let differing = differing.into_iter().filter(|node| *node != context.me && alive.contains_key(node)).collect();
    // One that answers in a round is enough: another round follows if its set was not all of it.
    for node in in_turn(differing, asked).into_iter().take(TRUST_ASKED_MAX) {
        *asked = Some(node);
        let Ok(answer) = context.transport.call(node, TOMBSTONES, Vec::new(), TRUST_TIMEOUT).await else { continue };
        let Ok(answer) = wire::decode::<TombstonesV1>(&answer) else { continue };
        return accept(context, answer.tombstones, Vec::new());
    }
}

/// Those behind the one that was asked last come first, so that none holds up the others.
fn in_turn(mut nodes: BTreeSet<NodeId>, last: &Option<NodeId>) -> Vec<NodeId> {
    let Some(last) = last else { return nodes.into_iter().collect() };
    let mut later = nodes.split_off(last);
    if later.remove(last) {
        nodes.insert(*last);
    }
    later.into_iter().chain(nodes).collect()
}

fn accept(context: &Context, tombstones: Vec<fabric::model::Tombstone>, cas: Vec<Vec<u8>>) {
    let (removed, changed): (Vec<NodeId>, _) = {
        let mut trust = context.trust.write().expect("no holder of this lock panics");
        let before = (trust.digest(), trust.cas().count());
        for ca in cas {
            if let Err(error) = trust.add_ca(ca) {
                tracing::warn!(%error, "a CA of the ledger was not taken in");
            }
        }
        let named: Vec<NodeId> = tombstones.iter().map(|stone| stone.node).collect();
        let known: Vec<NodeId> = named.into_iter().filter(|node| trust.is_removed(*node)).collect();
        let all: Vec<NodeId> = tombstones.iter().map(|stone| stone.node).collect();
        if let Err(error) = trust.merge(tombstones) {
            tracing::warn!(%error, "tombstones were not taken in");
        }
        let changed = before != (trust.digest(), trust.cas().count());
        let new = all.into_iter().filter(|node| !known.contains(node) && trust.is_removed(*node)).collect();
        (new, changed.then(|| trust.clone()))
    };
    // Handshakes read what is trusted: they must not wait for the disk.
    if let Some(trust) = changed
        && let Err(error) = trust.save(&*context.seams.disk)
    {
        tracing::warn!(%error, "whom to trust could not be written down; it is in force all the same");
    }
    for node in removed {
        tracing::info!(node = %node.short(), "cut off: it was removed from the cluster");
        context.transport.cut(node);
        let membership = context.membership.clone();
        tokio::spawn(async move { membership.remove(node).await });
    }
}

/// Renews this node's certificate when a third of its life is left.
pub async fn renew_certificate(context: Arc<Context>) {
    loop {
        let due = {
            let credentials = context.credentials.read().expect("no holder of this lock panics");
            credentials.renewal_due(context.seams.clock.wall())
        };
        if due {
            renew(&context).await;
        }
        if !pause(&context, RENEWAL_LOOK).await {
            return;
        }
    }
}

async fn renew(context: &Context) {
    let others: BTreeSet<NodeId> =
        context.ledger.status().voters.into_iter().chain(context.membership.active().into_keys()).collect();
    for node in others {
        let Ok(answer) = context.transport.renew(node, RENEWAL_TIMEOUT).await else { continue };
        let key = context.credentials.read().expect("no holder of this lock panics").key.clone();
        let renewed = Credentials::new(key, answer.certificate, answer.ca);
        match renewed.and_then(|renewed| renewed.save(&*context.seams.disk).map(|()| renewed)) {
            Ok(renewed) => {
                context.transport.set_credentials(&renewed);
                *context.credentials.write().expect("no holder of this lock panics") = renewed;
                tracing::info!("the certificate is renewed");
                return;
            }
            Err(error) => tracing::warn!(%error, "a renewed certificate cannot be used"),
        }
    }
    tracing::warn!("the certificate is due for renewal and no peer has renewed it yet");
}

/// What the operator said about this node at its start; none means as it was.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// Failure domain.
    pub zone: Option<String>,
    /// Labels, all of them.
    pub labels: Option<Labels>,
}

impl Said {
    /// Writes it down for this node's next start.
    pub fn note(&self, file: &mut ClusterFile) {
        self.zone.iter().for_each(|zone| file.zone.clone_from(zone));
        self.labels.iter().for_each(|labels| file.labels.clone_from(labels));
    }

    /// What the ledger has otherwise, each change by itself: one that it refuses must not hold up the others. Where the
    /// node listens goes first.
    fn changes(&self, record: &NodeRecord, address: String, capacity: Capacity) -> Vec<NodePatch> {
        let none = NodePatch::default;
        let (zone, labels) = self.patch(record);
        let all = [
            NodePatch { address: Some(address).filter(|address| *address != record.address), ..none() },
            NodePatch { capacity: Some(capacity).filter(|capacity| *capacity != record.capacity), ..none() },
            NodePatch { zone, ..none() },
            NodePatch { labels, ..none() },
        ];
        all.into_iter().filter(|patch| *patch != none()).collect()
    }

    /// What was said that the ledger has otherwise.
    fn patch(&self, record: &NodeRecord) -> (Option<String>, LabelPatch) {
        let zone = self.zone.clone().filter(|zone| *zone != record.zone);
        let labels = self.labels.as_ref().filter(|labels| **labels != record.labels);
        let labels = labels.map_or_else(LabelPatch::default, |labels| LabelPatch {
            set: labels.clone(),
            remove: record.labels.keys().filter(|key| !labels.contains_key(*key)).cloned().collect(),
        });
        (zone, labels)
    }
}

/// Tells the ledger that this node is back, where it listens, what it offers and what was said about it, once after each
/// start.
pub async fn announce(context: Arc<Context>, said: Said) {
    let mut leased = context.lease.subscribe();
    let mut told = BTreeSet::new();
    loop {
        let mut refused = false;
        // A copy of before the restart may lack the absence that this node announced last.
        let current = context.ledger.linearizable().await.is_ok();
        let record = context.ledger.read(|state| state.nodes.get(&context.me).cloned());
        if let Some(record) = record.filter(|_| current) {
            let mut done = true;
            for patch in said.changes(&record, context.advertise.to_string(), context.offered) {
                let update = Command::UpdateNode { node: context.me, patch: Box::new(patch), expected_revision: None };
                match context.ledger.write(Actor::fabric(context.me), None, update).await {
                    Ok(_) => {}
                    Err(LedgerError::Refused(refusal)) => {
                        refused = true;
                        // Each reason once: it is tried again for as long as the node runs.
                        if told.insert(refusal.message.clone()) {
                            tracing::warn!(reason = %refusal, "the cluster does not take what this node says of itself");
                        }
                    }
                    Err(_) => done = false,
                }
            }
            if record.absent_until_ms.is_some() {
                done &= lease::back(&context).await;
            }
            match (done, refused) {
                (true, false) => return,
                // Only time can change that: each try is an entry of the ledger.
                (true, true) if !pause(&context, ANNOUNCE_REFUSED).await => return,
                _ => {}
            }
        }
        // A lease may be what is missing.
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return,
            changed = leased.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(ANNOUNCE_RETRY) => {}
        }
    }
}

/// Whom the ledger has admitted besides this node, and where each said it listens: voters first, at most `PEERS_MAX`.
fn admitted(me: NodeId, ledger: &Ledger) -> Vec<(NodeId, SocketAddr)> {
    let voters: BTreeSet<NodeId> = ledger.status().voters.into_iter().collect();
    let mut admitted: Vec<(NodeId, SocketAddr)> = ledger.read(|state| {
        let others = state.nodes.values().filter(|record| record.id != me);
        others.filter_map(|record| Some((record.id, record.address.parse().ok()?))).collect()
    });
    admitted.sort_by_key(|(node, _)| (!voters.contains(node), *node));
    admitted.truncate(PEERS_MAX);
    admitted
}

/// The peers to write down: whoever is admitted, then others that are seen, where they were seen last; at most `PEERS_MAX`.
///
/// Whoever is admitted stays on the list though it is not seen: a node that writes down only those it sees, and is killed
/// before it sees all, would never find the others again.
fn remembered(admitted: &[(NodeId, SocketAddr)], mut active: BTreeMap<NodeId, SocketAddr>) -> Vec<(NodeId, String)> {
    let mut peers: Vec<_> =
        admitted.iter().map(|(node, address)| (*node, active.remove(node).unwrap_or(*address))).collect();
    peers.extend(active);
    peers.truncate(PEERS_MAX);
    peers.into_iter().map(|(node, address)| (node, address.to_string())).collect()
}

/// Meets again whom this node has forgotten, and writes down whom it knows for its next start.
pub async fn remember_peers(context: Arc<Context>, mut file: ClusterFile) {
    file.advertise = context.advertise.to_string();
    loop {
        let admitted = admitted(context.me, &context.ledger);
        let mut active = context.membership.active();
        active.remove(&context.me);
        for (node, address) in admitted.iter().filter(|(node, _)| !active.contains_key(node)) {
            // What is known already is newer than the ledger's.
            let address = context.transport.address_of(*node).unwrap_or(*address);
            context.transport.learn(*node, address);
            context.membership.learn(*node, address);
        }
        let peers = remembered(&admitted, active);
        // An empty list is no news: whoever is cut off needs the old one most.
        if !peers.is_empty() && peers != file.peers {
            file.peers = peers;
            if let Err(error) = file.save(&*context.seams.disk) {
                tracing::warn!(%error, "peers could not be written down");
            }
        }
        if !pause(&context, REMEMBER).await {
            return;
        }
    }
}

/// Grows one number with everything that a waiting client could wait for.
pub async fn fan_in(context: Arc<Context>, changes: watch::Sender<u64>) {
    let (mut ledger, mut members) = (context.ledger.changed(), context.membership.members());
    let (mut operations, mut runtime) = (context.operations.watch(), context.runtime.watch());
    loop {
        let changed = tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return,
            changed = ledger.changed() => changed,
            changed = members.changed() => changed,
            changed = operations.changed() => changed,
            changed = runtime.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        changes.send_modify(|version| *version += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_asked_last_comes_last() {
        let [a, b, c] = [1, 2, 3].map(|n| NodeId([n; 32]));
        let all = BTreeSet::from([a, b, c]);
        assert_eq!(in_turn(all.clone(), &None), [a, b, c]);
        assert_eq!(in_turn(all.clone(), &Some(a)), [b, c, a]);
        assert_eq!(in_turn(all, &Some(c)), [a, b, c]);
        assert_eq!(in_turn(BTreeSet::from([a, c]), &Some(b)), [c, a]);
        assert_eq!(in_turn(BTreeSet::new(), &Some(b)), []);
    }

    #[test]
    fn what_was_said_at_a_start_replaces_what_the_ledger_has() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
        };
        let record = NodeRecord { zone: "a".into(), labels: labels(&[("disk", "ssd"), ("old", "")]), ..node_record() };
        assert_eq!(Said::default().patch(&record), (None, LabelPatch::default()));
        let same = Said { zone: Some("a".into()), labels: Some(record.labels.clone()) };
        assert_eq!(same.patch(&record), (None, LabelPatch::default()));
        let other = Said { zone: Some("b".into()), labels: Some(labels(&[("disk", "hdd")])) };
        let (zone, patch) = other.patch(&record);
        assert_eq!((zone.as_deref(), patch.set), (Some("b"), labels(&[("disk", "hdd")])));
        assert_eq!(patch.remove.into_iter().collect::<Vec<_>>(), ["old"]);
    }

    #[test]
    fn each_change_is_told_by_itself_and_the_address_first() {
        let record = node_record();
        let said = Said { zone: Some("b".into()), labels: None };
        assert_eq!(Said::default().changes(&record, record.address.clone(), record.capacity), []);
        let capacity = Capacity { cpu_millis: record.capacity.cpu_millis + 1, ..record.capacity };
        let changes = said.changes(&record, "127.0.0.2:7420".into(), capacity);
        let none = NodePatch::default;
        assert_eq!(
            changes,
            [
                NodePatch { address: Some("127.0.0.2:7420".into()), ..none() },
                NodePatch { capacity: Some(capacity), ..none() },
                NodePatch { zone: Some("b".into()), ..none() },
            ]
        );
    }

    fn node_record() -> NodeRecord {
        NodeRecord {
            id: NodeId([1; 32]),
            name: "n1".parse().unwrap(),
            public_key: [1; 32],
            role: fabric::model::Role::Voter,
            zone: String::new(),
            labels: Labels::new(),
            capacity: Capacity::default(),
            address: "127.0.0.1:7420".into(),
            cordoned: false,
            draining: false,
            absent_until_ms: None,
            admitted_ms: 0,
            revision: 0,
        }
    }

    #[test]
    fn whoever_is_admitted_is_remembered_though_it_is_not_seen() {
        let (near, far, stranger) = (NodeId([1; 32]), NodeId([2; 32]), NodeId([3; 32]));
        let at = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
        let seen = BTreeMap::from([(near, at(11)), (stranger, at(3))]);
        let peers = remembered(&[(far, at(2)), (near, at(1))], seen);
        let wanted = [(far, at(2)), (near, at(11)), (stranger, at(3))];
        assert_eq!(peers, wanted.map(|(node, address)| (node, address.to_string())));

        let crowd: Vec<_> = (0..=PEERS_MAX).map(|n| (NodeId([n as u8; 32]), at(n as u16))).collect();
        assert_eq!(remembered(&crowd, BTreeMap::new()).len(), PEERS_MAX);
    }
}
