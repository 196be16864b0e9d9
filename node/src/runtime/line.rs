//! The lines that daemon and supervisor exchange over the supervisor's socket: pure.
//!
//! A daemon of version N+1 talks to supervisors of version N after an upgrade, so unknown keys are skipped and keys are
//! only ever added. One request per line; the answer is `ok`, `err TEXT` or a status line. `watch` turns the connection
//! into a feed of status lines.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use fabric::model::MachineState;

use super::Frozen;
use super::limits::{GRACE_MAX, REASON_BYTES_MAX};
use super::record::nanos;

/// What a daemon may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// One status line.
    Status,
    /// A status line now and at every change.
    Watch,
    /// Send the signal, and kill after the grace; answered when nothing runs.
    Stop {
        /// Number of the signal.
        signal: i32,
        /// Time to end by itself.
        grace: Duration,
    },
    /// Pause by order; answered when the kernel has confirmed.
    Freeze,
    /// End the pause by order.
    Thaw,
    /// A new lease deadline.
    Renew {
        /// On `CLOCK_BOOTTIME`.
        deadline: Duration,
        /// End the pause by lease too.
        thaw: bool,
    },
    /// The lease deadline is this one or the one held, whichever is earlier.
    Shorten {
        /// On `CLOCK_BOOTTIME`.
        deadline: Duration,
    },
    /// Write the launch record again: the one on the disk is damaged.
    Record,
    /// An unconnected TCP socket of the machine's network namespace, passed along with `ok`.
    Socket {
        /// IPv6 instead of IPv4.
        v6: bool,
    },
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Status => f.write_str("status"),
            Request::Watch => f.write_str("watch"),
            Request::Stop { signal, grace } => write!(f, "stop {signal} {}", grace.as_millis()),
            Request::Freeze => f.write_str("freeze"),
            Request::Thaw => f.write_str("thaw"),
            Request::Renew { deadline, thaw } => write!(f, "renew {} {}", nanos(*deadline), u8::from(*thaw)),
            Request::Shorten { deadline } => write!(f, "shorten {}", nanos(*deadline)),
            Request::Record => f.write_str("record"),
            Request::Socket { v6 } => write!(f, "socket {}", if *v6 { 6 } else { 4 }),
        }
    }
}

impl FromStr for Request {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split(' ');
        let verb = words.next().unwrap_or_default();
        let mut number = |what: &str| {
            let word = words.next().ok_or_else(|| format!("{verb}: {what} is missing"))?;
            word.parse::<u64>().map_err(|_| format!("{verb}: {word:?} is no {what}"))
        };
        let request = match verb {
            "status" => Request::Status,
            "watch" => Request::Watch,
            "freeze" => Request::Freeze,
            "thaw" => Request::Thaw,
            "record" => Request::Record,
            "stop" => {
                let signal = i32::try_from(number("signal")?).unwrap_or(0);
                if !(1..=64).contains(&signal) {
                    return Err(format!("stop: {signal} is no signal"));
                }
                Request::Stop { signal, grace: Duration::from_millis(number("grace")?).min(GRACE_MAX) }
            }
            "renew" => {
                Request::Renew { deadline: Duration::from_nanos(number("deadline")?), thaw: number("thaw")? == 1 }
            }
            "shorten" => Request::Shorten { deadline: Duration::from_nanos(number("deadline")?) },
            "socket" => Request::Socket { v6: number("version")? == 6 },
            other => return Err(format!("{other:?} is unknown to this supervisor")),
        };
        match words.next() {
            Some(_) => Err(format!("{verb}: too many words")),
            None => Ok(request),
        }
    }
}

/// What a supervisor says about its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusLine {
    /// What it is doing, freezes aside.
    pub state: MachineState,
    /// Pid 1 of the machine, as the host numbers it.
    pub pid: Option<u32>,
    /// Since when it runs, Unix milliseconds.
    pub started_ms: Option<u64>,
    /// Starts by the restart policy.
    pub restarts: u32,
    /// Exit code of the last run, or 128 + signal.
    pub exit_code: Option<i32>,
    /// Who holds it.
    pub frozen: Frozen,
    /// The lease deadline it holds.
    pub deadline: Option<Duration>,
    /// In the user's words.
    pub reason: Option<String>,
}

impl StatusLine {
    /// A machine of which nothing runs.
    pub fn down(state: MachineState, reason: Option<String>) -> Self {
        StatusLine {
            state,
            pid: None,
            started_ms: None,
            restarts: 0,
            exit_code: None,
            frozen: Frozen::default(),
            deadline: None,
            reason,
        }
    }

    /// The state as users see it: held counts before what it would be doing.
    pub fn shown_state(&self) -> MachineState {
        let held = self.frozen.by_lease || self.frozen.by_order;
        match self.state {
            MachineState::Running | MachineState::Restarting | MachineState::Preparing if held => MachineState::Frozen,
            state => state,
        }
    }
}

const STATES: [(&str, MachineState); 8] = [
    ("pending", MachineState::Pending),
    ("preparing", MachineState::Preparing),
    ("running", MachineState::Running),
    ("frozen", MachineState::Frozen),
    ("restarting", MachineState::Restarting),
    ("stopped", MachineState::Stopped),
    ("exited", MachineState::Exited),
    ("failed", MachineState::Failed),
];

impl fmt::Display for StatusLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = STATES.iter().find(|(_, state)| *state == self.state).map_or("failed", |(word, _)| word);
        write!(f, "status v=1 state={state} restarts={}", self.restarts)?;
        write!(f, " by_lease={} by_order={}", u8::from(self.frozen.by_lease), u8::from(self.frozen.by_order))?;
        if let Some(pid) = self.pid {
            write!(f, " pid={pid}")?;
        }
        if let Some(at) = self.started_ms {
            write!(f, " started_ms={at}")?;
        }
        if let Some(code) = self.exit_code {
            write!(f, " exit={code}")?;
        }
        if let Some(deadline) = self.deadline {
            write!(f, " deadline={}", nanos(deadline))?;
        }
        match &self.reason {
            // The reason is last, so that it may hold spaces.
            Some(reason) => write!(f, " reason={}", one_line(reason)),
            None => Ok(()),
        }
    }
}

impl FromStr for StatusLine {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let rest = line.strip_prefix("status ").ok_or_else(|| format!("{line:?} is no status"))?;
        let (fields, reason) = match rest.split_once(" reason=") {
            Some((fields, reason)) => (fields, Some(reason.to_owned())),
            None => (rest, None),
        };
        let get = |key: &str| {
            fields.split(' ').find_map(|field| field.split_once('=').filter(|(k, _)| *k == key).map(|(_, v)| v))
        };
        fn number<T: FromStr>(key: &str, value: Option<&str>) -> Result<Option<T>, String> {
            value.map(|v| v.parse().map_err(|_| format!("{key}={v} is no number"))).transpose()
        }
        let word = get("state").ok_or("a status without a state")?;
        // A state of a later version: what matters is that the machine is up, since its supervisor speaks.
        let state = STATES.iter().find(|(known, _)| *known == word).map_or(MachineState::Running, |(_, state)| *state);
        Ok(StatusLine {
            state,
            pid: number("pid", get("pid"))?,
            started_ms: number("started_ms", get("started_ms"))?,
            restarts: number("restarts", get("restarts"))?.unwrap_or(0),
            exit_code: number("exit", get("exit"))?,
            frozen: Frozen { by_lease: get("by_lease") == Some("1"), by_order: get("by_order") == Some("1") },
            deadline: number("deadline", get("deadline"))?.map(Duration::from_nanos),
            reason,
        })
    }
}

/// A text that fits a line: no control characters, bounded.
pub fn one_line(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > REASON_BYTES_MAX {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_request_survives_its_line() {
        let second = Duration::from_secs(1);
        for request in [
            Request::Status,
            Request::Watch,
            Request::Stop { signal: 15, grace: second },
            Request::Freeze,
            Request::Thaw,
            Request::Record,
            Request::Renew { deadline: second, thaw: true },
            Request::Shorten { deadline: second },
            Request::Socket { v6: true },
        ] {
            assert_eq!(request.to_string().parse(), Ok(request));
        }
    }

    #[test]
    fn bad_requests_are_told_what_is_wrong() {
        for (line, part) in [
            ("", "unknown"),
            ("stop", "missing"),
            ("stop 0 5", "no signal"),
            ("stop 99999999999 5", "no signal"),
            ("renew x 1", "no deadline"),
            ("freeze now", "too many"),
        ] {
            let error = line.parse::<Request>().unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    fn status() -> StatusLine {
        StatusLine {
            state: MachineState::Restarting,
            pid: Some(42),
            started_ms: Some(1),
            restarts: 3,
            exit_code: Some(137),
            frozen: Frozen { by_lease: true, by_order: false },
            deadline: Some(Duration::from_nanos(77)),
            reason: Some("out of memory (cap 64 MiB)".into()),
        }
    }

    #[test]
    fn a_status_survives_its_line_and_later_keys_are_skipped() {
        assert_eq!(status().to_string().parse(), Ok(status()));
        let later = status().to_string().replace("status v=1", "status v=2 colour=blue");
        assert_eq!(later.parse(), Ok(status()));
        let down = StatusLine::down(MachineState::Stopped, None);
        assert_eq!(down.to_string().parse(), Ok(down));
    }

    #[test]
    fn held_machines_show_as_frozen_and_ended_ones_do_not() {
        assert_eq!(status().shown_state(), MachineState::Frozen);
        let ended = StatusLine { state: MachineState::Exited, ..status() };
        assert_eq!(ended.shown_state(), MachineState::Exited);
    }

    proptest! {
        #[test]
        fn no_line_panics(line in ".{0,200}") {
            let _ = line.parse::<Request>();
            let _ = line.parse::<StatusLine>();
            let _ = format!("status {line}").parse::<StatusLine>();
        }

        #[test]
        fn a_reason_is_one_bounded_line(text in ".{0,400}") {
            let line = one_line(&text);
            prop_assert!(line.len() <= REASON_BYTES_MAX && !line.contains('\n'));
        }
    }
}
