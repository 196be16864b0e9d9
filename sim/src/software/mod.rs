//! What can be run on the hosts.

pub mod leaky;
pub mod ping;
