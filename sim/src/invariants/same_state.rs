//! I10: equal (cluster epoch, index) means an equal state on every node.
//!
//! Source: design section 14. Every entry's audit is compared as it is applied, and the digest of the whole state at one
//! index in so many: a digest walks the state, and what differs once differs from then on.

use std::collections::BTreeMap;

use fabric::ids::Digest;

use crate::actor::HostId;

/// One index in so many has its state's digest compared.
pub const DIGEST_EVERY: u64 = 64;

/// What whoever was first applied at each index.
#[derive(Debug, Default)]
pub struct SameState {
    entries: BTreeMap<u64, (HostId, String)>,
    digests: BTreeMap<(u64, u64), (HostId, Digest)>,
    compared: u64,
}

impl SameState {
    /// A host has applied an entry, here in words; what does not hold.
    pub fn applied(&mut self, host: HostId, index: u64, entry: &str) -> Option<String> {
        let (other, first) = self.entries.entry(index).or_insert_with(|| (host, entry.to_owned()));
        (first != entry).then(|| format!("I10: at index {index} {host} applied {entry}, {other} {first}"))
    }

    /// A host's state at an index has this digest; what does not hold.
    pub fn shown(&mut self, host: HostId, at: (u64, u64), digest: Digest) -> Option<String> {
        self.compared += u64::from(self.digests.contains_key(&at));
        let (other, first) = self.digests.entry(at).or_insert((host, digest));
        let (epoch, index) = at;
        (*first != digest)
            .then(|| format!("I10: in epoch {epoch} at index {index} the states of {host} and {other} differ"))
    }

    /// Entries seen, and states that were compared with one seen before.
    pub fn counts(&self) -> (u64, u64) {
        (self.entries.len() as u64, self.compared)
    }

    /// Whether nobody has applied this index before.
    pub fn is_new(&self, index: u64) -> bool {
        !self.entries.contains_key(&index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_differs_is_named_with_the_index() {
        let mut same = SameState::default();
        assert_eq!(same.applied(HostId(1), 7, "put a"), None);
        assert_eq!(same.applied(HostId(2), 7, "put a"), None);
        assert!(same.applied(HostId(3), 7, "put b").unwrap().contains("at index 7 h3 applied put b, h1 put a"));
        assert_eq!(same.shown(HostId(1), (1, 16), Digest([1; 32])), None);
        assert_eq!(same.shown(HostId(2), (2, 16), Digest([2; 32])), None, "another epoch");
        assert!(same.shown(HostId(2), (1, 16), Digest([3; 32])).is_some());
    }
}
