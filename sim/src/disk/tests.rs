//! The disk under power cuts, first with small files, then with redb on it as every node has it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fabric::seams::open_database;
use rand::RngExt;
use redb::{Database, Durability, ReadableDatabase, TableDefinition};

use super::*;
use crate::random::stream;

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("t");

fn disk(seed: u64) -> HostDisk {
    HostDisk::new(stream(seed, "disk", &[]))
}

#[test]
fn a_replaced_file_is_old_or_new_after_a_cut_at_any_step() {
    for seed in 0..200 {
        for steps in 0..6 {
            let disk = disk(seed);
            let (_, files) = disk.boot();
            files.write("a", b"old").unwrap();
            disk.arm(steps, Loss::ALL[seed as usize % 4]);
            let done = files.write("a", b"new").is_ok();
            disk.cut(Loss::ALL[seed as usize % 4]);
            let found = disk.boot().1.read("a").unwrap().unwrap();
            let allowed: &[&[u8]] = if done { &[b"new"] } else { &[b"old", b"new"] };
            assert!(allowed.contains(&&found[..]), "seed {seed} steps {steps}: {found:?}");
        }
    }
}

#[test]
fn a_boot_without_power_can_do_nothing() {
    let disk = disk(1);
    let (supply, old) = disk.boot();
    let database = old.storage("d", true).unwrap();
    database.write(0, b"unsynced").unwrap();
    disk.cut(Loss::DropAll);
    let (_, new) = disk.boot();
    assert!(!supply.is_on());
    assert!(old.read("a").is_err() && old.write("a", b"x").is_err() && database.sync_data().is_err());
    assert!(!new.exists("d").unwrap(), "the name was never synced");
    assert_eq!(disk.counts().cuts, 1);
}

#[test]
fn the_end_of_the_daemon_alone_loses_nothing() {
    let disk = disk(1);
    let (_, old) = disk.boot();
    let database = old.storage("d", true).unwrap();
    database.write(0, b"unsynced").unwrap();
    assert_eq!(old.storage("d", true).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    disk.end_process();
    let (_, new) = disk.boot();
    drop(database);
    assert_eq!(new.read("d").unwrap().unwrap(), b"unsynced");
    assert!(new.storage("d", true).is_ok(), "the lock went with the process");
}

#[test]
fn a_full_disk_refuses_growth_and_keeps_the_old_file() {
    let disk = disk(1);
    let (_, files) = disk.boot();
    files.write("a", &[1; 100]).unwrap();
    disk.trouble(Trouble { capacity_bytes: 150, ..Trouble::default() });
    assert_eq!(files.write("a", &[2; 100]).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(files.read("a").unwrap().unwrap(), [1; 100]);
}

#[test]
fn a_failed_sync_fails_the_write_and_keeps_the_old_file() {
    let disk = disk(1);
    let (_, files) = disk.boot();
    files.write("a", b"old").unwrap();
    disk.trouble(Trouble { failing_syncs: 1, ..Trouble::default() });
    assert!(files.write("a", b"new").is_err());
    assert_eq!(files.read("a").unwrap().unwrap(), b"old");
    files.write("a", b"new").unwrap();
    assert_eq!(disk.rot_somewhere().as_deref(), Some("a"));
    assert_ne!(files.read("a").unwrap().unwrap(), b"new");
}

#[test]
fn a_host_stands_still_for_each_sync_that_nobody_has_slept_for() {
    let disk = disk(1);
    let (_, files) = disk.boot();
    let file = files.storage("d", true).unwrap();
    let stalled = |sync: &dyn Fn()| {
        let before = disk.counts().stalled_us;
        sync();
        disk.counts().stalled_us - before
    };
    disk.slow(7_000);
    assert_eq!(stalled(&|| file.sync_data().unwrap()), 7_000);
    assert_eq!(files.sync_takes().as_micros(), 7_000);
    assert_eq!(stalled(&|| file.sync_data().unwrap()), 0);
    assert_eq!(stalled(&|| file.sync_data().unwrap()), 7_000);
    disk.mend();
    assert!(files.sync_takes().as_micros() < 7_000);
}

#[test]
fn a_growing_file_has_what_it_allocated_ahead_on_a_full_disk() {
    let disk = disk(1);
    let (_, files) = disk.boot();
    let (grows, fixed) = (files.storage("grows", true).unwrap(), files.storage("fixed", false).unwrap());
    disk.fill(0, true);
    assert!(grows.write(0, &[1; 4096]).is_ok() && fixed.write(0, &[1; 4096]).is_err());
    assert!(grows.set_len(HEADROOM_BYTES + 1).is_err());
    disk.fill(0, false);
    assert!(grows.write(4096, &[1; 4096]).is_err(), "on a file system that cannot");
    disk.mend();
    assert!(fixed.write(0, &[1; 4096]).is_ok());
}

#[test]
fn names_stay_inside() {
    let (_, files) = disk(1).boot();
    for name in ["", "../a", "/a", "a/b/c", "a b"] {
        assert!(files.write(name, b"x").is_err(), "{name:?}");
    }
    files.write("sub/a", b"x").unwrap();
    assert!(files.exists("sub/a").unwrap());
}

fn open(disk: &HostDisk) -> Result<Database, redb::Error> {
    let prepare = |database: &Database| {
        let tx = database.begin_write()?;
        tx.open_table(TABLE)?;
        Ok(tx.commit()?)
    };
    open_database(&*disk.boot().1, "d.redb", 1 << 20, prepare)
}

/// Commits transaction number `n`: key 0 holds it, and every other key that it touches.
fn commit(database: &Database, n: u64, rng: &mut StdRng, durability: Durability) -> Result<(), redb::Error> {
    let mut tx = database.begin_write()?;
    tx.set_durability(durability)?;
    {
        let mut table = tx.open_table(TABLE)?;
        table.insert(0, &n.to_le_bytes()[..])?;
        for _ in 0..rng.random_range(1..6) {
            table.insert(rng.random_range(1..100), &vec![n as u8; rng.random_range(1..3000)][..])?;
        }
        table.insert(1000 + n, &n.to_le_bytes()[..])?;
    }
    Ok(tx.commit()?)
}

/// The last transaction, after a check that every earlier one is there.
fn last(database: &Database) -> Result<u64, redb::Error> {
    let table = database.begin_read()?.open_table(TABLE)?;
    let number = |value: &[u8]| value.try_into().map_or(0, u64::from_le_bytes);
    let last = table.get(0)?.map_or(0, |value| number(value.value()));
    let mut expected = 1;
    for row in table.range(1001..)? {
        let (key, value) = row?;
        assert_eq!((key.value(), number(value.value())), (1000 + expected, expected), "a partial transaction");
        expected += 1;
    }
    assert_eq!(expected, last + 1, "a partial transaction");
    Ok(last)
}

/// Runs one database through power cuts. Returns how many acknowledged transactions were lost.
fn torture(seed: u64, durability: Durability) -> u64 {
    let (disk, mut rng) = (disk(seed), stream(seed, "torture", &[]));
    let (mut acknowledged, mut lost) = (0, 0);
    for _ in 0..12 {
        let loss = Loss::ALL[rng.random_range(0..4)];
        disk.arm(rng.random_range(0..120), loss);
        let mut run = || -> Result<(), redb::Error> {
            let database = open(&disk)?;
            let start = last(&database)?;
            for n in start + 1..start + 20 {
                commit(&database, n, &mut rng, durability)?;
                acknowledged = n;
            }
            Ok(())
        };
        // redb may panic when its disk fails under it: the process would die, which is what a power cut is.
        let _ = catch_unwind(AssertUnwindSafe(&mut run));
        disk.cut(loss);
        let found = last(&open(&disk).unwrap()).unwrap();
        lost += u64::from(found < acknowledged);
        acknowledged = found;
    }
    lost
}

#[test]
fn redb_loses_nothing_acknowledged_in_a_thousand_power_cuts() {
    let lost: u64 = (0..90).map(|seed| torture(seed, Durability::Immediate)).sum();
    assert_eq!(lost, 0);
}

#[test]
fn without_a_sync_the_same_test_sees_losses() {
    let lost: u64 = (0..10).map(|seed| torture(seed, Durability::None)).sum();
    assert!(lost > 0, "the negative control saw nothing");
}

#[test]
fn the_same_seed_leaves_the_same_disk() {
    let run = |seed| {
        let disk = disk(seed);
        let mut rng = stream(seed, "run", &[]);
        let database = open(&disk).unwrap();
        for n in 1..10 {
            commit(&database, n, &mut rng, Durability::Immediate).unwrap();
        }
        disk.cut(Loss::Torn);
        disk.digest()
    };
    assert_eq!(run(1), run(1));
    let digests: BTreeMap<_, _> = (0..5).map(|seed| (run(seed).to_string(), seed)).collect();
    assert_eq!(digests.len(), 5);
}

/// Linux shows pages that a sync failed to write as if they were well. Who builds on them loses what it builds at the next
/// power cut, acknowledged or not; so a database is opened on what the disk holds.
#[test]
fn what_a_failed_sync_left_in_the_cache_is_not_built_upon() {
    for seed in 0..60 {
        let (disk, mut rng) = (disk(seed), crate::random::stream(seed, "failed-sync", &[]));
        let database = open(&disk).unwrap();
        for n in 1..=3 {
            commit(&database, n, &mut rng, Durability::Immediate).unwrap();
        }
        disk.fail_syncs(1);
        assert!(commit(&database, 4, &mut rng, Durability::Immediate).is_err());
        disk.end_process();
        drop(database);
        let database = open(&disk).unwrap();
        let kept = last(&database).unwrap();
        assert!(kept >= 3, "seed {seed}: it kept {kept}");
        commit(&database, kept + 1, &mut rng, Durability::Immediate).unwrap();
        disk.cut(Loss::Subset);
        drop(database);
        assert_eq!(last(&open(&disk).unwrap()).unwrap(), kept + 1, "seed {seed}");
    }
}

#[test]
fn rot_hits_what_was_written_and_a_new_disk_is_empty() {
    let disk = disk(1);
    let files = disk.boot().1;
    files.write("a", b"a small file").unwrap();
    drop(open(&disk).unwrap());
    let before = disk.digest();
    let hit: Vec<String> = (0..20).map(|_| disk.rot_somewhere().unwrap()).collect();
    assert!(hit.iter().any(|name| name == "a") && hit.iter().any(|name| name != "a"), "{hit:?}");
    assert!(disk.digest() != before);
    disk.wipe();
    assert_eq!((disk.used_bytes(), disk.rot_somewhere()), (0, None));
    assert_eq!(disk.boot().1.read("a").unwrap(), None);
}
