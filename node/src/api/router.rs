//! Which path leads to which handler; the OpenAPI document comes from the same table.

use std::sync::OnceLock;

use axum::Router;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use fabric::rpc::Refusal;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Info, License, OpenApi, SecurityRequirement};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::failure::{Class, Failure};
use super::handlers::{Shared, cluster, machines, nodes, streams, tenants};

fn table() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(cluster::healthz))
        .routes(routes!(cluster::readyz))
        .routes(routes!(cluster::metrics_text))
        .routes(routes!(cluster::version))
        .routes(routes!(cluster::status))
        .routes(routes!(cluster::stop))
        .routes(routes!(cluster::leave))
        .routes(routes!(cluster::list_tokens, cluster::create_token))
        .routes(routes!(cluster::revoke_token))
        .routes(routes!(cluster::list_operations))
        .routes(routes!(cluster::operation, cluster::cancel_operation))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::inspect, nodes::remove))
        .routes(routes!(nodes::cordon))
        .routes(routes!(nodes::uncordon))
        .routes(routes!(nodes::drain))
        .routes(routes!(tenants::list, tenants::create))
        .routes(routes!(tenants::inspect, tenants::delete))
        .routes(routes!(tenants::list_images, tenants::create_image))
        .routes(routes!(tenants::delete_image))
        .routes(routes!(machines::list, machines::create))
        .routes(routes!(machines::inspect, machines::update, machines::delete))
        .routes(routes!(machines::start))
        .routes(routes!(machines::stop))
        .routes(routes!(machines::restart))
        .routes(routes!(machines::relocate))
        .routes(routes!(streams::logs))
        .routes(routes!(streams::exec))
        .routes(routes!(streams::forward))
        .routes(routes!(streams::events))
}

/// The OpenAPI 3.1 document.
pub fn openapi() -> OpenApi {
    let (_, mut api) = table().split_for_parts();
    let mut info = Info::new("smartnode", "v1");
    info.description = Some(
        "The admin API of a smartnode. Any node answers for the whole cluster. Errors are RFC 9457 problems.".into(),
    );
    let mut license = License::new("MIT OR Apache-2.0");
    license.identifier = Some("MIT OR Apache-2.0".into());
    info.license = Some(license);
    api.info = info;
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    api.components.get_or_insert_default().add_security_scheme("token", bearer);
    api.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    api
}

/// The document as it is checked in and served.
pub fn openapi_json() -> &'static str {
    static JSON: OnceLock<String> = OnceLock::new();
    JSON.get_or_init(|| {
        let mut text = openapi().to_pretty_json().unwrap_or_default();
        text.push('\n');
        text
    })
}

async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], openapi_json())
}

async fn no_such_path(request: Request) -> Failure {
    let path = request.uri().path().to_owned();
    Failure::new("not-found", format!("there is no path {path}")).hint("the paths are described in /v1/openapi.json")
}

async fn no_such_method(request: Request) -> Failure {
    let words = format!("{} is not possible at {}", request.method(), request.uri().path());
    let refusal = Refusal::new("no-such-method", words).hint("the methods are described in /v1/openapi.json");
    Failure { class: Class::Method, refusal: Box::new(refusal) }
}

/// The whole service.
pub fn router(shared: Shared) -> Router {
    let (router, _) = table().split_for_parts();
    router
        .route("/v1/openapi.json", get(document))
        .method_not_allowed_fallback(no_such_method)
        .fallback(no_such_path)
        .with_state(shared)
}
