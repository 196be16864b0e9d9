//! Tries in a directory what every machine needs of the file system there: `smartnode-probe DIR`.
//!
//! Whether a file system can map owners and be the writable layer of an overlay is nowhere to be read, so it is done: by
//! a short-lived process of its own, since it takes a fork and a mount namespace that the daemon must not have. It leaves
//! nothing behind.
#![expect(clippy::disallowed_methods, reason = "tries the file system that machines will lie on")]

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use nix::sys::wait::waitpid;
use nix::unistd::{chdir, read};

use crate::runtime::limits::{UID_BASE_FIRST, UIDS_PER_MACHINE};
use crate::runtime::{rootfs, sys};

/// Directory that is made for the trial; its name is no machine's.
const PLACE: &str = ".probe";

/// Tries; says on standard error what was refused. Gives the exit code.
pub fn main(dir: &Path) -> i32 {
    let place = dir.join(format!("{PLACE}-{}", std::process::id()));
    let result = fs::create_dir(&place).and_then(|()| apart(&place));
    // Its mounts have ended with the child that made them.
    let removed = fs::remove_dir_all(&place);
    match result.and(removed) {
        Ok(()) => 0,
        Err(error) => {
            let _ = write!(io::stderr(), "{error}");
            1
        }
    }
}

fn apart(place: &Path) -> io::Result<()> {
    let (reads, writes) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let Some(child) = sys::fork()? else {
        let said = mount(place).map_or_else(|error| error.to_string(), |()| String::new());
        let _ = nix::unistd::write(&writes, said.as_bytes());
        sys::exit_now(0);
    };
    drop(writes);
    let mut said = [0; 512];
    let count = read(&reads, &mut said)?;
    waitpid(child, None)?;
    match count {
        0 => Ok(()),
        count => Err(io::Error::other(String::from_utf8_lossy(&said[..count]).into_owned())),
    }
}

fn mount(place: &Path) -> io::Result<()> {
    chdir(place)?;
    rootfs::own_mounts()?;
    fs::create_dir("image")?;
    let (reads, writes) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let Some(owner) = sys::fork_into(libc::CLONE_NEWUSER, None)? else {
        // Is a user namespace until the other end is closed.
        drop(writes);
        let _ = read(&reads, &mut [0]);
        sys::exit_now(0);
    };
    let mapped = || -> io::Result<()> {
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{owner}/{map}"), format!("0 {UID_BASE_FIRST} {UIDS_PER_MACHINE}"))?;
        }
        rootfs::mount_overlay(c"image", &rootfs::user_namespace(owner)?, UID_BASE_FIRST)?;
        // A file of the machine's root, as the first thing that it writes.
        fs::write("merged/file", "")
    };
    let result = mapped();
    drop(writes);
    waitpid(owner, None)?;
    result
}
