//! Round trips over in-memory streams and temporary directories.
#![expect(clippy::disallowed_methods, reason = "tests build layers as files of the host")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use fabric::ids::{MachineId, MoveId};
use fabric::limits::CHUNK_BYTES;
use fabric::seams::real::KernelClock;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::manifest::*;
use super::scan::Scanner;
use super::*;

const ID: MoveId = MoveId([7; 16]);
const MACHINE: MachineId = MachineId([8; 16]);

fn quiet() -> Report {
    Arc::new(|_| ())
}

fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

/// A layer with one of everything that needs no privilege.
fn build(upper: &Path) {
    fs::create_dir_all(upper.join("etc/deep/er")).unwrap();
    fs::write(upper.join("etc/small"), b"small").unwrap();
    fs::write(upper.join("etc/empty"), b"").unwrap();
    fs::write(upper.join("etc-more"), b"sorts between a directory and its children").unwrap();
    fs::write(upper.join("big"), noise(3 * CHUNK_BYTES + 17, 1)).unwrap();
    fs::set_permissions(upper.join("big"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(upper.join("big"), upper.join("etc/deep/same")).unwrap();
    symlink("/etc/../../outside", upper.join("etc/deep/er/link")).unwrap();
    let sparse = fs::File::create(upper.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"an island", 40 << 20).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, upper.join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
}

fn scan(path: &Path) -> Layer {
    Scanner::default().scan(path, true).unwrap()
}

struct Ends {
    _dir: tempfile::TempDir,
    upper: std::path::PathBuf,
    staging: std::path::PathBuf,
    adopted: std::path::PathBuf,
}

fn ends() -> Ends {
    let dir = tempfile::tempdir().unwrap();
    let [upper, staging, adopted] = ["upper", "staging", "adopted"].map(|name| dir.path().join(name));
    fs::create_dir(&upper).unwrap();
    Ends { _dir: dir, upper, staging, adopted }
}

async fn destination(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    staging: std::path::PathBuf,
) -> Result<Prepared, ReceiveError> {
    destination_with(|_| Some(1 << 30), stream, staging).await
}

async fn destination_with(
    room: impl FnMut(u64) -> Option<u64> + Send,
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    staging: std::path::PathBuf,
) -> Result<Prepared, ReceiveError> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (id, _) = accept(&mut reader).await?;
    receive((&mut reader, &mut writer), &staging, id, room, quiet()).await
}

async fn open<S: AsyncRead + AsyncWrite + Send + Unpin>(
    stream: S,
    upper: &Path,
) -> Result<Source<tokio::io::ReadHalf<S>, tokio::io::WriteHalf<S>>, SendError> {
    Source::open(tokio::io::split(stream), (ID, MACHINE), upper.to_owned(), Arc::new(KernelClock), quiet()).await
}

#[tokio::test]
async fn a_layer_arrives_as_it_was_and_only_once() {
    let ends = ends();
    build(&ends.upper);
    let (near, far) = tokio::io::duplex(1 << 16);
    let receiving = tokio::spawn(destination(far, ends.staging.clone()));
    let mut source = open(near, &ends.upper).await.unwrap();
    source.sync().await.unwrap();
    // The machine goes on writing until it is frozen.
    fs::File::options().write(true).open(ends.upper.join("big")).unwrap().write_all_at(b"new", 5).unwrap();
    fs::remove_file(ends.upper.join("etc-more")).unwrap();
    let sent = source.finish().await.unwrap();
    let got = receiving.await.unwrap().unwrap();
    assert_eq!(sent.digest, got.digest);
    assert_eq!(sent.passes.last().unwrap().delta_bytes, CHUNK_BYTES as u64);
    // Content once (the hole and the second name cost nothing), the changed block once more, and little else.
    let content = scan(&ends.upper).content_bytes() + CHUNK_BYTES as u64;
    assert!(sent.sent_bytes < content + 32 * 1024, "{} for {content}", sent.sent_bytes);

    assert_eq!(prepared(&ends.staging, ID).unwrap(), Some(sent.digest));
    adopt(&ends.staging, ID, &ends.adopted).unwrap();
    assert_eq!(scan(&ends.adopted), scan(&ends.upper));
    assert_eq!(scan(&ends.adopted).digest(), sent.digest);
    let [one, two] = ["big", "etc/deep/same"].map(|name| fs::metadata(ends.adopted.join(name)).unwrap().ino());
    assert_eq!(one, two);
    assert!(fs::metadata(ends.adopted.join("sparse")).unwrap().blocks() * 512 < 4 << 20);
    assert_eq!(fs::metadata(ends.adopted.join("big")).unwrap().mode() & 0o7777, 0o4755);
    assert!(staged(&ends.staging).unwrap().is_empty());
}

#[tokio::test]
async fn a_layer_that_does_not_fit_is_refused_before_its_content_comes() {
    let ends = ends();
    build(&ends.upper);
    let needed = scan(&ends.upper).content_bytes();
    let (near, far) = tokio::io::duplex(1 << 16);
    let receiving = tokio::spawn(destination_with(move |_| Some(needed - 1), far, ends.staging.clone()));
    let mut source = open(near, &ends.upper).await.unwrap();
    let error = source.sync().await.unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    let refused = receiving.await.unwrap().unwrap_err();
    assert!(matches!(refused, ReceiveError::NoRoom { needed: n, .. } if n == needed), "{refused}");
}

#[tokio::test]
async fn a_layer_is_given_up_when_others_take_the_room_that_it_needs_yet() {
    let ends = ends();
    build(&ends.upper);
    let (near, far) = tokio::io::duplex(1 << 16);
    let (mut left, mut asked) = (u64::MAX, Vec::new());
    let (tell, told) = std::sync::mpsc::channel();
    let room = move |needed| {
        asked.push(needed);
        let _ = tell.send(needed);
        // After the first block a machine writes as much as that: one byte more is to come than may.
        left = if asked.len() <= 2 { needed } else { left.min(needed) - 1 };
        Some(left)
    };
    let receiving = tokio::spawn(destination_with(room, far, ends.staging.clone()));
    let mut source = open(near, &ends.upper).await.unwrap();
    let error = source.sync().await.unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    assert!(matches!(receiving.await.unwrap().unwrap_err(), ReceiveError::NoRoom { .. }));
    let asked: Vec<u64> = told.iter().collect();
    let all = scan(&ends.upper).content_bytes();
    assert!(
        asked.len() == 3 && asked[..2] == [all; 2] && asked[2] < all,
        "what has come is asked for no more: {asked:?}"
    );
}

#[tokio::test]
async fn every_kind_may_become_every_other_between_passes() {
    let ends = ends();
    let make = |kind: usize| {
        let at = ends.upper.join("x");
        let _ = fs::remove_dir_all(&at);
        let _ = fs::remove_file(&at);
        match kind {
            0 => fs::write(&at, b"file").unwrap(),
            1 => symlink("somewhere", &at).unwrap(),
            2 => {
                fs::create_dir(&at).unwrap();
                fs::write(at.join("below"), b"below").unwrap();
            }
            3 => fs::hard_link(ends.upper.join("a"), &at).unwrap(),
            4 => rustix::fs::mkfifoat(rustix::fs::CWD, &at, rustix::fs::Mode::RWXU).unwrap(),
            _ => {}
        }
    };
    fs::write(ends.upper.join("a"), b"leader").unwrap();
    for from in 0..6 {
        for to in 0..6 {
            make(from);
            let mut staging = staging::Staging::open(&ends.staging, ID).unwrap();
            for last in [false, true] {
                if last {
                    make(to);
                }
                let layer = scan(&ends.upper);
                let within = within::Within::open(&ends.upper).unwrap();
                for (entry, block) in staging.begin(layer.clone()).unwrap() {
                    let item = &layer.entries[entry as usize];
                    let LayerKindV1::File { size, blocks } = &item.kind else { unreachable!() };
                    let digest = blocks[block as usize];
                    let bytes = scan::read_block(&within, &item.path, *size, block, &digest).unwrap().unwrap();
                    staging.put(entry, block, digest, &bytes).unwrap();
                }
            }
            let digest = staging.prepare().unwrap();
            assert_eq!(digest, scan(&ends.upper).digest(), "{from} -> {to}");
            assert_eq!(scan(&ends.staging.join(ID.to_string()).join("tree")), scan(&ends.upper), "{from} -> {to}");
        }
    }
}

/// Passes bytes on, and cuts or damages the stream after `limit` bytes towards the destination.
fn tampered(limit: usize, cut: bool) -> (tokio::io::DuplexStream, tokio::io::DuplexStream) {
    let (near, inner_near) = tokio::io::duplex(1 << 16);
    let (inner_far, far) = tokio::io::duplex(1 << 16);
    let (mut from_source, mut to_source) = tokio::io::split(inner_near);
    let (mut from_destination, mut to_destination) = tokio::io::split(inner_far);
    let forward = async move {
        let mut left = limit;
        let mut buffer = vec![0; 1 << 14];
        while let Ok(read @ 1..) = from_source.read(&mut buffer).await {
            if read > left {
                if cut {
                    break;
                }
                buffer[left] ^= 1;
                left = usize::MAX;
            }
            left -= read.min(left);
            if to_destination.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    };
    let back = async move { tokio::io::copy(&mut from_destination, &mut to_source).await };
    // Either direction's end is the end of both.
    tokio::spawn(async move {
        tokio::select! { biased; () = forward => {}, _ = back => {} }
    });
    (near, far)
}

#[tokio::test]
async fn a_cut_stream_resumes_with_what_is_there() {
    let ends = ends();
    fs::write(ends.upper.join("big"), noise(6 * CHUNK_BYTES, 2)).unwrap();
    let (near, far) = tampered(4 * CHUNK_BYTES, true);
    let receiving = tokio::spawn(destination(far, ends.staging.clone()));
    let error = open(near, &ends.upper).await.unwrap().finish().await.unwrap_err();
    assert!(matches!(error, SendError::Stream(_)), "{error:?}");
    receiving.await.unwrap().unwrap_err();
    assert_eq!(prepared(&ends.staging, ID).unwrap(), None);
    assert!(adopt(&ends.staging, ID, &ends.adopted).is_err());

    let (near, far) = tokio::io::duplex(1 << 16);
    let receiving = tokio::spawn(destination(far, ends.staging.clone()));
    let sent = open(near, &ends.upper).await.unwrap().finish().await.unwrap();
    receiving.await.unwrap().unwrap();
    assert!(sent.sent_bytes < 4 * CHUNK_BYTES as u64, "{}", sent.sent_bytes);
    adopt(&ends.staging, ID, &ends.adopted).unwrap();
    assert_eq!(scan(&ends.adopted), scan(&ends.upper));
}

#[tokio::test]
async fn a_damaged_block_is_noticed_and_told() {
    let ends = ends();
    fs::write(ends.upper.join("big"), noise(6 * CHUNK_BYTES, 3)).unwrap();
    let (near, far) = tampered(4 * CHUNK_BYTES, false);
    let receiving = tokio::spawn(destination(far, ends.staging.clone()));
    let sent = open(near, &ends.upper).await.unwrap().finish().await;
    let error = receiving.await.unwrap().unwrap_err();
    assert!(matches!(error, ReceiveError::Stream(frames::StreamError::Corrupt { .. })), "{error:?}");
    sent.unwrap_err();
    assert_eq!(prepared(&ends.staging, ID).unwrap(), None);
}

#[tokio::test]
async fn a_hostile_manifest_is_refused_before_it_touches_anything() {
    let ends = ends();
    let outside = ends.staging.join("evil");
    let (near, far) = tokio::io::duplex(1 << 16);
    let receiving = tokio::spawn(destination(far, ends.staging.clone()));
    let (mut reader, mut writer) = tokio::io::split(near);
    frames::write_record(&mut writer, &TransferOpenV1 { id: ID, machine: MACHINE }).await.unwrap();
    let _ready: TransferReadyV1 = frames::read_record(&mut reader, limits::IDLE_MAX).await.unwrap();
    let entry = |path: &[u8], kind| LayerEntryV1 {
        path: path.to_vec(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime_s: 0,
        mtime_ns: 0,
        xattrs: vec![],
    };
    let file = LayerKindV1::File { size: 0, blocks: vec![] };
    let layer = Layer { entries: vec![entry(b"", LayerKindV1::Dir), entry(b"../../evil", file)] };
    for page in layer.pages() {
        frames::write_record(&mut writer, &page).await.unwrap();
    }
    let end = LayerEndV1 { pass: 1, last: true, digest: layer.digest() };
    frames::write_record(&mut writer, &end).await.unwrap();
    let heard = frames::read_record::<LackV1>(&mut reader, limits::IDLE_MAX).await.unwrap_err();
    assert!(matches!(heard, frames::StreamError::Refused(refusal) if refusal.code == "layer-refused"));
    assert!(matches!(receiving.await.unwrap(), Err(ReceiveError::Layer(LayerError::Path(_)))));
    assert!(!outside.exists());
}

#[tokio::test]
async fn a_crash_leaves_only_what_is_listed_as_staged() {
    let ends = ends();
    let other = MoveId([9; 16]);
    drop(staging::Staging::open(&ends.staging, ID).unwrap());
    let held = staging::Staging::open(&ends.staging, other).unwrap();
    assert!(matches!(staging::Staging::open(&ends.staging, other), Err(staging::StagingError::Busy(_))));
    drop(held);
    assert_eq!(staged(&ends.staging).unwrap(), [ID, other].into());
    abort(&ends.staging, ID).unwrap();
    abort(&ends.staging, ID).unwrap();
    assert_eq!(staged(&ends.staging).unwrap(), [other].into());
    abort(&ends.staging, other).unwrap();
    assert_eq!(fs::read_dir(&ends.staging).unwrap().count(), 0);
    assert!(staged(&ends.upper.join("absent")).unwrap().is_empty());
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn overlay_marks_and_owners_travel() {
    let ends = ends();
    build(&ends.upper);
    let gone = ends.upper.join("gone");
    let device = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &gone, device, rustix::fs::Mode::empty(), 0).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    for (name, value) in [("trusted.overlay.opaque", "y"), ("trusted.overlay.origin", "host"), ("user.note", "hi")] {
        rustix::fs::lsetxattr(ends.upper.join("etc"), name, value.as_bytes(), flags).unwrap();
    }
    std::os::unix::fs::lchown(ends.upper.join("etc/small"), Some(100_123), Some(100_456)).unwrap();
    std::os::unix::fs::lchown(ends.upper.join("etc/deep/er/link"), Some(100_123), Some(100_456)).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let receiving = tokio::spawn(destination(far, ends.staging.clone()));
    let sent = open(near, &ends.upper).await.unwrap().finish().await.unwrap();
    receiving.await.unwrap().unwrap();
    adopt(&ends.staging, ID, &ends.adopted).unwrap();
    let layer = scan(&ends.adopted);
    assert_eq!(layer.digest(), sent.digest);
    let find = |path: &[u8]| layer.entries.iter().find(|entry| entry.path == path).unwrap();
    assert_eq!(find(b"gone").kind, LayerKindV1::Whiteout);
    let names: Vec<_> = find(b"etc").xattrs.iter().map(|(name, _)| shown(name)).collect();
    assert_eq!(names, ["trusted.overlay.opaque", "user.note"]);
    assert_eq!(find(b"etc/small").uid, 100_123);
    assert_eq!(find(b"etc/deep/er/link").gid, 100_456);
}

#[test]
fn a_settled_file_is_not_read_again_and_a_changed_one_is() {
    let ends = ends();
    for name in ["changes", "stays"] {
        fs::write(ends.upper.join(name), noise(10, 4)).unwrap();
    }
    let mut scanner = Scanner::new(0, std::time::Duration::ZERO);
    let first = scanner.scan(&ends.upper, false).unwrap();
    let kind = rustix::fs::statfs(&ends.upper).unwrap().f_type;
    assert_eq!(scanner.remembered(), if kind == 0xEF53 { 2 } else { scanner.remembered() });
    assert_eq!(scanner.scan(&ends.upper, false).unwrap(), first);
    let file = fs::File::options().write(true).open(ends.upper.join("changes")).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    let second = scanner.scan(&ends.upper, true).unwrap();
    assert_eq!(second, scan(&ends.upper));
    assert_ne!(second.digest(), first.digest());
    // By default nothing is trusted that changed lately, nor is a small layer worth a flush.
    let mut careful = Scanner::default();
    careful.scan(&ends.upper, false).unwrap();
    assert_eq!(careful.remembered(), 0);
}
