//! What clients asked of the ledger and were told, and what every node applied: the observer's knowledge, and its
//! judgement (I2 acknowledged writes are never lost, I10 equal indices mean equal states).
//!
//! Clients make tenants under names that are never used twice, so that a write is there or is not. A write that timed out
//! is unknown: it may be there, now or later. It is never counted as absent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::model::{Name, Quota};
use raft_store::command::{Actor, Command};
use raft_store::ledger::{Ledger, LedgerError};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;

use crate::actor::{Boot, HostId};
use crate::software::budget::Budget;

/// Clients write for so long into the calm, and then let the copies come together.
const WRITES_IN_CALM_US: u64 = 8_000_000;
/// Pause between two writes of one client.
const PAUSE: Duration = Duration::from_millis(120);
/// One write in so many is followed by a linearizable read.
const READ_EVERY: u64 = 5;
/// Newest acknowledged writes that such a read must show.
const READ_BACK: usize = 20;

#[derive(Debug, Default)]
struct Book {
    /// Names whose write was acknowledged, with the index that was told, in order of acknowledgement.
    acknowledged: Vec<(Name, u64)>,
    unknown: u64,
    refused: u64,
    /// When each host last had a write acknowledged, in microseconds.
    last_us: BTreeMap<HostId, u64>,
    /// What was applied at each index, by whoever was first.
    applied: BTreeMap<u64, String>,
    reads: u64,
    /// The running ledgers.
    ledgers: BTreeMap<HostId, Ledger>,
}

/// The observer. Clones share it.
#[derive(Debug, Clone)]
pub struct History {
    book: Arc<Mutex<Book>>,
    budget: Budget,
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
        tokio::join!(self.watch(boot, &ledger), self.write(boot, &ledger));
    }

    /// A boot is over.
    pub fn ended(&self, host: HostId) {
        let gone = self.book().ledgers.remove(&host);
        drop(gone);
    }

    /// The ledger of the first of these hosts that runs one.
    pub fn ledger(&self, hosts: &[HostId]) -> Option<Ledger> {
        let book = self.book();
        hosts.iter().find_map(|host| book.ledgers.get(host).cloned())
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
            let (index, now) = (entry.index, format!("{entry:?}"));
            boot.recorder.event(format_args!("applied {now}"));
            let first = self.book().applied.entry(index).or_insert_with(|| now.clone()).clone();
            if first != now {
                boot.recorder.violation(&format!("I10: at index {index} applied {now}, another node {first}"));
            }
        }
    }

    async fn write(&self, boot: &Boot, ledger: &Ledger) {
        let until_us = boot.calm_us + WRITES_IN_CALM_US;
        for count in 0_u64.. {
            if boot.recorder.world_us() > until_us {
                return;
            }
            // In the calm writes are what convergence is judged by, and always allowed.
            if boot.recorder.world_us() < boot.calm_us && !self.budget.take() {
                sleep(PAUSE).await;
                continue;
            }
            let Ok(name) = format!("t-{}-{}-{count}", boot.host, boot.number).parse::<Name>() else { return };
            let command = Command::CreateTenant { name: name.clone(), parent: None, quota: Quota::default() };
            let answer = ledger.write(Actor::fabric(ledger.node()), None, command).await;
            boot.recorder.event(format_args!("write {name}: {:?}", answer.as_ref().map(|applied| applied.index)));
            match answer {
                Ok(applied) => {
                    let mut book = self.book();
                    book.acknowledged.push((name, applied.index));
                    book.last_us.insert(boot.host, boot.recorder.world_us());
                }
                Err(LedgerError::Refused(_)) => self.book().refused += 1,
                Err(_) => self.book().unknown += 1,
            }
            if count % READ_EVERY == 0 {
                self.read_back(boot, ledger).await;
            }
            sleep(PAUSE).await;
        }
    }

    /// A linearizable read shows whatever was acknowledged before it began.
    async fn read_back(&self, boot: &Boot, ledger: &Ledger) {
        let newest: Vec<Name> = {
            let book = self.book();
            book.acknowledged.iter().rev().take(READ_BACK).map(|(name, _)| name.clone()).collect()
        };
        if ledger.linearizable().await.is_err() {
            return;
        }
        self.book().reads += 1;
        let missing = ledger.read(|state| newest.iter().find(|name| !state.tenants.contains_key(*name)).cloned());
        if let Some(name) = missing {
            boot.recorder.violation(&format!("I2: a linearizable read does not show {name}, acknowledged before"));
        }
    }

    /// After the calm: what does not hold of the hosts in `up`.
    pub fn verdict(&self, up: &[HostId], calm_us: u64) -> Vec<String> {
        let book = self.book();
        let mut failed = Vec::new();
        let silent = |host: &&HostId| book.last_us.get(host).is_none_or(|at_us| *at_us <= calm_us);
        failed.extend(up.iter().filter(silent).map(|host| format!("I9: no write through {host} in the calm")));
        let mut first: Option<(HostId, &Ledger)> = None;
        for host in up {
            let Some(ledger) = book.ledgers.get(host) else {
                failed.push(format!("I9: {host} has no ledger"));
                continue;
            };
            let lost = ledger.read(|state| {
                let there = |(name, _): &&(Name, u64)| !state.tenants.contains_key(name);
                book.acknowledged.iter().filter(there).map(|(name, _)| name.to_string()).collect::<Vec<_>>()
            });
            if let Some(name) = lost.first() {
                failed.push(format!("I2: {host} lacks {} acknowledged writes, the first is {name}", lost.len()));
            }
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
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let book = self.book();
        let (acknowledged, entries) = (book.acknowledged.len() as u64, book.applied.len() as u64);
        BTreeMap::from([
            ("acknowledged", acknowledged),
            ("entries", entries),
            ("operations", self.budget.spent()),
            ("reads", book.reads),
            ("refused", book.refused),
            ("unknown", book.unknown),
        ])
    }
}
