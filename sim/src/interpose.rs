//! Takes libc's place for the calls through which replay would leak. Of the binary only: a library must not do this.
//!
//! Outside a step each call goes on to libc. Inside one, entropy and the clocks come from [`smartnode_sim::ambient`], and
//! what has no place in a simulated host ends the process with its caller's name: the host's clocks, threads, processes,
//! sockets, files and directories. No lock is held and nothing allocates on the way.
//!
//! What is caught is what std and the libraries ask of libc by the names in the table below. Not caught: a name that is
//! not there, what libc calls inside itself (`fopen` opens a file unseen), and what asks the kernel without libc. `vfork`
//! cannot be in the table: its child would return through a frame that its parent still needs. So this is the net below
//! the lints of `clippy.toml`, which refuse the usual ways to get here, and below the determinism tests.
#![expect(unsafe_code, reason = "these are libc's own symbols, with libc's own signatures")]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::mem::transmute;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{clockid_t, mode_t, timespec};
use smartnode_sim::ambient::{self, forbid};

const CLOCK: &str = "the host's wall or boot clock";
const DIRECTORY: &str = "a directory of the host";
const FILE: &str = "a file of the host";
const PROCESS: &str = "a process of the host";

/// libc's own function of a name, looked up once.
struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Next {
    /// The name ends in a zero byte.
    const fn new(name: &'static str) -> Self {
        let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) else { panic!("no C string") };
        Next { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn get(&self) -> *mut c_void {
        let known = self.found.load(Ordering::Relaxed);
        if !known.is_null() {
            return known;
        }
        // SAFETY: the name is a C string; a lookup has no other precondition.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        if found.is_null() {
            std::process::abort();
        }
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

/// Functions in libc's place: what is in the braces comes first, and unless that returns, libc's own function follows.
macro_rules! interposed {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty $first:block)*) => {$(
        /// # Safety
        /// As libc's function of this name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
            static NEXT: Next = Next::new(concat!(stringify!($name), "\0"));
            // SAFETY: libc's symbol of this name has this signature. What the arguments point to is as libc demands it, by
            // the caller's promise, and nothing else is read or written here.
            unsafe {
                $first
                transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> $result>(NEXT.get())($($argument),*)
            }
        }
    )*};
}

// Where libc has variable arguments there are as many as the kernel takes: on the supported targets both travel alike.
interposed! {
    fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
        if ambient::is_stepping() && ambient::fill(std::slice::from_raw_parts_mut(buffer.cast(), length)) {
            return length as isize;
        }
    }
    fn syscall(n: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long {
        if n == libc::SYS_getrandom {
            return getrandom(a as *mut c_void, b, c as c_uint) as c_long;
        }
    }

    fn clock_gettime(clock: clockid_t, out: *mut timespec) -> c_int {
        if let Some(time) = time_of(clock) {
            out.write(time);
            return 0;
        }
    }
    fn gettimeofday(out: *mut c_void, zone: *mut c_void) -> c_int { forbid(CLOCK); }

    fn pthread_create(thread: *mut c_void, how: *const c_void, main: *const c_void, argument: *mut c_void) -> c_int {
        forbid("a thread");
    }
    fn fork() -> c_int { forbid(PROCESS); }
    fn posix_spawn(
        pid: *mut c_int, path: *const c_char, actions: *const c_void, how: *const c_void, argv: *const c_void,
        envp: *const c_void
    ) -> c_int { forbid(PROCESS); }
    fn posix_spawnp(
        pid: *mut c_int, file: *const c_char, actions: *const c_void, how: *const c_void, argv: *const c_void,
        envp: *const c_void
    ) -> c_int { forbid(PROCESS); }

    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int { forbid("a socket of the host"); }
    fn getaddrinfo(host: *const c_char, port: *const c_char, hints: *const c_void, out: *mut c_void) -> c_int {
        forbid("the host's name service");
    }

    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int { look(path); }
    fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int { look(path); }
    fn openat(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int { look(path); }
    fn openat64(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int { look(path); }
    fn statx(at: c_int, path: *const c_char, flags: c_int, mask: c_uint, out: *mut c_void) -> c_int { look(path); }
    fn rename(from: *const c_char, to: *const c_char) -> c_int { forbid(FILE); }
    fn unlink(path: *const c_char) -> c_int { forbid(FILE); }

    fn mkdir(path: *const c_char, mode: mode_t) -> c_int { forbid(DIRECTORY); }
    fn rmdir(path: *const c_char) -> c_int { forbid(DIRECTORY); }
    fn opendir(path: *const c_char) -> *mut c_void { forbid(DIRECTORY); }
}

/// The time inside a step, of the clocks that have one there.
fn time_of(clock: clockid_t) -> Option<timespec> {
    let now = match clock {
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_MONOTONIC_COARSE => ambient::monotonic(),
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => ambient::wall(),
        libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID => return None,
        _ => None,
    };
    if now.is_none() {
        forbid(CLOCK);
    }
    now.map(|now| timespec { tv_sec: now.as_secs() as libc::time_t, tv_nsec: now.subsec_nanos().into() })
}

/// Refuses a look at a file. Without a path it is one at an open file, which was judged when it was opened.
///
/// # Safety
/// `path` is a C string, or null.
unsafe fn look(path: *const c_char) {
    // SAFETY: the caller promises a C string where there is any.
    let path = (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) });
    if path.is_some_and(|path| !path.is_empty() && !ambient::may_read(path)) {
        forbid(FILE);
    }
}
