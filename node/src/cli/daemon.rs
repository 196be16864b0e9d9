//! Where a daemon begins: in the foreground, or in the background with its log in the data directory.
#![expect(clippy::disallowed_methods, reason = "prepares the process of the daemon before there are seams")]

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use super::Daemon;
use super::args::{Global, NodeRun};
use super::error::{CliError, Exit};
use super::logfile::{self, LOG_FILE, LogFile};
use super::progress::Progress;
use super::session::{is_used, own_token};
use crate::api::client::{Address, Client};
use crate::api::types::Status;
use crate::config::{LogFormat, NodeOptions, Start};

/// Set for a daemon in the background: it leaves the terminal's session.
const DETACHED: &str = "SMARTNODE_DETACHED";
/// Last bytes of the log that are shown when a daemon did not get ready.
const LOG_TAIL_BYTES: u64 = 4096;
/// How often a daemon in the background is asked whether it is ready.
const LOOK: Duration = Duration::from_millis(50);

/// init, join and start.
pub fn run(global: &Global, run: NodeRun, daemon: Daemon) -> Result<(), CliError> {
    let options = NodeOptions::resolve(&global.place, run.node)?;
    if run.detach {
        return detach(global, &options, &run.start);
    }
    let mut file = None;
    if std::env::var_os(DETACHED).is_some() {
        // Fails only for the leader of a group, which is then no terminal's either.
        let _ = nix::unistd::setsid();
        file = Some(LogFile::of_process(&options.data_dir)?);
    }
    log(options.log_format, file);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build()?;
    runtime.block_on(daemon(options, run.start))
}

/// Threads that run the daemon's tasks: half of the cores, since the machines are what a host is there for. Waking one
/// thread more than there is work for is also most of what an idle daemon costs.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

/// The log goes to stderr, or to the file of a daemon in the background; `SMARTNODE_LOG` chooses what.
fn log(format: LogFormat, file: Option<LogFile>) {
    let filter = EnvFilter::try_from_env("SMARTNODE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = file.is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let writer = match file {
        Some(file) => BoxMakeWriter::new(Mutex::new(file)),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => builder.with_ansi(ansi).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Runs the same command again without `--detach`, and waits until it is ready.
fn detach(global: &Global, options: &NodeOptions, start: &Start) -> Result<(), CliError> {
    // The daemon that is there would answer for the one that cannot begin.
    if is_used(&options.data_dir) {
        return Err(CliError::in_use(&options.data_dir));
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&options.data_dir)
        .map_err(|error| CliError::unusable(&options.data_dir, &error))?;
    let log = options.data_dir.join(LOG_FILE);
    let mut file = logfile::open(&log).map_err(|error| CliError::unusable(&options.data_dir, &error))?;
    let begin = file.seek(SeekFrom::End(0))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments_of_the_daemon(std::env::args_os().skip(1)));
    // The token may have come by standard input, which is read already; and arguments are seen by everybody.
    if let Start::Join { token, .. } = start {
        command.env("SMARTNODE_TOKEN", token);
    }
    command.env(DETACHED, "1").stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let child = command.spawn()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(wait_ready(global, options, child, &log, begin))?;
    if !global.quiet {
        let _ = writeln!(
            anstream::stderr(),
            "node {} is ready at {}; its log: {}",
            status.node,
            status.address,
            log.display()
        );
        let _ = writeln!(anstream::stderr(), "{}", status.summary);
    }
    Ok(())
}

/// Those of this process without `--detach` and the token.
fn arguments_of_the_daemon(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = vec![];
    let mut is_token = false;
    for argument in arguments {
        let hidden = is_token || argument == "--detach" || argument.as_encoded_bytes().starts_with(b"--token=");
        is_token = !is_token && argument == "--token";
        if !hidden && !is_token {
            kept.push(argument);
        }
    }
    kept
}

async fn wait_ready(
    global: &Global,
    options: &NodeOptions,
    mut child: Child,
    log: &Path,
    begin: u64,
) -> Result<Status, CliError> {
    let progress = Progress::new(global.quiet);
    let deadline = tokio::time::Instant::now() + global.timeout;
    let socket: PathBuf = options.admin_socket.clone();
    loop {
        if let Some(status) = child.try_wait()? {
            let exit = match status.code() {
                Some(2) => Exit::Usage,
                Some(3) => Exit::NotFound,
                Some(4) => Exit::Denied,
                Some(5) => Exit::Conflict,
                Some(6) => Exit::Timeout,
                Some(7) => Exit::Unreachable,
                _ => Exit::Failed,
            };
            let words = format!("the daemon ended ({status}). Its last words:\n{}", tail(log, begin));
            return Err(CliError::new(exit, words.trim_end()).hint(format!("its log: {}", log.display())));
        }
        let mut client = Client::new(Address::Unix(socket.clone()), own_token(&options.data_dir));
        client.timeout = Duration::from_secs(2);
        match client.get_text("/readyz").await {
            Ok(_) => match client.get("/v1/status").await {
                Ok(status) => return Ok(status),
                Err(failure) => progress.say(&failure.refusal.message),
            },
            Err(failure) if failure.refusal.code == "unreachable" => progress.say("starting"),
            Err(failure) => progress.say(&failure.refusal.message),
        }
        if tokio::time::Instant::now() >= deadline {
            let said = tail(log, begin);
            let words = match said.trim() {
                "" => "the daemon is not ready yet, and has said nothing so far".to_owned(),
                said => format!("the daemon is not ready yet. Its last words:\n{said}"),
            };
            return Err(CliError::new(Exit::Timeout, words.trim_end()).hint(format!(
                "it goes on (process {}): smartnode status; its log: {}",
                child.id(),
                log.display()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the log got since `begin`, at most its last 4 KiB.
fn tail(log: &Path, begin: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = OpenOptions::new().read(true).open(log)?;
        let end = file.seek(SeekFrom::End(0))?;
        // A log that was put aside meanwhile begins anew.
        let begin = if begin > end { 0 } else { begin };
        file.seek(SeekFrom::Start(begin.max(end.saturating_sub(LOG_TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Exit};
    use super::*;

    #[test]
    fn no_daemon_begins_in_the_background_where_another_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(directory.path().join(crate::config::LOCK_FILE)).unwrap();
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
        let cli = Cli::try_parse_from(["smartnode", "version"]).unwrap();
        let place = crate::config::PlaceArgs { data_dir: Some(directory.path().into()), config: None };
        let options = NodeOptions::resolve(&place, crate::config::NodeArgs::default()).unwrap();
        let error = detach(&cli.global, &options, &Start::Start).unwrap_err();
        assert_eq!(error.exit, Exit::Conflict, "{error}");
        assert!(!directory.path().join(LOG_FILE).exists(), "nothing was begun");
        drop(lock);
        assert!(!is_used(directory.path()));
    }

    #[test]
    fn a_data_directory_that_cannot_be_made_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let cli = Cli::try_parse_from(["smartnode", "version"]).unwrap();
        let data = directory.path().join("file/data");
        let place = crate::config::PlaceArgs { data_dir: Some(data.clone()), config: None };
        let options = NodeOptions::resolve(&place, crate::config::NodeArgs::default()).unwrap();
        let error = detach(&cli.global, &options, &Start::Init).unwrap_err();
        assert!(error.cause.contains(data.to_str().unwrap()), "{error}");
        assert!(error.hint.unwrap().contains("--data-dir"));
        let denied = CliError::unusable(&data, &std::io::ErrorKind::PermissionDenied.into());
        assert_eq!(denied.exit, Exit::Denied);
    }

    #[test]
    fn the_background_process_shows_no_token() {
        let typed = ["join", "n1:7420", "--detach", "--token", "sn1-x", "--zone", "a", "--token=sn1-y"];
        let kept = arguments_of_the_daemon(typed.iter().map(Into::into));
        assert_eq!(kept, ["join", "n1:7420", "--zone", "a"]);
    }
}
