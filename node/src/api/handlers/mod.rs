//! The handlers: each takes a request apart, checks rights, asks the backend and puts its answer together.

pub mod cluster;
pub mod machines;
pub mod nodes;
pub mod streams;
pub mod tenants;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::backend::Backend;
use super::failure::Failure;
use super::metrics::HttpMetrics;
use crate::limits::API_STREAMS_MAX;

/// What the handlers share.
#[derive(Clone)]
pub struct Shared {
    /// The node.
    pub backend: Arc<dyn Backend>,
    /// Counters of the port.
    pub metrics: Arc<HttpMetrics>,
    streams: Arc<Semaphore>,
}

impl Shared {
    /// For one port.
    pub fn new(backend: Arc<dyn Backend>, metrics: Arc<HttpMetrics>) -> Self {
        Shared { backend, metrics, streams: Arc::new(Semaphore::new(API_STREAMS_MAX)) }
    }

    /// A place for a long-lived stream; it is free again when dropped.
    ///
    /// # Errors
    /// `busy`.
    pub fn stream(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            Failure::new("busy", format!("this node serves {API_STREAMS_MAX} streams already")).hint("try another node")
        })
    }
}
