//! One file's bytes: what a read sees, what a power cut leaves, and the writes between the two.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// Sector size of torn writes, in bytes.
const SECTOR_BYTES: u64 = 512;
/// So often rot looks for a sector that something was written to: it is of no interest elsewhere.
const ROT_TRIES: usize = 32;

/// What a power cut does to the writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// None of them happened.
    DropAll,
    /// The first so many happened.
    Prefix,
    /// Any of them happened, in order.
    Subset,
    /// Any of their sectors happened, in any order.
    Torn,
}

impl Loss {
    /// All ways to lose.
    pub const ALL: [Loss; 4] = [Loss::DropAll, Loss::Prefix, Loss::Subset, Loss::Torn];
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, data: Vec<u8> },
    Length(u64),
}

/// The bytes of one file.
#[derive(Debug, Default)]
pub struct Content {
    /// Survives a power cut.
    synced: Vec<u8>,
    /// What the running host reads.
    cached: Vec<u8>,
    /// The difference between the two, in order.
    pending: Vec<Change>,
}

fn put(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let (start, end) = (at as usize, at as usize + data.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(data);
}

impl Content {
    /// What the running host reads.
    pub fn bytes(&self) -> &[u8] {
        &self.cached
    }

    /// What a power cut now would leave at least.
    pub fn synced(&self) -> &[u8] {
        &self.synced
    }

    /// Writes, unsynced; grows the file when needed.
    pub fn write(&mut self, at: u64, data: &[u8]) {
        put(&mut self.cached, at, data);
        self.pending.push(Change::Write { at, data: data.to_vec() });
    }

    /// Cuts or grows (with zeros) the file, unsynced.
    pub fn set_len(&mut self, length: u64) {
        self.cached.resize(length as usize, 0);
        self.pending.push(Change::Length(length));
    }

    /// Makes all changes durable.
    pub fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            self.settle(change);
        }
    }

    /// A sync that failed: as Linux does, the changes stay readable, count as clean, and never reach the disk.
    pub fn fail_sync(&mut self) {
        self.pending.clear();
    }

    /// What was read before is forgotten: reads show what the disk holds, and the changes that are still on their way to it.
    pub fn forget_clean(&mut self) {
        self.cached.clone_from(&self.synced);
        for change in &self.pending {
            match change {
                Change::Write { at, data } => put(&mut self.cached, *at, data),
                Change::Length(length) => self.cached.resize(*length as usize, 0),
            }
        }
    }

    /// A power cut: decides which unsynced changes happened. Tells whether of one write a part is there and another not.
    pub fn cut(&mut self, loss: Loss, rng: &mut StdRng) -> bool {
        let pending = std::mem::take(&mut self.pending);
        let mut torn = false;
        let kept = match loss {
            Loss::DropAll => Vec::new(),
            Loss::Prefix => {
                let keep = rng.random_range(0..=pending.len());
                pending.into_iter().take(keep).collect()
            }
            Loss::Subset => keep_some(pending, rng),
            Loss::Torn => {
                let (kept, all) = self.tear(pending, rng);
                torn = !kept.is_empty() && kept.len() < all;
                kept
            }
        };
        for change in kept {
            self.settle(change);
        }
        self.cached = self.synced.clone();
        torn
    }

    fn settle(&mut self, change: Change) {
        match change {
            Change::Write { at, data } => put(&mut self.synced, at, &data),
            Change::Length(length) => self.synced.resize(length as usize, 0),
        }
    }

    /// Lengths are metadata: a prefix of them happens, in order. Then sectors happen, shuffled, within that length: these,
    /// of so many.
    fn tear(&mut self, pending: Vec<Change>, rng: &mut StdRng) -> (Vec<Change>, usize) {
        let (lengths, writes): (Vec<_>, Vec<_>) = pending.into_iter().partition(|c| matches!(c, Change::Length(_)));
        let keep = rng.random_range(0..=lengths.len());
        lengths.into_iter().take(keep).for_each(|change| self.settle(change));
        let length = self.synced.len() as u64;
        let mut sectors: Vec<Change> = writes.into_iter().flat_map(sectors_of).collect();
        sectors.retain(|c| matches!(c, Change::Write { at, data } if at + data.len() as u64 <= length));
        sectors.shuffle(rng);
        let all = sectors.len();
        (keep_some(sectors, rng), all)
    }

    /// Flips one bit of what is synced, as rot does; `false` when the file is empty.
    pub fn rot(&mut self, rng: &mut StdRng) -> bool {
        if self.synced.is_empty() {
            return false;
        }
        let (sector, length) = (SECTOR_BYTES as usize, self.synced.len());
        let written =
            |at: &usize| self.synced[at - at % sector..length.min(at - at % sector + sector)].iter().any(|b| *b != 0);
        let mut places = (0..ROT_TRIES).map(|_| rng.random_range(0..length));
        let Some(at) = places.find(written) else { return false };
        let mask = 1_u8 << (rng.next_u32() % 8);
        self.synced[at] ^= mask;
        if let Some(byte) = self.cached.get_mut(at) {
            *byte ^= mask;
        }
        true
    }
}

/// Keeps each change with one probability, itself drawn, so that "nearly all" and "nearly none" both come up.
fn keep_some(mut changes: Vec<Change>, rng: &mut StdRng) -> Vec<Change> {
    let keep = rng.random::<f64>();
    changes.retain(|_| rng.random_bool(keep));
    changes
}

fn sectors_of(change: Change) -> Vec<Change> {
    let Change::Write { at, data } = change else { return Vec::new() };
    let end = at + data.len() as u64;
    let piece = |sector: u64| {
        let (start, stop) = ((sector * SECTOR_BYTES).max(at), ((sector + 1) * SECTOR_BYTES).min(end));
        Change::Write { at: start, data: data[(start - at) as usize..(stop - at) as usize].to_vec() }
    };
    (at / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES)).map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;

    #[test]
    fn what_is_synced_survives_every_loss_and_what_is_not_may_go() {
        for loss in Loss::ALL {
            for seed in 0..50 {
                let mut content = Content::default();
                content.write(0, &[1; 2000]);
                content.sync();
                content.write(100, &[2; 1500]);
                content.set_len(4000);
                content.cut(loss, &mut stream(seed, "cut", &[]));
                assert!(content.bytes().iter().take(100).all(|b| *b == 1), "{loss:?} {seed}");
                assert!(content.bytes().iter().skip(100).take(1500).all(|b| [1, 2].contains(b)), "{loss:?} {seed}");
                assert!([2000, 4000].contains(&content.bytes().len()));
                assert_eq!(content.bytes(), content.synced());
            }
        }
    }

    #[test]
    fn a_tear_splits_one_write_between_sectors() {
        let torn = (0..100).any(|seed| {
            let mut content = Content::default();
            content.set_len(4096);
            content.sync();
            content.write(10, &[1; 4000]);
            content.cut(Loss::Torn, &mut stream(seed, "cut", &[]));
            let kept = content.bytes().iter().filter(|b| **b == 1).count();
            kept > 0 && kept < 4000
        });
        assert!(torn);
    }

    #[test]
    fn a_failed_sync_is_readable_but_lost() {
        let mut content = Content::default();
        content.write(0, b"old");
        content.sync();
        content.write(0, b"new");
        content.fail_sync();
        content.sync();
        assert_eq!(content.bytes(), b"new");
        content.cut(Loss::Subset, &mut stream(1, "cut", &[]));
        assert_eq!(content.bytes(), b"old");
    }
}
