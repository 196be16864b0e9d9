//! The source's end of a transfer: scan, send the manifest, hear what is lacking, send it; once more while frozen.
//!
//! It decides nothing about owners: whoever drives the move freezes the machine between [`Source::sync`] and
//! [`Source::finish`], and proposes the switch afterwards.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fabric::ids::{Digest, MachineId, MoveId};
use fabric::seams::Clock;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::frames::{self, StreamError, blocking, read_record, write_block, write_record};
use super::limits::{FLUSH_MAX, LACK_PAGE_MAX};
use super::manifest::*;
use super::plan::{self, Next, PassReport};
use super::scan::{self, ScanError, Scanner};
use super::within::Within;
use super::{Prepared, Progress, Report};

/// Blocks read ahead of the stream.
const READ_AHEAD: usize = 4;

/// Why a layer did not get across. The machine's layer at the source is untouched.
#[derive(Debug, Error)]
pub enum SendError {
    /// The layer cannot be described.
    #[error("the machine's disk cannot be moved")]
    Scan(#[from] ScanError),
    /// The stream is of no more use.
    #[error("the layer could not be sent")]
    Stream(#[from] StreamError),
    /// The destination asks for what the layer does not have.
    #[error("the destination asked for block {1} of entry {0}, which is no block of the layer")]
    NoSuchBlock(u32, u32),
    /// Something wrote to the layer although its machine is frozen.
    #[error("{0:?} changed although the machine is frozen")]
    ChangedWhileFrozen(String),
    /// The destination prepared something else.
    #[error("the destination prepared another layer than the one sent")]
    OtherLayer,
}

impl SendError {
    /// Whether the destination has no room for the layer: trying again helps nobody.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, SendError::Stream(StreamError::Refused(refusal)) if refusal.code == "disk-full")
    }
}

impl From<std::io::Error> for SendError {
    fn from(error: std::io::Error) -> Self {
        SendError::Stream(error.into())
    }
}

/// A transfer under way.
pub struct Source<R, W> {
    reader: R,
    writer: W,
    upper: PathBuf,
    scanner: Scanner,
    clock: Arc<dyn Clock>,
    report: Report,
    passes: Vec<PassReport>,
    sent_bytes: u64,
}

impl<R: AsyncRead + Unpin + Send, W: AsyncWrite + Unpin + Send> Source<R, W> {
    /// Opens a transfer of the directory `upper` over a fresh stream.
    ///
    /// # Errors
    /// When the destination refuses or cannot be heard.
    pub async fn open(
        (mut reader, mut writer): (R, W),
        (id, machine): (MoveId, MachineId),
        upper: PathBuf,
        clock: Arc<dyn Clock>,
        report: Report,
    ) -> Result<Self, SendError> {
        let sent_bytes = write_record(&mut writer, &TransferOpenV1 { id, machine }).await?;
        frames::flush(&mut writer).await?;
        let _ready: TransferReadyV1 = read_record(&mut reader, FLUSH_MAX).await?;
        Ok(Source { reader, writer, upper, scanner: Scanner::default(), clock, report, passes: Vec::new(), sent_bytes })
    }

    /// Bytes written to the stream so far, everything counted.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// The passes so far.
    pub fn passes(&self) -> &[PassReport] {
        &self.passes
    }

    /// Sends passes while the machine runs, until the delta is small or does not shrink. Returns the predicted outage.
    ///
    /// # Errors
    /// See [`SendError`]; the stream is of no use afterwards, another one resumes.
    pub async fn sync(&mut self) -> Result<Duration, SendError> {
        while plan::next(&self.passes) == Next::Again {
            self.pass(false).await?;
        }
        Ok(plan::predicted_outage(&self.passes).unwrap_or_default())
    }

    /// Sends the rest; the machine must be frozen. Afterwards the destination holds the layer, verified and on disk.
    ///
    /// # Errors
    /// As [`Source::sync`].
    pub async fn finish(mut self) -> Result<Prepared, SendError> {
        let digest = self.pass(true).await?;
        // The destination has said "prepared"; whether it hears our end changes nothing.
        let _ = frames::finish(&mut self.writer).await;
        Ok(Prepared { digest, sent_bytes: self.sent_bytes, passes: self.passes })
    }

    async fn pass(&mut self, last: bool) -> Result<Digest, SendError> {
        let (began, before) = (self.clock.boottime(), self.sent_bytes);
        let pass = self.passes.len() as u32 + 1;
        let mut scanner = std::mem::take(&mut self.scanner);
        let upper = self.upper.clone();
        let (scanner, layer) = blocking(move || {
            let layer = scanner.scan(&upper, last);
            (scanner, layer)
        })
        .await?;
        self.scanner = scanner;
        let layer = Arc::new(layer?);
        for page in layer.pages() {
            self.sent_bytes += write_record(&mut self.writer, &page).await?;
        }
        let digest = layer.digest();
        self.sent_bytes += write_record(&mut self.writer, &LayerEndV1 { pass, last, digest }).await?;
        frames::flush(&mut self.writer).await?;
        let lacking = self.lacking(&layer).await?;
        let delta_bytes = lacking.iter().map(|item| u64::from(item.length)).sum();
        if let Err(error) = self.send_blocks(pass, last, &layer, lacking, delta_bytes).await {
            return Err(self.explained(error).await);
        }
        let done: PassDoneV1 = read_record(&mut self.reader, FLUSH_MAX).await?;
        if last && done.prepared != Some(digest) {
            return Err(SendError::OtherLayer);
        }
        let took = self.clock.boottime().saturating_sub(began);
        self.passes.push(PassReport { pass, delta_bytes, sent_bytes: self.sent_bytes - before, took });
        Ok(digest)
    }

    /// Hears which blocks the destination lacks; they must be blocks of the layer, in order.
    async fn lacking(&mut self, layer: &Layer) -> Result<Vec<Lacking>, SendError> {
        let mut out: Vec<Lacking> = Vec::new();
        let mut last = None;
        loop {
            let page: LackV1 = read_record(&mut self.reader, FLUSH_MAX).await?;
            if page.blocks.len() > LACK_PAGE_MAX || (page.more && page.blocks.is_empty()) {
                return Err(SendError::NoSuchBlock(u32::MAX, u32::MAX));
            }
            for (entry, block) in page.blocks {
                let missing = SendError::NoSuchBlock(entry, block);
                let found = layer.entries.get(entry as usize).filter(|_| last < Some((entry, block)));
                let Some(LayerKindV1::File { size, blocks }) = found.map(|found| &found.kind) else {
                    return Err(missing);
                };
                let Some(digest) = blocks.get(block as usize).filter(|digest| **digest != Digest::default()) else {
                    return Err(missing);
                };
                last = Some((entry, block));
                out.push(Lacking { entry, block, digest: *digest, length: block_len(*size, block) as u32 });
            }
            if !page.more {
                return Ok(out);
            }
        }
    }

    async fn send_blocks(
        &mut self,
        pass: u32,
        last: bool,
        layer: &Arc<Layer>,
        lacking: Vec<Lacking>,
        bytes_total: u64,
    ) -> Result<(), SendError> {
        let (tx, mut blocks) = mpsc::channel(READ_AHEAD);
        let (upper, described) = (self.upper.clone(), layer.clone());
        let reader = tokio::spawn(blocking(move || read_ahead(&upper, &described, &lacking, &tx)));
        let mut bytes_done = 0;
        while let Some((entry, length, block)) = blocks.recv().await {
            let block: Option<Vec<u8>> = block?;
            if last && block.is_none() {
                return Err(SendError::ChangedWhileFrozen(shown(&layer.entries[entry as usize].path)));
            }
            self.sent_bytes += write_block(&mut self.writer, block.as_deref()).await?;
            bytes_done += u64::from(length);
            (self.report)(Progress { pass, last, bytes_done, bytes_total });
        }
        reader.await.map_err(std::io::Error::other)??;
        Ok(frames::flush(&mut self.writer).await?)
    }

    /// A stream that broke while writing may hold the destination's reason.
    async fn explained(&mut self, error: SendError) -> SendError {
        let SendError::Stream(StreamError::Io(_)) = error else { return error };
        match read_record::<PassDoneV1>(&mut self.reader, Duration::from_secs(1)).await {
            Err(refused @ StreamError::Refused(_)) => refused.into(),
            _ => error,
        }
    }
}

/// A block that the destination lacks.
#[derive(Debug, Clone, Copy)]
struct Lacking {
    entry: u32,
    block: u32,
    digest: Digest,
    length: u32,
}

type ReadAhead = mpsc::Sender<(u32, u32, std::io::Result<Option<Vec<u8>>>)>;

/// Reads the blocks in order until done, a failure, or nobody listens.
fn read_ahead(upper: &std::path::Path, layer: &Layer, lacking: &[Lacking], to: &ReadAhead) {
    let within = match Within::open(upper) {
        Ok(within) => within,
        Err(error) => return drop(to.blocking_send((0, 0, Err(error)))),
    };
    for Lacking { entry, block, digest, length } in lacking {
        let item = &layer.entries[*entry as usize];
        let LayerKindV1::File { size, .. } = item.kind else { continue };
        let read = scan::read_block(&within, &item.path, size, *block, digest);
        let failed = read.is_err();
        if to.blocking_send((*entry, *length, read)).is_err() || failed {
            return;
        }
    }
}
