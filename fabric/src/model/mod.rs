//! The domain model: what the ledger keeps and what nodes tell each other.
//!
//! Types are immutable once released: a change is a new `...V2` with a `From`, and the alias moves on.
//! Values are plain data; limits are checked by [`check`] at every door.

pub mod check;
pub mod firewall;
mod machine;
mod names;
mod network;
mod node;

pub use machine::*;
pub use names::{Name, NameError};
pub use network::*;
pub use node::*;
