//! How many operations the clients of a run may begin under fire: what a shrunken run is given less of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::OPERATIONS_MAX;

/// Operations that may still be begun. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    all: u64,
    spent: Arc<AtomicU64>,
}

impl Budget {
    /// So many operations.
    pub fn of(all: u64) -> Self {
        Budget { all, spent: Arc::default() }
    }

    /// Takes one, if one is left.
    pub fn take(&self) -> bool {
        let left = self.spent.load(Ordering::Relaxed) < self.all;
        if left {
            self.spent.fetch_add(1, Ordering::Relaxed);
        }
        left
    }

    /// Operations that were begun.
    pub fn spent(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget::of(OPERATIONS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_shared_and_ends() {
        let budget = Budget::of(2);
        let other = budget.clone();
        assert!(budget.take() && other.take() && !budget.take());
        assert_eq!(other.spent(), 2);
    }
}
