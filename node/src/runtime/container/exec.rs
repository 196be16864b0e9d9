//! Programs beside a machine's own: a child of the daemon enters the machine (`supervisor::inside`) and relays nothing.
//! Its pipes are the program's.

use std::io;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;
use tokio::sync::oneshot;

use crate::runtime::ExecStream;
use crate::runtime::process::Process;
use crate::runtime::supervisor::ARGV0_EXEC;

/// Starts it inside the machine whose pid 1 is `process`.
///
/// # Errors
/// When this binary cannot be executed anew.
pub fn start(exe: &Path, process: Process, dir: &Path, argv: &[String]) -> io::Result<ExecStream> {
    let mut command = Command::new(exe);
    command.arg0(ARGV0_EXEC).arg(process.pid.to_string()).arg(process.start.to_string()).arg(dir).args(argv);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let missing = || io::Error::other("a pipe is missing");
    let stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let (mut tell, exit) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            status = child.wait() => {
                let _ = tell.send(status.ok().map_or(1, exit_code));
            }
            // Nobody waits any more: dropping the child kills it, and the program dies with it.
            () = tell.closed() => {}
        }
    });
    Ok(ExecStream { stdin: Box::new(stdin), stdout: Box::new(stdout), stderr: Box::new(stderr), exit })
}

fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}
