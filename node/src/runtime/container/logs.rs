//! Reads captured output: the two files of a log, then what is added.
#![expect(clippy::disallowed_methods, reason = "reads the machine's own directory")]

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::runtime::limits::{LOG_FILE_BYTES_MAX, LOG_FOLLOW, LOG_LINE_BYTES_MAX, LOG_LINES_QUEUED_MAX};
use crate::runtime::record::{LOG, LOG_OLD};
use crate::runtime::{LogLine, LogQuery, LogSource};

/// Reads `<unix ms> <o|e> <text>`.
fn parse(line: &[u8]) -> Option<LogLine> {
    let line = String::from_utf8_lossy(line);
    let (at, rest) = line.split_once(' ')?;
    let (source, text) = rest.split_once(' ')?;
    let source = match source {
        "o" => LogSource::Stdout,
        "e" => LogSource::Stderr,
        _ => return None,
    };
    Some(LogLine { at_ms: at.parse().ok()?, source, text: text.to_owned() })
}

/// One file, read as it grows.
#[derive(Debug)]
struct Tail {
    file: Option<File>,
    begun: Vec<u8>,
}

impl Tail {
    fn open(path: &Path) -> io::Result<Self> {
        match File::open(path) {
            Ok(file) => Ok(Tail { file: Some(file), begun: Vec::new() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Tail { file: None, begun: Vec::new() }),
            Err(error) => Err(error),
        }
    }

    fn inode(&self) -> Option<u64> {
        Some(self.file.as_ref()?.metadata().ok()?.ino())
    }

    /// The whole lines that have been added.
    fn more(&mut self) -> io::Result<Vec<LogLine>> {
        let Some(file) = &mut self.file else { return Ok(vec![]) };
        // A file grows at most to its bound, so this ends whatever the machine writes meanwhile.
        file.take(LOG_FILE_BYTES_MAX + LOG_LINE_BYTES_MAX as u64).read_to_end(&mut self.begun)?;
        let end = self.begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.begun.drain(..end).collect();
        Ok(whole.split(|byte| *byte == b'\n').filter_map(parse).collect())
    }
}

/// Starts to read a machine's log; the task ends with its receiver.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn read(dir: PathBuf, query: LogQuery) -> io::Result<mpsc::Receiver<LogLine>> {
    // The current file first: if it is rotated in between, both names lead to the same file.
    let mut current = Tail::open(&dir.join(LOG))?;
    let mut old = Tail::open(&dir.join(LOG_OLD))?;
    let mut lines = if old.inode() == current.inode() { vec![] } else { old.more()? };
    lines.extend(current.more()?);
    if let Some(tail) = query.tail {
        lines.drain(..lines.len().saturating_sub(tail));
    }
    let (sender, receiver) = mpsc::channel(LOG_LINES_QUEUED_MAX);
    tokio::spawn(async move {
        let _ = feed(&dir, query.follow, current, lines, &sender).await;
    });
    Ok(receiver)
}

/// Why a feed ends: nobody listens any more.
struct NobodyListens;

async fn feed(
    dir: &Path,
    follow: bool,
    mut current: Tail,
    mut lines: Vec<LogLine>,
    to: &mpsc::Sender<LogLine>,
) -> Result<(), NobodyListens> {
    loop {
        for line in lines {
            to.send(line).await.map_err(|_| NobodyListens)?;
        }
        if !follow {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = to.closed() => return Err(NobodyListens),
            () = tokio::time::sleep(LOG_FOLLOW) => {}
        }
        lines = current.more().unwrap_or_default();
        let now = Tail::open(&dir.join(LOG));
        match now {
            Ok(mut now) if now.inode() != current.inode() => {
                // What was added before the rotation comes first.
                lines.extend(current.more().unwrap_or_default());
                lines.extend(now.more().unwrap_or_default());
                current = now;
            }
            _ if !dir.exists() => return Ok(()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_rubbish_is_skipped() {
        let line = parse(b"17 e two words").unwrap();
        assert_eq!((line.at_ms, line.source, line.text.as_str()), (17, LogSource::Stderr, "two words"));
        assert_eq!(parse(b"17 o ").unwrap().text, "");
        for bad in [&b""[..], b"x o y", b"17 z y", b"17"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[tokio::test]
    async fn a_tail_is_followed_through_a_rotation() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().to_owned();
        std::fs::write(dir.join(LOG_OLD), "1 o a\n2 o b\n").unwrap();
        std::fs::write(dir.join(LOG), "3 o c\n4 e d\n").unwrap();
        let mut lines = read(dir.clone(), LogQuery { tail: Some(3), follow: true }).unwrap();
        let mut texts = vec![];
        for _ in 0..3 {
            texts.push(lines.recv().await.unwrap().text);
        }
        std::fs::rename(dir.join(LOG), dir.join(LOG_OLD)).unwrap();
        std::fs::write(dir.join(LOG), "5 o e\n").unwrap();
        texts.push(lines.recv().await.unwrap().text);
        assert_eq!(texts, ["b", "c", "d", "e"]);
        temporary.close().unwrap();
        assert_eq!(lines.recv().await, None);
    }
}
