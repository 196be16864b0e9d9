//! What stays open: events, logs, exec, forward.
//!
//! `exec` and `forward` take over the connection by HTTP upgrade to `smartnode-stream`: bytes pass unread.

use std::convert::Infallible;

use axum::body::Body;
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
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use crate::api::backend::{Backend, Caller, Duplex, LogQuery, Read, Rights};
use crate::api::extract::{At, Input, Params, names};
use crate::api::failure::Failure;
use crate::api::rights;
use crate::api::types::{Event, Exec, LogLine, Problem};

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
    let stream = events.filter_map(move |event| {
        let _held = &permit;
        std::future::ready(match event {
            Ok(view) if !visible(&view.tenant, &caller) => None,
            Ok(view) => {
                let event = Event::from(view);
                let sse = SseEvent::default().id(&event.cursor).event(&event.kind).json_data(&event);
                sse.ok().map(Ok)
            }
            Err(failure) => SseEvent::default().event("problem").json_data(Problem::from(&failure)).ok().map(Ok),
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
    let body = Body::from_stream(json_lines(lines, permit));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn json_lines(
    lines: BoxStream<'static, Result<crate::api::backend::LogLine>>,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = std::result::Result<Vec<u8>, Infallible>> + Send {
    // The flag ends the stream after a failure.
    stream::unfold((lines, permit, false), |(mut lines, permit, failed)| async move {
        if failed {
            return None;
        }
        let next = lines.next().await?;
        let failed = next.is_err();
        let mut text = match next {
            Ok(line) => serde_json::to_vec(&LogLine::from(line)),
            Err(failure) => serde_json::to_vec(&Problem::from(&failure)),
        }
        .unwrap_or_default();
        text.push(b'\n');
        Some((Ok(text), (lines, permit, failed)))
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

/// Run a program in a machine. Upgrades to `smartnode-stream`, which carries frames: one byte of kind (0 input, its
/// end when empty; 1 output; 2 error output; 3 exit code, four bytes; 4 why it could not run), four bytes of length
/// (big endian), the payload (at most 64 KiB).
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
    Ok(switch(upgrade, permit, move |upgraded| async move {
        // Either end may break the connection at any time: that is how TCP ends.
        let _ = proxy::join(TokioIo::new(upgraded), machine, Patience::DEFAULT).await;
    }))
}
