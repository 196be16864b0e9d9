//! I2, second half: what clients were told is what one copy could have told them, one operation after the other.
//!
//! Source: design section 14; Herlihy and Wing 1990. Decided by the search of Wing and Gong with Lowe's memory of what
//! was tried, for one register at a time, since linearizability is local. A write that got no answer may have its effect
//! at any later time or never; a read that got none says nothing and is left out by the caller.
//!
//! The search is our own: `stateright` 0.31 remembers nothing of what it tried, which a few unknown writes make
//! exponential, and brings a web server; `todc-utils` has had one release. What cannot be decided within a bound of steps
//! is told apart from what is wrong.

use std::collections::BTreeSet;

use crate::limits::QUANTUM_US;

/// An operation on one register. Values written are never used twice, 0 is what it holds at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Sets it.
    Write(u64),
    /// Showed this value.
    Read(u64),
    /// Was refused: it had no effect and never will.
    Nothing,
}

/// What one client asked, in world time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// When it was asked, in microseconds.
    pub begun_us: u64,
    /// When it was answered; none when it was not.
    pub ended_us: Option<u64>,
    /// What.
    pub operation: Operation,
}

/// What can be said of a history.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One copy could have answered so.
    Linearizable,
    /// None could, in words.
    Not(String),
    /// Not decided within the bound.
    Undecided,
}

/// Most steps of the search.
const STEPS_MAX: u64 = 500_000;

/// From when on a call is asked after this one was answered. Hosts are stepped one after another in a quantum, so moments
/// of two hosts in the same one have no order.
fn over_us(call: &Call) -> u64 {
    call.ended_us.map_or(u64::MAX, |ended| ended + QUANTUM_US)
}

struct Search<'a> {
    calls: &'a [Call],
    /// Calls done, as bits, with the value then: dead ends.
    seen: BTreeSet<(Vec<u64>, u64)>,
    done: Vec<u64>,
    steps: u64,
    /// The most answered calls that an order explained, and one that it could not.
    furthest: (usize, usize),
}

impl Search<'_> {
    fn has(&self, at: usize) -> bool {
        self.done[at / 64] & (1 << (at % 64)) != 0
    }

    fn flip(&mut self, at: usize) {
        self.done[at / 64] ^= 1 << (at % 64);
    }

    /// Calls that may come next: those that no other call left precedes. Calls are in the order of their begin, so none
    /// that comes later in it can precede one that is open already.
    fn next(&self) -> Vec<usize> {
        let mut horizon = u64::MAX;
        let mut open = Vec::new();
        for (at, call) in self.calls.iter().enumerate().filter(|(at, _)| !self.has(*at)) {
            if call.begun_us >= horizon {
                break;
            }
            horizon = horizon.min(over_us(call));
            open.push(at);
        }
        // Reads of the present value cost nothing and close no way; unanswered writes come last: most never happened.
        open.sort_by_key(|at| (self.calls[*at].ended_us.is_none(), self.calls[*at].ended_us));
        open
    }
}

/// One level of the search: what may come next there, and where it stands.
struct Level {
    open: Vec<usize>,
    next: usize,
    value: u64,
    took: Option<usize>,
}

/// The calls that an order has to explain. A write without an answer that nobody read may as well not have happened.
fn relevant(calls: &[Call]) -> Vec<Call> {
    let read = |call: &Call| if let Operation::Read(value) = call.operation { Some(value) } else { None };
    let read: BTreeSet<u64> = calls.iter().filter_map(read).collect();
    let counts = |call: &&Call| match call.operation {
        Operation::Nothing => false,
        Operation::Write(value) => call.ended_us.is_some() || read.contains(&value),
        Operation::Read(_) => true,
    };
    calls.iter().filter(counts).copied().collect()
}

/// Judges the calls on one register.
pub fn check(calls: &[Call]) -> Verdict {
    let mut calls = relevant(calls);
    calls.sort_by_key(|call| call.begun_us);
    let answered = calls.iter().filter(|call| call.ended_us.is_some()).count();
    let done = vec![0; calls.len().div_ceil(64)];
    let mut search = Search { calls: &calls, seen: BTreeSet::new(), done, steps: 0, furthest: (0, 0) };
    let mut levels = vec![Level { open: search.next(), next: 0, value: 0, took: None }];
    let mut explained = 0;
    while let Some(level) = levels.last_mut() {
        if explained == answered {
            return Verdict::Linearizable;
        }
        search.steps += 1;
        if search.steps > STEPS_MAX {
            return Verdict::Undecided;
        }
        let Some(at) = level.open.get(level.next).copied() else {
            let took = level.took;
            levels.pop();
            if let Some(at) = took {
                search.flip(at);
                explained -= usize::from(search.calls[at].ended_us.is_some());
            }
            continue;
        };
        level.next += 1;
        let value = match search.calls[at].operation {
            Operation::Write(value) => value,
            Operation::Read(value) if value == level.value => value,
            Operation::Read(_) | Operation::Nothing => {
                if explained >= search.furthest.0 {
                    search.furthest = (explained, at);
                }
                continue;
            }
        };
        search.flip(at);
        if !search.seen.insert((search.done.clone(), value)) {
            search.flip(at);
            continue;
        }
        explained += usize::from(search.calls[at].ended_us.is_some());
        levels.push(Level { open: search.next(), next: 0, value, took: Some(at) });
    }
    let (explained, at) = search.furthest;
    Verdict::Not(format!("no order explains {:?}; the best one explains {explained} of {answered}", calls[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(begun_ms: u64, ended_ms: impl Into<Option<u64>>, operation: Operation) -> Call {
        Call { begun_us: begun_ms * 1_000, ended_us: ended_ms.into().map(|ms| ms * 1_000), operation }
    }
    use Operation::{Read, Write};

    #[test]
    fn an_order_that_fits_the_times_is_found() {
        assert_eq!(check(&[]), Verdict::Linearizable);
        // Two writes at once: either may be last, and a read between may show the later one first.
        let calls = [call(0, 50, Write(1)), call(10, 60, Write(2)), call(20, 40, Read(2)), call(70, 80, Read(1))];
        assert_eq!(check(&calls), Verdict::Linearizable);
    }

    #[test]
    fn a_stale_read_is_seen() {
        let calls = [call(0, 10, Write(1)), call(20, 30, Write(2)), call(40, 50, Read(1))];
        let Verdict::Not(words) = check(&calls) else { panic!("it is stale") };
        assert!(words.contains("Read(1)") && words.contains("2 of 3"), "{words}");
        let back = [call(0, 100, Write(1)), call(10, 20, Read(1)), call(30, 40, Read(0))];
        assert!(matches!(check(&back), Verdict::Not(_)), "a read after a read goes back");
    }

    #[test]
    fn a_write_without_an_answer_may_come_late_or_never() {
        let late = [call(0, None, Write(1)), call(10, 20, Read(0)), call(30, 40, Read(1))];
        assert_eq!(check(&late), Verdict::Linearizable);
        assert_eq!(check(&late[..2]), Verdict::Linearizable);
        let twice = [call(0, None, Write(1)), call(10, 20, Read(1)), call(30, 40, Write(2)), call(50, 60, Read(1))];
        assert!(matches!(check(&twice), Verdict::Not(_)), "one write has its effect once");
    }

    #[test]
    fn a_long_history_with_unknown_writes_is_decided() {
        let mut calls = Vec::new();
        for n in 0..400 {
            let ended = (n % 10 != 0).then_some(n * 100 + 50);
            calls.push(call(n * 100, ended, Write(n + 1)));
            calls.push(call(n * 100 + 60, n * 100 + 70, Read(if n % 10 == 0 { n } else { n + 1 })));
        }
        assert_eq!(check(&calls), Verdict::Linearizable);
        calls.push(call(90_000, 90_001, Read(3)));
        assert!(matches!(check(&calls), Verdict::Not(_)));
    }
}
