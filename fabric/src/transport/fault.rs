//! Why connections end, in words, and what may have happened before.

use quinn::{ConnectionError, VarInt};

/// This node ends.
pub(super) const CLOSE_SHUTDOWN: VarInt = VarInt::from_u32(0);
/// The peer was never served: its certificate or the time is not right, or there is no room.
pub(super) const CLOSE_REFUSED: VarInt = VarInt::from_u32(1);
/// The peer was removed while it was connected.
pub(super) const CLOSE_REMOVED: VarInt = VarInt::from_u32(2);
/// Another connection took the place of this one, or room was needed.
pub(super) const CLOSE_SUPERSEDED: VarInt = VarInt::from_u32(3);
/// Nothing came from the peer for too long.
pub(super) const CLOSE_SILENT: VarInt = VarInt::from_u32(4);
/// A stream's writer was dropped before it had finished.
pub(super) const RESET_UNFINISHED: VarInt = VarInt::from_u32(1);

/// TLS alert `no_application_protocol`.
const ALERT_NO_PROTOCOL: u64 = 0x100 | 120;
/// TLS alert `certificate_revoked`: its node was removed from the cluster.
const ALERT_REVOKED: u64 = 0x100 | 44;

/// Whether the peer ended the handshake, or refused before it served anything.
pub(super) fn never_served(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code) & 0xff00 == 0x100,
        ConnectionError::ApplicationClosed(close) => close.error_code == CLOSE_REFUSED,
        ConnectionError::TransportError(error) => u64::from(error.code) & 0xff00 == 0x100,
        ConnectionError::VersionMismatch => true,
        _ => false,
    }
}

/// Whether the peer says that this node was removed from the cluster. To be believed only of a peer that is identified.
pub(super) fn says_removed(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code) == ALERT_REVOKED,
        ConnectionError::ApplicationClosed(close) => close.error_code == CLOSE_REMOVED,
        _ => false,
    }
}

/// Whether what answers is no smartnode, or of a version that speaks other protocols.
pub(super) fn is_foreign_protocol(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code) == ALERT_NO_PROTOCOL,
        ConnectionError::TransportError(error) => u64::from(error.code) == ALERT_NO_PROTOCOL,
        ConnectionError::VersionMismatch => true,
        _ => false,
    }
}

/// The reason for people.
pub(super) fn text(error: &ConnectionError) -> String {
    let plain = |reason: &str| {
        let reason = reason.strip_prefix("unexpected error: ").unwrap_or(reason);
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(300).collect();
        if reason.is_empty() { error.to_string() } else { reason }
    };
    if is_foreign_protocol(error) {
        return "what answers there does not speak this version of smartnode's protocol".into();
    }
    match error {
        ConnectionError::TransportError(error) if u64::from(error.code) == ALERT_REVOKED => {
            "it was removed from the cluster".into()
        }
        ConnectionError::ConnectionClosed(_) if says_removed(error) => {
            "the peer refused this node: it was removed from the cluster".into()
        }
        ConnectionError::TransportError(error) => plain(&error.reason),
        ConnectionError::ConnectionClosed(close) => {
            format!("the peer refused this node: {}", plain(&String::from_utf8_lossy(&close.reason)))
        }
        ConnectionError::ApplicationClosed(close) => plain(&String::from_utf8_lossy(&close.reason)),
        ConnectionError::Reset => "the peer has restarted".into(),
        ConnectionError::TimedOut => "no answer".into(),
        ConnectionError::LocallyClosed => "this node closed the connection".into(),
        ConnectionError::VersionMismatch | ConnectionError::CidsExhausted => error.to_string(),
    }
}
