//! Streams that people hold open: logs that are followed, programs, forwarded ports. They end with whoever opened them, and
//! take nothing from the fabric's own traffic.

#![expect(clippy::disallowed_methods, reason = "looks at processes")]

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use smartnode_tests::machines::IDLE;
use smartnode_tests::{Cluster, http, poll};

/// Streams that one node serves another at once (`fabric::limits::STREAMS_OPEN_MAX`).
const PLACES: usize = 192;

/// Follows the log of `quiet`: the connection, and the status that it got.
fn follow(socket: &Path) -> (UnixStream, String) {
    let path = "/v1/tenants/default/machines/quiet/logs?follow=true";
    let mut stream = http::open(socket, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
    let mut status = [0; 12];
    stream.read_exact(&mut status).expect("an answer");
    (stream, String::from_utf8_lossy(&status[9..]).into_owned())
}

#[test]
#[ignore = "needs root and namespaces"]
fn followers_that_went_leave_nothing_behind_and_those_that_stay_starve_nobody() {
    let cluster = Cluster::of(3, "follow");
    cluster.pack(0);
    cluster.create(0, "quiet", &["--node", "n2"], IDLE);
    let socket = cluster.lab.host(0).admin_socket();
    for round in 0..3 {
        poll::until(&format!("followers are served in round {round}"), Duration::from_secs(20), || {
            let followers: Vec<_> = (0..PLACES * 3 / 4).map(|_| follow(&socket)).collect();
            followers.iter().all(|(_, status)| status == "200").then_some(())
        });
    }

    let mut held = vec![];
    let (refused, _) = poll::until("there is no further place", Duration::from_secs(20), || {
        let (stream, status) = follow(&socket);
        held.push(stream);
        (status != "200").then_some(status)
    });
    assert_eq!(refused, "429");
    assert!(held.len() > PLACES / 2, "only {} followers were served", held.len());
    cluster.exec(0, "quiet", &["/bin/true"]).expect(7, &["streams of the asking node", "hint"]);
    // From the node that follows and from the one that is followed: requests and Raft go on.
    for at in 0..2 {
        let status = cluster.cli(at, &["status", "-o", "json"]).ok().json();
        assert_eq!(status["tolerance"], 1, "{status}");
        cluster.create(at, &format!("new{at}"), &[], IDLE);
    }
    drop(held);
    poll::until("programs run there again", Duration::from_secs(20), || {
        (cluster.exec(0, "quiet", &["/bin/sh", "-c", "true"]).code == 0).then_some(())
    });
}

/// Whether a process with exactly these words lives on this host.
fn lives(words: &str) -> bool {
    let wanted = words.replace(' ', "\0") + "\0";
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    processes
        .map(|entry| entry.path().join("cmdline"))
        .any(|path| fs::read_to_string(path).is_ok_and(|is| is == wanted))
}

/// Bytes that a process has read so far.
fn bytes_read(pid: u32) -> u64 {
    let counts = fs::read_to_string(format!("/proc/{pid}/io")).expect("its counts");
    counts.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).expect("a number")
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_client_that_dies_takes_its_program_along_though_that_takes_no_input() {
    let cluster = Cluster::of(2, "deaf");
    cluster.pack(0);
    cluster.create(0, "busy", &["--node", "n2"], IDLE);
    // Through another node, and through its own.
    for at in 0..2 {
        let seconds = format!("77{at}77");
        let words = ["machine", "exec", "busy", "--", "/bin/sleep", &seconds];
        let zeroes = fs::File::open("/dev/zero").expect("zeroes");
        let mut client = cluster.lab.client(at, &words).stdin(zeroes).spawn().expect("the CLI");
        let program = format!("/bin/sleep {seconds}");
        poll::until("the program runs", Duration::from_secs(20), || lives(&program).then_some(()));
        let mut before = 0;
        poll::until_every(
            Duration::from_millis(500),
            Duration::from_secs(20),
            || {
                let now = bytes_read(client.id());
                (now == std::mem::replace(&mut before, now) && now > 1 << 16).then_some(())
            },
            || "everything on the way to the program is full".to_owned(),
        );
        client.kill().expect("SIGKILL");
        client.wait().expect("it is dead");
        poll::until("the program has ended as well", Duration::from_secs(20), || (!lives(&program)).then_some(()));
    }
}
