//! An operator at every node makes machines, exclusive ones too, restarts, labels, moves, stops, starts and deletes them:
//! under faults their owners die and are replaced, so leases, takeovers and the reconciler all have work.
//!
//! The judgement after the calm is `invariants::machines_once`; that an exclusive machine never runs twice is checked by
//! the world in every step.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::ids::{Digest, MachineId, NodeId};
use fabric::model::{Desired, Labels, MachineRecord, MachineSpec, Name, Publish, Quota, Resources, Restart};
use fabric::seams::draw;
use raft_store::codes;
use raft_store::command::{Actor, Command, LabelPatch};
use raft_store::ledger::{Ledger, LedgerError};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use smartnode::api::backend::OperationState;
use smartnode::moving;
use smartnode::node::context::Context;
use smartnode::node::founding::DEFAULT_TENANT;
use smartnode::node::operations::Progress;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::actor::{Blow, Boot, HostId, Recorder};
use crate::invariants::moved::{Destroyed, Moved, Told};
use crate::invariants::orders::{Orders, Outcome, Ticket, Value};
use crate::invariants::takeovers::Takeover;
use crate::invariants::{machines_once, promises};
use crate::kernel::{FakeRuntime, Running};
use crate::software::budget::Budget;
use crate::software::history::{is_shown, is_whole};

/// Machines in the cluster at once.
const MACHINES_MAX: usize = 8;
/// Machines that fit a host: their guarantees fill it, and all of them fit the smallest world of three.
const MACHINES_PER_HOST: u64 = 3;
/// What each is guaranteed, of a host's eight cores.
const CPU_MILLIS: u32 = 2_500;
/// Shortest and longest pause between two operations of one operator, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 300..2_000;
/// How often an operator's next operation is a move.
const MOVES: f64 = 0.3;
/// How often whoever moves a machine has its source cut off in SWITCH, which is looked for so often.
const BLOWS: f64 = 0.1;
const STRUCK: &str = "cut-off-in-switch";
const LOOK: Duration = Duration::from_millis(2);
/// How often an operator looks at all machines first.
const LOOKS: f64 = 0.15;
/// The label that operators change.
const TURN: &str = "turn";
/// How long after SWITCH has begun, so that it gets to the leader or not, and its answer back or not.
const BLOW_AFTER_MS: std::ops::Range<u64> = 0..16;
/// For how long: a write gives up after ten seconds.
const BLOW_US: std::ops::Range<u64> = 1_000_000..25_000_000;
/// How often a move is of what has just been placed, when there is something.
const MOVES_NEW: f64 = 0.5;
/// The kind of operation that a move is.
const MOVE: &str = "move";
/// Ports of hosts that machines publish, and how many machines one.
const PORTS: std::ops::Range<u16> = 8_000..8_004;
const PORT_SHARED_BY: usize = 2;
/// How often a machine publishes one.
const PUBLISHES: f64 = 0.5;
/// The image that every machine is of.
const IMAGE: &str = "simulated";
/// A tenant below the first one, which answers for its machines, too.
const LOWER: &str = "lower";

#[derive(Default)]
struct Known {
    /// The machines' kernel of every host that has booted.
    kernels: BTreeMap<HostId, Arc<FakeRuntime>>,
    nodes: BTreeMap<NodeId, HostId>,
    /// The running nodes.
    contexts: BTreeMap<HostId, Arc<Context>>,
    blows: BTreeMap<HostId, Blow>,
    moved: Moved,
    orders: Orders,
    /// The last label that was ordered: each is used once.
    label: u64,
    /// What was reached how often, of what only luck brings about.
    reached: BTreeMap<String, u64>,
    acknowledged: u64,
    /// Highest epoch of any machine that was seen.
    epochs: u64,
}

/// The operators. Clones share what they know.
#[derive(Clone)]
pub struct Operators {
    known: Arc<Mutex<Known>>,
    budget: Budget,
}

fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

/// An operation in words; what makes a machine tells its name and its id, so that a timeline can follow both.
fn told(command: &Command) -> String {
    let (verb, about) = (command.verb(), command.about());
    match command {
        Command::CreateMachine { id, .. } => format!("{verb} {about} as {id}"),
        _ => format!("{verb} {about}"),
    }
}

impl Known {
    /// What does not hold of what a read from then to then shows of machines.
    fn shown(&mut self, ledger: &Ledger, read: (u64, u64)) -> Vec<String> {
        let see = |id: MachineId| {
            let record =
                ledger.read(|state| state.machines.get(&id).map(|it| (it.desired, it.spec.labels.get(TURN).cloned())));
            let (desired, label) = record.unzip();
            let label = label.map(|label| label.and_then(|label| label.parse().ok()).unwrap_or(0));
            (id, desired.unwrap_or(Desired::Deleted), label)
        };
        let seen: Vec<_> = self.orders.machines().into_iter().map(see).collect();
        let judge = |(id, desired, label): (MachineId, Desired, Option<u64>)| {
            let values = [Some(Value::Desired(desired)), label.map(Value::Label)].into_iter().flatten();
            values.filter_map(|value| self.orders.shown(id, value, read)).collect::<Vec<_>>()
        };
        seen.into_iter().flat_map(judge).collect()
    }
}

/// What an order makes of a machine.
fn ordered(command: &Command) -> Option<(MachineId, Value)> {
    match command {
        Command::CreateMachine { id, desired, .. } => Some((*id, Value::Desired(*desired))),
        Command::SetDesired { machine, desired, .. } => Some((*machine, Value::Desired(*desired))),
        Command::UpdateLabels { machine, patch, .. } => {
            Some((*machine, Value::Label(patch.set.get(TURN)?.parse().ok()?)))
        }
        _ => None,
    }
}

/// A machine to move and where; none when there is none.
fn next_move(ledger: &Ledger, rng: &mut StdRng) -> Option<(MachineRecord, NodeId)> {
    let (movable, nodes) = ledger.read(|state| {
        let placed = state.machines.values().filter(|record| record.placement.is_some());
        let movable: Vec<_> = placed.filter(|record| record.desired != Desired::Deleted).cloned().collect();
        (movable, state.nodes.keys().copied().collect::<Vec<_>>())
    });
    // What has just been placed has not started there yet, for a moment: whoever moves it then moves what it finds.
    let new: Vec<_> = movable
        .iter()
        .filter(|record| record.placement.is_some_and(|at| !at.confirmed && at.moving.is_none()))
        .collect();
    let record = match new.choose(rng) {
        Some(record) if rng.random_bool(MOVES_NEW) => (*record).clone(),
        _ => movable.choose(rng)?.clone(),
    };
    let owner = record.placement.map(|placement| placement.node);
    let others: Vec<_> = nodes.into_iter().filter(|node| Some(*node) != owner).collect();
    Some((record, *others.choose(rng)?))
}

/// A port to publish, or none: one that few machines have.
fn next_port(ledger: &Ledger, rng: &mut StdRng) -> Option<Publish> {
    let host_port = rng.random_range(PORTS);
    let has = |record: &MachineRecord| record.spec.publish.iter().any(|port| port.host_port == host_port);
    let others = ledger.read(|state| state.machines.values().filter(|record| has(record)).count());
    let publishes = others < PORT_SHARED_BY && rng.random_bool(PUBLISHES);
    publishes.then_some(Publish { ip: None, host_port, machine_port: 80 })
}

fn spec(exclusive: bool, publish: Option<Publish>) -> MachineSpec {
    MachineSpec {
        image: name(IMAGE),
        command: Vec::new(),
        env: Vec::new(),
        resources: Resources { cpu_millis: CPU_MILLIS, ..Resources::default() },
        publish: publish.into_iter().collect(),
        labels: Labels::new(),
        exclusive,
        restart: Restart::Always,
        pinned: None,
    }
}

impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operators").field("budget", &self.budget).finish_non_exhaustive()
    }
}

impl Operators {
    /// Operators who together may do what `budget` allows.
    pub fn new(budget: Budget) -> Self {
        Operators { known: Arc::default(), budget }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works at one node until the calm begins.
    pub async fn work(&self, boot: &Boot, context: &Arc<Context>) {
        let ledger = &context.ledger;
        {
            let mut known = self.known();
            known.kernels.insert(boot.host, boot.machines.clone());
            known.contexts.insert(boot.host, context.clone());
            known.nodes.insert(ledger.node(), boot.host);
            known.blows.insert(boot.host, boot.blow.clone());
        }
        let mut rng = StdRng::seed_from_u64(boot.seed);
        // One move at a time: it may take as long as the partition that it waits for.
        let mut moving = JoinSet::new();
        while boot.recorder.world_us() < boot.calm_us {
            sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
            let ended = moving.try_join_next().is_some();
            if (moving.is_empty() || ended) && rng.random_bool(MOVES) {
                if let Some((record, to)) = next_move(ledger, &mut rng).filter(|_| self.budget.take()) {
                    let strikes = rng.random_bool(BLOWS);
                    let blow = strikes.then(|| (rng.random_range(BLOW_AFTER_MS), rng.random_range(BLOW_US)));
                    moving.spawn(self.clone().bring(boot.recorder.clone(), context.clone(), (record, to), blow));
                }
                continue;
            }
            if !is_whole(ledger) {
                continue;
            }
            if rng.random_bool(LOOKS) {
                self.look(boot, ledger).await;
            }
            let Some(command) = self.next(boot, ledger, &mut rng) else { continue };
            if !self.budget.take() {
                return;
            }
            self.order(boot, ledger, command).await;
        }
    }

    /// Orders something, and notes what came of it.
    async fn order(&self, boot: &Boot, ledger: &Ledger, command: Command) {
        let what = told(&command);
        // In the book before it is asked for: a crash of this host leaves it unknown.
        let ticket =
            ordered(&command).map(|(id, value)| self.known().orders.begin(id, value, boot.recorder.world_us()));
        let answer = ledger.write(Actor::fabric(ledger.node()), None, command).await;
        boot.recorder.event(format_args!("operator {what}: {:?}", answer.as_ref().map(|applied| applied.index)));
        let outcome = match &answer {
            Ok(_) => Outcome::Done,
            Err(LedgerError::Refused(_) | LedgerError::NoLeader { .. }) => Outcome::Refused,
            Err(_) => Outcome::Unknown,
        };
        let mut known = self.known();
        known.acknowledged += u64::from(answer.is_ok());
        let end = |ticket: Ticket| known.orders.end(ticket, outcome, boot.recorder.world_us());
        ticket.and_then(end).into_iter().for_each(|found| boot.recorder.violation(&found));
        if matches!(answer, Err(LedgerError::Refused(refusal)) if refusal.code == codes::QUOTA) {
            *known.reached.entry("quota-refused".to_owned()).or_default() += 1;
        }
    }

    /// Looks at all machines so that the answer is as good as asking all nodes.
    async fn look(&self, boot: &Boot, ledger: &Ledger) {
        let begun_us = boot.recorder.world_us();
        if is_shown(ledger).await {
            let found = self.known().shown(ledger, (begun_us, boot.recorder.world_us()));
            found.into_iter().for_each(|found| boot.recorder.violation(&found));
        }
    }

    /// After the calm, when all copies are the same: what does not hold of what was ordered.
    pub fn settled(&self, ledger: &Ledger) -> Vec<String> {
        self.known().shown(ledger, (u64::MAX, u64::MAX))
    }

    /// Has a machine moved, as the admin port does.
    async fn bring(
        self,
        recorder: Recorder,
        context: Arc<Context>,
        (record, to): (MachineRecord, NodeId),
        blow: Option<(u64, u64)>,
    ) {
        let begun = context.operations.begin(MOVE, Some(record.tenant.clone()), record.name.as_str());
        let Ok(progress) = begun else { return };
        recorder.event(format_args!("operator moves {} to {}", record.id, to.short()));
        let moved = moving::driver::from_anywhere(&context, &record, to, None, &progress);
        let struck = async {
            if let Some(blow) = blow {
                self.strike(&record, &progress, blow).await;
            }
            std::future::pending::<()>().await;
        };
        let answer = tokio::select! {
            biased;
            answer = moved => answer,
            () = struck => return,
        };
        let told = answer.as_ref().map_err(|failure| failure.refusal.code.clone());
        recorder.event(format_args!("operator's move of {}: {told:?}", record.id));
        self.known().acknowledged += u64::from(answer.is_ok());
        match answer {
            Ok(()) => progress.done(),
            Err(failure) => progress.failed(failure.into()),
        }
    }

    /// Has the source of a move cut off while SWITCH is proposed.
    async fn strike(&self, record: &MachineRecord, progress: &Progress, (after_ms, length_us): (u64, u64)) {
        while progress.view().phase != "switch" {
            sleep(LOOK).await;
        }
        sleep(Duration::from_millis(after_ms)).await;
        let known = self.known();
        let source = record.placement.and_then(|placement| known.nodes.get(&placement.node));
        source.and_then(|host| known.blows.get(host)).into_iter().for_each(|blow| blow.cut_off(STRUCK, length_us));
    }

    /// What does not hold of what runs now.
    pub fn judge(
        &self,
        running: &[(HostId, Running)],
        destroyed: &[Destroyed],
        (takeovers, told): (&[Takeover], &[Told]),
    ) -> Option<String> {
        let mut known = self.known();
        let Known { moved, contexts, orders, .. } = &mut *known;
        takeovers.iter().for_each(|takeover| moved.taken_over(*takeover));
        told.iter().for_each(|told| moved.told(*told));
        let mut destroyed = destroyed.iter();
        let lost = destroyed.find_map(|copy| moved.destroyed(copy, orders.may_be_deleted(copy.machine)));
        let placed =
            |host, id| contexts.get(&host).and_then(|at| at.ledger.read(|state| state.machines.get(&id)?.placement));
        lost.or_else(|| moved.check(running, placed))
    }

    /// A boot is over: notes which moves it ended the one or the other end of.
    pub fn ended(&self, host: HostId) {
        let mut known = self.known();
        let mut reached = Vec::new();
        for (source, context) in &known.contexts {
            let moves = context.operations.list().into_iter();
            for view in moves.filter(|view| view.kind == MOVE && view.state == OperationState::Running) {
                let place = context.ledger.read(|state| {
                    let mut machines = state.machines.values();
                    machines.find(|record| record.name.as_str() == view.subject)?.placement
                });
                let Some(place) = place.filter(|place| place.node == context.me) else { continue };
                let phase = view.phase.replace(' ', "-");
                if *source == host {
                    reached.push(format!("source-ends-in-{phase}"));
                } else if place.moving.is_some_and(|moving| known.nodes.get(&moving.to) == Some(&host)) {
                    reached.push(format!("destination-ends-in-{phase}"));
                }
            }
        }
        for what in reached {
            *known.reached.entry(what).or_default() += 1;
        }
        let gone = known.contexts.remove(&host);
        drop(known);
        drop(gone);
    }

    /// What to do next; none when there is nothing.
    fn next(&self, boot: &Boot, ledger: &Ledger, rng: &mut StdRng) -> Option<Command> {
        let (first, lower) = (name(DEFAULT_TENANT), name(LOWER));
        let tenant = if rng.random_bool(0.5) { first.clone() } else { lower.clone() };
        let (made, image, limited, machines) = ledger.read(|state| {
            let made = state.tenants.contains_key(&lower);
            let image = state.images.contains_key(&(tenant.clone(), name(IMAGE)));
            let limited = state.tenants.get(&first).is_some_and(|record| record.quota.machines.is_some());
            let machines: Vec<_> = state.machines.values().map(|record| (record.id, record.desired)).collect();
            (made, image, limited, machines)
        });
        if !made {
            return Some(Command::CreateTenant { name: lower, parent: Some(first), quota: Quota::default() });
        }
        if !image {
            let digest = Digest::of(IMAGE.as_bytes());
            return Some(Command::PutImage {
                tenant,
                name: name(IMAGE),
                digest,
                size_bytes: 1,
                expected_revision: None,
            });
        }
        let most = (MACHINES_MAX as u64).min(MACHINES_PER_HOST * boot.hosts);
        if !limited {
            let quota = Quota { machines: Some(most as u32), ..Quota::default() };
            return Some(Command::SetQuota { name: first, quota, expected_revision: None });
        }
        // One more than the quota allows is asked for, and must be refused.
        let fresh = machines.len() as u64 <= most && rng.random_bool(0.5);
        if fresh || machines.is_empty() {
            let id = MachineId(draw(&*boot.seams.entropy));
            let own = name(&format!("m{:08x}", rng.random::<u32>()));
            let publish = next_port(ledger, rng);
            return Some(Command::CreateMachine {
                id,
                tenant,
                name: own,
                spec: Box::new(spec(rng.random_bool(0.6), publish)),
                desired: Desired::Running,
            });
        }
        let (machine, desired) = machines[rng.random_range(0..machines.len())];
        let want = |desired| Command::SetDesired { machine, desired, over: None, expected_revision: None };
        match (rng.random_range(0..6), desired) {
            (_, Desired::Deleted) => None,
            (0, _) => Some(want(Desired::Deleted)),
            (1, Desired::Running) => Some(want(Desired::Stopped)),
            (_, Desired::Stopped) => Some(want(Desired::Running)),
            (2, _) => Some(Command::RestartMachine { machine, expected_revision: None }),
            (3, _) => {
                let mut known = self.known();
                known.label += 1;
                let set = Labels::from([(TURN.to_owned(), known.label.to_string())]);
                let patch = LabelPatch { set, ..LabelPatch::default() };
                Some(Command::UpdateLabels { machine, patch, expected_revision: None })
            }
            _ => None,
        }
    }

    /// After the calm: what does not hold of the machines, by a ledger of a host that is up.
    pub fn verdict(&self, up: &[HostId], ledger: &Ledger) -> Vec<String> {
        let mut known = self.known();
        let nodes = known.nodes.clone();
        let (wanted, epochs, left) = ledger.read(|state| {
            let left = state.machines.values().filter(|record| record.desired == Desired::Deleted);
            let left: Vec<_> = left.map(|record| format!("I9: machine {:?} should be gone", record.id)).collect();
            let running = state.machines.values().filter(|record| record.desired == Desired::Running);
            let running =
                running.filter(|record| record.placement.is_some() || promises::fits_somewhere(state, record));
            let place = |record: &fabric::model::MachineRecord| {
                record.placement.and_then(|placement| Some((*nodes.get(&placement.node)?, placement.epoch)))
            };
            let wanted: BTreeMap<_, _> = running.map(|record| (record.id, place(record))).collect();
            (wanted, state.machines.values().map(|record| record.epoch).max().unwrap_or(0), left)
        });
        known.epochs = epochs;
        let kernels = up.iter().filter_map(|host| known.kernels.get(host).map(|kernel| (*host, kernel)));
        let running: Vec<(HostId, Running)> = kernels
            .flat_map(|(host, kernel)| kernel.running().into_iter().map(move |machine| (host, machine)))
            .collect();
        let mut failed = machines_once::check(&wanted, &running);
        failed.extend(left);
        let closed = known.contexts.iter().filter(|(host, _)| up.contains(host)).flat_map(|(host, context)| {
            let unpublished = context.unpublished.borrow();
            unpublished.values().map(|why| format!("I3: {host}: {why}")).collect::<Vec<_>>()
        });
        failed.extend(closed);
        if !failed.is_empty() {
            let owned = wanted.iter().filter_map(|(id, place)| Some((id, known.kernels.get(&place.as_ref()?.0)?)));
            failed.extend(owned.map(|(id, kernel)| format!("machine {id:?} at its owner: {}", kernel.describe(*id))));
        }
        failed
    }

    /// What was done how often.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let known = self.known();
        let mut counts = known.reached.clone();
        counts.insert("orders".to_owned(), known.acknowledged);
        counts.insert("epochs".to_owned(), known.epochs);
        counts.insert("moved".to_owned(), known.moved.arrived());
        counts
    }
}
