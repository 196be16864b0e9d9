//! What a node says about itself, signed by itself, as the text that chitchat carries; and the reader that believes it.
//!
//! Pure. A statement counts when it fits the bound, names the node that it is filed under, is signed by the key whose
//! blake3 is that node, and is newer than what that node said before. Anything else is refused and counted: it can make
//! nobody stop or crash, and what was known before stays. A statement of a later version of this program is not used, yet
//! chitchat passes it on untouched.

use std::collections::BTreeMap;
use std::sync::Arc;

use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::identity::{NodeKey, verify_signature};
use crate::ids::NodeId;
use crate::limits::GOSSIP_STATE_BYTES_MAX;
use crate::model::NodeState;
use crate::wire::{self, WireError};
use crate::{model, records};

/// What is signed is this and the frame of the state, so that no signature made for another purpose fits.
const CONTEXT: &[u8] = b"smartnode gossip state v1";
/// Longest version text of a node.
const VERSION_BYTES_MAX: usize = 64;

/// A framed state and who signed it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(super) struct StatementV1 {
    /// Frame of a `NodeStateV1`.
    state: Vec<u8>,
    /// Raw Ed25519 key of the node.
    public_key: [u8; 32],
    /// Over [`CONTEXT`] and `state`.
    signature: Vec<u8>,
}
records!(StatementV1 = (50, 1));

/// Why a statement was not believed.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum StatementError {
    #[error("{0} bytes, at most {GOSSIP_STATE_BYTES_MAX} are allowed")]
    Oversized(usize),
    #[error("not hexadecimal")]
    Text,
    #[error("malformed: {0}")]
    Malformed(#[from] WireError),
    #[error("not signed by the node that it is about")]
    Forged,
    #[error("of a later version of this program")]
    Later,
    #[error("a field is out of bounds")]
    Bounds,
    #[error("statement {sequence} after {held}")]
    Stale { sequence: u64, held: u64 },
}

/// Signs a state. Images are dropped from the end until it fits.
pub(super) fn seal(key: &NodeKey, state: &NodeState) -> Result<String, StatementError> {
    let mut state = state.clone();
    loop {
        let frame = wire::encode(&state);
        let signature = key.sign(&[CONTEXT, &frame].concat());
        let statement = wire::encode(&StatementV1 { state: frame, public_key: key.public_key(), signature });
        if statement.len() <= GOSSIP_STATE_BYTES_MAX {
            return Ok(statement.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        if state.images.is_empty() {
            return Err(StatementError::Oversized(statement.len()));
        }
        let excess = (statement.len() - GOSSIP_STATE_BYTES_MAX).div_ceil(32);
        state.images.truncate(state.images.len().saturating_sub(excess));
    }
}

/// Reads a statement that is filed under `node`.
pub(super) fn open(node: NodeId, text: &str) -> Result<NodeState, StatementError> {
    if text.len() > 2 * GOSSIP_STATE_BYTES_MAX {
        return Err(StatementError::Oversized(text.len().div_ceil(2)));
    }
    let statement: StatementV1 = wire::decode(&unhex(text).ok_or(StatementError::Text)?)?;
    let signed = [CONTEXT, &statement.state].concat();
    if NodeId::of_public_key(&statement.public_key) != node
        || !verify_signature(&statement.public_key, &signed, &statement.signature)
    {
        return Err(StatementError::Forged);
    }
    let state: NodeState = match wire::decode::<model::NodeStateV1>(&statement.state) {
        Ok(state) => state,
        Err(WireError::Type { .. } | WireError::Protocol(_)) => return Err(StatementError::Later),
        Err(error) => return Err(error.into()),
    };
    if state.node != node {
        return Err(StatementError::Forged);
    }
    if state.version.len() > VERSION_BYTES_MAX || state.version.chars().any(char::is_control) {
        return Err(StatementError::Bounds);
    }
    Ok(state)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| if let [high, low] = pair { Some(digit(*high)? * 16 + digit(*low)?) } else { None }).collect()
}

/// What every node last said.
#[derive(Debug, Default)]
pub(super) struct Reader {
    states: BTreeMap<NodeId, Arc<NodeState>>,
}

impl Reader {
    /// Takes a statement filed under `node`. True when it is news.
    pub fn offer(&mut self, node: NodeId, text: &str) -> Result<bool, StatementError> {
        let state = open(node, text)?;
        if let Some(held) = self.states.get(&node) {
            if state.sequence < held.sequence {
                return Err(StatementError::Stale { sequence: state.sequence, held: held.sequence });
            }
            if state.sequence == held.sequence {
                // The node's own word twice, e.g. from its earlier and its present life.
                return Ok(false);
            }
        }
        self.states.insert(node, Arc::new(state));
        Ok(true)
    }

    /// Forgets nodes. True when there were any.
    pub fn retain(&mut self, keep: impl Fn(&NodeId) -> bool) -> bool {
        let before = self.states.len();
        self.states.retain(|node, _| keep(node));
        self.states.len() != before
    }

    pub fn states(&self) -> &BTreeMap<NodeId, Arc<NodeState>> {
        &self.states
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ids::Digest;
    use crate::seams::Entropy;
    use proptest::prelude::*;

    #[derive(Debug)]
    pub struct Fixed(pub u8);
    impl Entropy for Fixed {
        fn fill(&self, out: &mut [u8]) {
            out.fill(self.0);
        }
    }

    pub fn key(n: u8) -> NodeKey {
        NodeKey::generate(&Fixed(n))
    }

    pub fn state(node: NodeId, sequence: u64) -> NodeState {
        NodeState {
            node,
            sequence,
            address: ([10, 0, 0, 1], 7420).into(),
            version: "0.1.0".into(),
            capacity: model::Capacity::default(),
            free: model::Capacity::default(),
            memory_available_bytes: 1 << 30,
            load_millis: 100,
            machines: [1, 0, 0, 0],
            images: vec![Digest([1; 32])],
            raft: model::RaftRole::Voter,
            leader: None,
            applied: (1, 2),
            tombstones: Digest([2; 32]),
        }
    }

    #[test]
    fn a_statement_is_believed_when_its_node_signed_it() {
        let (a, b) = (key(1), key(2));
        let text = seal(&a, &state(a.id(), 7)).unwrap();
        assert_eq!(open(a.id(), &text), Ok(state(a.id(), 7)));
        assert_eq!(open(b.id(), &text), Err(StatementError::Forged), "filed under another node");
        let forged = seal(&b, &state(a.id(), 8)).unwrap();
        assert_eq!(open(a.id(), &forged), Err(StatementError::Forged), "signed by another node");
        assert_eq!(open(b.id(), &forged), Err(StatementError::Forged), "about another node");
    }

    #[test]
    fn only_newer_statements_replace_older_ones() {
        let a = key(1);
        let mut reader = Reader::default();
        let say = |sequence| seal(&a, &state(a.id(), sequence)).unwrap();
        assert_eq!(reader.offer(a.id(), &say(5)), Ok(true));
        assert_eq!(reader.offer(a.id(), &say(5)), Ok(false));
        assert_eq!(reader.offer(a.id(), &say(4)), Err(StatementError::Stale { sequence: 4, held: 5 }));
        assert_eq!(reader.offer(a.id(), &say(6)), Ok(true));
        assert_eq!(reader.states()[&a.id()].sequence, 6);
    }

    #[test]
    fn what_does_not_fit_loses_images_and_then_is_refused() {
        let a = key(1);
        let mut big = state(a.id(), 1);
        big.images = vec![Digest([3; 32]); 1_000];
        let text = seal(&a, &big).unwrap();
        assert!(text.len() <= 2 * GOSSIP_STATE_BYTES_MAX);
        let kept = open(a.id(), &text).unwrap().images.len();
        assert!((100..128).contains(&kept), "{kept} images kept");
        big.version = "v".repeat(5_000);
        assert!(matches!(seal(&a, &big), Err(StatementError::Oversized(_))));
        assert!(matches!(open(a.id(), &"00".repeat(5_000)), Err(StatementError::Oversized(5_000))));
    }

    #[test]
    fn hostile_fields_are_refused() {
        let a = key(1);
        let mut hostile = state(a.id(), 1);
        hostile.version = "\u{1b}[2J".into();
        assert_eq!(open(a.id(), &seal(&a, &hostile).unwrap()), Err(StatementError::Bounds));
    }

    #[test]
    fn a_later_version_is_told_apart() {
        let a = key(1);
        let mut frame = wire::encode(&state(a.id(), 1));
        frame[8] = 2;
        let sum = blake3::Hasher::new().update(&frame[..16]).update(&frame[48..]).finalize();
        frame[16..48].copy_from_slice(sum.as_bytes());
        let signature = a.sign(&[CONTEXT, &frame].concat());
        let statement = wire::encode(&StatementV1 { state: frame, public_key: a.public_key(), signature });
        let text: String = statement.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(open(a.id(), &text), Err(StatementError::Later));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,300}", at in 0usize..2_000, with in any::<char>()) {
            let a = key(1);
            prop_assert!(open(a.id(), &text).is_err());
            let good = seal(&a, &state(a.id(), 1)).unwrap();
            let mut bad: Vec<char> = good.chars().collect();
            let at = at % bad.len();
            let changed = with.to_digit(16) != bad[at].to_digit(16);
            bad[at] = with;
            let bad: String = bad.into_iter().collect();
            prop_assert_eq!(open(a.id(), &bad).is_err(), changed);
        }
    }
}
