//! What the process would otherwise take from the operating system behind the seams' back.
//!
//! Third-party code draws entropy (`RandomState`, `rand::rng()`, ring) and reads the monotonic clock without asking a
//! seam. While a host is being stepped, the binary's interposer (`interpose.rs`) comes here instead of to the kernel: it
//! gets the host's own seeded stream and virtual time. For what must never happen inside a step (a wall clock, a thread,
//! a real socket or file) there is [`forbid`], which ends the process and names the caller.
//!
//! The state is of one thread, since a run has one; it has no destructor, so that it may be asked at any time.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::time::Duration;

use rand::rngs::{StdRng, SysRng};
use rand::{Rng, TryRng};

thread_local! {
    static STREAM: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    static NOW_US: Cell<u64> = const { Cell::new(0) };
    static STEPPING: Cell<bool> = const { Cell::new(false) };
    static LABEL: Cell<u64> = const { Cell::new(0) };
    static LOGGING: Cell<bool> = const { Cell::new(false) };
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The monotonic clock of the world starts here, so that software may subtract from it.
const MONOTONIC_ORIGIN: Duration = Duration::from_secs(1_000_000);

/// The ambient entropy of one boot of one host.
#[derive(Debug)]
pub struct Ambient {
    /// The host's number, for logs.
    label: u64,
    /// Absent only while it is being drawn from.
    stream: Option<StdRng>,
}

impl Ambient {
    /// Draws from `stream`, for the host of this number.
    pub fn new(label: u64, stream: StdRng) -> Self {
        Ambient { label, stream: Some(stream) }
    }
}

/// Runs `work` as part of the simulated world: its ambient draws come from `ambient`, its ambient clock stands at `now_us`.
pub fn within<T>(ambient: &mut Ambient, now_us: u64, work: impl FnOnce() -> T) -> T {
    struct Leave<'a>(&'a mut Ambient);
    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            STEPPING.set(false);
            self.0.stream = STREAM.take();
        }
    }
    STREAM.set(ambient.stream.take());
    NOW_US.set(now_us);
    LABEL.set(ambient.label);
    STEPPING.set(true);
    let _leave = Leave(ambient);
    work()
}

/// Whether this thread is inside the simulated world.
pub fn is_stepping() -> bool {
    STEPPING.get()
}

/// Fills `out` from the host's stream; `false` outside the world, where the caller asks the kernel.
pub fn fill(out: &mut [u8]) -> bool {
    if !STEPPING.get() {
        return false;
    }
    STREAM.with_borrow_mut(|slot| match slot.as_mut() {
        Some(stream) => {
            stream.fill_bytes(out);
            true
        }
        None => false,
    })
}

/// The monotonic clock inside the world: it stands still during a step.
pub fn monotonic() -> Option<Duration> {
    STEPPING.get().then(|| MONOTONIC_ORIGIN + Duration::from_micros(NOW_US.get()))
}

/// Logs are written from now on: some formats show the wall clock (openraft's do), which is then a virtual one.
pub fn allow_wall_clock_in_logs() {
    LOGGING.set(true);
}

/// The wall clock inside the world, if it may be read behind the seams at all.
pub fn wall() -> Option<Duration> {
    (STEPPING.get() && LOGGING.get()).then(|| crate::clock::EPOCH + Duration::from_micros(NOW_US.get()))
}

/// Whether this file of the host may be read: the time zone, by logs that show local time (openraft's do). It decides
/// nothing, and no log enters the trace.
pub fn may_read(path: &CStr) -> bool {
    let path = path.to_bytes();
    LOGGING.get() && (path == b"/etc/localtime" || path.starts_with(b"/usr/share/zoneinfo/"))
}

/// Where the world is: simulated time in microseconds, and the number of the host being stepped.
pub fn place() -> Option<(u64, u64)> {
    STEPPING.get().then(|| (NOW_US.get(), LABEL.get()))
}

/// Notes that simulated software panicked. tokio catches a task's panic, and nobody may be waiting for that task.
pub fn note_panic(what: String) {
    PANICS.with_borrow_mut(|panics| panics.push(what));
}

/// The panics since it was last asked.
pub fn take_panics() -> Vec<String> {
    PANICS.take()
}

/// Ends the process when called inside the world, naming what was reached for and by whom. Else it does nothing.
pub fn forbid(what: &str) {
    if !STEPPING.get() || std::thread::panicking() {
        return;
    }
    STEPPING.set(false); // the report itself reads files and clocks
    let caller = std::backtrace::Backtrace::force_capture();
    eprintln!(
        "simulated software reached for {what}, which would break replay; it must pass a seam. Called by:\n{caller}"
    );
    std::process::abort();
}

/// Whether libc's entropy is interposed in this program: only then is a run worth anything.
pub fn is_interposed() -> bool {
    let probe = || crate::random::stream(0, "probe", &[]);
    let (mut expected, mut seen) = ([0; 16], [0; 16]);
    probe().fill_bytes(&mut expected);
    let asked = within(&mut Ambient::new(0, probe()), 0, || SysRng.try_fill_bytes(&mut seen));
    asked.is_ok() && seen == expected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_inside_come_from_the_stream_and_advance_it() {
        let ambient = || Ambient::new(1, crate::random::stream(1, "t", &[]));
        let (mut stream, mut again) = (ambient(), ambient());
        let draw = |ambient: &mut Ambient| {
            let mut out = [0; 8];
            assert!(within(ambient, 5, || fill(&mut out)));
            out
        };
        let (first, second) = (draw(&mut stream), draw(&mut stream));
        assert_ne!(first, second);
        assert_eq!(first, draw(&mut again));
        assert!(!fill(&mut [0; 8]), "outside the world the kernel answers");
        assert_eq!(within(&mut stream, 7, monotonic), Some(MONOTONIC_ORIGIN + Duration::from_micros(7)));
        assert_eq!(monotonic(), None);
    }

    #[test]
    fn a_test_program_is_not_interposed() {
        assert!(!is_interposed());
    }
}
