//! Packing, storing, unpacking and fetching on temporary directories and in-memory streams.
#![expect(clippy::disallowed_methods, reason = "tests build hosts as directories and run packed programs")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use fabric::ids::{Digest, NodeId};
use fabric::limits::CHUNK_BYTES;

use super::manifest::ImageKindV1;
use super::pack::from_root;
use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("images")).unwrap();
    (dir, store)
}

fn pack(paths: &[&str]) -> Pack {
    Pack { paths: paths.iter().map(PathBuf::from).collect(), ..Default::default() }
}

/// A host with merged /usr, a script and a directory.
fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir_all(root.join("srv/app/deep")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    fs::write(root.join("usr/bin/dash"), b"no real program").unwrap();
    symlink("dash", root.join("usr/bin/sh")).unwrap();
    fs::write(root.join("srv/app/run"), b"#!/bin/sh\necho hi\n").unwrap();
    fs::set_permissions(root.join("srv/app/run"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(root.join("srv/app/deep/data"), vec![7; CHUNK_BYTES + 5]).unwrap();
    symlink("/nowhere", root.join("srv/app/dangling")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("srv/app/socket")).unwrap();
    dir
}

fn kinds(manifest: &ImageManifest) -> BTreeMap<&str, &ImageKindV1> {
    manifest.entries.iter().map(|entry| (entry.path.as_str(), &entry.kind)).collect()
}

#[test]
fn a_directory_is_packed_with_links_and_interpreters() {
    let (host, (_dir, store)) = (host(), store());
    let packed = from_root(&store, host.path(), &pack(&["/srv/app"])).unwrap();
    let kinds = kinds(&packed.manifest);
    assert_eq!(kinds["bin"], &ImageKindV1::Symlink { target: "usr/bin".into() });
    assert_eq!(kinds["usr/bin/sh"], &ImageKindV1::Symlink { target: "dash".into() });
    for path in ["usr/bin/dash", "srv/app/deep/data", "srv/app/dangling", "tmp", "etc/passwd", "proc"] {
        assert!(kinds.contains_key(path), "{path}");
    }
    assert_eq!(packed.skipped, 1);
    assert_eq!(store.held().unwrap(), [packed.digest].into());
    // The same content is the same image.
    assert_eq!(from_root(&store, host.path(), &pack(&["/srv/app"])).unwrap().digest, packed.digest);

    let rootfs = store.rootfs(&packed.digest).unwrap();
    assert_eq!(fs::read(rootfs.join("srv/app/deep/data")).unwrap(), vec![7; CHUNK_BYTES + 5]);
    assert_eq!(fs::read_link(rootfs.join("bin")).unwrap(), Path::new("usr/bin"));
    let mode = |path: &str| fs::metadata(rootfs.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("srv/app/run"), mode("tmp"), mode("")), (0o755, 0o1777, 0o755));
    assert_eq!(store.rootfs(&packed.digest).unwrap(), rootfs);
}

#[test]
fn keys_of_nodes_stay_out_of_images_by_whatever_path() {
    let (host, (_dir, store)) = (host(), store());
    let root = host.path();
    let record = fabric::wire::encode(&fabric::rpc::Refusal::new("any", "record"));
    for node in ["var/lib/own", "srv/other"] {
        fs::create_dir_all(root.join(node).join("machines/m")).unwrap();
        fs::write(root.join(node).join("node.key"), &record).unwrap();
        fs::write(root.join(node).join("admin.token"), "secret").unwrap();
        fs::write(root.join(node).join("machines/m/log"), "1 o x").unwrap();
    }
    symlink("/var/lib/own", root.join("srv/link")).unwrap();
    fs::hard_link(root.join("var/lib/own/admin.token"), root.join("srv/app/innocent")).unwrap();
    fs::copy(root.join("srv/other/node.key"), root.join("usr/bin/copy")).unwrap();
    let pack = |path: &str| Pack { keep_out: vec![root.join("var/lib/own")], ..pack(&[path]) };
    for path in [
        "/var/lib/own",
        "/var/lib/own/admin.token",
        "/var/lib/own/machines/m/log",
        "/var",
        "/srv/link",
        "/srv/link/machines/m",
        "/srv/other",
        "/srv/other/machines/m/log",
        "/srv",
        "/srv/app",
        "/srv/app/innocent",
        "/usr/bin/copy",
        "/usr/bin",
    ] {
        let error = from_root(&store, root, &pack(path)).unwrap_err();
        assert!(matches!(&error, PackError::Keys { path: named, .. } if named == path), "{path}: {error}");
    }
    assert!(store.held().unwrap().is_empty());
    assert!(from_root(&store, root, &pack("/usr/bin/sh")).is_ok());
}

#[test]
fn a_rehearsal_names_the_image_and_writes_nothing() {
    let (host, (dir, store)) = (host(), store());
    let files = || walk(dir.path());
    let before = files();
    let would = from_root(&store, host.path(), &Pack { rehearse: true, ..pack(&["/srv/app"]) }).unwrap();
    assert_eq!(files(), before);
    let packed = from_root(&store, host.path(), &pack(&["/srv/app"])).unwrap();
    assert_eq!(would, packed);
}

/// Everything below a directory.
fn walk(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.insert(entry.path());
    }
    found
}

#[test]
fn what_cannot_be_packed_is_a_clear_error() {
    let (host, (_dir, store)) = (host(), store());
    let refuse = |path: &str| from_root(&store, host.path(), &pack(&[path])).unwrap_err().to_string();
    assert_eq!(refuse("/usr/bin/absent"), "\"/usr/bin/absent\" does not exist on this host");
    assert!(refuse("relative").contains("absolute"));
    assert!(refuse("/proc/1").contains("virtual"));
    assert!(refuse("/").contains("directories"));
    assert!(refuse("/srv/app/socket").contains("neither"));
    assert!(refuse("/srv/app/run/x").contains("no directory"));
    symlink("loop", host.path().join("loop")).unwrap();
    assert!(refuse("/loop").contains("links"));
    assert!(from_root(&store, host.path(), &pack(&[])).is_err());
    assert!(store.held().unwrap().is_empty());
    // `..` and absolute links stay inside, as in a real root.
    symlink("/../../usr/bin/dash", host.path().join("up")).unwrap();
    assert!(from_root(&store, host.path(), &pack(&["/up"])).is_ok());
}

#[test]
#[ignore = "needs root and namespaces"]
fn programs_of_this_host_run_from_their_image() {
    let (_dir, store) = store();
    let packed = from_host(&store, &pack(&["/bin/sh", "/bin/ls"])).unwrap();
    assert_eq!(packed.manifest.command, ["/bin/sh"]);
    let rootfs = store.rootfs(&packed.digest).unwrap();
    let out = Command::new("chroot").arg(&rootfs).args(["/bin/sh", "-c", "ls /etc/passwd && echo $((6*7))"]).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.stdout, b"/etc/passwd\n42\n");
}

#[test]
fn deleting_keeps_what_others_need_and_what_is_in_use() {
    let (host, (_dir, store)) = (host(), store());
    let one = from_root(&store, host.path(), &pack(&["/srv/app"])).unwrap();
    let two = from_root(&store, host.path(), &pack(&["/usr/bin/dash"])).unwrap();
    store.rootfs(&one.digest).unwrap();
    // A session that found a chunk keeps it, too.
    let data = one.manifest.chunks().into_iter().find(|(_, length)| *length == 5).unwrap();
    let mut session = store.session();
    assert!(session.has(&data.0, data.1));
    assert_eq!(store.collect().unwrap(), 0, "both are held");
    store.forget(&one.digest).unwrap();
    assert!(store.collect().unwrap() >= CHUNK_BYTES as u64);
    assert!(store.chunk(&data.0).is_ok());
    drop(session);
    assert!(!store.rootfs_path(&one.digest).exists());
    assert_eq!(store.held().unwrap(), [two.digest].into());
    two.manifest.chunks().keys().for_each(|chunk| drop(store.chunk(chunk).unwrap()));
    store.forget(&two.digest).unwrap();
    assert!(store.collect().unwrap() > 0);
    store.forget(&two.digest).unwrap();
    assert_eq!(store.collect().unwrap(), 0);
    assert!(!store.has(&two.digest));
}

#[test]
fn a_damaged_chunk_is_found_and_removed() {
    let (host, (dir, store)) = (host(), store());
    let packed = from_root(&store, host.path(), &pack(&["/srv/app"])).unwrap();
    let chunk = *packed.manifest.chunks().keys().next().unwrap();
    let name = chunk.to_string();
    let path = dir.path().join("images/chunks").join(&name[..2]).join(&name);
    let mut content = fs::read(&path).unwrap();
    content[0] ^= 1;
    fs::write(&path, content).unwrap();
    assert!(matches!(store.rootfs(&packed.digest), Err(StoreError::Damaged(_))));
    assert!(matches!(store.chunk(&chunk), Err(StoreError::Missing(_))));
    assert_eq!(fs::read_dir(dir.path().join("images/tmp")).unwrap().count(), 0);
    from_root(&store, host.path(), &pack(&["/srv/app"])).unwrap();
    assert!(store.rootfs(&packed.digest).is_ok());
}

#[test]
fn an_opening_removes_what_a_crash_left() {
    let (_host, (dir, store)) = (host(), store());
    let root = dir.path().join("images");
    drop(store);
    fs::write(root.join("tmp/0"), b"half a chunk").unwrap();
    fs::create_dir(root.join("rootfs").join(Digest::of(b"deleted").to_string())).unwrap();
    Store::open(&root).unwrap();
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(root.join("rootfs")).unwrap().count(), 0);
}

/// Peers by id; some cut their streams or answer nonsense.
struct Peers {
    stores: BTreeMap<NodeId, Store>,
    /// Bytes after which the first stream to anyone is cut.
    cut_after: Mutex<Option<usize>>,
    dialled: AtomicUsize,
}

#[async_trait]
impl Dial for Peers {
    async fn open(&self, peer: NodeId) -> std::io::Result<Pipe> {
        self.dialled.fetch_add(1, Ordering::Relaxed);
        let Some(store) = self.stores.get(&peer).cloned() else {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        };
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(far);
            let _ = Server::new(store).serve(&mut reader, &mut writer).await;
        });
        let (reader, writer) = tokio::io::split(near);
        let limit = self.cut_after.lock().unwrap().take().unwrap_or(usize::MAX);
        let reader = tokio::io::AsyncReadExt::take(reader, limit as u64);
        Ok(Pipe { reader: Box::new(reader), writer: Box::new(writer) })
    }
}

fn noise(root: &Path, megabytes: usize) {
    let mut data = vec![0; megabytes << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut data);
    fs::write(root.join("srv/app/noise"), data).unwrap();
}

#[tokio::test]
async fn an_image_comes_from_the_first_peer_that_can_give_it() {
    let host = host();
    noise(host.path(), 6);
    let ((_a, holder), (_b, empty), (_c, mine)) = (store(), store(), store());
    let packed = from_root(&holder, host.path(), &pack(&["/srv/app"])).unwrap();
    let [gone, without, with] = [1, 2, 3].map(|n| NodeId([n; 32]));
    let peers = Arc::new(Peers {
        stores: [(without, empty), (with, holder)].into(),
        cut_after: Mutex::new(None),
        dialled: AtomicUsize::new(0),
    });
    let fetcher = Fetcher::new(mine.clone(), peers.clone());
    let error = fetcher.fetch(packed.digest, &[gone, without], &|_| ()).await.unwrap_err();
    let words = error.to_string();
    assert!(words.contains("connection refused") && words.contains("not on this node"), "both reasons: {words}");
    assert_eq!(
        peers.dialled.swap(0, Ordering::Relaxed),
        4,
        "who does not answer is asked three times, who refuses once"
    );
    assert!(matches!(fetcher.fetch(packed.digest, &[], &|_| ()).await, Err(FetchError::Nowhere(_))));

    // The stream breaks in the middle; the second try of the same peer needs only the rest. Two callers share one fetch.
    *peers.cut_after.lock().unwrap() = Some(4 << 20);
    let seen = Mutex::new(Vec::new());
    let order = [with];
    let report = |progress: FetchProgress| seen.lock().unwrap().push(progress);
    let (one, two) =
        tokio::join!(fetcher.fetch(packed.digest, &order, &report), fetcher.fetch(packed.digest, &order, &report));
    assert_eq!(one.unwrap(), packed.manifest);
    assert_eq!(two.unwrap(), packed.manifest);
    assert_eq!(peers.dialled.load(Ordering::Relaxed), 2);
    let seen = seen.into_inner().unwrap();
    assert!(seen.windows(2).all(|pair| pair[0].bytes_done < pair[1].bytes_done), "nothing was fetched twice");
    assert_eq!(seen.last().unwrap().bytes_done, seen.last().unwrap().bytes_total);
    let rootfs = mine.rootfs(&packed.digest).unwrap();
    assert_eq!(fs::metadata(rootfs.join("srv/app/noise")).unwrap().len(), 6 << 20);
    assert_eq!(mine.held().unwrap(), BTreeSet::from([packed.digest]));

    // A chunk that was lost since is fetched again, alone.
    let (chunk, length) = packed.manifest.chunks().into_iter().next().unwrap();
    let name = chunk.to_string();
    fs::remove_file(mine.root().join("chunks").join(&name[..2]).join(&name)).unwrap();
    let fetched = Mutex::new(Vec::new());
    let report = |progress: FetchProgress| fetched.lock().unwrap().push(progress.bytes_total - progress.bytes_done);
    fetcher.fetch(packed.digest, &[with], &report).await.unwrap();
    assert_eq!(fetched.into_inner().unwrap(), [0]);
    assert_eq!(mine.chunk(&chunk).unwrap().len(), length);
}
