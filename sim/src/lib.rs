//! The deterministic simulator: the node's own code on simulated time, network, disks, clocks and entropy.
//!
//! One seed gives one run, bit for bit, of every host's software: see `world` for how it is stepped and `ambient` for what
//! is closed off. A run is one process (`smartnode-sim run --seed N`): a second run in the same process would find
//! process-global state that the first one left.

#[cfg(not(tokio_unstable))]
compile_error!(
    "build with --cfg tokio_unstable: .cargo/config.toml says so, and RUSTFLAGS in the environment overrides it"
);

pub mod actor;
pub mod ambient;
pub mod clock;
pub mod coverage;
pub mod crowd;
pub mod disk;
pub mod entropy;
pub mod faults;
pub mod host;
pub mod invariants;
pub mod kernel;
pub mod layers;
pub mod limits;
pub mod net;
pub mod ports;
pub mod power;
pub mod random;
pub mod report;
pub mod scenario;
pub mod software;
pub mod timeline;
pub mod trace;
pub mod world;
