//! Disks that are full, and disks that have changed what was written: named and refused, nothing acknowledged is lost.
#![expect(clippy::disallowed_methods, reason = "plays a bad disk: changes files of nodes, moves directories aside")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use smartnode_tests::hosts::SmallDisk;
use smartnode_tests::{Cluster, http, poll};

/// Size of a disk that a fabric fits on, and that is full soon.
const DISK_MIB: u32 = 8;

/// Makes a tenant through a node: whether it was acknowledged.
fn make(cluster: &Cluster, at: usize, name: &str) -> bool {
    let body = format!(r#"{{"name":"{name}"}}"#);
    let key = format!("Idempotency-Key: {name}");
    let socket = cluster.lab.host(at).admin_socket();
    (200..300).contains(&http::ask(&socket, "POST", "/v1/tenants", &[&key], &body).status)
}

fn tenants(cluster: &Cluster, at: usize) -> BTreeSet<String> {
    let list = cluster.cli(at, &["tenant", "list", "-o", "name"]);
    list.stdout.lines().map(str::to_owned).collect()
}

/// Waits until a node has all of these.
fn expect_tenants(cluster: &Cluster, at: usize, made: &BTreeSet<String>) {
    poll::until_or(
        Duration::from_secs(20),
        || made.is_subset(&tenants(cluster, at)).then_some(()),
        || format!("n{} has every acknowledged write; it has {:?} of {made:?}", at + 1, tenants(cluster, at)),
    );
}

/// Fills a voter's disk, lets the others write, and brings the voter back.
fn fill_and_return(cluster: &mut Cluster, disk: &SmallDisk, victim: usize, made: &mut BTreeSet<String>) {
    let other = cluster.other_than(&[victim]);
    disk.fill();
    // Writes go on until the voter has noticed, and after that.
    let write = |made: &mut BTreeSet<String>| {
        let name = format!("t{}", made.len());
        let written = || make(cluster, other, &name).then_some(());
        poll::until(&format!("n{} writes {name}", other + 1), Duration::from_secs(40), written);
        made.insert(name);
    };
    for _ in 0..8 {
        write(made);
    }
    // The journal has its room already; when it is quiet, or full, the database takes it in and needs some.
    let words = || format!("n{} gives up", victim + 1);
    poll::until_every(
        Duration::from_secs(2),
        Duration::from_secs(60),
        || {
            let over = cluster.cli(victim, &["status"]).code == 7;
            write(made);
            over.then_some(())
        },
        words,
    );
    for _ in 0..8 {
        write(made);
    }
    assert_eq!(cluster.wait_ended(victim), 1);
    let log = cluster.log(victim);
    for words in ["No space left on device", "make room in", "smartnode start"] {
        assert!(log.contains(words), "no {words:?} in {log}");
    }
    // The others do not count on it, and say so.
    let counted = || (cluster.cli(other, &["status", "-o", "json"]).ok().json()["tolerance"] == 0).then_some(());
    poll::until("the others know that they may lose nobody", Duration::from_secs(20), counted);

    // Still full: the same words at once. With room: back, with everything.
    cluster.daemon_fails(victim, &["start"]).expect(1, &["No space left on device", "make room in"]);
    disk.make_room();
    cluster.start(victim);
    cluster.wait_ready(victim);
    cluster.wait_tolerance(victim);
    for at in 0..3 {
        expect_tenants(cluster, at, made);
    }
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_voter_whose_disk_is_full_stops_says_so_and_returns() {
    let mut cluster = Cluster::hosts(3, "full");
    let disks: Vec<_> = cluster.lab.hosts().iter().map(|host| SmallDisk::mount(&host.data_dir, DISK_MIB)).collect();
    cluster.form();
    let mut made = BTreeSet::new();
    let leader = cluster.leader(0);
    let follower = cluster.other_than(&[leader]);
    fill_and_return(&mut cluster, &disks[follower], follower, &mut made);
    let leader = cluster.leader(0);
    fill_and_return(&mut cluster, &disks[leader], leader, &mut made);
}

/// Where `text` occurs.
fn places(bytes: &[u8], text: &str) -> Vec<usize> {
    bytes.windows(text.len()).enumerate().filter(|(_, w)| *w == text.as_bytes()).map(|(at, _)| at).collect()
}

fn holds(file: &Path, text: &str) -> bool {
    !places(&std::fs::read(file).unwrap(), text).is_empty()
}

/// Changes every occurrence of `text` in a file.
fn corrupt(file: &Path, text: &str) {
    let mut bytes = std::fs::read(file).unwrap();
    let found = places(&bytes, text);
    assert!(!found.is_empty(), "{text:?} is not in {}", file.display());
    for at in found {
        bytes[at] ^= 1;
    }
    std::fs::write(file, bytes).unwrap();
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_damaged_log_record_is_named_refused_and_replaced_by_a_new_join() {
    let mut cluster = Cluster::of(3, "damage");
    let mut made = BTreeSet::new();
    // A database that was closed is read record by record; one whose daemon was killed is checked as a whole.
    for (round, closed) in [true, false].into_iter().enumerate() {
        let name = format!("the-record-that-rots-{round}");
        let leader = cluster.leader(0);
        let victim = cluster.other_than(&[leader]);
        let other = cluster.other_than(&[victim]);
        let data = cluster.lab.host(victim).data_dir.clone();
        let database = data.join("ledger.redb");
        // The writes behind it put it into the database's older state, too: the newest one alone could be taken for a
        // write that was cut off, and undone. Each waits until the database has taken it in from the journal.
        for name in std::iter::once(name.clone()).chain((0..4).map(|at| format!("later-{round}-{at}"))) {
            assert!(make(&cluster, 0, &name), "{name}");
            let words = format!("{name} is in the database");
            poll::until(&words, Duration::from_secs(20), || holds(&database, &name).then_some(()));
            made.insert(name);
        }
        expect_tenants(&cluster, victim, &made);
        let before = cluster.cli(victim, &["status", "-o", "json"]).ok().json()["node_id"].clone();
        if closed {
            cluster.stop(victim)
        } else {
            cluster.kill_daemon(victim)
        }
        corrupt(&database, &name);
        for _ in 0..2 {
            let refused = cluster.daemon_fails(victim, &["start"]);
            refused.expect(1, &["ledger.redb", "smartnode node remove", "--force", "smartnode join"]);
            if closed {
                refused.expect(1, &["log entry", "damaged"]);
            }
        }
        let meanwhile = format!("meanwhile-{round}");
        assert!(make(&cluster, other, &meanwhile));
        made.insert(meanwhile);

        // What it says is what helps.
        let node = format!("n{}", victim + 1);
        cluster.cli(other, &["node", "remove", &node, "--force", "--yes"]).ok();
        std::fs::rename(&data, cluster.path(&format!("aside-{round}"))).unwrap();
        std::fs::create_dir(&data).unwrap();
        let token = cluster.cli(other, &["token", "create", "-o", "json"]).ok().json();
        let peer = format!("{}:7420", cluster.lab.host(other).address);
        cluster.lab.start_daemon(victim, &["join", &peer, "--token", token["token"].as_str().unwrap()]).unwrap();
        cluster.wait_ready(victim);
        cluster.wait_members(3);
        cluster.wait_tolerance(other);
        expect_tenants(&cluster, victim, &made);
        let after = cluster.cli(victim, &["status", "-o", "json"]).ok().json()["node_id"].clone();
        assert_ne!(before, after, "a node of its own");
    }
}
