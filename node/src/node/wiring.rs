//! Small adapters that join the fabric's parts: who serves which request, and what the ledger sees of membership.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use fabric::gossip::Gossip;
use fabric::ids::NodeId;
use fabric::membership::Membership;
use fabric::model::RaftRole;
use fabric::rpc::Router;
use fabric::transport::{Handlers, StreamRouter};
use raft_store::ledger::{Ledger, Registration, Surroundings};
use tokio::sync::mpsc;

use super::admission::{self, Late};
use super::asks::*;
use super::serving;
use crate::moving;

/// What membership and gossip tell the ledger.
pub struct Around {
    me: NodeId,
    membership: Membership,
    gossip: Gossip,
}

impl Around {
    /// Over running membership and gossip.
    pub fn new(me: NodeId, membership: Membership, gossip: Gossip) -> Self {
        Around { me, membership, gossip }
    }
}

impl Surroundings for Around {
    fn alive(&self) -> BTreeSet<NodeId> {
        let mut alive: BTreeSet<_> = self.membership.active().into_keys().collect();
        alive.insert(self.me);
        alive
    }

    fn ledger_nodes(&self) -> Vec<NodeId> {
        let active = self.membership.active();
        let states = self.gossip.states();
        let rank = |role| match role {
            RaftRole::Leader => 0,
            RaftRole::Voter => 1,
            RaftRole::Standby => 2,
            RaftRole::Spare => 3,
        };
        let mut nodes: Vec<_> = states
            .values()
            .filter(|state| active.contains_key(&state.node) && state.raft != RaftRole::Spare)
            .map(|state| (rank(state.raft), state.node))
            .collect();
        nodes.sort_unstable();
        let mut nodes: Vec<NodeId> = nodes.into_iter().map(|(_, node)| node).collect();
        // A node that has just joined has heard no gossip yet: any member knows more than it does.
        if nodes.is_empty() {
            nodes.extend(active.into_keys());
        }
        nodes
    }
}

/// Everything that this node serves to peers.
pub fn handlers(late: &Late) -> (Handlers, Registration, mpsc::Receiver<(NodeId, Bytes)>) {
    let mut router = Router::default();
    let registration = Ledger::register(&mut router);
    let here = late.clone();
    router.on(STATUS, move |_, body| serving::status(here.clone(), body));
    let here = late.clone();
    router.on(TOMBSTONES, move |_, _| serving::tombstones(here.clone()));
    let here = late.clone();
    router.on(ISSUE, move |_, body| admission::serve_issue(here.clone(), body));
    let here = late.clone();
    router.on(BURY, move |peer, body| admission::serve_bury(here.clone(), peer, body));
    let here = late.clone();
    router.on(ROOM, move |peer, body| super::backend::serve_room(here.clone(), peer, body));
    let here = late.clone();
    router.on(NAMED, move |_, body| crate::cleanup::driver::serve_named(here.clone(), body));

    let mut streams = StreamRouter::default();
    let here = late.clone();
    streams.on(EXEC, move |request| serving::exec(here.clone(), request));
    let here = late.clone();
    streams.on(LOGS, move |request| serving::logs(here.clone(), request));
    let here = late.clone();
    streams.on(CONNECT, move |request| serving::connect(here.clone(), request));
    let here = late.clone();
    streams.on(IMAGE, move |request| serving::image(here.clone(), request));
    let here = late.clone();
    streams.on(LAYER, move |request| moving::incoming::serve(here.clone(), request));
    let here = late.clone();
    streams.on(MOVE, move |request| moving::driver::serve(here.clone(), request));
    let heard = fabric::gossip::messages(&mut streams);
    let (admitting, renewing) = (late.clone(), late.clone());
    let handlers = Handlers {
        router,
        streams,
        join: Some(Arc::new(move |request, from| Box::pin(admission::admit(admitting.clone(), request, from)))),
        renew: Some(Arc::new(move |peer, request| Box::pin(admission::renew(renewing.clone(), peer, request)))),
        data: None,
    };
    (handlers, registration, heard)
}
