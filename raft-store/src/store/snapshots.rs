//! Snapshots on disk: chunks under a generation number, then one transaction that switches to it.
//!
//! Until the switch the old snapshot is the current one, so a cut at any point leaves a whole snapshot; chunks of a
//! generation that was never switched to are removed at the next start. Between chunks other tasks get their turn.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use fabric::wire::{self, HEADER_BYTES};
use redb::ReadableDatabase;

use super::log::in_place;
use super::machine::Machine;
use super::{CHUNKS, During, KEY_SNAPSHOT, Store, StoreError, damaged, put};
use crate::codec::{SnapshotChunkV1, SnapshotHeadV1, SnapshotMetaV1};
use crate::snapshot::{self, CaKeys};
use crate::state::State;
use crate::tuning::SNAPSHOT_CHUNK_BYTES;
use crate::types::{Snapshot, SnapshotData, SnapshotMeta};

/// The state as framed records, cut into chunks regardless of where a record ends. Other tasks get turns between chunks.
pub(crate) async fn encode_state(state: &State, keys: CaKeys) -> SnapshotData {
    let mut chunks = Vec::new();
    let mut chunk = Vec::with_capacity(SNAPSHOT_CHUNK_BYTES);
    for record in snapshot::to_records(state, keys) {
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(SNAPSHOT_CHUNK_BYTES - chunk.len()));
            chunk.extend_from_slice(now);
            rest = later;
            if chunk.len() == SNAPSHOT_CHUNK_BYTES {
                chunks.push(Bytes::from(std::mem::replace(&mut chunk, Vec::with_capacity(SNAPSHOT_CHUNK_BYTES))));
                tokio::task::yield_now().await;
            }
        }
    }
    if !chunk.is_empty() {
        chunk.shrink_to_fit();
        chunks.push(Bytes::from(chunk));
    }
    SnapshotData { chunks }
}

/// The state that a snapshot holds.
pub(crate) fn decode_machine(meta: &SnapshotMeta, snapshot: &SnapshotData) -> Result<Machine, StoreError> {
    let bad = |cause: &dyn std::fmt::Display| damaged("the snapshot", cause);
    let mut reader = snapshot::Reader::default();
    let mut pending: Vec<u8> = Vec::new();
    for chunk in &snapshot.chunks {
        pending.extend_from_slice(chunk);
        let mut at = 0;
        while let Some(head) = pending[at..].first_chunk::<HEADER_BYTES>() {
            let length = wire::frame_bytes(head).map_err(|cause| bad(&cause))?;
            let Some(record) = pending[at..].get(..length) else { break };
            reader.push(record).map_err(|cause| bad(&cause))?;
            at += length;
        }
        pending.drain(..at);
    }
    if !pending.is_empty() {
        return Err(bad(&"its last record is cut short"));
    }
    let state = reader.finish().map_err(|cause| bad(&cause))?;
    Ok(Machine { state, applied: meta.last_log_id, membership: meta.last_membership.clone() })
}

impl Store {
    fn snapshot_head(&self) -> Result<Option<SnapshotHeadV1>, StoreError> {
        self.meta(KEY_SNAPSHOT)
    }

    /// Removes what an unfinished write left behind.
    pub(super) fn discard_unfinished_snapshots(&self) -> Result<(), StoreError> {
        let current = self.snapshot_head()?.map_or(0, |head| head.generation);
        self.generation.store(current, Ordering::Relaxed);
        let action = "discarding an unfinished snapshot";
        let read = self.database.begin_read().during(action)?;
        let chunks = read.open_table(CHUNKS).during(action)?;
        let stale = |range: std::ops::Range<(u64, u32)>| -> Result<bool, StoreError> {
            Ok(chunks.range(range).during(action)?.next().is_some())
        };
        if stale((0, 0)..(current, 0))? || stale((current + 1, 0)..(u64::MAX, u32::MAX))? {
            self.write(action, |transaction| {
                let mut chunks = transaction.open_table(CHUNKS).during(action)?;
                chunks.retain(|(generation, _), _| generation == current).during(action)
            })?;
        }
        Ok(())
    }

    /// Writes a snapshot and makes it the current one, unless a newer one got there first.
    pub(super) async fn write_snapshot(&self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), StoreError> {
        let generation = self.next_generation();
        let digest = snapshot.digest();
        let count = snapshot.chunks.len() as u32;
        for (number, chunk) in (0..count).zip(&snapshot.chunks) {
            let record = SnapshotChunkV1 { generation, number, data: chunk.to_vec() };
            let write = || {
                let frame = wire::encode(&record);
                self.write("writing a snapshot", |transaction| {
                    let mut chunks = transaction.open_table(CHUNKS).during("writing a snapshot")?;
                    chunks.insert((generation, number), frame.as_slice()).during("writing a snapshot")?;
                    Ok(())
                })
            };
            in_place(write)?;
            tokio::task::yield_now().await;
        }
        let head = SnapshotHeadV1 { generation, chunks: count, digest, meta: SnapshotMetaV1::from(meta) };
        in_place(|| self.switch_snapshot(&head))
    }

    fn switch_snapshot(&self, head: &SnapshotHeadV1) -> Result<(), StoreError> {
        let action = "switching to a snapshot";
        let index = |head: &SnapshotHeadV1| head.meta.last.map(|id| id.index);
        self.write(action, |transaction| {
            let current = self.snapshot_head()?;
            let keep = match current {
                Some(current) if index(&current) >= index(head) => current.generation,
                _ => {
                    put(transaction, KEY_SNAPSHOT, head)?;
                    head.generation
                }
            };
            let mut chunks = transaction.open_table(CHUNKS).during(action)?;
            let newest = keep.max(head.generation);
            chunks.retain_in(..(newest + 1, 0), |(generation, _), _| generation == keep).during(action)
        })
    }

    /// The current snapshot.
    pub(super) fn current_snapshot(&self) -> Result<Option<Snapshot>, StoreError> {
        let Some(head) = self.snapshot_head()? else { return Ok(None) };
        let action = "reading a snapshot";
        let read = self.database.begin_read().during(action)?;
        let table = read.open_table(CHUNKS).during(action)?;
        let mut chunks = Vec::new();
        for number in 0..head.chunks {
            let name = || format!("chunk {number} of the snapshot");
            let value = table.get((head.generation, number)).during(action)?;
            let frame = value.ok_or_else(|| damaged(name(), "it is missing"))?;
            let chunk: SnapshotChunkV1 = wire::decode(frame.value()).map_err(|cause| damaged(name(), cause))?;
            if (chunk.generation, chunk.number) != (head.generation, number) {
                return Err(damaged(name(), "it belongs elsewhere"));
            }
            chunks.push(Bytes::from(chunk.data));
        }
        let snapshot = SnapshotData { chunks };
        if snapshot.digest() != head.digest {
            return Err(damaged("the snapshot", "its digest differs"));
        }
        let meta = head.meta.try_into().map_err(|cause| damaged("the snapshot", cause))?;
        Ok(Some(Snapshot { meta, snapshot }))
    }

    /// The state of the current snapshot.
    pub(super) fn load_snapshot(&self) -> Result<Option<Machine>, StoreError> {
        match self.current_snapshot()? {
            Some(snapshot) => decode_machine(&snapshot.meta, &snapshot.snapshot).map(Some),
            None => Ok(None),
        }
    }
}
