//! The door in front of chitchat: what its messages may hold before it sees them. Pure.
//!
//! chitchat trusts its peers. It would keep any node that a digest names, for ever growing; unpack whatever a delta is
//! compressed to; and keep every earlier life of a node for a quarter of an hour, so that nodes that restart in a loop
//! make every message longer until its arithmetic overflows. So its messages are read here first, in its own format
//! (version 0, chitchat 0.11):
//!
//! ```text
//! magic u16, version u8, kind u8 (0 SYN: digest, cluster; 1 SYN-ACK: digest, delta; 2 ACK: delta; 3 BAD CLUSTER)
//! digest: count u16, then each: name (length u16, text), generation u64, address (4|6, bytes), port u16,
//!         heartbeat u64, last collected version u64, newest version u64
//! delta:  blocks: 0 end | 1 compressed (length u16, bytes) | 2 plain (length u16, bytes)
//! ```
//!
//! A node's place in chitchat is its generation (boot stamp) and an "address" that is really the start of its id, so
//! that nothing here depends on where nodes listen. Of each node only the newest generation passes, in either direction;
//! and lest chitchat offer a peer the earlier ones, which the peer's digest lacks, they are put in as if it had them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use crate::ids::NodeId;
use crate::limits::CELL_NODES_MAX;

/// Largest message: a full digest and a delta of chitchat's own bound (64 KiB), with room.
pub(super) const MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// Most digest entries in a message.
const ENTRIES_MAX: usize = 4 * CELL_NODES_MAX;
/// Most blocks in a delta, each of which unpacks to at most 64 KiB.
const BLOCKS_MAX: usize = 64;

/// Why a message was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum EnvelopeError {
    #[error("{0} bytes, at most {MESSAGE_BYTES_MAX} are allowed")]
    Oversized(usize),
    #[error("cut short")]
    Short,
    #[error("not a message of chitchat 0.11")]
    Foreign,
    #[error("more than {ENTRIES_MAX} digest entries")]
    Entries,
    #[error("a delta of more than {BLOCKS_MAX} blocks")]
    Blocks,
    #[error("bytes after the end")]
    Trailing,
}

/// The start of a node's id in the shape that chitchat wants addresses in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot([u8; 18]);

impl Slot {
    pub fn of(node: NodeId) -> Self {
        Slot(*node.0.first_chunk().expect("an id has 32 bytes"))
    }
    /// Never dialled.
    pub fn address(self) -> SocketAddr {
        let [ip @ .., high, low] = self.0;
        SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)), u16::from_be_bytes([high, low]))
    }
    pub fn of_address(address: SocketAddr) -> Option<Self> {
        let IpAddr::V6(ip) = address.ip() else { return None };
        let mut slot = [0; 18];
        slot[..16].copy_from_slice(&ip.octets());
        slot[16..].copy_from_slice(&address.port().to_be_bytes());
        Some(Slot(slot))
    }
}

/// Newest generation of each node, as far as we heard. Bounded by whom the caller lets in.
#[derive(Debug, Default)]
pub(super) struct Generations(BTreeMap<Slot, u64>);

impl Generations {
    /// Notes a generation. False when a newer one is known.
    pub fn note(&mut self, slot: Slot, generation: u64) -> bool {
        let newest = self.0.entry(slot).or_insert(generation);
        *newest = (*newest).max(generation);
        *newest == generation
    }
    /// The newest one that was noted.
    pub fn newest(&self, slot: Slot) -> Option<u64> {
        self.0.get(&slot).copied()
    }
    /// Forgets nodes.
    pub fn retain(&mut self, keep: impl Fn(Slot) -> bool) {
        self.0.retain(|slot, _| keep(*slot));
    }
}

/// Checks a message and drops digest entries that `admits` refuses or that a newer generation supersedes. `old` are
/// earlier lives that nobody needs to be told of.
pub(super) fn sift(
    message: &[u8],
    generations: &mut Generations,
    old: &BTreeSet<(Slot, u64)>,
    admits: impl Fn(Slot, u64) -> bool,
) -> Result<Vec<u8>, EnvelopeError> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(EnvelopeError::Oversized(message.len()));
    }
    let mut input = Input(message);
    if (input.u16()?, input.u8()?) != (45_139, 0) {
        return Err(EnvelopeError::Foreign);
    }
    let kind = input.u8()?;
    let mut out = message[..4].to_vec();
    if kind == 0 || kind == 1 {
        digest(&mut input, &mut out, generations, old, admits)?;
    }
    out.extend_from_slice(input.0);
    match kind {
        0 => {
            let length = input.u16()?;
            input.bytes(length.into())?;
        }
        1 | 2 => delta(&mut input)?,
        3 => {}
        _ => return Err(EnvelopeError::Foreign),
    }
    if input.0.is_empty() { Ok(out) } else { Err(EnvelopeError::Trailing) }
}

fn digest(
    input: &mut Input<'_>,
    out: &mut Vec<u8>,
    generations: &mut Generations,
    old: &BTreeSet<(Slot, u64)>,
    admits: impl Fn(Slot, u64) -> bool,
) -> Result<(), EnvelopeError> {
    let count = usize::from(input.u16()?);
    if count > ENTRIES_MAX {
        return Err(EnvelopeError::Entries);
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let start = input.0;
        let name = input.u16()?;
        input.bytes(name.into())?;
        let generation = input.u64()?;
        let ip = match input.u8()? {
            4 => input.bytes(4)?,
            6 => input.bytes(16)?,
            _ => return Err(EnvelopeError::Foreign),
        };
        let (ip, port) = (<[u8; 16]>::try_from(ip).ok(), input.u16()?);
        input.bytes(24)?;
        let entry = &start[..start.len() - input.0.len()];
        // Only our own way of naming places; everything else is noise of a peer that is not ours.
        let slot = ip.filter(|_| name == 0).and_then(|ip| Slot::of_address(SocketAddr::new(IpAddr::from(ip), port)));
        if let Some(slot) = slot.filter(|slot| admits(*slot, generation)) {
            generations.note(slot, generation);
            entries.push((slot, generation, entry));
        }
    }
    entries.retain(|(slot, generation, _)| generations.newest(*slot) == Some(*generation));
    let old = || old.iter().filter(|(slot, life)| generations.newest(*slot).is_some_and(|newest| newest > *life));
    let total = (entries.len() + old().count()).min(u16::MAX.into()) as u16;
    out.extend_from_slice(&total.to_le_bytes());
    entries.iter().for_each(|(_, _, entry)| out.extend_from_slice(entry));
    old().take(usize::from(total) - entries.len()).for_each(|(slot, life)| had(out, *slot, *life));
    Ok(())
}

/// The digest entry of a peer that has every version of a life, and heard nothing of it lately.
fn had(out: &mut Vec<u8>, slot: Slot, generation: u64) {
    let [ip @ .., high, low] = slot.0;
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&generation.to_le_bytes());
    out.push(6);
    out.extend_from_slice(&ip);
    out.extend_from_slice(&[low, high]);
    out.extend_from_slice(&[0; 16]);
    out.extend_from_slice(&u64::MAX.to_le_bytes());
}

fn delta(input: &mut Input<'_>) -> Result<(), EnvelopeError> {
    for _ in 0..=BLOCKS_MAX {
        match input.u8()? {
            0 => return Ok(()),
            1 | 2 => {
                let length = input.u16()?;
                input.bytes(length.into())?;
            }
            _ => return Err(EnvelopeError::Foreign),
        }
    }
    Err(EnvelopeError::Blocks)
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], EnvelopeError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(EnvelopeError::Short)?;
        self.0 = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], EnvelopeError> {
        Ok(*self.bytes(N)?.first_chunk().expect("as long as asked for"))
    }
    fn u8(&mut self) -> Result<u8, EnvelopeError> {
        self.array().map(u8::from_le_bytes)
    }
    fn u16(&mut self) -> Result<u16, EnvelopeError> {
        self.array().map(u16::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, EnvelopeError> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chitchat::{ChitchatMessage, Deserializable, Serializable};
    use proptest::prelude::*;

    fn node(n: u8) -> NodeId {
        NodeId([n; 32])
    }

    fn entry(node: NodeId, generation: u64) -> Vec<u8> {
        let mut out = vec![0, 0];
        out.extend(generation.to_le_bytes());
        out.push(6);
        out.extend(&node.0[..16]);
        out.extend([node.0[17], node.0[16]]);
        out.extend([1; 24]);
        out
    }

    fn syn(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut out = 45_139u16.to_le_bytes().to_vec();
        out.extend([0, 0]);
        out.extend((entries.len() as u16).to_le_bytes());
        entries.iter().for_each(|entry| out.extend(entry));
        out.extend([1, 0, b'c']);
        out
    }

    fn all(_: Slot, _: u64) -> bool {
        true
    }

    #[test]
    fn a_slot_is_an_address_and_back() {
        let slot = Slot::of(NodeId::of_public_key(b"any"));
        assert_eq!(Slot::of_address(slot.address()), Some(slot));
    }

    #[test]
    fn chitchat_reads_what_was_sifted() {
        let message = syn(&[entry(node(2), 3), entry(node(1), 5)]);
        let sifted = sift(&message, &mut Generations::default(), &BTreeSet::new(), all).unwrap();
        assert_eq!(sifted, message);
        let read = ChitchatMessage::deserialize(&mut &sifted[..]).unwrap();
        assert_eq!(read.serialize_to_vec(), message);
    }

    #[test]
    fn only_the_newest_life_of_a_node_passes() {
        let mut generations = Generations::default();
        let message = syn(&[entry(node(1), 5), entry(node(1), 7), entry(node(2), 3)]);
        let want = syn(&[entry(node(1), 7), entry(node(2), 3)]);
        assert_eq!(sift(&message, &mut generations, &BTreeSet::new(), all), Ok(want));
        // And later too.
        assert_eq!(sift(&syn(&[entry(node(1), 6)]), &mut generations, &BTreeSet::new(), all), Ok(syn(&[])));
        // A refused entry says nothing about what is newest.
        let sifted = sift(&syn(&[entry(node(1), u64::MAX)]), &mut generations, &BTreeSet::new(), |_, life| life < 100);
        assert_eq!(sifted, Ok(syn(&[])));
        assert_eq!(generations.newest(Slot::of(node(1))), Some(7));
    }

    #[test]
    fn earlier_lives_are_not_offered_to_a_peer_that_lacks_them() {
        let mut generations = Generations::default();
        let old = BTreeSet::from([(Slot::of(node(1)), 5), (Slot::of(node(1)), 6), (Slot::of(node(2)), 3)]);
        let sifted = sift(&syn(&[entry(node(1), 7)]), &mut generations, &old, all).unwrap();
        // The later life as it was, the two earlier ones as known; nothing newer is known of node 2.
        let read = format!("{:?}", ChitchatMessage::deserialize(&mut &sifted[..]).unwrap());
        assert_eq!(read.matches("max_version: 18446744073709551615").count(), 2, "{read}");
        assert_eq!(read.matches("NodeDigest").count(), 3, "{read}");
    }

    #[test]
    fn bombs_and_floods_are_refused() {
        let mut generations = Generations::default();
        let mut bomb = 45_139u16.to_le_bytes().to_vec();
        bomb.extend([0, 2]);
        (0..=BLOCKS_MAX).for_each(|_| bomb.extend([1, 1, 0, 9]));
        bomb.push(0);
        assert_eq!(sift(&bomb, &mut generations, &BTreeSet::new(), all), Err(EnvelopeError::Blocks));
        let flood = syn(&vec![entry(node(1), 1); ENTRIES_MAX + 1]);
        assert_eq!(sift(&flood, &mut generations, &BTreeSet::new(), all), Err(EnvelopeError::Entries));
        let large = vec![0; MESSAGE_BYTES_MAX + 1];
        assert_eq!(sift(&large, &mut generations, &BTreeSet::new(), all), Err(EnvelopeError::Oversized(large.len())));
        assert_eq!(sift(b"garbage!", &mut generations, &BTreeSet::new(), all), Err(EnvelopeError::Foreign));
        let mut trailing = syn(&[]);
        trailing.push(0);
        assert_eq!(sift(&trailing, &mut generations, &BTreeSet::new(), all), Err(EnvelopeError::Trailing));
    }

    proptest! {
        /// Neither our reader nor chitchat's, behind it, panics.
        #[test]
        fn arbitrary_messages_never_panic(kind in 0u8..5, body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut message = 45_139u16.to_le_bytes().to_vec();
            message.extend([0, kind]);
            message.extend(body);
            if let Ok(sifted) = sift(&message, &mut Generations::default(), &BTreeSet::new(), all) {
                let _ = ChitchatMessage::deserialize(&mut &sifted[..]);
            }
        }
    }
}
