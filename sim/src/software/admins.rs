//! An administrator at every node looks after the nodes, through the same backend as the admin port: makes tokens for hosts
//! that were installed anew, removes the nodes that these hosts were, drains nodes and takes that back, lets nodes leave,
//! and tries tokens that are used up.

use std::sync::Arc;
use std::time::Duration;

use fabric::ids::NodeId;
use fabric::limits::CERTIFICATE_TTL;
use fabric::model::{Capacity, Labels, NodeRecord, Role};
use fabric::seams::draw;
use fabric::token::JoinToken;
use raft_store::codes;
use raft_store::command::{Actor, Command};
use raft_store::ledger::LedgerError;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use smartnode::api::backend::{Backend, NewToken, OperationState, Write};
use smartnode::node::Node;
use smartnode::node::backend::NodeBackend;
use smartnode::node::context::Context;
use smartnode::node::lease;
use tokio::time::{sleep, timeout};

use crate::actor::Boot;
use crate::software::budget::Budget;
use crate::software::roster::Roster;

/// Shortest and longest pause between two looks of one administrator, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 300..1_200;
/// How often a look finds somebody to drain, or a used token to try.
const DRAINS: f64 = 0.02;
const TRIES: f64 = 0.05;
/// How long a daemon that is told to stop is away, as it says, and how long it tries to say so.
const ABSENCE: Duration = Duration::from_secs(20);
const LAST_WORD: Duration = Duration::from_secs(2);
/// How often a host that joins again may run machines only, while enough others vote.
const WORKERS: f64 = 0.3;
const VOTERS_LEAST: usize = 3;
/// How often one who sees a cordon takes it back, while there are faults.
const UNCORDONS: f64 = 0.2;

/// The administrators. Clones share what they know.
#[derive(Debug, Clone)]
pub struct Admins {
    roster: Roster,
    budget: Budget,
}

impl Admins {
    /// Administrators of these hosts, who together may do what `budget` allows.
    pub fn new(roster: Roster, budget: Budget) -> Self {
        Admins { roster, budget }
    }

    /// Works at one node until its boot ends: what is needed for the others to come back is done in the calm, too.
    pub async fn work(&self, boot: &Boot, node: &Node) {
        let (backend, context) = (node.backend(), node.context());
        let mut rng = StdRng::seed_from_u64(boot.seed ^ 2);
        loop {
            sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
            if has_stale_view(context) {
                self.roster.reached("stale-view");
            }
            self.remove(boot, &backend, context, &mut rng).await;
            let workers = rng.random_bool(WORKERS);
            self.let_in(boot, &backend, workers).await;
            let calm = boot.recorder.world_us() >= boot.calm_us;
            if self.is_cordoned(boot, context) && (calm || rng.random_bool(UNCORDONS)) {
                let done = backend.cordon(&write(&backend), context.name.as_str(), false).await;
                boot.recorder.event(format_args!("admin uncordons: {:?}", done.map(drop).map_err(|f| f.refusal.code)));
            }
            if !calm && rng.random_bool(DRAINS) && self.budget.take() {
                self.drain(boot, &backend, context, &mut rng).await;
            }
            if !calm && rng.random_bool(TRIES) && self.budget.take() {
                self.try_used(boot, context).await;
            }
        }
    }

    /// Removes a node whose data is gone.
    async fn remove(&self, boot: &Boot, backend: &NodeBackend, context: &Context, rng: &mut StdRng) {
        let gone = self.roster.gone();
        let member =
            context.ledger.read(|state| gone.into_iter().filter(|id| state.nodes.contains_key(id)).choose(rng));
        let Some(id) = member.filter(|_| rng.random_bool(0.5)) else { return };
        let done = backend.remove_node(&write(backend), &id.to_string(), true).await;
        boot.recorder.event(format_args!("admin removes {}: {:?}", id.short(), done.map_err(|f| f.refusal.code)));
    }

    /// Makes a token for a host that waits for one.
    async fn let_in(&self, boot: &Boot, backend: &NodeBackend, as_worker: bool) {
        let Some(host) = self.roster.next_waiting() else { return };
        let role =
            if as_worker && self.roster.others_who_vote(host) >= VOTERS_LEAST { Role::Worker } else { Role::Voter };
        self.roster.joins_as(host, role);
        let token = NewToken { role, ttl_ms: CERTIFICATE_TTL.as_millis() as u64, uses: 1 };
        let made = backend.create_token(&write(backend), token).await;
        boot.recorder
            .event(format_args!("admin makes a token for {host}: {:?}", made.as_ref().map(|made| made.view.id)));
        match made.map(|made| made.token.parse::<JoinToken>()) {
            Ok(Ok(token)) => self.roster.give(host, token),
            Ok(Err(error)) => boot.recorder.violation(&format!("a token that was made is none: {error}")),
            Err(_) => {}
        }
    }

    /// Whether this node takes no machines, and nobody works on that.
    fn is_cordoned(&self, boot: &Boot, context: &Context) -> bool {
        let cordoned = context.ledger.read(|state| state.nodes.get(&context.me).is_some_and(|node| node.cordoned));
        let operations = context.operations.list();
        let busy = operations.iter().any(|view| view.state == OperationState::Running && view.kind != "move");
        cordoned && !busy && !self.roster.is_leaving(boot.host)
    }

    /// Drains any node.
    async fn drain(&self, boot: &Boot, backend: &NodeBackend, context: &Context, rng: &mut StdRng) {
        let node = context.ledger.read(|state| state.nodes.values().map(|node| node.name.clone()).choose(rng));
        let Some(name) = node else { return };
        let begun = backend.drain(&write(backend), name.as_str()).await;
        boot.recorder.event(format_args!("admin drains {name}: {:?}", begun.map(drop).map_err(|f| f.refusal.code)));
    }

    /// Shows a token that has admitted all that it may, for a node that is nowhere.
    async fn try_used(&self, boot: &Boot, context: &Context) {
        let Some(token) = self.roster.used_up() else { return };
        let public_key: [u8; 32] = draw(&*boot.seams.entropy);
        let id = NodeId::of_public_key(&public_key);
        let node = NodeRecord {
            id,
            name: format!("nobody-{}", id.short()).parse().expect("a valid name"),
            public_key,
            role: Role::Worker,
            zone: String::new(),
            labels: Labels::new(),
            capacity: Capacity { cpu_millis: 1_000, memory_bytes: 1 << 30, disk_bytes: 1 << 30 },
            address: context.advertise.to_string(),
            cordoned: true,
            draining: false,
            absent_until_ms: None,
            admitted_ms: 0,
            revision: 0,
        };
        let admit = Command::AdmitNode { token: token.id, secret_hash: token.secret_hash(), node: Box::new(node) };
        let answer = context.ledger.write(Actor::fabric(context.me), None, admit).await;
        boot.recorder.event(format_args!("a used token is shown: {:?}", answer.as_ref().map(|applied| applied.index)));
        match answer {
            Err(LedgerError::Refused(refusal)) if refusal.code == codes::TOKEN_USED_UP => {
                self.roster.reached("used-token-refused");
            }
            Err(_) => {}
            Ok(_) => self.roster.admitted(&token, id).into_iter().for_each(|found| boot.recorder.violation(&found)),
        }
    }

    /// Has this node leave once it is asked to. Returns when it has left, or was removed.
    pub async fn leave(&self, boot: &Boot, node: &Node) {
        let (backend, context) = (node.backend(), node.context().clone());
        let asked = async {
            loop {
                sleep(Duration::from_millis(200)).await;
                if self.roster.is_leaving(boot.host) {
                    self.try_leaving(boot, &backend, &context).await;
                }
            }
        };
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => {}
            () = context.transport.expelled() => {}
            () = asked => {}
        }
    }

    /// Has this node stop once it is asked to, as its daemon does when it is told to. Gives for how long it is away.
    pub async fn stop(&self, boot: &Boot, node: &Node) -> u64 {
        loop {
            sleep(Duration::from_millis(200)).await;
            let Some(down_us) = self.roster.stopping(boot.host) else { continue };
            let said = timeout(LAST_WORD, lease::leave(node.context(), ABSENCE)).await;
            boot.recorder.event(format_args!(
                "the daemon is told to stop; its absence is announced: {}",
                matches!(said, Ok(Ok(())))
            ));
            return down_us;
        }
    }

    /// Asks once, and waits for what comes of it; it stays when that is nothing.
    async fn try_leaving(&self, boot: &Boot, backend: &NodeBackend, context: &Arc<Context>) {
        let begun = backend.leave(&write(backend), false).await;
        boot.recorder
            .event(format_args!("admin leaves: {:?}", begun.as_ref().map(|view| view.id).map_err(|f| &f.refusal.code)));
        let Ok(view) = begun else { return self.roster.stays(boot.host) };
        loop {
            sleep(Duration::from_millis(100)).await;
            let now = context.operations.list().into_iter().find(|other| other.id == view.id);
            if let Some(failed) = now.filter(|view| view.state == OperationState::Failed) {
                boot.recorder.event(format_args!("it stays: {:?}", failed.error.map(|refusal| refusal.code)));
                return self.roster.stays(boot.host);
            }
        }
    }
}

/// Whether this node holds a lease, and nothing thaws by it until its view of the ledger is newer.
fn has_stale_view(context: &Context) -> bool {
    let (lease, now) = (context.lease.borrow().clone(), context.seams.clock.boottime());
    let view = context.ledger.read_at(|index, _| index);
    lease.may_thaw(now, u64::MAX, true) && !lease.may_thaw(now, view, true)
}

fn write(backend: &NodeBackend) -> Write {
    Write { caller: backend.root(), idempotency: None, if_revision: None, dry_run: false }
}
