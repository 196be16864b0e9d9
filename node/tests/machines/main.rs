//! Real machines: namespaces, control groups, supervisors. Each test has a node of its own.

mod lifecycle;
mod world;
