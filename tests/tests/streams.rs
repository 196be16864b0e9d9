//! Streams that people hold open: logs that are followed, programs, forwarded ports. They end with whoever opened them, and
//! take nothing from the fabric's own traffic.

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
