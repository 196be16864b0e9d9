//! The admin port as clients of several nodes use it: events that go on elsewhere, and other hosts by TLS.
#![expect(clippy::disallowed_methods, reason = "drives real processes")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use smartnode_tests::{Cluster, poll};

/// A follower of events on one host.
struct Follower {
    child: Child,
    events: mpsc::Receiver<Value>,
}

impl Follower {
    fn on(cluster: &Cluster, at: usize, since: Option<&str>) -> Self {
        let mut arguments = vec!["events", "--follow", "-o", "json", "--timeout", "1s"];
        arguments.extend(since.into_iter().flat_map(|cursor| ["--since", cursor]));
        let mut command = cluster.lab.client(at, &arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a follower");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let (tell, events) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = tell.send(serde_json::from_str(&line).expect("an event"));
            }
        });
        Follower { child, events }
    }

    /// Adds what has come to `seen`, until the tenant `last` was told of.
    fn read_to(&self, last: &str, seen: &mut Vec<Value>) {
        poll::until(&format!("the event of {last}"), Duration::from_secs(30), || {
            seen.extend(self.events.try_iter());
            seen.iter().any(|event| event["subject"] == last).then_some(())
        });
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The ledger's position of an event, and what it was about.
fn position(event: &Value) -> Option<(String, String)> {
    event["actor"].as_str()?;
    let cursor = event["cursor"].as_str()?.split('.').next()?.to_owned();
    Some((cursor, event["subject"].as_str()?.to_owned()))
}

fn last_cursor(seen: &[Value]) -> String {
    seen.last().and_then(|event| event["cursor"].as_str()).expect("a cursor").to_owned()
}

#[test]
#[ignore = "needs root and namespaces"]
fn events_go_on_at_another_node_where_the_first_one_ended() {
    let mut cluster = Cluster::of(3, "event");
    let create = |cluster: &Cluster, at: usize, name: &str| {
        let done = || matches!(cluster.cli(at, &["tenant", "create", name]).code, 0 | 5).then_some(());
        poll::until(&format!("tenant {name}"), Duration::from_secs(30), done);
    };
    let mut seen = Vec::new();
    let first = Follower::on(&cluster, 0, None);
    for number in 0..5 {
        create(&cluster, number % 3, &format!("a{number}"));
    }
    first.read_to("a4", &mut seen);
    cluster.kill_daemon(0);
    // Nobody listens while these come.
    for number in 0..5 {
        create(&cluster, 1, &format!("b{number}"));
    }
    drop(first);
    let second = Follower::on(&cluster, 1, Some(&last_cursor(&seen)));
    create(&cluster, 2, "c0");
    second.read_to("c0", &mut seen);
    // The same cursor works on the first node, too, once it is back.
    cluster.start(0);
    cluster.wait_ready(0);
    let third = Follower::on(&cluster, 0, Some(&last_cursor(&seen)));
    create(&cluster, 1, "d0");
    third.read_to("d0", &mut seen);

    let told: Vec<_> = seen.iter().filter_map(position).collect();
    let distinct: BTreeSet<_> = told.iter().map(|(cursor, _)| cursor).collect();
    assert_eq!(distinct.len(), told.len(), "one was told twice: {told:?}");
    let whole = cluster.cli(2, &["events", "-o", "json"]).ok().stdout;
    let whole: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    let mut whole: Vec<_> = whole.iter().filter_map(position).collect();
    let end = whole.iter().position(|(_, subject)| subject == "d0").expect("the last one");
    whole.truncate(end + 1);
    let told: Vec<_> = told.into_iter().take_while(|(_, subject)| subject != "d0").collect();
    assert_eq!(told, whole[..whole.len() - 1], "the third node tells the same history");

    // Of one tenant alone; and a cursor that is none, or of no epoch that was.
    let one = cluster.cli(1, &["events", "--tenant", "b3", "-o", "json"]).ok().stdout;
    assert_eq!(one.lines().count(), 1, "{one}");
    assert_eq!(cluster.cli(1, &["events", "--since", "nonsense"]).code, 1);
    cluster.cli(1, &["events", "--since", "ff-1"]).expect(1, &["ff-1", "epoch", "another cluster"]);
    for kind in ["machine", "image"] {
        cluster.cli(1, &[kind, "list", "--tenant", "b3", "-o", "name"]).ok();
        cluster.cli(1, &[kind, "list", "--tenant", "nope"]).expect(3, &["there is no tenant \"nope\""]);
    }
}

#[test]
#[ignore = "needs root and namespaces"]
fn another_host_asks_by_tls_and_with_a_token() {
    let mut cluster = Cluster::hosts(2, "tls");
    let address = format!("{}:7421", cluster.lab.host(0).address);
    cluster.lab.start_daemon(0, &["init", "--admin-listen", &address]).expect("a daemon");
    cluster.wait_ready(0);
    let data = cluster.lab.host(0).data_dir.clone();
    let (ca, token) = (data.join("ca.pem"), data.join("admin.token"));
    let (ca, token, url) = (ca.to_str().unwrap(), token.to_str().unwrap(), format!("https://{address}"));
    let ask = |flags: &[&str]| cluster.cli(1, &[&["node", "list", "-o", "name", "--admin", &url][..], flags].concat());

    assert_eq!(ask(&["--ca", ca, "--token-file", token]).ok().stdout, "n1\n");
    let no_token = ask(&["--ca", ca]);
    assert_eq!(no_token.code, 4, "{no_token:?}");
    assert!(no_token.stderr.contains("token"), "{no_token:?}");
    let no_ca = ask(&["--token-file", token]);
    assert_eq!(no_ca.code, 2, "{no_ca:?}");
    let plain_client =
        cluster.cli(1, &["node", "list", "--admin", &format!("http://{address}"), "--token-file", token]);
    assert!(plain_client.code == 1 && plain_client.stderr.contains("TLS"), "{plain_client:?}");

    // Another cluster's CA: the node is refused before the token is shown.
    cluster.lab.start_daemon(1, &["init"]).expect("a daemon");
    cluster.wait_ready(1);
    let ask = |flags: &[&str]| cluster.cli(1, &[&["node", "list", "-o", "name", "--admin", &url][..], flags].concat());
    let foreign = cluster.lab.host(1).data_dir.join("ca.pem");
    let refused = ask(&["--ca", foreign.to_str().unwrap(), "--token-file", token]);
    assert!(refused.code == 4 && refused.stderr.contains("another cluster"), "{refused:?}");

    // Connections that never shake hands hold nobody up, and are ended.
    let script = format!(
        "for i in $(seq 100); do exec {{fd}}<>/dev/tcp/{}/7421 || exit 3; done; echo open; \
         read -r -t 20 -u $fd; echo ended $?",
        cluster.lab.host(0).address
    );
    let mut idle = cluster.command_on(1, "/bin/bash");
    let mut idle = idle.args(["-c", &script]).stdout(Stdio::piped()).spawn().expect("bash");
    let mut words = BufReader::new(idle.stdout.take().expect("its output")).lines();
    assert_eq!(words.next().expect("a line").expect("text"), "open");
    let ((), took) = poll::until("it answers beside them", Duration::from_secs(5), || {
        (ask(&["--ca", ca, "--token-file", token]).code == 0).then_some(())
    });
    eprintln!("beside a hundred idle connections: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(words.next().expect("a line").expect("text"), "ended 1", "a handshake is bounded in time");
    let _ = idle.wait();
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_service_s_unit_is_told_in_the_shape_asked_for() {
    let cluster = Cluster::hosts(1, "unit");
    let directory = cluster.path("units");
    std::fs::create_dir(&directory).expect("a directory");
    let unit = directory.join("smartnode.service");
    let run = |words: &[&str]| {
        let flags = ["--unit-dir", directory.to_str().unwrap(), "-o", "json"];
        cluster.cli(0, &[&["service"], words, &flags].concat()).ok().json()
    };
    let rehearsed = run(&["install", "--dry-run"]);
    assert!(rehearsed["done"] == false && rehearsed["text"].as_str().unwrap().contains("ExecStart="), "{rehearsed}");
    let installed = run(&["install"]);
    assert!(installed["done"] == true && installed["unit"] == unit.to_str().unwrap() && unit.exists(), "{installed}");
    assert_eq!(run(&["uninstall"])["done"], true);
    assert_eq!(run(&["uninstall"])["message"], "there was no unit");
}
