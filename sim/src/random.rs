//! Seeded random streams: one per purpose, so that a draw for one thing never shifts another.
//!
//! A stream is named by the run's seed, a label and numbers (host, boot). blake3 spreads the name over the generator's
//! state, so neighbouring seeds share nothing.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// The key of a stream.
fn key(seed: u64, label: &str, numbers: &[u64]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("smartnode-sim stream v1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(label.len() as u64).to_le_bytes());
    hasher.update(label.as_bytes());
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The stream of `label` and `numbers` in the run of `seed`.
pub fn stream(seed: u64, label: &str, numbers: &[u64]) -> StdRng {
    StdRng::from_seed(key(seed, label, numbers))
}

/// One number from such a stream's name, for what takes a seed of its own.
pub fn number(seed: u64, label: &str, numbers: &[u64]) -> u64 {
    let key = key(seed, label, numbers);
    u64::from_le_bytes([key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn a_name_gives_the_same_stream_and_another_name_another() {
        let first = |label: &str, n: u64| stream(1, label, &[n]).next_u64();
        assert_eq!(first("disk", 1), first("disk", 1));
        assert_ne!(first("disk", 1), first("disk", 2));
        assert_ne!(first("disk", 1), first("net", 1));
        assert_ne!(number(1, "a", &[]), number(2, "a", &[]));
    }
}
