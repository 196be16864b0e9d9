//! The fabric: who the nodes are, how they talk, who is alive, and what they tell each other.
//!
//! What is absent: this package knows no Raft, no machines' processes and no HTTP. quinn's, foca's and chitchat's
//! types stay inside it (quinn's UDP socket trait is the packet seam and the one exception).

#[cfg(not(tokio_unstable))]
compile_error!(
    "build with --cfg tokio_unstable: .cargo/config.toml says so, and RUSTFLAGS in the environment overrides it"
);

pub mod events;
pub mod gossip;
pub mod human;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod membership;
pub mod model;
pub mod rpc;
pub mod seams;
pub mod token;
pub mod transport;
pub mod wire;
