//! A node of the fabric.
