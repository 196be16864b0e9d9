//! What to send, what to remove, and when to freeze. Pure: no IO, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fabric::ids::Digest;

use super::limits::{PASSES_MAX, SMALL_DELTA_BYTES};
use super::manifest::{Layer, LayerEntryV1, LayerKindV1};
use super::within::ancestors;

/// Digest of a staged block whose content is not known: it equals no real one.
pub const UNKNOWN: Digest = Digest([0xff; 32]);

fn by_path(layer: &Layer) -> BTreeMap<&[u8], &LayerEntryV1> {
    layer.entries.iter().map(|entry| (entry.path.as_slice(), entry)).collect()
}

/// Blocks of `want` that `have` does not hold at the same place, as `(entry, block)` ascending. Holes are never lacking.
pub fn lacking(have: &Layer, want: &Layer) -> Vec<(u32, u32)> {
    let have = by_path(have);
    let mut out = Vec::new();
    for (at, entry) in want.entries.iter().enumerate() {
        let LayerKindV1::File { blocks, .. } = &entry.kind else { continue };
        let held = match have.get(entry.path.as_slice()).map(|entry| &entry.kind) {
            Some(LayerKindV1::File { blocks, .. }) => blocks.as_slice(),
            _ => &[],
        };
        for (index, digest) in blocks.iter().enumerate() {
            if *digest != Digest::default() && held.get(index) != Some(digest) {
                out.push((at as u32, index as u32));
            }
        }
    }
    out
}

/// Whether a staged thing may stay as it is, apart from content and attributes.
fn stays(have: &LayerKindV1, want: &LayerKindV1) -> bool {
    match (have, want) {
        (LayerKindV1::File { .. }, LayerKindV1::File { .. }) => true,
        (have, want) => have == want,
    }
}

/// Paths of `have` that must go before `want` can be made, outermost first; nothing below a removed path is named.
pub fn removals(have: &Layer, want: &Layer) -> Vec<Vec<u8>> {
    let wanted = by_path(want);
    let mut out: Vec<Vec<u8>> = Vec::new();
    let mut gone: BTreeSet<&[u8]> = BTreeSet::new();
    for entry in &have.entries {
        let path = entry.path.as_slice();
        if ancestors(path).any(|up| gone.contains(up)) {
            continue;
        }
        let keep = wanted.get(path).is_some_and(|want| stays(&entry.kind, &want.kind));
        let leader_gone = match &entry.kind {
            LayerKindV1::Hardlink { of } => gone.contains(of.as_slice()) || ancestors(of).any(|up| gone.contains(up)),
            _ => false,
        };
        if !keep || leader_gone {
            out.push(path.to_vec());
            gone.insert(path);
        }
    }
    out
}

/// What one pass cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassReport {
    /// Number, from 1.
    pub pass: u32,
    /// Bytes of blocks that were lacking.
    pub delta_bytes: u64,
    /// Bytes written to the stream, everything counted.
    pub sent_bytes: u64,
    /// How long it took, scan and flush included.
    pub took: Duration,
}

/// What to do after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another pass while the machine runs.
    Again,
    /// Freeze it and send the rest.
    Freeze,
}

/// Decides after each pass: freeze once the delta is small, stops shrinking, or patience is over.
pub fn next(passes: &[PassReport]) -> Next {
    let Some(last) = passes.last() else { return Next::Again };
    let shrinks = match passes.len().checked_sub(2).map(|at| passes[at].delta_bytes) {
        Some(before) => last.delta_bytes < before / 5 * 4,
        None => true,
    };
    let enough = last.delta_bytes <= SMALL_DELTA_BYTES || passes.len() >= PASSES_MAX as usize || !shrinks;
    if enough { Next::Freeze } else { Next::Again }
}

/// How long the machine will be frozen for the last pass: as long as the latest one took, were its delta as large.
pub fn predicted_outage(passes: &[PassReport]) -> Option<Duration> {
    passes.last().map(|last| last.took)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::limits::CHUNK_BYTES;

    fn entry(path: &str, kind: LayerKindV1) -> LayerEntryV1 {
        let path = path.as_bytes().to_vec();
        LayerEntryV1 { path, kind, mode: 0, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: vec![] }
    }
    fn file(path: &str, blocks: &[u8]) -> LayerEntryV1 {
        let size = (blocks.len() * CHUNK_BYTES) as u64;
        entry(path, LayerKindV1::File { size, blocks: blocks.iter().map(|b| Digest([*b; 32])).collect() })
    }
    fn layer(entries: Vec<LayerEntryV1>) -> Layer {
        Layer { entries }
    }
    fn report(pass: u32, delta_bytes: u64) -> PassReport {
        PassReport { pass, delta_bytes, sent_bytes: delta_bytes, took: Duration::from_millis(u64::from(pass)) }
    }

    #[test]
    fn only_changed_blocks_are_lacking() {
        let have = layer(vec![file("a", &[1, 2, 3]), file("b", &[1])]);
        let want = layer(vec![file("a", &[1, 9, 3, 4, 0]), file("c", &[1])]);
        assert_eq!(lacking(&have, &want), [(0, 1), (0, 3), (1, 0)]);
        assert_eq!(lacking(&want, &want), []);
    }

    #[test]
    fn what_changed_its_kind_goes_and_takes_its_names_along() {
        let link = |path, of: &str| entry(path, LayerKindV1::Hardlink { of: of.into() });
        let have = layer(vec![
            entry("a", LayerKindV1::Dir),
            file("a-b", &[1]),
            file("a/x", &[1]),
            file("f", &[1]),
            link("g", "a/x"),
            link("h", "f"),
        ]);
        let want = layer(vec![file("a", &[]), file("a-b", &[2]), file("f", &[3]), link("g", "a/x"), link("h", "f")]);
        assert_eq!(removals(&have, &want), [b"a".to_vec(), b"g".to_vec()]);
    }

    #[test]
    fn freezing_waits_for_a_small_delta_but_not_for_ever() {
        const GIB: u64 = 1 << 30;
        assert_eq!(next(&[]), Next::Again);
        assert_eq!(next(&[report(1, GIB)]), Next::Again);
        assert_eq!(next(&[report(1, 100)]), Next::Freeze);
        assert_eq!(next(&[report(1, GIB), report(2, GIB / 2)]), Next::Again);
        assert_eq!(next(&[report(1, GIB), report(2, GIB)]), Next::Freeze);
        let shrinking: Vec<_> = (1..=8).map(|n| report(n, GIB << (20 - n))).collect();
        assert_eq!(next(&shrinking), Next::Freeze);
    }
}
