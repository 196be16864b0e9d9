//! The log's queue: read at once, promised after the sync, one sync for many, in order, and nothing after a failure.

use bytes::Bytes;
use futures_util::FutureExt;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;

use super::suite::disk::MemoryDisk;
use super::{LogStore, Store};
use crate::codec::VoteV1;
use crate::store::machine::Halt;
use crate::types::{Entry, Proposal, SnapshotData, SnapshotMeta, TC, Vote, log_id};

type Told = OneshotReceiverOf<TC, std::io::Result<()>>;

fn entry(index: u64, bytes: usize) -> Entry {
    Entry { log_id: log_id(1, index), payload: openraft::EntryPayload::Normal(Proposal(Bytes::from(vec![7; bytes]))) }
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) -> (std::io::Result<()>, Told) {
    let (tell, told) = TC::oneshot();
    (log.append(entries, IOFlushed::signal(tell)).await, told)
}

fn on_a_paused_clock(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test);
}

fn syncs(store: &Store) -> u64 {
    store.syncs_counter().load(std::sync::atomic::Ordering::Relaxed)
}

fn open(disk: &MemoryDisk) -> (Store, LogStore, Halt) {
    let (store, halt) = (Store::open(disk, &fabric::seams::real::KernelEntropy, false).unwrap(), Halt::default());
    (store.clone(), LogStore::new(store, std::sync::Arc::new(disk.clone()), halt.clone()), halt)
}

#[test]
fn what_is_appended_is_read_at_once_and_promised_after_one_sync_for_all() {
    on_a_paused_clock(async {
        let (store, mut log, _) = open(&MemoryDisk::new(1));
        let before = syncs(&store);
        let mut told = Vec::new();
        for index in 0..10 {
            told.push(append(&mut log, vec![entry(index, 50)]).await);
        }
        assert_eq!(log.try_get_log_entries(0..10).await.unwrap().len(), 10);
        assert_eq!(syncs(&store), before, "nothing was written yet");
        for (taken, told) in told {
            taken.unwrap();
            told.await.unwrap().unwrap();
        }
        assert_eq!(syncs(&store), before + 1, "one sync for all");
    });
}

#[test]
fn a_vote_is_saved_behind_the_entries_before_it_in_the_same_sync() {
    on_a_paused_clock(async {
        let disk = MemoryDisk::new(2);
        let (store, mut log, _) = open(&disk);
        let before = syncs(&store);
        let (_, told) = append(&mut log, vec![entry(0, 50)]).await;
        let vote = Vote::from(VoteV1 { term: 3, node: Default::default(), committed: false });
        log.save_vote(&vote).await.unwrap();
        assert!(matches!(told.now_or_never(), Some(Ok(Ok(())))));
        assert_eq!(syncs(&store), before + 1);
        drop((store, log));
        let (_, mut log, _) = open(&disk.reboot());
        assert_eq!(log.read_vote().await.unwrap(), Some(vote));
        assert_eq!(log.try_get_log_entries(0..1).await.unwrap().len(), 1);
    });
}

#[test]
fn entries_beyond_the_tail_stay_readable_until_they_are_written_and_after() {
    on_a_paused_clock(async {
        let (store, mut log, _) = open(&MemoryDisk::new(3));
        let big = crate::tuning::LOG_TAIL_BYTES / 4;
        for index in 0..7 {
            append(&mut log, vec![entry(index, big)]).await.0.unwrap();
        }
        let indexes = |found: Vec<Entry>| found.into_iter().map(|entry| entry.log_id.index).collect::<Vec<_>>();
        assert_eq!(indexes(log.try_get_log_entries(0..7).await.unwrap()), Vec::from_iter(0..7));
        store.flush_for_test().unwrap();
        // This one pushes the oldest out of memory: they come from the disk now, and the rest from memory.
        append(&mut log, vec![entry(7, big)]).await.0.unwrap();
        assert_eq!(indexes(log.try_get_log_entries(0..8).await.unwrap()), Vec::from_iter(0..8));
        assert_eq!(indexes(log.limited_get_log_entries(0, 8).await.unwrap()), [0]);
    });
}

#[test]
fn too_long_a_queue_is_written_by_who_appends() {
    on_a_paused_clock(async {
        let (store, mut log, _) = open(&MemoryDisk::new(4));
        let before = syncs(&store);
        let (_, told) =
            append(&mut log, (0..3).map(|index| entry(index, crate::tuning::LOG_QUEUE_BYTES / 3)).collect()).await;
        assert_eq!(syncs(&store), before + 1);
        assert!(matches!(told.now_or_never(), Some(Ok(Ok(())))));
    });
}

#[test]
fn a_failed_sync_fails_every_callback_and_halts() {
    on_a_paused_clock(async {
        let disk = MemoryDisk::new(5);
        let (_, mut log, halt) = open(&disk);
        disk.set_full(true);
        let (first, second) = (append(&mut log, vec![entry(0, 50)]).await, append(&mut log, vec![entry(1, 50)]).await);
        for (taken, told) in [first, second] {
            taken.unwrap();
            assert!(told.await.unwrap().is_err());
        }
        assert!(halt.reason().is_some());
        disk.set_full(false);
        let (taken, told) = append(&mut log, vec![entry(2, 50)]).await;
        assert!(taken.is_err() && told.await.unwrap().is_err(), "there would be a hole");
    });
}

#[test]
fn a_panic_of_the_database_fails_who_waits_and_whatever_comes_after() {
    on_a_paused_clock(async {
        let disk = MemoryDisk::new(7);
        let (store, mut log, _) = open(&disk);
        append(&mut log, vec![entry(0, 50)]).await.1.await.unwrap().unwrap();
        let (_, told) = append(&mut log, vec![entry(1, 50)]).await;
        let error = store.write("testing", |_| -> Result<(), _> { panic!("a page has rotted") }).unwrap_err();
        assert!(error.to_string().contains("a page has rotted"), "{error}");
        assert!(told.await.unwrap().is_err(), "its entry went with the panic");
        assert!(append(&mut log, vec![entry(2, 50)]).await.0.is_err() && store.settle_for_test().is_err());
        drop((store, log));
        let (_, mut log, _) = open(&disk.reboot());
        assert_eq!(log.try_get_log_entries(0..3).await.unwrap().len(), 1);
    });
}

#[test]
fn purged_entries_are_gone_at_once_and_leave_the_disk_in_pieces() {
    on_a_paused_clock(async {
        let disk = MemoryDisk::new(6);
        let (store, mut log, _) = open(&disk);
        let pieces = 3;
        let last = pieces * crate::tuning::SWEPT_PER_TRANSACTION;
        append(&mut log, (0..=last).map(|index| entry(index, 1)).collect()).await.1.await.unwrap().unwrap();
        log.purge(log_id(1, last - 1)).await.unwrap();
        let on_disk = |store: &Store| store.stored_for_test().unwrap();
        assert_eq!(on_disk(&store), last + 1, "later transactions remove them");
        assert_eq!(log.try_get_log_entries(0..last + 1).await.unwrap().len(), 1);
        drop((store, log));
        let (store, mut log, _) = open(&disk.reboot());
        assert_eq!(log.try_get_log_entries(0..last + 1).await.unwrap().len(), 1);
        for index in 1..=pieces {
            append(&mut log, vec![entry(last + index, 1)]).await.1.await.unwrap().unwrap();
            store.settle_for_test().unwrap();
        }
        assert_eq!(on_disk(&store), 1 + pieces);
    });
}

/// A write of the log or of a snapshot, and what it is.
type Write = (&'static str, futures_util::future::BoxFuture<'static, ()>);

fn writes(store: &Store, log: &LogStore) -> Vec<Write> {
    let of = |log: &LogStore| log.clone();
    let (mut voting, mut truncating, mut purging, mut appending) = (of(log), of(log), of(log), of(log));
    let store = store.clone();
    let vote = Vote::from(VoteV1 { term: 3, node: Default::default(), committed: false });
    let meta = SnapshotMeta { last_log_id: Some(log_id(1, 0)), ..SnapshotMeta::default() };
    let too_much = (1..4).map(|index| entry(index, crate::tuning::LOG_QUEUE_BYTES / 3)).collect();
    vec![
        ("a vote", async move { voting.save_vote(&vote).await.unwrap() }.boxed()),
        ("a truncation", async move { truncating.truncate_after(Some(log_id(1, 0))).await.unwrap() }.boxed()),
        ("a purge", async move { purging.purge(log_id(1, 0)).await.unwrap() }.boxed()),
        ("a queue that is too long", async move { append(&mut appending, too_much).await.0.unwrap() }.boxed()),
        ("a snapshot", async move { store.write_snapshot(&meta, SnapshotData::default()).await.unwrap() }.boxed()),
    ]
}

#[test]
fn other_tasks_go_on_while_something_waits_for_the_disk() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let _here = runtime.enter();
    let (store, mut log, _) = open(&MemoryDisk::new(8));
    runtime.block_on(async { append(&mut log, vec![entry(0, 50)]).await.1.await.unwrap().unwrap() });
    for (what, write) in writes(&store, &log) {
        // Somebody writes: whatever is to be written waits for it.
        let writing = store.journal();
        let waiting = runtime.spawn(write);
        // One worker, which takes what is spawned in turn.
        let (tell, told) = std::sync::mpsc::channel();
        runtime.spawn(async move { tell.send(()).unwrap() });
        told.recv_timeout(std::time::Duration::from_secs(10)).unwrap_or_else(|_| panic!("{what} holds the worker"));
        assert!(!waiting.is_finished(), "{what} did not wait");
        drop(writing);
        runtime.block_on(waiting).unwrap();
    }
}
