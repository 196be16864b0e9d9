//! Names of files. A change of a name is durable once the directory is synced; a power cut leaves a prefix of the
//! changes that were not, as a journalling file system does.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;

use super::content::Loss;

/// A file apart from its name.
pub type Inode = u64;

#[derive(Debug, Clone)]
enum Change {
    Link(String, Inode),
    Unlink(String),
    Rename(String, String),
}

/// The names of one disk.
#[derive(Debug, Default)]
pub struct Directory {
    synced: BTreeMap<String, Inode>,
    cached: BTreeMap<String, Inode>,
    pending: Vec<Change>,
}

fn settle(names: &mut BTreeMap<String, Inode>, change: &Change) {
    match change {
        Change::Link(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        Change::Unlink(name) => {
            names.remove(name);
        }
        Change::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

impl Directory {
    fn change(&mut self, change: Change) {
        settle(&mut self.cached, &change);
        self.pending.push(change);
    }

    /// The file of a name.
    pub fn get(&self, name: &str) -> Option<Inode> {
        self.cached.get(name).copied()
    }

    /// Names a file, in place of what had the name.
    pub fn link(&mut self, name: &str, inode: Inode) {
        self.change(Change::Link(name.to_owned(), inode));
    }

    /// Takes a name away.
    pub fn unlink(&mut self, name: &str) {
        self.change(Change::Unlink(name.to_owned()));
    }

    /// Renames, in place of what had the new name.
    pub fn rename(&mut self, from: &str, to: &str) {
        self.change(Change::Rename(from.to_owned(), to.to_owned()));
    }

    /// Makes all changes durable.
    pub fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            settle(&mut self.synced, &change);
        }
    }

    /// A power cut.
    pub fn cut(&mut self, loss: Loss, rng: &mut StdRng) {
        let keep = if loss == Loss::DropAll { 0 } else { rng.random_range(0..=self.pending.len()) };
        for change in std::mem::take(&mut self.pending).iter().take(keep) {
            settle(&mut self.synced, change);
        }
        self.cached = self.synced.clone();
    }

    /// The durable names with their files.
    pub fn synced(&self) -> impl Iterator<Item = (&str, Inode)> {
        self.synced.iter().map(|(name, inode)| (name.as_str(), *inode))
    }

    /// Every file that has a name, durable or not.
    pub fn named(&self) -> BTreeSet<Inode> {
        self.synced.values().chain(self.cached.values()).copied().collect()
    }
}
