//! Reads captured output: the two files of a log, then what is added.
#![expect(clippy::disallowed_methods, reason = "reads the machine's own directory")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::runtime::limits::{LOG_FOLLOW, LOG_LINES_QUEUED_MAX, LOG_READ_BYTES};
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

    /// The next whole lines, of a bounded number of bytes; none when nothing has been added.
    fn more(&mut self) -> io::Result<Option<Vec<LogLine>>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        if file.take(LOG_READ_BYTES).read_to_end(&mut self.begun)? == 0 {
            return Ok(None);
        }
        let end = self.begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.begun.drain(..end).collect();
        Ok(Some(whole.split(|byte| *byte == b'\n').filter_map(parse).collect()))
    }

    /// How many lines there are; the next ones are the first ones again.
    fn count(&mut self) -> io::Result<usize> {
        let mut lines = 0;
        while let Some(more) = self.more()? {
            lines += more.len();
        }
        self.begun.clear();
        self.file.as_mut().map_or(Ok(0), |file| file.seek(SeekFrom::Start(0)))?;
        Ok(lines)
    }
}

/// Starts to read a machine's log; the task ends with its receiver. However much there is to tell, little of it is in memory
/// at once: a reader may be slow, and there may be many.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn read(dir: PathBuf, query: LogQuery) -> io::Result<mpsc::Receiver<LogLine>> {
    // The current file first: if it is rotated in between, both names lead to the same file.
    let mut current = Tail::open(&dir.join(LOG))?;
    let mut old = Tail::open(&dir.join(LOG_OLD))?;
    if old.inode() == current.inode() {
        old.file = None;
    }
    let skipped = match query.tail {
        None => 0,
        Some(tail) => (old.count()? + current.count()?).saturating_sub(tail),
    };
    let (sender, receiver) = mpsc::channel(LOG_LINES_QUEUED_MAX);
    tokio::spawn(async move {
        let mut to = Teller { to: sender, skipped };
        let _ = feed(&dir, query.follow, old, current, &mut to).await;
    });
    Ok(receiver)
}

/// Why a feed ends: nobody listens any more.
struct NobodyListens;

/// Tells lines to a reader, all but the first ones.
struct Teller {
    to: mpsc::Sender<LogLine>,
    skipped: usize,
}

impl Teller {
    /// Everything that a file has got by now.
    async fn all_of(&mut self, file: &mut Tail) -> Result<(), NobodyListens> {
        // A file grows at most to its bound, so this ends whatever the machine writes meanwhile.
        while let Some(lines) = file.more().unwrap_or_default() {
            for line in lines {
                if self.skipped > 0 {
                    self.skipped -= 1;
                    continue;
                }
                self.to.send(line).await.map_err(|_| NobodyListens)?;
            }
        }
        Ok(())
    }
}

async fn feed(
    dir: &Path,
    follow: bool,
    mut old: Tail,
    mut current: Tail,
    to: &mut Teller,
) -> Result<(), NobodyListens> {
    to.all_of(&mut old).await?;
    drop(old);
    loop {
        to.all_of(&mut current).await?;
        if !follow {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = to.to.closed() => return Err(NobodyListens),
            () = tokio::time::sleep(LOG_FOLLOW) => {}
        }
        match Tail::open(&dir.join(LOG)) {
            Ok(now) if now.inode() != current.inode() => {
                // What was added before the rotation comes first.
                to.all_of(&mut current).await?;
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
    async fn a_long_log_is_told_whole_and_read_in_parts() {
        let temporary = tempfile::tempdir().unwrap();
        let text = |numbers: std::ops::Range<usize>| -> String {
            numbers.map(|number| format!("1 o {number:0100}\n")).collect()
        };
        let lines = 3 * LOG_READ_BYTES as usize / 100;
        std::fs::write(temporary.path().join(LOG_OLD), text(0..lines)).unwrap();
        std::fs::write(temporary.path().join(LOG), text(lines..2 * lines)).unwrap();
        for tail in [None, Some(lines + 7), Some(0), Some(usize::MAX)] {
            let mut told = read(temporary.path().to_owned(), LogQuery { tail, follow: false }).unwrap();
            let mut next = (2 * lines).saturating_sub(tail.unwrap_or(usize::MAX));
            while let Some(line) = told.recv().await {
                assert_eq!(line.text.parse(), Ok(next), "{tail:?}");
                next += 1;
            }
            assert_eq!(next, 2 * lines, "{tail:?}");
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
