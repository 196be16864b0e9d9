//! Processes by pid *and* start time: a pid alone may have become somebody else's.
#![expect(clippy::disallowed_methods, reason = "reads /proc, which is the kernel and not the data directory")]

use nix::unistd::Pid;

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Clock ticks after boot at which it started.
    pub start: u64,
}

impl Process {
    /// The process that has this pid now.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Process { pid, start: start_time(&stat)? })
    }

    /// Whether it still lives (a zombie does not).
    pub fn lives(self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        start_time(&stat) == Some(self.start) && !matches!(state(&stat), Some("Z" | "X") | None)
    }

    /// As nix wants it.
    pub fn nix(self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX))
    }

    /// Reads `"pid start"`.
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, start) = text.trim_end().split_once(' ')?;
        Some(Process { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.start)
    }
}

/// The fields after the name, which is in parentheses and may hold anything.
fn fields(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

fn state(stat: &str) -> Option<&str> {
    fields(stat)?.next()
}

fn start_time(stat: &str) -> Option<u64> {
    fields(stat)?.nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_its_name_does_not_confuse() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.lives());
        assert!(!Process { start: me.start + 1, ..me }.lives());
        assert_eq!(Process::parse(&me.to_string()), Some(me));
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(start_time(stat), Some(777));
        assert_eq!(state(stat), Some("S"));
    }
}
