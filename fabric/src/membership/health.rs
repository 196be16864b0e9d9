//! Local health (Lifeguard): how much a node doubts itself before it doubts others.
//!
//! A node that is starved of CPU or network sees everybody fail. Signs of that are its own timers firing late, others
//! suspecting it, and probes of several different members failing in a row (one dead member is no sign: its probes fail
//! for everybody). Each bad probe period raises the multiplier by one, each good one lowers it, and the time between
//! suspicion and death is scaled by `1 + multiplier`.

use std::collections::{BTreeSet, VecDeque};

use crate::ids::NodeId;

/// Highest multiplier.
pub const MULTIPLIER_MAX: u8 = 8;
/// Probes looked back on.
const PROBES: usize = 8;
/// Different members whose probes failed lately, from which on the fault is likelier ours.
const MANY: usize = 3;

/// How this node is doing.
#[derive(Debug, Default, Clone)]
pub struct Health {
    multiplier: u8,
    distressed: bool,
    probes: VecDeque<Option<NodeId>>,
}

impl Health {
    /// 0 (well) to [`MULTIPLIER_MAX`].
    pub fn multiplier(&self) -> u8 {
        self.multiplier
    }

    /// A timer fired late, or somebody suspected us.
    pub fn distress(&mut self) {
        self.distressed = true;
    }

    /// A probe period has ended; `failed` is the member that did not answer.
    pub fn period(&mut self, failed: Option<NodeId>) {
        if self.probes.len() == PROBES {
            self.probes.pop_front();
        }
        self.probes.push_back(failed);
        let silent: BTreeSet<&NodeId> = self.probes.iter().flatten().collect();
        let bad = std::mem::take(&mut self.distressed) || (failed.is_some() && silent.len() >= MANY);
        if bad {
            self.multiplier = (self.multiplier + 1).min(MULTIPLIER_MAX);
        } else if failed.is_none() {
            self.multiplier = self.multiplier.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> Option<NodeId> {
        Some(NodeId([n; 32]))
    }

    #[test]
    fn one_dead_member_is_no_doubt_about_ourselves() {
        let mut health = Health::default();
        (0..20).for_each(|_| health.period(node(1)));
        assert_eq!(health.multiplier(), 0);
    }

    #[test]
    fn many_silent_members_are_and_answers_heal() {
        let mut health = Health::default();
        (0..20).for_each(|n| health.period(node(n)));
        assert_eq!(health.multiplier(), MULTIPLIER_MAX);
        (0..8).for_each(|_| health.period(None));
        assert_eq!(health.multiplier(), 0);
    }

    #[test]
    fn late_timers_raise_it_once_a_period() {
        let mut health = Health::default();
        (0..5).for_each(|_| health.distress());
        health.period(None);
        assert_eq!(health.multiplier(), 1);
        health.period(None);
        assert_eq!(health.multiplier(), 0);
    }
}
