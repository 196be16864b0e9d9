//! The framing of `exec` inside an upgraded connection: one byte of kind, four of length (big endian), the payload.
//!
//! The admin port passes these bytes on unread; the ends are the client and the node that owns the machine.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest payload of one frame.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// One frame. A payload beyond its bound is cut into several by the caller ([`FRAME_PAYLOAD_BYTES_MAX`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecFrame {
    /// Towards the machine: input. Empty means its end.
    Stdin(Vec<u8>),
    /// From the machine: output. Empty as a sign of life.
    Stdout(Vec<u8>),
    /// From the machine: error output.
    Stderr(Vec<u8>),
    /// From the machine, the last frame: exit code, or 128 + signal.
    Exit(i32),
    /// From the machine, the last frame: why it could not be run.
    Failed(String),
}

impl ExecFrame {
    fn parts(&self) -> (u8, std::borrow::Cow<'_, [u8]>) {
        match self {
            ExecFrame::Stdin(bytes) => (0, bytes.into()),
            ExecFrame::Stdout(bytes) => (1, bytes.into()),
            ExecFrame::Stderr(bytes) => (2, bytes.into()),
            ExecFrame::Exit(code) => (3, code.to_be_bytes().to_vec().into()),
            ExecFrame::Failed(why) => (4, why.as_bytes().into()),
        }
    }

    /// Writes the frame and flushes.
    ///
    /// # Errors
    /// Of the stream; `InvalidInput` for a payload beyond the bound.
    pub async fn write<W: AsyncWrite + Unpin + ?Sized>(&self, out: &mut W) -> io::Result<()> {
        let (kind, payload) = self.parts();
        if payload.len() > FRAME_PAYLOAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a frame's payload is at most 64 KiB"));
        }
        let mut framed = Vec::with_capacity(payload.len() + 5);
        framed.push(kind);
        framed.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        framed.extend_from_slice(&payload);
        out.write_all(&framed).await?;
        out.flush().await
    }

    /// Reads the next frame; none at the end of the stream.
    ///
    /// # Errors
    /// Of the stream; `InvalidData` for a kind or length that is not ours.
    pub async fn read<R: AsyncRead + Unpin + ?Sized>(from: &mut R) -> io::Result<Option<ExecFrame>> {
        let mut header = [0; 5];
        if from.read(&mut header[..1]).await? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut header[1..]).await?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > FRAME_PAYLOAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame claims {length} bytes")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        let garbled = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        Ok(Some(match header[0] {
            0 => ExecFrame::Stdin(payload),
            1 => ExecFrame::Stdout(payload),
            2 => ExecFrame::Stderr(payload),
            3 => ExecFrame::Exit(i32::from_be_bytes(
                payload.try_into().map_err(|_| garbled("an exit code has four bytes"))?,
            )),
            4 => ExecFrame::Failed(String::from_utf8_lossy(&payload).into_owned()),
            _ => return Err(garbled("a frame of an unknown kind")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn frames_survive_the_stream() {
        let frames = [
            ExecFrame::Stdin(b"in".to_vec()),
            ExecFrame::Stdin(vec![]),
            ExecFrame::Stdout(vec![0; FRAME_PAYLOAD_BYTES_MAX]),
            ExecFrame::Stderr(b"err".to_vec()),
            ExecFrame::Failed("no such program".into()),
            ExecFrame::Exit(-1),
        ];
        block(async {
            let mut bytes = Vec::new();
            for frame in &frames {
                frame.write(&mut bytes).await.unwrap();
            }
            let mut from = bytes.as_slice();
            for frame in frames {
                assert_eq!(ExecFrame::read(&mut from).await.unwrap(), Some(frame));
            }
            assert_eq!(ExecFrame::read(&mut from).await.unwrap(), None);
        });
    }

    #[test]
    fn a_claim_beyond_the_bound_is_refused_before_memory_is_taken() {
        let mut bytes: &[u8] = &[1, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(block(ExecFrame::read(&mut bytes)).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut from = bytes.as_slice();
            block(async { while let Ok(Some(_)) = ExecFrame::read(&mut from).await {} });
        }
    }
}
