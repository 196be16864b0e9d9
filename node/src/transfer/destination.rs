//! The destination's end of a transfer: take each manifest, say what is lacking, write it, and say when it is prepared.

use std::path::Path;

use fabric::human;
use fabric::ids::{Digest, MachineId, MoveId};
use fabric::rpc::Refusal;
use fabric::wire::{self, Record, WireError};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::frames::{self, StreamError, blocking, read_block, read_frame, write_record};
use super::limits::{FLUSH_MAX, LACK_PAGE_MAX};
use super::manifest::*;
use super::staging::{Staging, StagingError};
use super::{Prepared, Progress, Report};

/// Why a layer was not taken. What arrived stays staged, so that another stream of the same move resumes.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The stream is of no more use.
    #[error("the layer did not arrive")]
    Stream(#[from] StreamError),
    /// The source's manifest is not acceptable.
    #[error("the layer is refused")]
    Layer(#[from] LayerError),
    /// It cannot be written.
    #[error("the layer cannot be stored")]
    Staging(#[from] StagingError),
    /// It would not leave the node the room that it needs.
    #[error("the layer takes {} more, and there is room for {}", human::bytes(*.needed), human::bytes(*.room))]
    NoRoom {
        /// Bytes of content that would come.
        needed: u64,
        /// Bytes that may come.
        room: u64,
    },
    /// The source left before the last pass.
    #[error("the source ended the stream before the last pass")]
    Ended,
}

impl From<std::io::Error> for ReceiveError {
    fn from(error: std::io::Error) -> Self {
        ReceiveError::Stream(error.into())
    }
}

impl From<WireError> for ReceiveError {
    fn from(error: WireError) -> Self {
        ReceiveError::Stream(error.into())
    }
}

/// Hears which move a fresh stream is about. The caller checks it against the ledger before [`receive`].
///
/// # Errors
/// When the stream breaks or says something else.
pub async fn accept(reader: &mut (impl AsyncRead + Unpin)) -> Result<(MoveId, MachineId), ReceiveError> {
    let open: TransferOpenV1 = frames::read_record(reader, super::limits::IDLE_MAX).await?;
    Ok((open.id, open.machine))
}

/// Tells the source why it is not served.
///
/// # Errors
/// When the stream broke.
pub async fn refuse(writer: &mut (impl AsyncWrite + Unpin), refusal: Refusal) -> Result<(), StreamError> {
    write_record(writer, &refusal).await?;
    frames::finish(writer).await
}

/// Takes the layer of move `id` into `<root>/<id>` until it is prepared: verified, complete and on disk. `room` is told
/// how many bytes of it are to come yet, and says how many may; none when that is not known. It is asked before each block:
/// others write to the disk, too.
///
/// # Errors
/// See [`ReceiveError`]; the source is told why.
pub async fn receive(
    (reader, writer): (&mut (impl AsyncRead + Unpin), &mut (impl AsyncWrite + Unpin)),
    root: &Path,
    id: MoveId,
    mut room: impl FnMut(u64) -> Option<u64>,
    report: Report,
) -> Result<Prepared, ReceiveError> {
    let result = run(reader, writer, (root, id), &mut room, report).await;
    if let Err(error) = &result {
        let code = match error {
            ReceiveError::NoRoom { .. } => "disk-full",
            ReceiveError::Staging(StagingError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::StorageFull =>
            {
                "disk-full"
            }
            ReceiveError::Layer(_) => "layer-refused",
            _ => "transfer-failed",
        };
        // The stream may be what failed; then nobody hears it.
        let _ = refuse(writer, Refusal::new(code, told(error))).await;
    }
    result
}

/// The error with its causes, for the other end.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ").chars().take(500).collect()
}

async fn run(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    (root, id): (&Path, MoveId),
    room: &mut impl FnMut(u64) -> Option<u64>,
    report: Report,
) -> Result<Prepared, ReceiveError> {
    let place = root.to_owned();
    let mut staging = blocking(move || Staging::open(&place, id)).await??;
    let mut received = 0;
    write_record(writer, &TransferReadyV1 { blocks_held: staging.blocks_held() }).await?;
    frames::flush(writer).await?;
    loop {
        let (layer, end) = read_layer(reader).await?;
        let wanted = layer.clone();
        let lacking;
        (staging, lacking) = blocking(move || {
            let lacking = staging.begin(layer);
            (staging, lacking)
        })
        .await?;
        let lacking = lacking?;
        let needed = content(&wanted, &lacking);
        fits(needed, room)?;
        send_lacking(writer, &lacking).await?;
        let bytes;
        (staging, bytes) = take_blocks(reader, staging, &wanted, &lacking, end, (room, &report)).await?;
        received += bytes;
        let prepared;
        (staging, prepared) = blocking(move || {
            let prepared = if end.last { staging.prepare().map(Some) } else { staging.flush().map(|()| None) };
            (staging, prepared)
        })
        .await?;
        let prepared = prepared?;
        // Only now, after the flush: whoever hears "prepared" may rely on it.
        write_record(writer, &PassDoneV1 { pass: end.pass, prepared }).await?;
        frames::flush(writer).await?;
        if let Some(digest) = prepared {
            frames::finish(writer).await?;
            return Ok(Prepared { digest, sent_bytes: received, passes: Vec::new() });
        }
    }
}

/// Reads the pages of one manifest and passes them through the door.
async fn read_layer(reader: &mut (impl AsyncRead + Unpin)) -> Result<(Layer, LayerEndV1), ReceiveError> {
    let mut entries = Vec::new();
    let mut tally = Tally::default();
    let mut hasher = blake3::Hasher::new();
    loop {
        let frame = read_frame(reader, FLUSH_MAX).await?.ok_or(ReceiveError::Ended)?;
        let (header, _) = wire::verify(&frame)?;
        if header.kind == LayerPageV1::TYPE {
            let page: LayerPageV1 = frames::decode(&frame)?;
            // Counted page by page, so that a hostile source cannot fill memory before the check.
            page.entries.iter().try_for_each(|entry| tally.add(entry))?;
            hasher.update(&frame);
            entries.extend(page.entries);
        } else {
            let end: LayerEndV1 = frames::decode(&frame)?;
            if Digest(*hasher.finalize().as_bytes()) != end.digest {
                return Err(LayerError::Digest.into());
            }
            return Ok((check(entries)?, end));
        }
    }
}

/// Whether so much may still come.
fn fits(needed: u64, room: &mut impl FnMut(u64) -> Option<u64>) -> Result<(), ReceiveError> {
    match room(needed) {
        Some(room) if needed > room => Err(ReceiveError::NoRoom { needed, room }),
        _ => Ok(()),
    }
}

/// Bytes of these blocks.
fn content(layer: &Layer, lacking: &[(u32, u32)]) -> u64 {
    let bytes = |(entry, block): &(u32, u32)| match &layer.entries[*entry as usize].kind {
        LayerKindV1::File { size, .. } => block_len(*size, *block) as u64,
        _ => 0,
    };
    lacking.iter().map(bytes).sum()
}

async fn send_lacking(writer: &mut (impl AsyncWrite + Unpin), lacking: &[(u32, u32)]) -> Result<(), StreamError> {
    let mut pages = lacking.chunks(LACK_PAGE_MAX).peekable();
    if pages.peek().is_none() {
        write_record(writer, &LackV1 { blocks: Vec::new(), more: false }).await?;
    }
    while let Some(page) = pages.next() {
        write_record(writer, &LackV1 { blocks: page.to_vec(), more: pages.peek().is_some() }).await?;
    }
    frames::flush(writer).await
}

/// Reads, verifies and writes the lacking blocks; at most one is in memory beside what the stream buffers.
async fn take_blocks(
    reader: &mut (impl AsyncRead + Unpin),
    mut staging: Staging,
    wanted: &Layer,
    lacking: &[(u32, u32)],
    end: LayerEndV1,
    (room, report): (&mut impl FnMut(u64) -> Option<u64>, &Report),
) -> Result<(Staging, u64), ReceiveError> {
    let block_of = |(entry, block): &(u32, u32)| match &wanted.entries[*entry as usize].kind {
        LayerKindV1::File { size, blocks } => (blocks[*block as usize], block_len(*size, *block) as u64),
        _ => (Digest::default(), 0),
    };
    let bytes_total: u64 = lacking.iter().map(|item| block_of(item).1).sum();
    let (mut bytes_done, mut received) = (0, 0);
    for item in lacking {
        let (entry, index) = *item;
        let (digest, length) = block_of(item);
        fits(bytes_total - bytes_done, room)?;
        if let Some(block) = read_block(reader, &digest).await? {
            received += block.len() as u64;
            let written;
            (staging, written) = blocking(move || {
                let written = staging.put(entry, index, digest, &block);
                (staging, written)
            })
            .await?;
            written?;
        }
        bytes_done += length;
        report(Progress { pass: end.pass, last: end.last, bytes_done, bytes_total });
    }
    Ok((staging, received))
}
