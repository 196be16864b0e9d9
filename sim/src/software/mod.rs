//! What can be run on the hosts: parts of the product, from the transport alone to whole nodes, and a control.

pub mod admins;
pub mod budget;
pub mod calls;
pub mod cluster;
pub mod fragile;
pub mod gremlins;
pub mod history;
pub mod ledger;
pub mod node;
pub mod operators;
pub mod ping;
pub mod roster;
