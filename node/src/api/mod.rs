//! The admin port: HTTP and JSON under `/v1`, on a unix socket and on a loopback TCP port.
//!
//! `backend` is what it needs from the node, `types` are the JSON shapes (apart from the domain's types, with `From`),
//! `failure` the one mapping of refusals to statuses and exit codes, `frames` the framing of `exec`.
//! What is absent: nothing here reads the ledger, gossip or a machine; nothing here decides.

pub mod backend;
pub mod client;
mod extract;
pub mod failure;
pub mod frames;
mod gate;
mod handlers;
mod metrics;
mod port;
mod respond;
mod rights;
mod router;
pub mod types;
mod waiting;

pub use extract::IDEMPOTENCY_KEY;
pub use handlers::streams::UPGRADE_PROTOCOL;
pub use port::{AdminPort, PortConfig, PortError};
pub use respond::PROBLEM_JSON;
pub use router::{openapi, openapi_json};

#[cfg(test)]
pub(crate) mod tests;
