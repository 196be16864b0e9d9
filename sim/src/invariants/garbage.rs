//! I8: no decoded message, token or file can crash or wedge a node.
//!
//! Source: design sections 3 and 14. That a node ends without a fault of its disk is judged where it ends
//! (`software/node.rs`); here, that after all the garbage every node still answers every other one.

use std::collections::BTreeSet;

use crate::actor::HostId;

/// Who was sent garbage, and who answers.
#[derive(Debug, Default)]
pub struct Garbage {
    sent: u64,
    answered: BTreeSet<(HostId, HostId)>,
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

    /// A host that asked a proper question, after the last garbage, was answered by another.
    pub fn answered(&mut self, asking: HostId, by: HostId) {
        self.answered.insert((asking, by));
    }

    /// What does not hold of these hosts.
    pub fn check(&self, up: &[HostId]) -> Vec<String> {
        let pairs = up.iter().flat_map(|asking| up.iter().map(move |by| (*asking, *by)));
        let silent = pairs.filter(|pair| pair.0 != pair.1 && !self.answered.contains(pair));
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
        garbage.answered(HostId(1), HostId(2));
        assert_eq!(garbage.check(&[HostId(1), HostId(2)]), ["I8: h1 does not answer h2 after the garbage"]);
        garbage.answered(HostId(2), HostId(1));
        assert!(garbage.check(&[HostId(1), HostId(2)]).is_empty() && garbage.count() == 1);
    }
}
