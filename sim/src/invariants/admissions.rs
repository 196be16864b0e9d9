//! I4, for tokens: one admits no more nodes than it was made for.
//!
//! Source: design sections 4 and 14 (a quota is never exceeded). Counted by what those were told who asked to be admitted,
//! and not by what the ledger says of its tokens.

use std::collections::{BTreeMap, BTreeSet};

use fabric::ids::{NodeId, TokenId};

#[derive(Debug)]
struct Uses {
    most: usize,
    admitted: BTreeSet<NodeId>,
}

/// Whom each token has admitted.
#[derive(Debug, Default)]
pub struct Admissions {
    tokens: BTreeMap<TokenId, Uses>,
}

impl Admissions {
    /// A token was made, for so many nodes.
    pub fn made(&mut self, token: TokenId, most: usize) {
        self.tokens.insert(token, Uses { most, admitted: BTreeSet::new() });
    }

    /// A node was told that a token has admitted it; what does not hold.
    pub fn admitted(&mut self, token: TokenId, node: NodeId) -> Option<String> {
        let Some(uses) = self.tokens.get_mut(&token) else {
            return Some(format!("I4: token {token} admitted {} and was never made", node.short()));
        };
        uses.admitted.insert(node);
        let (all, most) = (uses.admitted.len(), uses.most);
        (all > most).then(|| format!("I4: token {token}, made for {most}, admitted {} as its node {all}", node.short()))
    }

    /// Tokens that have admitted as many as they were made for.
    pub fn used_up(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.tokens.iter().filter(|(_, uses)| uses.admitted.len() >= uses.most).map(|(token, _)| *token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_too_many_is_told_and_the_same_one_again_is_none() {
        let mut admissions = Admissions::default();
        let (token, node) = (TokenId([1; 8]), |n| NodeId([n; 32]));
        admissions.made(token, 1);
        assert_eq!(admissions.used_up().count(), 0);
        assert_eq!(admissions.admitted(token, node(1)), None);
        assert_eq!(admissions.admitted(token, node(1)), None, "asked again after a crash");
        assert_eq!(admissions.used_up().collect::<Vec<_>>(), [token]);
        assert!(admissions.admitted(token, node(2)).unwrap().contains("made for 1, admitted"));
        assert!(admissions.admitted(TokenId([2; 8]), node(3)).unwrap().contains("never made"));
    }
}
