//! How far waiting is: a spinner on a terminal, plain lines otherwise, each state once.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::api::types::{Operation, OperationState};

/// The progress of one wait, on stderr. Gone when dropped.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    last: RefCell<String>,
}

impl Progress {
    /// Shows nothing yet.
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Progress { bar, quiet, last: RefCell::default() }
    }

    /// Where it is now.
    pub fn say(&self, words: &str) {
        let words = words.strip_prefix("not yet: ").unwrap_or(words);
        if self.quiet || *self.last.borrow() == words {
            return;
        }
        words.clone_into(&mut self.last.borrow_mut());
        match &self.bar {
            Some(bar) => bar.set_message(words.to_owned()),
            None => drop(writeln!(anstream::stderr(), "{words}")),
        }
    }

    /// Where an operation is now.
    pub fn operation(&self, operation: &Operation) {
        let percent = operation.progress_permille / 10;
        let outage = match operation.predicted_outage_ms {
            Some(ms) => format!(", outage about {}", fabric::human::duration(Duration::from_millis(ms))),
            None => String::new(),
        };
        let (kind, subject, phase) = (&operation.kind, &operation.subject, &operation.phase);
        self.say(&match operation.state {
            OperationState::Running => format!("{kind} {subject}: {phase}, {percent} %{outage}"),
            OperationState::Done => format!("{kind} {subject}: done"),
            OperationState::Failed => format!("{kind} {subject}: failed at {phase}"),
            OperationState::Cancelled => format!("{kind} {subject}: cancelled at {phase}"),
        });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
