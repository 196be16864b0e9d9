//! Whose frame goes next: every network gets the same number of bytes of a way that all want, so that one that floods takes
//! nothing from the others (deficit round robin: Shreedhar and Varghese 1995).

use std::collections::{BTreeMap, VecDeque};

/// Bytes that a network may send before it is the next one's turn, if one waits.
const QUANTUM_BYTES: usize = 16 * 1024;

/// Items of several keys that wait, in the order of each key.
#[derive(Debug)]
pub struct Fair<K, T> {
    queues: BTreeMap<K, Queue<T>>,
    /// Keys with items, whose turn it is first.
    turns: VecDeque<K>,
}

#[derive(Debug)]
struct Queue<T> {
    items: VecDeque<(usize, T)>,
    /// Bytes that it may send in this turn.
    credit: usize,
}

impl<K: Copy + Ord, T> Default for Fair<K, T> {
    fn default() -> Self {
        Fair { queues: BTreeMap::new(), turns: VecDeque::new() }
    }
}

impl<K: Copy + Ord, T> Fair<K, T> {
    /// Adds an item of so many bytes. How many wait is bounded by the caller.
    pub fn push(&mut self, key: K, bytes: usize, item: T) {
        let queue = self.queues.entry(key).or_insert_with(|| {
            self.turns.push_back(key);
            Queue { items: VecDeque::new(), credit: QUANTUM_BYTES }
        });
        queue.items.push_back((bytes, item));
    }

    /// The next item.
    pub fn pop(&mut self) -> Option<T> {
        loop {
            let key = *self.turns.front()?;
            let queue = self.queues.get_mut(&key)?;
            let bytes = queue.items.front().map(|(bytes, _)| *bytes)?;
            if queue.credit < bytes && self.turns.len() > 1 {
                queue.credit += QUANTUM_BYTES;
                self.turns.rotate_left(1);
                continue;
            }
            queue.credit = queue.credit.saturating_sub(bytes);
            let (_, item) = queue.items.pop_front()?;
            if queue.items.is_empty() {
                // Who has nothing to send saves nothing up.
                self.queues.remove(&key);
                self.turns.pop_front();
            }
            return Some(item);
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_floods_takes_nothing_from_the_others() {
        let mut fair = Fair::default();
        (0..100).for_each(|_| fair.push('f', 64_000, 'f'));
        (0..40).for_each(|_| fair.push('s', 1_000, 's'));
        let order: String = std::iter::from_fn(|| fair.pop()).collect();
        let last = order.rfind('s').unwrap();
        assert!(order[..last].matches('f').count() <= 4, "40 kB wait for no more than as much, and one: {order}");
        assert!(order.len() == 140 && fair.is_empty());
    }

    proptest! {
        #[test]
        fn all_come_out_each_key_in_its_order(items in prop::collection::vec((0_u8..4, 1_usize..70_000), 0..200)) {
            let mut fair = Fair::default();
            items.iter().enumerate().for_each(|(at, (key, bytes))| fair.push(*key, *bytes, (*key, at)));
            let out: Vec<(u8, usize)> = std::iter::from_fn(|| fair.pop()).collect();
            prop_assert_eq!(out.len(), items.len());
            for key in 0..4 {
                let of: Vec<usize> = out.iter().filter(|(it, _)| *it == key).map(|(_, at)| *at).collect();
                prop_assert!(of.is_sorted());
            }
            prop_assert!(fair.is_empty());
        }
    }
}
