//! What a request says: how to read, how to write, which part of a list, its body. Everything that is not understood
//! is refused with the offending value.

use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query as UrlQuery, Request};
use axum::http::HeaderMap;
use axum::http::header::{HeaderName, IF_MATCH};
use axum::http::request::Parts;
use fabric::ids::IdempotencyKey;
use fabric::model::{MachineState, Name};
use fabric::rpc::Refusal;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterIn};

use super::backend::{Caller, Query, Read, Write};
use super::failure::Failure;
use super::types::parse_name;
use crate::limits::*;

/// The header of idempotency keys.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Every query parameter of the API; another one is refused.
const PARAMETERS: [&str; 16] = [
    "limit",
    "cursor",
    "label",
    "state",
    "node",
    "consistency",
    "dry_run",
    "wait",
    "wait_tolerance",
    "timeout_ms",
    "tail",
    "follow",
    "tenant",
    "port",
    "force",
    "since",
];

/// Query parameters in the order of the URL.
pub struct Params(Vec<(String, String)>);

impl Params {
    fn of(parts: &Parts) -> Result<Self, Failure> {
        let Ok(UrlQuery(pairs)) = UrlQuery::<Vec<(String, String)>>::try_from_uri(&parts.uri) else {
            return Err(Failure::invalid("query", parts.uri.query().unwrap_or(""), "key=value pairs, URL-encoded"));
        };
        match pairs.iter().find(|(key, _)| !PARAMETERS.contains(&key.as_str())) {
            Some((key, value)) => Err(Refusal::new("unknown-field", format!("there is no query parameter {key:?}"))
                .field(key, value)
                .into()),
            None => Ok(Params(pairs)),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of `key`, parsed; `rule` says what is allowed.
    ///
    /// # Errors
    /// `invalid` for a value that does not parse.
    pub fn get<T: FromStr>(&self, key: &str, rule: &str) -> Result<Option<T>, Failure> {
        self.text(key).map(|text| text.parse().map_err(|_| Failure::invalid(key, text, rule))).transpose()
    }

    /// A flag: absent is `default`.
    ///
    /// # Errors
    /// `invalid` for another value than true and false.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, Failure> {
        Ok(self.get(key, "true or false")?.unwrap_or(default))
    }
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Params::of(parts)
    }
}

fn caller(parts: &Parts) -> Result<Caller, Failure> {
    parts.extensions.get::<Caller>().cloned().ok_or_else(|| Failure::new("unauthenticated", "nobody asks"))
}

/// How to read.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes parameters in the OpenAPI document")]
pub struct ReadParams {
    /// `linearizable`: the answer reflects every write acknowledged before this request.
    consistency: Option<String>,
}

impl<S: Sync> FromRequestParts<S> for Read {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let linearizable = match Params::of(parts)?.text("consistency") {
            None | Some("stale") => false,
            Some("linearizable") => true,
            Some(other) => return Err(Failure::invalid("consistency", other, "linearizable or stale")),
        };
        Ok(Read { caller: caller(parts)?, linearizable })
    }
}

#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes parameters in the OpenAPI document")]
struct DryRun {
    /// Check everything and answer as if it were done, but change nothing.
    dry_run: Option<bool>,
}

#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "describes parameters in the OpenAPI document")]
struct WriteHeaders {
    /// A request with a known key is not done again: its first outcome is the answer.
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
    /// The ETag that the object must still have.
    #[param(rename = "If-Match")]
    if_match: Option<String>,
}

/// How to write.
#[derive(Debug)]
pub struct WriteParams;

impl IntoParams for WriteParams {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let mut all = DryRun::into_params(|| Some(ParameterIn::Query));
        all.extend(WriteHeaders::into_params(|| Some(ParameterIn::Header)));
        all
    }
}

/// The key as the ledger keeps it: bound to method and path, so that one key cannot answer for two things.
fn idempotency(parts: &Parts) -> Result<Option<IdempotencyKey>, Failure> {
    let Some(value) = parts.headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    if value.is_empty() || value.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        let rule = format!("1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes");
        return Err(Failure::invalid("Idempotency-Key", format!("{} bytes", value.len()), rule));
    }
    let mut hasher = blake3::Hasher::new();
    for part in [parts.method.as_str().as_bytes(), parts.uri.path().as_bytes(), value.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let mut key = [0; 16];
    key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(Some(IdempotencyKey(key)))
}

fn if_revision(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get(IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or("");
    if text == "*" {
        return Ok(None);
    }
    let digits = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let refused = || Failure::invalid("If-Match", text, "an ETag of this API: a revision in double quotes");
    digits.parse().map(Some).map_err(|_| refused())
}

impl<S: Sync> FromRequestParts<S> for Write {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Ok(Write {
            caller: caller(parts)?,
            idempotency: idempotency(parts)?,
            if_revision: if_revision(&parts.headers)?,
            dry_run: Params::of(parts)?.flag("dry_run", false)?,
        })
    }
}

/// Which part of a list.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes parameters in the OpenAPI document")]
pub struct ListParams {
    /// At most this many items, 1 to 1000.
    limit: Option<u32>,
    /// `next_cursor` of the part before.
    cursor: Option<String>,
    /// `key=value` or `key`; repeated ones must all hold.
    label: Option<Vec<String>>,
    /// Observed state (machines only).
    state: Option<String>,
    /// Name or id of the owner (machines only).
    node: Option<String>,
}

fn state(text: &str) -> Result<MachineState, Failure> {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};
    let from: StrDeserializer<'_, Error> = text.into_deserializer();
    serde::Deserialize::deserialize(from).map_err(|_| {
        let rule = "pending, preparing, running, frozen, restarting, stopped, exited or failed";
        Failure::invalid("state", text, rule)
    })
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let params = Params::of(parts)?;
        let rule = format!("1 to {API_LIST_MAX}");
        let limit = params.get("limit", &rule)?.unwrap_or(API_LIST_DEFAULT);
        if !(1..=API_LIST_MAX).contains(&limit) {
            return Err(Failure::invalid("limit", limit, rule));
        }
        let labels: Vec<_> = params.0.iter().filter(|(key, _)| key == "label").map(|(_, text)| label(text)).collect();
        if labels.len() > API_LABEL_FILTERS_MAX {
            return Err(Failure::invalid("label", labels.len(), format!("at most {API_LABEL_FILTERS_MAX} conditions")));
        }
        Ok(Query {
            after: params.text("cursor").map(str::to_owned),
            limit,
            labels,
            state: params.text("state").map(state).transpose()?,
            node: params.text("node").map(str::to_owned),
        })
    }
}

fn label(text: &str) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (text.to_owned(), None),
    }
}

/// How long a request waits for something.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes parameters in the OpenAPI document")]
pub struct WaitParams {
    /// Wait until it is so: `running`, `stopped` or `gone` for machines, `done` for operations.
    wait: Option<String>,
    /// Wait at most this long, up to 25000; then 504, and the client may ask again.
    timeout_ms: Option<u64>,
}

impl Params {
    /// How long to wait.
    ///
    /// # Errors
    /// `invalid` for what is no number.
    pub fn patience(&self) -> Result<Duration, Failure> {
        let asked = self.get("timeout_ms", "milliseconds")?.map_or(API_WAIT_MAX, Duration::from_millis);
        Ok(asked.min(API_WAIT_MAX))
    }
}

/// Segments of the path.
pub struct At<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for At<T> {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(At(value)),
            Err(error) => Err(Failure::invalid("path", parts.uri.path(), error.to_string())),
        }
    }
}

/// The tenant of the path, of which the caller has the rights, and the name below it.
///
/// # Errors
/// `invalid` for what is no name.
pub fn names(tenant: &str, kind: &str, name: &str) -> Result<(Name, Name), Failure> {
    Ok((parse_name("tenant", tenant)?, parse_name(kind, name)?))
}

/// The JSON body; an empty one counts as `{}`.
pub struct Input<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Input<T> {
    type Rejection = Failure;
    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, Failure> {
        // The port has read it already, within its bounds.
        let body = axum::body::to_bytes(request.into_body(), API_BODY_BYTES_MAX).await;
        let body = body.map_err(|_| too_large())?;
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        serde_json::from_slice(text).map(Input).map_err(|error| not_understood(&error))
    }
}

/// The body exceeds its bound.
pub fn too_large() -> Failure {
    Failure::new("too-large", format!("the body exceeds {}", fabric::human::bytes(API_BODY_BYTES_MAX as u64)))
        .hint("send less")
}

/// serde names a field only in its words.
fn not_understood(error: &serde_json::Error) -> Failure {
    let words = error.to_string();
    let field = words.split('`').nth(1).unwrap_or("").to_owned();
    let unknown = words.starts_with("unknown field");
    let mut refusal = Refusal::new(if unknown { "unknown-field" } else { "invalid" }, format!("body: {words}"))
        .hint("the fields are described in /v1/openapi.json");
    if unknown || words.starts_with("missing field") {
        refusal.field = Some(field);
    }
    refusal.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{CreateImage, CreateMachine, CreateTenant, CreateToken, Exec};
    use proptest::prelude::*;

    fn parts(uri: &str, header: &[u8]) -> Option<Parts> {
        let mut request = axum::http::Request::builder().uri(uri).body(()).ok()?.into_parts().0;
        let value = axum::http::HeaderValue::from_bytes(header).ok()?;
        request.headers.insert(IF_MATCH, value.clone());
        request.headers.insert(IDEMPOTENCY_KEY, value);
        Some(request)
    }

    #[test]
    fn the_field_is_found_in_the_words_of_the_parser() {
        let error = serde_json::from_str::<CreateToken>("{\"colour\":1}").unwrap_err();
        let failure = not_understood(&error);
        assert_eq!(
            (failure.refusal.code.as_str(), failure.refusal.field.as_deref()),
            ("unknown-field", Some("colour"))
        );
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\":,a-z0-9.-]{0,80}") {
            for bytes in [body.as_slice(), text.as_bytes()] {
                let _ = serde_json::from_slice::<CreateMachine>(bytes).map(|machine| machine.into_domain(None).is_ok());
                let _ = serde_json::from_slice::<CreateImage>(bytes).map(|image| image.check().is_ok());
                let _ = serde_json::from_slice::<CreateToken>(bytes).map(|token| token.check().is_ok());
                let _ = serde_json::from_slice::<Exec>(bytes).map(|exec| exec.check().is_ok());
                if let Err(error) = serde_json::from_slice::<CreateTenant>(bytes) {
                    prop_assert!(not_understood(&error).refusal.message.starts_with("body: "));
                }
            }
        }

        #[test]
        fn no_query_or_header_panics(query in "[a-z%=&0-9]{0,60}", header in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Some(parts) = parts(&format!("/v1/nodes?{query}"), &header) {
                let _ = Params::of(&parts).map(|params| (params.patience().is_ok(), params.flag("follow", true).is_ok()));
                let _ = (if_revision(&parts.headers), idempotency(&parts));
            }
        }
    }
}
