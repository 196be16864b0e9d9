//! Nodes.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Shared;
use crate::api::backend::{Query, Read, Write};
use crate::api::extract::{At, ListParams, Params, ReadParams, WriteParams};
use crate::api::failure::Failure;
use crate::api::respond::{Accepted, Tagged};
use crate::api::rights;
use crate::api::types::{Answer, List, Node, Operation, Problem};

type Result<T> = std::result::Result<T, Failure>;

/// Admitted nodes by name.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", params(ListParams, ReadParams),
    responses((status = 200, body = List<Node>)))]
pub async fn list(State(shared): State<Shared>, read: Read, query: Query) -> Result<Json<List<Node>>> {
    rights::cluster_read(&read.caller)?;
    let page = shared.backend.list_nodes(&read, &query).await?;
    Ok(Json(List::of(page, |view| view.record.name.to_string())))
}

/// One node, by name or id.
#[utoipa::path(get, path = "/v1/nodes/{node}", tag = "nodes", params(ReadParams, ("node" = String, Path)),
    responses((status = 200, body = Answer<Node>), (status = 404, body = Problem)))]
pub async fn inspect(State(shared): State<Shared>, read: Read, At(node): At<String>) -> Result<Tagged<Answer<Node>>> {
    rights::cluster_read(&read.caller)?;
    let one = shared.backend.node(&read, &node).await?;
    Ok(Tagged::ok(one.item.record.revision, Answer::of(one)))
}

async fn set_cordon(shared: Shared, write: Write, node: String, cordoned: bool) -> Result<Tagged<Answer<Node>>> {
    rights::about_node(&*shared.backend, &write.caller, &node).await?;
    let one = shared.backend.cordon(&write, &node, cordoned).await?;
    Ok(Tagged::ok(one.item.record.revision, Answer::of(one)))
}

/// Place no new machines there.
#[utoipa::path(post, path = "/v1/nodes/{node}/cordon", tag = "nodes", params(WriteParams, ("node" = String, Path)),
    responses((status = 200, body = Answer<Node>), (status = 404, body = Problem)))]
pub async fn cordon(State(shared): State<Shared>, write: Write, At(node): At<String>) -> Result<Tagged<Answer<Node>>> {
    set_cordon(shared, write, node, true).await
}

/// Place machines there again; ends draining, too.
#[utoipa::path(post, path = "/v1/nodes/{node}/uncordon", tag = "nodes", params(WriteParams, ("node" = String, Path)),
    responses((status = 200, body = Answer<Node>), (status = 404, body = Problem)))]
pub async fn uncordon(
    State(shared): State<Shared>,
    write: Write,
    At(node): At<String>,
) -> Result<Tagged<Answer<Node>>> {
    set_cordon(shared, write, node, false).await
}

/// Cordon, and move every machine away.
#[utoipa::path(post, path = "/v1/nodes/{node}/drain", tag = "nodes", params(WriteParams, ("node" = String, Path)),
    responses((status = 202, body = Operation), (status = 404, body = Problem)))]
pub async fn drain(State(shared): State<Shared>, write: Write, At(node): At<String>) -> Result<Accepted> {
    rights::about_node(&*shared.backend, &write.caller, &node).await?;
    Ok(Accepted(shared.backend.drain(&write, &node).await?.into()))
}

/// Remove a node: its certificate is void everywhere.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "nodes",
    params(WriteParams, ("node" = String, Path),
        ("force" = Option<bool>, Query, description = "Although it owns machines: they start elsewhere")),
    responses((status = 204, description = "Removed"), (status = 409, body = Problem)))]
pub async fn remove(
    State(shared): State<Shared>,
    write: Write,
    params: Params,
    At(node): At<String>,
) -> Result<StatusCode> {
    rights::operator(&write.caller)?;
    shared.backend.remove_node(&write, &node, params.flag("force", false)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
