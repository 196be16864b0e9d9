//! The one polling loop of all tests.
#![expect(clippy::disallowed_methods, reason = "the one place that lets time pass")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Set when the user has had enough.
static ENDED: AtomicBool = AtomicBool::new(false);

/// Makes every wait of this process panic from now on, so that what it has made is cleaned up.
pub fn end() {
    ENDED.store(true, Ordering::Relaxed);
}

/// Whether [`end`] was called.
pub fn ended() -> bool {
    ENDED.load(Ordering::Relaxed)
}

/// Looks until `condition` gives a value, and returns it with the time that it took.
///
/// # Panics
/// When `limit` passes: names what was waited for.
pub fn until<T>(what: &str, limit: Duration, condition: impl FnMut() -> Option<T>) -> (T, Duration) {
    until_or(limit, condition, || what.to_owned())
}

/// The same, with words that are found when they are needed.
///
/// # Panics
/// When `limit` passes: with those words.
pub fn until_or<T>(
    limit: Duration,
    condition: impl FnMut() -> Option<T>,
    words: impl FnOnce() -> String,
) -> (T, Duration) {
    until_every(PAUSE, limit, condition, words)
}

/// The same, with another pause between two looks: where the time that it takes is what is wanted.
///
/// # Panics
/// When `limit` passes: with those words.
pub fn until_every<T>(
    pause: Duration,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
    words: impl FnOnce() -> String,
) -> (T, Duration) {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return (value, begun.elapsed());
        }
        if begun.elapsed() >= limit {
            panic!("waited {limit:?} in vain: {}", words());
        }
        assert!(!ended(), "ended by the user");
        std::thread::sleep(pause);
    }
}

/// Looks until `limit` has passed that `condition` stays true throughout.
///
/// # Panics
/// When it turns false.
pub fn stays(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        assert!(condition(), "no longer so after {:?}: {what}", begun.elapsed());
        assert!(!ended(), "ended by the user");
        std::thread::sleep(PAUSE);
    }
}
