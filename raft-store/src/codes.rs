//! The stable codes of refusals. Clients match on them, so they never change their meaning.

/// A field of the request breaks a rule.
pub const INVALID: &str = "invalid";
/// The actor has no right to do this.
pub const DENIED: &str = "denied";
/// There is no such thing.
pub const NOT_FOUND: &str = "not-found";
/// A thing of this name or id is there already.
pub const EXISTS: &str = "exists";
/// Another use keeps it: it cannot be removed or shrunk.
pub const IN_USE: &str = "in-use";
/// The object has changed since the caller read it.
pub const REVISION: &str = "revision";
/// A bound of the cluster is reached.
pub const LIMIT: &str = "limit";
/// The tenant's quota, or one above it, would be exceeded.
pub const QUOTA: &str = "quota";
/// No node has the guaranteed resources.
pub const CAPACITY: &str = "capacity";
/// Nodes with room may not take it: cordoned, draining, absent or not the pinned one.
pub const NO_NODE: &str = "no-node";
/// The node has a seat among the voters, which is given up first.
pub const VOTES: &str = "votes";
/// The placement is no longer the one that the command speaks of.
pub const STALE_EPOCH: &str = "stale-epoch";
/// The machine has an owner already.
pub const PLACED: &str = "placed";
/// The machine has no owner.
pub const NOT_PLACED: &str = "not-placed";
/// The machine is not wanted running.
pub const NOT_WANTED: &str = "not-wanted";
/// The machine's back-off is not over.
pub const TOO_EARLY: &str = "too-early";
/// The lease was judged by the leader of another term.
pub const OTHER_TERM: &str = "other-term";
/// The owner is absent as planned.
pub const ABSENT: &str = "absent";
/// A move is under way or not yet settled.
pub const MOVING: &str = "moving";
/// There is no such move.
pub const NO_MOVE: &str = "no-move";
/// The machine is bound to another node.
pub const PINNED: &str = "pinned";
/// The machine is being deleted.
pub const DELETED: &str = "deleted";
/// The machine is not being deleted.
pub const NOT_DELETED: &str = "not-deleted";
/// The node was removed from the cluster.
pub const NODE_REMOVED: &str = "node-removed";
/// The token does not exist, or its secret is wrong: which one is not told.
pub const TOKEN_WRONG: &str = "token-wrong";
/// The token's time is over.
pub const TOKEN_EXPIRED: &str = "token-expired";
/// The token has admitted as many nodes as it may.
pub const TOKEN_USED_UP: &str = "token-used-up";
/// Removing it would leave nobody who may vote.
pub const LAST_VOTER: &str = "last-voter";
/// The ledger has not seen `init`.
pub const NOT_INITIALIZED: &str = "not-initialized";
/// The ledger has seen another `init`.
pub const INITIALIZED: &str = "already-initialized";
/// The idempotency key was used for something else.
pub const KEY_REUSED: &str = "idempotency-key-reused";
/// This node does not lead; the refusal's value names who does, if it is known.
pub const NOT_LEADER: &str = "not-leader";
/// The leader grants no lease now.
pub const NO_GRANT: &str = "no-grant";
/// The owner's lease, planned absence or recent signs of life protect the machine.
pub const LEASE_HELD: &str = "lease-held";
/// The leader cannot judge leases yet.
pub const LEASE_UNKNOWN: &str = "lease-unknown";
/// This node is outside Raft and cannot tell.
pub const SPARE: &str = "spare";
/// This node's copy is older than what the asker has.
pub const BEHIND: &str = "behind";
