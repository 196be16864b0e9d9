//! Bounds of the runtime.

use std::time::Duration;

/// Bytes of one file of a machine's log; two are kept.
pub const LOG_FILE_BYTES_MAX: u64 = 4 << 20;
/// Bytes of one captured line; a longer one is cut into several.
pub const LOG_LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of output taken from a machine per second; beyond, its own writes wait.
pub const LOG_BYTES_PER_SECOND_MAX: u64 = 8 << 20;
/// Bytes of a log that are read at once.
pub const LOG_READ_BYTES: u64 = 256 * 1024;
/// Lines waiting for a slow reader of a log.
pub const LOG_LINES_QUEUED_MAX: usize = 256;
/// A reader that follows a log looks for new lines this often.
pub const LOG_FOLLOW: Duration = Duration::from_millis(100);

/// Bytes of one line of the supervisor's protocol.
pub const CONTROL_LINE_BYTES_MAX: usize = 1024;
/// Connections that a supervisor serves at once.
pub const CONTROL_CONNECTIONS_MAX: usize = 32;
/// Bytes of a reason that is kept and shown.
pub const REASON_BYTES_MAX: usize = 300;

/// First wait before a machine that ended is started again; it doubles.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest wait before a machine that ended is started again.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A machine that ran this long starts again with the first wait.
pub const BACKOFF_RESET: Duration = Duration::from_secs(60);

/// A supervisor says within this time whether the program runs.
pub const START_TIMEOUT: Duration = Duration::from_secs(15);
/// A supervisor answers a request within this time.
pub const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);
/// Machines of a former daemon that are adopted at once.
pub const ADOPTIONS_MAX: usize = 32;
/// The kernel confirms a freeze within this time, or the request fails.
pub const FREEZE_TIMEOUT: Duration = Duration::from_secs(3);
/// The freezer is looked at this often while it works.
pub const FREEZE_RECHECK: Duration = Duration::from_millis(2);
/// Longest grace of a stop.
pub const GRACE_MAX: Duration = Duration::from_secs(600);
/// A machine's port answers a connection within this time.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Killed processes are gone within this time.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Files and directories of a writable layer that are counted when it is measured.
pub const LAYER_ENTRIES_MAX: usize = 1_000_000;

/// Directories that one sweep removes.
pub const SWEEP_MAX: usize = 16;

/// User ids outside of which a machine's first one is drawn: above those that people, systemd and containers use.
pub const UID_BASE_FIRST: u32 = 0x1000_0000;
/// User ids of one machine.
pub const UIDS_PER_MACHINE: u32 = 0x1_0000;
/// Ranges of user ids to draw from; the last one ends below 2^31, beyond which some programs see negative numbers.
pub const UID_RANGES: u32 = 0x6000;

/// How much sooner than the fabric the kernel ends a machine when the host is out of memory.
pub const OOM_SCORE_ADJ: i32 = 500;
/// Most open files of a machine, where the host allows that many.
pub const OPEN_FILES_MAX: u64 = 65_536;
/// Bytes of `/dev/shm`.
pub const SHM_BYTES: u64 = 64 << 20;
