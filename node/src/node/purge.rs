//! `leave --purge`: removes what a node wrote into its data directory, and nothing else. Whoever names a directory with
//! other files in it loses none of them.
#![expect(clippy::disallowed_methods, reason = "removes the files of a node that has ended")]

use std::fs;
use std::io;
use std::path::Path;

use fabric::identity::{CERTIFICATE_FILE, KEY_FILE, TRUST_FILE};
use fabric::ids::{MachineId, MoveId};
use fabric::membership::BOOT_FILE;
use raft_store::ledger;

use crate::cli::{LOG_FILE, LOG_FILE_OLD};
use crate::config::{CA_FILE, LOCK_FILE, SOCKET_FILE};
use crate::host::RESERVE_FILE;
use crate::moving::marker;

/// Files of a node, directly in its data directory. A file that is being replaced has `.tmp` or `.new` behind its name.
const FILES: &[&str] = &[
    KEY_FILE,
    CERTIFICATE_FILE,
    TRUST_FILE,
    BOOT_FILE,
    super::dir::FILE,
    super::local_token::FILE,
    RESERVE_FILE,
    CA_FILE,
    SOCKET_FILE,
    LOG_FILE,
    LOG_FILE_OLD,
    marker::IN,
    marker::OUT,
    marker::DONE,
];

/// A directory of a node, and which names in it are its own.
type Directory = (&'static str, fn(&str) -> bool);

/// Directories of a node.
const DIRECTORIES: &[Directory] = &[
    ("images", |name| matches!(name, "chunks" | "manifests" | "rootfs" | "tmp")),
    ("machines", |name| first_word(name).parse::<MachineId>().is_ok()),
    ("quarantine", |name| first_word(name).parse::<MachineId>().is_ok()),
    ("staging", |name| first_word(name).parse::<MoveId>().is_ok()),
];

/// What is put aside or removed has more behind its id.
fn first_word(name: &str) -> &str {
    name.trim_start_matches(".gone-").split(['.', '-']).next().unwrap_or_default()
}

/// Removes a node's data, its lock last, and the directory if nothing else is in it. Returns what is left, by name.
pub fn purge(data_dir: &Path) -> Vec<String> {
    let told = |path: &Path, done: io::Result<()>| match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "was not removed");
        }
        _ => {}
    };
    for name in in_order(names(data_dir)) {
        let path = data_dir.join(&name);
        match DIRECTORIES.iter().find(|(directory, _)| *directory == name) {
            Some((_, is_own)) => {
                for child in names(&path).into_iter().filter(|child| is_own(child)) {
                    told(&path.join(&child), remove(&path.join(child)));
                }
                // What else is in it is not the node's.
                let _ = fs::remove_dir(&path);
            }
            None if is_file_of_node(&name) => told(&path, fs::remove_file(&path)),
            None => {}
        }
    }
    // Whoever waits for the end of this daemon looks at the lock.
    told(data_dir, fs::remove_file(data_dir.join(LOCK_FILE)));
    let left = names(data_dir);
    if left.is_empty() {
        let _ = fs::remove_dir(data_dir);
    } else {
        tracing::warn!(directory = %data_dir.display(), left = left.join(", "), "what is not this node's was left");
    }
    left
}

/// The database goes before what stands beside it: should the removal be cut short, a start finds that the ledger is gone,
/// and not a ledger that has lost its journal or its note.
fn in_order(mut names: Vec<String>) -> Vec<String> {
    names.sort_by_key(|name| ledger::FILES.iter().position(|file| file == name).unwrap_or(ledger::FILES.len()));
    names
}

fn is_file_of_node(name: &str) -> bool {
    let plain = name.strip_suffix(".tmp").or(name.strip_suffix(".new")).unwrap_or(name);
    FILES.iter().chain(&ledger::FILES).any(|file| *file == plain)
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use fabric::ids::Digest;

    use super::*;

    fn write(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    #[test]
    fn a_nodes_files_go_and_foreign_ones_stay() {
        let temporary = tempfile::tempdir().unwrap();
        let data = temporary.path().join("data");
        let (machine, digest) = (MachineId([7; 16]).to_string(), Digest([1; 32]).to_string());
        let own = [
            "node.key".to_owned(),
            "ledger.redb".into(),
            "ledger.redb.new".into(),
            "ledger.journal".into(),
            "ledger.journal.new".into(),
            "ledger-id".into(),
            "moves-done".into(),
            "reserve".into(),
            "cluster.tmp".into(),
            "lock".into(),
            format!("images/chunks/01/{digest}"),
            format!("machines/{machine}/upper/f"),
            format!("machines/.gone-{machine}-17/f"),
            format!("quarantine/{machine}-3-17.1/f"),
            format!("staging/{machine}/f"),
        ];
        own.iter().for_each(|path| write(&data, path));
        for path in ["thesis.txt", "images/holiday.jpg", "machines/notes", "src/main.rs"] {
            write(&data, path);
        }
        assert_eq!(purge(&data), ["images", "machines", "src", "thesis.txt"]);
        assert_eq!(names(&data.join("images")), ["holiday.jpg"]);
        assert_eq!(names(&data.join("machines")), ["notes"]);
        for path in own {
            assert!(!data.join(&path).exists(), "{path}");
        }
    }

    #[test]
    fn the_database_goes_before_what_stands_beside_it() {
        let beside = ["images", "ledger-id", "ledger.journal", "ledger.redb", "node.key"].map(str::to_owned);
        let expected = ["ledger.redb", "ledger.journal", "ledger-id", "images", "node.key"];
        assert_eq!(in_order(beside.to_vec()), expected);
    }

    #[test]
    fn an_own_directory_goes_whole() {
        let temporary = tempfile::tempdir().unwrap();
        let data = temporary.path().join("data");
        write(&data, "node.key");
        write(&data, "images/tmp/1");
        write(&data, "lock");
        assert_eq!(purge(&data), Vec::<String>::new());
        assert!(!data.exists());
    }
}
