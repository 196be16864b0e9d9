//! What was appended last, in a file that is written forwards: one write and one sync make an append durable, where a
//! transaction of the database copies a path of pages in each of its trees.
//!
//! ```text
//! file     JOURNAL_BYTES: the id of the ledger, records of the current head, then whatever was there before
//! id       frame of IdentityV1, padded to a SECTOR
//! record   run 16 bytes, generation u64 le, frame of JournalRecordV1; padded with zeros to a multiple of SECTOR
//! ```
//!
//! The head (run and generation) is in the database. A transaction that takes the journal in writes another head with it, so
//! that the records of the old one count no more from the same sync on, and the next record begins in front again. Nothing
//! is ever erased.
//!
//! One record is written and synced at a time, and no two share a sector, so a power cut can tear the last one only: it was
//! promised to nobody, and reading ends there. One that is damaged while others follow it was promised: it is refused. Of
//! the device it is assumed that a sector which is rewritten as it was stays as it was. (Write-ahead logging; Mohan et al.,
//! ARIES, ACM TODS 17:1, 1992.)

use std::fmt;

use fabric::seams::Disk;
use fabric::wire::{self, HEADER_BYTES};
use redb::{StorageBackend, WriteTransaction};

use super::identity::IdentityV1;
use super::log::{Taken, weight};
use super::{KEY_JOURNAL, StoreError, disk_failed, put};
use crate::codec::{EntryV1, JournalHeadV1, JournalRecordV1, LogIdV1};
use crate::tuning::JOURNAL_BYTES;
use crate::types::{Entry, LogId};

/// The file's name in the data directory.
pub(crate) const JOURNAL: &str = "ledger.journal";
/// What a disk writes as a whole, at the least.
const SECTOR: usize = 512;
/// Bytes of a record in front of its frame.
const PREFIX_BYTES: usize = 24;
/// Entries of more bytes go into the database at once.
const RECORD_BYTES_MAX: usize = JOURNAL_BYTES / 4;

/// The open file, and what the database lacks of it.
pub(super) struct Journal {
    file: Box<dyn StorageBackend>,
    head: JournalHeadV1,
    /// The first head of this run, until it is in the database.
    fresh: Option<JournalHeadV1>,
    /// Records of the head, and where the next one begins.
    records: u64,
    end: usize,
    entries: Vec<Entry>,
    committed: Option<LogId>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({} records, {} bytes)", self.records, self.end)
    }
}

impl Journal {
    /// Opens the file of a ledger, and reads what was appended under `head`. Whatever is appended next comes under `fresh`,
    /// once the database has both.
    pub(super) fn open(
        disk: &dyn Disk,
        ledger: IdentityV1,
        head: JournalHeadV1,
        fresh: JournalHeadV1,
    ) -> Result<Self, StoreError> {
        let failed = || disk_failed(JOURNAL, "opening it");
        if !disk.exists(JOURNAL).map_err(failed())? {
            return Err(StoreError::Lost { file: JOURNAL });
        }
        let file = disk.storage(JOURNAL, false).map_err(failed())?;
        if file.len().map_err(failed())? != JOURNAL_BYTES as u64 {
            return Err(damaged("its length", "it was cut short or grew"));
        }
        let mut bytes = vec![0; JOURNAL_BYTES];
        file.read(0, &mut bytes).map_err(disk_failed(JOURNAL, "reading it"))?;
        match frame_at(&bytes, 0).map(wire::decode::<IdentityV1>) {
            Some(Ok(found)) if found == ledger => {}
            Some(Ok(_)) => return Err(StoreError::Other { file: JOURNAL }),
            Some(Err(cause)) => return Err(damaged("the record of its id", cause)),
            None => return Err(damaged("the record of its id", "it is missing")),
        }
        let records = scan(&bytes, head)?;
        let committed = records.last().and_then(|record| record.committed).map(LogId::from);
        let entries = records.into_iter().flat_map(|record| record.entries).map(EntryV1::into_entry);
        let entries = entries.collect::<Result<_, _>>().map_err(|cause| damaged("an entry", cause))?;
        Ok(Journal { file, head, fresh: Some(fresh), records: 0, end: SECTOR, entries, committed })
    }

    /// How far the log was known to be committed when the newest record was written.
    pub(super) fn committed(&self) -> Option<LogId> {
        self.committed
    }

    /// Makes entries durable. False when there is no room for them: then a transaction has to take everything.
    pub(super) fn append(&mut self, taken: &Taken) -> Result<bool, StoreError> {
        if taken.entries.is_empty() {
            return Ok(true);
        }
        if taken.entries.iter().map(weight).sum::<usize>() > RECORD_BYTES_MAX {
            return Ok(false);
        }
        let committed = taken.committed.map(LogIdV1::from);
        let entries = taken.entries.iter().map(EntryV1::from).collect();
        let record = JournalRecordV1 { head: self.head, number: self.records, committed, entries };
        let mut bytes = prefix(self.head).to_vec();
        bytes.extend(wire::encode(&record));
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        if self.end + bytes.len() > JOURNAL_BYTES {
            return Ok(false);
        }
        let written = self.file.write(self.end as u64, &bytes).and_then(|()| self.file.sync_data());
        written.map_err(disk_failed(JOURNAL, super::log::APPENDING))?;
        self.end += bytes.len();
        self.records += 1;
        self.entries.extend(taken.entries.iter().cloned());
        self.committed = taken.committed;
        Ok(true)
    }

    /// Writes everything into the database, with the head that is to follow: [`Journal::begin`] it after the commit.
    pub(super) fn put(&self, transaction: &WriteTransaction) -> Result<JournalHeadV1, StoreError> {
        if self.entries.is_empty() && self.fresh.is_none() {
            return Ok(self.head);
        }
        let taken = Taken::of(self.entries.clone(), self.committed);
        taken.put(transaction)?;
        let following = JournalHeadV1 { generation: self.head.generation + 1, ..self.head };
        let next = self.fresh.unwrap_or(following);
        put(transaction, KEY_JOURNAL, &next)?;
        Ok(next)
    }

    /// The database has everything: what is appended next comes under `head`.
    pub(super) fn begin(&mut self, head: JournalHeadV1) {
        (self.head, self.fresh) = (head, None);
        (self.records, self.end) = (0, SECTOR);
        self.entries.clear();
    }
}

/// Makes the file of a ledger whose database is made next, under a temporary name until it is whole.
pub(super) fn make(disk: &dyn Disk, ledger: IdentityV1) -> Result<(), StoreError> {
    let made = || {
        let fresh = format!("{JOURNAL}.new");
        disk.remove(&fresh)?;
        let file = disk.storage(&fresh, false)?;
        file.set_len(JOURNAL_BYTES as u64)?;
        // All of it, so that an append finds its blocks and its sync has nothing but them to write.
        let mut bytes = wire::encode(&ledger);
        bytes.resize(JOURNAL_BYTES, 0);
        file.write(0, &bytes)?;
        file.sync_data()?;
        file.close()?;
        drop(file);
        disk.rename(&fresh, JOURNAL)
    };
    made().map_err(disk_failed(JOURNAL, "making it"))
}

fn damaged(what: impl Into<String>, cause: impl ToString) -> StoreError {
    StoreError::Damaged { file: JOURNAL, what: what.into(), cause: cause.to_string() }
}

/// The records of `head`, in order.
fn scan(bytes: &[u8], head: JournalHeadV1) -> Result<Vec<JournalRecordV1>, StoreError> {
    let (mut records, mut at) = (Vec::new(), SECTOR);
    while let Some((record, length)) = record_at(bytes, at, head) {
        if record.number != records.len() as u64 {
            break;
        }
        records.push(record);
        at += length;
    }
    let number = records.len() as u64;
    let behind = |at| record_at(bytes, at, head).is_some_and(|(record, _)| record.number > number);
    if (at..bytes.len()).step_by(SECTOR).any(behind) {
        return Err(damaged(format!("record {number}"), "records that were written after it are there"));
    }
    Ok(records)
}

fn prefix(head: JournalHeadV1) -> [u8; PREFIX_BYTES] {
    let mut bytes = [0; PREFIX_BYTES];
    bytes[..16].copy_from_slice(&head.run);
    bytes[16..].copy_from_slice(&head.generation.to_le_bytes());
    bytes
}

/// The frame that begins at an offset, if its length makes sense.
fn frame_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    rest.get(..wire::frame_bytes(rest.first_chunk::<HEADER_BYTES>()?).ok()?)
}

/// The record that begins at an offset, if it is one of `head`, and how far it reaches. What a client has put into an entry
/// does not get past the prefix, so none can make this costly.
fn record_at(bytes: &[u8], at: usize, head: JournalHeadV1) -> Option<(JournalRecordV1, usize)> {
    bytes.get(at..)?.starts_with(&prefix(head)).then_some(())?;
    let frame = frame_at(bytes, at + PREFIX_BYTES)?;
    let record: JournalRecordV1 = wire::decode(frame).ok()?;
    (record.head == head).then_some((record, (PREFIX_BYTES + frame.len()).next_multiple_of(SECTOR)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fabric::seams::real::KernelEntropy;
    use openraft::EntryPayload;
    use openraft::storage::IOFlushed;
    use openraft::type_config::TypeConfigExt;

    use super::super::suite::disk::MemoryDisk;
    use super::super::{FILE, Store};
    use super::*;
    use crate::types::{Proposal, TC, log_id};

    fn open(disk: &MemoryDisk) -> Result<Store, StoreError> {
        Store::open(disk, &KernelEntropy, false)
    }

    fn append(store: &Store, index: u64, content: &[u8]) {
        let payload = EntryPayload::Normal(Proposal(Bytes::copy_from_slice(content)));
        let (tell, _told) = TC::oneshot();
        store.enqueue_for_test(vec![Entry { log_id: log_id(1, index), payload }], IOFlushed::signal(tell)).unwrap();
        store.flush_for_test().unwrap();
    }

    fn bytes(disk: &MemoryDisk, name: &str) -> Vec<u8> {
        disk.read(name).unwrap().unwrap()
    }

    fn indexes(store: &Store) -> Vec<u64> {
        store.entries_for_test().unwrap().into_iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn appends_write_the_journal_alone_and_the_next_start_takes_it_in() {
        let disk = MemoryDisk::new(21);
        let store = open(&disk).unwrap();
        let before = bytes(&disk, FILE);
        (0..3).for_each(|index| append(&store, index, b"x"));
        assert!(bytes(&disk, FILE) == before, "the database was not touched");
        drop(store);
        let disk = disk.reboot();
        let store = open(&disk).unwrap();
        assert_eq!(indexes(&store), [0, 1, 2]);
        assert_eq!(store.stored_for_test().unwrap(), 3);
        append(&store, 3, b"x");
        drop(store);
        assert_eq!(indexes(&open(&disk.reboot()).unwrap()), [0, 1, 2, 3], "the old records count no more");
    }

    #[test]
    fn a_full_journal_goes_into_the_database_and_begins_anew() {
        let disk = MemoryDisk::new(22);
        let store = open(&disk).unwrap();
        let content = vec![7; RECORD_BYTES_MAX / 2];
        let many = 3 * (JOURNAL_BYTES / content.len()) as u64;
        (0..many).for_each(|index| append(&store, index, &content));
        assert!(store.stored_for_test().unwrap() > many / 2);
        append(&store, many, &vec![7; 2 * RECORD_BYTES_MAX]);
        assert_eq!(store.stored_for_test().unwrap(), many + 1, "what is too large for a record takes all along");
        drop(store);
        assert_eq!(indexes(&open(&disk.reboot()).unwrap()), Vec::from_iter(0..=many));
    }

    #[test]
    fn a_torn_last_record_ends_the_journal_and_a_damaged_one_before_others_is_refused() {
        let written = |seed| {
            let disk = MemoryDisk::new(seed);
            let store = open(&disk).unwrap();
            (0..3).for_each(|index| append(&store, index, format!("the content of {index}").as_bytes()));
            drop(store);
            disk.reboot()
        };
        let disk = written(23);
        assert!(disk.corrupt(JOURNAL, b"the content of 2", b"THE"));
        assert_eq!(indexes(&open(&disk).unwrap()), [0, 1]);
        let disk = written(24);
        assert!(disk.corrupt(JOURNAL, b"the content of 1", b"THE"));
        for _ in 0..2 {
            let error = open(&disk).err().expect("it is noticed").to_string();
            assert!(error.contains("record 1") && error.contains(JOURNAL), "{error}");
        }
    }

    #[test]
    fn what_a_quiet_ledger_has_written_is_in_the_database_where_damage_is_noticed() {
        let disk = MemoryDisk::new(25);
        let store = open(&disk).unwrap();
        append(&store, 0, b"the content of 0");
        store.settle_for_test().unwrap();
        drop(store);
        let disk = disk.reboot();
        assert!(disk.corrupt(JOURNAL, b"the content of 0", b"THE"), "an old record, which counts no more");
        assert_eq!(indexes(&open(&disk).unwrap()), [0]);
        assert!(disk.corrupt(FILE, b"the content of 0", b"THE"));
        assert!(open(&disk).err().expect("it is noticed").to_string().contains("log entry 0"));
    }

    /// A torn record whose content holds a whole later one of `head`, where a record could begin.
    fn torn_around(head: impl Fn(JournalHeadV1) -> JournalHeadV1) -> Result<Store, StoreError> {
        let disk = MemoryDisk::new(26);
        let store = open(&disk).unwrap();
        append(&store, 0, b"x");
        let head = head(store.meta(KEY_JOURNAL).unwrap().unwrap());
        let forged = JournalRecordV1 { head, number: 9, committed: None, entries: Vec::new() };
        let forged = [prefix(head).to_vec(), wire::encode(&forged)].concat();
        let marked = [&[0; SECTOR][..], b"HERE", &[0; 4 * SECTOR]].concat();
        append(&store, 1, &marked);
        let place = bytes(&disk, JOURNAL).windows(4).position(|four| four == b"HERE").unwrap();
        // The next record has the same shape, so the same offset behind its beginning.
        let begin = [&vec![0; SECTOR + (SECTOR - place % SECTOR)][..], &forged, b"THE END"].concat();
        append(&store, 2, &[&begin[..], &vec![0; marked.len() - begin.len()]].concat());
        drop(store);
        let disk = disk.reboot();
        assert!(disk.corrupt(JOURNAL, b"THE END", b"the"));
        assert!(bytes(&disk, JOURNAL).chunks(SECTOR).any(|sector| sector.starts_with(&forged)));
        open(&disk)
    }

    #[test]
    fn content_that_looks_like_a_later_record_is_none() {
        let drawn = |head: JournalHeadV1| JournalHeadV1 { run: [7; 16], ..head };
        assert_eq!(indexes(&torn_around(drawn).unwrap()), [0, 1]);
        assert!(torn_around(|head| head).is_err(), "whoever knew the run could do this");
    }

    #[test]
    fn anothers_journal_and_an_empty_one_are_refused() {
        let (disk, other) = (MemoryDisk::new(28), MemoryDisk::new(29));
        let store = open(&disk).unwrap();
        append(&store, 0, b"x");
        drop((store, open(&other).unwrap()));
        let disk = disk.reboot();
        let good = bytes(&disk, JOURNAL);
        disk.write(JOURNAL, &bytes(&other.reboot(), JOURNAL)).unwrap();
        assert!(matches!(open(&disk), Err(StoreError::Other { file: JOURNAL })));
        disk.write(JOURNAL, &vec![0; JOURNAL_BYTES]).unwrap();
        assert!(matches!(open(&disk), Err(StoreError::Damaged { file: JOURNAL, .. })));
        disk.write(JOURNAL, &good).unwrap();
        assert_eq!(indexes(&open(&disk).unwrap()), [0]);
    }

    #[test]
    fn a_journal_that_is_gone_or_cut_short_is_missed() {
        let disk = MemoryDisk::new(27);
        drop(open(&disk).unwrap());
        disk.rename(JOURNAL, "aside").unwrap();
        assert!(matches!(open(&disk), Err(StoreError::Lost { file: JOURNAL })));
        disk.write(JOURNAL, b"short").unwrap();
        assert!(matches!(open(&disk), Err(StoreError::Damaged { file: JOURNAL, .. })));
        disk.remove(JOURNAL).unwrap();
        disk.rename("aside", JOURNAL).unwrap();
        drop(open(&disk).unwrap());
    }
}
