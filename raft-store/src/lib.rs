//! The ledger: what must never disagree, kept by Raft. openraft's types stay inside this package.
//!
//! Pure (no clock, RNG, IO): [`command`], [`state`], [`snapshot`].

pub mod codes;
pub mod command;
pub mod limits;
pub mod snapshot;
pub mod state;
