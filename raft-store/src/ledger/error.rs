//! Why the ledger did not do what was asked.

use std::time::Duration;

use fabric::ids::NodeId;
use fabric::rpc::Refusal;
use thiserror::Error;

use crate::store::StoreError;

/// Why the ledger cannot start on this node.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Replaying the log failed.
    #[error("{0}")]
    Halted(String),
}

impl StartError {
    /// Whether what is on disk is damaged, so that trying again does not help.
    pub fn is_damage(&self) -> bool {
        match self {
            StartError::Store(StoreError::Damaged { .. } | StoreError::Lost { .. } | StoreError::Other { .. }) => true,
            StartError::Store(StoreError::Open { source, .. } | StoreError::Disk { source, .. }) => {
                matches!(**source, redb::Error::Corrupted(_))
            }
            _ => false,
        }
    }
}

/// Why a write or a linearizable read has no answer. A time-out is told apart from a refusal.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum LedgerError {
    /// The ledger said no; nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was sent and not answered in time: it may have been done. Asking again with the same idempotency key is safe.
    #[error("the ledger did not answer within {after:?}; the outcome is unknown")]
    Timeout {
        /// How long it was waited.
        after: Duration,
    },
    /// No leader could be reached in time; nothing was done.
    #[error("no leader within {after:?}; voters that cannot be reached: {unreachable:?}")]
    NoLeader {
        /// How long it was waited.
        after: Duration,
        /// Voters that membership does not hold alive.
        unreachable: Vec<NodeId>,
    },
    /// The ledger of this node has stopped and no other could be asked.
    #[error("the ledger of this node has stopped: {reason}")]
    Halted {
        /// Why.
        reason: String,
    },
}
