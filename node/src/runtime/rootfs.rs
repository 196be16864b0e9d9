//! The file system of a machine: an overlay made by the supervisor, entered by the machine's pid 1.
//!
//! The image is shared by machines with different user ids outside, so its mount maps owners (an idmapped mount) and nothing
//! is copied or chowned. The supervisor mounts the overlay with the host's rights, in a mount namespace of its own: it
//! vanishes with the supervisor. Everything that follows a path of the image happens inside, after `pivot_root`, where
//! a link of the image can lead nowhere else.
#![expect(clippy::disallowed_methods, reason = "works inside the machine's root, not in the data directory")]

use std::ffi::CStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chown, fchdir, pivot_root};

use super::limits::SHM_BYTES;
use super::record::{LOWER, MERGED, UPPER, WORK};
use super::sys::{self, attr};

/// Adds to an error what was being done.
fn doing<T>(what: impl std::fmt::Display, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

fn nix<T>(what: impl std::fmt::Display, result: nix::Result<T>) -> io::Result<T> {
    doing(what, result.map_err(io::Error::from))
}

/// Gives the calling process its own view of the mounts: it follows what the host mounts, the host sees nothing of it.
///
/// # Errors
/// Without the right to.
pub fn own_mounts() -> io::Result<()> {
    nix("unshare mounts", nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS))?;
    nix(
        "make mounts private",
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>),
    )
}

/// Mounts the overlay of image and writable layer at `merged` of the current directory.
///
/// `users` is the user namespace whose root is to own the image's files, `uid_base` its root's id outside.
///
/// # Errors
/// Names the step; an image on a file system without idmapped mounts fails here.
pub fn mount_overlay(image: &CStr, users: &OwnedFd, uid_base: u32) -> io::Result<()> {
    for dir in [LOWER, MERGED, UPPER, WORK] {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return doing(dir, Err(error)),
            _ => {}
        }
    }
    // The root of the overlay has the owner of the upper layer's root.
    nix("chown the writable layer", chown(UPPER, Some(uid_base.into()), Some(uid_base.into())))?;
    doing("writable layer", fs::set_permissions(UPPER, fs::Permissions::from_mode(0o755)))?;
    let lower = doing("open the image", sys::clone_mount(image, false))?;
    let flags = attr::IDMAP | attr::RDONLY | attr::NODEV;
    doing(
        "map the image's owners (its file system must allow that, as ext4, xfs and btrfs do)",
        sys::set_mount_attr(&lower, flags, Some(users)),
    )?;
    doing("mount the image", sys::attach(&lower, c"lower"))?;
    // Relative names: a data directory with a colon in its path would be read as two layers.
    let options = [(c"lowerdir", c"lower"), (c"upperdir", c"upper"), (c"workdir", c"work"), (c"source", c"smartnode")];
    let overlay = sys::new_mount(c"overlay", &options, attr::NODEV)?;
    doing("mount the overlay", sys::attach(&overlay, c"merged"))
}

/// File systems and devices that are made while the host's are still in view, attached after the root has changed.
struct Parts {
    proc: OwnedFd,
    sysfs: Option<OwnedFd>,
    dev: OwnedFd,
    pts: OwnedFd,
    shm: OwnedFd,
    mqueue: OwnedFd,
    devices: Vec<(&'static CStr, OwnedFd)>,
}

const QUIET: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;

impl Parts {
    fn make() -> io::Result<Self> {
        // The kernel gives a new proc or sysfs to a user namespace only while it can see a whole one.
        let size = std::ffi::CString::new(SHM_BYTES.to_string())?;
        Ok(Parts {
            proc: sys::new_mount(c"proc", &[], QUIET)?,
            // Where the host's own sysfs is masked (a node in a container) machines have none.
            sysfs: sys::new_mount(c"sysfs", &[], QUIET | attr::RDONLY).ok(),
            dev: sys::new_mount(c"tmpfs", &[(c"mode", c"755"), (c"size", c"65536")], attr::NOSUID | attr::NOEXEC)?,
            pts: sys::new_mount(
                c"devpts",
                &[(c"newinstance", c""), (c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5")],
                attr::NOSUID | attr::NOEXEC,
            )?,
            shm: sys::new_mount(c"tmpfs", &[(c"mode", c"1777"), (c"size", size.as_c_str())], QUIET)?,
            mqueue: sys::new_mount(c"mqueue", &[], QUIET)?,
            devices: [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom", c"/dev/tty"]
                .into_iter()
                .map(|path| Ok((path, doing(path.to_string_lossy(), sys::clone_mount(path, false))?)))
                .collect::<io::Result<_>>()?,
        })
    }

    fn attach(&self) -> io::Result<()> {
        for dir in ["/proc", "/sys", "/dev"] {
            directory(dir, 0o755)?;
        }
        let at = |path: &CStr, mount: &OwnedFd| doing(path.to_string_lossy(), sys::attach(mount, path));
        at(c"/proc", &self.proc)?;
        if let Some(sysfs) = &self.sysfs {
            at(c"/sys", sysfs)?;
        }
        at(c"/dev", &self.dev)?;
        for dir in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
            directory(dir, 0o755)?;
        }
        at(c"/dev/pts", &self.pts)?;
        at(c"/dev/shm", &self.shm)?;
        at(c"/dev/mqueue", &self.mqueue)?;
        for (path, device) in &self.devices {
            doing(path.to_string_lossy(), file(&path.to_string_lossy(), ""))?;
            at(path, device)?;
        }
        let links = [
            ("pts/ptmx", "/dev/ptmx"),
            ("/proc/self/fd", "/dev/fd"),
            ("/proc/self/fd/0", "/dev/stdin"),
            ("/proc/self/fd/1", "/dev/stdout"),
            ("/proc/self/fd/2", "/dev/stderr"),
        ];
        links.iter().try_for_each(|(to, link)| doing(link, symlink(to, link)))
    }
}

fn directory(path: &str, mode: u32) -> io::Result<()> {
    if Path::new(path).is_dir() {
        return Ok(());
    }
    doing(path, fs::create_dir(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode))))
}

/// Makes a file that is not there.
fn file(path: &str, content: &str) -> io::Result<()> {
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Ok(mut file) => file.write_all(content.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Parts of /proc and /sys that speak of the host or act on it: files are covered by /dev/null, directories by nothing.
const MASKED: [&CStr; 12] = [
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/interrupts",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/sys/firmware",
    c"/sys/devices/virtual/powercap",
];

/// Parts of /proc that may be read and not written.
const READ_ONLY: [&CStr; 5] = [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];

fn mask() -> io::Result<()> {
    for path in MASKED {
        let Ok(meta) = fs::symlink_metadata(Path::new(&*path.to_string_lossy())) else { continue };
        let cover = if meta.is_dir() {
            sys::new_mount(c"tmpfs", &[(c"size", c"4096")], QUIET | attr::RDONLY)?
        } else {
            sys::clone_mount(c"/dev/null", false)?
        };
        doing(path.to_string_lossy(), sys::attach(&cover, path))?;
    }
    for path in READ_ONLY {
        if !Path::new(&*path.to_string_lossy()).exists() {
            continue;
        }
        let copy = sys::clone_mount(path, false)?;
        sys::set_mount_attr(&copy, attr::RDONLY | QUIET, None)?;
        doing(path.to_string_lossy(), sys::attach(&copy, path))?;
    }
    Ok(())
}

/// Goes into `merged` of the current directory and gives a copy of that mount.
///
/// A mount that came from the supervisor's namespace is locked; a copy of it can be pivoted into. The way there leads
/// through directories that only the host's root may pass, so this comes before the process becomes anybody else.
///
/// # Errors
/// Names the step.
pub fn open_root() -> io::Result<OwnedFd> {
    nix("enter the root", chdir(MERGED))?;
    doing("open the root", sys::clone_mount(c".", true))
}

/// Makes `root` the root, with /proc, /sys and /dev of the calling process's namespaces; the process is the machine's root
/// user and stands where [`open_root`] left it.
///
/// # Errors
/// Names the step.
pub fn enter(root: &OwnedFd, host_name: &str) -> io::Result<()> {
    let parts = Parts::make()?;
    doing("mount the root", sys::attach(root, c"."))?;
    nix("enter the root", fchdir(root))?;
    // Both at the same place: the old root comes to lie on the new one and is taken off.
    nix("change the root", pivot_root(".", "."))?;
    nix("leave the old root", umount2(".", MntFlags::MNT_DETACH))?;
    nix("enter the root", chdir("/"))?;
    parts.attach()?;
    mask()?;
    nix("host name", nix::unistd::sethostname(host_name))?;
    furnish(host_name)
}

/// What programs expect of any host and an image may lack.
fn furnish(host_name: &str) -> io::Result<()> {
    directory("/etc", 0o755)?;
    directory("/tmp", 0o1777)?;
    directory("/run", 0o755)?;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {host_name}\n");
    doing("/etc/hosts", file("/etc/hosts", &hosts))?;
    doing("/etc/hostname", file("/etc/hostname", &format!("{host_name}\n")))?;
    doing("/etc/resolv.conf", file("/etc/resolv.conf", "options timeout:1 attempts:1\n"))?;
    doing("/etc/passwd", file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"))?;
    doing("/etc/group", file("/etc/group", "root:x:0:\n"))?;
    directory("/root", 0o700)
}

/// The user namespace of a process.
///
/// # Errors
/// When it has ended.
pub fn user_namespace(pid: nix::unistd::Pid) -> io::Result<OwnedFd> {
    let file = doing("user namespace", fs::File::open(format!("/proc/{pid}/ns/user")))?;
    file.as_fd().try_clone_to_owned()
}
