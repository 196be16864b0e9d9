//! Takes libc's place for the few calls through which replay would leak. Of the binary only: a library must not do this.
//!
//! Outside a step each call goes on to libc. Inside one, entropy and the monotonic clock come from
//! [`smartnode_sim::ambient`], and what has no place in a simulated host ends the process with its caller's name:
//! wall clocks, threads, sockets, files. No lock is held and nothing allocates on the way.
#![expect(unsafe_code, reason = "these are libc's own symbols, with libc's own signatures")]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use smartnode_sim::ambient;

/// libc's own function of a name, looked up once.
struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Next {
    const fn new(name: &'static CStr) -> Self {
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

type GetRandom = unsafe extern "C" fn(*mut c_void, usize, c_uint) -> isize;
type Syscall = unsafe extern "C" fn(c_long, usize, usize, usize, usize, usize, usize) -> c_long;
type ClockGetTime = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> c_int;
type Open = unsafe extern "C" fn(*const c_char, c_int, libc::mode_t) -> c_int;
type Socket = unsafe extern "C" fn(c_int, c_int, c_int) -> c_int;
type ThreadMain = extern "C" fn(*mut c_void) -> *mut c_void;
type PthreadCreate =
    unsafe extern "C" fn(*mut libc::pthread_t, *const libc::pthread_attr_t, ThreadMain, *mut c_void) -> c_int;

static GETRANDOM: Next = Next::new(c"getrandom");
static SYSCALL: Next = Next::new(c"syscall");
static CLOCK_GETTIME: Next = Next::new(c"clock_gettime");
static OPEN: Next = Next::new(c"open64");
static SOCKET: Next = Next::new(c"socket");
static PTHREAD_CREATE: Next = Next::new(c"pthread_create");

/// # Safety
/// As libc's `getrandom`: `buffer` holds `length` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    if ambient::is_stepping() {
        // SAFETY: the caller promises `length` writable bytes.
        let out = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        if ambient::fill(out) {
            return length as isize;
        }
    }
    // SAFETY: libc's symbol of this name has this signature; the arguments are the caller's.
    unsafe { std::mem::transmute::<*mut c_void, GetRandom>(GETRANDOM.get())(buffer, length, flags) }
}

/// # Safety
/// As libc's `syscall`. Its arguments are variadic there; six registers are what the kernel's interface has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(n: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long {
    if n == libc::SYS_getrandom {
        // SAFETY: the caller promises that `a` holds `b` writable bytes.
        return unsafe { getrandom(a as *mut c_void, b, c as c_uint) } as c_long;
    }
    // SAFETY: as above; on the supported targets variadic and fixed integer arguments travel alike.
    unsafe { std::mem::transmute::<*mut c_void, Syscall>(SYSCALL.get())(n, a, b, c, d, e, f) }
}

/// # Safety
/// As libc's `clock_gettime`: `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, out: *mut libc::timespec) -> c_int {
    let virtual_time = match clock {
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_MONOTONIC_COARSE => ambient::monotonic(),
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => ambient::wall(),
        _ => None,
    };
    if let Some(now) = virtual_time {
        let time = libc::timespec { tv_sec: now.as_secs() as libc::time_t, tv_nsec: now.subsec_nanos().into() };
        // SAFETY: the caller promises that `out` is writable.
        unsafe { out.write(time) };
        return 0;
    }
    if !matches!(clock, libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID) {
        ambient::forbid("the host's wall or boot clock");
    }
    // SAFETY: libc's symbol of this name has this signature; the arguments are the caller's.
    unsafe { std::mem::transmute::<*mut c_void, ClockGetTime>(CLOCK_GETTIME.get())(clock, out) }
}

/// # Safety
/// As libc's `open64`: `path` is a C string. The mode is read only when a file is made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: the caller promises a C string.
    if !ambient::may_read(unsafe { CStr::from_ptr(path) }) {
        ambient::forbid("a file of the host");
    }
    // SAFETY: libc's symbol of this name has this signature; the arguments are the caller's.
    unsafe { std::mem::transmute::<*mut c_void, Open>(OPEN.get())(path, flags, mode) }
}

/// # Safety
/// As libc's `socket`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    ambient::forbid("a socket of the host");
    // SAFETY: libc's symbol of this name has this signature; the arguments are the caller's.
    unsafe { std::mem::transmute::<*mut c_void, Socket>(SOCKET.get())(domain, kind, protocol) }
}

/// # Safety
/// As libc's `pthread_create`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    main: ThreadMain,
    argument: *mut c_void,
) -> c_int {
    ambient::forbid("a thread");
    // SAFETY: libc's symbol of this name has this signature; the arguments are the caller's.
    unsafe {
        std::mem::transmute::<*mut c_void, PthreadCreate>(PTHREAD_CREATE.get())(thread, attributes, main, argument)
    }
}
