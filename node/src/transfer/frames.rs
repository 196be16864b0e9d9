//! Reading and writing a bulk stream: framed records for what is said, bare blocks for what is moved.
//!
//! A block is `{length u32 little endian}{bytes}` and carries no checksum of its own: whoever asked for it knows its
//! digest. The length [`GONE`] says that the sender does not have the block (any more).

use std::io;
use std::time::Duration;

use fabric::ids::Digest;
use fabric::limits::CHUNK_BYTES;
use fabric::rpc::Refusal;
use fabric::wire::{self, HEADER_BYTES, Record, WireError};
use rkyv::api::high::{HighDeserializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::{Deserialize, rancor};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::limits::IDLE_MAX;

/// Length that stands for a block which the sender does not have.
pub const GONE: u32 = u32::MAX;

/// Why a stream is of no more use.
#[derive(Debug, Error)]
pub enum StreamError {
    /// It broke, or ended in the middle.
    #[error("the stream broke")]
    Io(#[from] io::Error),
    /// Nothing moved for too long.
    #[error("nothing moved on the stream for {0:?}")]
    Idle(Duration),
    /// What came is no message of ours.
    #[error("the peer sent a bad frame")]
    Wire(#[from] WireError),
    /// The peer said no.
    #[error("the peer refused: {0}")]
    Refused(Refusal),
    /// A block larger than any block may be.
    #[error("the peer sent a block of {0} bytes")]
    Large(u32),
    /// A block whose content does not match its digest.
    #[error("block {digest:?} arrived with other content")]
    Corrupt {
        /// The digest asked for.
        digest: Digest,
    },
}

async fn timed<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> Result<T, StreamError> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(StreamError::Idle(limit)),
    }
}

/// Writes one record; returns the bytes written.
///
/// # Errors
/// When the stream broke or takes nothing for [`IDLE_MAX`].
pub async fn write_record<T: Record>(to: &mut (impl AsyncWrite + Unpin), value: &T) -> Result<u64, StreamError> {
    let frame = wire::encode(value);
    timed(IDLE_MAX, to.write_all(&frame)).await?;
    Ok(frame.len() as u64)
}

/// Pushes out what was written.
///
/// # Errors
/// As [`write_record`].
pub async fn flush(to: &mut (impl AsyncWrite + Unpin)) -> Result<(), StreamError> {
    timed(IDLE_MAX, to.flush()).await
}

/// Ends our half, so that all that was written arrives: a stream that is dropped without it counts as broken.
///
/// # Errors
/// As [`write_record`].
pub async fn finish(to: &mut (impl AsyncWrite + Unpin)) -> Result<(), StreamError> {
    timed(IDLE_MAX, to.flush()).await?;
    timed(IDLE_MAX, to.shutdown()).await
}

/// Reads one whole frame; none when the stream ended before it. `patience` bounds the wait for its first byte.
///
/// # Errors
/// See [`StreamError`]; a frame longer than any frame may be is refused before its body is read.
pub async fn read_frame(
    from: &mut (impl AsyncRead + Unpin),
    patience: Duration,
) -> Result<Option<Vec<u8>>, StreamError> {
    let mut head = [0; HEADER_BYTES];
    if timed(patience, from.read(&mut head[..1])).await? == 0 {
        return Ok(None);
    }
    timed(IDLE_MAX, from.read_exact(&mut head[1..])).await?;
    let mut frame = vec![0; wire::frame_bytes(&head)?];
    frame[..HEADER_BYTES].copy_from_slice(&head);
    timed(IDLE_MAX, from.read_exact(&mut frame[HEADER_BYTES..])).await?;
    Ok(Some(frame))
}

/// Reads one record, or the peer's refusal in its place.
///
/// # Errors
/// See [`StreamError`].
pub async fn read_record<T: Record>(from: &mut (impl AsyncRead + Unpin), patience: Duration) -> Result<T, StreamError>
where
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let frame = read_frame(from, patience).await?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
    decode(&frame)
}

/// Decodes a frame that may be a refusal instead.
///
/// # Errors
/// See [`StreamError`].
pub fn decode<T: Record>(frame: &[u8]) -> Result<T, StreamError>
where
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let (header, _) = wire::verify(frame)?;
    if (header.kind, header.version) == (Refusal::TYPE, Refusal::VERSION) {
        return Err(StreamError::Refused(wire::decode::<Refusal>(frame)?));
    }
    Ok(wire::decode::<T>(frame)?)
}

/// Writes one block, or [`GONE`]; returns the bytes written.
///
/// # Errors
/// As [`write_record`].
pub async fn write_block(to: &mut (impl AsyncWrite + Unpin), block: Option<&[u8]>) -> Result<u64, StreamError> {
    let length = block.map_or(GONE, |block| block.len() as u32);
    timed(IDLE_MAX, to.write_all(&length.to_le_bytes())).await?;
    timed(IDLE_MAX, to.write_all(block.unwrap_or_default())).await?;
    Ok(4 + block.map_or(0, |block| block.len() as u64))
}

/// Reads the block that has this digest; none when the peer does not have it.
///
/// # Errors
/// See [`StreamError`]; above all when the content is not what the digest says.
pub async fn read_block(from: &mut (impl AsyncRead + Unpin), digest: &Digest) -> Result<Option<Vec<u8>>, StreamError> {
    let mut length = [0; 4];
    timed(IDLE_MAX, from.read_exact(&mut length)).await?;
    let length = u32::from_le_bytes(length);
    if length == GONE {
        return Ok(None);
    }
    if length as usize > CHUNK_BYTES {
        return Err(StreamError::Large(length));
    }
    let mut block = vec![0; length as usize];
    timed(IDLE_MAX, from.read_exact(&mut block)).await?;
    if Digest::of(&block) != *digest {
        return Err(StreamError::Corrupt { digest: *digest });
    }
    Ok(Some(block))
}

/// Runs blocking work on files of the host away from the network's threads.
///
/// # Errors
/// When the work panicked or the runtime is shutting down.
#[expect(
    clippy::disallowed_methods,
    reason = "files of machines and images are never simulated: the runtime seam is above"
)]
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    #[test]
    fn a_refusal_comes_out_as_one() {
        run(async {
            let mut bytes = Vec::new();
            write_record(&mut bytes, &Refusal::new("no", "not here")).await.unwrap();
            let error = read_record::<Refusal>(&mut bytes.as_slice(), IDLE_MAX).await.unwrap_err();
            assert!(matches!(error, StreamError::Refused(refusal) if refusal.code == "no"));
        });
    }

    #[test]
    fn a_block_of_other_content_is_noticed() {
        run(async {
            let mut bytes = Vec::new();
            write_block(&mut bytes, Some(b"abc")).await.unwrap();
            write_block(&mut bytes, None).await.unwrap();
            let mut from = bytes.as_slice();
            assert_eq!(read_block(&mut from, &Digest::of(b"abc")).await.unwrap().unwrap(), b"abc");
            assert!(read_block(&mut from, &Digest::of(b"abc")).await.unwrap().is_none());
            let error = read_block(&mut bytes.as_slice(), &Digest::of(b"abd")).await.unwrap_err();
            assert!(matches!(error, StreamError::Corrupt { .. }));
        });
    }

    proptest! {
        #[test]
        fn arbitrary_streams_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            run(async {
                let _ = read_frame(&mut bytes.as_slice(), IDLE_MAX).await;
                let _ = read_block(&mut bytes.as_slice(), &Digest::default()).await;
            });
        }
    }
}
