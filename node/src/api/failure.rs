//! Why a request was not done, and the one mapping from that to an HTTP status and an exit code.
//!
//! A [`Refusal`] keeps its stable code from the place that said no (the state machine, the scheduler, a peer) to the
//! user. Here the code gets a [`Class`]; nothing else in the API or the CLI looks at codes.

use std::time::Duration;

use fabric::model::check::Invalid;
use fabric::rpc::{CallError, Refusal};
use raft_store::codes;
use thiserror::Error;

/// What kind of failure it is: one HTTP status and one exit code each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The request breaks a rule of its own.
    Invalid,
    /// The body exceeds its bound.
    TooLarge,
    /// The client was too slow to send its request.
    Slow,
    /// No or wrong credentials.
    Unauthenticated,
    /// Credentials that do not allow this.
    Denied,
    /// What was named is not there.
    NotFound,
    /// The thing is there, but not this method on it.
    Method,
    /// The state of things forbids it now.
    Conflict,
    /// `If-Match` names another revision than the current one.
    Stale,
    /// A cursor that is too old to resume from.
    Gone,
    /// More requests at once than this node serves.
    Busy,
    /// No answer in time: a write may have been done.
    Timeout,
    /// No leader, no quorum, or the node in question does not answer: the request was not done.
    Unreachable,
    /// A defect or a broken host.
    Internal,
}

impl Class {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Class::Invalid => 422,
            Class::TooLarge => 413,
            Class::Slow => 408,
            Class::Unauthenticated => 401,
            Class::Denied => 403,
            Class::NotFound => 404,
            Class::Method => 405,
            Class::Conflict => 409,
            Class::Stale => 412,
            Class::Gone => 410,
            Class::Busy => 429,
            Class::Timeout => 504,
            Class::Unreachable => 503,
            Class::Internal => 500,
        }
    }

    /// The exit code of the command line.
    pub fn exit(self) -> u8 {
        match self {
            Class::Invalid | Class::TooLarge | Class::Method | Class::Gone | Class::Internal => 1,
            Class::NotFound => 3,
            Class::Unauthenticated | Class::Denied => 4,
            Class::Conflict | Class::Stale => 5,
            Class::Timeout | Class::Slow => 6,
            Class::Busy | Class::Unreachable => 7,
        }
    }

    /// Words for the `title` of a problem.
    pub fn title(self) -> &'static str {
        match self {
            Class::Invalid => "the request is invalid",
            Class::TooLarge => "the request is too large",
            Class::Slow => "the request came too slowly",
            Class::Unauthenticated => "credentials are missing or wrong",
            Class::Denied => "not allowed",
            Class::NotFound => "not found",
            Class::Method => "no such method here",
            Class::Conflict => "in conflict with the present state",
            Class::Stale => "the object has changed",
            Class::Gone => "no longer available",
            Class::Busy => "too many requests at once",
            Class::Timeout => "no answer in time",
            Class::Unreachable => "not available now",
            Class::Internal => "internal error",
        }
    }

    /// The class of an HTTP status, as a client reads it.
    pub fn of_status(status: u16) -> Class {
        match status {
            401 => Class::Unauthenticated,
            403 => Class::Denied,
            404 => Class::NotFound,
            405 => Class::Method,
            408 => Class::Slow,
            504 => Class::Timeout,
            409 => Class::Conflict,
            410 => Class::Gone,
            412 => Class::Stale,
            413 => Class::TooLarge,
            429 => Class::Busy,
            502 | 503 => Class::Unreachable,
            400..=499 => Class::Invalid,
            _ => Class::Internal,
        }
    }

    /// The class of a refusal's code. A code that is not listed is a conflict: the ledger heard a well-formed request
    /// and its state says no.
    pub fn of_code(code: &str) -> Class {
        match code {
            codes::INVALID | "unknown-field" | "tls-required" => Class::Invalid,
            "too-large" => Class::TooLarge,
            "slow-request" => Class::Slow,
            "no-such-method" => Class::Method,
            "unauthenticated" => Class::Unauthenticated,
            codes::DENIED | codes::NODE_REMOVED => Class::Denied,
            codes::TOKEN_WRONG | codes::TOKEN_EXPIRED | codes::TOKEN_USED_UP => Class::Denied,
            codes::REVISION => Class::Stale,
            "expired-cursor" => Class::Gone,
            "busy" => Class::Busy,
            "timeout" => Class::Timeout,
            "unreachable"
            | "unreachable-connection-lost"
            | "no-leader"
            | "not-ready"
            | "no-quorum"
            | codes::NOT_INITIALIZED => Class::Unreachable,
            "internal" | "damaged" => Class::Internal,
            codes::NOT_FOUND | codes::NO_MOVE => Class::NotFound,
            _ => Class::Conflict,
        }
    }
}

/// A request that was not done, or of which nobody knows whether it was.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", refusal.message)]
pub struct Failure {
    /// What kind.
    pub class: Class,
    /// Code, words, field, value and next step.
    pub refusal: Box<Refusal>,
}

impl Failure {
    /// A failure with a code (which decides its class) and a message.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Refusal::new(code, message).into()
    }

    /// `not-found`: `kind` is `"machine"`, `"node"` and so on.
    pub fn not_found(kind: &str, name: impl ToString) -> Self {
        let name = name.to_string();
        let hint = match kind {
            "machine" => "smartnode machine list",
            "node" => "smartnode node list",
            "tenant" => "smartnode tenant list",
            "image" => "smartnode image list",
            "token" => "smartnode token list",
            _ => "check the name",
        };
        Refusal::new("not-found", format!("there is no {kind} {name:?}")).field(kind, name).hint(hint).into()
    }

    /// `denied`.
    pub fn denied(message: impl Into<String>) -> Self {
        Failure::new("denied", message)
    }

    /// `invalid`: a field breaks a rule.
    pub fn invalid(field: &str, value: impl ToString, rule: impl Into<String>) -> Self {
        let (value, rule) = (value.to_string(), rule.into());
        let shown: String = value.chars().take(80).collect();
        // A rule that comes from a parser quotes the value already.
        let message = if rule.contains(&shown) && !shown.is_empty() {
            format!("{field}: {rule}")
        } else {
            format!("{field}: {shown:?} is not allowed, but {rule}")
        };
        Refusal::new("invalid", message).field(field, value).into()
    }

    /// `timeout`: the outcome is unknown.
    pub fn timeout(what: &str, after: Duration) -> Self {
        Failure::new("timeout", format!("{what}: no answer within {}", fabric::human::duration(after)))
            .hint("it may still have been done: look before you repeat it (with the same Idempotency-Key, where you sent one)")
    }

    /// `unreachable`: it was not done.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Failure::new("unreachable", message)
    }

    /// `internal`.
    pub fn internal(message: impl Into<String>) -> Self {
        Failure::new("internal", message)
    }

    /// Adds the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.refusal.hint = Some(hint.into());
        self
    }
}

impl From<Refusal> for Failure {
    fn from(mut refusal: Refusal) -> Self {
        let class = Class::of_code(&refusal.code);
        if class == Class::Invalid && refusal.hint.is_none() {
            refusal.hint = Some("fields and their bounds are described in /v1/openapi.json".into());
        }
        Failure { class, refusal: Box::new(refusal) }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Refusal::from(invalid).into()
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(refusal) => refusal.into(),
            CallError::Unreachable { .. } => Failure::unreachable(error.to_string()).hint("smartnode node list"),
            CallError::Timeout { .. } | CallError::Broken { .. } => Failure::new("timeout", error.to_string())
                .hint("it may still have been done: look before you repeat it"),
            CallError::Garbled { .. } => Failure::internal(error.to_string()).hint("do all nodes run one version?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_the_status_and_exit_code_of_the_design() {
        let table = [
            ("not-found", 404, 3),
            ("denied", 403, 4),
            ("unauthenticated", 401, 4),
            ("exists", 409, 5),
            ("conflict", 409, 5),
            ("in-use", 409, 5),
            ("revision", 412, 5),
            ("invalid", 422, 1),
            ("timeout", 504, 6),
            ("unreachable", 503, 7),
            ("no-leader", 503, 7),
            ("expired-cursor", 410, 1),
            ("internal", 500, 1),
        ];
        for (code, status, exit) in table {
            let class = Class::of_code(code);
            assert_eq!((class.status(), class.exit()), (status, exit), "{code}");
            assert_eq!(Class::of_status(status).exit(), exit, "a client reads {status} as the server meant it");
        }
    }
}
