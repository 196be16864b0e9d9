//! Bounds of images. With all of them at their maximum a manifest still fits one frame.

use std::time::Duration;

/// Most entries of one image.
pub const IMAGE_ENTRIES_MAX: usize = 16_384;
/// Bytes of all files of one image.
pub const IMAGE_BYTES_MAX: u64 = 8 << 30;
/// Most chunks of one image.
pub const IMAGE_CHUNKS_MAX: usize = IMAGE_ENTRIES_MAX + (IMAGE_BYTES_MAX / fabric::limits::CHUNK_BYTES as u64) as usize;
/// Bytes of all paths and targets of one image.
pub const IMAGE_TEXT_BYTES_MAX: usize = 1 << 20;
/// Directories inside one another that a packed directory may have.
pub const PACK_DEPTH_MAX: usize = 64;
/// Symbolic links followed on the way to one path, as in the kernel.
pub const LINKS_FOLLOWED_MAX: usize = 40;
/// Largest program or library whose needs are read.
pub const PROGRAM_BYTES_MAX: u64 = 512 << 20;
/// Libraries named by one program.
pub const LIBRARIES_MAX: usize = 1_024;
/// Largest library cache of the host.
pub const LIBRARY_CACHE_BYTES_MAX: u64 = 16 << 20;
/// Bytes of new chunks that are written before they are flushed together.
pub const COMMIT_BYTES: usize = 32 << 20;
/// Chunks asked for in one message.
pub const WANT_MAX: usize = 256;
/// Images fetched at once.
pub const FETCHES_MAX: usize = 4;
/// Peers served at once; further ones are told to come again.
pub const SERVED_MAX: usize = 16;
/// Peers tried for one image.
pub const PEERS_TRIED_MAX: usize = 8;
/// Pauses before the rounds in which peers are tried.
pub const ROUNDS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(1500)];
/// A connection to a peer that has the image stands within this time.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
