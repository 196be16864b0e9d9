//! How traffic of this host reaches machines.
//!
//! [`proxy`] forwards TCP connections of a host port into a machine. Overlay networks are begun: what decides about a frame
//! is pure ([`frame`], [`directory`], [`forward`], [`answers`], [`superframe`]); a [`switch`] joins the machines of one network
//! on this node, and [`plane`] carries frames between its [`tap`] and other nodes. Absent: name service and ways to the
//! outside. And always: this package never reads Raft. It is told which port leads where, who is in which network, and how to
//! connect: entering a machine's network namespace is the runtime's work.

pub mod answers;
pub mod directory;
pub mod drops;
#[cfg(test)]
mod fixtures;
pub mod forward;
pub mod frame;
pub mod limits;
pub mod netns;
pub mod plane;
pub mod proxy;
pub mod superframe;
pub mod switch;
pub mod tap;
pub mod vnet;

pub use proxy::{Proxy, ProxyConfig, ProxyError};
