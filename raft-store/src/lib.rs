//! The ledger: what must never disagree, kept by Raft. openraft's types stay inside this package.
//!
//! Pure (no clock, RNG, IO): [`command`], [`state`], [`snapshot`], [`lease`], [`voters`].

mod codec;
pub mod codes;
pub mod command;
pub mod feed;
pub mod lease;
pub mod ledger;
pub mod limits;
mod network;
pub mod snapshot;
pub mod state;
mod store;
mod time;
mod tuning;
mod types;
pub mod voters;
