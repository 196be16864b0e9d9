//! What must hold, one file each, after design section 14.

pub mod machines_once;
pub mod one_owner;
