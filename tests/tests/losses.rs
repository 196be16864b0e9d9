//! Files of a node that are lost or have rotted: told with what helps, mended where that can be, and never guessed around.
#![expect(clippy::disallowed_methods, reason = "plays a bad disk: changes and removes files of nodes")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smartnode_tests::machines::{IDLE, owner};
use smartnode_tests::{Cluster, poll};

fn data(cluster: &Cluster, at: usize) -> PathBuf {
    cluster.lab.host(at).data_dir.clone()
}

fn node_id(cluster: &Cluster, at: usize) -> String {
    cluster.cli(at, &["status", "-o", "json"]).ok().json()["node_id"].as_str().unwrap().to_owned()
}

/// Changes one bit of a file, and gives what was in it.
fn rot(file: &Path) -> Vec<u8> {
    let good = fs::read(file).unwrap();
    let mut bytes = good.clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(file, bytes).unwrap();
    good
}

/// As a node writes what is nobody else's.
fn write_private(path: &Path, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

fn back(cluster: &mut Cluster, at: usize) {
    cluster.start(at);
    cluster.wait_ready(at);
    cluster.wait_tolerance(at);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_voter_without_its_ledger_does_not_begin_anew() {
    let mut cluster = Cluster::of(3, "lost");
    let leader = cluster.leader(0);
    let victim = cluster.other_than(&[leader]);
    cluster.cli(victim, &["tenant", "create", "kept"]).ok();
    cluster.stop(victim);
    let (ledger, aside) = (data(&cluster, victim).join("ledger.redb"), data(&cluster, victim).join("aside"));
    fs::rename(&ledger, &aside).unwrap();
    let helps = ["ledger.redb", "smartnode node remove", "--force", "smartnode join"];
    for _ in 0..2 {
        let refused = cluster.daemon_fails(victim, &["start"]);
        refused.expect(1, &helps);
        refused.expect(1, &["missing", "promised"]);
    }
    // Nor where the note of it is gone, too.
    let note = data(&cluster, victim).join("ledger-id");
    let noted = fs::read(&note).unwrap();
    fs::remove_file(&note).unwrap();
    cluster.daemon_fails(victim, &["start"]).expect(1, &helps);
    write_private(&note, &noted);
    write_private(&ledger, &[]);
    let refused = cluster.daemon_fails(victim, &["start"]);
    refused.expect(1, &helps);
    refused.expect(1, &["empty"]);
    // A ledger of somebody else is none either.
    let other = cluster.other_than(&[victim, leader]);
    cluster.stop(other);
    fs::copy(data(&cluster, other).join("ledger.redb"), &ledger).unwrap();
    cluster.daemon_fails(victim, &["start"]).expect(1, &helps);
    // Nothing was spoiled meanwhile.
    fs::rename(&aside, &ledger).unwrap();
    for at in [other, victim] {
        cluster.start(at);
        cluster.wait_ready(at);
    }
    cluster.wait_tolerance(victim);
    let kept = || cluster.cli(victim, &["tenant", "list", "-o", "name"]).stdout.contains("kept").then_some(());
    poll::until("it has what it had", Duration::from_secs(20), kept);
}

#[test]
#[ignore = "needs root and namespaces"]
fn what_makes_a_node_itself_is_mended_or_told() {
    let mut cluster = Cluster::of(3, "self");
    let victim = 1;
    let (data, id) = (data(&cluster, victim), node_id(&cluster, victim));
    cluster.stop(victim);
    // Whom it trusts is in its certificate, and at everybody else.
    rot(&data.join("trust"));
    back(&mut cluster, victim);
    cluster.stop(victim);
    fs::remove_file(data.join("trust")).unwrap();
    back(&mut cluster, victim);
    cluster.stop(victim);

    // A clock is needed for this, and a person who has looked at it.
    fs::write(data.join("boot"), "soon").unwrap();
    let boot = format!("rm {}", data.join("boot").display());
    cluster.daemon_fails(victim, &["start"]).expect(1, &["boot", "damaged", "date", &boot, "smartnode start"]);
    fs::remove_file(data.join("boot")).unwrap();
    for (file, whose) in [("moves-out", "moving from"), ("moves-in", "moving to")] {
        fs::write(data.join(file), "garbage").unwrap();
        let remove = format!("rm {}", data.join(file).display());
        cluster.daemon_fails(victim, &["start"]).expect(1, &[file, "damaged", whose, &remove, "smartnode start"]);
        fs::remove_file(data.join(file)).unwrap();
    }
    back(&mut cluster, victim);
    cluster.stop(victim);

    // Without its key it is nobody, and without the record of its membership nobody's.
    for file in ["node.key", "cluster"] {
        let good = rot(&data.join(file));
        let rejoin = ["smartnode node remove", "--force", "smartnode join"];
        for start in [&["start"][..], &["init"]] {
            let refused = cluster.daemon_fails(victim, start);
            if file == "cluster" || start == ["start"] {
                refused.expect(1, &rejoin);
                refused.expect(1, &[file, "damaged"]);
            }
        }
        fs::write(data.join(file), good).unwrap();
    }

    // The certificate is given anew to whoever has the key and a token.
    let token = cluster.token(1);
    let peer = format!("{}:7420", cluster.lab.host(0).address);
    for lost in [false, true] {
        let words = if lost { "missing" } else { "damaged" };
        if lost {
            fs::remove_file(data.join("node.crt")).unwrap();
        } else {
            rot(&data.join("node.crt"));
        }
        let refused = cluster.daemon_fails(victim, &["start"]);
        refused.expect(1, &["node.crt", words, "smartnode token create", "smartnode join"]);
        cluster.lab.start_daemon(victim, &["join", &peer, "--token", &token]).unwrap();
        cluster.wait_ready(victim);
        cluster.wait_tolerance(victim);
        assert_eq!(node_id(&cluster, victim), id, "it is who it was");
        cluster.stop(victim);
    }
    let list = cluster.cli(0, &["token", "list", "-o", "json"]).ok().json();
    let unused = |made: &serde_json::Value| made["uses_left"] == 1;
    assert!(list["items"].as_array().unwrap().iter().any(unused), "a certificate is no admission: {list}");
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_machine_that_does_not_start_stays_with_its_disk_and_a_move_takes_both_elsewhere() {
    let cluster = Cluster::of(3, "stays");
    cluster.pack(0);
    let made = cluster.create(0, "m", &[], &format!("echo once >> /kept; {IDLE}"));
    let (home, third) = (owner(&made).unwrap(), cluster.other_than(&[owner(&made).unwrap()]));
    poll::until("it has written", Duration::from_secs(10), || {
        (cluster.exec(0, "m", &["/bin/cat", "/kept"]).stdout == "once\n").then_some(())
    });
    cluster.cli(0, &["machine", "stop", "m", "--wait"]).ok();
    // Here its image cannot be mounted any more.
    let lower = data(&cluster, home).join("machines").join(made["id"].as_str().unwrap()).join("lower");
    fs::remove_dir(&lower).unwrap();
    fs::write(&lower, "").unwrap();
    cluster.cli(0, &["machine", "start", "m"]).ok();
    let told = |machine: &serde_json::Value| {
        let reason = machine["waiting"].as_str().or(machine["status"]["reason"].as_str()).unwrap_or_default();
        owner(machine) == Some(home) && reason.contains("image")
    };
    cluster.wait_machine(third, "m", "says what is wrong", Duration::from_secs(20), told);
    poll::stays("it is not placed anew", Duration::from_secs(5), || {
        cluster.inspect(third, "m").is_some_and(|machine| owner(&machine) == Some(home))
    });
    let to = format!("n{}", third + 1);
    cluster.cli(0, &["machine", "move", "m", "--to", &to, "--wait"]).ok();
    cluster.wait_on(0, "m", third, Duration::from_secs(20));
    poll::until("it goes on with its disk", Duration::from_secs(10), || {
        (cluster.exec(0, "m", &["/bin/cat", "/kept"]).stdout == "once\nonce\n").then_some(())
    });
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_disk_whose_record_has_rotted_is_kept_and_not_used() {
    let mut cluster = Cluster::of(1, "record");
    cluster.pack(0);
    let made = cluster.create(0, "m", &[], &format!("echo once >> /kept; {IDLE}"));
    let machine = data(&cluster, 0).join("machines").join(made["id"].as_str().unwrap());
    let kept = || fs::read_to_string(machine.join("upper/kept")).unwrap_or_default();
    poll::until("it has written", Duration::from_secs(10), || (kept() == "once\n").then_some(()));
    cluster.kill_host(0);
    let good = rot(&machine.join("launch"));
    cluster.start(0);
    cluster.wait_ready(0);
    let told = |machine: &serde_json::Value| {
        let reason = machine["status"]["reason"].as_str().unwrap_or_default();
        machine["status"]["state"] == "failed" && reason.contains("launch record") && reason.contains("machine move")
    };
    cluster.wait_machine(0, "m", "says what is wrong", Duration::from_secs(20), told);
    poll::stays("it is not started", Duration::from_secs(5), || cluster.inspect(0, "m").is_some_and(|m| told(&m)));
    let events = cluster.cli(0, &["events"]).ok().stdout;
    assert!(events.contains("machine-damaged"), "{events}");
    assert_eq!(kept(), "once\n");
    // With its record it goes on where it was.
    cluster.kill_daemon(0);
    fs::write(machine.join("launch"), good).unwrap();
    cluster.start(0);
    cluster.wait_ready(0);
    cluster.wait_on(0, "m", 0, Duration::from_secs(20));
    poll::until("it has written again", Duration::from_secs(10), || (kept() == "once\nonce\n").then_some(()));
}
