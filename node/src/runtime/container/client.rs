//! The daemon's side of the supervisor's socket.
#![expect(clippy::disallowed_methods, reason = "opens the machine's own directory")]

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::runtime::limits::CONTROL_LINE_BYTES_MAX;
use crate::runtime::line::Request;
use crate::runtime::record::SOCKET;

/// Why a request has no good answer.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens: the supervisor is gone.
    Gone(io::Error),
    /// It said so.
    Refused(String),
    /// No answer in time.
    Timeout,
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        ClientError::Gone(error)
    }
}

/// Connects to the supervisor of a directory, however long the directory's path is.
///
/// # Errors
/// When nobody listens.
pub async fn dial(dir: &Path) -> io::Result<UnixStream> {
    // A socket's address holds 107 bytes: the descriptor stands for the directory.
    let dir = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).await
}

/// Asks and waits for `ok`; gives the descriptor that came with it, if any.
///
/// # Errors
/// See [`ClientError`].
pub async fn ask(dir: &Path, request: Request, patience: Duration) -> Result<Option<OwnedFd>, ClientError> {
    let talk = async {
        let mut stream = dial(dir).await?;
        stream.write_all(format!("{request}\n").as_bytes()).await?;
        let (line, fd) = answer(&stream).await?;
        match line.split_once(' ') {
            _ if line == "ok" => Ok(fd),
            Some(("err", reason)) => Err(ClientError::Refused(reason.to_owned())),
            _ => Err(ClientError::Refused(format!("{line:?}"))),
        }
    };
    timeout(patience, talk).await.unwrap_or(Err(ClientError::Timeout))
}

async fn answer(stream: &UnixStream) -> io::Result<(String, Option<OwnedFd>)> {
    let mut bytes = Vec::new();
    let mut passed = None;
    while bytes.last() != Some(&b'\n') && bytes.len() <= CONTROL_LINE_BYTES_MAX {
        stream.ready(Interest::READABLE).await?;
        let received = stream.try_io(Interest::READABLE, || receive(stream));
        match received {
            Ok((chunk, _)) if chunk.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((chunk, fd)) => {
                bytes.extend_from_slice(&chunk);
                passed = fd.or(passed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok((String::from_utf8_lossy(&bytes).trim_end().to_owned(), passed))
}

fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; CONTROL_LINE_BYTES_MAX];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fd = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for raw in fds {
                #[expect(unsafe_code, reason = "nix gives bare numbers here")]
                // SAFETY: the kernel has just made it for this message; nobody else knows it.
                let owned = unsafe { OwnedFd::from_raw_fd(raw) };
                fd = Some(owned);
            }
        }
    }
    let count = message.bytes;
    bytes.truncate(count);
    Ok((bytes, fd))
}

/// Reads lines, each within the bound, from a feed that was asked for.
#[derive(Debug)]
pub struct Feed {
    stream: UnixStream,
    begun: Vec<u8>,
}

impl Feed {
    /// Asks the supervisor at the other end for a feed.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn ask(mut stream: UnixStream) -> io::Result<Self> {
        stream.write_all(format!("{}\n", Request::Watch).as_bytes()).await?;
        Ok(Feed { stream, begun: Vec::new() })
    }

    /// Who listens at the other end.
    pub fn peer_pid(&self) -> Option<u32> {
        self.stream.peer_cred().ok()?.pid().and_then(|pid| u32::try_from(pid).ok())
    }

    /// The next line; none at the end, or when the other side does not keep the protocol.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.begun.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.begun.len() > CONTROL_LINE_BYTES_MAX || self.stream.read_buf(&mut self.begun).await.ok()? == 0 {
                return None;
            }
        }
    }
}
