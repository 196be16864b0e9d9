//! One run of a client command: whom it asks, how it waits, what it says.
#![expect(clippy::disallowed_methods, reason = "reads the token file of the user, which no seam covers")]

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::Method;
use fabric::identity::Trust;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::args::{Global, Output};
use super::error::{CliError, Exit};
use super::output;
use super::progress::Progress;
use crate::api::client::{Address, Client, segment};
use crate::api::failure::{Class, Failure};
use crate::api::types::{Operation, OperationState};
use crate::config::{CA_FILE, LOCK_FILE};
use crate::limits::API_WAIT_MAX;

/// Largest token file.
const TOKEN_FILE_BYTES_MAX: u64 = 4096;
/// Largest file of CAs.
const CA_FILE_BYTES_MAX: u64 = 64 * 1024;
/// The node writes its operator's token into this file of its data directory.
pub const TOKEN_FILE: &str = "admin.token";

/// One run of a client command.
pub struct Session {
    /// The flags.
    pub global: Global,
    /// The admin port.
    pub client: Client,
    /// Data directory of the node that is asked, if it is this host's.
    own_data: Option<PathBuf>,
}

/// The first line of standard input.
///
/// # Errors
/// When it cannot be read.
pub fn first_line_of_stdin() -> Result<String, CliError> {
    let mut line = String::new();
    io::stdin().lock().take(TOKEN_FILE_BYTES_MAX).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

fn read_token(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// The token of a file that the user named. One that others can read is refused, as ssh does with its keys.
fn named_token(path: &Path) -> Result<String, CliError> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o077 != 0) {
        let words = format!("the token file {} is open to other users of this host", path.display());
        return Err(CliError::new(Exit::Denied, words).hint(format!("chmod 600 {}", path.display())));
    }
    read_token(path)
        .map_err(|error| CliError::new(Exit::Usage, format!("cannot read the token file {}: {error}", path.display())))
}

/// The operator's token of the node itself, for who may read it.
pub fn own_token(data_dir: &Path) -> Option<String> {
    read_token(&data_dir.join(TOKEN_FILE)).ok().filter(|token| !token.is_empty())
}

/// Whether a daemon uses the data directory, where that can be seen.
pub fn is_used(data_dir: &Path) -> bool {
    let Ok(file) = std::fs::File::open(data_dir.join(LOCK_FILE)) else { return false };
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockSharedNonblock).is_err()
}

/// The CAs of the named file, or of the node on this host.
fn cas(named: Option<&Path>, data_dir: &Path) -> Result<Trust, CliError> {
    const HINT: &str = "copy ca.pem from the data directory of one of the cluster's nodes, and name it by --ca";
    let path = named.map_or_else(|| data_dir.join(CA_FILE), Path::to_owned);
    let mut text = String::new();
    let read = std::fs::File::open(&path).and_then(|file| file.take(CA_FILE_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|error| {
        CliError::new(Exit::Usage, format!("cannot read the cluster's CA in {}: {error}", path.display())).hint(HINT)
    })?;
    Trust::from_pem(&text).map_err(|error| {
        CliError::new(Exit::Usage, format!("{} holds no CA of a cluster: {error}", path.display())).hint(HINT)
    })
}

impl Session {
    /// Finds the admin port and the token.
    ///
    /// # Errors
    /// Those of the configuration, of a named context and of a named token file.
    pub fn new(global: Global) -> Result<Self, CliError> {
        let global = super::context::apply(global)?;
        let (data_dir, socket) = global.place.resolve()?;
        let own = Address::Unix(socket);
        let address = global.admin.clone().unwrap_or_else(|| own.clone());
        let own_data = (address == own).then(|| data_dir.clone());
        let token = match &global.token_file {
            Some(path) if path == Path::new("-") => Some(first_line_of_stdin()?),
            Some(path) => Some(named_token(path)?),
            // Root needs none at the socket; who may read the node's own token may use it.
            None if matches!(address, Address::Unix(_)) && nix::unistd::geteuid().is_root() => None,
            // What opens this host's node is shown to no other.
            None if matches!(address, Address::Tls(_)) => None,
            None => own_token(&data_dir),
        };
        let mut client = match &address {
            Address::Tls(_) => {
                let cas = cas(global.ca.as_deref(), &data_dir)?;
                Client::new(address, token).trusting(cas)
            }
            _ => Client::new(address, token),
        };
        client.idempotency_key.clone_from(&global.idempotency_key);
        Ok(Session { client, global, own_data })
    }

    /// Says something on stderr, unless told to be quiet.
    pub fn say(&self, words: &str) {
        if !self.global.quiet {
            let _ = writeln!(anstream::stderr(), "{words}");
        }
    }

    /// Says what a write has done, which has no data of its own: programs that read the data are told in its shape.
    ///
    /// # Errors
    /// When stdout is gone.
    pub fn say_done(&self, words: &str) -> Result<(), CliError> {
        let done = !self.global.dry_run;
        match self.global.output {
            Output::Json | Output::Yaml => {
                output::inspect(self.global.output, &serde_json::json!({ "done": done, "message": words }), "")
            }
            Output::Table | Output::Name => {
                if done {
                    self.say(words);
                }
                Ok(())
            }
        }
    }

    /// Whether no daemon uses the data directory any more, where that can be seen from here.
    pub fn daemon_has_ended(&self) -> bool {
        self.own_data.as_deref().is_none_or(|data_dir| !is_used(data_dir))
    }

    /// What is still in the data directory, after its path, where that can be seen from here. Nothing when it is gone.
    pub fn data_left(&self) -> Vec<String> {
        let Some(data_dir) = &self.own_data else { return vec![] };
        let entries = std::fs::read_dir(data_dir).into_iter().flatten().flatten();
        let mut left: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        left.sort();
        if !left.is_empty() {
            left.insert(0, data_dir.display().to_string());
        }
        left
    }

    fn say_dry(&self) {
        if self.global.dry_run {
            self.say("it would be done; nothing is changed (--dry-run)");
        }
    }

    /// The path of something of the tenant.
    pub fn tenant_path(&self, rest: &str) -> String {
        format!("/v1/tenants/{}/{rest}", segment(self.global.tenant()))
    }

    /// Writes, with `dry_run` when asked for.
    ///
    /// # Errors
    /// Those of the API.
    pub async fn write<B: Serialize, T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, CliError> {
        let path = self.with_dry_run(path);
        let answer = self.client.send(method, &path, body).await?;
        self.say_dry();
        Ok(answer)
    }

    /// Writes, when nothing is to be read from the answer.
    ///
    /// # Errors
    /// Those of the API.
    pub async fn write_only<B: Serialize>(&mut self, method: Method, path: &str, body: &B) -> Result<(), CliError> {
        let path = self.with_dry_run(path);
        self.client.send_only(method, &path, body).await?;
        self.say_dry();
        Ok(())
    }

    fn with_dry_run(&self, path: &str) -> String {
        match (self.global.dry_run, path.contains('?')) {
            (false, _) => path.to_owned(),
            (true, false) => format!("{path}?dry_run=true"),
            (true, true) => format!("{path}&dry_run=true"),
        }
    }

    /// Whether what was asked for should be waited for: never for a dry run.
    pub fn waits(&self) -> bool {
        self.global.wait && !self.global.dry_run
    }

    /// Asks before something is destroyed.
    ///
    /// # Errors
    /// `usage` when nobody can be asked, `failed` when the answer is no.
    pub fn confirm(&self, what: &str) -> Result<(), CliError> {
        if self.global.yes || self.global.dry_run {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(
                CliError::new(Exit::Usage, format!("{what}: nobody can be asked here")).hint("repeat it with --yes")
            );
        }
        let _ = write!(anstream::stderr(), "{what}? [y/N] ");
        match first_line_of_stdin()?.to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(CliError::new(Exit::Failed, "nothing was done")),
        }
    }

    /// Asks again and again for what one request waits for a while, until `--timeout`. `path` lacks its `timeout_ms`.
    /// None when the API answered that it is gone, as wanted. `look` shows how far it is, for a user who waits no longer.
    ///
    /// # Errors
    /// Those of the API; `timeout` with the last reason.
    pub async fn wait_for<T: DeserializeOwned>(&mut self, path: &str, look: &str) -> Result<Option<T>, CliError> {
        tokio::select! {
            biased;
            interrupted = interrupted(look) => Err(interrupted),
            waited = self.wait_on(path) => waited,
        }
    }

    async fn wait_on<T: DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, CliError> {
        let progress = Progress::new(self.global.quiet);
        let deadline = tokio::time::Instant::now() + self.global.timeout;
        // A look now and then, so that the progress moves.
        let step = API_WAIT_MAX.min(Duration::from_secs(1));
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let patience = left.min(step).as_millis();
            match self.client.get_or_gone(&format!("{path}&timeout_ms={patience}")).await {
                Err(failure) if failure.class == Class::Timeout && !left.is_zero() => {
                    progress.say(&failure.refusal.message);
                }
                Err(mut failure) if failure.class == Class::Timeout && left.is_zero() => {
                    let last = failure.refusal.message;
                    let last = last.strip_prefix("not yet: ").unwrap_or(&last);
                    let patience = fabric::human::duration(self.global.timeout);
                    failure.refusal.message = format!("not so within {patience}: {last}");
                    return Err(failure.into());
                }
                answer => return Ok(answer?),
            }
        }
    }

    /// Follows an operation to its end.
    ///
    /// # Errors
    /// The operation's own; those of the API; `timeout`.
    pub async fn follow(&mut self, operation: Operation) -> Result<Operation, CliError> {
        let look = match operation.kind.as_str() {
            "move" => format!("smartnode machine inspect {}", operation.subject),
            _ => format!("smartnode node inspect {}", operation.subject),
        };
        tokio::select! {
            biased;
            interrupted = interrupted(&look) => Err(interrupted),
            followed = self.follow_on(operation) => followed,
        }
    }

    async fn follow_on(&mut self, operation: Operation) -> Result<Operation, CliError> {
        let progress = Progress::new(self.global.quiet);
        let mut seen = operation;
        let deadline = tokio::time::Instant::now() + self.global.timeout;
        while seen.state == OperationState::Running {
            progress.operation(&seen);
            if tokio::time::Instant::now() >= deadline {
                let words = format!("{} of {} is still at {}", seen.kind, seen.subject, seen.phase);
                return Err(CliError::new(Exit::Timeout, words).hint("it goes on; wait longer with --timeout 10m"));
            }
            let path = format!("/v1/operations/{}?wait=done&timeout_ms=200", seen.id);
            seen = match self.client.get(&path).await {
                Ok(operation) => operation,
                Err(failure) if failure.class == Class::Timeout => {
                    self.client.get(&format!("/v1/operations/{}", seen.id)).await?
                }
                Err(failure) => return Err(failure.into()),
            };
        }
        progress.operation(&seen);
        drop(progress);
        match (seen.state, seen.error.clone()) {
            (OperationState::Done, _) => Ok(seen),
            (OperationState::Cancelled, _) => {
                Err(CliError::new(Exit::Conflict, format!("{} of {} was cancelled", seen.kind, seen.subject)))
            }
            (_, Some(problem)) => Err(Failure::from(problem).into()),
            _ => Err(CliError::new(Exit::Failed, format!("{} of {} failed", seen.kind, seen.subject))),
        }
    }
}

/// Returns when the user interrupts a wait: what was asked for is not taken back by that.
async fn interrupted(look: &str) -> CliError {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without the signal's handler the interrupt ends this program by itself.
        std::future::pending::<()>().await;
    }
    CliError::new(Exit::Interrupted, "the waiting was interrupted; what was asked for goes on").hint(look.to_owned())
}
