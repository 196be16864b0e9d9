//! Requests, messages and stream openings on the wire.
//!
//! ```text
//! bidirectional   tag u8 (0 request, 1 stream), kind u16 le, length u32 le, body
//!       answer    status u8 (0 done, 1 refused), length u32 le, body (a framed refusal when refused)
//! unidirectional  kind u16 le, length u32 le, body
//! ```
//!
//! Lengths are explicit, since a stream whose writer was dropped looks like one that has ended. A request is served only
//! when it has arrived whole, so a failure to send it means that it was not done.

use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::link::Link;
use super::stream::{StreamRequest, StreamRouter};
use super::{Class, Shared, fault};
use crate::limits::*;
use crate::rpc::{Kind, Refusal};
use crate::wire;

const TAG_REQUEST: u8 = 0;
const TAG_STREAM: u8 = 1;
const STATUS_DONE: u8 = 0;
const STATUS_REFUSED: u8 = 1;
/// Bytes of one permit of the memory for requests.
const PERMIT_BYTES: usize = 1024;
/// Permits for `REQUEST_BYTES_IN_FLIGHT_MAX`.
pub(super) const PERMITS: usize = REQUEST_BYTES_IN_FLIGHT_MAX / PERMIT_BYTES;

/// What a bidirectional stream is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    /// One question, one answer.
    Request,
    /// Bytes both ways.
    Stream,
}

/// Why a question has no answer.
#[derive(Debug)]
pub(super) enum AskError {
    /// It has not been served; `dead` means that the connection had ended, so that another one may do.
    NotSent { cause: String, dead: bool },
    /// No answer in time; it may have been served.
    Late,
    /// The connection broke under it; it may have been served.
    Broken(String),
    /// The peer said no.
    Refused(Refusal),
    /// The answer is not one.
    Garbled(String),
}

/// Why an incoming stream cannot be read.
#[derive(Debug, Error)]
enum BadStream {
    #[error("it ended early")]
    Cut,
    #[error("it did not arrive in time")]
    Slow,
    #[error("{0} bytes, at most {1} are allowed")]
    Large(usize, usize),
    #[error("its first byte is {0}")]
    Tag(u8),
    #[error("bytes follow it")]
    Trailing,
}

impl From<ReadExactError> for BadStream {
    fn from(_: ReadExactError) -> Self {
        BadStream::Cut
    }
}

fn not_sent(error: &ConnectionError) -> AskError {
    AskError::NotSent { cause: fault::text(error), dead: !fault::never_served(error) }
}

/// After the question was sent whole.
fn lost(error: &ConnectionError) -> AskError {
    if fault::never_served(error) { not_sent(error) } else { AskError::Broken(fault::text(error)) }
}

fn unanswered(error: &ReadExactError) -> AskError {
    match error {
        ReadExactError::ReadError(ReadError::ConnectionLost(lost_by)) => lost(lost_by),
        ReadExactError::ReadError(other) => AskError::Broken(other.to_string()),
        ReadExactError::FinishedEarly(_) => AskError::Garbled("an answer that was cut short".into()),
    }
}

/// Opens a bidirectional stream and sends a question whole; a stream is left open, a request is finished.
pub(super) async fn open(
    connection: &quinn::Connection,
    tag: Tag,
    kind: Kind,
    body: &[u8],
    deadline: Instant,
) -> Result<(SendStream, RecvStream), AskError> {
    let late = || AskError::NotSent { cause: "it takes no more requests now".into(), dead: false };
    let opened = timeout_at(deadline, connection.open_bi()).await.map_err(|_| late())?;
    let (mut send, recv) = opened.map_err(|error| not_sent(&error))?;
    let mut head = [0; 7];
    head[0] = if tag == Tag::Request { TAG_REQUEST } else { TAG_STREAM };
    head[1..3].copy_from_slice(&kind.to_le_bytes());
    head[3..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    let write = async {
        send.write_all(&head).await?;
        send.write_all(body).await
    };
    match timeout_at(deadline, write).await {
        // The peer has said no before it had read all: its answer tells why.
        Ok(Ok(()) | Err(WriteError::Stopped(_))) => {}
        Ok(Err(WriteError::ConnectionLost(error))) => return Err(not_sent(&error)),
        Ok(Err(error)) => return Err(AskError::NotSent { cause: error.to_string(), dead: false }),
        Err(_) => {
            let _ = send.reset(fault::RESET_UNFINISHED);
            return Err(AskError::NotSent { cause: "it could not be sent in time".into(), dead: false });
        }
    }
    if tag == Tag::Request {
        let _ = send.finish();
    }
    Ok((send, recv))
}

/// Reads a status with its body. With `whole`, nothing may follow.
pub(super) async fn read_answer(
    recv: &mut RecvStream,
    deadline: Instant,
    bytes_max: usize,
    whole: bool,
) -> Result<Vec<u8>, AskError> {
    let read = async {
        let mut head = [0; 5];
        recv.read_exact(&mut head).await.map_err(|error| unanswered(&error))?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let bytes_max = if head[0] == STATUS_REFUSED { REFUSAL_BYTES_MAX } else { bytes_max };
        if head[0] > STATUS_REFUSED || length > bytes_max {
            return Err(AskError::Garbled(format!("status {} and {length} bytes", head[0])));
        }
        let mut body = vec![0; length];
        recv.read_exact(&mut body).await.map_err(|error| unanswered(&error))?;
        if head[0] == STATUS_REFUSED {
            let refusal = wire::decode::<Refusal>(&body);
            return Err(refusal.map_or_else(|error| AskError::Garbled(error.to_string()), AskError::Refused));
        }
        if whole {
            expect_end(recv).await.map_err(|()| AskError::Garbled("bytes after the answer".into()))?;
        }
        Ok(body)
    };
    timeout_at(deadline, read).await.unwrap_or(Err(AskError::Late))
}

/// Waits for the stream's end; an error means that more came, or nothing more.
///
/// Not by `read_to_end`: that reads unordered, and quinn (0.11) then gives duplicates of what was read in order before.
/// A retransmitted packet would make a good message look too long, and the count of credits for its sender overflow.
async fn expect_end(recv: &mut RecvStream) -> Result<(), ()> {
    match recv.read(&mut [0]).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => Err(()),
    }
}

/// Asks one question.
pub(super) async fn ask(
    connection: &quinn::Connection,
    kind: Kind,
    body: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, AskError> {
    let (_send, mut recv) = open(connection, Tag::Request, kind, body, deadline).await?;
    read_answer(&mut recv, deadline, FRAME_BYTES_MAX, true).await
}

/// Writes a status with its body.
pub(super) async fn write_answer(send: &mut SendStream, answer: Result<&[u8], &Refusal>) -> Result<(), WriteError> {
    let refusal;
    let (status, body) = match answer {
        Ok(body) if body.len() <= FRAME_BYTES_MAX => (STATUS_DONE, body),
        Ok(body) => {
            let message = format!("an answer of {} bytes, at most {FRAME_BYTES_MAX} are allowed", body.len());
            refusal = wire::encode(&Refusal::new("answer-too-large", message));
            (STATUS_REFUSED, &refusal[..])
        }
        Err(reason) => {
            refusal = framed(reason);
            (STATUS_REFUSED, &refusal[..])
        }
    };
    let mut head = [status; 5];
    head[1..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    send.write_all(&head).await?;
    send.write_all(body).await
}

/// A refusal within `REFUSAL_BYTES_MAX`: one that says too much keeps its code only.
fn framed(refusal: &Refusal) -> Vec<u8> {
    let texts = [Some(&refusal.code), Some(&refusal.message), refusal.field.as_ref(), refusal.value.as_ref()];
    let bytes: usize = texts.into_iter().chain([refusal.hint.as_ref()]).flatten().map(String::len).sum();
    if bytes <= REFUSAL_BYTES_MAX / 2 {
        return wire::encode(refusal);
    }
    let code: String = refusal.code.chars().take(64).collect();
    wire::encode(&Refusal::new(&code, "the reason is too long to be sent"))
}

/// A question as it arrived.
pub(super) struct Question {
    pub(super) tag: Tag,
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
    _memory: OwnedSemaphorePermit,
}

/// Reads a question of at most `bytes_max`; refuses in words what it will not read.
async fn read_question(shared: &Shared, recv: &mut RecvStream, bytes_max: usize) -> Result<Question, BadStream> {
    let mut head = [0; 7];
    recv.read_exact(&mut head).await?;
    let tag = match head[0] {
        TAG_REQUEST => Tag::Request,
        TAG_STREAM => Tag::Stream,
        other => return Err(BadStream::Tag(other)),
    };
    let bytes_max = if tag == Tag::Stream { bytes_max.min(STREAM_HEADER_BYTES_MAX) } else { bytes_max };
    let length = u32::from_le_bytes([head[3], head[4], head[5], head[6]]) as usize;
    let (body, _memory) = read_body(shared, recv, length, bytes_max).await?;
    if tag == Tag::Request {
        expect_end(recv).await.map_err(|()| BadStream::Trailing)?;
    }
    Ok(Question { tag, kind: Kind::from_le_bytes([head[1], head[2]]), body, _memory })
}

async fn read_body(
    shared: &Shared,
    recv: &mut RecvStream,
    length: usize,
    bytes_max: usize,
) -> Result<(Vec<u8>, OwnedSemaphorePermit), BadStream> {
    if length > bytes_max {
        return Err(BadStream::Large(length, bytes_max));
    }
    let permits = length.div_ceil(PERMIT_BYTES) as u32;
    let memory = shared.memory.clone().acquire_many_owned(permits).await.map_err(|_| BadStream::Slow)?;
    let mut body = vec![0; length];
    recv.read_exact(&mut body).await?;
    Ok((body, memory))
}

/// Reads a question within the deadline; answers with a refusal when it is not one.
pub(super) async fn accept(
    shared: &Shared,
    send: &mut SendStream,
    recv: &mut RecvStream,
    bytes_max: usize,
) -> Option<Question> {
    let read = timeout(REQUEST_READ_TIMEOUT, read_question(shared, recv, bytes_max)).await;
    let bad = match read.unwrap_or(Err(BadStream::Slow)) {
        Ok(question) => return Some(question),
        Err(bad) => bad,
    };
    let code = if matches!(bad, BadStream::Large(..)) { "request-too-large" } else { "request-garbled" };
    let refusal = Refusal::new(code, format!("the request cannot be read: {bad}"));
    answer(send, Err(&refusal), ANSWER_WRITE_TIMEOUT).await;
    let _ = recv.stop(fault::RESET_UNFINISHED);
    None
}

/// Answers and ends the stream; a peer that does not take the answer in time has none.
pub(super) async fn answer(send: &mut SendStream, answer: Result<&[u8], &Refusal>, within: Duration) {
    match timeout(within, write_answer(send, answer)).await {
        Ok(Ok(())) => drop(send.finish()),
        Ok(Err(_)) | Err(_) => drop(send.reset(fault::RESET_UNFINISHED)),
    }
}

/// Serves one bidirectional stream of a peer.
pub(super) async fn serve(shared: Arc<Shared>, link: Arc<Link>, mut send: SendStream, mut recv: RecvStream) {
    let Some(question) = accept(&shared, &mut send, &mut recv, FRAME_BYTES_MAX).await else { return };
    match question.tag {
        Tag::Request => {
            let Question { kind, body, _memory, .. } = question;
            let done = shared.router.serve(link.peer, kind, body).await;
            answer(&mut send, done.as_deref(), ANSWER_WRITE_TIMEOUT).await;
        }
        Tag::Stream => {
            let request = StreamRequest::new(link.peer, link.class, question.kind, question.body, send, recv);
            match place(&link) {
                Ok(_place) => StreamRouter::serve(&shared.streams, request).await,
                Err(refusal) => request.refuse(refusal).await,
            }
        }
    }
}

/// A place for a stream of the peer; free again when dropped.
fn place(link: &Link) -> Result<OwnedSemaphorePermit, Refusal> {
    if link.class == Class::Control {
        return Err(Refusal::new("wrong-connection", "streams do not share the connection of Raft and membership")
            .hint("do all nodes run one version?"));
    }
    link.streams.clone().try_acquire_owned().map_err(|_| {
        let words = format!("this node serves {STREAMS_OPEN_MAX} streams of the asking node already");
        Refusal::new("busy", words).hint("end some of them (logs --follow, exec, forward), or ask another node")
    })
}

/// Sends one message.
pub(super) async fn send_message(
    connection: &quinn::Connection,
    kind: Kind,
    body: &[u8],
    deadline: Instant,
) -> Result<(), AskError> {
    let late = || AskError::NotSent { cause: "it could not be sent in time".into(), dead: false };
    let send = async {
        let mut send = connection.open_uni().await.map_err(|error| not_sent(&error))?;
        let head = [&kind.to_le_bytes()[..], &(body.len() as u32).to_le_bytes()].concat();
        let write = async {
            send.write_all(&head).await?;
            send.write_all(body).await
        };
        match write.await {
            Ok(()) => drop(send.finish()),
            Err(WriteError::ConnectionLost(error)) => return Err(not_sent(&error)),
            Err(error) => return Err(AskError::NotSent { cause: error.to_string(), dead: false }),
        }
        Ok(())
    };
    timeout_at(deadline, send).await.unwrap_or_else(|_| Err(late()))
}

/// Takes one message of a peer; one that is too large or late is dropped.
pub(super) async fn receive_message(shared: Arc<Shared>, link: Arc<Link>, mut recv: RecvStream) {
    let read = async {
        let mut head = [0; 6];
        recv.read_exact(&mut head).await?;
        let length = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
        let body = read_body(&shared, &mut recv, length, GOSSIP_MESSAGE_BYTES_MAX).await?;
        Ok((Kind::from_le_bytes([head[0], head[1]]), body))
    };
    match timeout(REQUEST_READ_TIMEOUT, read).await.unwrap_or(Err(BadStream::Slow)) {
        Ok((kind, (body, _memory))) => shared.streams.message(link.peer, kind, body).await,
        Err(bad) => tracing::debug!(peer = ?link.peer.id, %bad, "a message was dropped"),
    }
}
