//! Every bound of the simulator.

use std::time::Duration;

/// Size of a simulated disk.
pub const DISK_BYTES: u64 = 1 << 30;
/// How long a sync takes on a disk that is well, in microseconds.
pub const SYNC_US: u64 = 400;
/// What a growing file has allocated ahead of its end (`fabric::seams::headroom`).
pub const HEADROOM_BYTES: u64 = 8 << 20;
/// Largest small file, as the real disk has it.
pub const SMALL_FILE_BYTES_MAX: usize = 16 << 20;
/// Most hosts in one world. Their addresses, of one /8, would do for more.
pub const HOSTS_MAX: u64 = 10_000;
/// Most nodes of a crowd: twice as many as are supported.
pub const CROWD_MAX: usize = 10_000;
/// Longest run, in simulated time.
pub const RUN_MAX: Duration = Duration::from_secs(24 * 3600);
/// Length of a step. No packet is faster than this, so nothing sent in a step can arrive in it.
pub const QUANTUM_US: u64 = 2_000;
/// Packets under way to one socket; a further one is lost, as in a full receive buffer.
pub const PACKETS_TO_SOCKET_MAX: usize = 4_096;
/// Largest UDP payload that the simulated links carry (an Ethernet frame's).
pub const PACKET_BYTES_MAX: usize = 1_472;
/// Violations kept of one run; the first says most.
pub const VIOLATIONS_MAX: usize = 20;
/// Most actions of one run's plan that can be told apart.
pub const ACTIONS_MAX: u64 = 100_000;
/// Operations of one run, when nothing else is said: more than any run has time for.
pub const OPERATIONS_MAX: u64 = 1_000_000;
/// Failures that a swarm lists, first ones first.
pub const FAILURES_LISTED_MAX: usize = 20;
/// Most runs of one swarm.
pub const SEEDS_MAX: u64 = 10_000_000;
/// Most runs at once.
pub const JOBS_MAX: u64 = 256;
/// Most lines of a scenario.
pub const SCENARIO_LINES_MAX: usize = 10_000;
/// Most bytes of a scenario.
pub const SCENARIO_BYTES_MAX: usize = 1 << 20;
/// Most hosts of a scenario.
pub const SCENARIO_NODES_MAX: u64 = 100;
/// Names of machines that a replay remembers, to say which there were.
pub const NAMES_MAX: usize = 200;
