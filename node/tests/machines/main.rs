//! Real machines: namespaces, control groups, supervisors. Each test has a node of its own.
#![expect(clippy::disallowed_methods, reason = "tests work with real files")]

mod bounds;
mod leases;
mod lifecycle;
mod survival;
mod world;
