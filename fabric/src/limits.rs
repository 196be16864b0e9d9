//! Every bound of the fabric in one place. A value beyond its bound is refused at the door, with a clear error.

use std::time::Duration;

/// Longest name of a tenant, machine, node, image or network (an RFC 1123 label).
pub const NAME_BYTES_MAX: usize = 63;
/// Longest name of a zone.
pub const ZONE_BYTES_MAX: usize = 63;
/// Most labels on one object.
pub const LABELS_MAX: usize = 32;
/// Longest label key.
pub const LABEL_KEY_BYTES_MAX: usize = 63;
/// Longest label value.
pub const LABEL_VALUE_BYTES_MAX: usize = 255;
/// Most arguments of a machine's command.
pub const COMMAND_ARGS_MAX: usize = 256;
/// Bytes of a machine's whole command.
pub const COMMAND_BYTES_MAX: usize = 32 * 1024;
/// Most environment variables of a machine.
pub const ENV_MAX: usize = 256;
/// Bytes of a machine's whole environment.
pub const ENV_BYTES_MAX: usize = 32 * 1024;
/// Most published ports of a machine.
pub const PUBLISH_MAX: usize = 32;
/// Most machines in one cluster.
pub const MACHINES_MAX: usize = 100_000;
/// Most admitted nodes in one cluster.
pub const NODES_MAX: usize = 5_000;
/// Most tenants.
pub const TENANTS_MAX: usize = 10_000;
/// Most live tokens.
pub const TOKENS_MAX: usize = 10_000;
/// Most images named in the ledger.
pub const IMAGES_MAX: usize = 10_000;
/// Machines in one placement batch.
pub const PLACE_BATCH_MAX: usize = 64;
/// Candidate nodes of one machine in a placement.
pub const PLACE_CANDIDATES_MAX: usize = 8;
/// Takeovers of machines in flight per caretaker, so that a dead zone does not stampede.
pub const TAKEOVERS_IN_FLIGHT_MAX: usize = 64;
/// Idempotency records kept.
pub const IDEMPOTENCY_RECORDS_MAX: usize = 100_000;
/// How long an idempotency record answers.
pub const IDEMPOTENCY_TTL: Duration = Duration::from_secs(24 * 3600);
/// Audit entries kept in the state.
pub const AUDIT_ENTRIES_MAX: usize = 10_000;

/// Bytes of one framed message or record, header included.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of one ledger command.
pub const COMMAND_FRAME_BYTES_MAX: usize = 256 * 1024;
/// Bytes of one chunk of a snapshot, image or layer on the wire.
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// Bytes a node may gossip about itself.
pub const GOSSIP_STATE_BYTES_MAX: usize = 4 * 1024;
/// Bytes of one gossip message (a digest of a full cell fits).
pub const GOSSIP_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of one membership datagram: fits a QUIC datagram on any path of 1280 bytes.
pub const DATAGRAM_BYTES_MAX: usize = 1100;
/// Requests of one peer served at once; a further one waits in its own stream.
pub const PEER_STREAMS_MAX: u32 = 256;
/// Streams of one connection that its acceptor serves at once. Fewer than QUIC lets in, so that a further one hears why it
/// is refused instead of waiting for nothing.
pub const STREAMS_OPEN_MAX: usize = 192;
/// Connections a node keeps open.
pub const CONNECTIONS_MAX: usize = 2_048;
/// Handshakes under way at once.
pub const HANDSHAKES_MAX: usize = 256;
/// Handshakes under way at once from one address.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = 64;
/// Nodes that gossip full state with each other.
pub const CELL_NODES_MAX: usize = 500;
/// Events kept for clients that resume.
pub const EVENTS_MAX: usize = 10_000;
/// Operations remembered per node.
pub const OPERATIONS_MAX: usize = 1_000;

/// How long a lease lasts (design section 7).
pub const LEASE_TTL: Duration = Duration::from_secs(6);
/// A lease is renewed this often.
pub const LEASE_RENEW: Duration = Duration::from_secs(2);
/// The supervisor freezes an exclusive machine this long before its lease expires.
pub const LEASE_FREEZE_MARGIN: Duration = Duration::from_millis(1_500);
/// The supervisor kills an exclusive machine that is not frozen this long before its lease expires.
pub const LEASE_KILL_MARGIN: Duration = Duration::from_millis(500);
/// A leader refuses a takeover while it has heard from the owner within this time.
pub const HEARD_FROM_OWNER: Duration = Duration::from_secs(3);
/// Default length of a planned absence.
pub const ABSENCE: Duration = Duration::from_secs(60);
/// Longest planned absence.
pub const ABSENCE_MAX: Duration = Duration::from_secs(3600);
/// Caretakers sweep this often without a hint.
pub const SWEEP: Duration = Duration::from_secs(5);
/// Lifetime of a node certificate.
pub const CERTIFICATE_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// Clocks may differ this much at a join.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);
/// Default deadline of a request between nodes.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Default deadline of a ledger write as a client sees it.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// CAs that a node trusts at once.
pub const CAS_MAX: usize = 8;
/// Tombstones that a node keeps.
pub const TOMBSTONES_MAX: usize = 10_000;
/// Bytes of one certificate.
pub const CERTIFICATE_BYTES_MAX: usize = 4 * 1024;
/// A certificate begins this long before it is issued, since clocks differ and are set back: a member whose clock is wrong by
/// less still takes its peers' fresh certificates. (Who joins is held to [`CLOCK_SKEW_MAX`].)
pub const CERTIFICATE_BACKDATE: Duration = Duration::from_secs(24 * 3600);
/// How long a handshake, ours or a peer's, may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A handshake that failed counts as one under way for this long.
pub const HANDSHAKE_REMAINS: Duration = Duration::from_secs(3);
/// A connection over which nothing came for this long is dead, or not needed.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that acknowledges nothing for so long is left, where what it was asked may be asked again: the control connection
/// is made anew, a joiner asks the next one.
pub const SILENCE: Duration = Duration::from_secs(4);
/// Addresses of nodes that a node remembers.
pub const ADDRESSES_MAX: usize = 2 * NODES_MAX;
/// Datagrams per peer that wait for a connection; the oldest gives way.
pub const DATAGRAMS_WAITING_MAX: usize = 16;
/// Datagrams of an overlay connection that are taken in a row; then others get a turn.
pub const DATA_BURST: usize = 64;
/// Datagrams received and not yet taken; further ones are dropped.
pub const DATAGRAMS_RECEIVED_MAX: usize = 4_096;
/// A request must have arrived whole within this time.
pub const REQUEST_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer must have been taken within this time.
pub const ANSWER_WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of requests in memory at once, of all peers together; a further one waits.
pub const REQUEST_BYTES_IN_FLIGHT_MAX: usize = 256 * 1024 * 1024;
/// Bytes of a refusal that a peer takes.
pub const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a stream's header.
pub const STREAM_HEADER_BYTES_MAX: usize = 64 * 1024;
/// Joins and renewals served at once.
pub const JOINS_MAX: usize = 64;
/// Deadline of a join or renewal.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request or answer of a join.
pub const JOIN_BYTES_MAX: usize = 256 * 1024;
/// Bytes in flight of one stream.
pub const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Bytes in flight of one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Blocks that a database's file has ahead of what it needs, as a divisor of its disk.
pub const HEADROOM_DIVISOR: u64 = 32;
/// Most of them.
pub const HEADROOM_BYTES_MAX: u64 = 16 << 20;
/// A smaller disk has no room for that.
pub const HEADROOM_DISK_BYTES_MIN: u64 = 64 << 20;
