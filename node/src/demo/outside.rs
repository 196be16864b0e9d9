//! A client outside the fabric: asks all nodes' published port every 10 ms and notes each good answer.
//!
//! It stands in the switch's namespace and has a thread per node, since a thread can be in one network only and a node
//! that does not answer must not delay the question to the next.
#![expect(clippy::disallowed_methods, reason = "a client of its own threads and clock; never part of a node")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// From one question to the next.
const PERIOD: Duration = Duration::from_millis(10);
/// A node that does not take the connection within this time is asked again.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(50);
/// A machine that does not answer within this time is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Good answers that are kept: minutes of them.
const ANSWERS_MAX: usize = 50_000;
/// Bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 4096;

/// A good answer.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// When it was there.
    pub at: Instant,
    /// Position of the node that gave it.
    pub node: usize,
    /// The machine's counter.
    pub count: u64,
}

/// Good answers in the order in which they came.
type Answers = Arc<Mutex<VecDeque<Answer>>>;

/// The client. Ends when dropped.
#[derive(Debug)]
pub struct Outside {
    answers: Answers,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Outside {
    /// Begins to ask `nodes` from the network namespace of this name.
    ///
    /// # Errors
    /// When there is no such namespace or no right to enter it.
    pub fn start(namespace: &str, nodes: Vec<SocketAddr>) -> io::Result<Self> {
        let mut outside = Outside { answers: Answers::default(), stop: Arc::default(), threads: Vec::new() };
        for (node, address) in nodes.into_iter().enumerate() {
            let network = File::open(format!("/run/netns/{namespace}"))?;
            let (answers, stop) = (outside.answers.clone(), outside.stop.clone());
            let (tell, told) = mpsc::channel();
            outside.threads.push(std::thread::spawn(move || {
                let entered = setns(&network, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
                let inside = entered.is_ok();
                let _ = tell.send(entered);
                if inside {
                    ask_on(node, address, &answers, &stop);
                }
            }));
            told.recv().map_err(io::Error::other)??;
        }
        Ok(outside)
    }

    /// The first good answer after `since` for which `wanted` holds.
    pub fn first(&self, since: Instant, wanted: impl Fn(&Answer) -> bool) -> Option<Answer> {
        let answers = self.answers.lock().expect("no holder of this lock panics");
        answers.iter().find(|answer| answer.at > since && wanted(answer)).copied()
    }

    /// The last good answer before `until` for which `wanted` holds.
    pub fn last(&self, until: Instant, wanted: impl Fn(&Answer) -> bool) -> Option<Answer> {
        let answers = self.answers.lock().expect("no holder of this lock panics");
        answers.iter().rev().find(|answer| answer.at < until && wanted(answer)).copied()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn ask_on(node: usize, address: SocketAddr, answers: &Answers, stop: &AtomicBool) {
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(count) = ask(address) {
            let mut answers = answers.lock().expect("no holder of this lock panics");
            if answers.len() == ANSWERS_MAX {
                answers.pop_front();
            }
            answers.push_back(Answer { at: Instant::now(), node, count });
        }
        next = (next + PERIOD).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn ask(address: SocketAddr) -> io::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(REQUEST)?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
    count(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What is asked of the machine.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: counter\r\nConnection: close\r\n\r\n";

/// The counter in an answer.
pub fn count(answer: &str) -> Option<u64> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let good = head.starts_with("HTTP/1.1 200 ");
    body.split_whitespace().next().filter(|_| good)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn only_a_whole_answer_counts() {
        assert_eq!(count("HTTP/1.1 200 OK\r\nA: b\r\n\r\n42 web\n"), Some(42));
        assert_eq!(count("HTTP/1.1 500 No\r\n\r\n42 web\n"), None);
        assert_eq!(count("HTTP/1.1 200 OK\r\nA: b\r\n\r\n"), None);
        assert_eq!(count("HTTP/1.1 200 OK\r\n"), None);
    }
}
