//! Which smaller run to try next: pure, told what came of each.
//!
//! Any change of a run's settings changes all that follows, so nothing is monotonic and every candidate has to be run.
//! What cuts most comes first: nodes, then whole kinds of fault, then seconds and operations by halves, then single
//! actions of the plan in chunks of half, a quarter and so on. After a success the round begins again.

use smartnode_sim::faults::{Fault, Faults, Skip};
use smartnode_sim::limits::OPERATIONS_MAX;
use smartnode_sim::report::Report;

use super::sizes;
use crate::commands::Settings;

/// Shortest run that leaves faults any time.
const SECONDS_MIN: u64 = 20;
/// Fewest nodes worth a look: below, there is no quorum to lose.
const NODES_MIN: u64 = 2;

/// Walks from a failing run to smaller ones.
#[derive(Debug)]
pub struct Shrinker {
    smallest: Settings,
    actions: u64,
    operations: u64,
    /// What to try of the smallest so far, in order.
    candidates: Vec<Settings>,
    next: usize,
    /// Whether a run without any fault did not fail: smaller ones will hardly.
    needs_faults: bool,
}

impl Shrinker {
    /// Begins at a run that fails, with what it reported.
    pub fn new(smallest: Settings, report: Option<&Report>) -> Self {
        let (actions, operations) = sizes(report);
        let mut shrinker =
            Shrinker { smallest, actions, operations, candidates: Vec::new(), next: 0, needs_faults: false };
        shrinker.candidates = shrinker.smaller();
        shrinker
    }

    /// The smallest run known to fail.
    pub fn smallest(&self) -> &Settings {
        &self.smallest
    }

    /// The next run to try; none when nothing smaller fails.
    pub fn candidate(&self) -> Option<Settings> {
        self.candidates.get(self.next).cloned()
    }

    /// Takes what came of the run that [`Shrinker::candidate`] gave: its report if it failed in the same way.
    pub fn learn(&mut self, failed: Option<Option<&Report>>) {
        let Some(report) = failed else {
            self.needs_faults |= self.candidates[self.next].faults == Faults::of([]);
            self.next += 1;
            return;
        };
        self.smallest = self.candidates.swap_remove(self.next);
        (self.actions, self.operations) = sizes(report);
        (self.candidates, self.next) = (self.smaller(), 0);
    }

    fn smaller(&self) -> Vec<Settings> {
        let now = &self.smallest;
        let mut all = Vec::new();
        all.extend((NODES_MIN..now.nodes).rev().map(|nodes| Settings { nodes, ..now.clone() }));
        let enabled: Vec<Fault> =
            Fault::ALL.iter().map(|(fault, _)| *fault).filter(|fault| now.faults.has(*fault)).collect();
        if !enabled.is_empty() && !self.needs_faults {
            all.push(Settings { faults: Faults::of([]), ..now.clone() });
        }
        if enabled.len() > 1 {
            let without = |gone: &Fault| Faults::of(enabled.iter().copied().filter(|fault| fault != gone));
            all.extend(enabled.iter().map(|gone| Settings { faults: without(gone), ..now.clone() }));
        }
        let shorter = [SECONDS_MIN, now.seconds / 2, now.seconds * 3 / 4, now.seconds.saturating_sub(1)];
        let shorter = shorter.into_iter().filter(|seconds| (SECONDS_MIN..now.seconds).contains(seconds));
        all.extend(shorter.map(|seconds| Settings { seconds, ..now.clone() }));
        let most = now.operations.min(OPERATIONS_MAX).min(self.operations);
        let fewer = [0, most / 4, most / 2, most * 3 / 4, most.saturating_sub(1)];
        let fewer = fewer.into_iter().filter(|operations| *operations < most);
        all.extend(fewer.map(|operations| Settings { operations, ..now.clone() }));
        all.extend(self.fewer_actions());
        all.dedup();
        all
    }

    /// Leaves out halves of the actions that are left, then quarters, down to single ones.
    fn fewer_actions(&self) -> Vec<Settings> {
        let skip = self.smallest.skip.clone().unwrap_or_default();
        let left: Vec<u64> = (0..self.actions).filter(|action| !skip.has(*action)).collect();
        let mut all = Vec::new();
        let mut size = left.len().div_ceil(2);
        while size > 0 {
            for chunk in left.chunks(size) {
                let skip: Skip = skip.with(chunk.iter().copied());
                all.push(Settings { skip: Some(skip), ..self.smallest.clone() });
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::commands::What;

    fn report(actions: u64, operations: u64) -> Report {
        let tally = BTreeMap::from([("operations".to_owned(), operations)]);
        Report { seed: 1, digest: String::new(), records: 0, packets: 0, actions, tally, violations: Vec::new() }
    }

    fn shrink(fails: impl Fn(&Settings) -> bool) -> Settings {
        let settings = Settings {
            seconds: 60,
            nodes: 5,
            faults: "all".parse().unwrap(),
            software: What::Node,
            operations: OPERATIONS_MAX,
            skip: None,
        };
        let report = report(30, 100);
        let mut shrinker = Shrinker::new(settings, Some(&report));
        for _ in 0..1_000 {
            let Some(candidate) = shrinker.candidate() else { return shrinker.smallest().clone() };
            let failed = fails(&candidate);
            shrinker.learn(failed.then_some(Some(&report)));
        }
        panic!("it finds no end at {:?}", shrinker.smallest());
    }

    #[test]
    fn it_ends_at_what_the_failure_needs() {
        let smallest = shrink(|run| {
            let skip = run.skip.clone().unwrap_or_default();
            run.nodes >= 3 && run.faults.has(Fault::Crash) && !skip.has(7) && !skip.has(20) && run.operations >= 40
        });
        assert_eq!((smallest.nodes, smallest.seconds), (3, SECONDS_MIN));
        assert_eq!(smallest.faults.to_string(), "crash");
        let skip = smallest.skip.unwrap();
        assert_eq!((0..30).filter(|action| !skip.has(*action)).collect::<Vec<_>>(), [7, 20]);
        assert_eq!(smallest.operations, 40);
    }

    #[test]
    fn what_always_fails_shrinks_to_nothing() {
        let smallest = shrink(|_| true);
        assert_eq!((smallest.nodes, smallest.operations), (NODES_MIN, 0));
        assert_eq!(smallest.faults.to_string(), "none");
    }
}
