//! What machines of one host share: its disk, which none may take from the node, and its ports, which have one owner each.

use std::net::TcpListener;
use std::time::Duration;

use smartnode_tests::hosts::SmallDisk;
use smartnode_tests::machines::{IDLE, IMAGE, pid};
use smartnode_tests::{Cluster, http, poll};

const DISK_MIB: u32 = 192;
const SOON: Duration = Duration::from_secs(40);

fn reason(machine: &serde_json::Value) -> &str {
    machine["status"]["reason"].as_str().unwrap_or_default()
}

fn waits(machine: &serde_json::Value) -> &str {
    machine["waiting"].as_str().unwrap_or_default()
}

/// Makes a machine and does not wait for it.
fn make(cluster: &Cluster, name: &str, flags: &[&str], script: &str) {
    let words = [&["machine", "create", name, "--image", IMAGE][..], flags, &["--", "/bin/sh", "-c", script]].concat();
    cluster.cli(0, &words).ok();
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_machine_that_fills_the_disk_is_stopped_and_its_voter_goes_on() {
    let mut cluster = Cluster::hosts(3, "hog");
    let _disk = SmallDisk::mount(&cluster.lab.host(1).data_dir, DISK_MIB);
    cluster.form();
    cluster.pack(0);
    let quiet = cluster.create(0, "quiet", &["--node", "n2"], IDLE);
    make(&cluster, "hog", &["--node", "n2"], &format!("cat /dev/zero > /all; {IDLE}"));
    let stopped =
        |machine: &serde_json::Value| machine["status"]["state"] == "stopped" && reason(machine).contains("disk full");
    cluster.wait_machine(0, "hog", "is stopped, and says why", SOON, stopped);

    // Its voter is needed now for every write, and has no room but what it held back.
    cluster.kill_daemon(2);
    let socket = cluster.lab.host(1).admin_socket();
    for number in 0..100 {
        let body = format!(r#"{{"name":"t{number}"}}"#);
        let key = format!("Idempotency-Key: t{number}");
        let written = || {
            let answer = http::ask(&socket, "POST", "/v1/tenants", &[&key], &body);
            (200..300).contains(&answer.status).then_some(())
        };
        poll::until(&format!("n2 writes t{number}"), SOON, written);
    }
    assert!(stopped(&cluster.inspect(0, "hog").unwrap()));
    assert_eq!(pid(&cluster.inspect(0, "quiet").unwrap()), pid(&quiet), "who is not to blame runs on");
    let events = cluster.cli(1, &["events"]).ok().stdout;
    assert!(events.contains("machine-disk-full") && events.contains("disk-full"), "{events}");

    // Nothing more is sent there, until there is room again.
    make(&cluster, "late", &["--node", "n2"], IDLE);
    cluster.wait_machine(0, "late", "waits for room", SOON, |machine| waits(machine).contains("nearly full"));
    cluster.cli(0, &["machine", "delete", "hog", "--yes", "--wait"]).ok();
    cluster.wait_on(0, "late", 1, SOON);
    assert_eq!(pid(&cluster.inspect(0, "quiet").unwrap()), pid(&quiet));
    cluster.start(2);
    cluster.wait_ready(2);
    cluster.wait_tolerance(1);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_port_of_a_host_is_one_machine_s() {
    let cluster = Cluster::of(1, "ports");
    cluster.pack(0);
    cluster.create(0, "first", &["--publish", "8080:80"], IDLE);
    make(&cluster, "second", &["--publish", "127.0.0.1:8080:80"], IDLE);
    let taken = "port 8080 of n1 is taken by machine first";
    cluster.wait_machine(0, "second", "waits for the port", SOON, |machine| waits(machine) == taken);
    cluster.cli(0, &["machine", "delete", "first", "--yes", "--wait"]).ok();
    cluster.wait_on(0, "second", 0, SOON);

    // A program of the host has this one: the machine runs, and says that nobody reaches it.
    let foreign = cluster.in_network(Some(0), || TcpListener::bind("[::]:9090")).unwrap();
    cluster.create(0, "third", &["--publish", "9090:80"], IDLE);
    let told =
        |machine: &serde_json::Value| machine["status"]["state"] == "running" && reason(machine).contains("port 9090");
    cluster.wait_machine(0, "third", "says which port it lacks", SOON, told);
    assert!(cluster.cli(0, &["events"]).ok().stdout.contains("port-taken"));
    drop(foreign);
    cluster.wait_machine(0, "third", "has its port", SOON, |machine| reason(machine).is_empty());
}
