//! Tenants and their images.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Shared;
use crate::api::backend::{Query, Read, Write};
use crate::api::extract::{At, Input, ListParams, ReadParams, WriteParams, names};
use crate::api::failure::Failure;
use crate::api::respond::Tagged;
use crate::api::rights;
use crate::api::types::{Answer, CreateImage, CreateTenant, Image, List, Problem, Tenant, parse_name};

type Result<T> = std::result::Result<T, Failure>;

/// Tenants by name.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants", params(ListParams, ReadParams),
    responses((status = 200, body = List<Tenant>)))]
pub async fn list(State(shared): State<Shared>, read: Read, query: Query) -> Result<Json<List<Tenant>>> {
    rights::operator(&read.caller)?;
    let page = shared.backend.list_tenants(&read, &query).await?;
    Ok(Json(List::of(page, |record| record.name.to_string())))
}

/// One tenant.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "tenants", params(ReadParams, ("tenant" = String, Path)),
    responses((status = 200, body = Answer<Tenant>), (status = 404, body = Problem)))]
pub async fn inspect(
    State(shared): State<Shared>,
    read: Read,
    At(tenant): At<String>,
) -> Result<Tagged<Answer<Tenant>>> {
    let tenant = parse_name("tenant", &tenant)?;
    rights::tenant(&*shared.backend, &read.caller, &tenant)?;
    let one = shared.backend.tenant(&read, &tenant).await?;
    Ok(Tagged::ok(one.item.revision, Answer::of(one)))
}

/// Make a tenant.
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = CreateTenant, params(WriteParams),
    responses((status = 201, body = Tenant), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn create(
    State(shared): State<Shared>,
    write: Write,
    Input(tenant): Input<CreateTenant>,
) -> Result<Tagged<Tenant>> {
    rights::operator(&write.caller)?;
    let name = parse_name("name", &tenant.name)?;
    let parent = tenant.parent.map(|parent| parse_name("parent", &parent)).transpose()?;
    let record = shared.backend.create_tenant(&write, name, parent, tenant.quota.into()).await?;
    Ok(Tagged::created(write.dry_run, record.revision, record.into()))
}

/// Delete an empty tenant.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}", tag = "tenants", params(WriteParams, ("tenant" = String, Path)),
    responses((status = 204, description = "Deleted"), (status = 409, body = Problem)))]
pub async fn delete(State(shared): State<Shared>, write: Write, At(tenant): At<String>) -> Result<StatusCode> {
    rights::operator(&write.caller)?;
    shared.backend.delete_tenant(&write, &parse_name("tenant", &tenant)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A tenant's images by name.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/images", tag = "images",
    params(ListParams, ReadParams, ("tenant" = String, Path)), responses((status = 200, body = List<Image>)))]
pub async fn list_images(
    State(shared): State<Shared>,
    read: Read,
    query: Query,
    At(tenant): At<String>,
) -> Result<Json<List<Image>>> {
    let tenant = parse_name("tenant", &tenant)?;
    rights::tenant(&*shared.backend, &read.caller, &tenant)?;
    let page = shared.backend.list_images(&read, &tenant, &query).await?;
    Ok(Json(List::of(page, |record| record.name.to_string())))
}

/// Pack files of the host of the node that is asked into an image. Operators only: it reads that host's files.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/images", tag = "images", request_body = CreateImage,
    params(WriteParams, ("tenant" = String, Path)),
    responses((status = 201, body = Image), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn create_image(
    State(shared): State<Shared>,
    write: Write,
    At(tenant): At<String>,
    Input(image): Input<CreateImage>,
) -> Result<Tagged<Image>> {
    rights::operator(&write.caller)?;
    let tenant = parse_name("tenant", &tenant)?;
    let (name, paths) = image.check()?;
    let record = shared.backend.image_from_host(&write, &tenant, name, paths).await?;
    Ok(Tagged::created(write.dry_run, record.revision, record.into()))
}

/// Delete an image that no machine uses.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/images/{name}", tag = "images",
    params(WriteParams, ("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 204, description = "Deleted"), (status = 409, body = Problem)))]
pub async fn delete_image(
    State(shared): State<Shared>,
    write: Write,
    At((tenant, name)): At<(String, String)>,
) -> Result<StatusCode> {
    let (tenant, name) = names(&tenant, "image", &name)?;
    rights::tenant(&*shared.backend, &write.caller, &tenant)?;
    shared.backend.delete_image(&write, &tenant, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
