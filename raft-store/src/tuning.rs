//! Bounds of the ledger beyond those in [`fabric::limits`].

use std::time::Duration;

use fabric::ids::NodeId;
use fabric::limits::CHUNK_BYTES;
use openraft::{Config, SnapshotPolicy};

/// redb's page cache.
pub(crate) const DATABASE_CACHE_BYTES: usize = 8 << 20;
/// Newest log entries kept in memory, for replication and apply.
pub(crate) const LOG_TAIL_BYTES: usize = 4 << 20;
/// Appended entries that wait for the disk; who appends beyond that waits, too.
pub(crate) const LOG_QUEUE_BYTES: usize = 8 << 20;
/// The journal's file. About as many entries as a transaction takes in within a few milliseconds.
pub(crate) const JOURNAL_BYTES: usize = 1 << 20;
/// The database takes the journal in once nothing was appended for so long. Until then damage to the newest record looks
/// like a write that a power cut tore.
pub(crate) const JOURNAL_SETTLES: Duration = Duration::from_secs(1);
/// How long a ledger that is closed waits for its writer.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Log entries read at once, and so the size of one append to a follower.
pub(crate) const READ_BYTES: usize = 1 << 20;
/// Entries of one append to a follower.
pub(crate) const APPEND_ENTRIES_MAX: u64 = 4_096;
/// Entries applied under one hold of the state's lock.
pub(crate) const APPLY_BATCH: usize = 256;
/// Largest snapshot that is received.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;
/// Entries between snapshots. Half as many are kept behind one, so that a follower that was away briefly needs none. A
/// snapshot holds up to 100,000 answers to requests, so it must be rare enough not to be most of what is written; a
/// restart replays as many entries in well under a second.
pub(crate) const SNAPSHOT_EVERY: u64 = 50_000;
/// Bytes of a snapshot's chunk. Framed it still fits a page of `CHUNK_BYTES`: redb's pages are powers of two, and one of
/// twice the size would be written whole.
pub(crate) const SNAPSHOT_CHUNK_BYTES: usize = CHUNK_BYTES - (16 << 10);
/// Purged entries that one transaction removes from the disk. They are gone for everybody before.
pub(crate) const SWEPT_PER_TRANSACTION: u64 = 8_192;
/// A leader speaks to its followers this often.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);
/// A follower stands for election this long after its leader's lease ended, at least.
pub(crate) const ELECTION_MIN: Duration = Duration::from_millis(200);
/// The same, at most; also the length of a leader's lease.
pub(crate) const ELECTION_MAX: Duration = Duration::from_millis(350);
/// A follower that has heard nothing for so long begins to look at its clock.
pub(crate) const LEADER_SILENT: Duration = Duration::from_millis(200);
/// A leader that hears no quorum falls silent for so long, again and again: otherwise one that can speak and not hear
/// would keep its followers from electing another.
pub(crate) const QUORUM_LOSS_QUIET: Duration = Duration::from_millis(1_000);
/// Deadline of an append that carries entries: the follower syncs them to its disk first.
pub(crate) const APPEND_TIMEOUT: Duration = Duration::from_millis(500);
/// Deadline of sending and installing one piece of a snapshot.
pub(crate) const SNAPSHOT_PART_TIMEOUT: Duration = Duration::from_secs(10);
/// Applied entries that a slow subscriber may lag behind before it loses some.
pub(crate) const APPLIED_BACKLOG: usize = 4_096;
/// Writes that wait to be forwarded.
pub(crate) const FORWARD_QUEUE: usize = 4_096;
/// Requests with forwarded writes on their way at once.
pub(crate) const FORWARDS_IN_FLIGHT: usize = 4;
/// Writes in one such request.
pub(crate) const FORWARD_BATCH: usize = 256;
/// Bytes in one such request.
pub(crate) const FORWARD_BYTES: usize = 1 << 20;
/// How long such a request may take. Callers wait longer, and send it again.
pub(crate) const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);
/// A leader that has not answered a request for so long is asked through another member as well.
pub(crate) const RELAY_AFTER: Duration = Duration::from_millis(750);
/// How long the second half of that way may take.
pub(crate) const RELAYED_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Pause before a write is tried again, at first.
pub(crate) const RETRY_MIN: Duration = Duration::from_millis(10);
/// The same, at most.
pub(crate) const RETRY_MAX: Duration = Duration::from_millis(200);
/// How long a linearizable read may take.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline of one request for a read index.
pub(crate) const READ_INDEX_TIMEOUT: Duration = Duration::from_secs(1);
/// Deadline of one renewal of a lease.
pub(crate) const RENEW_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a voter holds a spare's question for news.
pub(crate) const FEED_WAIT: Duration = Duration::from_secs(5);
/// Deadline of one page, beyond the wait for news.
pub(crate) const PAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// A copy of the whole state is made for spares at most this often, unless one needs a newer one.
pub(crate) const FULL_COPY_EVERY: Duration = Duration::from_millis(250);
/// Largest copy that a spare takes.
pub(crate) const REPLICA_BYTES_MAX: u64 = 1 << 30;
/// Between two wake-ups of those who watch for news.
pub(crate) const NEWS_PAUSE: Duration = Duration::from_millis(5);
/// A member that has not heard a leader for so long takes itself for cut off.
pub(crate) const CUT_OFF: Duration = Duration::from_secs(3);
/// The leader looks at the members' list this often.
pub(crate) const VOTERS_PERIOD: Duration = Duration::from_millis(250);
/// A node whose removal was asked for is no voter for so long, whether or not it is removed then.
pub(crate) const LEAVING: Duration = Duration::from_secs(10);
/// A follower that lacks at most so many entries has caught up.
pub(crate) const CATCH_UP_ENTRIES: u64 = 256;
/// Deadline of one change of members.
pub(crate) const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Entries between the snapshots of this node: up to half as many more than `SNAPSHOT_EVERY`, so that the members of a
/// quorum seldom make theirs at the same time.
pub(crate) fn snapshot_every(node: NodeId) -> u64 {
    SNAPSHOT_EVERY + SNAPSHOT_EVERY * u64::from(node.0[0]) / 512
}

/// openraft's configuration. A leader that dies is replaced within about 0.6 s: its lease (`ELECTION_MAX`) ends, then the
/// first follower's election time does.
pub(crate) fn raft(snapshot_every: u64) -> Config {
    let kept = snapshot_every / 2;
    Config {
        cluster_name: "smartnode".into(),
        heartbeat_interval: HEARTBEAT.as_millis() as u64,
        election_timeout_min: ELECTION_MIN.as_millis() as u64,
        election_timeout_max: ELECTION_MAX.as_millis() as u64,
        install_snapshot_timeout: SNAPSHOT_PART_TIMEOUT.as_millis() as u64,
        max_payload_entries: APPEND_ENTRIES_MAX,
        replication_lag_threshold: snapshot_every * 2,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
        max_in_snapshot_log_to_keep: kept,
        purge_batch_size: 256.min(kept.max(1)),
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(QUORUM_LOSS_QUIET.as_millis() as u64),
        // A leader that restarts must be elected again. Restored in its old term it proposes no new entry, its commit index
        // lags behind what it acknowledged before, and a ReadIndex then answers too low: a stale linearizable read.
        enable_leader_restore: Some(false),
        // A follower with a shorter log than it had is fed anew. Without this openraft's leader panics over it, and so does
        // the next one: one bad disk would end every voter. Whether such a node may take part is judged where its disk is
        // known, at its own start.
        allow_log_reversion: Some(true),
        backoff: "20ms 50ms 100ms ...500ms".into(),
        ..Config::default()
    }
}
