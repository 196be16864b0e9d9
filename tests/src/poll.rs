//! The one polling loop of all tests.
#![expect(clippy::disallowed_methods, reason = "the one place that lets time pass")]

use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until `condition` gives a value, and returns it with the time that it took.
///
/// # Panics
/// When `limit` passes: names what was waited for.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> (T, Duration) {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return (value, begun.elapsed());
        }
        assert!(begun.elapsed() < limit, "waited {limit:?} in vain: {what}");
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
