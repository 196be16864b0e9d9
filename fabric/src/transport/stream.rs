//! Streams of bytes between nodes, and who serves them. No type of quinn's shows.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::link::InUse;
use super::{Class, fault, request};
use crate::limits::ANSWER_WRITE_TIMEOUT;
use crate::rpc::{BoxFuture, Kind, Peer, Refusal};

/// The receiving half of a [`Stream`].
#[derive(Debug)]
pub struct StreamReader {
    recv: RecvStream,
    _in_use: Option<Arc<InUse>>,
}

/// The sending half of a [`Stream`]. Dropped before it was finished, it tells the peer that the stream broke.
#[derive(Debug)]
pub struct StreamWriter {
    send: SendStream,
    finished: bool,
    _in_use: Option<Arc<InUse>>,
}

/// Bytes both ways. The halves may be used apart.
#[derive(Debug)]
pub struct Stream {
    /// What the peer sends.
    pub reader: StreamReader,
    /// What goes to the peer.
    pub writer: StreamWriter,
}

impl Stream {
    pub(super) fn new(send: SendStream, recv: RecvStream, in_use: Option<InUse>) -> Self {
        let in_use = in_use.map(Arc::new);
        let writer = StreamWriter { send, finished: false, _in_use: in_use.clone() };
        Stream { reader: StreamReader { recv, _in_use: in_use }, writer }
    }
}

impl StreamWriter {
    /// Returns once the peer has stopped reading before the end, or the connection has ended. Whoever writes seldom learns it
    /// here and not by writing.
    pub fn abandoned(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.send.stopped();
        async move {
            // Read to its end: that is no reason to give up the other direction.
            if let Ok(None) = stopped.await {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends the stream and waits until the peer has everything.
    ///
    /// # Errors
    /// When the connection or the peer gave up before.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.end()?;
        match self.send.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the peer stopped reading")),
            Err(error) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, error.to_string())),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        if !self.finished {
            self.finished = true;
            self.send.finish().map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the stream is closed"))?;
        }
        Ok(())
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.send.reset(fault::RESET_UNFINISHED);
        }
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buffer)
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end())
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

/// A stream that a peer wants to open. Dropped unanswered, it counts as refused.
#[derive(Debug)]
pub struct StreamRequest {
    /// Who asks.
    pub peer: Peer,
    /// On which kind of connection.
    pub class: Class,
    /// What for.
    pub kind: Kind,
    /// The question; at most `STREAM_HEADER_BYTES_MAX`.
    pub header: Vec<u8>,
    halves: Option<(SendStream, RecvStream)>,
}

impl StreamRequest {
    pub(super) fn new(
        peer: Peer,
        class: Class,
        kind: Kind,
        header: Vec<u8>,
        send: SendStream,
        recv: RecvStream,
    ) -> Self {
        StreamRequest { peer, class, kind, header, halves: Some((send, recv)) }
    }

    /// Opens the stream.
    ///
    /// # Errors
    /// When the peer is gone.
    pub async fn accept(mut self) -> io::Result<Stream> {
        let (mut send, recv) = self.halves.take().ok_or(io::ErrorKind::NotConnected)?;
        request::write_answer(&mut send, Ok(&[])).await.map_err(io::Error::from)?;
        Ok(Stream::new(send, recv, None))
    }

    /// Says no.
    pub async fn refuse(mut self, refusal: Refusal) {
        if let Some((mut send, _recv)) = self.halves.take() {
            request::answer(&mut send, Err(&refusal), ANSWER_WRITE_TIMEOUT).await;
        }
    }
}

impl Drop for StreamRequest {
    fn drop(&mut self) {
        if let Some((mut send, _recv)) = self.halves.take() {
            let _ = send.reset(fault::RESET_UNFINISHED);
        }
    }
}

type StreamHandler = Arc<dyn Fn(StreamRequest) -> BoxFuture<()> + Send + Sync>;
type MessageHandler = Arc<dyn Fn(Peer, Vec<u8>) -> BoxFuture<()> + Send + Sync>;

/// Who serves which kind of stream, and of one-way message. Built once, before the node listens.
#[derive(Default, Clone)]
pub struct StreamRouter {
    streams: BTreeMap<Kind, StreamHandler>,
    messages: BTreeMap<Kind, MessageHandler>,
}

impl fmt::Debug for StreamRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.streams.keys()).entries(self.messages.keys()).finish()
    }
}

impl StreamRouter {
    /// Registers the server of a kind of stream.
    ///
    /// # Panics
    /// When the kind has one already: two meanings of one number are a defect of the program.
    pub fn on<F, Fut>(&mut self, kind: Kind, handler: F)
    where
        F: Fn(StreamRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let boxed: StreamHandler = Arc::new(move |request| Box::pin(handler(request)));
        assert!(self.streams.insert(kind, boxed).is_none(), "stream kind {kind} has two servers");
    }

    /// Registers the receiver of a kind of one-way message ([`super::Transport::send_uni`]).
    ///
    /// # Panics
    /// As [`StreamRouter::on`].
    pub fn on_message<F, Fut>(&mut self, kind: Kind, handler: F)
    where
        F: Fn(Peer, Vec<u8>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let boxed: MessageHandler = Arc::new(move |peer, body| Box::pin(handler(peer, body)));
        assert!(self.messages.insert(kind, boxed).is_none(), "message kind {kind} has two receivers");
    }

    pub(super) async fn serve(&self, request: StreamRequest) {
        match self.streams.get(&request.kind) {
            Some(handler) => handler(request).await,
            None => {
                let message = format!("this node knows no stream of kind {}", request.kind);
                request.refuse(Refusal::new("unknown-request", message).hint("upgrade this node")).await;
            }
        }
    }

    pub(super) async fn message(&self, peer: Peer, kind: Kind, body: Vec<u8>) {
        match self.messages.get(&kind) {
            Some(handler) => handler(peer, body).await,
            None => tracing::debug!(peer = ?peer.id, kind, "a message of an unknown kind was dropped"),
        }
    }
}
