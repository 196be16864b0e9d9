//! The log writer: a child of the supervisor that reads the machine's output and writes stamped lines to two files.
//!
//! It is a process of its own so that a full, slow or stuck disk holds up the machine's output and nothing else. It takes
//! a bounded number of bytes per second; beyond, the machine's own writes wait. What cannot be written is dropped: a
//! log is not worth the machine.
//!
//! A line is `<unix ms> <o|e> <text>`.
//!
//! It outlives its supervisor, so it also sees to it that the machine does not: see [`run`].
#![expect(clippy::disallowed_methods, reason = "the supervisor writes the machine's own directory")]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::runtime::limits::{LOG_BYTES_PER_SECOND_MAX, LOG_FILE_BYTES_MAX, LOG_LINE_BYTES_MAX};
use crate::runtime::record::{LOG, LOG_OLD};

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The two files.
struct Files {
    current: Option<File>,
    bytes: u64,
    out: Vec<u8>,
}

impl Files {
    fn open() -> Self {
        let current = OpenOptions::new().append(true).create(true).mode(0o600).open(LOG).ok();
        let bytes = current.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
        Files { current, bytes, out: Vec::with_capacity(2 * LOG_LINE_BYTES_MAX) }
    }

    fn line(&mut self, at_ms: u64, source: char, text: &[u8]) {
        let _ = write!(self.out, "{at_ms} {source} ");
        self.out.extend_from_slice(text);
        self.out.push(b'\n');
    }

    fn flush(&mut self) {
        if self.bytes + self.out.len() as u64 > LOG_FILE_BYTES_MAX {
            let _ = std::fs::rename(LOG, LOG_OLD);
            *self = Files { out: std::mem::take(&mut self.out), ..Files::open() };
        }
        if let Some(file) = &mut self.current
            && file.write_all(&self.out).is_ok()
        {
            self.bytes += self.out.len() as u64;
        }
        self.out.clear();
    }
}

/// One pipe and the line that has begun in it.
struct Source {
    pipe: Option<OwnedFd>,
    mark: char,
    begun: Vec<u8>,
}

impl Source {
    fn new(pipe: OwnedFd, mark: char) -> Self {
        Source { pipe: Some(pipe), mark, begun: Vec::with_capacity(LOG_LINE_BYTES_MAX) }
    }

    /// Reads once; gives the number of bytes.
    fn read(&mut self, files: &mut Files) -> u64 {
        let Some(pipe) = &self.pipe else { return 0 };
        let mut chunk = [0; LOG_LINE_BYTES_MAX];
        let count = match nix::unistd::read(pipe, &mut chunk) {
            Ok(0) => {
                self.pipe = None;
                self.end_line(files);
                0
            }
            Ok(count) => count,
            Err(_) => 0,
        };
        for piece in chunk[..count].split_inclusive(|byte| *byte == b'\n') {
            let whole = piece.ends_with(b"\n");
            let text = if whole { &piece[..piece.len() - 1] } else { piece };
            if self.begun.len() + text.len() > LOG_LINE_BYTES_MAX {
                self.end_line(files);
            }
            self.begun.extend_from_slice(text);
            if whole {
                files.line(unix_ms(), self.mark, &self.begun);
                self.begun.clear();
            }
        }
        count as u64
    }

    fn end_line(&mut self, files: &mut Files) {
        if !self.begun.is_empty() {
            files.line(unix_ms(), self.mark, &self.begun);
            self.begun.clear();
        }
    }
}

/// Writes until both pipes are closed, which is when supervisor and machine are gone.
///
/// `supervisor` is a pipe of which the supervisor holds the other end. Its end without a word before means that the
/// supervisor was killed, and `bury` is called: a machine that is frozen does not hear that its parent has died.
pub fn run([stdout, stderr, supervisor]: [OwnedFd; 3], bury: impl FnOnce()) -> io::Result<()> {
    let mut files = Files::open();
    let mut sources = [Source::new(stdout, 'o'), Source::new(stderr, 'e')];
    let mut supervised = Some((supervisor, bury));
    let mut second = 0;
    let mut taken = 0;
    loop {
        let open: Vec<usize> = (0..2).filter(|at| sources[*at].pipe.is_some()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let now_ms = unix_ms();
        if now_ms / 1000 != second {
            second = now_ms / 1000;
            taken = 0;
        }
        if taken >= LOG_BYTES_PER_SECOND_MAX {
            // Waits for the next second without looking at the pipes.
            let rest = Duration::from_millis(1000 - now_ms % 1000);
            poll(&mut [], PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX))?;
            continue;
        }
        let mut ready: Vec<bool> = {
            let pipes = open.iter().filter_map(|at| sources[*at].pipe.as_ref());
            let all = pipes.chain(supervised.as_ref().map(|(supervisor, _)| supervisor));
            let mut fds: Vec<PollFd> = all.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()
        };
        if supervised.is_some() && ready.pop() == Some(true) {
            let Some((supervisor, bury)) = supervised.take() else { continue };
            if nix::unistd::read(&supervisor, &mut [0]) == Ok(0) {
                bury();
            }
        }
        for (at, ready) in open.into_iter().zip(ready) {
            if ready {
                taken += sources[at].read(&mut files);
            }
        }
        files.flush();
    }
}
