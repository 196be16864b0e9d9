//! What stands before every handler: is it meant for us (Host, Origin), who asks (token or peer uid), is it small and
//! quick enough. Only then does a request reach the router.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, Method, Request, Response};
use axum::response::IntoResponse;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Incoming};
use tower::ServiceExt;

use super::backend::{Backend, Caller};
use super::extract::too_large;
use super::failure::Failure;
use super::metrics::HttpMetrics;
use crate::limits::*;

/// Through which door a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The unix socket, with the peer's uid by `SO_PEERCRED`.
    Unix {
        /// The peer's uid.
        uid: u32,
    },
    /// The TCP port.
    Tcp,
    /// The TCP port with TLS, and the address of this host that the client has dialled.
    Tls(IpAddr),
}

/// What all connections of a port share.
pub struct Gate {
    /// The handlers.
    pub router: Router,
    /// The node.
    pub backend: Arc<dyn Backend>,
    /// Names besides loopback's under which browsers may reach the TCP port.
    pub names: Vec<String>,
    /// Counters.
    pub metrics: Arc<HttpMetrics>,
}

/// `localhost:7421` without its port, in lower case; `[::1]` keeps its brackets.
fn without_port(authority: &str) -> String {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    host.to_ascii_lowercase()
}

impl Gate {
    fn is_our_name(&self, door: Door, authority: &str) -> bool {
        let host = without_port(authority);
        // A name that was pointed at us is no address.
        if let Door::Tls(local) = door
            && host.trim_start_matches('[').trim_end_matches(']').parse() == Ok(local)
        {
            return true;
        }
        ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str())
            || self.names.iter().any(|name| name.eq_ignore_ascii_case(&host))
    }

    /// A page of another site that has a name pointed at us must not get through (DNS rebinding), nor one that simply
    /// sends requests here.
    fn meant_for_us(&self, door: Door, headers: &HeaderMap) -> Result<(), Failure> {
        let text = |value: &axum::http::HeaderValue| value.to_str().unwrap_or("").to_owned();
        if !matches!(door, Door::Unix { .. }) {
            let host = headers.get(HOST).map(text).unwrap_or_default();
            if headers.get_all(HOST).iter().count() != 1 || !self.is_our_name(door, &host) {
                return Err(fabric::rpc::Refusal::new("denied", format!("this port does not serve the host {host:?}"))
                    .field("Host", host)
                    .hint("use 127.0.0.1, or add the name to admin_names in smartnode.toml")
                    .into());
            }
        }
        if let Some(origin) = headers.get(ORIGIN).map(text) {
            let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
            if !self.is_our_name(door, authority) {
                return Err(fabric::rpc::Refusal::new("denied", format!("pages of {origin} may not use this port"))
                    .field("Origin", origin)
                    .hint("open the page from this port itself")
                    .into());
            }
        }
        Ok(())
    }

    async fn who(&self, door: Door, headers: &HeaderMap) -> Result<Caller, Failure> {
        const HOW: &str = "send Authorization: Bearer TOKEN (the command line: --token-file FILE), \
                           or use the unix socket as root";
        if let Some(value) = headers.get(AUTHORIZATION) {
            let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
            let token = token.filter(|token| !token.is_empty());
            let token = token.ok_or_else(|| Failure::new("unauthenticated", "this is no bearer token").hint(HOW))?;
            return self.backend.authenticate(token).await;
        }
        match door {
            Door::Unix { uid: 0 } => Ok(self.backend.root()),
            Door::Unix { uid } => {
                Err(Failure::new("unauthenticated", format!("user {uid} needs a token here")).hint(HOW))
            }
            Door::Tcp | Door::Tls(_) => {
                Err(Failure::new("unauthenticated", "the TCP port always needs a token").hint(HOW))
            }
        }
    }

    async fn answer(&self, door: Door, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        self.meant_for_us(door, request.headers())?;
        let open = matches!(request.uri().path(), "/healthz" | "/readyz");
        let caller = if open { None } else { Some(self.who(door, request.headers()).await?) };
        let (mut parts, body) = request.into_parts();
        parts.extensions.extend(caller.into_iter().fold(axum::http::Extensions::new(), |mut all, caller| {
            all.insert(caller);
            all
        }));
        let body = match parts.method {
            Method::GET | Method::HEAD => Bytes::new(),
            _ => read_body(body).await?,
        };
        let what = format!("{} {}", parts.method, parts.uri.path());
        let request = Request::from_parts(parts, Body::from(body));
        match tokio::time::timeout(API_REQUEST_TIMEOUT, self.router.clone().oneshot(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(never)) => match never {},
            Err(_) => Err(Failure::timeout(&what, API_REQUEST_TIMEOUT)),
        }
    }

    /// A failure that speaks of nodes by their ids says their names.
    fn in_names(&self, response: Response<Body>) -> Response<Body> {
        let Some(failure) = response.extensions().get::<Failure>() else { return response };
        let words = self.backend.in_names(&failure.refusal.message);
        if words == failure.refusal.message {
            return response;
        }
        let mut failure = failure.clone();
        failure.refusal.message = words;
        failure.into_response()
    }

    /// Serves one request.
    pub async fn serve(&self, door: Door, request: Request<Incoming>) -> Response<Body> {
        let response = self.answer(door, request).await.unwrap_or_else(IntoResponse::into_response);
        let response = self.in_names(response);
        self.metrics.answered(response.status().as_u16());
        response
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, Failure> {
    if body.size_hint().lower() > API_BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(API_BODY_TIMEOUT, Limited::new(body, API_BODY_BYTES_MAX).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Failure::invalid("body", "cut off", error.to_string())),
        Err(_) => {
            let words = format!("the body did not arrive within {}", fabric::human::duration(API_BODY_TIMEOUT));
            Err(Failure::new("slow-request", words).hint("send it at once"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::without_port;

    #[test]
    fn a_host_is_compared_without_its_port() {
        assert_eq!(without_port("LocalHost:7421"), "localhost");
        assert_eq!(without_port("[::1]:7421"), "[::1]");
        assert_eq!(without_port("[::1]"), "[::1]");
        assert_eq!(without_port("127.0.0.1"), "127.0.0.1");
        assert_eq!(without_port("localhost.evil.example"), "localhost.evil.example");
    }
}
