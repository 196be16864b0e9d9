//! A host's disk: small files and databases whose unsynced writes a power cut may lose, tear or reorder.
//!
//! It belongs to the host, not to a boot: [`HostDisk`] outlives crashes, [`SimDisk`] is what one boot sees and is fenced by
//! that boot's power. [`fabric::seams::Disk`] promises durability per call, and the steps in between (write, sync, rename,
//! sync the directory) are steps here too: a cut can be armed to fall between any two of them, or into a commit of redb,
//! which no crash between scheduler steps would hit.
//!
//! Absent: time. An operation is instant; what it cost is counted, and the world stalls the host for it, unless who syncs has
//! slept for it before ([`Disk::sync_takes`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::seams::Disk;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

mod content;
mod directory;

use content::Content;
pub use content::Loss;
use directory::{Directory, Inode};

use crate::limits::{DISK_BYTES, HEADROOM_BYTES, SMALL_FILE_BYTES_MAX, SYNC_US};
use crate::power::{Supply, Switch};

/// What a disk was asked to do, since the world began.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Syncs of files and directories.
    pub syncs: u64,
    /// How long syncs took for which nobody had slept, in microseconds.
    pub stalled_us: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Power cuts that left a part of one write, and not all of it.
    pub torn: u64,
    /// Operations that failed for want of room.
    pub full: u64,
    /// Syncs that failed by order.
    pub failed_syncs: u64,
    /// Writes that failed by order.
    pub failed_writes: u64,
}

impl Counts {
    /// Operations that failed.
    pub fn failures(&self) -> u64 {
        self.full + self.failed_syncs + self.failed_writes
    }
}

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy)]
pub struct Trouble {
    /// Bytes that fit; what would exceed them fails with `StorageFull`.
    pub capacity_bytes: u64,
    /// So many further syncs fail with an IO error.
    pub failing_syncs: u32,
    /// So many further writes do.
    pub failing_writes: u32,
    /// How long each sync takes, in microseconds.
    pub sync_us: u64,
}

impl Default for Trouble {
    fn default() -> Self {
        Trouble { capacity_bytes: DISK_BYTES, failing_syncs: 0, failing_writes: 0, sync_us: SYNC_US }
    }
}

#[derive(Debug)]
struct Medium {
    files: BTreeMap<Inode, Content>,
    names: Directory,
    next_inode: Inode,
    /// Databases that the current boot has open.
    open: BTreeSet<Inode>,
    /// Files that have blocks allocated ahead of their end.
    growing: BTreeSet<Inode>,
    /// Up to where they have them, since the disk is full.
    allocated: BTreeMap<Inode, u64>,
    switch: Switch,
    rng: StdRng,
    /// The power goes before the operation after so many.
    armed: Option<(u64, Loss)>,
    trouble: Trouble,
    /// Somebody has slept for the next sync.
    slept: bool,
    counts: Counts,
}

impl Medium {
    fn cut(&mut self, loss: Loss) {
        self.names.cut(loss, &mut self.rng);
        let mut torn = false;
        for file in self.files.values_mut() {
            torn |= file.cut(loss, &mut self.rng);
        }
        self.counts.torn += u64::from(torn);
        self.open.clear();
        self.forget_nameless();
        self.armed = None;
        self.counts.cuts += 1;
        self.switch.off();
    }

    fn forget_nameless(&mut self) {
        let (named, open) = (self.names.named(), &self.open);
        self.files.retain(|inode, _| named.contains(inode) || open.contains(inode));
        self.growing.retain(|inode| self.files.contains_key(inode));
    }

    /// Counts one step; `Err` when the armed cut falls here.
    fn step(&mut self) -> io::Result<()> {
        match self.armed {
            Some((0, loss)) => {
                self.cut(loss);
                Err(power_is_gone())
            }
            Some((left, loss)) => {
                self.armed = Some((left - 1, loss));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn file(&mut self, inode: Inode) -> io::Result<&mut Content> {
        self.files.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn make(&mut self, name: &str) -> Inode {
        self.next_inode += 1;
        self.files.insert(self.next_inode, Content::default());
        self.names.link(name, self.next_inode);
        self.next_inode
    }

    fn ensure_fits(&mut self, inode: Inode, end: u64) -> io::Result<()> {
        if self.allocated.get(&inode).is_some_and(|to| end <= *to) {
            return Ok(());
        }
        let grows = end.saturating_sub(self.file(inode)?.bytes().len() as u64);
        let used: u64 = self.files.values().map(|file| file.bytes().len() as u64).sum();
        if grows > 0 && used + grows > self.trouble.capacity_bytes {
            self.counts.full += 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn write(&mut self, inode: Inode, at: u64, data: &[u8]) -> io::Result<()> {
        self.step()?;
        let end = at.checked_add(data.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.ensure_fits(inode, end)?;
        if let Some(left) = self.trouble.failing_writes.checked_sub(1) {
            self.trouble.failing_writes = left;
            self.counts.failed_writes += 1;
            return Err(io_error());
        }
        self.file(inode)?.write(at, data);
        Ok(())
    }

    fn set_len(&mut self, inode: Inode, length: u64) -> io::Result<()> {
        self.step()?;
        self.ensure_fits(inode, length)?;
        self.file(inode)?.set_len(length);
        Ok(())
    }

    fn sync(&mut self, inode: Inode) -> io::Result<()> {
        self.begin_sync()?;
        if self.sync_fails() {
            self.file(inode)?.fail_sync();
            return Err(io_error());
        }
        self.file(inode)?.sync();
        Ok(())
    }

    fn begin_sync(&mut self) -> io::Result<()> {
        self.step()?;
        self.counts.syncs += 1;
        let slept = std::mem::take(&mut self.slept);
        self.counts.stalled_us += if slept { 0 } else { self.trouble.sync_us };
        Ok(())
    }

    /// Whether the sync under way fails.
    fn sync_fails(&mut self) -> bool {
        let left = self.trouble.failing_syncs.checked_sub(1);
        self.trouble.failing_syncs = left.unwrap_or(0);
        self.counts.failed_syncs += u64::from(left.is_some());
        left.is_some()
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.begin_sync()?;
        if self.sync_fails() {
            return Err(io_error());
        }
        self.names.sync();
        self.forget_nameless();
        Ok(())
    }
}

fn io_error() -> io::Error {
    io::Error::other("input/output error (simulated)")
}

fn power_is_gone() -> io::Error {
    io::Error::other("the power is gone")
}

/// The disk of one host, in the world's hands.
#[derive(Debug, Clone)]
pub struct HostDisk {
    medium: Arc<Mutex<Medium>>,
}

fn lock(medium: &Mutex<Medium>) -> MutexGuard<'_, Medium> {
    medium.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostDisk {
    /// An empty disk whose power cuts draw from `rng`.
    pub fn new(rng: StdRng) -> Self {
        let medium = Medium {
            files: BTreeMap::new(),
            names: Directory::default(),
            next_inode: 0,
            open: BTreeSet::new(),
            growing: BTreeSet::new(),
            allocated: BTreeMap::new(),
            switch: Switch::default(),
            rng,
            armed: None,
            trouble: Trouble::default(),
            slept: false,
            counts: Counts::default(),
        };
        HostDisk { medium: Arc::new(Mutex::new(medium)) }
    }

    /// Turns the host on: its power supply, and the disk as this boot sees it.
    pub fn boot(&self) -> (Supply, Arc<SimDisk>) {
        let mut medium = lock(&self.medium);
        medium.slept = false;
        let supply = medium.switch.on();
        drop(medium);
        (supply.clone(), Arc::new(SimDisk { medium: self.medium.clone(), supply }))
    }

    /// Cuts the power: decides what of the unsynced writes survives, and ends the current boot's supply.
    pub fn cut(&self, loss: Loss) {
        lock(&self.medium).cut(loss);
    }

    /// The daemon's process ends, the host lives: everything it wrote stays, its locks go, its handles are dead.
    pub fn end_process(&self) {
        let mut medium = lock(&self.medium);
        medium.open.clear();
        medium.armed = None;
        medium.switch.off();
    }

    /// Lets the power go after `operations` more steps, in the middle of whatever the host does then.
    pub fn arm(&self, operations: u64, loss: Loss) {
        lock(&self.medium).armed = Some((operations, loss));
    }

    /// Takes the armed cut back.
    pub fn disarm(&self) {
        lock(&self.medium).armed = None;
    }

    /// Sets what is wrong with the disk.
    pub fn trouble(&self, trouble: Trouble) {
        lock(&self.medium).trouble = trouble;
    }

    /// Leaves so much room; what growing files have allocated ahead is theirs, where the file system can do that.
    pub fn fill(&self, room_bytes: u64, allocates: bool) {
        let capacity_bytes = self.used_bytes() + room_bytes;
        let mut medium = lock(&self.medium);
        medium.trouble.capacity_bytes = capacity_bytes;
        let Medium { files, growing, .. } = &*medium;
        let ahead = |inode: &Inode| Some((*inode, files.get(inode)?.bytes().len() as u64 + HEADROOM_BYTES));
        let allocated = growing.iter().filter(|_| allocates).filter_map(ahead).collect();
        medium.allocated = allocated;
    }

    /// Lets each sync take so many microseconds.
    pub fn slow(&self, sync_us: u64) {
        lock(&self.medium).trouble.sync_us = sync_us;
    }

    /// Lets so many further syncs fail.
    pub fn fail_syncs(&self, syncs: u32) {
        lock(&self.medium).trouble.failing_syncs = syncs;
    }

    /// Lets so many further writes fail.
    pub fn fail_writes(&self, writes: u32) {
        lock(&self.medium).trouble.failing_writes = writes;
    }

    /// Nothing is wrong any more.
    pub fn mend(&self) {
        self.trouble(Trouble::default());
        lock(&self.medium).allocated.clear();
    }

    /// Flips one bit that was written, of any durable file: one in two times by how large they are. Returns which.
    pub fn rot_somewhere(&self) -> Option<String> {
        let mut medium = lock(&self.medium);
        let Medium { files, names, rng, .. } = &mut *medium;
        let size = |inode: &Inode| files.get(inode).map_or(0, |file| file.synced().len());
        let named: Vec<(String, Inode)> = names.synced().map(|(name, inode)| (name.to_owned(), inode)).collect();
        let by_size = rng.random_bool(0.5);
        let weight = |(_, inode): &(String, Inode)| if by_size { size(inode) } else { 1 };
        let (name, inode) = named.choose_weighted(rng, weight).ok()?.clone();
        files.get_mut(&inode)?.rot(rng).then_some(name)
    }

    /// Everything on it is gone, as on a new disk.
    pub fn wipe(&self) {
        let mut medium = lock(&self.medium);
        medium.files.clear();
        medium.open.clear();
        medium.names = Directory::default();
        medium.growing.clear();
        medium.allocated.clear();
        medium.trouble = Trouble::default();
    }

    /// What it was asked to do.
    pub fn counts(&self) -> Counts {
        lock(&self.medium).counts
    }

    /// Bytes that fit on it, and that may still be written.
    pub fn space(&self) -> (u64, u64) {
        let (used, capacity) = (self.used_bytes(), lock(&self.medium).trouble.capacity_bytes);
        (DISK_BYTES, capacity.saturating_sub(used))
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> u64 {
        lock(&self.medium).files.values().map(|file| file.bytes().len() as u64).sum()
    }

    /// Digest of everything that would survive now.
    pub fn digest(&self) -> blake3::Hash {
        let medium = lock(&self.medium);
        let mut hasher = blake3::Hasher::new();
        for (name, inode) in medium.names.synced() {
            let bytes = medium.files.get(&inode).map(Content::synced).unwrap_or_default();
            hasher.update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        hasher.finalize()
    }
}

/// The disk as one boot sees it.
#[derive(Debug)]
pub struct SimDisk {
    medium: Arc<Mutex<Medium>>,
    supply: Supply,
}

impl SimDisk {
    /// Does one thing, if there is power.
    fn with<T>(&self, work: impl FnOnce(&mut Medium) -> io::Result<T>) -> io::Result<T> {
        powered(&self.medium, &self.supply, work)
    }
}

fn powered<T>(
    medium: &Mutex<Medium>,
    supply: &Supply,
    work: impl FnOnce(&mut Medium) -> io::Result<T>,
) -> io::Result<T> {
    let mut medium = lock(medium);
    if !supply.is_on() {
        return Err(power_is_gone());
    }
    work(&mut medium)
}

/// Checks a name as the real directory does.
fn check(name: &str) -> io::Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
    let nested = name.bytes().filter(|b| *b == b'/').count();
    if name.is_empty() || !name.bytes().all(plain) || name.contains("..") || name.starts_with('/') || nested > 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no file name")));
    }
    Ok(())
}

impl Disk for SimDisk {
    fn sync_takes(&self) -> Duration {
        let mut medium = lock(&self.medium);
        medium.slept = true;
        Duration::from_micros(medium.trouble.sync_us)
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        check(name)?;
        self.with(|medium| {
            let Some(inode) = medium.names.get(name) else { return Ok(None) };
            let bytes = medium.file(inode)?.bytes();
            if bytes.len() > SMALL_FILE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{name} exceeds 16 MiB")));
            }
            Ok(Some(bytes.to_vec()))
        })
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        check(name)?;
        let temporary = format!("{name}.tmp");
        let inode = self.with(|medium| {
            medium.step()?;
            Ok(medium.make(&temporary))
        })?;
        self.with(|medium| medium.write(inode, 0, content))?;
        self.with(|medium| medium.sync(inode))?;
        self.rename(&temporary, name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check(name)?;
        if !self.exists(name)? {
            return Ok(());
        }
        self.with(|medium| {
            medium.step()?;
            medium.names.unlink(name);
            Ok(())
        })?;
        self.with(Medium::sync_names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check(from)?;
        check(to)?;
        self.with(|medium| {
            medium.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            medium.step()?;
            medium.names.rename(from, to);
            Ok(())
        })?;
        self.with(Medium::sync_names)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        check(name)?;
        self.with(|medium| Ok(medium.names.get(name).is_some()))
    }

    fn storage(&self, name: &str, grows: bool) -> io::Result<Box<dyn redb::StorageBackend>> {
        check(name)?;
        let inode = self.with(|medium| {
            let inode = match medium.names.get(name) {
                Some(inode) => inode,
                None => {
                    medium.step()?;
                    medium.make(name)
                }
            };
            if !medium.open.insert(inode) {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{name} is open already")));
            }
            medium.file(inode)?.forget_clean();
            if grows {
                medium.growing.insert(inode);
            }
            Ok(inode)
        })?;
        let (medium, supply) = (self.medium.clone(), self.supply.clone());
        Ok(Box::new(Storage { medium, supply, inode, released: AtomicBool::new(false) }))
    }
}

/// An open database file.
#[derive(Debug)]
struct Storage {
    medium: Arc<Mutex<Medium>>,
    supply: Supply,
    inode: Inode,
    released: AtomicBool,
}

impl Storage {
    fn with<T>(&self, work: impl FnOnce(&mut Medium) -> io::Result<T>) -> io::Result<T> {
        powered(&self.medium, &self.supply, work)
    }

    fn release(&self) -> io::Result<()> {
        if self.released.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.with(|medium| {
            medium.open.remove(&self.inode);
            Ok(())
        })
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // Without power there is nothing to release: the cut did.
        let _ = self.release();
    }
}

impl redb::StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        self.with(|medium| Ok(medium.file(self.inode)?.bytes().len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|medium| {
            let bytes = medium.file(self.inode)?.bytes();
            let range = offset as usize..(offset as usize).saturating_add(out.len());
            out.copy_from_slice(bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.with(|medium| medium.set_len(self.inode, length))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|medium| medium.sync(self.inode))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|medium| medium.write(self.inode, offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.release()
    }
}

#[cfg(test)]
mod tests;
