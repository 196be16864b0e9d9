//! Bounds of moving layers and of bulk streams between nodes.

use std::time::Duration;

/// Longest path inside a layer or image, bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest single component of a path, bytes (what Linux file systems take).
pub const COMPONENT_BYTES_MAX: usize = 255;
/// Most entries of one layer.
pub const LAYER_ENTRIES_MAX: usize = 262_144;
/// Largest apparent size of one file, so that its block list fits a frame.
pub const LAYER_FILE_BYTES_MAX: u64 = 64 << 30;
/// Most blocks of one layer (with full blocks: 256 GiB).
pub const LAYER_BLOCKS_MAX: usize = 262_144;
/// Bytes of all paths, targets and attributes of one layer, so that its manifest fits memory.
pub const LAYER_TEXT_BYTES_MAX: usize = 64 << 20;
/// Most extended attributes of one entry.
pub const XATTRS_MAX: usize = 64;
/// Bytes of all extended attributes of one entry (Linux allows 64 KiB a value).
pub const XATTR_BYTES_MAX: usize = 128 * 1024;
/// A page of a manifest is closed once it is estimated at this many bytes.
pub const PAGE_BYTES: usize = 512 * 1024;
/// Lacking blocks named in one message.
pub const LACK_PAGE_MAX: usize = 65_536;
/// A bulk stream on which nothing moves for this long is given up.
pub const IDLE_MAX: Duration = Duration::from_secs(20);
/// The destination may be busy this long with flushing before it answers.
pub const FLUSH_MAX: Duration = Duration::from_secs(120);
/// Passes while the machine runs, before it is frozen whatever the delta is.
pub const PASSES_MAX: u32 = 8;
/// A delta of this size is small: what is left is moved while the machine is frozen.
pub const SMALL_DELTA_BYTES: u64 = 4 << 20;
/// A file is trusted to be unchanged only when its change time was this much older than the flush before its reading.
pub const SETTLED: Duration = Duration::from_secs(30);
/// Up to this many files are flushed one by one; more are flushed with their whole file system, which on a busy host
/// waits for other people's data too.
pub const FLUSH_EACH_MAX: usize = 64;
/// Layers with less content than this are read in full by every pass: cheaper than the flush that a shortcut needs.
pub const SHORTCUT_BYTES: u64 = 256 << 20;
