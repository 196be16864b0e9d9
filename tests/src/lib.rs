//! The cluster DSL: stories on real `smartnode` processes, each host a network namespace.
//!
//! ```no_run
//! let mut cluster = smartnode_tests::Cluster::of(3, "doc");
//! cluster.kill_daemon(0);
//! cluster.wait_alive(1, 2);
//! ```
//!
//! Every wait goes through [`poll::until`]: a condition and a deadline, never a plain sleep.

mod cluster;
pub mod hosts;
pub mod http;
pub mod machines;
pub mod poll;
pub mod report;

pub use cluster::{Cluster, Reply, smartnode};
