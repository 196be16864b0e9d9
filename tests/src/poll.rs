//! The one polling loop of all tests.
#![expect(clippy::disallowed_methods, reason = "the one place that lets time pass")]

use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

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
        std::thread::sleep(PAUSE);
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
        std::thread::sleep(PAUSE);
    }
}
