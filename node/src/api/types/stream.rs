//! Events, logs, exec and forward.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::backend::{self, EventView, ExecQuery};
use crate::api::failure::Failure;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Resume after this event with it (`Last-Event-ID`), on any node.
    pub cursor: String,
    /// When.
    pub at_ms: u64,
    /// Stable, in kebab-case.
    pub kind: String,
    /// Tenant of what it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Name of what it is about.
    pub subject: String,
    /// Whose credential caused it; absent for what this node alone saw, such as another node's death.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// For people.
    pub message: String,
}

impl From<EventView> for Event {
    fn from(view: EventView) -> Self {
        Event {
            cursor: view.cursor,
            at_ms: view.at_ms,
            kind: view.kind,
            tenant: view.tenant.map(|tenant| tenant.to_string()),
            subject: view.subject,
            actor: view.actor,
            message: view.message,
        }
    }
}

/// A line that a machine printed: one JSON object per line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When; 0 when unknown.
    pub at_ms: u64,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line without its end.
    pub text: String,
}

impl From<backend::LogLine> for LogLine {
    fn from(line: backend::LogLine) -> Self {
        let stream = if line.stderr { "stderr" } else { "stdout" };
        LogLine { at_ms: line.at_ms, stream: stream.into(), text: line.text }
    }
}

/// A program to run inside a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Standard input is sent; otherwise it is empty.
    #[serde(default)]
    pub stdin: bool,
}

impl Exec {
    /// Checks the limits.
    ///
    /// # Errors
    /// `invalid`, with the field.
    pub fn check(self) -> Result<ExecQuery, Failure> {
        use fabric::limits::{COMMAND_ARGS_MAX, COMMAND_BYTES_MAX};
        if self.argv.first().is_none_or(String::is_empty) || self.argv.len() > COMMAND_ARGS_MAX {
            let rule = format!("a program and at most {COMMAND_ARGS_MAX} arguments");
            return Err(Failure::invalid("argv", self.argv.len(), rule));
        }
        let bytes = self.argv.iter().map(String::len).sum::<usize>();
        if bytes > COMMAND_BYTES_MAX || self.argv.iter().any(|arg| arg.contains('\0')) {
            let rule = format!("at most {COMMAND_BYTES_MAX} bytes, none of them zero");
            return Err(Failure::invalid("argv", format!("{bytes} bytes"), rule));
        }
        Ok(ExecQuery { argv: self.argv, stdin: self.stdin })
    }
}
