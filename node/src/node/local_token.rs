//! The operator's token for the TCP admin port of this node: a random secret in a 0600 file beside the node's key.
//!
//! The CLI reads the same file. It opens this node's port alone, with the rights of root at its socket.

use fabric::seams::{Disk, Entropy, draw};

use super::context::Context;
use crate::api::backend::{Backend, Caller};

/// The file in the data directory.
pub const FILE: &str = "admin.token";
const BYTES: usize = 32;

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
pub fn authenticate(context: &Context, backend: &dyn Backend, token: &str) -> Option<Caller> {
    let content = context.seams.disk.read(FILE).ok()??;
    let expected = std::str::from_utf8(&content).ok()?.trim();
    // Hashes compare in constant time, whatever the lengths.
    let same = blake3::hash(expected.as_bytes()) == blake3::hash(token.trim().as_bytes());
    (same && !expected.is_empty()).then(|| {
        let root = backend.root();
        Caller { subject: root.subject.replace("root@", "admin-token@"), rights: root.rights }
    })
}
