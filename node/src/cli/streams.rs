//! events, and a machine's logs, exec and forward.

use std::io::Write;
use std::time::Duration;

use netvirt::proxy::{self, Patience};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::args::{EventsArgs, Output};
use super::error::{CliError, Exit};
use super::output;
use super::session::Session;
use crate::api::client::segment;
use crate::api::failure::{Class, Failure};
use crate::api::frames::ExecFrame;
use crate::api::types::{Event, Exec, LogLine, Problem};
use crate::limits::FORWARDS_MAX;

type Result<T> = std::result::Result<T, CliError>;

/// A time for people, in UTC.
fn stamp(at_ms: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(at_ms).unwrap_or(0)).unwrap_or_default();
    format!("{time:.3}")
}

fn print_event(output: Output, event: &Event) -> Result<()> {
    output::print(&match output {
        Output::Table => {
            let tenant = event.tenant.as_deref().map(|tenant| format!("{tenant}/")).unwrap_or_default();
            format!("{}  {:<18}  {tenant}{}  {}\n", stamp(event.at_ms), event.kind, event.subject, event.message)
        }
        Output::Name => format!("{}\n", event.cursor),
        // One document a line, so that a reader may follow.
        Output::Json => serde_json::to_string(event).unwrap_or_default() + "\n",
        Output::Yaml => format!("---\n{}", serde_saphyr::to_string(event).unwrap_or_default()),
    })
}

/// `events`. Followed, it goes on after a lost connection where it stopped.
pub async fn events(session: &mut Session, args: EventsArgs) -> Result<()> {
    let mut cursor = args.since;
    let tenant = session.global.tenant.as_deref().map(|tenant| format!("&tenant={}", segment(tenant)));
    let path = format!("/v1/events?follow={}{}", args.follow, tenant.unwrap_or_default());
    let mut lost_since: Option<tokio::time::Instant> = None;
    loop {
        let failure = match read_events(session, &path, &mut cursor, &mut lost_since).await? {
            None if !args.follow => return Ok(()),
            None => Failure::unreachable("the node ended the stream"),
            Some(failure) => failure,
        };
        let since = *lost_since.get_or_insert_with(tokio::time::Instant::now);
        if !args.follow || failure.class != Class::Unreachable || since.elapsed() > session.global.timeout {
            let error = CliError::from(failure);
            let cursor = cursor.filter(|_| args.follow && lost_since.is_some());
            let Some(cursor) = cursor else { return Err(error) };
            return Err(error.hint(format!("go on through any other node: smartnode events --follow --since {cursor}")));
        }
        session.say("the connection is lost: trying again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Reads one stream to its end; the failure that ended it, if one did.
async fn read_events(
    session: &mut Session,
    path: &str,
    cursor: &mut Option<String>,
    lost_since: &mut Option<tokio::time::Instant>,
) -> Result<Option<Failure>> {
    let mut lines = match session.client.lines(path, cursor.as_deref()).await {
        Ok(lines) => lines,
        Err(failure) => return Ok(Some(failure)),
    };
    loop {
        match lines.event::<Event>().await {
            Ok(Some(event)) => {
                *lost_since = None;
                print_event(session.global.output, &event)?;
                *cursor = Some(event.cursor);
            }
            Ok(None) => return Ok(None),
            Err(failure) => return Ok(Some(failure)),
        }
    }
}

/// `machine logs`: what it printed to its error output goes to ours.
pub async fn logs(session: &mut Session, path: &str, follow: bool, tail: Option<u64>, stamps: bool) -> Result<()> {
    let tail = tail.map(|lines| format!("&tail={lines}")).unwrap_or_default();
    let mut lines = session.client.lines(&format!("{path}?follow={follow}{tail}"), None).await?;
    while let Some(line) = lines.next().await? {
        let Ok(parsed) = serde_json::from_slice::<LogLine>(&line) else {
            let problem = serde_json::from_slice::<Problem>(&line);
            let unreadable = |error: serde_json::Error| Failure::internal(format!("a line is not understood: {error}"));
            return Err(problem.map_or_else(unreadable, Failure::from).into());
        };
        let stamp = if stamps { format!("{} ", stamp(parsed.at_ms)) } else { String::new() };
        match session.global.output {
            Output::Json => output::print(&(String::from_utf8_lossy(&line).into_owned() + "\n"))?,
            _ if parsed.stream == "stderr" => {
                let _ = std::io::stderr().write_all(format!("{stamp}{}\n", parsed.text).as_bytes());
            }
            _ => output::print(&format!("{stamp}{}\n", parsed.text))?,
        }
    }
    Ok(())
}

/// `machine exec`: standard input in, both outputs out, the program's code back.
pub async fn exec(session: &mut Session, path: &str, argv: Vec<String>) -> Result<u8> {
    let stream = session.client.upgrade(path, &Exec { argv, stdin: true }).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    let input = tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = stdin.read(&mut buffer).await.unwrap_or(0);
            // A program that has ended reads no more: the exit code follows on the other half.
            if ExecFrame::Stdin(buffer[..count].to_vec()).write(&mut to).await.is_err() || count == 0 {
                // Kept open: its end would tell the node that this client has gone.
                return to;
            }
        }
    });
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let broken = |error: std::io::Error| Failure::unreachable(format!("the connection to the machine broke: {error}"));
    let code = loop {
        match ExecFrame::read(&mut from).await.map_err(broken)? {
            Some(ExecFrame::Stdout(bytes)) => {
                stdout.write_all(&bytes).await?;
                stdout.flush().await?;
            }
            Some(ExecFrame::Stderr(bytes)) => {
                stderr.write_all(&bytes).await?;
                stderr.flush().await?;
            }
            Some(ExecFrame::Exit(code)) => break code,
            Some(ExecFrame::Failed(why)) => return Err(CliError::new(Exit::Failed, why)),
            Some(ExecFrame::Stdin(_)) => {}
            None => return Err(Failure::unreachable("the connection to the machine ended without an exit code").into()),
        }
    };
    input.abort();
    Ok(u8::try_from(code).unwrap_or(1))
}

/// `machine forward`: until it is interrupted.
pub async fn forward(session: &mut Session, path: &str, name: &str, (local, port): (u16, u16)) -> Result<()> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, local)).await.map_err(|error| {
        CliError::new(Exit::Conflict, format!("cannot listen on 127.0.0.1:{local}: {error}"))
            .hint(format!("choose another one: smartnode machine forward {name} 0:{port}"))
    })?;
    let address = listener.local_addr()?;
    let shape = json!({ "local": address.to_string(), "machine": name, "port": port });
    output::one(session.global.output, &shape, &address.to_string(), || {
        format!("{address} leads to port {port} of {name}; end it with Ctrl-C\n")
    })?;
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(FORWARDS_MAX));
    loop {
        let (stream, _) = tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => return Ok(()),
            accepted = listener.accept() => accepted?,
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let mut client = session.client.another();
        let path = format!("{path}?port={port}");
        let quiet = session.global.quiet;
        tokio::spawn(async move {
            let _place = place;
            match client.upgrade(&path, &json!({})).await {
                // Either end may break the connection at any time: that is how TCP ends.
                Ok(tunnel) => drop(proxy::join(stream, tunnel, Patience::DEFAULT).await),
                Err(failure) => CliError::from(failure).print(quiet),
            }
        });
    }
}
