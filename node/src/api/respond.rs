//! Answers: JSON with an ETag, problems, and the two shapes of a failure.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::failure::{Class, Failure};
use super::types::{Operation, Problem};

/// The content type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let problem = Problem::from(&self);
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if self.class == Class::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.class == Class::Busy {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        // For the gate, which knows the names of nodes.
        response.extensions_mut().insert(self);
        response
    }
}

/// JSON with the revision of its object as ETag.
pub struct Tagged<T> {
    /// The HTTP status.
    pub status: StatusCode,
    /// The revision.
    pub revision: u64,
    /// The body.
    pub body: T,
}

impl<T> Tagged<T> {
    /// 200.
    pub fn ok(revision: u64, body: T) -> Self {
        Tagged { status: StatusCode::OK, revision, body }
    }

    /// 201, or 200 when it was a dry run.
    pub fn created(dry_run: bool, revision: u64, body: T) -> Self {
        Tagged { status: if dry_run { StatusCode::OK } else { StatusCode::CREATED }, revision, body }
    }
}

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", self.revision)) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

/// 202 with the operation and where to follow it.
pub struct Accepted(pub Operation);

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let location = HeaderValue::from_str(&format!("/v1/operations/{}", self.0.id));
        let mut response = (StatusCode::ACCEPTED, Json(self.0)).into_response();
        if let Ok(location) = location {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}
