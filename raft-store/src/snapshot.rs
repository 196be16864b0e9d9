//! The state as a sequence of framed records in a fixed order, and back.
//!
//! The order is part of the format: equal states give equal bytes, which is what [`State::digest`] rests on (invariant
//! I10). Indexes are not in it; they are rebuilt. The last record counts the others and carries their digest, so a
//! sequence that was cut or mixed is noticed.

use fabric::ids::Digest;
use fabric::model::{ImageRecord, MachineRecord, NodeRecord, TenantRecord, Tombstone};
use fabric::records;
use fabric::wire::{self, Record, WireError};
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::state::{
    AbsenceRecord, AuditEntry, CaRecord, IdempotencyRecord, PlacedRecord, Settings, State, TokenRecord,
};

/// Ends a snapshot.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotEndV1 {
    /// Records before this one.
    pub records: u64,
    /// blake3 of their frames, one after the other.
    pub digest: Digest,
}
/// Current version of a snapshot's end.
pub type SnapshotEnd = SnapshotEndV1;
records!(SnapshotEndV1 = (120, 1));

/// Why records are not a snapshot. The state is unchanged.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SnapshotError {
    /// A record is damaged.
    #[error("record {at} of the snapshot is damaged: {cause}")]
    Record {
        /// Its position.
        at: usize,
        /// What is wrong.
        #[source]
        cause: WireError,
    },
    /// A record of a type that this program does not know: halt, do not skip.
    #[error(
        "record {at} of the snapshot has type {kind} version {version}, which this program does not know: upgrade it"
    )]
    Unknown {
        /// Its position.
        at: usize,
        /// Number of its type.
        kind: u16,
        /// Version of its type.
        version: u16,
    },
    /// Records are missing, too many, or not those that were written.
    #[error("the snapshot is not whole: {0}")]
    Whole(&'static str),
}

/// Whether CA keys go along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaKeys {
    /// To voters and standbys.
    With,
    /// To everybody else.
    Without,
}

/// The records of a state, each framed and at most `FRAME_BYTES_MAX`, the end included.
pub fn to_records(state: &State, keys: CaKeys) -> impl Iterator<Item = Vec<u8>> + '_ {
    let mut hash = blake3::Hasher::new();
    let mut records = 0;
    let mut body = body(state, keys);
    let mut ended = false;
    std::iter::from_fn(move || {
        if let Some(frame) = body.next() {
            hash.update(&frame);
            records += 1;
            return Some(frame);
        }
        let end = SnapshotEnd { records, digest: Digest(*hash.finalize().as_bytes()) };
        (!std::mem::replace(&mut ended, true)).then(|| wire::encode(&end))
    })
}

fn body(state: &State, keys: CaKeys) -> impl Iterator<Item = Vec<u8>> + '_ {
    let ca = move |ca: &CaRecord| match keys {
        CaKeys::With => wire::encode(ca),
        CaKeys::Without => wire::encode(&CaRecord { key_pkcs8: None, ..ca.clone() }),
    };
    std::iter::once_with(|| wire::encode(&state.settings))
        .chain(state.cas.values().map(ca))
        .chain(frames(state.nodes.values()))
        .chain(frames(state.absences.values()))
        .chain(frames(state.placed.values()))
        .chain(frames(state.tombstones.values()))
        .chain(frames(state.tokens.values()))
        .chain(frames(state.tenants.values()))
        .chain(frames(state.images.values()))
        .chain(frames(state.machines.values()))
        .chain(frames(state.answers()))
        .chain(frames(state.audit.iter().map(|entry| &**entry)))
}

fn frames<'a, T: Record + 'a>(records: impl Iterator<Item = &'a T> + 'a) -> impl Iterator<Item = Vec<u8>> + 'a {
    records.map(wire::encode)
}

/// The state that wrote these records.
///
/// # Errors
/// See [`SnapshotError`].
pub fn from_records<B: AsRef<[u8]>>(records: impl IntoIterator<Item = B>) -> Result<State, SnapshotError> {
    let mut reader = Reader::default();
    for record in records {
        reader.push(record.as_ref())?;
    }
    reader.finish()
}

/// Reads a snapshot record by record, for a receiver that gets it in chunks.
#[derive(Debug, Default)]
pub struct Reader {
    state: State,
    hash: blake3::Hasher,
    records: usize,
    end: Option<SnapshotEnd>,
}

impl Reader {
    /// Takes the next framed record.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn push(&mut self, frame: &[u8]) -> Result<(), SnapshotError> {
        let at = self.records;
        let damaged = |cause| SnapshotError::Record { at, cause };
        if self.end.is_some() {
            return Err(SnapshotError::Whole("there are records behind its end"));
        }
        let (header, _) = wire::verify(frame).map_err(damaged)?;
        let kind = (header.kind, header.version);
        if kind == (SnapshotEnd::TYPE, SnapshotEnd::VERSION) {
            self.end = Some(wire::decode(frame).map_err(damaged)?);
            return Ok(());
        }
        let known = self.state.take_record(kind, frame).map_err(damaged)?;
        if !known {
            return Err(SnapshotError::Unknown { at, kind: header.kind, version: header.version });
        }
        self.hash.update(frame);
        self.records += 1;
        Ok(())
    }

    /// The state, once all records were taken.
    ///
    /// # Errors
    /// When the snapshot is not whole.
    pub fn finish(mut self) -> Result<State, SnapshotError> {
        let Some(end) = self.end else { return Err(SnapshotError::Whole("its end is missing")) };
        if end.records != self.records as u64 || end.digest.0 != *self.hash.finalize().as_bytes() {
            return Err(SnapshotError::Whole("its records are not those that its end counts"));
        }
        self.state.rebuild_index();
        Ok(self.state)
    }
}

macro_rules! take {
    ($self:ident, $kind:ident, $frame:ident, $($record:ty => |$value:ident| $keep:expr),+ $(,)?) => {
        $(if $kind == (<$record>::TYPE, <$record>::VERSION) {
            let $value: $record = wire::decode($frame)?;
            $keep;
            return Ok(true);
        })+
    };
}

impl State {
    /// Keeps one record; says no to a type that it does not know.
    fn take_record(&mut self, kind: (u16, u16), frame: &[u8]) -> Result<bool, WireError> {
        take!(self, kind, frame,
            Settings => |r| self.settings = r,
            CaRecord => |r| self.cas.insert(Digest::of(&r.cert_der), r),
            NodeRecord => |r| self.nodes.insert(r.id, r),
            AbsenceRecord => |r| self.absences.insert(r.node, r),
            PlacedRecord => |r| self.placed.insert(r.node, r),
            Tombstone => |r| self.tombstones.insert(r.node, r),
            TokenRecord => |r| self.tokens.insert(r.id, r),
            TenantRecord => |r| self.tenants.insert(r.name.clone(), r),
            ImageRecord => |r| self.images.insert((r.tenant.clone(), r.name.clone()), r),
            MachineRecord => |r| self.machines.insert(r.id, r),
            IdempotencyRecord => |r| self.keep_answer(r),
            AuditEntry => |r| self.audit.push_back(r.into()),
        );
        Ok(false)
    }

    /// Digest of the whole state: equal on every node at an equal (cluster epoch, index).
    pub fn digest(&self) -> Digest {
        let mut hash = blake3::Hasher::new();
        for frame in body(self, CaKeys::With) {
            hash.update(&frame);
        }
        Digest(*hash.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests;
