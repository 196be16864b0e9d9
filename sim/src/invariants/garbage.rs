//! I8: no decoded message, token or file can crash or wedge a node.
//!
//! Source: design sections 3 and 14. That a node ends without a fault of its disk is judged where it ends
//! (`software/node.rs`); here, that after all the garbage every node still answers every other one.

use std::collections::{BTreeMap, BTreeSet};

use crate::actor::HostId;

/// Who was sent garbage, and who answers.
#[derive(Debug, Default)]
pub struct Garbage {
    sent: u64,
    /// Who answered each host when it last asked all of them.
    answered: BTreeMap<HostId, BTreeSet<HostId>>,
}

impl Garbage {
    /// Something was sent that is no message.
    pub fn sent(&mut self) {
        self.sent += 1;
    }

    /// How much was sent.
    pub fn count(&self) -> u64 {
        self.sent
    }

    /// A host has asked all others proper questions, and these have answered. What it was answered before counts no more.
    pub fn answered(&mut self, asking: HostId, by: BTreeSet<HostId>) {
        self.answered.insert(asking, by);
    }

    /// What does not hold of these hosts.
    pub fn check(&self, up: &[HostId]) -> Vec<String> {
        let pairs = up.iter().flat_map(|asking| up.iter().map(move |by| (*asking, *by)));
        let answers = |(asking, by): &(HostId, HostId)| self.answered.get(asking).is_some_and(|all| all.contains(by));
        let silent = pairs.filter(|pair| pair.0 != pair.1 && !answers(pair));
        silent.map(|(asking, by)| format!("I8: {by} does not answer {asking} after the garbage")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_named() {
        let mut garbage = Garbage::default();
        garbage.sent();
        garbage.answered(HostId(1), BTreeSet::from([HostId(2)]));
        assert_eq!(garbage.check(&[HostId(1), HostId(2)]), ["I8: h1 does not answer h2 after the garbage"]);
        garbage.answered(HostId(2), BTreeSet::from([HostId(1)]));
        assert!(garbage.check(&[HostId(1), HostId(2)]).is_empty() && garbage.count() == 1);
        garbage.answered(HostId(2), BTreeSet::new());
        assert_eq!(garbage.check(&[HostId(1), HostId(2)]), ["I8: h1 does not answer h2 after the garbage"]);
    }
}
