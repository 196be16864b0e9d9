//! Bounds of the node's own doors: the admin port and what passes it. The fabric's are in `fabric::limits`.

use std::time::Duration;

/// Bytes of a request's body.
pub const API_BODY_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a request's head.
pub const API_HEAD_BYTES_MAX: usize = 32 * 1024;
/// A client sends its head within this time; an idle connection is closed after it, too.
pub const API_HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// A client sends its body within this time.
pub const API_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A request without a stream is answered within this time.
pub const API_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// One request waits for a state at most this long; a client asks again.
pub const API_WAIT_MAX: Duration = Duration::from_secs(25);
/// Without a wake-up a waiting request looks again this often: observed state of other nodes wakes nobody here.
pub const API_WAIT_LOOK: Duration = Duration::from_millis(100);
/// Connections of root at the unix socket.
pub const API_ROOT_CONNECTIONS_MAX: usize = 1_024;
/// Connections of all others at the unix socket.
pub const API_USER_CONNECTIONS_MAX: usize = 128;
/// Connections at the TCP port.
pub const API_TCP_CONNECTIONS_MAX: usize = 1_024;
/// TLS handshakes under way at the TCP port.
pub const API_HANDSHAKES_MAX: usize = 256;
/// A TLS handshake is done within this time.
pub const API_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Open event streams, logs, execs and forwards.
pub const API_STREAMS_MAX: usize = 512;
/// Items of one page.
pub const API_LIST_MAX: usize = 1_000;
/// Items of one page when the client names no limit.
pub const API_LIST_DEFAULT: usize = 500;
/// Label conditions of one list.
pub const API_LABEL_FILTERS_MAX: usize = 16;
/// Bytes of an `Idempotency-Key`.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Paths of one `image from-host`.
pub const IMAGE_PATHS_MAX: usize = 256;
/// Bytes of an answer that a client takes into memory.
pub const CLIENT_ANSWER_BYTES_MAX: usize = 64 << 20;
/// A stopping port waits this long for answers under way.
pub const API_DRAIN: Duration = Duration::from_secs(2);
/// A port that cannot accept tries again after this.
pub const API_ACCEPT_REST: Duration = Duration::from_millis(100);
/// A client without a connection gives up after this.
pub const CLIENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A client's request without a stream is given up after this.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(65);
/// Bytes of one line of a stream.
pub const CLIENT_LINE_BYTES_MAX: usize = 4 << 20;
/// The room on the host's disk is looked at this often.
pub const DISK_LOOK: Duration = Duration::from_secs(1);
/// When no machine is to blame, machines are measured again after this: it reads their whole layers' directories.
pub const DISK_MEASURE_REST: Duration = Duration::from_secs(30);
/// A smaller disk is not shared out: it has no reserve, and no machine is stopped for it.
pub const DISK_BYTES_MIN: u64 = 64 << 20;
/// Part of the disk that is held as a reserve for the node's own files, as a divisor.
pub const RESERVE_DIVISOR: u64 = 32;
/// Largest reserve.
pub const RESERVE_BYTES_MAX: u64 = 64 << 20;
/// Part of the disk below which free space counts as none, as a divisor.
pub const DISK_LOW_DIVISOR: u64 = 20;
/// Free space that never counts as none.
pub const DISK_LOW_BYTES_MAX: u64 = 1 << 30;
/// A program that is silent has an empty frame of output sent this often, so that a client that has gone is noticed.
pub const EXEC_BEAT: Duration = Duration::from_secs(5);
/// Whether the client of a forwarded connection has gone is looked at this often.
pub const FORWARD_LOOK: Duration = Duration::from_secs(2);
/// A machine that takes nothing for so long of what a client had sent before it went gets no more of it.
pub const FORWARD_DRAIN: Duration = Duration::from_secs(10);
/// Connections that one `machine forward` carries at once.
pub const FORWARDS_MAX: usize = 256;
