//! What a node is told of the ledger when it is outside Raft: the records that concern it.
//!
//! A view replaces the one before only when it is newer by (cluster epoch, index); the newest one is kept on disk, so that
//! a restarted spare knows its machines before it reaches anybody. Absence in a view means nothing by itself: what is to
//! be stopped or deleted is looked up by a linearizable read first.

use std::io;

use bytes::Bytes;
use fabric::ids::{ClusterId, Digest, NodeId};
use fabric::model::{MachineRecord, NodeRecord};
use fabric::records;
use fabric::seams::Disk;
use fabric::wire::{self, HEADER_BYTES, WireError};
use rkyv::{Archive, Deserialize, Serialize};

use crate::snapshot::{self, SnapshotEnd};
use crate::state::{Settings, State};

/// File with the newest view.
pub(crate) const FILE: &str = "feed";

/// A node that takes part in Raft.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LedgerMemberV1 {
    /// The node.
    pub node: NodeId,
    /// `ip:port` where it listens.
    pub address: String,
    /// It votes; else it stands by.
    pub voter: bool,
}
/// Current version of a member.
pub type LedgerMember = LedgerMemberV1;

/// The records that concern one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mine {
    /// Cluster epoch and index of the state that this was read from.
    pub at: (u64, u64),
    /// Stamp of the last entry that was applied then: the cluster's time, for a node that applies none.
    pub at_ms: u64,
    /// The cluster; all zero before its first entry.
    pub cluster: ClusterId,
    /// Level of behaviour.
    pub feature_level: u32,
    /// The node's own record; none when it is not (or no longer) admitted.
    pub node: Option<NodeRecord>,
    /// The node has been removed: the positive record of it.
    pub removed: bool,
    /// Revision of its placements. It makes every change of them news, also one that leaves the machines as they were.
    pub placed: u64,
    /// Machines that it owns, had until their new owner runs them, or is to receive by a move.
    pub machines: Vec<MachineRecord>,
    /// Who votes or stands by.
    pub members: Vec<LedgerMember>,
}

/// The part of a view that is not machines.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct MineHeadV1 {
    cluster: ClusterId,
    feature_level: u32,
    node: Option<NodeRecord>,
    removed: bool,
    placed: u64,
    members: Vec<LedgerMember>,
    machines: u32,
}

/// A view on disk: its frames, and how new they are.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedViewV1 {
    at: (u64, u64),
    at_ms: u64,
    /// The node it is about: the directory may be another node's by mistake.
    node: NodeId,
    frames: Vec<u8>,
}

records!(MineHeadV1 = (161, 1), SavedViewV1 = (162, 1));

impl Mine {
    /// Reads a node's view from a state that stands at `at`.
    pub(crate) fn of(state: &State, node: NodeId, at: (u64, u64), members: Vec<LedgerMember>) -> Self {
        Mine {
            at,
            at_ms: state.settings.at_ms,
            cluster: state.settings.cluster_id,
            feature_level: state.settings.feature_level,
            node: state.nodes.get(&node).cloned(),
            removed: state.tombstones.contains_key(&node),
            placed: state.placed_on(node),
            machines: state.machines_on(node).chain(state.machines_reserved_on(node)).cloned().collect(),
            members,
        }
    }

    /// The frames of a view. They do not say how new they are, so that they are equal when nothing has changed.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = wire::encode(&MineHeadV1 {
            cluster: self.cluster,
            feature_level: self.feature_level,
            node: self.node.clone(),
            removed: self.removed,
            placed: self.placed,
            members: self.members.clone(),
            machines: self.machines.len() as u32,
        });
        for machine in &self.machines {
            out.extend_from_slice(&wire::encode(machine));
        }
        out
    }

    /// Reads the frames of a view back.
    pub(crate) fn decode((at, at_ms): ((u64, u64), u64), bytes: &[u8]) -> Result<Self, WireError> {
        let mut frames = Frames(bytes);
        let head: MineHeadV1 = wire::decode(frames.next().ok_or(WireError::Body)??)?;
        let mut machines = Vec::new();
        for frame in frames {
            machines.push(wire::decode::<MachineRecord>(frame?)?);
        }
        if machines.len() != head.machines as usize {
            return Err(WireError::Body);
        }
        Ok(Mine {
            at,
            at_ms,
            cluster: head.cluster,
            feature_level: head.feature_level,
            node: head.node,
            removed: head.removed,
            placed: head.placed,
            machines,
            members: head.members,
        })
    }

    /// A state that knows these records and nothing else. Whoever misses something in it has not learnt that it is gone.
    pub(crate) fn to_state(&self) -> Option<State> {
        let settings = Settings {
            cluster_id: self.cluster,
            epoch: self.at.0,
            feature_level: self.feature_level,
            index: self.at.1,
            at_ms: self.at_ms,
            ..Settings::default()
        };
        let mut frames = vec![wire::encode(&settings)];
        frames.extend(self.node.iter().map(wire::encode));
        frames.extend(self.machines.iter().map(wire::encode));
        let end = SnapshotEnd { records: frames.len() as u64, digest: Digest::of(&frames.concat()) };
        frames.push(wire::encode(&end));
        snapshot::from_records(frames).ok()
    }

    /// Digest of the frames: equal views have equal ones.
    pub(crate) fn digest(frames: &[u8]) -> Digest {
        Digest::of(frames)
    }

    /// Keeps the view.
    pub(crate) fn save(&self, disk: &dyn Disk, node: NodeId) -> io::Result<()> {
        let frames = self.encode();
        // What would not fit a frame is fetched again after a restart.
        if frames.len() + 1024 > fabric::limits::FRAME_BYTES_MAX {
            return Ok(());
        }
        disk.write(FILE, &wire::encode(&SavedViewV1 { at: self.at, at_ms: self.at_ms, node, frames }))
    }

    /// The view that was kept; one that cannot be read is as good as none.
    pub(crate) fn load(disk: &dyn Disk, node: NodeId) -> Option<Self> {
        let saved: SavedViewV1 = wire::decode(&disk.read(FILE).ok()??).ok()?;
        if saved.node != node {
            return None;
        }
        Mine::decode((saved.at, saved.at_ms), &saved.frames).ok()
    }
}

/// Frames that stand one behind the other.
pub(crate) struct Frames<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Result<&'a [u8], WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let Some(head) = rest.first_chunk::<HEADER_BYTES>() else {
            return Some(Err(WireError::Short { have: rest.len(), need: HEADER_BYTES }));
        };
        match wire::frame_bytes(head) {
            Ok(length) if length <= rest.len() => {
                let (frame, rest) = rest.split_at(length);
                self.0 = rest;
                Some(Ok(frame))
            }
            Ok(length) => Some(Err(WireError::Short { have: rest.len(), need: length })),
            Err(error) => Some(Err(error)),
        }
    }
}

/// Bytes that are served page by page, and the state that they were read from.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) at: (u64, u64),
    /// Stamp of the last entry that was applied then.
    pub(crate) at_ms: u64,
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

/// The newest blobs, so that pages of one that has been replaced can still be fetched.
#[derive(Debug, Default)]
pub(crate) struct Blobs(std::collections::VecDeque<Blob>);

impl Blobs {
    const MAX: usize = 8;

    pub(crate) fn find(&self, digest: Digest) -> Option<Blob> {
        self.0.iter().find(|blob| blob.digest == digest).cloned()
    }

    pub(crate) fn keep(&mut self, blob: Blob) {
        self.0.retain(|known| known.digest != blob.digest);
        self.0.push_front(blob);
        self.0.truncate(Blobs::MAX);
    }
}
