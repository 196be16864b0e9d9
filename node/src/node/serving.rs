//! Serving peers: what this node observes, and streams into its machines.

use std::io;
use std::pin::pin;
use std::time::Duration;

use fabric::rpc::{Peer, Refusal};
use fabric::transport::{Stream, StreamRequest};
use fabric::wire::{self, HEADER_BYTES};
use netvirt::proxy::{self, Patience};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::admission::{Late, started};
use super::asks::*;
use super::backend::statuses;
use crate::api::failure::Failure;
use crate::api::frames::ExecFrame;
use crate::limits::EXEC_BEAT;
use crate::runtime::{ExecStream, LogLine, LogQuery, LogSource};

/// Bytes between the two ends of a local exec.
pub const PIPE_BYTES: usize = 64 * 1024;
/// Bytes read from a program at once.
const READ_BYTES: usize = 16 * 1024;
/// A program's exit is waited for this long after its output ended.
const EXIT_WAIT: Duration = Duration::from_secs(3600 * 24);

/// Serves [`STATUS`].
///
/// # Errors
/// When the question is garbled or too large.
pub async fn status(late: Late, body: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    let context = started(&late)?;
    let ask: StatusAskV1 = read(&body)?;
    if ask.machines.len() > STATUS_MACHINES_MAX {
        return Err(Refusal::new("limit", format!("{} machines at once", ask.machines.len())));
    }
    Ok(wire::encode(&StatusAnswerV1 { statuses: statuses(&context, &ask.machines).await }))
}

/// Serves [`TOMBSTONES`].
///
/// # Errors
/// While the node starts.
pub async fn tombstones(late: Late) -> Result<Vec<u8>, Refusal> {
    let context = started(&late)?;
    let trust = context.trust.read().expect("no holder of this lock panics");
    let tombstones = trust.tombstones().values().cloned().collect();
    Ok(wire::encode(&TombstonesV1 { tombstones }))
}

/// Opens a peer's stream when `prepare` succeeds; tells it why otherwise.
async fn accept<T>(request: StreamRequest, prepared: Result<T, Refusal>) -> Option<(fabric::transport::Stream, T)> {
    match prepared {
        Ok(prepared) => request.accept().await.ok().map(|stream| (stream, prepared)),
        Err(refusal) => {
            request.refuse(refusal).await;
            None
        }
    }
}

fn refusal(error: crate::runtime::RuntimeError) -> Refusal {
    Failure::from(error).into()
}

/// Serves [`EXEC`].
pub async fn exec(late: Late, request: StreamRequest) {
    let prepared = async {
        let context = guarded(&late, request.peer)?;
        let ask: ExecAskV1 = read(&request.header)?;
        let program = context.runtime.exec(ask.machine, &ask.argv).await.map_err(refusal)?;
        Ok((program, ask.stdin))
    };
    let prepared = prepared.await;
    let Some((stream, (program, stdin))) = accept(request, prepared).await else { return };
    let abandoned = stream.writer.abandoned();
    tokio::select! {
        biased;
        ended = carry_exec(program, stream, stdin) => if let Err(error) = ended {
            tracing::debug!(%error, "an exec ended early");
        },
        // Who asked is gone, which a program that does not read its input would hide.
        () = abandoned => {}
    }
}

fn guarded(late: &Late, peer: Peer) -> Result<std::sync::Arc<super::context::Context>, Refusal> {
    operator(peer)?;
    started(late)
}

/// Serves [`CONNECT`].
pub async fn connect(late: Late, request: StreamRequest) {
    let prepared = async {
        let context = guarded(&late, request.peer)?;
        let ask: ConnectAskV1 = read(&request.header)?;
        context.runtime.connect(ask.machine, ask.port).await.map_err(refusal)
    };
    let prepared = prepared.await;
    if let Some((stream, port)) = accept(request, prepared).await {
        let abandoned = stream.writer.abandoned();
        tokio::select! {
            biased;
            // Either end may break the connection at any time: that is how TCP ends.
            _ = proxy::join(stream, port, Patience::DEFAULT) => {}
            // Who asked is gone, which a program that reads nothing and says nothing would hide.
            () = abandoned => {}
        }
    }
}

/// Serves [`LOGS`].
pub async fn logs(late: Late, request: StreamRequest) {
    let prepared = async {
        let context = guarded(&late, request.peer)?;
        let ask: LogsAskV1 = read(&request.header)?;
        let query = LogQuery { tail: ask.tail.map(|tail| tail as usize), follow: ask.follow };
        context.runtime.logs(ask.machine, query).await.map_err(refusal)
    };
    let prepared = prepared.await;
    let Some((mut stream, mut lines)) = accept(request, prepared).await else { return };
    let abandoned = stream.writer.abandoned();
    tokio::select! {
        biased;
        // A machine that prints nothing must not hold the stream of a reader that is gone.
        () = abandoned => {}
        _ = pass_lines(&mut stream, &mut lines) => {}
    }
}

async fn pass_lines(to: &mut Stream, lines: &mut mpsc::Receiver<LogLine>) -> io::Result<()> {
    while let Some(line) = lines.recv().await {
        let stderr = line.source == LogSource::Stderr;
        let frame = wire::encode(&LogLineV1 { at_ms: line.at_ms, stderr, text: line.text });
        to.write_all(&frame).await?;
    }
    to.shutdown().await
}

/// Reads one frame of `fabric::wire` from a stream; none at its end.
///
/// # Errors
/// Of the stream, or when it is no frame.
pub async fn read_frame<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; HEADER_BYTES];
    if from.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..]).await?;
    let total = wire::frame_bytes(&head).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let mut frame = head.to_vec();
    frame.resize(total, 0);
    from.read_exact(&mut frame[HEADER_BYTES..]).await?;
    Ok(Some(frame))
}

/// Carries a program's input and output over `stream` as [`ExecFrame`]s, until it has ended.
///
/// # Errors
/// When the stream breaks: the program is killed then.
pub async fn carry_exec<S: AsyncRead + AsyncWrite + Send>(
    program: ExecStream,
    stream: S,
    with_stdin: bool,
) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    let ExecStream { stdin, stdout, stderr, exit } = program;
    let input = async {
        // A pipe ends when it is dropped, not when it is shut down.
        let mut stdin = Some(stdin).filter(|_| with_stdin);
        loop {
            match ExecFrame::read(&mut from).await? {
                Some(ExecFrame::Stdin(bytes)) if bytes.is_empty() => stdin = None,
                Some(ExecFrame::Stdin(bytes)) => {
                    // A program that reads no more may still say something.
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(&bytes).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "only input goes to a program")),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client is gone")),
            }
        }
    };
    let output = tell_output(stdout, stderr, exit, &mut to);
    tokio::select! {
        biased;
        done = output => done,
        broken = input => broken,
    }
}

/// Passes on what a program says until it has ended. While it is silent, empty frames do: writing is the one way to hear
/// that a client has gone whose input nobody takes.
async fn tell_output<W: AsyncWrite + Unpin>(
    mut stdout: impl AsyncRead + Unpin,
    mut stderr: impl AsyncRead + Unpin,
    exit: oneshot::Receiver<i32>,
    to: &mut W,
) -> io::Result<()> {
    let mut beat = tokio::time::interval(EXEC_BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.reset();
    let (mut out, mut err) = ([0; READ_BYTES], [0; READ_BYTES]);
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        tokio::select! {
            biased;
            read = stdout.read(&mut out), if out_open => match read? {
                0 => out_open = false,
                count => ExecFrame::Stdout(out[..count].to_vec()).write(to).await?,
            },
            read = stderr.read(&mut err), if err_open => match read? {
                0 => err_open = false,
                count => ExecFrame::Stderr(err[..count].to_vec()).write(to).await?,
            },
            _ = beat.tick() => ExecFrame::Stdout(vec![]).write(to).await?,
        }
    }
    let mut exit = pin!(tokio::time::timeout(EXIT_WAIT, exit));
    let last = loop {
        tokio::select! {
            biased;
            ended = &mut exit => break match ended {
                Ok(Ok(code)) => ExecFrame::Exit(code),
                Ok(Err(_)) => ExecFrame::Failed("the machine ended under the program".into()),
                Err(_) => ExecFrame::Failed("the program closed its output and did not end".into()),
            },
            _ = beat.tick() => ExecFrame::Stdout(vec![]).write(to).await?,
        }
    };
    last.write(to).await?;
    to.shutdown().await
}

/// Serves [`IMAGE`]: any member may have any image, since placement brings machines to every node.
pub async fn image(late: Late, request: StreamRequest) {
    match started(&late) {
        Ok(context) => {
            if let Ok(stream) = request.accept().await {
                context.images.serve(stream).await;
            }
        }
        Err(refusal) => request.refuse(refusal).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    /// A program that takes no input, says nothing and does not end; and what of it is held outside.
    fn deaf() -> (ExecStream, impl Sized) {
        let (stdin, input) = duplex(64);
        let (stdout, output) = duplex(64);
        let (ended, exit) = oneshot::channel();
        let program = ExecStream {
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            stderr: Box::new(io::Cursor::new([])),
            exit,
        };
        (program, (input, output, ended))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_died_is_noticed_though_its_program_takes_no_input() {
        let (program, _held) = deaf();
        let (mut client, stream) = duplex(64);
        let carried = tokio::spawn(carry_exec(program, stream, true));
        let flood = ExecFrame::Stdin(vec![0; 4096]);
        flood.write(&mut client).await.unwrap();
        let stuck = tokio::time::timeout(EXEC_BEAT, flood.write(&mut client)).await;
        assert!(stuck.is_err(), "the program takes nothing");
        assert_eq!(ExecFrame::read(&mut client).await.unwrap(), Some(ExecFrame::Stdout(vec![])));
        drop(client);
        let ended = tokio::time::timeout(EXEC_BEAT * 2, carried).await.expect("it is noticed").unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_closed_its_output_still_gives_its_code() {
        let (stdin, _input) = duplex(64);
        let (ended, exit) = oneshot::channel();
        let silent = || Box::new(io::Cursor::new([]));
        let program = ExecStream { stdin: Box::new(stdin), stdout: silent(), stderr: silent(), exit };
        let (mut client, stream) = duplex(64);
        tokio::spawn(carry_exec(program, stream, false));
        for _ in 0..2 {
            assert_eq!(ExecFrame::read(&mut client).await.unwrap(), Some(ExecFrame::Stdout(vec![])));
        }
        ended.send(3).unwrap();
        assert_eq!(ExecFrame::read(&mut client).await.unwrap(), Some(ExecFrame::Exit(3)));
    }
}
