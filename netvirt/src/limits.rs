//! Bounds of forwarding.

use std::time::Duration;

/// Connections that one published port carries at once; a further one waits in the listener's queue.
pub const CONNECTIONS_PER_PORT_MAX: usize = 512;
/// Connections that wait to be accepted at one port.
pub const BACKLOG: u32 = 256;
/// Bytes buffered in each direction of a connection.
pub const COPY_BYTES: usize = 64 * 1024;
/// The machine answers a connection within this time.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After one side has ended, the other has this long without any traffic before the connection is given up.
pub const HALF_CLOSED_IDLE_MAX: Duration = Duration::from_secs(300);
/// A side that takes none of what waits for it this long ends the connection: meanwhile nobody sees whether the other side
/// has gone.
pub const STALLED_MAX: Duration = Duration::from_secs(3600);
/// A listener that cannot accept (no descriptors left) waits this long before it tries again.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A dropped proxy's connections may go on this long.
pub const DRAIN: Duration = Duration::from_secs(2);
/// How long a machine may keep an address that DHCP told it. It is told the same one as long as it is assigned.
pub const DHCP_LEASE: Duration = Duration::from_secs(3600);
/// How long a gateway's word for itself holds: the longest there is (RFC 4861, 6.2.1).
pub const ROUTER_LIFETIME: Duration = Duration::from_secs(9000);
/// Bytes of a frame with the header that a TAP device puts before it.
pub const FRAME_BYTES_MAX: usize = 64 * 1024 + 64;
/// Frames of one connection that wait for their missing pieces; the oldest gives way.
pub const ASSEMBLIES_MAX: usize = 16;
/// A frame of which nothing has come for so long has lost a piece; mostly that shows by the numbers of later ones before.
pub const ASSEMBLY_TIMEOUT: Duration = Duration::from_millis(200);
/// Extension headers of a packet that are looked behind; IPv6 stacks send two at most.
pub const EXTENSIONS_MAX: usize = 8;
/// Segments of one frame.
pub const SEGMENTS_MAX: usize = 2_048;
/// Smaller pieces are copied, so that they keep no large buffer that they came in.
pub const PIECE_COPIED_BYTES: usize = 512;
/// Bytes of frames that wait for one peer: a millisecond of two gigabits. More would be felt as delay (RFC 7567), and QUIC
/// has as much in its own queue.
pub const LANE_BYTES_MAX: usize = 256 * 1024;
/// Those of one network among them.
pub const LANE_SHARE_BYTES: usize = 128 * 1024;
/// How long a frame waits for room on the way to its peer; its sender's queue waits with it.
pub const LANE_WAIT: Duration = Duration::from_millis(20);
/// A peer that could not be reached is tried again after so long; what is for it meanwhile is dropped.
pub const LANE_RETRY: Duration = Duration::from_secs(1);
/// Whether there is a better connection to a peer is looked at so often.
pub const LANE_LOOK: Duration = Duration::from_secs(1);
/// A way to a peer that nothing was sent on for so long is forgotten.
pub const LANE_IDLE: Duration = Duration::from_secs(30);
/// How long a connection to a peer may take.
pub const LANE_CONNECT: Duration = Duration::from_secs(2);
/// Frames to all that the machines of one network on a node may send in a second, and at once.
pub const BROADCASTS_PER_SECOND: u32 = 200;
/// See [`BROADCASTS_PER_SECOND`].
pub const BROADCAST_BURST: u32 = 100;
/// How long the kernel may take to change a network's rules.
pub const RULES_TIMEOUT: Duration = Duration::from_secs(10);
