//! What must hold, one file each, after design section 14.

pub mod acknowledged;
pub mod addresses;
pub mod admissions;
pub mod converged;
#[cfg(test)]
mod fixtures;
pub mod garbage;
pub mod linearizable;
pub mod machines_once;
pub mod moved;
pub mod one_owner;
pub mod orders;
pub mod promises;
pub mod same_state;
pub mod takeovers;
