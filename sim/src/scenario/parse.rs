//! Reads a scenario. What cannot be read is told with line and column.

use std::time::Duration;

use thiserror::Error;

use super::{Deed, Expectation, Scenario, Step, What, Who};
use crate::actor::HostId;
use crate::faults::Faults;
use crate::limits::{RUN_MAX, SCENARIO_LINES_MAX, SCENARIO_NODES_MAX};

/// Why a text is no scenario.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("line {line}, column {column}: {problem}")]
pub struct ScenarioError {
    /// Which line, from 1.
    pub line: usize,
    /// Which character of it, from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
}

/// The words of one line.
struct Words<'a> {
    line: usize,
    text: &'a str,
    words: Vec<(usize, &'a str)>,
    next: usize,
}

impl<'a> Words<'a> {
    fn of(line: usize, text: &'a str) -> Self {
        let code = text.split('#').next().unwrap_or_default();
        let begin = |word: &str| code[..word.as_ptr() as usize - code.as_ptr() as usize].chars().count() + 1;
        let words = code.split_whitespace().map(|word| (begin(word), word)).collect();
        Words { line, text: code.trim(), words, next: 0 }
    }

    /// A complaint about the word that was taken last, or about its absence.
    fn complain(&self, problem: impl Into<String>) -> ScenarioError {
        let at = self.next.saturating_sub(1).min(self.words.len().saturating_sub(1));
        let column = self.words.get(at).map_or(1, |(column, _)| *column);
        ScenarioError { line: self.line, column, problem: problem.into() }
    }

    fn take(&mut self, wanted: &str) -> Result<&'a str, ScenarioError> {
        let Some((_, word)) = self.words.get(self.next).copied() else {
            let column = self.text.chars().count() + 1;
            return Err(ScenarioError { line: self.line, column, problem: format!("{wanted} is missing") });
        };
        self.next += 1;
        Ok(word)
    }

    fn has(&mut self, word: &str) -> bool {
        let found = self.words.get(self.next).is_some_and(|(_, next)| *next == word);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, word: &str) -> Result<(), ScenarioError> {
        match self.take(&format!("{word:?}"))? {
            found if found == word => Ok(()),
            found => Err(self.complain(format!("{found:?} where {word:?} belongs"))),
        }
    }

    fn number<T: std::str::FromStr>(&mut self, wanted: &str) -> Result<T, ScenarioError> {
        let word = self.take(wanted)?;
        word.parse().map_err(|_| self.complain(format!("{word:?} is not {wanted}")))
    }

    /// A length of time in microseconds: `300ms` or `20s`.
    fn time(&mut self) -> Result<u64, ScenarioError> {
        let word = self.take("a time such as 20s or 300ms")?;
        let (digits, unit) = match (word.strip_suffix("ms"), word.strip_suffix('s')) {
            (Some(digits), _) => (digits, 1_000),
            (None, Some(digits)) => (digits, 1_000_000),
            (None, None) => ("", 0),
        };
        let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        let number = number.filter(|us| u128::from(*us) <= RUN_MAX.as_micros());
        number.ok_or_else(|| self.complain(format!("{word:?} is no time such as 20s or 300ms")))
    }

    fn who(&mut self, nodes: u64) -> Result<Who, ScenarioError> {
        let word = self.take("who: leader, follower, others, or hosts such as h1,h3")?;
        match word {
            "leader" => return Ok(Who::Leader),
            "follower" => return Ok(Who::Follower),
            "others" => return Ok(Who::Others),
            _ => {}
        }
        let host = |name: &str| {
            let number = name.strip_prefix('h').and_then(|number| number.parse().ok());
            let known = number.filter(|number| (1..=nodes).contains(number)).map(HostId);
            known.ok_or_else(|| self.complain(format!("{name:?} is none of leader, follower, others, h1 to h{nodes}")))
        };
        word.split(',').map(host).collect::<Result<_, _>>().map(Who::Hosts)
    }

    fn end(&mut self) -> Result<(), ScenarioError> {
        match self.words.get(self.next) {
            None => Ok(()),
            Some((_, word)) => {
                let word = word.to_owned();
                self.next += 1;
                Err(self.complain(format!("{word:?} is one word too many")))
            }
        }
    }
}

fn deed(words: &mut Words<'_>, nodes: u64) -> Result<Deed, ScenarioError> {
    let verb = words.take("what is done")?;
    if verb == "heal" {
        return Ok(Deed::Heal);
    }
    const VERBS: [&str; 17] = [
        "cut",
        "slow",
        "crash",
        "kill",
        "pause",
        "stop-clock",
        "wall",
        "slow-disk",
        "fill-disk",
        "fail-syncs",
        "mend",
        "end-machine",
        "fail-starts",
        "hang",
        "rot",
        "lose-disk",
        "leave",
    ];
    if !VERBS.contains(&verb) {
        return Err(words.complain(format!("{verb:?} is none of expect, heal, {}", VERBS.join(", "))));
    }
    let who = words.who(nodes)?;
    let length = |words: &mut Words<'_>| {
        words.expect("for")?;
        words.time()
    };
    Ok(match verb {
        "cut" => {
            let both = words.has("from");
            if !both {
                words.expect("to")?;
            }
            Deed::Cut { from: who, to: words.who(nodes)?, both }
        }
        "slow" => {
            words.expect("to")?;
            let to = words.who(nodes)?;
            words.expect("by")?;
            Deed::Slow(who, to, words.time()?)
        }
        "crash" => Deed::Crash(who, length(words)?),
        "kill" => Deed::Kill(who, length(words)?),
        "pause" => Deed::Pause(who, length(words)?),
        "stop-clock" => Deed::StopClock(who, length(words)?),
        "wall" => {
            let back = words.has("back");
            let offset = words.time()? as i64;
            Deed::Wall(who, if back { -offset } else { offset })
        }
        "slow-disk" => Deed::SlowDisk(who, words.time()?),
        "fill-disk" => Deed::FillDisk(who),
        "fail-syncs" => Deed::FailSyncs(who, words.number("a number of syncs")?),
        "mend" => Deed::Mend(who),
        "end-machine" => Deed::EndMachine(who),
        "hang" => Deed::Hang(who, length(words)?),
        "rot" => Deed::Rot(who, length(words)?),
        "lose-disk" => Deed::LoseDisk(who, length(words)?),
        "leave" => Deed::Leave(who),
        _ => Deed::FailStarts(who, words.number("a number of starts")?),
    })
}

fn expectation(words: &mut Words<'_>, nodes: u64) -> Result<Expectation, ScenarioError> {
    match words.take("what is expected")? {
        "leader" => Ok(Expectation::Leader(words.has("other"))),
        "machines" => Ok(Expectation::Machines),
        "voters" => Ok(Expectation::Voters(words.number("a number of voters")?)),
        "writes" => Ok(Expectation::Writes(words.who(nodes)?, true)),
        "no" => {
            words.expect("writes")?;
            Ok(Expectation::Writes(words.who(nodes)?, false))
        }
        verb @ ("sees" | "misses") => {
            let (who, whom) = (words.who(nodes)?, words.who(nodes)?);
            Ok(Expectation::Sees(who, whom, verb == "sees"))
        }
        other => {
            Err(words
                .complain(format!("{other:?} is none of leader, machines, voters, writes, no writes, sees, misses")))
        }
    }
}

/// A script's bytes as text.
///
/// # Errors
/// The first character that is none.
pub fn decode(bytes: &[u8]) -> Result<&str, ScenarioError> {
    str::from_utf8(bytes).map_err(|error| {
        let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let last = good.rsplit('\n').next().unwrap_or_default();
        let (line, column) = (good.matches('\n').count() + 1, last.chars().count() + 1);
        ScenarioError { line, column, problem: "this is no UTF-8".to_owned() }
    })
}

/// Reads a script whose runs end with a calm of this length.
///
/// # Errors
/// The first word that cannot be read.
pub fn parse(text: &str, calm: Duration) -> Result<Scenario, ScenarioError> {
    let faults = Faults::of([]);
    let mut scenario = Scenario { seed: 1, nodes: 3, seconds: 60, faults, steps: Vec::new() };
    for (at, line) in text.lines().enumerate() {
        let mut words = Words::of(at + 1, line);
        if words.words.is_empty() {
            continue;
        }
        if at >= SCENARIO_LINES_MAX {
            return Err(words.complain(format!("more than {SCENARIO_LINES_MAX} lines")));
        }
        let is_step = scenario_line(&mut words, &mut scenario, calm)?;
        words.end()?;
        if !is_step && !scenario.steps.is_empty() {
            words.next = 1;
            return Err(words.complain("what a run is of comes before what is done in it"));
        }
    }
    Ok(scenario)
}

/// Reads one line; `true` when it is a step.
fn scenario_line(words: &mut Words<'_>, scenario: &mut Scenario, calm: Duration) -> Result<bool, ScenarioError> {
    match words.take("a word")? {
        "seed" => scenario.seed = words.number("a seed")?,
        "nodes" => {
            scenario.nodes = words.number("a number of nodes")?;
            if !(1..=SCENARIO_NODES_MAX).contains(&scenario.nodes) {
                return Err(words.complain(format!("nodes are 1 to {SCENARIO_NODES_MAX}")));
            }
        }
        "seconds" => {
            scenario.seconds = words.number("a number of seconds")?;
            if !(calm.as_secs() + 5..=RUN_MAX.as_secs()).contains(&scenario.seconds) {
                return Err(words.complain(format!("seconds are {} to {}", calm.as_secs() + 5, RUN_MAX.as_secs())));
            }
        }
        "faults" => {
            let list = words.take("a list of faults")?;
            scenario.faults = list.parse().map_err(|error| words.complain(format!("{error}")))?;
        }
        "at" => {
            let step = step(words, scenario, calm)?;
            scenario.steps.push(step);
            return Ok(true);
        }
        other => return Err(words.complain(format!("{other:?} is none of seed, nodes, seconds, faults, at"))),
    }
    Ok(false)
}

fn step(words: &mut Words<'_>, scenario: &Scenario, calm: Duration) -> Result<Step, ScenarioError> {
    let at_us = words.time()?;
    if scenario.steps.last().is_some_and(|last| last.at_us > at_us) {
        return Err(words.complain("this time is before that of the line above"));
    }
    let end_us = scenario.seconds * 1_000_000;
    let calm_us = end_us - calm.as_micros() as u64;
    let what = if words.has("expect") {
        if at_us >= end_us {
            return Err(words.complain(format!("the run ends at {} s", scenario.seconds)));
        }
        What::Expect(expectation(words, scenario.nodes)?)
    } else {
        if at_us >= calm_us {
            return Err(
                words.complain(format!("nothing is done in the calm, which begins at {} s", calm_us / 1_000_000))
            );
        }
        What::Do(deed(words, scenario.nodes)?)
    };
    Ok(Step { at_us, text: words.text.split_whitespace().collect::<Vec<_>>().join(" "), what })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Duration = Duration::from_secs(15);

    #[test]
    fn a_script_is_read() {
        let text = "# a cut\nnodes 5\nseconds 50 # short\n\nat 10s cut leader to others\nat 12s expect leader other\n\
                    at 12500ms slow-disk h1,h2 80ms\nat 49s expect no writes h5\n";
        let scenario = parse(text, CALM).unwrap();
        assert_eq!((scenario.nodes, scenario.seconds, scenario.steps.len()), (5, 50, 4));
        let cut = Deed::Cut { from: Who::Leader, to: Who::Others, both: false };
        let first = Step { at_us: 10_000_000, text: "at 10s cut leader to others".to_owned(), what: What::Do(cut) };
        assert_eq!(scenario.steps[0], first);
        let slow = Deed::SlowDisk(Who::Hosts(vec![HostId(1), HostId(2)]), 80_000);
        assert_eq!((scenario.steps[2].at_us, &scenario.steps[2].what), (12_500_000, &What::Do(slow)));
        let silent = Expectation::Writes(Who::Hosts(vec![HostId(5)]), false);
        assert_eq!(scenario.steps[3].what, What::Expect(silent));
    }

    #[test]
    fn bytes_that_are_no_text_are_told_with_line_and_column() {
        assert_eq!(decode("nodes 3 # fünf\n".as_bytes()), Ok("nodes 3 # fünf\n"));
        for (bytes, place) in [
            (&b"\xff"[..], "line 1, column 1"),
            (b"nodes 3\r\nat 9s \xffheal\n", "line 2, column 7"),
            (b"# f\xc3\xbcnf \xc3", "line 1, column 8"),
        ] {
            assert_eq!(decode(bytes).unwrap_err().to_string(), format!("{place}: this is no UTF-8"));
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_with_line_and_column() {
        let cases = [
            ("nodes x", "line 1, column 7: \"x\" is not a number of nodes"),
            ("nodes 0", "line 1, column 7: nodes are 1 to"),
            ("\nwhatever", "line 2, column 1: \"whatever\" is none of seed, nodes"),
            ("at 10s explode h1", "line 1, column 8: \"explode\" is none of expect, heal, cut"),
            ("at 10s pause h4 for 2s", "line 1, column 14: \"h4\" is none of leader, follower, others, h1 to h3"),
            ("at 10s pause h1", "line 1, column 16: \"for\" is missing"),
            ("at 10m heal", "line 1, column 4: \"10m\" is no time"),
            ("at 10s heal now", "line 1, column 13: \"now\" is one word too many"),
            ("at 50s heal", "line 1, column 4: nothing is done in the calm, which begins at 45 s"),
            ("at 70s expect leader", "line 1, column 8: the run ends at 60 s"),
            ("at 9s heal\nat 8s heal", "line 2, column 4: this time is before"),
            ("at 9s heal\nnodes 4", "line 2, column 1: what a run is of comes before"),
            ("faults gremlins", "line 1, column 8: \"gremlins\" is no fault"),
            ("at 9s cut h1 und h2", "line 1, column 14: \"und\" where \"to\" belongs"),
        ];
        for (text, reason) in cases {
            let error = parse(text, CALM).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{text:?}: {error}");
        }
    }
}
