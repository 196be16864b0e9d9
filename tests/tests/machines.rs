//! A machine's life through the command line, from every node.

use std::time::Duration;

use smartnode_tests::machines::{BEAT, COUNT, IDLE, IMAGE, is_running, owner, pid};
use smartnode_tests::{Cluster, http, poll};

#[test]
#[ignore = "needs root and namespaces"]
fn a_machine_lives_and_dies() {
    let cluster = Cluster::of(3, "life");
    cluster.pack(0);
    let script = "echo hello from $NAME; echo trouble >&2; while :; do sleep 1; done";
    let made = cluster.create(1, "web", &["--label", "tier=front", "--env", "NAME=web"], script);
    assert_eq!(made["status"]["state"], "running", "{made}");
    // Seen alike from everywhere, by name and by label.
    for at in 0..3 {
        let (seen, _) = cluster.wait_machine(at, "web", "runs", Duration::from_secs(5), is_running);
        assert_eq!(seen["id"], made["id"]);
        let words = ["machine", "list", "--label", "tier=front", "--state", "running", "-o", "name"];
        assert_eq!(cluster.cli(at, &words).ok().stdout, "web\n");
        assert_eq!(cluster.cli(at, &["machine", "list", "--label", "tier=back", "-o", "name"]).ok().stdout, "");
        let done = cluster.exec(at, "web", &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (7, "out\n", "err\n"));
        let logs = cluster.cli(at, &["machine", "logs", "web"]).ok();
        assert!(logs.stdout.contains("hello from web"), "{logs:?}");
    }

    let home = owner(&made).unwrap();
    let before = pid(&made).unwrap();
    cluster.cli(2, &["machine", "restart", "web", "--wait"]).ok();
    let (again, _) = cluster.wait_on(0, "web", home, Duration::from_secs(10));
    assert_ne!(pid(&again), Some(before));
    cluster.exec(0, "web", &["/bin/sh", "-c", "echo kept > /kept"]).ok();
    cluster.cli(0, &["machine", "stop", "web", "--wait"]).ok();
    assert_eq!(cluster.copies(made["id"].as_str().unwrap()), Vec::<usize>::new());
    let stopped = cluster.exec(1, "web", &["/bin/true"]);
    assert_ne!(stopped.code, 0, "{stopped:?}");
    cluster.cli(1, &["machine", "start", "web", "--wait"]).ok();
    assert_eq!(cluster.exec(2, "web", &["/bin/cat", "/kept"]).ok().stdout, "kept\n");

    let used = cluster.cli(0, &["image", "delete", IMAGE, "--yes"]);
    assert_eq!(used.code, 5, "{used:?}");
    assert!(used.stderr.contains(IMAGE) && used.stderr.contains("hint"), "{used:?}");
    cluster.cli(1, &["machine", "delete", "web", "--yes", "--wait"]).ok();
    assert_eq!(cluster.cli(2, &["machine", "inspect", "web"]).code, 3);
    poll::until("nothing of it is left", Duration::from_secs(10), || {
        cluster.copies(made["id"].as_str()?).is_empty().then_some(())
    });
    cluster.cli(0, &["image", "delete", IMAGE, "--yes"]).ok();
}

#[test]
#[ignore = "needs root and namespaces"]
fn refusals_name_the_value_and_the_next_step() {
    let cluster = Cluster::of(1, "refus");
    cluster.pack(0);
    cluster.create(0, "one", &[], IDLE);
    let create = |flags: &[&str]| cluster.cli(0, &[&["machine", "create"][..], flags].concat());
    let refused = |flags: &[&str], code: i32, words: &[&str]| {
        let reply = create(flags);
        assert_eq!(reply.code, code, "{flags:?}: {reply:?}");
        for word in words {
            assert!(reply.stderr.contains(word), "{flags:?}: no {word:?} in {reply:?}");
        }
    };
    refused(&["one", "--image", IMAGE], 5, &["one"]);
    refused(&["two", "--image", "none"], 3, &["none"]);
    refused(&["Two!", "--image", IMAGE], 1, &["Two!"]);
    refused(&["two", "--image", IMAGE, "--node", "n9"], 3, &["n9"]);
    refused(&["two", "--image", IMAGE, "--memory", "much"], 2, &["much"]);
    let unknown = cluster.cli(0, &["machine", "create", "two", "--image", IMAGE, "--tenant", "nobody"]);
    assert_eq!(unknown.code, 3, "{unknown:?}");
    for verb in ["inspect", "start", "stop", "restart", "logs"] {
        let reply = cluster.cli(0, &["machine", verb, "nothing"]);
        assert_eq!(reply.code, 3, "{verb}: {reply:?}");
        assert!(reply.stderr.contains("nothing"), "{reply:?}");
    }
    assert_eq!(cluster.cli(0, &["node", "inspect", "n9"]).code, 3);
    assert_eq!(cluster.cli(0, &["machine", "move", "one", "--to", "n9"]).code, 3);
    assert_eq!(cluster.cli(0, &["tenant", "delete", "default", "--yes"]).code, 5);

    // More than any node has: told at once or as the reason for waiting, with both numbers.
    let huge = create(&["huge", "--image", IMAGE, "--memory", "900GiB"]);
    let words = if huge.code == 0 {
        let waits = |machine: &serde_json::Value| machine["waiting"].is_string();
        let (machine, _) = cluster.wait_machine(0, "huge", "says what it waits for", Duration::from_secs(10), waits);
        machine["waiting"].as_str().unwrap().to_owned()
    } else {
        huge.stderr
    };
    assert!(words.contains("900.0 GiB") || words.contains("900 GiB"), "{words}");
    assert!(words.contains("n1"), "{words}");
}

#[test]
#[ignore = "needs root and namespaces"]
fn labels_change_only_at_the_revision_that_was_seen() {
    let cluster = Cluster::of(1, "etag");
    cluster.pack(0);
    cluster.create(0, "one", &[], IDLE);
    // From then on nothing but its users changes it.
    cluster.wait_on(0, "one", 0, Duration::from_secs(5));
    let socket = cluster.lab.host(0).admin_socket();
    let path = "/v1/tenants/default/machines/one";
    let seen = http::ask(&socket, "GET", path, &[], "");
    assert_eq!(seen.status, 200, "{seen:?}");
    let revision = seen.json()["revision"].as_u64().unwrap();
    let matching = format!("If-Match: \"{revision}\"");
    let body = r#"{"labels":{"a":"1"}}"#;
    let first = http::ask(&socket, "PATCH", path, &[&matching], body);
    assert_eq!(first.status, 200, "{first:?}");
    let second = http::ask(&socket, "PATCH", path, &[&matching], r#"{"labels":{"a":"2"}}"#);
    assert_eq!(second.status, 412, "{second:?}");
    // The same request once more, known by its key, is answered and not done again.
    let key = "Idempotency-Key: one-and-the-same";
    let once = http::ask(&socket, "PATCH", path, &[key], r#"{"labels":{"a":"3"}}"#);
    let again = http::ask(&socket, "PATCH", path, &[key], r#"{"labels":{"a":"3"}}"#);
    assert_eq!((once.status, again.status), (200, 200), "{again:?}");
    assert_eq!(once.json()["revision"], again.json()["revision"]);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_moved_machine_goes_on_and_its_disk_crosses_the_link() {
    let cluster = Cluster::of(3, "move");
    cluster.pack(0);
    let made = cluster.create(0, "count", &[], COUNT);
    let (id, from) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    let to = cluster.other_than(&[from]);
    cluster.exec(0, "count", &["/bin/dd", "if=/dev/urandom", "of=/blob", "bs=1048576", "count=8"]).ok();
    let last = *cluster.counted(0, "count").last().expect("it has counted");
    let sent = |at: usize| {
        let words = ["-s", "-j", "link", "show", "eth0"];
        cluster.run_on(at, "ip", &words).ok().json()[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
    };
    let before = sent(from);
    // Asked of a node that is neither end.
    let third = cluster.other_than(&[from, to]);
    let name = format!("n{}", to + 1);
    cluster.cli(third, &["machine", "move", "count", "--to", &name, "--wait"]).ok();
    let bytes = sent(from) - before;
    assert!(bytes > 8 << 20, "only {bytes} bytes left the source");
    // The disk once, and the image, which the source may have given along.
    assert!(bytes < 16 << 20, "{bytes} bytes left the source for a disk of 8 MiB");
    let (moved, _) = cluster.wait_on(third, "count", to, Duration::from_secs(5));
    assert_eq!(moved["placement"]["fresh"], false, "{moved}");
    cluster.expect_count_past(third, "count", last + 10);
    assert_eq!(cluster.expect_running_once(third, "count"), to);
    poll::until("the source has cleaned up", Duration::from_secs(20), || {
        (!cluster.lab.host(from).data_dir.join("machines").join(&id).exists()).then_some(())
    });
    // There and back.
    let last = *cluster.counted(0, "count").last().expect("it has counted");
    cluster.cli(0, &["machine", "move", "count", "--to", &format!("n{}", from + 1), "--wait"]).ok();
    cluster.expect_count_past(0, "count", last + 10);
}

/// Asks for a move with a key, and follows the operation to its end: its id and state.
fn move_once(cluster: &Cluster, at: usize, key: &str, to: &str) -> (String, String) {
    let socket = cluster.lab.host(at).admin_socket();
    let path = "/v1/tenants/default/machines/count/move";
    let body = format!(r#"{{"to":"{to}"}}"#);
    let begun = http::ask(&socket, "POST", path, &[&format!("Idempotency-Key: {key}")], &body);
    assert_eq!(begun.status, 202, "{begun:?}");
    let id = begun.json()["id"].as_str().expect("an operation has an id").to_owned();
    let state = || {
        let seen: serde_json::Value =
            serde_json::from_str(&http::get(&socket, &format!("/v1/operations/{id}"))?).ok()?;
        let state = seen["state"].as_str()?.to_owned();
        (state != "running").then_some(state)
    };
    let (state, _) = poll::until("the operation ends", Duration::from_secs(60), state);
    (id, state)
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_move_that_is_asked_for_again_anywhere_moves_the_machine_once() {
    let mut cluster = Cluster::of(3, "mvkey");
    cluster.pack(0);
    let made = cluster.create(0, "count", &[], COUNT);
    let from = owner(&made).unwrap();
    let to = cluster.other_than(&[from]);
    let third = cluster.other_than(&[from, to]);
    let (there, back) = (format!("n{}", to + 1), format!("n{}", from + 1));
    let epoch = |cluster: &Cluster| cluster.inspect(to, "count").unwrap()["placement"]["epoch"].as_u64().unwrap();
    let before = epoch(&cluster);
    let done = "done".to_owned();
    let (first, state) = move_once(&cluster, third, "k", &there);
    assert_eq!(state, done);
    // Its old owner and its new one, where it is by now.
    for at in [from, to] {
        assert_eq!(move_once(&cluster, at, "k", &there).1, done);
    }
    assert_eq!(move_once(&cluster, third, "k", &there).0, first, "who was asked remembers");
    cluster.kill_daemon(third);
    cluster.start(third);
    cluster.wait_ready(third);
    let (second, state) = move_once(&cluster, third, "k", &there);
    assert_eq!(state, done);
    assert_ne!(second, first, "the operation of before the restart is gone");
    assert_eq!(epoch(&cluster), before + 1);
    assert_eq!(cluster.expect_running_once(third, "count"), to);
    // Another request is another move, and the first one is not done again for it.
    let another = ["machine", "move", "count", "--to", &there, "--idempotency-key", "l"];
    cluster.cli(third, &another).expect(5, &["already"]);
    cluster.cli(from, &["machine", "move", "count", "--to", &back, "--wait", "--idempotency-key", "m"]).ok();
    cluster.cli(to, &["machine", "move", "count", "--to", &there, "--wait", "--idempotency-key", "k"]).ok();
    assert_eq!((epoch(&cluster), cluster.expect_running_once(to, "count")), (before + 2, from));
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_move_whose_asked_daemon_dies_is_followed_elsewhere() {
    let mut cluster = Cluster::of(3, "mvfol");
    cluster.pack(0);
    let made = cluster.create(0, "count", &[], COUNT);
    let from = owner(&made).unwrap();
    let to = cluster.other_than(&[from]);
    let third = cluster.other_than(&[from, to]);
    cluster.exec(0, "count", &["/bin/dd", "if=/dev/urandom", "of=/blob", "bs=1048576", "count=64"]).ok();
    let there = format!("n{}", to + 1);
    let before = made["placement"]["epoch"].as_u64().unwrap();
    cluster.cli(third, &["machine", "move", "count", "--to", &there, "--idempotency-key", "k"]).ok();
    let moving =
        |machine: &serde_json::Value| machine["placement"]["moving_to"].is_string() || owner(machine) == Some(to);
    cluster.wait_machine(from, "count", "is being moved", Duration::from_secs(20), moving);
    cluster.kill_daemon(third);
    for at in [from, to] {
        assert_eq!(move_once(&cluster, at, "k", &there).1, "done");
    }
    let placement = &cluster.inspect(from, "count").unwrap()["placement"];
    assert_eq!((placement["epoch"].as_u64(), placement["node"].as_str()), (Some(before + 1), Some(&*there)));
    cluster.start(third);
    cluster.wait_ready(third);
    assert_eq!(move_once(&cluster, third, "k", &there).1, "done");
    assert_eq!(cluster.expect_running_once(third, "count"), to);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_drained_node_is_empty_until_it_is_uncordoned() {
    let cluster = Cluster::of(3, "drain");
    cluster.pack(0);
    for name in ["a", "b", "c"] {
        cluster.create(0, name, &["--exclusive"], BEAT);
    }
    let machine = cluster.inspect(0, "a").unwrap();
    let drained = owner(&machine).unwrap();
    let name = format!("n{}", drained + 1);
    cluster.cli(1, &["node", "drain", &name, "--wait", "--timeout", "60s"]).ok();
    for name in ["a", "b", "c"] {
        assert_ne!(cluster.expect_running_once(1, name), drained);
    }
    let left = cluster.cli(0, &["machine", "list", "--node", &name, "-o", "name"]).ok().stdout;
    assert_eq!(left, "");
    let there =
        cluster.cli(0, &["machine", "create", "d", "--image", IMAGE, "--node", &name, "--", "/bin/sh", "-c", IDLE]);
    let says = || format!("{}{:?}", there.stderr, cluster.inspect(0, "d"));
    if there.code == 0 {
        let waits = |machine: &serde_json::Value| machine["waiting"].is_string();
        cluster.wait_machine(0, "d", "waits for the cordon to end", Duration::from_secs(10), waits);
    }
    assert!(says().contains("cordon") || says().contains("drain"), "{}", says());
    cluster.cli(2, &["node", "uncordon", &name]).ok();
    if there.code == 0 {
        cluster.wait_on(0, "d", drained, Duration::from_secs(20));
    }
}
