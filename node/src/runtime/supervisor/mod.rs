//! The process that owns one machine: its namespaces, control group, output, restarts and lease deadline.
//!
//! It is this binary, executed anew by the daemon and detached from it, so that the daemon may die, hang and be upgraded
//! while machines run. It has one thread, no async runtime, and touches no disk while its machine runs (a child writes
//! the log): a slow disk must not delay the freeze that a lease demands. If it dies, its machine dies with it: pid 1 of
//! the machine has it as the parent-death signal and as the other end of a socket.
//!
//! It takes no decision of its own beyond [`policy`](super::policy) and [`lease`](super::lease).

mod control;
mod init;
pub mod inside;
mod logger;
mod machine;
mod probe;
mod run;

use std::io;
use std::path::Path;

pub use run::supervise;

/// What argv[0] is when this binary is to supervise; the only argument is the machine's directory.
pub const ARGV0: &str = "smartnode-supervisor";
/// What argv[0] is when this binary is to execute a program inside a machine.
pub const ARGV0_EXEC: &str = "smartnode-exec";

/// What argv[0] is when this binary is to try a directory; the only argument.
pub const ARGV0_PROBE: &str = "smartnode-probe";

/// Runs a hidden role of the binary if argv[0] asks for one: `main` calls this before anything else.
///
/// Gives the exit code, or none when this is an ordinary run.
pub fn dispatch(args: &[std::ffi::OsString]) -> Option<i32> {
    match args.first()?.to_str()? {
        ARGV0 => Some(supervisor_main(Path::new(args.get(1)?))),
        ARGV0_EXEC => Some(inside::main(&args[1..])),
        ARGV0_PROBE => Some(probe::main(Path::new(args.get(1)?))),
        _ => None,
    }
}

/// Supervises the machine of a directory until it ends; file descriptor 0 is the daemon's first connection.
pub fn supervisor_main(dir: &Path) -> i32 {
    match supervise(dir) {
        Ok(()) => 0,
        Err(error) => {
            report(&error);
            1
        }
    }
}

/// Standard error is a file in the machine's directory.
fn report(error: &io::Error) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "smartnode-supervisor: {error}");
}
