//! What happened in a run: every packet's ciphertext and every event, folded into one digest.
//!
//! Two runs of one seed must give the same digest. With a sink each record is a line as well, so that the first
//! difference of two runs, or the story of a failure, can be read.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::actor::HostId;
use crate::limits::VIOLATIONS_MAX;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives at this world time, in microseconds.
    Arrives(u64),
    /// It arrives twice.
    ArrivesTwice(u64, u64),
    /// The link lost it.
    Lost,
    /// A partition is between the two.
    Cut,
    /// Too large for the link, or the receiver's buffer is full.
    Dropped,
}

struct Book {
    hasher: blake3::Hasher,
    records: u64,
    packets: u64,
    violations: Vec<String>,
    sink: Option<Box<dyn Write + Send>>,
    sink_error: Option<io::Error>,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").field("records", &self.records).field("violations", &self.violations).finish()
    }
}

/// The record of one run.
#[derive(Debug, Clone)]
pub struct Trace {
    book: Arc<Mutex<Book>>,
}

impl Trace {
    /// An empty record, written to `sink` as lines too.
    pub fn new(sink: Option<Box<dyn Write + Send>>) -> Self {
        let book = Book {
            hasher: blake3::Hasher::new(),
            records: 0,
            packets: 0,
            violations: Vec::new(),
            sink,
            sink_error: None,
        };
        Trace { book: Arc::new(Mutex::new(book)) }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a packet, every byte of it.
    pub fn packet(&self, at_us: u64, from: HostId, to: HostId, fate: Fate, bytes: &[u8]) {
        let mut book = self.book();
        book.packets += 1;
        let line = format!("{at_us} {from}>{to} {} bytes {fate:?}", bytes.len());
        book.record(&line, bytes);
    }

    /// Records what happened at a host.
    pub fn event(&self, at_us: u64, host: HostId, what: &dyn fmt::Display) {
        self.book().record(&format!("{at_us} {host} {what}"), &[]);
    }

    /// Records that an invariant does not hold.
    pub fn violation(&self, at_us: u64, what: &str) {
        let mut book = self.book();
        book.record(&format!("{at_us} VIOLATION {what}"), &[]);
        if book.violations.len() < VIOLATIONS_MAX {
            book.violations.push(format!("{what} (at {} ms)", at_us / 1000));
        }
    }

    /// The violations so far, first one first.
    pub fn violations(&self) -> Vec<String> {
        self.book().violations.clone()
    }

    /// Digest of all records so far.
    pub fn digest(&self) -> blake3::Hash {
        self.book().hasher.finalize()
    }

    /// Records and, of these, packets so far.
    pub fn counts(&self) -> (u64, u64) {
        let book = self.book();
        (book.records, book.packets)
    }

    /// Hands everything to the sink.
    ///
    /// # Errors
    /// When the sink could not take a line, then or before: the trace is incomplete.
    pub fn flush(&self) -> io::Result<()> {
        let mut book = self.book();
        if let Some(error) = book.sink_error.take() {
            return Err(error);
        }
        book.sink.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Book {
    fn record(&mut self, line: &str, bytes: &[u8]) {
        self.records += 1;
        self.hasher.update(&(line.len() as u64).to_le_bytes());
        self.hasher.update(line.as_bytes());
        self.hasher.update(bytes);
        let Some(sink) = &mut self.sink else { return };
        let written = match bytes {
            [] => writeln!(sink, "{line}"),
            bytes => writeln!(sink, "{line} {}", &blake3::hash(bytes).to_hex()[..8]),
        };
        if let Err(error) = written {
            self.sink = None;
            self.sink_error = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_covers_every_byte_and_line() {
        let digest = |bytes: &[u8], at| {
            let trace = Trace::new(None);
            trace.packet(at, HostId(1), HostId(2), Fate::Lost, bytes);
            trace.digest()
        };
        assert_eq!(digest(b"abc", 1), digest(b"abc", 1));
        assert_ne!(digest(b"abc", 1), digest(b"abd", 1));
        assert_ne!(digest(b"abc", 1), digest(b"abc", 2));
    }

    #[test]
    fn a_sink_that_fails_is_told_at_the_flush() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let trace = Trace::new(Some(Box::new(Full)));
        trace.event(1, HostId(1), &"boots");
        assert_eq!(trace.flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
