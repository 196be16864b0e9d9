//! Leaders and majorities die; what was acknowledged stays.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use smartnode_tests::machines::{COUNT, IDLE, owner};
use smartnode_tests::{Cluster, http, poll};

/// Acknowledged writes of a client.
const WRITES: u64 = 1_000;

fn label(at: u64) -> String {
    format!(r#"{{"labels":{{"n":"{at}"}}}}"#)
}

#[test]
#[ignore = "needs root and namespaces"]
fn the_leader_dies_and_writes_go_on() {
    let mut cluster = Cluster::of(3, "lead");
    let leader = cluster.leader(0);
    let other = cluster.other_than(&[leader]);
    cluster.kill_daemon(leader);
    let written = || (cluster.cli(other, &["tenant", "create", "later", "--timeout", "10s"]).code == 0).then_some(());
    let ((), took) = poll::until("a write is acknowledged", Duration::from_secs(20), written);
    eprintln!("the next write after {took:?}");
    cluster.start(leader);
    cluster.wait_ready(leader);
    cluster.wait_members(3);
    let there = || cluster.cli(leader, &["tenant", "inspect", "later"]).code == 0;
    poll::until("the old leader has it", Duration::from_secs(10), || there().then_some(()));
    cluster.cli(leader, &["status", "--wait-tolerance", "1"]).ok();
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_majority_dies_and_returns_and_all_restart_together() {
    let mut cluster = Cluster::of(3, "major");
    cluster.pack(0);
    let made = cluster.create(0, "m", &[], IDLE);
    let home = owner(&made).unwrap();
    let others: Vec<usize> = (0..3).filter(|at| *at != home).collect();
    others.iter().for_each(|at| cluster.kill_daemon(*at));
    // Reads go on, writes are refused and say what they lack.
    assert_eq!(cluster.inspect(home, "m").unwrap()["id"], made["id"]);
    let refused = cluster.cli(home, &["tenant", "create", "lost"]);
    assert!(matches!(refused.code, 6 | 7), "{refused:?}");
    others.iter().for_each(|at| cluster.start(*at));
    others.iter().for_each(|at| cluster.wait_ready(*at));
    let written = || cluster.cli(home, &["tenant", "create", "found"]).code;
    poll::until("writes are back", Duration::from_secs(30), || matches!(written(), 0 | 5).then_some(()));

    (0..3).for_each(|at| cluster.kill_daemon(at));
    (0..3).for_each(|at| cluster.start(at));
    (0..3).for_each(|at| cluster.wait_ready(at));
    cluster.wait_members(3);
    cluster.cli(0, &["status", "--wait-tolerance", "1"]).ok();
    // An acknowledged write is in every linearizable read; a plain one may be of a moment before.
    let socket = cluster.lab.host(1).admin_socket();
    let found = http::ask(&socket, "GET", "/v1/tenants/found?consistency=linearizable", &[], "");
    assert_eq!(found.status, 200, "{found:?}");
    assert_eq!(cluster.expect_running_once(2, "m"), home);
    let after = cluster.inspect(0, "m").unwrap();
    assert_eq!(after["status"]["pid"], made["status"]["pid"], "the machine lived through it");
}

/// Writes labels one after another through one node until told to end; gives the last one acknowledged.
fn write_labels(socket: std::path::PathBuf, progress: mpsc::Sender<u64>) -> u64 {
    let path = "/v1/tenants/default/machines/m";
    let mut at = 1;
    while at <= WRITES {
        // A write whose answer was lost is tried again under its key: it may have been done.
        let key = format!("Idempotency-Key: write-{at}");
        if http::ask(&socket, "PATCH", path, &[&key], &label(at)).status == 200 {
            let _ = progress.send(at);
            at += 1;
        }
    }
    WRITES
}

#[test]
#[ignore = "needs root and namespaces"]
fn no_acknowledged_write_is_lost_with_its_leader() {
    let mut cluster = Cluster::of(3, "write");
    cluster.pack(0);
    cluster.create(0, "m", &[], IDLE);
    let leader = cluster.leader(0);
    let other = cluster.other_than(&[leader]);
    let socket = cluster.lab.host(other).admin_socket();
    let before = cluster.inspect(other, "m").unwrap()["revision"].as_u64().unwrap();
    let (progress, written) = mpsc::channel();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_labels(socket.clone(), progress));
        let reached = |wanted: u64| written.iter().find(|at| *at >= wanted).expect("the writer goes on");
        reached(WRITES / 2);
        cluster.kill_daemon(leader);
        // What was acknowledged up to now is in the others' ledgers: whatever is read there is not older.
        let acknowledged = written.try_iter().last().unwrap_or(WRITES / 2);
        let read = || {
            let machine = http::ask(&socket, "GET", "/v1/tenants/default/machines/m?consistency=linearizable", &[], "");
            (machine.status == 200).then(|| machine.json())
        };
        let (machine, _) = poll::until("a linearizable read", Duration::from_secs(30), read);
        let seen: u64 = machine["spec"]["labels"]["n"].as_str().unwrap().parse().unwrap();
        assert!(seen >= acknowledged, "label {acknowledged} was acknowledged, {seen} is read");
        assert_eq!(writer.join().unwrap(), WRITES);
    });
    cluster.start(leader);
    cluster.wait_ready(leader);
    let seen = |at: usize| Some(cluster.inspect(at, "m")?["spec"]["labels"]["n"].as_str()?.parse() == Ok(WRITES));
    for at in 0..3 {
        poll::until("the last label is there", Duration::from_secs(20), || seen(at).filter(|is| *is));
    }
    // Each of the writes was applied once: revisions are log positions, so none may be fewer than the writes.
    let after = cluster.inspect(other, "m").unwrap()["revision"].as_u64().unwrap();
    assert!(after - before >= WRITES, "{WRITES} writes, revisions {before} to {after}");
}

/// Makes tenants one after another until told enough; each answer is final, for its key makes a repetition safe.
fn make_tenants(socket: &std::path::Path, progress: &mpsc::Sender<u64>) {
    for at in 1..=WRITES {
        let key = format!("Idempotency-Key: tenant-{at}");
        let body = format!(r#"{{"name":"t{at}"}}"#);
        let written = || {
            // While its daemon is dead there is no socket to ask.
            let asked = http::try_ask(socket, "POST", "/v1/tenants", &[&key], &body).ok()?;
            assert!(asked.status < 300 || asked.status >= 429, "{asked:?}");
            (asked.status < 300).then_some(())
        };
        poll::until(&format!("tenant {at} is made"), Duration::from_secs(60), written);
        let _ = progress.send(at);
    }
}

fn tenants(cluster: &Cluster, at: usize) -> BTreeSet<u64> {
    let list = cluster.cli(at, &["tenant", "list", "-o", "name"]).stdout;
    list.lines().filter_map(|name| name.strip_prefix('t')?.parse().ok()).collect()
}

#[test]
#[ignore = "needs root and namespaces"]
fn no_acknowledged_write_is_lost_when_all_are_killed_at_once() {
    let mut cluster = Cluster::of(3, "allat");
    let socket = cluster.lab.host(1).admin_socket();
    let (progress, written) = mpsc::channel();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| make_tenants(&socket, &progress));
        for round in 1..=2 {
            written.iter().find(|at| *at >= round * WRITES / 3).expect("the writer goes on");
            (0..3).for_each(|at| cluster.kill_daemon(at));
            let acknowledged = written.try_iter().last().unwrap_or(round * WRITES / 3);
            (0..3).for_each(|at| cluster.start(at));
            (0..3).for_each(|at| cluster.wait_ready(at));
            for at in 0..3 {
                let missing = || {
                    let there = tenants(&cluster, at);
                    (1..=acknowledged).find(|number| !there.contains(number))
                };
                let limit = Duration::from_secs(30);
                poll::until_or(limit, || missing().is_none().then_some(()), || format!("n{}: {:?}", at + 1, missing()));
            }
        }
        writer.join().unwrap();
    });
    let all: BTreeSet<u64> = (1..=WRITES).collect();
    for at in 0..3 {
        poll::until("all thousand are there", Duration::from_secs(20), || (tenants(&cluster, at) == all).then_some(()));
    }
    cluster.wait_tolerance(0);
}

/// Who is killed while a machine moves.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Source,
    Destination,
    Leader,
}

/// The phases of a move that are seen from outside, each of which somebody dies in.
const PHASES: [&str; 6] = ["reserve", "sync", "stop", "final delta", "switch", "starting there"];

/// Moves until the phase was met; one that is over within a look may be missed.
const TRIES: usize = 5;

/// Kills a daemon as soon as a move has reached each of its phases, and starts it again.
fn kill_during_moves(victim: Victim, tag: &str) {
    let mut cluster = Cluster::of(3, tag);
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--restart", "always"], COUNT);
    cluster.exec(0, "m", &["/bin/dd", "if=/dev/urandom", "of=/blob", "bs=1048576", "count=32"]).ok();
    let mut from = owner(&made).unwrap();
    for phase in PHASES {
        let met = (0..TRIES).any(|_| {
            let (seen, on) = kill_once(&mut cluster, victim, phase, from);
            from = on;
            seen == phase
        });
        assert!(met, "{TRIES} moves were past {phase} when somebody looked");
    }
}

/// One such move from `from`: the phase in which the victim died, and where the machine is now.
fn kill_once(cluster: &mut Cluster, victim: Victim, phase: &str, from: usize) -> (String, usize) {
    let last = *cluster.counted(from, "m").last().expect("it has counted");
    let leader = cluster.leader(from);
    let to = cluster.other_than(&if victim == Victim::Leader { vec![from] } else { vec![from, leader] });
    let target = match victim {
        Victim::Source => from,
        Victim::Destination => to,
        Victim::Leader => leader,
    };
    let witness = cluster.other_than(&[target]);
    let seen = kill_at(cluster, phase, witness, target, to);
    cluster.start(target);
    cluster.wait_ready(target);
    cluster.wait_members(3);
    let settled = |machine: &Value| machine["placement"]["moving_to"].is_null();
    cluster.wait_machine(witness, "m", "is settled", Duration::from_secs(60), settled);
    let on = cluster.expect_running_once(witness, "m");
    eprintln!("killed in phase {seen}: it ended on n{}, from n{} towards n{}", on + 1, from + 1, to + 1);
    assert!(on == from || on == to, "n{} is neither end", on + 1);
    cluster.expect_count_past(witness, "m", last + 10);
    (seen, on)
}

/// Begins a move at `witness`, and kills `target` once the move has reached `phase` or is past it; the phase seen last.
fn kill_at(cluster: &mut Cluster, phase: &str, witness: usize, target: usize, to: usize) -> String {
    let name = format!("n{}", to + 1);
    let begun = cluster.cli(witness, &["machine", "move", "m", "--to", &name, "-o", "json"]).ok().json();
    let path = format!("/v1/operations/{}", begun["id"].as_str().expect("an operation has an id"));
    let socket = cluster.lab.host(witness).admin_socket();
    let at = |name: &str| PHASES.iter().position(|phase| *phase == name);
    let reached = || {
        let operation: Value = serde_json::from_str(&http::get(&socket, &path)?).ok()?;
        let now = operation["phase"].as_str()?.to_owned();
        let over = operation["state"] != "running";
        (over || at(&now) >= at(phase)).then_some(now)
    };
    let words = || format!("the move reaches {phase}");
    let (seen, _) = poll::until_every(Duration::from_millis(1), Duration::from_secs(30), reached, words);
    cluster.kill_daemon(target);
    seen
}

#[test]
#[ignore = "needs root and namespaces"]
fn moves_survive_their_source_s_daemon_in_every_phase() {
    kill_during_moves(Victim::Source, "mvsrc");
}

#[test]
#[ignore = "needs root and namespaces"]
fn moves_survive_their_destination_s_daemon_in_every_phase() {
    kill_during_moves(Victim::Destination, "mvdst");
}

#[test]
#[ignore = "needs root and namespaces"]
fn moves_survive_the_leader_s_daemon_in_every_phase() {
    kill_during_moves(Victim::Leader, "mvlead");
}
