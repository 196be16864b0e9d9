//! No bytes of a peer or a disk can do worse than be refused.

use bytes::Bytes;
use fabric::ids::{Digest, NodeId};
use fabric::wire::{self, Record};
use openraft::EntryPayload;
use openraft::raft::AppendEntriesRequest;
use proptest::prelude::*;

use super::*;
use crate::feed::{Frames, Mine};

/// A frame of type `T` with a good checksum around any body: what a hostile peer can make.
pub(crate) fn framed<T: Record>(body: &[u8]) -> Vec<u8> {
    let mut head = Vec::new();
    head.extend_from_slice(&wire::MAGIC);
    for word in [wire::PROTOCOL, T::TYPE, T::VERSION, 0] {
        head.extend_from_slice(&word.to_le_bytes());
    }
    head.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let sum = *blake3::Hasher::new().update(&head).update(body).finalize().as_bytes();
    [&head[..], &sum, body].concat()
}

fn feed_all(body: &[u8]) {
    macro_rules! feed {
        ($($record:ty),+ $(,)?) => { $( let _ = wire::decode::<$record>(&framed::<$record>(body)); let _ = wire::decode::<$record>(body); )+ };
    }
    feed!(VoteV1, LogIdV1, AppendAnswerV1, VoteRequestV1, VoteAnswerV1, SnapshotPartAnswerV1, TransferV1);
    feed!(TransferAnswerV1, SnapshotChunkV1, FormatV1, JournalHeadV1, JournalRecordV1);
    if let Ok(entry) = wire::decode::<EntryV1>(&framed::<EntryV1>(body)) {
        let _ = entry.into_entry();
    }
    if let Ok(request) = wire::decode::<AppendV1>(&framed::<AppendV1>(body)) {
        let _ = AppendEntriesRequest::try_from(request);
    }
    if let Ok(part) = wire::decode::<SnapshotPartV1>(&framed::<SnapshotPartV1>(body)) {
        let _ = SnapshotMeta::try_from(part.meta);
    }
    if let Ok(head) = wire::decode::<SnapshotHeadV1>(&framed::<SnapshotHeadV1>(body)) {
        let _ = SnapshotMeta::try_from(head.meta);
    }
    crate::ledger::feed_decoders(body);
    let _ = Mine::decode(((0, 0), 0), body);
    assert!(Frames(body).take(body.len() + 2).count() <= body.len() + 1);
}

fn append() -> AppendV1 {
    let (one, two) = (NodeId([1; 32]), NodeId([2; 32]));
    let membership = MembershipV1 {
        configs: vec![vec![one], vec![one, two]],
        nodes: vec![(one, "a:1".into()), (two, "b:2".into())],
    };
    let id = |index| LogIdV1 { term: 3, index };
    AppendV1 {
        vote: VoteV1 { term: 3, node: one, committed: true },
        previous: Some(id(4)),
        committed: Some(id(2)),
        entries: vec![
            EntryV1 { id: id(5), payload: PayloadV1::Blank },
            EntryV1 { id: id(6), payload: PayloadV1::Command(vec![1, 2, 3]) },
            EntryV1 { id: id(7), payload: PayloadV1::Membership(membership) },
        ],
    }
}

#[test]
fn an_append_survives_openrafts_types_and_the_wire() {
    let request = AppendEntriesRequest::try_from(append()).unwrap();
    assert!(matches!(&request.entries[1].payload, EntryPayload::Normal(p) if p.0 == Bytes::from_static(&[1, 2, 3])));
    let again: AppendV1 = wire::decode(&wire::encode(&AppendV1::from(&request))).unwrap();
    assert_eq!(again, append());
}

#[test]
fn a_membership_whose_voters_have_no_record_is_refused() {
    let mut bad = append();
    let EntryV1 { payload: PayloadV1::Membership(membership), .. } = &mut bad.entries[2] else { panic!("it is one") };
    membership.nodes.clear();
    assert!(AppendEntriesRequest::try_from(bad).is_err());
}

/// Released types never change: an older node's bytes must mean the same for ever.
#[test]
fn golden_digests_of_released_types() {
    let digest = |frame: Vec<u8>| Digest::of(&frame).short();
    assert_eq!(digest(wire::encode(&append())), "f4002ef778");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..600)) {
        feed_all(&body);
    }

    /// Small changes of a valid message get further than noise does.
    #[test]
    fn no_changed_message_panics(at in any::<prop::sample::Index>(), bits in 1u8..) {
        let frame = wire::encode(&append());
        let mut body = frame[wire::HEADER_BYTES..].to_vec();
        let at = at.index(body.len());
        body[at] ^= bits;
        feed_all(&body);
    }
}
