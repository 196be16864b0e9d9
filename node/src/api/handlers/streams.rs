//! What stays open: events, logs, exec, forward.
//!
//! `exec` and `forward` take over the connection by HTTP upgrade to `smartnode-stream`: bytes pass unread.

use std::convert::Infallible;
use std::io::Cursor;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use fabric::model::Name;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use netvirt::proxy::{self, Patience};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::InspectWriter;

use super::Shared;
use crate::api::backend::{Backend, Caller, Duplex, LogQuery, Read, Rights};
use crate::api::extract::{At, Input, Params, names};
use crate::api::failure::Failure;
use crate::api::rights;
use crate::api::types::{Event, Exec, LogLine, Problem};
use crate::limits::{FORWARD_DRAIN, FORWARD_LOOK};

type Result<T> = std::result::Result<T, Failure>;

/// The protocol that `exec` and `forward` switch to.
pub const UPGRADE_PROTOCOL: &str = "smartnode-stream";

/// Events, as server-sent events: those that are kept after the cursor, then new ones.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(("since" = Option<String>, Query, description = "A cursor: only what came after it"),
        ("follow" = Option<bool>, Query, description = "Go on with new events (default)"),
        ("tenant" = Option<String>, Query, description = "Only events of this tenant and those below it"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same as `since`, as browsers send it")),
    responses((status = 200, description = "`text/event-stream` of `Event`", body = Event),
        (status = 410, description = "The cursor is too old", body = Problem)))]
pub async fn events(
    State(shared): State<Shared>,
    read: Read,
    params: Params,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = std::result::Result<SseEvent, Infallible>>>> {
    let permit = shared.stream()?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let since = last.or(params.get::<String>("since", "a cursor")?).filter(|cursor| !cursor.is_empty());
    let only = params.get::<Name>("tenant", "the name of a tenant")?;
    if let Some(tenant) = &only {
        rights::tenant(&*shared.backend, &read.caller, tenant)?;
    }
    let events = shared.backend.events(&read, since, params.flag("follow", true)?).await?;
    let backend = shared.backend.clone();
    let caller = read.caller;
    let within = |backend: &dyn Backend, tenant: &Option<Name>, root: &Name| {
        tenant.as_ref().is_some_and(|tenant| tenant == root || backend.is_below(tenant, root))
    };
    let visible = move |tenant: &Option<Name>, caller: &Caller| match (tenant, &caller.rights) {
        _ if only.as_ref().is_some_and(|root| !within(&*backend, tenant, root)) => false,
        (_, Rights::Operator) => true,
        (None, Rights::Node(_)) => true,
        (Some(tenant), _) => rights::tenant(&*backend, caller, tenant).is_ok(),
        (None, Rights::Tenant(_)) => false,
    };
    let named = shared.backend.clone();
    let stream = events.filter_map(move |event| {
        let _held = &permit;
        std::future::ready(match event {
            Ok(view) if !visible(&view.tenant, &caller) => None,
            Ok(view) => {
                let event = Event::from(view);
                let sse = SseEvent::default().id(&event.cursor).event(&event.kind).json_data(&event);
                sse.ok().map(Ok)
            }
            Err(failure) => SseEvent::default().event("problem").json_data(problem(&*named, failure)).ok().map(Ok),
        })
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

/// A machine's log: one `LogLine` in JSON per line; a `Problem` as last line when the owner is lost.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/machines/{name}/logs", tag = "machines",
    params(("tenant" = String, Path), ("name" = String, Path),
        ("tail" = Option<u64>, Query, description = "The last this many lines; all without it"),
        ("follow" = Option<bool>, Query, description = "Go on with new lines")),
    responses((status = 200, description = "`application/x-ndjson`", body = LogLine), (status = 404, body = Problem)))]
pub async fn logs(
    State(shared): State<Shared>,
    read: Read,
    params: Params,
    At((tenant, name)): At<(String, String)>,
) -> Result<Response> {
    let (tenant, name) = names(&tenant, "machine", &name)?;
    rights::tenant(&*shared.backend, &read.caller, &tenant)?;
    let permit = shared.stream()?;
    let query = LogQuery { tail: params.get("tail", "a number of lines")?, follow: params.flag("follow", false)? };
    let lines = shared.backend.logs(&read, &tenant, &name, query).await?;
    let body = Body::from_stream(json_lines(lines, shared.backend.clone(), permit));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// What ends a stream, with nodes by their names as in any other answer.
fn problem(backend: &dyn Backend, mut failure: Failure) -> Problem {
    failure.refusal.message = backend.in_names(&failure.refusal.message);
    Problem::from(&failure)
}

fn json_lines(
    lines: BoxStream<'static, Result<crate::api::backend::LogLine>>,
    backend: Arc<dyn Backend>,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = std::result::Result<Vec<u8>, Infallible>> + Send {
    // The flag ends the stream after a failure.
    stream::unfold((lines, backend, permit, false), |(mut lines, backend, permit, failed)| async move {
        if failed {
            return None;
        }
        let next = lines.next().await?;
        let failed = next.is_err();
        let mut text = match next {
            Ok(line) => serde_json::to_vec(&LogLine::from(line)),
            Err(failure) => serde_json::to_vec(&problem(&*backend, failure)),
        }
        .unwrap_or_default();
        text.push(b'\n');
        Some((Ok(text), (lines, backend, permit, failed)))
    })
}

fn upgrade_of(request: &mut Request) -> Result<OnUpgrade> {
    let asked = request.headers().get(UPGRADE).is_some_and(|value| value == UPGRADE_PROTOCOL);
    match request.extensions_mut().remove::<OnUpgrade>() {
        Some(upgrade) if asked => Ok(upgrade),
        _ => Err(Failure::invalid("Upgrade", "absent", format!("this needs an HTTP upgrade to {UPGRADE_PROTOCOL}"))
            .hint("use the smartnode command")),
    }
}

/// 101, and `serve` with the connection once the client has it.
fn switch<F>(
    upgrade: OnUpgrade,
    permit: OwnedSemaphorePermit,
    serve: impl FnOnce(Upgraded) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        let _permit = permit;
        // A client that left before the answer is no news.
        if let Ok(upgraded) = upgrade.await {
            serve(upgraded).await;
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(UPGRADE_PROTOCOL));
    response
}

/// Ends with either end: a client that has gone must not leave its program behind, and it never closes half.
async fn pass_until_either_ends(upgraded: Upgraded, machine: Duplex) {
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(upgraded));
    let (mut from_machine, mut to_machine) = tokio::io::split(machine);
    tokio::select! {
        biased;
        _ = tokio::io::copy(&mut from_machine, &mut to_client) => {}
        _ = tokio::io::copy(&mut from_client, &mut to_machine) => {}
    }
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut to_client).await;
}

/// Joins a client's connection with a machine's port until both have ended, or the client has gone. Through TLS, and while
/// TCP holds a dead client's end back behind what the machine does not take, patience alone ends it.
async fn carry_forward(upgraded: Upgraded, machine: Duplex) {
    let upgraded = match upgraded.downcast::<TokioIo<UnixStream>>() {
        Ok(parts) => return join_while_there(parts.io.into_inner(), parts.read_buf, machine).await,
        Err(upgraded) => upgraded,
    };
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => join_while_there(parts.io.into_inner(), parts.read_buf, machine).await,
        // Either end may break the connection at any time: that is how TCP ends.
        Err(upgraded) => drop(proxy::join(TokioIo::new(upgraded), machine, Patience::DEFAULT).await),
    }
}

async fn join_while_there<S>(client: S, read_ahead: Bytes, machine: Duplex)
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin,
{
    let Ok(watched) = client.as_fd().try_clone_to_owned() else { return };
    let (from, to) = tokio::io::split(client);
    let client = tokio::io::join(Cursor::new(read_ahead).chain(from), to);
    let (of_machine, to_machine) = tokio::io::split(machine);
    let taken = AtomicBool::new(false);
    let to_machine = InspectWriter::new(to_machine, |_| taken.store(true, Ordering::Relaxed));
    let machine = tokio::io::join(of_machine, to_machine);
    tokio::select! {
        biased;
        _ = proxy::join(client, machine, Patience::DEFAULT) => {}
        () = gone(watched, &taken) => {}
    }
}

/// Waits until a client has gone for good, and longer for what it had sent, as long as the machine has `taken` something of
/// it. A machine that takes nothing would hide it: nobody reads from the client then. A connection that is closed in one
/// direction only goes on.
async fn gone(client: OwnedFd, taken: &AtomicBool) {
    let mut look = tokio::time::interval(FORWARD_LOOK);
    loop {
        look.tick().await;
        // Hang-ups and errors are told unasked.
        let mut asked = [PollFd::new(client.as_fd(), PollFlags::empty())];
        if poll(&mut asked, PollTimeout::ZERO).is_ok_and(|told| told > 0) {
            break;
        }
    }
    taken.store(true, Ordering::Relaxed);
    while taken.swap(false, Ordering::Relaxed) {
        tokio::time::sleep(FORWARD_DRAIN).await;
    }
}

/// Run a program in a machine. Upgrades to `smartnode-stream`, which carries frames: one byte of kind (0 input, its
/// end when empty; 1 output, empty as a sign of life; 2 error output; 3 exit code, four bytes; 4 why it could not run),
/// four bytes of length (big endian), the payload (at most 64 KiB).
#[utoipa::path(post, path = "/v1/tenants/{tenant}/machines/{name}/exec", tag = "machines", request_body = Exec,
    params(("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 101, description = "Frames follow"), (status = 404, body = Problem)))]
pub async fn exec(
    State(shared): State<Shared>,
    read: Read,
    At((tenant, name)): At<(String, String)>,
    mut request: Request,
) -> Result<Response> {
    let (tenant, name) = names(&tenant, "machine", &name)?;
    rights::tenant(&*shared.backend, &read.caller, &tenant)?;
    let upgrade = upgrade_of(&mut request)?;
    let Input(exec) = <Input<Exec> as axum::extract::FromRequest<()>>::from_request(request, &()).await?;
    let permit = shared.stream()?;
    let machine = shared.backend.exec(&read, &tenant, &name, exec.check()?).await?;
    Ok(switch(upgrade, permit, |upgraded| pass_until_either_ends(upgraded, machine)))
}

/// Connect to a TCP port of a machine. Upgrades to `smartnode-stream`, which carries the bytes of the connection.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/machines/{name}/forward", tag = "machines",
    params(("tenant" = String, Path), ("name" = String, Path), ("port" = u16, Query, description = "The port")),
    responses((status = 101, description = "Bytes follow"), (status = 404, body = Problem)))]
pub async fn forward(
    State(shared): State<Shared>,
    read: Read,
    params: Params,
    At((tenant, name)): At<(String, String)>,
    mut request: Request,
) -> Result<Response> {
    let (tenant, name) = names(&tenant, "machine", &name)?;
    rights::tenant(&*shared.backend, &read.caller, &tenant)?;
    let upgrade = upgrade_of(&mut request)?;
    let port = params.get::<u16>("port", "1 to 65535")?.filter(|port| *port > 0);
    let port = port.ok_or_else(|| Failure::invalid("port", "absent", "1 to 65535"))?;
    let permit = shared.stream()?;
    let machine = shared.backend.connect(&read, &tenant, &name, port).await?;
    Ok(switch(upgrade, permit, |upgraded| carry_forward(upgraded, machine)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// A forwarded connection: the client's end, the machine's end (which takes 64 bytes), and the carrying task.
    fn forwarded() -> (UnixStream, tokio::io::DuplexStream, tokio::task::JoinHandle<()>) {
        let (client, door) = UnixStream::pair().unwrap();
        let (near, machine) = tokio::io::duplex(64);
        (client, machine, tokio::spawn(join_while_there(door, Bytes::from_static(b"ahead,"), Box::new(near))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_died_is_noticed_though_the_machine_takes_nothing() {
        let (mut client, machine, carried) = forwarded();
        let stuck = tokio::time::timeout(FORWARD_DRAIN, client.write_all(&[0; 4 << 20])).await;
        assert!(stuck.is_err() && !carried.is_finished(), "a client that is there may wait");
        drop(client);
        tokio::time::timeout(FORWARD_LOOK * 2 + FORWARD_DRAIN, carried).await.expect("it is noticed").unwrap();
        drop(machine);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_takes_little_at_a_time_gets_all_that_a_client_sent_before_it_went() {
        let (mut client, mut machine, carried) = forwarded();
        client.write_all(&[b'x'; 1000]).await.unwrap();
        // Both have closed: the connection looks like one whose client has gone.
        machine.shutdown().await.unwrap();
        drop(client);
        let (mut all, mut part) = (0, [0; 64]);
        loop {
            tokio::time::sleep(FORWARD_DRAIN / 2).await;
            match machine.read(&mut part).await.unwrap() {
                0 => break,
                count => all += count,
            }
        }
        assert_eq!(all, 1006);
        carried.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_sent_before_it_went_arrives_and_a_half_close_ends_nothing() {
        let (mut client, mut machine, carried) = forwarded();
        client.write_all(&[b'x'; 1000]).await.unwrap();
        client.shutdown().await.unwrap();
        tokio::time::sleep(FORWARD_LOOK * 2 + FORWARD_DRAIN).await;
        assert!(!carried.is_finished(), "a client that has ended its half waits for the answer");
        drop(client);
        tokio::time::sleep(FORWARD_LOOK).await;
        let mut all = vec![];
        machine.read_to_end(&mut all).await.unwrap();
        assert_eq!((&all[..7], all.len()), (&b"ahead,x"[..], 1006));
        drop(machine);
        tokio::time::timeout(FORWARD_LOOK, carried).await.expect("both have ended").unwrap();
    }
}
