//! One node: what it is made of, and how it becomes a member.

pub mod dir;
pub mod operations;
