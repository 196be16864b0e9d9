//! Typed identifiers. Each is a fixed number of bytes, ordered, and printed as lower-case hexadecimal.
//!
//! An id is drawn from the entropy seam by the node that makes the thing, never inside the state machine.

use std::fmt;
use std::str::FromStr;

use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not an id.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{value:?} is not {what}: expected {digits} hexadecimal digits")]
pub struct ParseIdError {
    what: &'static str,
    digits: usize,
    value: String,
}

fn parse_hex<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], ParseIdError> {
    let refuse = || ParseIdError { what, digits: N * 2, value: text.chars().take(80).collect() };
    let bytes = text.as_bytes();
    if bytes.len() != N * 2 {
        return Err(refuse());
    }
    let mut out = [0; N];
    for (slot, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        let digit = |b: u8| (b as char).to_digit(16).ok_or_else(refuse);
        *slot = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(out)
}

/// Digits of `bytes`, in `out` that has room for twice as many. Ids are printed with every ledger entry, so not by way of
/// a formatter for each byte.
fn hex<'a>(bytes: &[u8], out: &'a mut [u8]) -> &'a str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    std::str::from_utf8(out).unwrap_or_default()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[rkyv(derive(PartialEq, Eq, PartialOrd, Ord, Hash))]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// The first ten hexadecimal digits: short, and unambiguous within any cluster that fits a disk.
            pub fn short(&self) -> String {
                self.0.iter().take(5).map(|b| format!("{b:02x}")).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(hex(&self.0, &mut [0; 2 * $bytes]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex($what, text).map($name)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A node: blake3 of its Ed25519 public key.
    NodeId, 32, "a node id"
);
id!(
    /// A cluster, drawn by `init`.
    ClusterId, 16, "a cluster id"
);
id!(
    /// A machine, drawn by the node that receives its creation.
    MachineId, 16, "a machine id"
);
id!(
    /// A join or API token's public half.
    TokenId, 8, "a token id"
);
id!(
    /// One move of one machine.
    MoveId, 16, "a move id"
);
id!(
    /// Long work that a client may follow.
    OperationId, 16, "an operation id"
);
id!(
    /// A blake3 digest that names content.
    Digest, 32, "a blake3 digest"
);
id!(
    /// What a client sends so that a repeated request is not done twice: blake3 of its `Idempotency-Key`.
    IdempotencyKey, 16, "an idempotency key"
);

impl NodeId {
    /// The id that belongs to an Ed25519 public key (32 raw bytes).
    pub fn of_public_key(key: &[u8]) -> Self {
        NodeId(*blake3::hash(key).as_bytes())
    }
}

impl Digest {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Digest(*blake3::hash(content).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_printing_and_parsing() {
        let id = MachineId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "ababababab");
    }

    #[test]
    fn what_is_no_id_is_refused_with_the_value() {
        let error = "xyz".parse::<MachineId>().unwrap_err();
        assert_eq!(error.to_string(), "\"xyz\" is not a machine id: expected 32 hexadecimal digits");
        assert!("é".repeat(16).parse::<MachineId>().is_err());
    }
}
