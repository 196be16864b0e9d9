//! Pid 1 of a machine: enters the root, starts the program, reaps, passes signals on, says how it ended.
//!
//! It runs in all the machine's namespaces with the rights of the machine's root there, and holds nothing of the host but
//! the output pipes and a socket to the supervisor. When that socket closes, the supervisor is dead and it exits, which
//! kills every process of the machine.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{
    Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdout, execve, read, setgroups, setresgid, setresuid, write,
};

use crate::runtime::cgroup::Group;
use crate::runtime::record::LaunchRecord;
use crate::runtime::{confine, rootfs, sys};

/// From the supervisor: namespaces are mapped and the overlay is mounted.
pub const GO: u8 = b'G';
/// From the supervisor: a signal for the program, in the next byte.
pub const SIGNAL: u8 = b'S';
/// From pid 1: the program runs.
pub const RUNNING: u8 = b'R';
/// From pid 1: it could not be started; the rest of the message says why.
pub const FAILED: u8 = b'F';
/// From pid 1: the program ended; four bytes of exit code follow.
pub const EXITED: u8 = b'X';

/// What pid 1 is given.
pub struct Given<'a> {
    /// The launch.
    pub launch: &'a LaunchRecord,
    /// The control group, unless it was born there.
    pub joins: Option<&'a dyn Group>,
    /// Sequenced packets to and from the supervisor.
    pub supervisor: OwnedFd,
    /// Where standard output goes.
    pub stdout: OwnedFd,
    /// Where standard error goes.
    pub stderr: OwnedFd,
}

/// Is pid 1. Never returns: the caller is a fork of the supervisor.
pub fn main(given: &Given<'_>) -> ! {
    let code = match machine(given) {
        Ok(()) => 0,
        Err(error) => {
            let mut message = vec![FAILED];
            message.extend_from_slice(error.to_string().as_bytes());
            let _ = write(&given.supervisor, &message);
            1
        }
    };
    sys::exit_now(code)
}

fn machine(given: &Given<'_>) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Still with the host's view and rights, while the supervisor mounts the root.
    given.joins.map_or(Ok(()), |group| group.join())?;
    let mut go = [0; 2];
    if read(&given.supervisor, &mut go)? == 0 || go[0] != GO {
        return Err(io::Error::other("the supervisor is gone"));
    }
    // In the control group and with the root mounted, so that both are in view.
    let flags = nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_NEWCGROUP;
    nix::sched::unshare(flags)?;
    let root = rootfs::open_root()?;
    become_root()?;
    // Changing user ids has cleared it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    rootfs::enter(&root, given.launch.name.as_str())?;
    drop(root);
    sys::loopback_up()?;
    let program = start(given)?;
    write(&given.supervisor, &[RUNNING])?;
    let code = reap(given, program)?;
    let mut message = vec![EXITED];
    message.extend_from_slice(&code.to_le_bytes());
    write(&given.supervisor, &message)?;
    Ok(())
}

/// Root of the user namespace that this process is in.
pub fn become_root() -> io::Result<()> {
    setgroups(&[])?;
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
    Ok(())
}

/// Forks the program and waits until it executes.
fn start(given: &Given<'_>) -> io::Result<Pid> {
    let (says, tells) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let Some(program) = sys::fork()? else {
        let error = become_program(given);
        let _ = write(&tells, error.to_string().as_bytes());
        sys::exit_now(127);
    };
    drop(tells);
    // Closed by a successful exec, or else it says what failed.
    let mut reason = [0; 512];
    match read(&says, &mut reason)? {
        0 => Ok(program),
        count => Err(io::Error::other(String::from_utf8_lossy(&reason[..count]).into_owned())),
    }
}

fn become_program(given: &Given<'_>) -> io::Error {
    let prepare = || -> io::Result<()> {
        nix::unistd::setsid()?;
        dup2_stdout(&given.stdout)?;
        dup2_stderr(&given.stderr)?;
        Ok(())
    };
    if let Err(error) = prepare() {
        return error;
    }
    execute(&given.launch.command, &given.launch.env, &given.launch.workdir)
}

/// Confines this process and executes the program in it. Gives back only an error.
pub fn execute(command: &[String], env: &[(String, String)], workdir: &str) -> io::Error {
    let attempt = || -> io::Result<std::convert::Infallible> {
        let named = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        chdir(workdir).map_err(|errno| named(workdir, errno.into()))?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        reset_signals()?;
        let (program, rest) = command.split_first().ok_or_else(|| io::Error::other("no program: give a command"))?;
        let strings = |texts: &mut dyn Iterator<Item = String>| -> io::Result<Vec<CString>> {
            texts.map(|text| CString::new(text).map_err(io::Error::from)).collect()
        };
        let argv = strings(&mut std::iter::once(program.clone()).chain(rest.iter().cloned()))?;
        let envp = strings(&mut env.iter().map(|(key, value)| format!("{key}={value}")))?;
        let candidates = candidates(program, env)?;
        confine::confine()?;
        // Every other descriptor closes itself at exec.
        let mut worst = Errno::ENOENT;
        for path in candidates {
            let Err(errno) = execve(&path, &argv, &envp);
            if errno != Errno::ENOENT && errno != Errno::ENOTDIR {
                worst = errno;
            }
        }
        Err(named(program, worst.into()))
    };
    match attempt() {
        Err(error) => error,
    }
}

fn reset_signals() -> io::Result<()> {
    // SAFETY: no handler is installed; the default is what a new program expects, Rust's start-up ignores SIGPIPE.
    #[expect(unsafe_code, reason = "calls the kernel")]
    unsafe {
        signal(Signal::SIGPIPE, SigHandler::SigDfl)?;
    }
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Where a program may be: its own path, or every directory of PATH.
fn candidates(program: &str, env: &[(String, String)]) -> io::Result<Vec<CString>> {
    if program.contains('/') {
        return Ok(vec![CString::new(program)?]);
    }
    let path = env.iter().find(|(key, _)| key == "PATH").map_or("/bin", |(_, value)| value.as_str());
    path.split(':').map(|dir| Ok(CString::new(format!("{dir}/{program}"))?)).collect()
}

/// Reaps everything and passes signals on until the program has ended; gives its exit code.
fn reap(given: &Given<'_>, program: Pid) -> io::Result<i32> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    // Blocked since the supervisor's start, so none is lost between fork and here.
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            match (status.pid(), sys::exit_code(status)) {
                (Some(pid), Some(code)) if pid == program => return Ok(code),
                (None, _) => break,
                _ => {}
            }
        }
        let mut fds = [
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
            PollFd::new(given.supervisor.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let asked = fds[1].any().unwrap_or(false);
        while let Ok(Some(_)) = children.read_signal() {}
        if asked {
            let mut message = [0; 2];
            if read(&given.supervisor, &mut message)? == 0 {
                return Err(io::Error::other("the supervisor is gone"));
            }
            if message[0] == SIGNAL
                && let Ok(signal) = Signal::try_from(i32::from(message[1]))
            {
                let _ = kill(program, signal);
            }
        }
    }
}
