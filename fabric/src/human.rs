//! Words for people: sizes in KiB/MiB/GiB, cores, durations as 1.2s, ages as "3m ago" (design section 16).

use std::time::Duration;

/// `1.4 GiB`, `64 MiB`, `512 B`: at most one decimal, none when it is whole.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scaled = count as f64;
    while scaled >= 1024.0 && unit < UNITS.len() - 1 {
        scaled /= 1024.0;
        unit += 1;
    }
    let text = format!("{scaled:.1}");
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

/// `0.1 CPU`, `2 CPU`.
pub fn cpu(millis: u64) -> String {
    let text = format!("{:.3}", millis as f64 / 1000.0);
    format!("{} CPU", text.trim_end_matches('0').trim_end_matches('.'))
}

/// `12ms`, `1.2s`, `3m 20s`, `2h 5m`, `4d 3h`.
pub fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{}ms", span.as_millis()),
        1..=9 => format!("{:.1}s", span.as_secs_f64()),
        10..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `3m ago`, of two times in Unix milliseconds; `now` for what lies in the future.
pub fn age(now_ms: u64, then_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1000;
    match seconds {
        0 => "now".into(),
        1..=59 => format!("{seconds}s ago"),
        60..=3599 => format!("{}m ago", seconds / 60),
        3600..=86_399 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// `1 machine`, `2 machines`: of things whose plural ends in s.
pub fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_cores_and_times_read_well() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(64 << 20), "64 MiB");
        assert_eq!(bytes(1_503_238_553), "1.4 GiB");
        assert_eq!(cpu(100), "0.1 CPU");
        assert_eq!(cpu(2000), "2 CPU");
        assert_eq!(duration(Duration::from_millis(1234)), "1.2s");
        assert_eq!(duration(Duration::from_secs(200)), "3m 20s");
        assert_eq!(age(200_000, 0), "3m ago");
        assert_eq!(age(0, 5), "now");
        assert_eq!([0, 1, 2].map(|number| count(number, "machine")), ["0 machines", "1 machine", "2 machines"]);
    }
}
