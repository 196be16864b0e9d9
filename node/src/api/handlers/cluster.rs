//! Health, version, status, metrics, this node's daemon, tokens, operations.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use fabric::ids::{OperationId, TokenId};
use fabric::limits::{ABSENCE_MAX, OPERATIONS_MAX};

use super::Shared;
use crate::api::backend::{OperationView, Query, Read, Rights, Write};
use crate::api::extract::{At, Input, ListParams, Params, ReadParams, WaitParams, WriteParams};
use crate::api::failure::Failure;
use crate::api::respond::Accepted;
use crate::api::types::*;
use crate::api::waiting::{self, Waiter};
use crate::api::{metrics, rights};

type Result<T> = std::result::Result<T, Failure>;

/// The daemon answers. Needs no token.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, description = "It answers", body = str)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The node is joined and can serve. Needs no token.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "Ready", body = str),
    (status = 503, description = "What is missing", body = Problem)))]
pub async fn readyz(State(shared): State<Shared>) -> Result<&'static str> {
    shared.backend.ready().await?;
    Ok("ready\n")
}

/// Metrics in OpenMetrics text.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, description = "OpenMetrics", body = str)))]
pub async fn metrics_text(State(shared): State<Shared>, read: Read) -> Result<impl IntoResponse> {
    rights::cluster_read(&read.caller)?;
    let text = shared.metrics.text(&shared.backend.metrics().await?);
    Ok(([(CONTENT_TYPE, metrics::OPENMETRICS)], text))
}

/// Which program this is.
#[utoipa::path(get, path = "/v1/version", tag = "cluster", responses((status = 200, body = Version)))]
pub async fn version() -> Json<Version> {
    Json(Version::of_this_program())
}

/// The node that is asked, and the cluster as it sees it.
#[utoipa::path(get, path = "/v1/status", tag = "cluster",
    params(ReadParams,
        ("wait_tolerance" = Option<u32>, Query, description = "Wait until this many voters may be lost"),
        ("timeout_ms" = Option<u64>, Query, description = "Wait at most this long, up to 25000")),
    responses((status = 200, body = Status), (status = 504, description = "Not yet", body = Problem)))]
pub async fn status(State(shared): State<Shared>, read: Read, params: Params) -> Result<Json<Status>> {
    let backend = &*shared.backend;
    let Some(wanted) = params.get::<u32>("wait_tolerance", "a small number")? else {
        return Ok(Json(backend.status(&read).await?.into()));
    };
    let mut waiter = Waiter::new(backend, params.patience()?);
    loop {
        let status = Status::from(backend.status(&read).await?);
        if status.writable && status.tolerance >= wanted {
            return Ok(Json(status));
        }
        waiter.again(&format!("tolerance is {}: {}", status.tolerance, status.summary)).await?;
    }
}

/// Stop this node's daemon; its machines go on.
#[utoipa::path(post, path = "/v1/self/stop", tag = "cluster", request_body = StopNode,
    responses((status = 202, description = "It stops"), (status = 403, body = Problem)))]
pub async fn stop(
    State(shared): State<Shared>,
    write: Write,
    Input(stop): Input<StopNode>,
) -> Result<axum::http::StatusCode> {
    rights::this_node(&write.caller)?;
    if stop.absence_ms > ABSENCE_MAX.as_millis() as u64 {
        return Err(Failure::invalid("absence_ms", stop.absence_ms, "at most one hour"));
    }
    if !write.dry_run {
        shared.backend.stop(&write.caller, stop.absence_ms).await?;
    }
    Ok(axum::http::StatusCode::ACCEPTED)
}

/// Take this node out of the cluster for good.
#[utoipa::path(post, path = "/v1/self/leave", tag = "cluster", request_body = LeaveCluster, params(WriteParams),
    responses((status = 202, body = Operation), (status = 409, body = Problem)))]
pub async fn leave(State(shared): State<Shared>, write: Write, Input(leave): Input<LeaveCluster>) -> Result<Accepted> {
    rights::this_node(&write.caller)?;
    Ok(Accepted(shared.backend.leave(&write, leave.purge).await?.into()))
}

/// Live join tokens.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", params(ListParams, ReadParams),
    responses((status = 200, body = List<Token>)))]
pub async fn list_tokens(State(shared): State<Shared>, read: Read, query: Query) -> Result<Json<List<Token>>> {
    rights::operator(&read.caller)?;
    let page = shared.backend.list_tokens(&read, &query).await?;
    Ok(Json(List::of(page, |token| token.id.to_string())))
}

/// Make a join token. Its secret is in this answer only: a repeated `Idempotency-Key` makes no other token and is refused.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = CreateToken, params(WriteParams),
    responses((status = 201, body = NewTokenAnswer), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn create_token(
    State(shared): State<Shared>,
    write: Write,
    Input(token): Input<CreateToken>,
) -> Result<(axum::http::StatusCode, Json<NewTokenAnswer>)> {
    rights::operator(&write.caller)?;
    let made = shared.backend.create_token(&write, token.check()?).await?;
    Ok((axum::http::StatusCode::CREATED, Json(made.into())))
}

/// Revoke a join token.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(WriteParams, ("id" = String, Path)),
    responses((status = 204, description = "Revoked"), (status = 404, body = Problem)))]
pub async fn revoke_token(
    State(shared): State<Shared>,
    write: Write,
    At(id): At<String>,
) -> Result<axum::http::StatusCode> {
    rights::operator(&write.caller)?;
    let id: TokenId = id.parse().map_err(|_| Failure::invalid("token", &id, "16 hexadecimal digits"))?;
    shared.backend.revoke_token(&write, id).await?;
    Ok(axum::http::StatusCode::NO_CONTENT)
}

fn operation_id(text: &str) -> Result<OperationId> {
    text.parse().map_err(|_| Failure::invalid("operation", text, "32 hexadecimal digits"))
}

fn may_see(shared: &Shared, read: &Read, view: &OperationView) -> Result<()> {
    match &view.tenant {
        Some(tenant) if matches!(read.caller.rights, Rights::Tenant(_)) => {
            rights::tenant(&*shared.backend, &read.caller, tenant)
        }
        _ => rights::cluster_read(&read.caller),
    }
}

/// Operations of the node that is asked.
#[utoipa::path(get, path = "/v1/operations", tag = "operations", params(ListParams),
    responses((status = 200, body = List<Operation>)))]
pub async fn list_operations(State(shared): State<Shared>, read: Read, query: Query) -> Result<Json<List<Operation>>> {
    // All that are remembered, so that a page is cut from what the caller may see.
    let all = Query { limit: OPERATIONS_MAX, ..query.clone() };
    let mut page = shared.backend.list_operations(&read, &all).await?;
    page.items.retain(|view| may_see(&shared, &read, view).is_ok());
    page.more = page.items.len() > query.limit;
    page.items.truncate(query.limit);
    Ok(Json(List::of(page, |view| view.id.to_string())))
}

/// One operation; with `wait=done`, once it has ended.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "operations", params(WaitParams, ("id" = String, Path)),
    responses((status = 200, body = Operation), (status = 404, body = Problem), (status = 504, body = Problem)))]
pub async fn operation(
    State(shared): State<Shared>,
    read: Read,
    params: Params,
    At(id): At<String>,
) -> Result<Json<Operation>> {
    let id = operation_id(&id)?;
    let backend = &*shared.backend;
    let wait = match params.get::<String>("wait", "done")?.as_deref() {
        None => false,
        Some("done") => true,
        Some(other) => return Err(Failure::invalid("wait", other, "done")),
    };
    let mut waiter = Waiter::new(backend, params.patience()?);
    loop {
        let view = backend.operation(&read, id).await?;
        may_see(&shared, &read, &view)?;
        match waiting::operation(&view).filter(|_| wait) {
            None => return Ok(Json(view.into())),
            Some(reason) => waiter.again(&reason).await?,
        }
    }
}

/// Ask an operation to stop.
#[utoipa::path(delete, path = "/v1/operations/{id}", tag = "operations", params(WriteParams, ("id" = String, Path)),
    responses((status = 202, body = Operation), (status = 409, body = Problem)))]
pub async fn cancel_operation(State(shared): State<Shared>, write: Write, At(id): At<String>) -> Result<Accepted> {
    let id = operation_id(&id)?;
    let read = Read { caller: write.caller.clone(), linearizable: false };
    let view = shared.backend.operation(&read, id).await?;
    match &view.tenant {
        Some(tenant) => rights::tenant(&*shared.backend, &write.caller, tenant)?,
        None => rights::cluster_read(&write.caller)?,
    }
    Ok(Accepted(shared.backend.cancel_operation(&write, id).await?.into()))
}
