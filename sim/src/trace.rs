//! What happened in a run: every packet's ciphertext and every event, folded into one digest.
//!
//! Two runs of one seed must give the same digest. With a sink each record goes there as well: as a line ([`Lines`]), so
//! that the first difference of two runs can be found, or into a timeline for people (`timeline`).

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

/// What is recorded.
#[derive(Debug, Clone, Copy)]
pub enum Record<'a> {
    /// A packet.
    Packet {
        /// Its sender.
        from: HostId,
        /// Its receiver.
        to: HostId,
        /// What became of it.
        fate: Fate,
        /// Its ciphertext.
        bytes: &'a [u8],
    },
    /// Something happened at a host; host 0 is the world.
    Event(HostId, &'a str),
    /// A line of the script was done or judged.
    Script {
        /// The line.
        line: &'a str,
        /// Whether it could be done, or held.
        held: bool,
        /// How things were then.
        facts: &'a str,
    },
    /// An invariant does not hold.
    Violation(&'a str),
}

impl Record<'_> {
    fn line(&self, at_us: u64) -> String {
        match self {
            Record::Packet { from, to, fate, bytes } => {
                format!("{at_us} {from}>{to} {} bytes {fate:?}", bytes.len())
            }
            Record::Event(host, what) => format!("{at_us} {host} {what}"),
            Record::Script { line, held, facts } => {
                format!("{at_us} script {} {line} ({facts})", if *held { "ok" } else { "FAILED" })
            }
            Record::Violation(what) => format!("{at_us} VIOLATION {what}"),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Record::Packet { bytes, .. } => bytes,
            Record::Event(..) | Record::Script { .. } | Record::Violation(_) => &[],
        }
    }
}

/// Where records go besides the digest.
pub trait Sink: Send {
    /// Takes a record of this world time, in microseconds.
    ///
    /// # Errors
    /// When it has no room.
    fn take(&mut self, at_us: u64, record: &Record<'_>) -> io::Result<()>;

    /// Hands everything on.
    ///
    /// # Errors
    /// When it has no room.
    fn flush(&mut self) -> io::Result<()>;
}

/// Every record as a line, a packet's content as the begin of its digest.
#[derive(Debug)]
pub struct Lines<W>(pub W);

impl<W: Write + Send> Sink for Lines<W> {
    fn take(&mut self, at_us: u64, record: &Record<'_>) -> io::Result<()> {
        match record.bytes() {
            [] => writeln!(self.0, "{}", record.line(at_us)),
            bytes => writeln!(self.0, "{} {}", record.line(at_us), &blake3::hash(bytes).to_hex()[..8]),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

struct Book {
    hasher: blake3::Hasher,
    records: u64,
    packets: u64,
    violations: Vec<String>,
    sink: Option<Box<dyn Sink>>,
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
    /// An empty record, handed to `sink` too.
    pub fn new(sink: Option<Box<dyn Sink>>) -> Self {
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
        book.record(at_us, &Record::Packet { from, to, fate, bytes });
    }

    /// Records what happened at a host.
    pub fn event(&self, at_us: u64, host: HostId, what: &dyn fmt::Display) {
        self.book().record(at_us, &Record::Event(host, &what.to_string()));
    }

    /// Records what came of a line of the script.
    pub fn script(&self, at_us: u64, line: &str, held: bool, facts: &str) {
        self.book().record(at_us, &Record::Script { line, held, facts });
    }

    /// Records that an invariant does not hold.
    pub fn violation(&self, at_us: u64, what: &str) {
        let mut book = self.book();
        book.record(at_us, &Record::Violation(what));
        if book.violations.len() < VIOLATIONS_MAX {
            book.violations.push(format!("{what} (at {} ms)", at_us / 1000));
        }
    }

    /// Whether the sink has failed: going on would be for nothing.
    pub fn is_broken(&self) -> bool {
        self.book().sink_error.is_some()
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
        book.sink.as_mut().map_or(Ok(()), |sink| sink.flush())
    }
}

impl Book {
    fn record(&mut self, at_us: u64, record: &Record<'_>) {
        let line = record.line(at_us);
        self.records += 1;
        self.hasher.update(&(line.len() as u64).to_le_bytes());
        self.hasher.update(line.as_bytes());
        self.hasher.update(record.bytes());
        let Some(sink) = &mut self.sink else { return };
        if let Err(error) = sink.take(at_us, record) {
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
        let trace = Trace::new(Some(Box::new(Lines(Full))));
        assert!(!trace.is_broken());
        trace.event(1, HostId(1), &"boots");
        assert!(trace.is_broken());
        assert_eq!(trace.flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
