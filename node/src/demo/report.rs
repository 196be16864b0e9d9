//! What took how long.

use std::time::Duration;

use fabric::human;
use serde::Serialize;

/// The figures of one run, in milliseconds. What could not run here is absent, and named in `left_out`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `namespaces` or `loopback`.
    pub isolation: String,
    /// Nodes of the fabric.
    pub nodes: usize,
    /// `init` to the admin port answering.
    pub init_ms: u64,
    /// `join` to the founder seeing a node on which it can place machines: the slower of the two.
    pub join_ms: u64,
    /// The last join to a fabric that may lose any one node.
    pub tolerance_ms: u64,
    /// `image from-host`.
    pub image_ms: Option<u64>,
    /// `machine create` to its program running.
    pub machine_start_ms: Option<u64>,
    /// The kill to both survivors holding the node for dead.
    pub detect_ms: u64,
    /// The kill to the first good answer from elsewhere, for a client outside that asks every 10 ms.
    pub failover_ms: Option<u64>,
    /// The kill to the first write that the survivors acknowledged.
    pub write_failover_ms: u64,
    /// `start` of the dead node to both survivors holding it for alive.
    pub return_ms: u64,
    /// `machine move` from the request to its end.
    pub move_ms: Option<u64>,
    /// Last good answer before the move to the first one after it, for the same client.
    pub move_outage_ms: Option<u64>,
    /// What cannot run on this host, and why.
    pub left_out: Vec<String>,
}

impl Report {
    /// Rows of the table at the end.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let mut row = |what: &str, millis: Option<u64>| {
            let time = millis.map_or_else(|| "not on this host".into(), time);
            rows.push(vec![what.to_owned(), time]);
        };
        row("found a fabric (init to ready)", Some(self.init_ms));
        row("join a node (to schedulable, the slower of two)", Some(self.join_ms));
        row("tolerate the loss of any one node (after the last join)", Some(self.tolerance_ms));
        row("pack an image from this host", self.image_ms);
        row("start a machine (create to running)", self.machine_start_ms);
        row("notice a dead node (kill to both survivors sure)", Some(self.detect_ms));
        row("write again (kill to acknowledged)", Some(self.write_failover_ms));
        row("serve elsewhere (kill to first good answer outside)", self.failover_ms);
        row("take the node back (start to alive everywhere)", Some(self.return_ms));
        row("move the machine (request to done)", self.move_ms);
        row("outage of the move, as seen outside", self.move_outage_ms);
        rows
    }
}

/// Below ten seconds to the millisecond.
fn time(millis: u64) -> String {
    if millis < 10_000 { format!("{millis} ms") } else { human::duration(Duration::from_millis(millis)) }
}
