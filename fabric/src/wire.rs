//! The frame around every message and record: a fixed header and an rkyv body, checked before use.
//!
//! rkyv has no schema evolution (an added field can be silently misread), so the header names the type and its
//! version outside the archive, types are immutable `...V1`, `...V2`, and golden-byte tests hold old versions.
//!
//! ```text
//! offset  0  magic "SMRT"          4 bytes
//!         4  protocol              u16 little endian
//!         6  type                  u16
//!         8  version of the type   u16
//!        10  reserved, zero        u16
//!        12  length of the body    u32
//!        16  blake3 of bytes 0..16 and the body   32 bytes
//!        48  body
//! ```

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::limits::FRAME_BYTES_MAX;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"SMRT";
/// Version of the header itself.
pub const PROTOCOL: u16 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 48;

/// Why bytes are not the frame that was asked for. Nothing of the body was used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// Fewer bytes than a header and its body.
    #[error("the frame is cut short: {have} bytes of {need}")]
    Short {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        need: usize,
    },
    /// Not one of our frames at all.
    #[error("not a smartnode frame: it starts with {0:02x?}")]
    Magic([u8; 4]),
    /// A header of a later program.
    #[error("frame protocol {0}, this program speaks {PROTOCOL}: upgrade this node")]
    Protocol(u16),
    /// Another type, or a version that this program does not know.
    #[error("frame of type {found_type} version {found_version}, expected type {want_type} version {want_version}")]
    Type {
        /// Type in the header.
        found_type: u16,
        /// Version in the header.
        found_version: u16,
        /// Type asked for.
        want_type: u16,
        /// Version asked for.
        want_version: u16,
    },
    /// Larger than any frame may be.
    #[error("a frame of {0} bytes, at most {FRAME_BYTES_MAX} are allowed")]
    Large(usize),
    /// Bytes after the body, or a reserved field that is not zero.
    #[error("the frame has trailing or reserved bytes that are not empty")]
    Trailing,
    /// Bits have changed.
    #[error("the frame's checksum does not match its content")]
    Checksum,
    /// The checksum holds, yet the body is no valid archive of the type.
    #[error("the frame's body is not valid")]
    Body,
}

/// The serializer behind [`encode`].
pub type Serializer<'a> = HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>;

/// A type that may be framed. `(TYPE, VERSION)` is unique in the whole project and never reused.
///
/// Ranges: fabric 1-99, raft-store 100-199, netvirt 200-299, node 300-399.
pub trait Record: Archive + for<'a> Serialize<Serializer<'a>> {
    /// Number of the type.
    const TYPE: u16;
    /// Version of the type.
    const VERSION: u16;
}

/// Declares `(TYPE, VERSION)` of framed types.
#[macro_export]
macro_rules! records {
    ($($name:ty = ($kind:literal, $version:literal)),+ $(,)?) => {
        $(impl $crate::wire::Record for $name {
            const TYPE: u16 = $kind;
            const VERSION: u16 = $version;
        })+
    };
}

/// What the header of a frame says, after its checksum was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number of the type.
    pub kind: u16,
    /// Version of the type.
    pub version: u16,
    /// Bytes of the body.
    pub length: usize,
}

/// Frames `value`.
///
/// # Panics
/// When the frame would exceed [`FRAME_BYTES_MAX`]: callers bound what they build.
pub fn encode<T: Record>(value: &T) -> Vec<u8> {
    let body = rkyv::to_bytes::<rancor::Error>(value).expect("serializing into memory cannot fail");
    assert!(body.len() + HEADER_BYTES <= FRAME_BYTES_MAX, "frame of {} bytes", body.len());
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&PROTOCOL.to_le_bytes());
    out.extend_from_slice(&T::TYPE.to_le_bytes());
    out.extend_from_slice(&T::VERSION.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let checksum = checksum(&out, &body);
    out.extend_from_slice(&checksum);
    out.extend_from_slice(&body);
    out
}

fn checksum(head: &[u8], body: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(head).update(body).finalize().as_bytes()
}

/// Length of the whole frame that starts with these [`HEADER_BYTES`], so that a reader knows what to wait for.
///
/// # Errors
/// When it is no frame of ours or too large.
pub fn frame_bytes(head: &[u8; HEADER_BYTES]) -> Result<usize, WireError> {
    let magic = [head[0], head[1], head[2], head[3]];
    if magic != MAGIC {
        return Err(WireError::Magic(magic));
    }
    let protocol = u16::from_le_bytes([head[4], head[5]]);
    if protocol != PROTOCOL {
        return Err(WireError::Protocol(protocol));
    }
    let total = u32::from_le_bytes([head[12], head[13], head[14], head[15]]) as usize + HEADER_BYTES;
    if total > FRAME_BYTES_MAX { Err(WireError::Large(total)) } else { Ok(total) }
}

/// Whether the frame is one of this protocol, with flipped bits where it says so: nobody has to upgrade for that.
fn is_damaged_protocol(head: &[u8; HEADER_BYTES], body: &[u8]) -> bool {
    let mut own = *head;
    own[4..6].copy_from_slice(&PROTOCOL.to_le_bytes());
    own != *head && checksum(&own[..16], body) == head[16..48]
}

/// Verifies the frame and tells what it holds.
///
/// # Errors
/// See [`WireError`].
pub fn verify(frame: &[u8]) -> Result<(Header, &[u8]), WireError> {
    let Some((head, body)) = frame.split_first_chunk::<HEADER_BYTES>() else {
        return Err(WireError::Short { have: frame.len(), need: HEADER_BYTES });
    };
    let total =
        frame_bytes(head).map_err(|error| if is_damaged_protocol(head, body) { WireError::Checksum } else { error })?;
    if frame.len() < total {
        return Err(WireError::Short { have: frame.len(), need: total });
    }
    if frame.len() > total || head[10..12] != [0, 0] {
        return Err(WireError::Trailing);
    }
    if checksum(&head[..16], body) != head[16..48] {
        return Err(WireError::Checksum);
    }
    let word = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    Ok((Header { kind: word(6), version: word(8), length: body.len() }, body))
}

/// Reads the framed `T`.
///
/// # Errors
/// See [`WireError`].
pub fn decode<T: Record>(frame: &[u8]) -> Result<T, WireError>
where
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let (header, body) = verify(frame)?;
    if (header.kind, header.version) != (T::TYPE, T::VERSION) {
        return Err(WireError::Type {
            found_type: header.kind,
            found_version: header.version,
            want_type: T::TYPE,
            want_version: T::VERSION,
        });
    }
    let mut aligned = AlignedVec::<16>::with_capacity(body.len());
    aligned.extend_from_slice(body);
    rkyv::from_bytes::<T, rancor::Error>(&aligned).map_err(|_| WireError::Body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
    struct ThingV1 {
        name: String,
        sizes: Vec<u64>,
    }
    records!(ThingV1 = (99, 1));

    fn thing() -> ThingV1 {
        ThingV1 { name: "a thing".into(), sizes: vec![1, 2, 3] }
    }

    #[test]
    fn a_frame_gives_back_what_went_in() {
        assert_eq!(decode::<ThingV1>(&encode(&thing())), Ok(thing()));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let frame = encode(&thing());
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = decode::<ThingV1>(&bad).unwrap_err();
            // A later program has written nothing here.
            assert!(!matches!(error, WireError::Protocol(_) | WireError::Type { .. }), "bit {bit}: {error}");
        }
    }

    #[test]
    fn a_frame_of_a_later_protocol_says_so() {
        let mut later = encode(&thing());
        later[4] = 2;
        let sum = checksum(&later[..16], &later[HEADER_BYTES..]);
        later[16..HEADER_BYTES].copy_from_slice(&sum);
        assert_eq!(decode::<ThingV1>(&later), Err(WireError::Protocol(2)));
    }

    #[test]
    fn golden_bytes_of_the_header() {
        assert_eq!(encode(&thing())[..16], *b"SMRT\x01\x00\x63\x00\x01\x00\x00\x00\x28\x00\x00\x00");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(decode::<ThingV1>(&bytes).is_err());
        }

        /// A body that passes the checksum is still checked: a peer computes checksums too.
        #[test]
        fn a_hostile_body_with_a_good_checksum_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut frame = encode(&thing())[..16].to_vec();
            frame[12..16].copy_from_slice(&(body.len() as u32).to_le_bytes());
            let sum = checksum(&frame, &body);
            frame.extend_from_slice(&sum);
            frame.extend_from_slice(&body);
            let _ = decode::<ThingV1>(&frame);
        }
    }
}
