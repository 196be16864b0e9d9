//! How traffic of this host reaches machines.
//!
//! What it holds today: [`proxy`], which forwards TCP connections of a host port into a machine. What is absent: frames,
//! tunnels, overlay networks, firewalls and name service (a later part); and always: this package never reads Raft. It is
//! told which port leads where, and how to connect: entering a machine's network namespace is the runtime's work.

pub mod limits;
pub mod proxy;

pub use proxy::{Proxy, ProxyConfig, ProxyError};
