//! What hosts of stories may have beside daemons: a small disk, sockets in their networks, a wrong clock.
#![expect(clippy::disallowed_methods, reason = "mounts, opens sockets and compiles, as the world around a node does")]

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};

use crate::cluster::Cluster;

/// A disk of a few MiB, mounted until it is dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn mount(at: &Path, mebibytes: u32) -> Self {
        let size = format!("size={mebibytes}m,mode=700");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).expect("root mounts a tmpfs");
        SmallDisk(at.to_owned())
    }

    fn filling(&self) -> PathBuf {
        self.0.join("filling")
    }

    /// Takes all the room that is left.
    ///
    /// # Panics
    /// When the file cannot be made.
    pub fn fill(&self) {
        let mut file = File::create(self.filling()).expect("a file");
        // Pages first, then the rest of the last one.
        for block in [&[0; 65_536][..], &[0; 512]] {
            while file.write_all(block).is_ok() {}
        }
    }

    /// Gives the room back.
    ///
    /// # Panics
    /// When the file cannot be removed.
    pub fn make_room(&self) {
        std::fs::remove_file(self.filling()).expect("it was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Adds to the wall clock of a process, and to nothing else.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
    long failed = syscall(SYS_clock_gettime, clock, at);
    const char *ahead = getenv("STORY_CLOCK_AHEAD_S");
    if (failed == 0 && clock == CLOCK_REALTIME && ahead) at->tv_sec += atol(ahead);
    return (int)failed;
}
"#;

impl Cluster {
    /// Runs `work` on a thread in the network of a host, or of the switch when `at` is none. Its sockets stay there.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or when `work` panics.
    pub fn in_network<T: Send>(&self, at: Option<usize>, work: impl FnOnce() -> T + Send) -> T {
        let name = match at {
            Some(at) => self.lab.host(at).namespace().expect("a namespace").to_owned(),
            None => self.lab.switch(),
        };
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let network = File::open(Path::new("/run/netns").join(name)).expect("its namespace");
                setns(network, CloneFlags::CLONE_NEWNET).expect("root enters it");
                work()
            });
            inside.join().expect("it does not panic")
        })
    }

    /// Environment with which a program's wall clock is `seconds` ahead of the true one.
    ///
    /// # Panics
    /// When there is no C compiler.
    pub fn clock_ahead(&self, seconds: i64) -> [(OsString, OsString); 2] {
        let (source, object) = (self.path("clock.c"), self.path("clock.so"));
        std::fs::write(&source, CLOCK).expect("a file");
        let mut compiler = Command::new("cc");
        let made = compiler.args(["-shared", "-fPIC", "-o"]).arg(&object).arg(&source).status().expect("cc runs");
        assert!(made.success(), "cc: {made}");
        [("LD_PRELOAD".into(), object.into()), ("STORY_CLOCK_AHEAD_S".into(), seconds.to_string().into())]
    }
}
