//! A node of the fabric: where machines go, who runs them, and how people ask for it.
//!
//! What is absent: this package never opens a socket between nodes (that is `fabric::transport`) and never sees
//! openraft's types. Decisions (`schedule`, `reconcile`, `caretaker`) are pure; drivers beside them run the effects.

pub mod api;
pub mod caretaker;
pub mod cleanup;
pub mod cli;
pub mod config;
pub mod demo;
#[cfg(test)]
mod fixtures;
pub mod host;
pub mod images;
pub mod lab;
pub mod limits;
pub mod moving;
pub mod node;
pub mod reconcile;
pub mod room;
pub mod runtime;
pub mod schedule;
pub mod transfer;
pub mod units;
