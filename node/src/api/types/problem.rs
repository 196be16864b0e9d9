//! Errors as RFC 9457 problems.

use fabric::rpc::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::failure::{Class, Failure};

/// An error (RFC 9457, `application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: `code` tells problems apart.
    #[serde(rename = "type", default = "blank")]
    pub kind: String,
    /// What kind of problem it is.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, for people.
    pub detail: String,
    /// What happened, for programs: stable, in kebab-case.
    pub code: String,
    /// The field of the request that is at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Its value, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

fn blank() -> String {
    "about:blank".into()
}

/// The field as the JSON calls it; the domain's checks speak of the thing without its unit.
fn json_field(field: &str) -> &str {
    match field {
        "cpu" => "cpu_millis",
        "memory" => "memory_bytes",
        "burst_cpu" => "burst_cpu_millis",
        "burst_memory" => "burst_memory_bytes",
        other => other,
    }
}

impl From<&Failure> for Problem {
    fn from(failure: &Failure) -> Self {
        let refusal = &failure.refusal;
        Problem {
            kind: blank(),
            title: failure.class.title().into(),
            status: failure.class.status(),
            detail: refusal.message.clone(),
            code: refusal.code.clone(),
            field: refusal.field.as_deref().map(|field| json_field(field).into()),
            value: refusal.value.clone(),
            hint: refusal.hint.clone(),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure {
            class: Class::of_status(problem.status),
            refusal: Box::new(Refusal {
                code: problem.code,
                message: problem.detail,
                field: problem.field,
                value: problem.value,
                hint: problem.hint,
            }),
        }
    }
}
