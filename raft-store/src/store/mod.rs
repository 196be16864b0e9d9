//! Everything durable of the ledger on this node: log, vote and snapshot in one redb database, with a journal of what was
//! appended last.
//!
//! What a peer or client may rely on is synced before it is promised: appended entries in the journal, votes, truncations,
//! purges and snapshots by transactions with `Durability::Immediate`. Each transaction takes the journal in, so the disk
//! sees one order. The state itself is never on disk: a restart loads the snapshot and replays the committed entries, so
//! there is one path for both.
//!
//! A record that fails its checksum is named and refused; nothing is skipped. Where the runtime is a single thread, as
//! in the simulator, commits run in its tasks: a thread of their own would break replay there.

#[cfg(test)]
mod cuts;
mod guarded;
mod identity;
mod journal;
mod log;
mod machine;
#[cfg(test)]
mod queue_tests;
mod snapshots;
#[cfg(test)]
mod suite;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fabric::seams::{Disk, Entropy, draw, open_database};
use fabric::wire::{self, WireError};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use thiserror::Error;

use crate::codec::{FormatV1, JournalHeadV1, LogIdV1, VoteV1};
use crate::tuning::DATABASE_CACHE_BYTES;
use crate::types::{LogId, Vote};

use identity::IdentityV1;
pub(crate) use identity::NOTE;
pub(crate) use journal::JOURNAL;
use journal::Journal;
pub(crate) use log::LogStore;
use log::{Kept, Taken};
pub use machine::AppliedEntry;
pub(crate) use machine::{Halt, Shared, StateMachine};
pub(crate) use snapshots::encode_state;

/// The database's name in the data directory.
pub(crate) const FILE: &str = "ledger.redb";
/// Version of the database's layout that this program writes.
const FORMAT: u32 = 4;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const CHUNKS: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("snapshot");

const KEY_FORMAT: &str = "format";
const KEY_IDENTITY: &str = "identity";
const KEY_VOTE: &str = "vote";
const KEY_COMMITTED: &str = "committed";
const KEY_PURGED: &str = "purged";
const KEY_SNAPSHOT: &str = "snapshot";
const KEY_JOURNAL: &str = "journal";

/// Why the ledger's database cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file cannot be opened or is no database.
    #[error("the ledger's file {file} cannot be opened: {source}")]
    Open {
        /// File in the data directory.
        file: &'static str,
        /// Why.
        source: Box<redb::Error>,
    },
    /// It was written, and is gone.
    #[error("the ledger's file {file} is missing: what this node has promised to its peers is lost with it")]
    Lost {
        /// File in the data directory.
        file: &'static str,
    },
    /// It is another one than was written.
    #[error("the ledger's file {file} is not the one that this node has written: what that one promised is lost")]
    Other {
        /// File in the data directory.
        file: &'static str,
    },
    /// Written by a program of before the first release.
    #[error(
        "the ledger's file {file} has format {found}, of before the first release: such files are not read any more"
    )]
    Older {
        /// File in the data directory.
        file: &'static str,
        /// Its format.
        found: u32,
    },
    /// Written by a later program.
    #[error("the ledger's file {file} has format {found}, this program knows {FORMAT}: upgrade this node")]
    Newer {
        /// File in the data directory.
        file: &'static str,
        /// Its format.
        found: u32,
    },
    /// A record is damaged. It is refused rather than skipped: the entries behind it would be applied to a state that
    /// no other node has.
    #[error(
        "{what} in the ledger's file {file} is damaged ({cause}): this node cannot go on with it; \
         remove the node and let it join anew, or restore the file"
    )]
    Damaged {
        /// File in the data directory.
        file: &'static str,
        /// Which record.
        what: String,
        /// What is wrong with it.
        cause: String,
    },
    /// An entry that this program does not understand. It is not skipped, for the same reason.
    #[error("entry {index} of the ledger is beyond this program ({cause}): upgrade this node")]
    Unknown {
        /// Its index.
        index: u64,
        /// What is not understood.
        cause: String,
    },
    /// An earlier write failed, so what is on the disk is in doubt.
    #[error("the ledger's file has failed before ({reason}): nothing more is written to it until this node restarts")]
    Stopped {
        /// What happened then.
        reason: String,
    },
    /// Reading or writing failed.
    #[error("the ledger's file {file} failed while {action}: {source}")]
    Disk {
        /// File in the data directory.
        file: &'static str,
        /// What was being done.
        action: &'static str,
        /// Why.
        source: Box<redb::Error>,
    },
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        io::Error::other(error.to_string())
    }
}

/// Tags redb's errors with what was being done.
trait During<T> {
    fn during(self, action: &'static str) -> Result<T, StoreError>;
}

impl<T, E: Into<redb::Error>> During<T> for Result<T, E> {
    fn during(self, action: &'static str) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Disk { file: FILE, action, source: Box::new(error.into()) })
    }
}

fn damaged(what: impl Into<String>, cause: impl ToString) -> StoreError {
    StoreError::Damaged { file: FILE, what: what.into(), cause: cause.to_string() }
}

fn disk_failed(file: &'static str, action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Disk { file, action, source: Box::new(redb::Error::Io(source)) }
}

/// The open database, its journal, and what is kept of them in memory. Clones share all.
#[derive(Clone)]
pub(crate) struct Store {
    database: Arc<Database>,
    /// Held by whoever writes to the disk, before `memory`.
    journal: Arc<Mutex<Journal>>,
    memory: Arc<Mutex<log::Memory>>,
    generation: Arc<AtomicU64>,
    syncs: Arc<AtomicU64>,
}

impl Store {
    /// Opens the database, or makes it if there never was one (which whoever knows that it was `begun` rules out), and
    /// verifies every record of the log.
    pub(crate) fn open(disk: &dyn Disk, entropy: &dyn Entropy, begun: bool) -> Result<Self, StoreError> {
        guarded::guarded(|| Store::read(disk, entropy, begun))
    }

    fn read(disk: &dyn Disk, entropy: &dyn Entropy, begun: bool) -> Result<Self, StoreError> {
        let note = identity::noted(disk)?;
        identity::check_there(disk, note.as_ref(), begun)?;
        let fresh = IdentityV1::draw(entropy);
        if !disk.exists(FILE).map_err(disk_failed(FILE, "looking for it"))? {
            journal::make(disk, fresh)?;
        }
        let database = open_database(disk, FILE, DATABASE_CACHE_BYTES, |database| prepare(database, fresh))
            .map_err(|source| StoreError::Open { file: FILE, source: Box::new(source) })?;
        check_format(&database)?;
        let id = identity::check(&database, disk, note)?;
        let head =
            record(&database, KEY_JOURNAL)?.ok_or_else(|| damaged("the head of the journal", "it is missing"))?;
        let journal = Journal::open(disk, id, head, JournalHeadV1 { run: draw(entropy), generation: 0 })?;
        let vote = record::<VoteV1>(&database, KEY_VOTE)?.map(Vote::from);
        let committed = record::<LogIdV1>(&database, KEY_COMMITTED)?.map(LogId::from).max(journal.committed());
        let purged = record::<LogIdV1>(&database, KEY_PURGED)?.map(LogId::from);
        let store = Store {
            database: Arc::new(database),
            journal: Arc::new(Mutex::new(journal)),
            memory: Arc::new(Mutex::new(log::Memory::new(vote, committed, purged))),
            generation: Arc::default(),
            syncs: Arc::default(),
        };
        // What the last run has left in the journal.
        store.write("taking the journal in", |_| Ok(()))?;
        store.verify_log()?;
        store.discard_unfinished_snapshots()?;
        Ok(store)
    }

    fn memory(&self) -> MutexGuard<'_, log::Memory> {
        // Memory is replaced value by value after a commit, so a panicking holder cannot have left it half-changed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        // Nothing panics under it: what may is guarded.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One transaction, with one sync; what the journal holds and appended entries that wait go along.
    fn write<T>(
        &self,
        action: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut journal = self.journal();
        let taken = self.take_queue()?;
        self.transact(&mut journal, taken, action, change)
    }

    fn transact<T>(
        &self,
        journal: &mut Journal,
        taken: Taken,
        action: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let done = guarded::guarded(|| {
            let mut transaction = self.database.begin_write().during(action)?;
            transaction.set_durability(Durability::Immediate).during(action)?;
            let next = journal.put(&transaction)?;
            taken.put(&transaction)?;
            let out = change(&transaction)?;
            self.sweep(&transaction)?;
            transaction.commit().during(action)?;
            journal.begin(next);
            Ok(out)
        });
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.taken_done(taken, done.as_ref().map(|_| Kept::InDatabase));
        done
    }

    /// The record under `key`.
    fn meta<T>(&self, key: &'static str) -> Result<Option<T>, StoreError>
    where
        T: wire::Record,
        T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, rkyv::rancor::Error>>
            + rkyv::Deserialize<T, rkyv::api::high::HighDeserializer<rkyv::rancor::Error>>,
    {
        record(&self.database, key)
    }

    /// Counts synced transactions since the start.
    pub(crate) fn syncs_counter(&self) -> Arc<AtomicU64> {
        self.syncs.clone()
    }

    fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }
}

fn check_format(database: &Database) -> Result<(), StoreError> {
    let read = database.begin_read().during("reading its format")?;
    let table = read.open_table(META).during("reading its format")?;
    let value = table.get(KEY_FORMAT).during("reading its format")?;
    let frame = value.ok_or_else(|| damaged("the format record", "it is missing"))?;
    match wire::decode::<FormatV1>(frame.value()) {
        Ok(format) if format.version == FORMAT => Ok(()),
        Ok(format) if format.version < FORMAT => Err(StoreError::Older { file: FILE, found: format.version }),
        Ok(format) => Err(StoreError::Newer { file: FILE, found: format.version }),
        Err(WireError::Type { found_version, .. }) => {
            Err(StoreError::Newer { file: FILE, found: found_version.into() })
        }
        Err(cause) => Err(damaged("the format record", cause)),
    }
}

/// The record under `key`.
fn record<T>(database: &Database, key: &'static str) -> Result<Option<T>, StoreError>
where
    T: wire::Record,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, rkyv::rancor::Error>>
        + rkyv::Deserialize<T, rkyv::api::high::HighDeserializer<rkyv::rancor::Error>>,
{
    let read = database.begin_read().during("reading a record")?;
    let table = read.open_table(META).during("reading a record")?;
    let Some(frame) = table.get(key).during("reading a record")? else { return Ok(None) };
    match wire::decode(frame.value()) {
        Ok(record) => Ok(Some(record)),
        Err(cause) => Err(damaged(format!("the record {key:?}"), cause)),
    }
}

/// Makes the tables, and the format record and the id of a new database.
fn prepare(database: &Database, fresh: IdentityV1) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        transaction.open_table(LOG)?;
        transaction.open_table(CHUNKS)?;
        if meta.get(KEY_FORMAT)?.is_none() {
            meta.insert(KEY_FORMAT, wire::encode(&FormatV1 { version: FORMAT }).as_slice())?;
            meta.insert(KEY_IDENTITY, wire::encode(&fresh).as_slice())?;
            let head = JournalHeadV1 { run: [0; 16], generation: 0 };
            meta.insert(KEY_JOURNAL, wire::encode(&head).as_slice())?;
        }
    }
    Ok(transaction.commit()?)
}

fn put<T: wire::Record>(transaction: &WriteTransaction, key: &'static str, record: &T) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META).during("writing a record")?;
    meta.insert(key, wire::encode(record).as_slice()).during("writing a record")?;
    Ok(())
}
