//! Clients in a closed loop over kept-alive HTTP/1.1: each asks, waits for the answer, asks again. The same code for
//! smartnode and for its peers, inside the namespace of the host that it asks.

use std::fs::File;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use smartnode::lab::Host;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

/// Largest answer that a client takes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// No answer takes longer, or it counts as failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two questions where answers may be lost.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Where clients knock, and what they say in every head.
#[derive(Debug, Clone)]
pub struct Door {
    namespace: String,
    address: SocketAddr,
    headers: String,
}

/// What is asked: method, path, body.
pub type Question = (&'static str, String, String);

impl Door {
    /// A port in a host's namespace. `headers` are whole lines.
    pub fn of(host: &Host, address: SocketAddr, headers: &str) -> Result<Self> {
        let namespace = host.namespace().context("the host is no namespace")?.to_owned();
        Ok(Door { namespace, address, headers: headers.to_owned() })
    }

    /// So many connections. A thread can be in one network only, so one is lent to make them.
    fn connect(&self, count: usize) -> Result<Vec<std::net::TcpStream>> {
        let network = File::open(format!("/run/netns/{}", self.namespace))?;
        let address = self.address;
        let connecting = std::thread::spawn(move || -> Result<Vec<std::net::TcpStream>> {
            setns(&network, CloneFlags::CLONE_NEWNET)?;
            let streams = (0..count).map(|_| {
                let stream = std::net::TcpStream::connect_timeout(&address, PATIENCE)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                anyhow::Ok(stream)
            });
            streams.collect()
        });
        connecting.join().map_err(|_| anyhow!("the thread that connects panicked"))?
    }
}

/// One connection.
struct Client {
    stream: TcpStream,
    headers: String,
    buffer: Vec<u8>,
}

impl Client {
    fn new(stream: std::net::TcpStream, door: &Door) -> Result<Self> {
        Ok(Client { stream: TcpStream::from_std(stream)?, headers: door.headers.clone(), buffer: Vec::new() })
    }

    async fn more(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 || self.buffer.len() > ANSWER_BYTES_MAX {
            bail!("the answer ends early or is too large");
        }
        Ok(())
    }

    /// Asks; the body of a good answer.
    async fn ask(&mut self, (method, path, body): &Question) -> Result<String> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.headers,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.buffer.clear();
        let end = loop {
            self.more().await?;
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
        };
        let head = std::str::from_utf8(&self.buffer[..end])?.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.with_context(|| format!("an answer without its length: {head}"))?.trim().parse()?;
        while self.buffer.len() < end + 4 + length {
            self.more().await?;
        }
        let body = String::from_utf8_lossy(&self.buffer[end + 4..]).into_owned();
        if head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
            Ok(body)
        } else {
            bail!("{head}: {body}")
        }
    }
}

/// What a load gave.
#[derive(Debug, Default)]
pub struct Load {
    /// Answers a second.
    pub per_second: f64,
    /// Milliseconds from question to answer, sorted.
    pub ms: Vec<f64>,
}

impl Load {
    /// So many of a hundred took no longer.
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (percent * self.ms.len()).div_ceil(100).max(1);
        self.ms.get(rank - 1).copied().unwrap_or_default()
    }
}

fn on_one_thread<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}

/// Asks one question of a door.
pub fn ask(door: &Door, question: &Question) -> Result<String> {
    on_one_thread(async {
        let stream = door.connect(1)?.pop().context("a connection")?;
        timeout(PATIENCE, Client::new(stream, door)?.ask(question)).await?
    })
}

/// `clients` spread over the doors, for so long. `question(client, number)` says what each asks next. Any answer that is
/// not good ends the measure: a rate with failures in it would be of something else.
pub fn closed_loop(
    doors: &[Door],
    clients: usize,
    how_long: Duration,
    question: impl Fn(usize, usize) -> Question + Clone + 'static,
) -> Result<Load> {
    on_one_thread(async {
        let mut ready = Vec::new();
        for (at, door) in doors.iter().enumerate() {
            let mine = (at..clients).step_by(doors.len());
            for (client, stream) in mine.clone().zip(door.connect(mine.len())?) {
                ready.push((client, Client::new(stream, door)?));
            }
        }
        let begun = Instant::now();
        let tasks: Vec<_> = ready
            .into_iter()
            .map(|(client, mut connection)| {
                let question = question.clone();
                tokio::task::spawn_local(async move {
                    let mut ms = Vec::new();
                    while begun.elapsed() < how_long {
                        let asked = Instant::now();
                        timeout(PATIENCE, connection.ask(&question(client, ms.len()))).await??;
                        ms.push(asked.elapsed().as_secs_f64() * 1e3);
                    }
                    anyhow::Ok(ms)
                })
            })
            .collect();
        let mut load = Load::default();
        for task in tasks {
            load.ms.extend(task.await??);
        }
        load.per_second = load.ms.len() as f64 / begun.elapsed().as_secs_f64();
        load.ms.sort_by(f64::total_cmp);
        Ok(load)
    })
}

/// Asks anew every 50 ms, each time on a connection of its own and without giving up on those before, until one answer is
/// good: milliseconds since `begun`. A question that is lost with a leader may wait for seconds, and is not what is timed.
pub fn poll_until_good(door: &Door, question: &Question, begun: Instant) -> Result<f64> {
    on_one_thread(async {
        let mut asked = JoinSet::new();
        while begun.elapsed() < PATIENCE {
            let mut client = Client::new(door.connect(1)?.pop().context("a connection")?, door)?;
            let question = question.clone();
            asked.spawn_local(async move { client.ask(&question).await });
            let next = tokio::time::sleep(ASK_EVERY);
            tokio::pin!(next);
            loop {
                tokio::select! { biased;
                    Some(answer) = asked.join_next() => if answer?.is_ok() {
                        return Ok(begun.elapsed().as_secs_f64() * 1e3);
                    },
                    () = &mut next => break,
                }
            }
        }
        bail!("no good answer within {PATIENCE:?}")
    })
}
