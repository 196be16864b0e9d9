//! Moving the writable layer of a machine from node to node (design 8, strategy `cold`): source to destination over one
//! bulk stream, in verified blocks, while the machine runs and once more when it is frozen.
//!
//! What is absent: who owns the machine (the ledger's SWITCH decides that), freezing and starting it (the runtime), and
//! the connection (any pair of `AsyncRead` and `AsyncWrite`). A transfer that fails changes nothing at the source and
//! leaves nothing but a staging directory at the destination.
//!
//! ```text
//! source                                   destination
//! TransferOpen                        ->
//!                                     <-   TransferReady
//! LayerPage ... LayerEnd              ->   (checked; tree shaped)
//!                                     <-   Lack ...
//! block block ...                     ->   (each verified by blake3, written)
//!                                     <-   PassDone          (and again, until the last pass: prepared)
//! ```

pub mod destination;
pub mod frames;
pub mod layers;
pub mod limits;
pub mod manifest;
pub mod plan;
pub mod scan;
pub mod source;
pub mod staging;
pub mod within;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use fabric::ids::Digest;

pub use destination::{ReceiveError, accept, receive, refuse};
pub use layers::{AskRoom, HostLayers, Layers, Outgoing};
pub use plan::PassReport;
pub use source::{SendError, Source};
pub use staging::{StagingError, abort, adopt, prepared, staged};

/// How far a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Number of the pass, from 1.
    pub pass: u32,
    /// The machine is frozen.
    pub last: bool,
    /// Bytes of this pass that are across.
    pub bytes_done: u64,
    /// Bytes of this pass.
    pub bytes_total: u64,
}

/// Hears about progress; called often, so it must be quick.
pub type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// The layer is at the destination: verified, complete and on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Digest of the layer's manifest, the same on both ends.
    pub digest: Digest,
    /// Bytes on the stream (at the source: everything; at the destination: the blocks received).
    pub sent_bytes: u64,
    /// What each pass cost (at the source).
    pub passes: Vec<PassReport>,
}
