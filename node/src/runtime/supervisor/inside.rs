//! Executes a program beside a machine's own: a short-lived process of the daemon, `smartnode-exec PID START DIR PROGRAM...`.
//!
//! It enters the machine's namespaces and stays outside its control group; its child is in both, confined like the
//! machine's program, and dies with it. Standard input and output are the daemon's pipes.
#![expect(clippy::disallowed_methods, reason = "reads the machine's own directory and opens control group files")]

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;

use super::init;
use crate::runtime::cgroup;
use crate::runtime::process::Process;
use crate::runtime::record::{LAUNCH, LaunchRecord};
use crate::runtime::sys;

/// The program could not be executed, as shells say it.
const NOT_EXECUTED: i32 = 127;

/// Runs it; gives its exit code.
pub fn main(args: &[OsString]) -> i32 {
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "exec: {error}");
            NOT_EXECUTED
        }
    }
}

fn run(args: &[OsString]) -> io::Result<i32> {
    let texts: Vec<String> = args.iter().filter_map(|arg| arg.clone().into_string().ok()).collect();
    let [pid, start, dir, command @ ..] = texts.as_slice() else {
        return Err(io::Error::other("usage: PID START DIR PROGRAM..."));
    };
    let process = Process::parse(&format!("{pid} {start}")).ok_or_else(|| io::Error::other("no process"))?;
    let launch: LaunchRecord =
        fabric::wire::decode(&std::fs::read(Path::new(dir).join(LAUNCH))?).map_err(io::Error::other)?;
    let host = cgroup::Host::detect().map_err(io::Error::other)?;
    let group = host.group(&launch.prefix, &launch.id.to_string());
    let joins = group
        .join_files()
        .iter()
        .map(|path| OpenOptions::new().write(true).open(path))
        .collect::<io::Result<Vec<File>>>()?;
    let target = sys::pidfd(process.nix())?;
    // The descriptor names whoever has the pid now: only if that is still the machine is it the machine's for good.
    if !process.lives() {
        return Err(io::Error::other("the machine has ended"));
    }
    let all = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    setns(&target, all)?;
    // Only a child is in the pid namespace.
    let Some(child) = sys::fork()? else {
        let error = match join(joins) {
            Ok(()) => init::execute(command, &launch.env, &launch.workdir),
            Err(error) => error,
        };
        let _ = writeln!(io::stderr(), "exec: {error}");
        sys::exit_now(NOT_EXECUTED);
    };
    Ok(sys::exit_code(waitpid(child, None)?).unwrap_or(NOT_EXECUTED))
}

fn join(groups: Vec<File>) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    for mut group in groups {
        // "0" is whoever writes; the right to do so was checked when the file was opened.
        group.write_all(b"0")?;
    }
    nix::unistd::setsid()?;
    init::become_root()?;
    // Changing user ids has cleared it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // A parent in an outer pid namespace is 0 here; 1 means that it has died already.
    if nix::unistd::getppid().as_raw() == 1 { Err(io::Error::other("the caller is gone")) } else { Ok(()) }
}
