//! The runtime of a host that cannot run machines: it has none, and says why it starts none.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use fabric::ids::MachineId;
use fabric::model::MachineStatus;
use tokio::sync::{mpsc, watch};

use super::{Duplex, ExecStream, Launch, LogLine, LogQuery, Observed, Runtime, RuntimeError};

/// No machines, for this reason.
#[derive(Debug)]
pub struct NoMachines {
    reason: String,
    changed: watch::Sender<u64>,
}

impl NoMachines {
    /// `reason` is what the host lacks.
    pub fn new(reason: String) -> Self {
        NoMachines { reason, changed: watch::Sender::new(0) }
    }

    fn unsupported<T>(&self) -> Result<T, RuntimeError> {
        Err(RuntimeError::Unsupported(self.reason.clone()))
    }
}

#[async_trait]
impl Runtime for NoMachines {
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        Ok(Vec::new())
    }
    async fn prepare(&self, _: &Launch) -> Result<(), RuntimeError> {
        self.unsupported()
    }
    async fn start(&self, _: &Launch) -> Result<(), RuntimeError> {
        self.unsupported()
    }
    async fn stop(&self, id: MachineId, _: Duration) -> Result<(), RuntimeError> {
        Err(RuntimeError::NotFound(id))
    }
    async fn destroy(&self, _: MachineId) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn quarantine(&self, id: MachineId) -> Result<(), RuntimeError> {
        Err(RuntimeError::NotFound(id))
    }
    async fn freeze(&self, id: MachineId) -> Result<(), RuntimeError> {
        Err(RuntimeError::NotFound(id))
    }
    async fn thaw(&self, id: MachineId) -> Result<(), RuntimeError> {
        Err(RuntimeError::NotFound(id))
    }
    async fn renew(&self, id: MachineId, _: Duration, _: bool) -> Result<(), RuntimeError> {
        Err(RuntimeError::NotFound(id))
    }
    async fn shorten(&self, id: MachineId, _: Duration) -> Result<(), RuntimeError> {
        Err(RuntimeError::NotFound(id))
    }
    async fn fence(&self, id: MachineId) -> Result<bool, RuntimeError> {
        Err(RuntimeError::NotFound(id))
    }
    async fn status(&self, id: MachineId) -> Result<MachineStatus, RuntimeError> {
        Err(RuntimeError::NotFound(id))
    }
    async fn exec(&self, _: MachineId, _: &[String]) -> Result<ExecStream, RuntimeError> {
        self.unsupported()
    }
    async fn logs(&self, id: MachineId, _: LogQuery) -> Result<mpsc::Receiver<LogLine>, RuntimeError> {
        Err(RuntimeError::NotFound(id))
    }
    async fn connect(&self, _: MachineId, _: u16) -> Result<Box<dyn Duplex>, RuntimeError> {
        self.unsupported()
    }
    fn writable_layer(&self, _: MachineId) -> PathBuf {
        PathBuf::new()
    }
    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
    async fn sweep(&self, _: Duration) -> Result<(), RuntimeError> {
        Ok(())
    }
    fn unsupported(&self) -> Option<&str> {
        Some(&self.reason)
    }
}
