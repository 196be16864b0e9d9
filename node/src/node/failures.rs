//! From the errors of the ledger and the runtime to what the admin port tells.

use std::error::Error;

use fabric::rpc::Refusal;
use raft_store::ledger::LedgerError;

use crate::api::failure::Failure;
use crate::runtime::RuntimeError;

/// An error and its causes in one line.
pub fn words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        words = format!("{words}: {inner}");
        cause = inner.source();
    }
    words
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Refused(refusal) => refusal.into(),
            LedgerError::Timeout { after } => Failure::timeout("the ledger", after),
            LedgerError::NoLeader { .. } => Failure::new("no-leader", error.to_string())
                .hint("writes need a majority of the voters: smartnode status names them"),
            LedgerError::Halted { .. } => Failure::new("not-ready", error.to_string())
                .hint("this node's log says why; ask another node meanwhile"),
        }
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        let text = words(&error);
        match error {
            RuntimeError::NotFound(_) => Failure::new("not-found", text),
            RuntimeError::State { hint, .. } => Failure::new("state", text).hint(hint),
            RuntimeError::Start { .. } => Failure::new("start", text),
            RuntimeError::Timeout { .. } => Failure::new("timeout", text),
            RuntimeError::Connect { .. } => {
                Failure::new("port-closed", text).hint("does the machine listen there? smartnode machine logs NAME")
            }
            RuntimeError::Unsupported(_) => Failure::new("unsupported", text),
            RuntimeError::Supervisor { .. } | RuntimeError::Io { .. } => Failure::internal(text),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        *failure.refusal
    }
}
