//! What can be run on the hosts.

pub mod calls;
pub mod leaky;
pub mod ping;
