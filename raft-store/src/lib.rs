//! The ledger: what must never disagree, kept by Raft. openraft's types stay inside this package.
//!
//! Pure (no clock, RNG, IO): [`command`], [`state`], [`snapshot`], [`lease`], [`voters`].

pub mod codes;
pub mod command;
pub mod lease;
pub mod limits;
pub mod snapshot;
pub mod state;
pub mod voters;
