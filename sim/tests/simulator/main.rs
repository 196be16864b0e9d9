//! The simulator as its users have it: the binary, one process per seed.

mod determinism;
mod guards;
mod mutants;
mod reading;
mod runs;
mod scenarios;
mod swarm;
