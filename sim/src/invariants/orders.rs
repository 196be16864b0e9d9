//! I2, for machines: what a linearizable read shows of a machine is what some order left that may have been the last one,
//! and nothing is acknowledged of a machine after its deletion was.
//!
//! Source: design sections 3 and 14. Values come more than once here, so that no search as in `linearizable` can tell which
//! order a read saw. What holds all the same: an order explains a read when it began before the read was over, and no other
//! one that was acknowledged lies wholly between the two.

use std::collections::BTreeMap;

use fabric::ids::MachineId;
use fabric::model::Desired;

use crate::limits::QUANTUM_US;

/// What is ordered of a machine, or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// What it should be; a machine that is not there is deleted.
    Desired(Desired),
    /// What a label of it says.
    Label(u64),
}

impl Value {
    fn is_of_the_same(self, other: Value) -> bool {
        matches!((self, other), (Value::Desired(_), Value::Desired(_)) | (Value::Label(_), Value::Label(_)))
    }
}

/// What came of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged.
    Done,
    /// It had no effect and never will.
    Refused,
    /// It may be there, now or later.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Order {
    begun_us: u64,
    /// None without an acknowledgement.
    ended_us: Option<u64>,
    value: Value,
    refused: bool,
}

impl Order {
    /// Whether it was acknowledged before that time. Moments of two hosts in one quantum have no order.
    fn is_over(&self, by_us: u64) -> bool {
        self.ended_us.is_some_and(|ended| ended + QUANTUM_US <= by_us)
    }
}

/// An order under way.
#[derive(Debug, Clone, Copy)]
pub struct Ticket(MachineId, usize);

/// What was ordered of every machine.
#[derive(Debug, Default)]
pub struct Orders(BTreeMap<MachineId, Vec<Order>>);

impl Orders {
    /// Somebody orders something, now.
    pub fn begin(&mut self, machine: MachineId, value: Value, now_us: u64) -> Ticket {
        let orders = self.0.entry(machine).or_default();
        orders.push(Order { begun_us: now_us, ended_us: None, value, refused: false });
        Ticket(machine, orders.len() - 1)
    }

    /// What came of it; what does not hold.
    pub fn end(&mut self, Ticket(machine, at): Ticket, outcome: Outcome, now_us: u64) -> Option<String> {
        let orders = self.0.get_mut(&machine)?;
        orders[at].refused = outcome == Outcome::Refused;
        if outcome != Outcome::Done {
            return None;
        }
        orders[at].ended_us = Some(now_us);
        let Order { begun_us, value, .. } = orders[at];
        let gone = |order: &Order| order.value == Value::Desired(Desired::Deleted) && order.is_over(begun_us);
        let late = value != Value::Desired(Desired::Deleted) && orders.iter().any(gone);
        late.then(|| format!("I2: {value:?} of machine {machine:?} was acknowledged after its deletion"))
    }

    /// Machines of which anything was ordered.
    pub fn machines(&self) -> Vec<MachineId> {
        self.0.keys().copied().collect()
    }

    /// Whether anybody ever had it deleted, with an answer or without.
    pub fn may_be_deleted(&self, machine: MachineId) -> bool {
        let gone = |order: &Order| order.value == Value::Desired(Desired::Deleted) && !order.refused;
        self.0.get(&machine).is_some_and(|orders| orders.iter().any(gone))
    }

    /// A linearizable read from then to then has shown this; what does not hold.
    pub fn shown(&self, machine: MachineId, value: Value, (begun_us, ended_us): (u64, u64)) -> Option<String> {
        let orders = self.0.get(&machine)?;
        let of_it = || orders.iter().filter(|order| !order.refused && order.value.is_of_the_same(value));
        let last = |order: &&Order| {
            order.begun_us <= ended_us
                && !of_it().any(|other| {
                    let after = order.ended_us.is_some_and(|ended| ended + QUANTUM_US <= other.begun_us);
                    after && other.is_over(begun_us)
                })
        };
        let explained = of_it().filter(|order| order.value == value).any(|order| last(&order));
        // Before the first one it is not there, or says nothing.
        let first = matches!(value, Value::Desired(Desired::Deleted) | Value::Label(0));
        let initial = first && !of_it().any(|order| order.is_over(begun_us));
        (!explained && !initial)
            .then(|| format!("I2: a read shows {value:?} of machine {machine:?}, which no order explains"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: MachineId = MachineId([1; 16]);
    const RUNNING: Value = Value::Desired(Desired::Running);
    const STOPPED: Value = Value::Desired(Desired::Stopped);
    const DELETED: Value = Value::Desired(Desired::Deleted);
    const SECOND: u64 = 1_000_000;

    fn order(orders: &mut Orders, value: Value, at: u64, outcome: Outcome) -> Option<String> {
        let ticket = orders.begin(MACHINE, value, at * SECOND);
        orders.end(ticket, outcome, at * SECOND + 1)
    }

    #[test]
    fn a_lost_order_and_a_stale_read_are_seen() {
        let mut orders = Orders::default();
        let shown = |orders: &Orders, value, at: u64| orders.shown(MACHINE, value, (at * SECOND, at * SECOND + 1));
        order(&mut orders, RUNNING, 1, Outcome::Done);
        assert_eq!((shown(&orders, RUNNING, 2), shown(&orders, DELETED, 2).is_some()), (None, true), "it is lost");
        order(&mut orders, STOPPED, 3, Outcome::Done);
        assert!(shown(&orders, RUNNING, 4).is_some() && shown(&orders, STOPPED, 4).is_none());
        assert_eq!(shown(&orders, RUNNING, 2), None, "one that was read before");
        order(&mut orders, RUNNING, 5, Outcome::Refused);
        assert!(shown(&orders, RUNNING, 6).is_some(), "it had no effect");
        order(&mut orders, RUNNING, 7, Outcome::Unknown);
        assert!(shown(&orders, RUNNING, 8).is_none() && shown(&orders, STOPPED, 8).is_none(), "either may be");
        assert!(!orders.may_be_deleted(MACHINE));
    }

    #[test]
    fn two_at_once_may_come_in_any_order_and_labels_are_apart() {
        let mut orders = Orders::default();
        let (one, two) = (orders.begin(MACHINE, RUNNING, 0), orders.begin(MACHINE, STOPPED, SECOND));
        assert_eq!(orders.end(two, Outcome::Done, 2 * SECOND), None);
        assert_eq!(orders.end(one, Outcome::Done, 3 * SECOND), None);
        order(&mut orders, Value::Label(7), 4, Outcome::Done);
        for value in [RUNNING, STOPPED, Value::Label(7)] {
            assert_eq!(orders.shown(MACHINE, value, (9 * SECOND, 9 * SECOND)), None, "{value:?}");
        }
        assert!(orders.shown(MACHINE, Value::Label(0), (9 * SECOND, 9 * SECOND)).is_some());
    }

    #[test]
    fn nothing_is_acknowledged_after_a_deletion() {
        let mut orders = Orders::default();
        assert_eq!(order(&mut orders, DELETED, 1, Outcome::Done), None);
        assert_eq!(order(&mut orders, DELETED, 2, Outcome::Done), None, "again");
        assert!(order(&mut orders, RUNNING, 3, Outcome::Done).unwrap().contains("after its deletion"));
        assert!(orders.may_be_deleted(MACHINE));
    }
}
