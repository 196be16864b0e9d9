//! Power cuts in the middle of whatever the store does: nothing acknowledged is lost, nothing is half done.
//!
//! Every round opens the store, works until the armed cut hits, opens it again and compares it with a model of what was
//! promised: entries whose callback was called, and everything else that returned. What waited or was under way at the
//! cut may have happened or not, as a whole. A disk that lies about syncs must be caught by the same test.

use std::collections::BTreeMap;

use bytes::Bytes;
use fabric::seams::Disk;
use fabric::seams::real::KernelEntropy;
use futures_util::FutureExt;
use openraft::EntryPayload;
use openraft::storage::IOFlushed;
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::suite::disk::{LOSSES, Loss, MemoryDisk};
use super::{FILE, Store};
use crate::codec::VoteV1;
use crate::types::{Entry, LogId, Proposal, SnapshotData, SnapshotMeta, StoredMembership, TC, Vote, log_id};

/// What the store has promised.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    /// Index to (term, content).
    log: BTreeMap<u64, (u64, Vec<u8>)>,
    purged: Option<(u64, u64)>,
    vote: Option<u64>,
    snapshot: Option<u64>,
}

impl Model {
    fn last(&self) -> Option<(u64, u64)> {
        self.log.last_key_value().map(|(index, (term, _))| (*term, *index)).or(self.purged)
    }

    fn read(store: &Store) -> Result<Self, String> {
        let text = |error: super::StoreError| error.to_string();
        let entries = store.entries_for_test().map_err(text)?;
        let content = |entry: Entry| match entry.payload {
            EntryPayload::Normal(proposal) => (crate::types::term_of(&entry.log_id), proposal.0.to_vec()),
            _ => (crate::types::term_of(&entry.log_id), Vec::new()),
        };
        let pair = |id: LogId| (crate::types::term_of(&id), id.index);
        let (vote, purged) = store.promises_for_test();
        Ok(Model {
            log: entries.into_iter().map(|entry| (entry.log_id.index, content(entry))).collect(),
            purged: purged.map(pair),
            vote: vote.map(|vote| vote.leader_id.term),
            snapshot: store.current_snapshot().map_err(text)?.and_then(|s| s.meta.last_log_id).map(|id| id.index),
        })
    }
}

enum Work {
    /// Queues.
    Append(Vec<Entry>),
    /// Writes the queue, as everything below does too.
    Flush,
    /// Takes the journal into the database, as everything below does too.
    Settle,
    Vote(u64),
    Truncate(Option<(u64, u64)>),
    Purge((u64, u64)),
    Snapshot(u64, SnapshotData),
}

fn choose(model: &Model, rng: &mut SmallRng) -> Work {
    let (term, last) = model.last().map_or((1, None), |(term, index)| (term, Some(index)));
    let first = model.log.first_key_value().map(|(index, _)| *index);
    match rng.random_range(0..20) {
        0 | 1 => Work::Vote(model.vote.unwrap_or(0) + 1),
        2 if first.is_some() => {
            let keep = model.log.range(..rng.random_range(first.unwrap_or(0)..=last.unwrap_or(0))).next_back();
            Work::Truncate(keep.map(|(index, (term, _))| (*term, *index)).or(model.purged))
        }
        3 if model.log.len() > 8 => {
            let upto =
                model.log.iter().nth(rng.random_range(0..model.log.len())).map(|(index, (term, _))| (*term, *index));
            Work::Purge(upto.unwrap_or((term, 0)))
        }
        4 => {
            let chunk = || Bytes::from(vec![7; 3_000]);
            let chunks = (0..rng.random_range(0..3)).map(|_| chunk()).collect();
            Work::Snapshot(model.snapshot.unwrap_or(0) + 1, SnapshotData { chunks })
        }
        5 => Work::Settle,
        6..=8 => Work::Flush,
        _ => {
            let begin = last.map_or(0, |index| index + 1);
            let count = rng.random_range(1..6);
            let entries = (begin..begin + count).map(|index| {
                let content = vec![rng.random::<u8>(); rng.random_range(1..400)];
                Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Proposal(Bytes::from(content))) }
            });
            Work::Append(entries.collect())
        }
    }
}

/// The model once `work` is done.
fn after(model: &Model, work: &Work) -> Model {
    let mut next = model.clone();
    match work {
        Work::Append(entries) => {
            for entry in entries {
                if let EntryPayload::Normal(proposal) = &entry.payload {
                    let content = (crate::types::term_of(&entry.log_id), proposal.0.to_vec());
                    next.log.insert(entry.log_id.index, content);
                }
            }
        }
        Work::Flush | Work::Settle => {}
        Work::Vote(term) => next.vote = Some(*term),
        Work::Truncate(last) => {
            drop(next.log.split_off(&last.map_or(0, |(_, index)| index + 1)));
        }
        Work::Purge((term, index)) => {
            next.purged = Some((*term, *index));
            next.log = next.log.split_off(&(index + 1));
        }
        Work::Snapshot(index, _) => next.snapshot = Some(*index),
    }
    next
}

/// Callbacks that are waited for.
type Waiting = Vec<OneshotReceiverOf<TC, std::io::Result<()>>>;

/// Whether all callbacks have said that their entries are on the disk; none may be called before the others.
fn told(waiting: &mut Waiting) -> Result<bool, String> {
    let all: Vec<bool> = waiting.iter_mut().map(|one| matches!(one.now_or_never(), Some(Ok(Ok(()))))).collect();
    if all.iter().any(|told| *told) && !all.iter().all(|told| *told) {
        return Err(format!("callbacks were called apart: {all:?}"));
    }
    waiting.clear();
    Ok(all.first().is_some_and(|told| *told))
}

fn perform(store: &Store, work: Work, waiting: &mut Waiting) -> Result<(), super::StoreError> {
    let id = |(term, index): (u64, u64)| log_id(term, index);
    match work {
        Work::Append(entries) => {
            let (tell, told) = TC::oneshot();
            waiting.push(told);
            store.enqueue_for_test(entries, IOFlushed::signal(tell))
        }
        Work::Flush => store.flush_for_test(),
        Work::Settle => store.flush_for_test().and_then(|()| store.settle_for_test()),
        Work::Vote(term) => {
            let record = VoteV1 { term, node: fabric::ids::NodeId::default(), committed: false };
            store.save_vote_synced(&Vote::from(record))
        }
        Work::Truncate(last) => store.truncate(last.map(id)),
        Work::Purge(upto) => store.purge_up_to(id(upto)),
        Work::Snapshot(index, data) => {
            let meta =
                SnapshotMeta { last_log_id: Some(log_id(1, index)), last_membership: StoredMembership::default() };
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(store.write_snapshot(&meta, data))
        }
    }
}

fn append(store: &Store, entries: Vec<Entry>) -> Result<(), super::StoreError> {
    perform(store, Work::Append(entries), &mut Waiting::new())?;
    store.flush_for_test()
}

/// Works until the cut or for a while. `model` then is what was promised; what else may be found is returned.
fn work_until_cut(store: &Store, model: &mut Model, rng: &mut SmallRng) -> Result<Vec<Model>, String> {
    let (mut ahead, mut waiting) = (model.clone(), Waiting::new());
    for _ in 0..100 {
        let work = choose(&ahead, rng);
        let done = after(&ahead, &work);
        let queues = matches!(work, Work::Append(_));
        let result = perform(store, work, &mut waiting);
        if queues && result.is_ok() {
            ahead = done;
            continue;
        }
        let had_waiting = !waiting.is_empty();
        let told = told(&mut waiting)?;
        if told {
            *model = ahead.clone();
        }
        match result {
            Err(_) => return Ok(vec![ahead, done]),
            Ok(()) if had_waiting && !told => return Err("a callback was not called".into()),
            Ok(()) => *model = done.clone(),
        }
        ahead = done;
    }
    Ok(vec![ahead])
}

/// Cuts the power `cuts` times. The error says what was lost.
fn cut_often(seed: u64, cuts: u32, lies: bool) -> Result<(), String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut done = 0;
    while done < cuts {
        let mut disk = MemoryDisk::new(rng.random());
        let mut model = Model::default();
        for round in 0..100 {
            disk = disk.reboot();
            if lies && round > 0 {
                disk.lie();
            }
            let loss = if lies { Loss::DropAll } else { LOSSES[rng.random_range(0..LOSSES.len())] };
            disk.cut_in(rng.random_range(0..60), loss);
            let mut possible = vec![model.clone()];
            // An error here is the cut itself, while the file is made or recovered.
            if let Ok(store) = Store::open(&disk, &KernelEntropy, false) {
                possible =
                    work_until_cut(&store, &mut model, &mut rng).map_err(|error| format!("seed {seed}: {error}"))?;
            }
            if !disk.is_off() {
                disk.cut(loss);
            }
            done += 1;
            disk = disk.reboot();
            let store = Store::open(&disk, &KernelEntropy, false)
                .map_err(|error| format!("seed {seed} cut {done} {loss:?}: {error}"))?;
            let found = Model::read(&store)?;
            if found != model && !possible.contains(&found) {
                return Err(format!("seed {seed} cut {done} {loss:?}: {found:?}, promised {model:?} or {possible:?}"));
            }
            model = found;
        }
    }
    Ok(())
}

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_1() {
    cut_often(1, 3_500, false).unwrap();
}

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_2() {
    cut_often(2, 3_500, false).unwrap();
}

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_3() {
    cut_often(3, 3_500, false).unwrap();
}

#[test]
fn a_disk_that_lies_about_syncs_is_caught() {
    assert!(cut_often(4, 200, true).is_err());
}

#[test]
fn a_damaged_log_record_is_named_and_refused() {
    let disk = MemoryDisk::new(5);
    let entry = |index: u64| Entry {
        log_id: log_id(1, index),
        payload: EntryPayload::Normal(Proposal(Bytes::from(format!("the content of entry {index}")))),
    };
    let store = Store::open(&disk, &KernelEntropy, false).unwrap();
    append(&store, (0..10).map(entry).collect()).unwrap();
    store.settle_for_test().unwrap();
    drop(store);
    let disk = disk.reboot();
    assert!(disk.corrupt(FILE, b"content of entry 7", b"cONTENT"));
    let error = Store::open(&disk, &KernelEntropy, false).err().expect("the damage is noticed").to_string();
    assert!(error.contains("log entry 7") && error.contains(FILE), "{error}");
}

#[test]
fn a_full_disk_fails_the_write_and_keeps_what_there_was() {
    let disk = MemoryDisk::new(6);
    let entry = |index: u64| Entry { log_id: log_id(1, index), payload: EntryPayload::Blank };
    {
        let store = Store::open(&disk, &KernelEntropy, false).unwrap();
        append(&store, vec![entry(0)]).unwrap();
        disk.set_full(true);
        assert!(append(&store, vec![entry(1)]).is_err());
        // Not even when there is room again: what this handle knows of the file is in doubt.
        disk.set_full(false);
        let error = append(&store, vec![entry(2)]).unwrap_err().to_string();
        assert!(error.contains("failed before"), "{error}");
    }
    let disk = disk.reboot();
    assert!(Model::read(&Store::open(&disk, &KernelEntropy, false).unwrap()).unwrap().log.contains_key(&0));
}

#[test]
fn the_database_of_another_program_is_refused() {
    let formats = [(super::FORMAT + 1, "upgrade this node"), (super::FORMAT - 1, "before the first release")];
    for (version, words) in formats {
        let disk = MemoryDisk::new(7);
        {
            let store = Store::open(&disk, &KernelEntropy, false).unwrap();
            let other = crate::codec::FormatV1 { version };
            store.write("testing", |transaction| super::put(transaction, super::KEY_FORMAT, &other)).unwrap();
        }
        let error = Store::open(&disk.reboot(), &KernelEntropy, false).err().expect("it is refused").to_string();
        assert!(error.contains(words), "{error}");
        assert!(disk.reboot().exists(FILE).unwrap());
    }
}
