//! The entropy seam of one boot: a seeded stream.

use std::sync::{Mutex, PoisonError};

use fabric::seams::Entropy;
use rand::Rng;
use rand::rngs::StdRng;

/// Randomness of one boot of one host.
#[derive(Debug)]
pub struct SeededEntropy(Mutex<StdRng>);

impl SeededEntropy {
    /// Draws from `stream`.
    pub fn new(stream: StdRng) -> Self {
        SeededEntropy(Mutex::new(stream))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, out: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(out);
    }
}
