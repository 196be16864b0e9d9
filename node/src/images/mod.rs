//! Images: packed from this host, kept by content, fetched from peers, unpacked for machines.
//!
//! What is absent: names and tenants (the ledger maps `(tenant, name)` to a digest), who holds what elsewhere (gossip),
//! and registries. Nothing here mounts anything or changes an unpacked image: machines write to layers of their own.

pub mod fetch;
mod keys;
pub mod limits;
pub mod manifest;
pub mod needs;
pub mod pack;
pub mod service;
pub mod store;
mod unpack;

#[cfg(test)]
mod tests;

pub use fetch::{Dial, FetchError, FetchProgress, Fetcher, Pipe, Server};
pub use manifest::{ImageManifest, ManifestError};
pub use pack::{Pack, PackError, Packed, from_host};
pub use store::{Session, Store, StoreError};
