//! A disk in memory that can lose power: unsynced writes survive in part, as real ones do.
//!
//! After a cut every handle of the running node fails, so that nothing of it can reach the platter any more.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use fabric::seams::Disk;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// What a power cut does to writes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All are lost.
    DropAll,
    /// The first ones survive.
    Prefix,
    /// Any of them survive.
    Subset,
    /// Any 512-byte sectors of them survive, in any order.
    Torn,
}

pub const LOSSES: [Loss; 4] = [Loss::DropAll, Loss::Prefix, Loss::Subset, Loss::Torn];

#[derive(Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Default, Clone)]
struct File {
    /// What survives a cut.
    platter: Vec<u8>,
    /// What the running node reads.
    cached: Vec<u8>,
    /// The difference between the two.
    pending: Vec<Op>,
}

impl File {
    fn sync(&mut self) {
        for op in std::mem::take(&mut self.pending) {
            op.apply(&mut self.platter);
        }
    }

    fn cut(&mut self, loss: Loss, rng: &mut SmallRng) {
        let mut pending = std::mem::take(&mut self.pending);
        match loss {
            Loss::DropAll => pending.clear(),
            Loss::Prefix => pending.truncate(rng.random_range(0..=pending.len())),
            Loss::Subset => {
                let keep = rng.random::<f64>();
                pending.retain(|_| rng.random_bool(keep));
            }
            Loss::Torn => pending = self.torn(pending, rng),
        }
        for op in pending {
            op.apply(&mut self.platter);
        }
        self.cached = self.platter.clone();
    }

    /// Lengths are metadata: a prefix of them survives, in order. Of the data any sector does.
    fn torn(&mut self, pending: Vec<Op>, rng: &mut SmallRng) -> Vec<Op> {
        let (lengths, writes): (Vec<Op>, Vec<Op>) = pending.into_iter().partition(|op| matches!(op, Op::Length(_)));
        let kept = rng.random_range(0..=lengths.len());
        for length in lengths.into_iter().take(kept) {
            length.apply(&mut self.platter);
        }
        let mut sectors: Vec<Op> = writes.iter().flat_map(Op::sectors).collect();
        sectors.shuffle(rng);
        let keep = rng.random::<f64>();
        let end = self.platter.len();
        sectors.retain(|op| {
            matches!(op, Op::Write(at, data) if *at as usize + data.len() <= end) && rng.random_bool(keep)
        });
        sectors
    }
}

impl Op {
    fn apply(self, to: &mut Vec<u8>) {
        match self {
            Op::Length(length) => to.resize(length as usize, 0),
            Op::Write(at, data) => {
                let end = at as usize + data.len();
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[at as usize..end].copy_from_slice(&data);
            }
        }
    }

    fn sectors(&self) -> Vec<Op> {
        let Op::Write(at, data) = self else { return Vec::new() };
        let end = at + data.len() as u64;
        (at / 512..end.div_ceil(512))
            .map(|sector| {
                let (from, to) = ((sector * 512).max(*at), ((sector + 1) * 512).min(end));
                Op::Write(from, data[(from - at) as usize..(to - at) as usize].to_vec())
            })
            .collect()
    }
}

struct Inner {
    files: BTreeMap<String, File>,
    rng: SmallRng,
    /// Handles of an earlier boot fail.
    boot: u64,
    cut_in: Option<(u64, Loss)>,
    /// Syncs are acknowledged and not done.
    lies: bool,
    full: bool,
    writes: u64,
    syncs: u64,
}

impl Inner {
    fn cut(&mut self, loss: Loss) {
        let Inner { files, rng, .. } = self;
        for file in files.values_mut() {
            file.cut(loss, rng);
        }
        self.boot += 1;
        self.cut_in = None;
    }

    /// Counts towards an armed cut.
    fn tick(&mut self) {
        self.writes += 1;
        match self.cut_in {
            Some((0, loss)) => self.cut(loss),
            Some((left, loss)) => self.cut_in = Some((left - 1, loss)),
            None => {}
        }
    }
}

/// The disk; clones are the same disk.
#[derive(Clone)]
pub struct MemoryDisk {
    inner: Arc<Mutex<Inner>>,
    boot: u64,
}

impl std::fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryDisk(boot {})", self.boot)
    }
}

impl MemoryDisk {
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            files: BTreeMap::new(),
            rng: SmallRng::seed_from_u64(seed),
            boot: 0,
            cut_in: None,
            lies: false,
            full: false,
            writes: 0,
            syncs: 0,
        };
        MemoryDisk { inner: Arc::new(Mutex::new(inner)), boot: 0 }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// A handle for the next start; earlier ones fail from now on.
    pub fn reboot(&self) -> Self {
        let mut inner = self.inner();
        inner.boot += 1;
        inner.cut_in = None;
        for file in inner.files.values_mut() {
            file.pending.clear();
            file.cached = file.platter.clone();
        }
        MemoryDisk { inner: self.inner.clone(), boot: inner.boot }
    }

    /// Cuts the power now.
    pub fn cut(&self, loss: Loss) {
        self.inner().cut(loss);
    }

    /// Cuts the power after that many more writes and syncs: in the middle of whatever is being done then.
    pub fn cut_in(&self, writes: u64, loss: Loss) {
        self.inner().cut_in = Some((writes, loss));
    }

    /// From now on syncs are acknowledged and not done.
    pub fn lie(&self) {
        self.inner().lies = true;
    }

    /// From now on nothing can be written (or it can again).
    pub fn set_full(&self, full: bool) {
        self.inner().full = full;
    }

    /// Whether the power was cut since this handle was made.
    pub fn is_off(&self) -> bool {
        self.inner().boot != self.boot
    }

    pub fn syncs(&self) -> u64 {
        self.inner().syncs
    }

    /// Replaces the first occurrence of `from` in a file's bytes by `to`; whether there was one.
    pub fn corrupt(&self, name: &str, from: &[u8], to: &[u8]) -> bool {
        let mut inner = self.inner();
        let Some(file) = inner.files.get_mut(name) else { return false };
        let mut found = false;
        for bytes in [&mut file.platter, &mut file.cached] {
            let mut at = 0;
            while let Some(hit) = bytes[at..].windows(from.len()).position(|window| window == from) {
                let start = at + hit;
                bytes[start..start + to.len()].copy_from_slice(to);
                at = start + from.len();
                found = true;
            }
        }
        found
    }

    /// A file as it is.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.inner().files[name].cached.clone()
    }

    /// Makes a file hold this, synced.
    pub fn set_bytes(&self, name: &str, bytes: Vec<u8>) {
        let mut inner = self.inner();
        let file = inner.files.get_mut(name).unwrap();
        file.pending.clear();
        (file.platter, file.cached) = (bytes.clone(), bytes);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.inner();
        if inner.boot == self.boot { act(&mut inner) } else { Err(io::Error::other("power cut")) }
    }

    fn writing<T>(&self, act: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        self.with(|inner| {
            inner.tick();
            Ok(())
        })?;
        self.with(|inner| if inner.full { Err(io::ErrorKind::StorageFull.into()) } else { act(inner) })
    }
}

impl Disk for MemoryDisk {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.with(|inner| Ok(inner.files.get(name).map(|file| file.cached.clone())))
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.writing(|inner| {
            let content = content.to_vec();
            let file = File { platter: content.clone(), cached: content, pending: Vec::new() };
            inner.files.insert(name.to_owned(), file);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.writing(|inner| {
            inner.files.remove(name);
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.writing(|inner| {
            let file = inner.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
            inner.files.insert(to.to_owned(), file);
            Ok(())
        })
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.with(|inner| Ok(inner.files.contains_key(name)))
    }

    fn storage(&self, name: &str, _grows: bool) -> io::Result<Box<dyn redb::StorageBackend>> {
        self.with(|inner| {
            inner.files.entry(name.to_owned()).or_default();
            Ok(())
        })?;
        Ok(Box::new(Storage { disk: self.clone(), name: Mutex::new(name.to_owned()) }))
    }
}

/// One open file. redb's handle outlives the rename from its temporary name, as a real file descriptor does.
#[derive(Debug)]
struct Storage {
    disk: MemoryDisk,
    name: Mutex<String>,
}

impl Storage {
    fn file<'a>(&self, inner: &'a mut Inner) -> io::Result<&'a mut File> {
        let mut name = self.name.lock().unwrap();
        if !inner.files.contains_key(&*name) {
            let renamed = name.trim_end_matches(".new").to_owned();
            *name = renamed;
        }
        inner.files.get_mut(&*name).ok_or(io::ErrorKind::NotFound.into())
    }
}

impl redb::StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        self.disk.with(|inner| Ok(self.file(inner)?.cached.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.with(|inner| {
            let file = self.file(inner)?;
            let found = file.cached.get(offset as usize..offset as usize + out.len());
            out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.writing(|inner| {
            let file = self.file(inner)?;
            file.cached.resize(length as usize, 0);
            file.pending.push(Op::Length(length));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.writing(|inner| {
            inner.syncs += 1;
            if !inner.lies {
                self.file(inner)?.sync();
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.writing(|inner| {
            let file = self.file(inner)?;
            Op::Write(offset, data.to_vec()).apply(&mut file.cached);
            file.pending.push(Op::Write(offset, data.to_vec()));
            Ok(())
        })
    }
}
