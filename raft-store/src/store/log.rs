//! openraft's log: what was appended waits in memory until a sync of the journal, or a transaction, takes it along.
//!
//! An append returns as soon as its entries can be read here, so that a leader sends them while its own disk syncs; its
//! callback is called once they are on the disk. One writer takes whatever has gathered, with one sync. Every transaction
//! (vote, truncation, purge, snapshot) takes journal and queue along, before its own change, so the disk sees one order.
//!
//! The tail of the log is kept in memory, bounded, since replication and apply read each entry right after it was
//! appended. `committed` needs no sync of its own (it can be learnt again) and rides along with the next append.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use fabric::seams::Disk;
use fabric::wire;
use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use redb::{ReadableDatabase, ReadableTable, WriteTransaction};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::guarded::guarded;
use super::machine::Halt;
use super::{During, KEY_COMMITTED, KEY_PURGED, KEY_VOTE, LOG, Store, StoreError, damaged, put};
use crate::codec::{EntryV1, LogIdV1, VoteV1};
use crate::tuning::{JOURNAL_SETTLES, LOG_QUEUE_BYTES, LOG_TAIL_BYTES, READ_BYTES, SWEPT_PER_TRANSACTION};
use crate::types::{Entry, LogId, TC, Vote};

/// What is being done when something is appended.
pub(super) const APPENDING: &str = "appending to the log";

/// What is known of the log without reading the disk.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
    /// The newest entries, without a gap, up to `last`. Those of the queue are always among them.
    tail: BTreeMap<u64, Entry>,
    tail_bytes: usize,
    queue: Queue,
    /// Purged entries below this are gone from the disk, too.
    swept: u64,
    /// Why nothing is written any more.
    failed: Option<String>,
}

/// Appended, and not yet taken along by a transaction.
#[derive(Default)]
struct Queue {
    entries: Vec<Entry>,
    bytes: usize,
    /// Whom to tell once they are on the disk, in the order of their entries.
    callbacks: Vec<IOFlushed<TC>>,
    /// First index that was taken from here and is not in the database: what is in memory from there on must stay.
    unfolded: Option<u64>,
}

/// What one sync took along.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) entries: Vec<Entry>,
    callbacks: Vec<IOFlushed<TC>>,
    pub(super) committed: Option<LogId>,
}

/// Where a sync has put what it took along.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    InJournal,
    InDatabase,
}

impl Memory {
    pub(super) fn new(vote: Option<Vote>, committed: Option<LogId>, purged: Option<LogId>) -> Self {
        Memory { vote, committed, purged, last: purged, ..Memory::default() }
    }

    fn remember(&mut self, entry: Entry) {
        if self.last.is_some_and(|last| last.index + 1 != entry.log_id.index) {
            self.forget_tail();
        }
        self.last = Some(entry.log_id);
        self.tail_bytes += weight(&entry);
        self.tail.insert(entry.log_id.index, entry);
        let unwritten = self.unwritten();
        while self.tail_bytes > LOG_TAIL_BYTES && self.tail.len() > 1 {
            let Some(first) = self.tail.first_entry().filter(|first| *first.key() < unwritten) else { break };
            self.tail_bytes -= weight(&first.remove());
        }
    }

    /// The first index that may be in memory only.
    fn unwritten(&self) -> u64 {
        let queued = self.queue.entries.first().map(|entry| entry.log_id.index);
        self.queue.unfolded.or(queued).unwrap_or(u64::MAX)
    }

    fn forget_tail(&mut self) {
        self.tail.clear();
        self.tail_bytes = 0;
    }

    /// Drops entries from memory that are outside `keep`.
    fn restrict(&mut self, keep: impl RangeBounds<u64>) {
        self.tail.retain(|index, _| keep.contains(index));
        self.tail_bytes = self.tail.values().map(weight).sum();
    }
}

impl Taken {
    pub(super) fn of(entries: Vec<Entry>, committed: Option<LogId>) -> Self {
        Taken { entries, committed, callbacks: Vec::new() }
    }

    /// Writes the entries, and how far the log is committed: it needs no sync of its own.
    pub(super) fn put(&self, transaction: &WriteTransaction) -> Result<(), StoreError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let mut log = transaction.open_table(LOG).during(APPENDING)?;
        for entry in &self.entries {
            let frame = wire::encode(&EntryV1::from(entry));
            log.insert(entry.log_id.index, frame.as_slice()).during(APPENDING)?;
        }
        drop(log);
        self.committed.map_or(Ok(()), |id| put(transaction, KEY_COMMITTED, &LogIdV1::from(id)))
    }
}

/// Bytes that an entry is taken to occupy.
pub(super) fn weight(entry: &Entry) -> usize {
    64 + match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(proposal) => proposal.0.len(),
        EntryPayload::Membership(membership) => membership.nodes().count() * 128,
    }
}

fn decode(index: u64, frame: &[u8]) -> Result<Entry, StoreError> {
    let name = || format!("log entry {index}");
    let record: EntryV1 = wire::decode(frame).map_err(|cause| damaged(name(), cause))?;
    if record.id.index != index {
        return Err(damaged(name(), format!("it says that it is entry {}", record.id.index)));
    }
    record.into_entry().map_err(|cause| damaged(name(), cause))
}

impl Store {
    /// Reads every entry once, so that a damaged one stops the node before it takes part in anything.
    pub(super) fn verify_log(&self) -> Result<(), StoreError> {
        let read = self.database.begin_read().during("reading the log")?;
        let table = read.open_table(LOG).during("reading the log")?;
        let mut memory = self.memory();
        let mut next = memory.purged.map(|id| id.index + 1);
        // Purged entries may still wait to be swept: they are nobody's.
        for item in table.range(next.unwrap_or(0)..).during("reading the log")? {
            let (key, value) = item.during("reading the log")?;
            let index = key.value();
            if next.is_some_and(|next| next != index) {
                return Err(damaged(format!("log entry {}", next.unwrap_or(0)), "it is missing"));
            }
            memory.remember(decode(index, value.value())?);
            next = Some(index + 1);
        }
        Ok(())
    }

    /// Entries `first..end` that exist, as many as fit `limit_bytes`, at least one.
    fn entries(&self, first: u64, end: u64, limit_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        let (oldest, last) = {
            let memory = self.memory();
            let oldest = memory.purged.map_or(0, |id| id.index + 1);
            let Some(last) = memory.last else { return Ok(Vec::new()) };
            (oldest, last.index)
        };
        let first = first.max(oldest);
        let end = end.min(last + 1);
        if first >= end {
            return Ok(Vec::new());
        }
        let in_memory = self.entries_in_memory(first, end, limit_bytes);
        if in_memory.first().is_some_and(|entry| entry.log_id.index == first) {
            return Ok(in_memory);
        }
        let end = in_memory.first().map_or(end, |entry| entry.log_id.index);
        let read = self.database.begin_read().during("reading the log")?;
        let table = read.open_table(LOG).during("reading the log")?;
        let (mut out, mut bytes) = (Vec::new(), 0);
        for item in table.range(first..end).during("reading the log")? {
            let (key, value) = item.during("reading the log")?;
            let entry = decode(key.value(), value.value())?;
            bytes += weight(&entry);
            if bytes > limit_bytes && !out.is_empty() {
                return Ok(out);
            }
            out.push(entry);
        }
        // No more than the disk had is asked for by a reader with a limit; another one wants all.
        if limit_bytes == usize::MAX {
            out.extend(in_memory);
        }
        Ok(out)
    }

    /// Those of `first..end` that memory has: the latter part of the range, or nothing.
    fn entries_in_memory(&self, first: u64, end: u64, limit_bytes: usize) -> Vec<Entry> {
        let memory = self.memory();
        let (mut out, mut bytes) = (Vec::new(), 0);
        for entry in memory.tail.range(first..end).map(|(_, entry)| entry) {
            bytes += weight(entry);
            if bytes > limit_bytes && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        out
    }

    /// Takes entries into memory, where they can be read at once. Tells whether so many wait that they should be written
    /// before more are taken.
    fn enqueue(&self, entries: Vec<Entry>, callback: IOFlushed<TC>) -> Result<bool, StoreError> {
        let mut memory = self.memory();
        if let Some(reason) = &memory.failed {
            let error = StoreError::Stopped { reason: reason.clone() };
            callback.io_completed(Err(io::Error::other(error.to_string())));
            return Err(error);
        }
        for entry in entries {
            memory.queue.bytes += weight(&entry);
            memory.queue.entries.push(entry.clone());
            memory.remember(entry);
        }
        memory.queue.callbacks.push(callback);
        Ok(memory.queue.bytes > LOG_QUEUE_BYTES)
    }

    /// Writes what waits, if anything does.
    fn flush(&self) -> Result<(), StoreError> {
        if self.memory().queue.callbacks.is_empty() {
            return Ok(());
        }
        let mut journal = self.journal();
        let taken = self.take_queue()?;
        let appended = guarded(|| journal.append(&taken));
        if let Ok(false) = appended {
            return self.transact(&mut journal, taken, APPENDING, |_| Ok(()));
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.taken_done(taken, appended.as_ref().map(|_| Kept::InJournal));
        appended.map(drop)
    }

    /// Whether the journal holds what the database lacks.
    fn is_unsettled(&self) -> bool {
        self.memory().queue.unfolded.is_some()
    }

    /// Takes the journal into the database.
    fn settle(&self) -> Result<(), StoreError> {
        if self.is_unsettled() { self.write(APPENDING, |_| Ok(())) } else { Ok(()) }
    }

    /// What the transaction that begins now has to take along.
    pub(super) fn take_queue(&self) -> Result<Taken, StoreError> {
        let mut memory = self.memory();
        if let Some(reason) = &memory.failed {
            return Err(StoreError::Stopped { reason: reason.clone() });
        }
        let Queue { entries, callbacks, .. } = std::mem::take(&mut memory.queue);
        memory.queue.unfolded = memory.queue.unfolded.or(entries.first().map(|entry| entry.log_id.index));
        let committed = memory.committed.filter(|_| !entries.is_empty());
        Ok(Taken { entries, callbacks, committed })
    }

    /// Tells those who wait for what a sync took along. After a failure nothing is written any more: what was taken is
    /// neither in the queue nor on the disk, and the next entries would leave a hole.
    pub(super) fn taken_done(&self, mut taken: Taken, done: Result<Kept, &StoreError>) {
        let mut memory = self.memory();
        match done {
            Ok(Kept::InDatabase) => memory.queue.unfolded = None,
            Ok(Kept::InJournal) => {}
            Err(error) => {
                memory.failed.get_or_insert_with(|| error.to_string());
                taken.callbacks.extend(std::mem::take(&mut memory.queue.callbacks));
            }
        }
        drop(memory);
        for callback in taken.callbacks {
            callback.io_completed(match done {
                Ok(_) => Ok(()),
                Err(error) => Err(io::Error::other(error.to_string())),
            });
        }
    }

    pub(super) fn save_vote_synced(&self, vote: &Vote) -> Result<(), StoreError> {
        self.write("saving a vote", |transaction| put(transaction, KEY_VOTE, &VoteV1::from(vote)))?;
        self.memory().vote = Some(*vote);
        Ok(())
    }

    pub(super) fn truncate(&self, last: Option<LogId>) -> Result<(), StoreError> {
        let first = last.map_or(0, |id| id.index + 1);
        self.write("truncating the log", |transaction| {
            let mut log = transaction.open_table(LOG).during("truncating the log")?;
            log.retain_in(first.., |_, _| false).during("truncating the log")
        })?;
        let mut memory = self.memory();
        memory.restrict(..first);
        if memory.last.is_some_and(|id| id.index >= first) {
            memory.last = last.or(memory.purged);
        }
        Ok(())
    }

    /// Removes some of the purged entries from the disk. They are many after a snapshot, so each transaction takes a few
    /// along.
    pub(super) fn sweep(&self, transaction: &WriteTransaction) -> Result<(), StoreError> {
        let (purged, swept) = {
            let memory = self.memory();
            let Some(purged) = memory.purged else { return Ok(()) };
            (purged.index + 1, memory.swept)
        };
        if swept >= purged {
            return Ok(());
        }
        let action = "removing purged entries";
        let mut log = transaction.open_table(LOG).during(action)?;
        let oldest = log.first().during(action)?.map(|(key, _)| key.value());
        let first = oldest.unwrap_or(purged).clamp(swept, purged);
        let end = purged.min(first + SWEPT_PER_TRANSACTION);
        log.retain_in(first..end, |_, _| false).during(action)?;
        // A transaction that fails is the last one, so this may be said before it is committed.
        self.memory().swept = end;
        Ok(())
    }

    pub(super) fn purge_up_to(&self, id: LogId) -> Result<(), StoreError> {
        self.write("purging the log", |transaction| put(transaction, KEY_PURGED, &LogIdV1::from(id)))?;
        let mut memory = self.memory();
        memory.restrict(id.index + 1..);
        memory.purged = Some(id);
        if memory.last.is_none_or(|last| last.index < id.index) {
            memory.last = Some(id);
        }
        Ok(())
    }
}

#[cfg(test)]
impl Store {
    pub(super) fn enqueue_for_test(&self, entries: Vec<Entry>, callback: IOFlushed<TC>) -> Result<(), StoreError> {
        self.enqueue(entries, callback).map(drop)
    }

    pub(super) fn stored_for_test(&self) -> Result<u64, StoreError> {
        use redb::ReadableTableMetadata;
        let read = self.database.begin_read().during("counting the log")?;
        read.open_table(LOG).during("counting the log")?.len().during("counting the log")
    }

    pub(super) fn settle_for_test(&self) -> Result<(), StoreError> {
        self.settle()
    }

    pub(super) fn flush_for_test(&self) -> Result<(), StoreError> {
        self.flush()
    }

    pub(super) fn entries_for_test(&self) -> Result<Vec<Entry>, StoreError> {
        // From the disk, not from memory.
        self.memory().forget_tail();
        self.entries(0, u64::MAX, usize::MAX)
    }

    pub(super) fn promises_for_test(&self) -> (Option<Vote>, Option<LogId>) {
        let memory = self.memory();
        (memory.vote, memory.purged)
    }
}

/// `range` as `first..end`.
fn bounds(range: impl RangeBounds<u64>) -> (u64, u64) {
    let first = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (first, end)
}

/// openraft's handle of the log. The last one that goes ends its writer.
#[derive(Clone)]
pub(crate) struct LogStore {
    store: Store,
    halt: Halt,
    wake: Wake,
    ended: watch::Receiver<()>,
}

/// Wakes the writer of the log. One wake-up that waits already is enough.
#[derive(Clone)]
enum Wake {
    /// A task, where the runtime is a single thread: the simulator's.
    Task(mpsc::Sender<()>),
    /// A thread of its own, so that no append makes a worker of the runtime wait for the disk.
    Thread(std::sync::mpsc::SyncSender<()>),
}

impl Wake {
    fn up(&self) {
        match self {
            Wake::Task(wake) => drop(wake.try_send(())),
            Wake::Thread(wake) => drop(wake.try_send(())),
        }
    }
}

/// Why the writer of the log goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// Something was appended.
    Appended,
    /// Nothing was for a while.
    Quiet,
    /// No handle of the log is left.
    Over,
}

/// Writes what gathers in the queue; the database takes the journal in when it is quiet, and at the end.
struct Writer {
    store: Store,
    disk: Arc<dyn Disk>,
    halt: Halt,
    /// Dropped last: whoever waits for it may open the files again.
    _ended: watch::Sender<()>,
}

impl Writer {
    /// Starts it.
    fn spawn(self) -> Wake {
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread => {
                let (wake, woken) = std::sync::mpsc::sync_channel(1);
                let thread = std::thread::Builder::new().name("ledger-log".into());
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a runtime of one thread, as the simulator's, has a task"
                )]
                thread.spawn(move || self.run_on_thread(&woken)).expect("the system has a thread for the ledger");
                Wake::Thread(wake)
            }
            _ => {
                let (wake, woken) = mpsc::channel(1);
                tokio::spawn(self.run_as_task(woken));
                Wake::Task(wake)
            }
        }
    }

    fn run_on_thread(self, woken: &std::sync::mpsc::Receiver<()>) {
        loop {
            let come = match self.patience() {
                Some(quiet) => woken.recv_timeout(quiet),
                None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let why = match come {
                Ok(()) => Woken::Appended,
                Err(RecvTimeoutError::Timeout) => Woken::Quiet,
                Err(RecvTimeoutError::Disconnected) => Woken::Over,
            };
            self.work(why);
            if why == Woken::Over {
                return;
            }
        }
    }

    async fn run_as_task(self, mut woken: mpsc::Receiver<()>) {
        loop {
            let why = match timeout(self.patience().unwrap_or(Duration::MAX), woken.recv()).await {
                Ok(Some(())) => Woken::Appended,
                Ok(None) => Woken::Over,
                Err(_) => Woken::Quiet,
            };
            let takes = if why == Woken::Appended { self.disk.sync_takes() } else { Duration::ZERO };
            if !takes.is_zero() {
                sleep(takes).await;
            }
            self.work(why);
            if why == Woken::Over {
                return;
            }
            // Whoever was told goes first: what it does next may belong into the next sync.
            tokio::task::yield_now().await;
        }
    }

    /// How long to wait for more; none is forever.
    fn patience(&self) -> Option<Duration> {
        self.store.is_unsettled().then_some(JOURNAL_SETTLES)
    }

    fn work(&self, why: Woken) {
        let done = match why {
            Woken::Appended => self.store.flush(),
            Woken::Quiet => self.store.settle(),
            Woken::Over => self.store.flush().and_then(|()| self.store.settle()),
        };
        if let Err(error) = done {
            self.halt.because(&error);
        }
    }
}

/// Runs what waits for the disk, or for whoever writes to it. Where there are several threads, another one takes over this
/// worker's tasks meanwhile; the simulator has one, and time stands still there.
pub(super) fn in_place<T>(blocking: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(blocking),
        _ => blocking(),
    }
}

impl LogStore {
    pub(crate) fn new(store: Store, disk: Arc<dyn Disk>, halt: Halt) -> Self {
        let (sender, ended) = watch::channel(());
        let wake = Writer { store: store.clone(), disk, halt: halt.clone(), _ended: sender }.spawn();
        LogStore { store, halt, wake, ended }
    }

    /// Closes when the writer has ended and let go of the files, some time after the last handle has gone.
    pub(crate) fn ended(&self) -> watch::Receiver<()> {
        self.ended.clone()
    }

    /// Passes an error on to openraft, which then stops this voter; the reason is kept for the status.
    fn checked<T>(&self, result: Result<T, StoreError>) -> io::Result<T> {
        result.map_err(|error| {
            self.halt.because(&error);
            error.into()
        })
    }
}

impl RaftLogReader<TC> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (first, end) = bounds(range);
        self.checked(self.store.entries(first, end, usize::MAX))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.checked(self.store.entries(start, end, READ_BYTES))
    }

    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (first, end) = bounds(range);
        let batches = stream::unfold((self.clone(), first), move |(log, next)| async move {
            if next >= end {
                return None;
            }
            match log.checked(log.store.entries(next, end, READ_BYTES)) {
                Ok(entries) => {
                    let after = entries.last()?.log_id.index + 1;
                    let items: Vec<io::Result<Entry>> = entries.into_iter().map(Ok).collect();
                    Some((stream::iter(items), (log, after)))
                }
                Err(error) => Some((stream::iter(vec![Err(error)]), (log, end))),
            }
        });
        Box::pin(futures_util::StreamExt::flatten(batches))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.store.memory().vote)
    }
}

impl RaftLogStorage<TC> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TC>> {
        let memory = self.store.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last.or(memory.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.checked(in_place(|| self.store.save_vote_synced(vote)))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.store.memory().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.store.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TC>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        if self.checked(self.store.enqueue(entries.into_iter().collect(), callback))? {
            return self.checked(in_place(|| self.store.flush()));
        }
        self.wake.up();
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.checked(in_place(|| self.store.truncate(last_log_id)))
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.checked(in_place(|| self.store.purge_up_to(log_id)))
    }
}
