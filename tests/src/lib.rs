//! Cluster stories on real processes.
