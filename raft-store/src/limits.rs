//! Bounds of the ledger beyond those of `fabric::limits`.

use std::time::Duration;

/// Longest subject of an actor that is kept, in bytes; the rest is cut.
pub const SUBJECT_BYTES_MAX: usize = 128;
/// Longest reason that a command may carry, in bytes; the rest is cut.
pub const REASON_BYTES_MAX: usize = 512;
/// Trusted cluster CAs at once: the current one and those being rotated in or out.
pub const CAS_MAX: usize = 8;
/// Bytes of one CA certificate or key.
pub const CA_BYTES_MAX: usize = 8 * 1024;
/// How often one token may admit a node.
pub const TOKEN_USES_MAX: u32 = 5_000;
/// Longest life of a token.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// An expired token is kept this long, so that a join that was cut off still finds its admission.
pub const TOKEN_GRACE: Duration = Duration::from_secs(24 * 3600);
/// Records that one entry may prune, so that no entry is expensive.
pub const PRUNED_PER_ENTRY_MAX: usize = 64;
/// Tombstones kept. The oldest go first: their certificates have long expired.
pub const TOMBSTONES_MAX: usize = 20_000;
/// Levels of the tenants' tree.
pub const TENANT_DEPTH_MAX: usize = 8;
/// Longest back-off that an owner may ask for.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(3600);

/// Newest feature level that this program can follow.
pub const FEATURE_LEVEL: u32 = 1;

/// Clocks of leader and holder may differ in rate by 1 % each: 1.01 / 0.99 < 1.03.
pub const LEASE_SLACK_PERCENT: u32 = 3;

/// A voter that is down and silent this long is replaced.
pub const VOTER_SILENCE: Duration = Duration::from_secs(60);
