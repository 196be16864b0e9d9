//! The admin port: HTTP and JSON under `/v1`, on a unix socket and on a loopback TCP port.
//!
//! `backend` is what it needs from the node, `types` are the JSON shapes (apart from the domain's types, with `From`),
//! `failure` the one mapping of refusals to statuses and exit codes, `frames` the framing of `exec`.
//! What is absent: nothing here reads the ledger, gossip or a machine; nothing here decides.

pub mod backend;
pub mod failure;
pub mod frames;
pub mod types;
