//! The operator's token for the TCP admin port of this node: a random secret in a 0600 file beside the node's key.
//!
//! The CLI reads the same file. It opens this node's port alone, with the rights of root at its socket.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fabric::seams::{Disk, Entropy, draw};
use tokio::time::Instant;

use super::context::Context;
use crate::api::backend::{Backend, Caller};

/// The file in the data directory.
pub const FILE: &str = "admin.token";
const BYTES: usize = 32;
/// The file is read again after this: whoever replaces it need not restart the node, and not every request reads it.
const FRESH: Duration = Duration::from_secs(1);

/// The file as it was read last.
#[derive(Debug, Default)]
pub struct Known(Mutex<Option<(Instant, blake3::Hash)>>);

impl Known {
    fn expected(&self, disk: &dyn Disk) -> Option<blake3::Hash> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, hash)) = *known
            && read.elapsed() < FRESH
        {
            return Some(hash);
        }
        *known = None;
        let content = disk.read(FILE).ok()??;
        let expected = std::str::from_utf8(&content).ok()?.trim();
        let hash = (!expected.is_empty()).then(|| blake3::hash(expected.as_bytes()))?;
        *known = Some((Instant::now(), hash));
        Some(hash)
    }
}

/// Reads the token, or draws and writes one.
///
/// # Errors
/// When the disk fails.
pub fn ensure(disk: &dyn Disk, entropy: &dyn Entropy) -> std::io::Result<()> {
    let there = disk.read(FILE)?;
    if there.is_some_and(|content| content.len() >= BYTES * 2) {
        return Ok(());
    }
    let secret: [u8; BYTES] = draw(entropy);
    let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    disk.write(FILE, format!("{text}\n").as_bytes())
}

/// Who holds `token`; none when it is not this node's.
pub fn authenticate(context: &Context, known: &Known, backend: &dyn Backend, token: &str) -> Option<Caller> {
    let expected = known.expected(&*context.seams.disk)?;
    // Hashes compare in constant time, whatever the lengths.
    (expected == blake3::hash(token.trim().as_bytes())).then(|| {
        let root = backend.root();
        Caller { subject: root.subject.replace("root@", "admin-token@"), rights: root.rights }
    })
}
