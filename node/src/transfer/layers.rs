//! The seam of layers: who carries the writable layer of a machine from node to node, and keeps what has come.
//!
//! [`HostLayers`] does so with files of the host; the simulator has its own.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fabric::ids::{MachineId, MoveId};
use fabric::seams::Clock;
use fabric::transport::{Stream, StreamReader, StreamWriter};

use super::frames::blocking;
use super::staging::StagingError;
use super::{Prepared, ReceiveError, SendError, Source, destination, staging};
use crate::runtime::Runtime;

/// Told how many bytes are to come yet, says how many may; none when that is not known.
pub type AskRoom<'a> = &'a mut (dyn FnMut(u64) -> Option<u64> + Send);

/// Layers of machines on their way.
#[async_trait]
pub trait Layers: fmt::Debug + Send + Sync {
    /// Opens the transfer of a machine's layer for this move over a fresh stream.
    ///
    /// # Errors
    /// When the destination refuses or cannot be heard.
    async fn send(&self, stream: Stream, of: (MoveId, MachineId)) -> Result<Box<dyn Outgoing>, SendError>;

    /// Takes the layer of a move whose opening was accepted until it is prepared: verified, complete and on disk.
    ///
    /// # Errors
    /// See [`ReceiveError`]; the source is told why.
    async fn receive(&self, stream: &mut Stream, id: MoveId, room: AskRoom<'_>) -> Result<Prepared, ReceiveError>;

    /// Whether the layer of a move is prepared here.
    ///
    /// # Errors
    /// When the disk does not say.
    fn is_prepared(&self, id: MoveId) -> Result<bool, StagingError>;

    /// Makes the prepared layer the disk of the machine, which is there and down.
    ///
    /// # Errors
    /// When nothing is prepared, or the disk fails.
    fn adopt(&self, id: MoveId, machine: MachineId) -> Result<(), StagingError>;

    /// Removes what has come of a move.
    ///
    /// # Errors
    /// When the disk fails, or a stream still works on it.
    async fn abort(&self, id: MoveId) -> Result<(), StagingError>;

    /// Moves of which something is here.
    ///
    /// # Errors
    /// When the disk does not say.
    fn staged(&self) -> Result<BTreeSet<MoveId>, StagingError>;
}

/// A layer that is being sent.
#[async_trait]
pub trait Outgoing: Send {
    /// Sends while the machine runs, until what is left is small or does not shrink. Returns the predicted outage.
    ///
    /// # Errors
    /// See [`SendError`]; another stream resumes.
    async fn sync(&mut self) -> Result<Duration, SendError>;

    /// Sends the rest; the machine must be down. Afterwards the destination has the layer prepared.
    ///
    /// # Errors
    /// As [`Outgoing::sync`].
    async fn finish(self: Box<Self>) -> Result<Prepared, SendError>;
}

#[async_trait]
impl Outgoing for Source<StreamReader, StreamWriter> {
    async fn sync(&mut self) -> Result<Duration, SendError> {
        Source::sync(self).await
    }

    async fn finish(self: Box<Self>) -> Result<Prepared, SendError> {
        Source::finish(*self).await
    }
}

/// Layers as directories of this host.
#[derive(Debug)]
pub struct HostLayers {
    /// Knows where machines' layers are.
    runtime: Arc<dyn Runtime>,
    /// Where those that come are staged.
    staging: PathBuf,
    clock: Arc<dyn Clock>,
}

impl HostLayers {
    /// Those of the machines of `runtime`; what comes is staged below `staging`.
    pub fn new(runtime: Arc<dyn Runtime>, staging: PathBuf, clock: Arc<dyn Clock>) -> Self {
        HostLayers { runtime, staging, clock }
    }
}

#[async_trait]
impl Layers for HostLayers {
    async fn send(&self, stream: Stream, of: (MoveId, MachineId)) -> Result<Box<dyn Outgoing>, SendError> {
        let upper = self.runtime.writable_layer(of.1);
        let halves = (stream.reader, stream.writer);
        let source = Source::open(halves, of, upper, self.clock.clone(), Arc::new(|_| {})).await?;
        Ok(Box::new(source))
    }

    async fn receive(&self, stream: &mut Stream, id: MoveId, room: AskRoom<'_>) -> Result<Prepared, ReceiveError> {
        let halves = (&mut stream.reader, &mut stream.writer);
        destination::receive(halves, &self.staging, id, room, Arc::new(|_| {})).await
    }

    fn is_prepared(&self, id: MoveId) -> Result<bool, StagingError> {
        Ok(staging::prepared(&self.staging, id)?.is_some())
    }

    fn adopt(&self, id: MoveId, machine: MachineId) -> Result<(), StagingError> {
        staging::adopt(&self.staging, id, &self.runtime.writable_layer(machine))
    }

    async fn abort(&self, id: MoveId) -> Result<(), StagingError> {
        let root = self.staging.clone();
        let removed = blocking(move || staging::abort(&root, id)).await;
        removed.unwrap_or_else(|source| Err(StagingError::Io { path: self.staging.display().to_string(), source }))
    }

    fn staged(&self) -> Result<BTreeSet<MoveId>, StagingError> {
        staging::staged(&self.staging)
    }
}
