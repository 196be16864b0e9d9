//! Join tokens as people pass them on: `sn1-` and lower-case base32 of id, secret, CA fingerprint and a checksum.
//!
//! The token holds the CA's fingerprint, so that a joiner authenticates the cluster before it says the secret. The
//! ledger keeps only [`JoinToken::secret_hash`].

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::ids::{Digest, TokenId};

const PREFIX: &str = "sn1-";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const CHECK_BYTES: usize = 4;
const BYTES: usize = 8 + 16 + 32 + CHECK_BYTES;
/// 60 bytes are exactly 96 characters of 5 bits.
const CHARS: usize = BYTES * 8 / 5;

/// The right to join a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Its public half: what the ledger knows it by.
    pub id: TokenId,
    /// Its secret half.
    pub secret: [u8; 16],
    /// blake3 of the CA certificate of the cluster.
    pub ca: Digest,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({:?})", self.id)
    }
}

/// Why a text is not a token. Never repeats the token, which is a secret.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// It begins with something else.
    #[error("not a join token: one begins with {PREFIX}")]
    Prefix,
    /// A part is missing or doubled.
    #[error("the join token has {0} characters after {PREFIX}, expected {CHARS}: was it copied whole?")]
    Length(usize),
    /// A character that no token has.
    #[error("the join token has {0:?}, which no token contains (a to z and 2 to 7 only)")]
    Character(char),
    /// A typing error.
    #[error("the join token's checksum does not match: a character was mistyped")]
    Checksum,
}

fn checksum(body: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = blake3::derive_key("smartnode join token checksum v1", body);
    [hash[0], hash[1], hash[2], hash[3]]
}

impl JoinToken {
    /// What the ledger keeps in place of the secret.
    pub fn secret_hash(&self) -> Digest {
        Self::hash_secret(&self.secret)
    }

    /// The hash of a secret that a joiner presents.
    pub fn hash_secret(secret: &[u8; 16]) -> Digest {
        Digest(blake3::derive_key("smartnode join token secret v1", secret))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [&self.id.0[..], &self.secret, &self.ca.0].concat();
        bytes.extend(checksum(&bytes));
        f.write_str(PREFIX)?;
        // Five bytes are eight characters, and 60 is a multiple of five: no padding ever.
        for group in bytes.chunks_exact(5) {
            let bits = group.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            for at in (0..8).rev() {
                write!(f, "{}", ALPHABET[(bits >> (at * 5)) as usize & 31] as char)?;
            }
        }
        Ok(())
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let value = |c: char| ALPHABET.iter().position(|known| *known as char == c).ok_or(TokenError::Character(c));
        let digits = body.chars().take(CHARS + 1).map(value).collect::<Result<Vec<_>, _>>()?;
        if digits.len() != CHARS {
            return Err(TokenError::Length(body.chars().count()));
        }
        let mut bytes = Vec::with_capacity(BYTES);
        for group in digits.chunks_exact(8) {
            let bits = group.iter().fold(0u64, |bits, digit| bits << 5 | *digit as u64);
            bytes.extend(&bits.to_be_bytes()[3..]);
        }
        let (body, check) = bytes.split_at(BYTES - CHECK_BYTES);
        if checksum(body) != check {
            return Err(TokenError::Checksum);
        }
        let mut token = JoinToken { id: TokenId::default(), secret: [0; 16], ca: Digest::default() };
        token.id.0.copy_from_slice(&body[..8]);
        token.secret.copy_from_slice(&body[8..24]);
        token.ca.0.copy_from_slice(&body[24..]);
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> JoinToken {
        JoinToken { id: TokenId([1; 8]), secret: [2; 16], ca: Digest([3; 32]) }
    }

    #[test]
    fn golden_text_of_a_token() {
        let text = token().to_string();
        assert_eq!(text.len(), PREFIX.len() + CHARS);
        assert!(text.starts_with("sn1-aeaqcaibaeaqcaqcaibaeaqcaibaeaqcaibaeaqdamb"), "{text}");
    }

    #[test]
    fn errors_say_what_to_do() {
        let text = token().to_string();
        assert_eq!("nonsense".parse::<JoinToken>(), Err(TokenError::Prefix));
        assert_eq!(text[..20].parse::<JoinToken>(), Err(TokenError::Length(16)));
        assert_eq!(text.replace('q', "1").parse::<JoinToken>(), Err(TokenError::Character('1')));
        assert_eq!(text.replacen("aea", "aeb", 1).parse::<JoinToken>(), Err(TokenError::Checksum));
        assert!(!format!("{:?}", token()).contains("2, 2"), "the secret is not printed");
    }

    proptest! {
        #[test]
        fn a_token_survives_printing(id: [u8; 8], secret: [u8; 16], ca: [u8; 32]) {
            let token = JoinToken { id: TokenId(id), secret, ca: Digest(ca) };
            prop_assert_eq!(format!(" {token}\n").parse(), Ok(token));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "(sn1-)?\\PC{0,120}") {
            prop_assert!(text.parse::<JoinToken>().is_err());
        }

        #[test]
        fn a_changed_character_is_noticed(at in 4usize..100, to in 0usize..32) {
            let text = token().to_string();
            let mut bytes = text.clone().into_bytes();
            bytes[at] = ALPHABET[to];
            let changed = String::from_utf8(bytes).unwrap();
            prop_assume!(changed != text);
            prop_assert_eq!(changed.parse::<JoinToken>(), Err(TokenError::Checksum));
        }
    }
}
