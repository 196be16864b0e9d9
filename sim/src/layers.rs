//! Layers of simulated machines: the same stream and the same frames, a content of two numbers.
//!
//! Like the real ones they belong to the host: what is staged outlives the daemon, and the power's end once it is prepared.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fabric::ids::{Digest, MachineId, MoveId};
use fabric::transport::Stream;
use smartnode::transfer::frames::{finish, flush, read_record, write_record};
use smartnode::transfer::limits::{FLUSH_MAX, IDLE_MAX};
use smartnode::transfer::manifest::{LayerEndV1, PassDoneV1, TransferOpenV1, TransferReadyV1};
use smartnode::transfer::{AskRoom, Layers, Outgoing, Prepared, ReceiveError, SendError, StagingError};
use tokio::time::sleep;

use crate::kernel::{Content, FakeRuntime};

/// How long the destination's disk takes over a pass.
const PASS: Duration = Duration::from_millis(60);
/// Bytes of a layer, as its destination is asked to have room for.
const BYTES: u64 = 16;

/// One daemon's hold on its host's layers.
#[derive(Debug)]
pub struct FakeLayers {
    /// Whose machines they are.
    kernel: Arc<FakeRuntime>,
}

impl FakeLayers {
    /// Those of the host of this kernel.
    pub fn new(kernel: Arc<FakeRuntime>) -> Self {
        FakeLayers { kernel }
    }
}

/// The content stands where a digest of it would.
fn digest(content: Content) -> Digest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&content.born.to_le_bytes());
    bytes[8..16].copy_from_slice(&content.writes.to_le_bytes());
    Digest(bytes)
}

fn content(digest: Digest) -> Content {
    let number = |at: usize| u64::from_le_bytes(digest.0[at..at + 8].try_into().expect("eight bytes"));
    Content { born: number(0), writes: number(8) }
}

fn gone(path: &str) -> StagingError {
    StagingError::Io { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() }
}

/// A layer on its way.
struct Sending {
    kernel: Arc<FakeRuntime>,
    stream: Stream,
    machine: MachineId,
    passes: u32,
}

impl Sending {
    async fn pass(&mut self, last: bool) -> Result<Digest, SendError> {
        self.passes += 1;
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let digest = digest(self.kernel.content(self.machine).ok_or_else(missing)?);
        write_record(&mut self.stream.writer, &LayerEndV1 { pass: self.passes, last, digest }).await?;
        flush(&mut self.stream.writer).await?;
        let done: PassDoneV1 = read_record(&mut self.stream.reader, FLUSH_MAX).await?;
        if last && done.prepared != Some(digest) {
            return Err(SendError::OtherLayer);
        }
        Ok(digest)
    }
}

#[async_trait]
impl Outgoing for Sending {
    async fn sync(&mut self) -> Result<Duration, SendError> {
        self.pass(false).await?;
        Ok(PASS)
    }

    async fn finish(mut self: Box<Self>) -> Result<Prepared, SendError> {
        let digest = self.pass(true).await?;
        let _ = finish(&mut self.stream.writer).await;
        Ok(Prepared { digest, sent_bytes: BYTES, passes: Vec::new() })
    }
}

#[async_trait]
impl Layers for FakeLayers {
    async fn send(&self, mut stream: Stream, of: (MoveId, MachineId)) -> Result<Box<dyn Outgoing>, SendError> {
        let (id, machine) = of;
        write_record(&mut stream.writer, &TransferOpenV1 { id, machine }).await?;
        flush(&mut stream.writer).await?;
        let _ready: TransferReadyV1 = read_record(&mut stream.reader, FLUSH_MAX).await?;
        Ok(Box::new(Sending { kernel: self.kernel.clone(), stream, machine, passes: 0 }))
    }

    async fn receive(&self, stream: &mut Stream, id: MoveId, room: AskRoom<'_>) -> Result<Prepared, ReceiveError> {
        write_record(&mut stream.writer, &TransferReadyV1 { blocks_held: 0 }).await?;
        flush(&mut stream.writer).await?;
        loop {
            let end: LayerEndV1 = read_record(&mut stream.reader, IDLE_MAX).await?;
            if let Some(room) = room(BYTES).filter(|room| *room < BYTES) {
                return Err(ReceiveError::NoRoom { needed: BYTES, room });
            }
            sleep(PASS).await;
            self.kernel.stage(id, content(end.digest), end.last)?;
            let prepared = end.last.then_some(end.digest);
            write_record(&mut stream.writer, &PassDoneV1 { pass: end.pass, prepared }).await?;
            flush(&mut stream.writer).await?;
            if let Some(digest) = prepared {
                finish(&mut stream.writer).await?;
                return Ok(Prepared { digest, sent_bytes: BYTES, passes: Vec::new() });
            }
        }
    }

    fn is_prepared(&self, id: MoveId) -> Result<bool, StagingError> {
        self.kernel.is_prepared(id).ok_or_else(|| gone("the power"))
    }

    fn adopt(&self, id: MoveId, machine: MachineId) -> Result<(), StagingError> {
        match self.kernel.adopt(id, machine) {
            true => Ok(()),
            false => Err(StagingError::NotPrepared(id)),
        }
    }

    async fn abort(&self, id: MoveId) -> Result<(), StagingError> {
        self.kernel.unstage(id);
        Ok(())
    }

    fn staged(&self) -> Result<BTreeSet<MoveId>, StagingError> {
        Ok(self.kernel.staged())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_survives_its_way() {
        let sent = Content { born: 3, writes: 70_000 };
        assert_eq!(content(digest(sent)), sent);
    }
}
