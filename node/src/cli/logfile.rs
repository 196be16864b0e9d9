//! The log of a daemon in the background: a file that is put aside when it is full, so that two of them are the most that a
//! daemon leaves on its host's disk, however long it runs.
//!
//! Everything goes by the standard error output, which leads to the file. So what no logger writes (a panic's words, a
//! library's) is in it as well, and counts when the next line is written.
#![expect(clippy::disallowed_methods, reason = "writes the process's own log, which no seam covers")]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Log of a daemon in the background, in its data directory.
pub const LOG_FILE: &str = "smartnode.log";
/// The one before it.
pub const LOG_FILE_OLD: &str = "smartnode.log.1";
/// Bytes of one of the two files.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Opens the log for more.
///
/// # Errors
/// When it cannot be made.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Writes to the log and puts it aside when it is full.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    old: PathBuf,
    file: File,
    bytes_max: u64,
    /// Leads the process's outputs to the file.
    redirect: fn(&File) -> io::Result<()>,
}

fn outputs(file: &File) -> io::Result<()> {
    nix::unistd::dup2_stdout(file)?;
    Ok(nix::unistd::dup2_stderr(file)?)
}

impl LogFile {
    /// The log in `data_dir`, to which the process's outputs lead from now on.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn of_process(data_dir: &Path) -> io::Result<Self> {
        Self::new(data_dir, LOG_BYTES_MAX, outputs)
    }

    fn new(data_dir: &Path, bytes_max: u64, redirect: fn(&File) -> io::Result<()>) -> io::Result<Self> {
        let path = data_dir.join(LOG_FILE);
        let file = open(&path)?;
        redirect(&file)?;
        Ok(LogFile { path, old: data_dir.join(LOG_FILE_OLD), file, bytes_max, redirect })
    }

    fn put_aside(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.old)?;
        self.file = open(&self.path)?;
        (self.redirect)(&self.file)
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Asked of the file, which others write to as well. A log that cannot be put aside goes on where it is.
        if self.file.metadata().is_ok_and(|meta| meta.len() >= self.bytes_max) {
            let _ = self.put_aside();
        }
        self.file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_full_files_are_the_most_there_is() {
        let temporary = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(temporary.path().join(name)).unwrap();
        let mut log = LogFile::new(temporary.path(), 10, |_| Ok(())).unwrap();
        for line in 0..20 {
            log.write_all(format!("line {line:02}\n").as_bytes()).unwrap();
        }
        assert_eq!(
            (read(LOG_FILE_OLD).as_str(), read(LOG_FILE).as_str()),
            ("line 16\nline 17\n", "line 18\nline 19\n")
        );
        // The next daemon goes on where this one ended.
        let mut log = LogFile::new(temporary.path(), 10, |_| Ok(())).unwrap();
        log.write_all(b"line 20\n").unwrap();
        assert_eq!((read(LOG_FILE_OLD).as_str(), read(LOG_FILE).as_str()), ("line 18\nline 19\n", "line 20\n"));
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 2);
    }
}
