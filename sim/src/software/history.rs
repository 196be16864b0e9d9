//! What clients asked of the ledger and were told, and what every node applied: the observer's knowledge, handed to the
//! invariants that judge it.
//!
//! A client at every node makes tenants under names that are never used twice, and writes and reads a few registers (the
//! quotas of tenants made for it). A write that timed out is unknown: it may be there, now or later.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::ids::{IdempotencyKey, MachineId};
use fabric::model::{Name, Quota};
use fabric::seams::draw;
use raft_store::codes;
use raft_store::command::{Actor, Command};
use raft_store::ledger::{Ledger, LedgerError, Part};
use raft_store::state::State;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;

use crate::actor::{Boot, HostId};
use crate::invariants::linearizable::{self, Call, Operation, Verdict};
use crate::invariants::moved::Told;
use crate::invariants::same_state::{DIGEST_EVERY, SameState};
use crate::invariants::takeovers::Takeover;
use crate::invariants::{acknowledged, addresses, promises};
use crate::report::tally;
use crate::software::budget::Budget;

/// Clients write for so long into the calm, and then let the copies come together.
const WRITES_IN_CALM_US: u64 = 8_000_000;
/// An acknowledgement this old is none of lately.
const LATELY_US: u64 = 2_000_000;
/// Pause between two operations of one client.
const PAUSE: Duration = Duration::from_millis(300);
/// One operation in so many is a linearizable read of what was acknowledged.
const READ_EVERY: u64 = 5;
/// Newest acknowledged writes that such a read must show.
const READ_BACK: usize = 20;
/// Registers that all clients share.
const REGISTERS: u64 = 2;

#[derive(Debug, Default)]
struct Book {
    /// Names whose write was acknowledged, in order of acknowledgement.
    acknowledged: Vec<Name>,
    unknown: u64,
    refused: u64,
    /// When each host last had a write acknowledged, in microseconds.
    last_us: BTreeMap<HostId, u64>,
    same: SameState,
    /// What was asked of each register.
    calls: BTreeMap<u64, Vec<Call>>,
    /// The last value written to any register: each is used once.
    value: u64,
    takeovers: Vec<Takeover>,
    taken_over: u64,
    told: Vec<Told>,
    reads: u64,
    /// Writes that got no answer, to be asked for again.
    unanswered: Vec<Unanswered>,
    repeated: u64,
    /// The running ledgers.
    ledgers: BTreeMap<HostId, Ledger>,
}

/// A write that may be there, now or later, under a key with which it may be asked for again through any node.
#[derive(Debug, Clone)]
struct Unanswered {
    key: IdempotencyKey,
    command: Command,
    /// The register, and which of its calls.
    call: (u64, usize),
}

/// The observer. Clones share it.
#[derive(Debug, Clone)]
pub struct History {
    book: Arc<Mutex<Book>>,
    budget: Budget,
}

fn register(number: u64) -> Name {
    format!("register-{number}").parse().expect("a valid name")
}

/// Whether this copy is one of all of the ledger: a spare holds what concerns it alone, and a worker is always one.
pub fn is_whole(ledger: &Ledger) -> bool {
    ledger.status().part != Part::Spare
}

/// Whether this copy shows all that was acknowledged before now.
pub async fn is_shown(ledger: &Ledger) -> bool {
    ledger.linearizable().await.is_ok() && is_whole(ledger)
}

/// What does not hold of a state, in words: our own rules first, since the ledger's check of itself would say less.
fn broken(state: &State) -> Option<String> {
    promises::check(state).or_else(|| addresses::check(state)).or_else(|| state.check_invariants().err())
}

fn value_of(ledger: &Ledger, register: &Name) -> Option<u64> {
    ledger.read(|state| Some(state.tenants.get(register)?.quota.memory_bytes.unwrap_or(0)))
}

impl History {
    /// Clients who together may begin what `budget` allows before the calm.
    pub fn new(budget: Budget) -> Self {
        History { book: Arc::default(), budget }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches and uses a boot's ledger until the boot ends.
    pub async fn follow(&self, boot: &Boot, ledger: Ledger) {
        self.book().ledgers.insert(boot.host, ledger.clone());
        tokio::join!(self.watch(boot, &ledger), self.work(boot, &ledger));
    }

    /// A boot is over.
    pub fn ended(&self, host: HostId) {
        let gone = self.book().ledgers.remove(&host);
        drop(gone);
    }

    /// The ledger of the first of these hosts that runs one and holds all of it.
    pub fn ledger(&self, hosts: &[HostId]) -> Option<Ledger> {
        let book = self.book();
        hosts.iter().filter_map(|host| book.ledgers.get(host)).find(|ledger| is_whole(ledger)).cloned()
    }

    /// Takeovers that were applied since it was last asked.
    pub fn takeovers(&self) -> Vec<Takeover> {
        std::mem::take(&mut self.book().takeovers)
    }

    /// What the ledger has told of machines' disks since it was last asked.
    pub fn told(&self) -> Vec<Told> {
        std::mem::take(&mut self.book().told)
    }

    /// Compares what is applied here with what others applied at the same index.
    async fn watch(&self, boot: &Boot, ledger: &Ledger) {
        let mut entries = ledger.subscribe();
        loop {
            let entry = match entries.recv().await {
                Ok(entry) => entry,
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            };
            let words = format!("{entry:?}");
            boot.recorder.event(format_args!("applied {words}"));
            if matches!(entry.verb, "takeover" | "confirm" | "failed" | "move-switch") && entry.refused.is_none() {
                self.note_owner(ledger, entry.verb, (entry.index, &entry.about));
            }
            let is_new = self.book().same.is_new(entry.index);
            let found = self.book().same.applied(boot.host, entry.index, &words);
            let wrong = (is_new && is_whole(ledger)).then(|| ledger.read(broken));
            found.into_iter().chain(wrong.flatten()).for_each(|found| boot.recorder.violation(&found));
            self.compare(boot, ledger);
        }
    }

    /// Notes what an entry does to the owner of a machine, once, but for moves: the state may be later than the entry by now,
    /// and each host's is a little different.
    fn note_owner(&self, ledger: &Ledger, verb: &str, (index, about): (u64, &str)) {
        let is_new = self.book().same.is_new(index);
        let Some(machine) = about.parse::<MachineId>().ok() else { return };
        let record = ledger.read(|state| state.machines.get(&machine).map(|record| (record.epoch, record.placement)));
        let Some((epoch, placement)) = record else { return };
        let mut book = self.book();
        match verb {
            "move-switch" => {
                let previous = placement.and_then(|placement| Some(placement.previous?.epoch));
                let ended = previous.into_iter().chain(epoch.checked_sub(1));
                book.told.extend(ended.map(|epoch| Told::Left(machine, epoch)));
            }
            _ if !is_new => {}
            "takeover" => {
                book.taken_over += 1;
                book.takeovers.push(Takeover { machine, epoch });
            }
            _ => {
                let confirmed = placement.filter(|placement| placement.confirmed);
                book.told.extend(confirmed.map(|placement| Told::Confirmed(machine, placement.epoch)));
            }
        }
    }

    /// Compares the whole state, now and then; only of those who hold all of it.
    fn compare(&self, boot: &Boot, ledger: &Ledger) {
        let status = ledger.status();
        if !is_whole(ledger) || !status.applied.is_multiple_of(DIGEST_EVERY) {
            return;
        }
        let shown = ledger.read_at(|index, state| {
            let digest = (index == status.applied).then(|| state.digest())?;
            Some((state.settings.epoch, index, digest))
        });
        let Some((epoch, index, digest)) = shown else { return };
        let differs = self.book().same.shown(boot.host, (epoch, index), digest);
        differs.into_iter().for_each(|found| boot.recorder.violation(&found));
    }

    async fn work(&self, boot: &Boot, ledger: &Ledger) {
        let until_us = boot.calm_us + WRITES_IN_CALM_US;
        let mut rng = StdRng::seed_from_u64(boot.seed ^ 1);
        for count in 0_u64.. {
            let now_us = boot.recorder.world_us();
            if now_us > until_us {
                return;
            }
            // In the calm writes are what convergence is judged by, and always allowed.
            if now_us >= boot.calm_us || self.budget.take() {
                let number = rng.random_range(0..REGISTERS);
                match count % 4 {
                    1 => self.set(boot, ledger, number).await,
                    3 => self.get(boot, ledger, number).await,
                    _ => self.make(boot, ledger, count).await,
                }
                if count.is_multiple_of(READ_EVERY) {
                    self.read_back(boot, ledger).await;
                    self.repeat(boot, ledger, &mut rng).await;
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Makes a tenant of a new name.
    async fn make(&self, boot: &Boot, ledger: &Ledger, count: u64) {
        let Ok(name) = format!("t-{}-{}-{count}", boot.host, boot.number).parse::<Name>() else { return };
        let command = Command::CreateTenant { name: name.clone(), parent: None, quota: Quota::default() };
        if self.write(boot, ledger, command).await.is_ok() {
            self.book().acknowledged.push(name);
        }
    }

    /// Writes, and counts what came of it.
    async fn write(&self, boot: &Boot, ledger: &Ledger, command: Command) -> Result<(), LedgerError> {
        let key = IdempotencyKey(draw(&*boot.seams.entropy));
        self.write_with(boot, ledger, key, command).await
    }

    async fn write_with(
        &self,
        boot: &Boot,
        ledger: &Ledger,
        key: IdempotencyKey,
        command: Command,
    ) -> Result<(), LedgerError> {
        let what = format!("{} {}", command.verb(), command.about());
        let answer = ledger.write(Actor::fabric(ledger.node()), Some(key), command).await;
        boot.recorder.event(format_args!("{what}: {:?}", answer.as_ref().map(|applied| applied.index)));
        let mut book = self.book();
        match &answer {
            Ok(_) => drop(book.last_us.insert(boot.host, boot.recorder.world_us())),
            Err(LedgerError::Refused(_)) => book.refused += 1,
            Err(_) => book.unknown += 1,
        }
        answer.map(drop)
    }

    /// Sets a register to a value of its own.
    async fn set(&self, boot: &Boot, ledger: &Ledger, number: u64) {
        let (begun_us, value) = {
            let mut book = self.book();
            book.value += 1;
            (boot.recorder.world_us(), book.value)
        };
        let quota = Quota { memory_bytes: Some(value), ..Quota::default() };
        let name = register(number);
        // The call is in the book before it is made: a crash of this host leaves it unknown.
        let at = {
            let mut book = self.book();
            let calls = book.calls.entry(number).or_default();
            calls.push(Call { begun_us, ended_us: None, operation: Operation::Write(value) });
            calls.len() - 1
        };
        let command = Command::SetQuota { name: name.clone(), quota, expected_revision: None };
        let key = IdempotencyKey(draw(&*boot.seams.entropy));
        let call = (number, at);
        // To be repeated by somebody else, should this host crash meanwhile. What a worker asks is nobody else's.
        if is_whole(ledger) {
            self.book().unanswered.push(Unanswered { key, command: command.clone(), call });
        }
        let answer = self.write_with(boot, ledger, key, command).await;
        self.answered(boot, key, call, &answer);
        if matches!(&answer, Err(LedgerError::Refused(refusal)) if refusal.code == codes::NOT_FOUND) {
            // The first one finds no register yet.
            let command = Command::CreateTenant { name, parent: None, quota: Quota::default() };
            let _made = self.write(boot, ledger, command).await;
        }
    }

    /// Notes what a write of a register was answered.
    fn answered(&self, boot: &Boot, key: IdempotencyKey, (number, at): (u64, usize), answer: &Result<(), LedgerError>) {
        let mut book = self.book();
        let call = &mut book.calls.entry(number).or_default()[at];
        let (done, refused) = (call.ended_us.is_some(), call.operation == Operation::Nothing);
        match answer {
            Ok(()) => call.ended_us = call.ended_us.or(Some(boot.recorder.world_us())),
            // It had no effect, now or later.
            Err(LedgerError::Refused(_)) => call.operation = Operation::Nothing,
            Err(_) => return,
        }
        if (done && answer.is_err()) || (refused && answer.is_ok()) {
            let found = format!("I2: a write of register {number} was done and refused under one key: {answer:?}");
            boot.recorder.violation(&found);
        }
        book.unanswered.retain(|write| write.key != key);
    }

    /// Asks again for what got no answer, or has none yet, through whichever node this is: it must be done once.
    async fn repeat(&self, boot: &Boot, ledger: &Ledger, rng: &mut StdRng) {
        let Some(write) = self.book().unanswered.choose(rng).cloned() else { return };
        if !is_whole(ledger) {
            return;
        }
        let Unanswered { key, command, call } = write;
        let answer = self.write_with(boot, ledger, key, command).await;
        self.answered(boot, key, call, &answer);
        self.book().repeated += u64::from(answer.is_ok());
    }

    /// Reads a register so that the answer is as good as asking all.
    async fn get(&self, boot: &Boot, ledger: &Ledger, number: u64) {
        let begun_us = boot.recorder.world_us();
        if !is_shown(ledger).await {
            return;
        }
        let value = value_of(ledger, &register(number)).unwrap_or(0);
        let ended_us = Some(boot.recorder.world_us());
        boot.recorder.event(format_args!("register {number} shows {value}"));
        let mut book = self.book();
        book.reads += 1;
        book.calls.entry(number).or_default().push(Call { begun_us, ended_us, operation: Operation::Read(value) });
    }

    /// A linearizable read shows whatever was acknowledged before it began.
    async fn read_back(&self, boot: &Boot, ledger: &Ledger) {
        let newest: Vec<Name> = self.book().acknowledged.iter().rev().take(READ_BACK).cloned().collect();
        if !is_shown(ledger).await {
            return;
        }
        self.book().reads += 1;
        if let Some(found) = ledger.read(|state| acknowledged::check(state, newest.iter())) {
            boot.recorder.violation(&format!("I2: a linearizable read {found}"));
        }
    }

    /// Who leads as the newest term among these has it.
    pub fn leader(&self, up: &[HostId]) -> Option<HostId> {
        let book = self.book();
        let views = up.iter().filter_map(|host| book.ledgers.get(host)).map(Ledger::status);
        let newest = views.filter(|view| view.leader.is_some()).max_by_key(|view| view.term)?;
        let leads = |ledger: &Ledger| Some(ledger.node()) == newest.leader;
        book.ledgers.iter().find(|(_, ledger)| leads(ledger)).map(|(host, _)| *host)
    }

    /// Whether a write through this host was acknowledged lately.
    pub fn has_written(&self, host: HostId, now_us: u64) -> bool {
        self.book().last_us.get(&host).is_some_and(|at_us| at_us + LATELY_US > now_us)
    }

    /// After the calm: what does not hold of the hosts in `up`.
    pub fn verdict(&self, up: &[HostId], calm_us: u64) -> Vec<String> {
        let book = self.book();
        let mut failed = Vec::new();
        // A worker must not make tenants.
        let may_write = |host: &HostId| book.ledgers.get(host).is_none_or(is_whole);
        let silent = |host: &&HostId| may_write(host) && book.last_us.get(host).is_none_or(|at_us| *at_us <= calm_us);
        failed.extend(up.iter().filter(silent).map(|host| format!("I9: no write through {host} in the calm")));
        for (number, calls) in &book.calls {
            match linearizable::check(calls) {
                Verdict::Linearizable => {}
                Verdict::Not(words) => failed.push(format!("I2: register {number}: {words}")),
                Verdict::Undecided => {
                    failed.push(format!("register {number}: nobody could decide what its calls show"))
                }
            }
        }
        let mut first: Option<(HostId, &Ledger)> = None;
        for host in up {
            let Some(ledger) = book.ledgers.get(host) else {
                failed.push(format!("I9: {host} has no ledger"));
                continue;
            };
            if !is_whole(ledger) {
                continue;
            }
            let (lost, broken) =
                ledger.read(|state| (acknowledged::check(state, book.acknowledged.iter()), broken(state)));
            failed.extend(lost.map(|lost| format!("I2: {host} {lost}")));
            failed.extend(broken);
            match first {
                None => first = Some((*host, ledger)),
                Some((other, reference)) => {
                    let same = reference.read(|theirs| ledger.read(|ours| ours == theirs));
                    if !same {
                        let (ours, theirs) = (ledger.status().applied, reference.status().applied);
                        failed.push(format!(
                            "I10: {host} (applied {ours}) and {other} (applied {theirs}) hold different states"
                        ));
                    }
                }
            }
        }
        failed
    }

    /// What was done how often.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let book = self.book();
        let (entries, digests) = book.same.counts();
        tally([
            ("acknowledged", book.acknowledged.len() as u64),
            ("digests", digests),
            ("entries", entries),
            ("operations", self.budget.spent()),
            ("reads", book.reads),
            ("refused", book.refused),
            ("takeovers", book.taken_over),
            ("repeated", book.repeated),
            ("unknown", book.unknown),
        ])
    }
}
