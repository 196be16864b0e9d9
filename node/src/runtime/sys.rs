//! System calls that nix does not wrap. Thin: one function per call, errors as the kernel gives them.
#![expect(unsafe_code, reason = "this file calls the kernel")]

use std::ffi::{CStr, c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::unistd::Pid;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `clone3` as a fork into new namespaces and, where one is given, the control group of a directory; none in the child.
///
/// # Errors
/// When the kernel refuses, for example for want of a namespace.
pub fn fork_into(namespaces: c_int, group: Option<BorrowedFd<'_>>) -> io::Result<Option<Pid>> {
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and a stack this is a fork. The supervisor has one thread, so the child may go on with
    // every lock free.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}

/// A plain fork.
///
/// # Errors
/// When there are too many processes.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: only processes with a single thread call this (supervisor, its children, the exec helper).
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(None),
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child)),
    }
}

/// Ends the process at once, without running what the parent registered to run at exit.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

const OPEN_TREE_CLONE: c_uint = 1;

/// A detached copy of the mount at `path`, or of the part of it below `path`.
///
/// # Errors
/// When there is no such path.
pub fn clone_mount(path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let recursive = if recursive { libc::AT_RECURSIVE as c_uint } else { 0 };
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as c_uint | recursive;
    // SAFETY: `path` is a C string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Attaches a detached mount at `path`.
///
/// # Errors
/// When there is no such path.
pub fn attach(mount: &OwnedFd, path: &CStr) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
    // SAFETY: both strings are C strings that outlive the call, the descriptor is open.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Mount attributes.
pub mod attr {
    /// Read only.
    pub const RDONLY: u64 = 1;
    /// Set-user-id has no effect.
    pub const NOSUID: u64 = 2;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = 4;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 8;
    /// Owners are mapped by a user namespace.
    pub const IDMAP: u64 = 0x0010_0000;
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes of a detached mount; with [`attr::IDMAP`], `users` is the user namespace.
///
/// # Errors
/// When the file system does not support it.
pub fn set_mount_attr(mount: &OwnedFd, set: u64, users: Option<&OwnedFd>) -> io::Result<()> {
    let fd = users.map_or(0, |fd| fd.as_raw_fd() as u64);
    let mut args = MountAttr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: fd };
    // SAFETY: `args` has the kernel's layout and outlives the call, the descriptors are open.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw mut args,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// Makes a detached mount of a new file system.
///
/// # Errors
/// Names the option or step that was refused.
pub fn new_mount(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: c_uint = 1;
    const FSMOUNT_CLOEXEC: c_uint = 1;
    const FSCONFIG_SET_FLAG: c_uint = 0;
    const FSCONFIG_SET_STRING: c_uint = 1;
    const FSCONFIG_CMD_CREATE: c_uint = 6;
    let named = |what: &CStr| {
        let what = what.to_string_lossy().into_owned();
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    // SAFETY: `kind` is a C string that outlives the call.
    let fs = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map_err(named(kind))?;
    let config = |command: c_uint, key: *const libc::c_char, value: *const libc::c_char| {
        // SAFETY: callers pass null or C strings that outlive the call.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key, value, 0) })
    };
    for (key, value) in options {
        if value.is_empty() {
            config(FSCONFIG_SET_FLAG, key.as_ptr(), std::ptr::null()).map_err(named(key))?;
        } else {
            config(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr()).map_err(named(key))?;
        }
    }
    config(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null()).map_err(named(kind))?;
    // SAFETY: the descriptor is open.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) }).map_err(named(kind))
}

/// For a new child that never returns to its parent's code: keeps these descriptors (under new numbers) and standard
/// error, gives it /dev/null as standard input and output, and closes everything else.
///
/// # Errors
/// When there are too many open files.
pub fn keep_only<const N: usize>(keep: [&OwnedFd; N]) -> io::Result<[OwnedFd; N]> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    /// Above anything that a supervisor has open.
    const ASIDE: RawFd = 200;
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    for standard in [0, 1] {
        // SAFETY: no pointers; both numbers are this process's own.
        check(unsafe { libc::dup2(null.as_raw_fd(), standard) }.into())?;
    }
    drop(null);
    let mut aside = [0; N];
    for (slot, fd) in aside.iter_mut().zip(keep) {
        *slot = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(ASIDE))?;
    }
    for (at, fd) in aside.iter().enumerate() {
        // SAFETY: no pointers. What had the number belonged to the parent's code, which does not run here.
        check(unsafe { libc::dup3(*fd, 3 + at as c_int, libc::O_CLOEXEC) }.into())?;
    }
    // SAFETY: as above: nothing that runs in this child knows any of them.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3 + N as c_uint, c_uint::MAX, 0) })?;
    // SAFETY: just made by dup3, known to nobody else.
    Ok(std::array::from_fn(|at| unsafe { OwnedFd::from_raw_fd(3 + at as RawFd) }))
}

/// A descriptor that names a process, whatever becomes of its pid.
///
/// # Errors
/// When there is no such process.
pub fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// Takes over descriptor 0, which the daemon gave as the first connection.
pub fn first_connection() -> OwnedFd {
    // SAFETY: called once, at the start of the supervisor, which never uses standard input otherwise.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// A timer on `CLOCK_BOOTTIME`, which counts the time that the host was suspended.
#[derive(Debug)]
pub struct BootTimer(OwnedFd);

impl BootTimer {
    /// A timer that is not armed.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
        Ok(BootTimer(owned(fd.into())?))
    }

    /// Becomes readable at `at`; none disarms.
    ///
    /// # Errors
    /// Never for times that fit.
    pub fn arm(&self, at: Option<Duration>) -> io::Result<()> {
        // Zero disarms, so a time at the origin becomes one nanosecond.
        let at = at.map_or(Duration::ZERO, |at| at.max(Duration::from_nanos(1)));
        let value = libc::timespec {
            tv_sec: at.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: at.subsec_nanos().into(),
        };
        let spec = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: `spec` outlives the call, the descriptor is open.
        let result = unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &raw const spec, std::ptr::null_mut())
        };
        check(result.into()).map(drop)
    }

    /// The descriptor to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.as_fd()
    }

    /// Takes the expiration, so that the descriptor is not readable any more.
    pub fn clear(&self) {
        let mut count = [0u8; 8];
        let _ = nix::unistd::read(&self.0, &mut count);
    }
}

/// Gives up every capability that is not in `keep` (a bit per capability), for this process and what it executes.
///
/// # Errors
/// When the kernel refuses, which it does not for fewer capabilities.
pub fn limit_capabilities(keep: u64) -> io::Result<()> {
    for capability in 0..64 {
        if keep & (1 << capability) == 0 {
            // SAFETY: no pointers.
            let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
            // EINVAL: beyond the kernel's last capability.
            if result < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
                return Err(io::Error::last_os_error());
            }
        }
    }
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let half = |bits: u32| Data { effective: bits, permitted: bits, inheritable: 0 };
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION_3, pid: 0 };
    let data = [half(keep as u32), half((keep >> 32) as u32)];
    // SAFETY: both have the kernel's layout and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })?;
    Ok(())
}

/// Sets the loopback interface of the current network namespace up.
///
/// # Errors
/// When it is not ours to change.
pub fn loopback_up() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` has the layout that this ioctl wants and outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(result.into()).map(drop)
}

/// Exit code of a `waitpid` status as shells count it: the code, or 128 + signal.
pub fn exit_code(status: nix::sys::wait::WaitStatus) -> Option<i32> {
    use nix::sys::wait::WaitStatus;
    match status {
        WaitStatus::Exited(_, code) => Some(code),
        WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
        _ => None,
    }
}
