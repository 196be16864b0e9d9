//! One run of the machine: its pid 1, from clone to the exit code.
#![expect(clippy::disallowed_methods, reason = "writes the id maps of a process, which is the kernel")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, write};
use std::os::fd::AsRawFd;

use super::init;
use crate::runtime::cgroup::Group;
use crate::runtime::limits::UIDS_PER_MACHINE;
use crate::runtime::record::LaunchRecord;
use crate::runtime::{rootfs, sys};

const NAMESPACES: i32 =
    libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;

/// Where the machine writes, kept across its restarts.
#[derive(Debug)]
pub struct Output {
    /// Write end of the pipe for standard output.
    pub stdout: OwnedFd,
    /// Write end of the pipe for standard error.
    pub stderr: OwnedFd,
}

/// What pid 1 said.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// The program runs.
    Running,
    /// It could not be started.
    Failed(String),
    /// It ended with this code.
    Exited(i32),
}

/// A running pid 1. It must be reaped by the supervisor's loop.
#[derive(Debug)]
pub struct Machine {
    /// As the host numbers it; ours until it is reaped, so it cannot be anybody else's.
    pub pid: Pid,
    /// Kills for want of memory before this run.
    pub oom_kills_before: u64,
    socket: OwnedFd,
}

impl Machine {
    /// Clones pid 1 into its namespaces and control group, mounts the overlay the first time, lets it go.
    ///
    /// # Errors
    /// Names the step; nothing is left running then.
    pub fn launch(launch: &LaunchRecord, group: &dyn Group, output: &Output, mounted: &mut bool) -> io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let birthplace = group.birthplace();
        let Some(pid) = sys::fork_into(NAMESPACES, birthplace.as_ref().map(AsFd::as_fd))? else {
            let kept = sys::keep_only([&theirs, &output.stdout, &output.stderr]);
            let Ok([supervisor, stdout, stderr]) = kept else { sys::exit_now(1) };
            let joins = birthplace.is_none().then_some(group);
            init::main(&init::Given { launch, joins, supervisor, stdout, stderr });
        };
        let machine = Machine { pid, oom_kills_before: group.oom_kills(), socket: ours };
        match machine.set_up(launch, mounted) {
            Ok(()) => Ok(machine),
            Err(error) => {
                machine.kill();
                let _ = waitpid(pid, None);
                Err(error)
            }
        }
    }

    fn set_up(&self, launch: &LaunchRecord, mounted: &mut bool) -> io::Result<()> {
        let base = launch.uid_base();
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", self.pid);
            std::fs::write(&path, format!("0 {base} {UIDS_PER_MACHINE}"))
                .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        }
        if !*mounted {
            let image = CString::new(launch.rootfs.as_bytes())?;
            rootfs::mount_overlay(&image, &rootfs::user_namespace(self.pid)?, base)?;
            *mounted = true;
        }
        write(&self.socket, &[init::GO])?;
        Ok(())
    }

    /// The descriptor to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next message, if there is one.
    pub fn message(&self) -> Option<Message> {
        let mut bytes = [0; 512];
        let count = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
        match bytes[..count] {
            [init::RUNNING] => Some(Message::Running),
            [init::EXITED, a, b, c, d] => Some(Message::Exited(i32::from_le_bytes([a, b, c, d]))),
            [init::FAILED, ref text @ ..] => Some(Message::Failed(String::from_utf8_lossy(text).into_owned())),
            _ => None,
        }
    }

    /// Has pid 1 send a signal to the program.
    pub fn signal(&self, signal: i32) {
        let _ = write(&self.socket, &[init::SIGNAL, u8::try_from(signal).unwrap_or(0)]);
    }

    /// Kills pid 1, and so everything in its pid namespace.
    pub fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

/// Reaps one child that has ended.
pub fn reap() -> Option<(Pid, WaitStatus)> {
    let status = waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)).ok()?;
    Some((status.pid()?, status))
}
