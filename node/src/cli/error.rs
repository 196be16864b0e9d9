//! What a command ends with.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::api::failure::{Class, Failure};
use crate::config::ConfigError;

/// Exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed in a way that has no code of its own.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// What was named is not there.
    NotFound = 3,
    /// Not allowed.
    Denied = 4,
    /// The present state forbids it.
    Conflict = 5,
    /// No answer, or not there, in time.
    Timeout = 6,
    /// The daemon or the quorum cannot be reached.
    Unreachable = 7,
    /// The user waits no longer: the code that shells give for an interrupt.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl From<Class> for Exit {
    fn from(class: Class) -> Exit {
        match class.exit() {
            3 => Exit::NotFound,
            4 => Exit::Denied,
            5 => Exit::Conflict,
            6 => Exit::Timeout,
            7 => Exit::Unreachable,
            _ => Exit::Failed,
        }
    }
}

/// Why a command failed, in the user's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    /// The exit code.
    pub exit: Exit,
    /// The cause, with the causes behind it.
    pub cause: String,
    /// The next command to try.
    pub hint: Option<String>,
}

impl CliError {
    /// An error without a hint.
    pub fn new(exit: Exit, cause: impl Into<String>) -> Self {
        CliError { exit, cause: cause.into(), hint: None }
    }

    /// An error with everything that caused it, joined by colons.
    pub fn of(exit: Exit, error: &dyn std::error::Error) -> Self {
        let mut cause = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let words = inner.to_string();
            if !cause.ends_with(&words) {
                cause.push_str(": ");
                cause.push_str(&words);
            }
            source = inner.source();
        }
        CliError::new(exit, cause)
    }

    /// Another daemon has the data directory.
    pub fn in_use(data_dir: &Path) -> Self {
        CliError::new(Exit::Conflict, format!("another daemon uses the data directory {}", data_dir.display())).hint(
            format!("stop it (smartnode stop --data-dir {}), or give this one its own --data-dir", data_dir.display()),
        )
    }

    /// Something of the data directory cannot be read or written.
    pub fn unusable(path: &Path, error: &std::io::Error) -> Self {
        let exit = if error.kind() == std::io::ErrorKind::PermissionDenied { Exit::Denied } else { Exit::Failed };
        CliError::new(exit, format!("cannot use {}: {error}", path.display()))
            .hint("name another place: --data-dir PATH")
    }

    /// Adds the next command to try.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The lines for stderr.
    pub fn text(&self, quiet: bool) -> String {
        match &self.hint {
            Some(hint) if !quiet => format!("error: {}\n\nhint: {hint}\n", self.cause),
            _ => format!("error: {}\n", self.cause),
        }
    }

    /// Writes it to stderr.
    pub fn print(&self, quiet: bool) {
        // Nobody is left to tell when stderr is gone.
        let _ = anstream::stderr().write_all(self.text(quiet).as_bytes());
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for CliError {}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        CliError { exit: failure.class.into(), cause: failure.refusal.message, hint: failure.refusal.hint }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        CliError::of(Exit::Usage, &error).hint("smartnode start --help lists every option")
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        let exit = if error.kind() == std::io::ErrorKind::PermissionDenied { Exit::Denied } else { Exit::Failed };
        CliError::of(exit, &error)
    }
}
