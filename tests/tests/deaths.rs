//! What may die apart: the daemon, the supervisor, the whole host.
#![expect(clippy::disallowed_methods, reason = "reads the disk of a machine that does not run")]

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smartnode::lab::processes;
use smartnode_tests::machines::{BEAT, IDLE, owner, pid};
use smartnode_tests::{Cluster, poll};

/// Time in which the death of a node is confirmed and its machines run elsewhere.
const FAILOVER: Duration = Duration::from_secs(45);
/// A machine that beats without a longer pause was not frozen, in hundredths of a second.
const PAUSE: u64 = 300;
/// As long as the daemon hangs.
const HANG: Duration = Duration::from_secs(20);

#[test]
#[ignore = "needs root and namespaces"]
fn a_daemon_that_is_killed_and_back_changes_nothing() {
    let mut cluster = Cluster::of(3, "back");
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--exclusive"], BEAT);
    let id = made["id"].as_str().unwrap().to_owned();
    let (home, process, epoch) = (owner(&made).unwrap(), pid(&made), made["placement"]["epoch"].clone());
    cluster.kill_daemon(home);
    cluster.start(home);
    cluster.wait_ready(home);
    cluster.wait_members(3);
    let (after, _) = cluster.wait_on(home, "m", home, Duration::from_secs(10));
    assert_eq!((pid(&after), &after["placement"]["epoch"]), (process, &epoch), "{after}");
    assert_eq!(cluster.expect_running_once(home, "m"), home);
    assert_eq!(cluster.exec(cluster.other_than(&[home]), "m", &["/bin/sh", "-c", "exit 3"]).code, 3);

    // Stopped as announced: longer than a death takes to be confirmed.
    cluster.cli(home, &["stop"]).ok();
    assert_eq!(cluster.wait_ended(home), 0);
    let other = cluster.other_than(&[home]);
    cluster.wait_alive(other, 2);
    poll::stays("the machine keeps its place", Duration::from_secs(8), || {
        cluster.inspect(other, "m").is_none_or(|machine| owner(&machine) == Some(home))
    });
    cluster.start(home);
    cluster.wait_ready(home);
    let (after, _) = cluster.wait_on(home, "m", home, Duration::from_secs(10));
    assert_eq!((pid(&after), &after["placement"]["epoch"]), (process, &epoch), "{after}");
    let beats = cluster.beats(home, &id);
    let pause = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(pause < PAUSE, "it paused for {pause} hundredths of a second");
    assert!((0..3).filter(|at| *at != home).all(|at| cluster.beats(at, &id).is_empty()), "it ran elsewhere");
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_machine_whose_supervisor_dies_is_started_again() {
    let cluster = Cluster::of(1, "super");
    cluster.pack(0);
    let made = cluster.create(0, "m", &[], IDLE);
    let directory = cluster.lab.host(0).data_dir.join("machines").join(made["id"].as_str().unwrap());
    let supervisors = processes::supervisors_of(&directory);
    assert!(!supervisors.is_empty());
    supervisors.into_iter().for_each(processes::kill);
    let restarted = |machine: &serde_json::Value| {
        smartnode_tests::machines::is_running(machine) && pid(machine).is_some() && pid(machine) != pid(&made)
    };
    cluster.wait_machine(0, "m", "runs again", Duration::from_secs(20), restarted);
    assert_eq!(cluster.expect_running_once(0, "m"), 0);
    cluster.exec(0, "m", &["/bin/true"]);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_machine_that_never_restarts_and_loses_its_supervisor_has_not_ended_and_runs_when_it_is_started() {
    let cluster = Cluster::of(1, "never");
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--restart", "never"], IDLE);
    let directory = cluster.lab.host(0).data_dir.join("machines").join(made["id"].as_str().unwrap());
    let supervisors = processes::supervisors_of(&directory);
    assert!(!supervisors.is_empty());
    supervisors.into_iter().for_each(processes::kill);
    let failed =
        |machine: &serde_json::Value| machine["status"]["state"] == "failed" && machine["desired"] == "running";
    cluster.wait_machine(0, "m", "has failed", Duration::from_secs(20), failed);
    poll::stays("it stays so", Duration::from_secs(4), || cluster.inspect(0, "m").is_none_or(|m| failed(&m)));
    // It is wanted running all the while: who starts it has it.
    cluster.cli(0, &["machine", "start", "m", "--wait", "--timeout", "30s"]).ok();
    assert_eq!(cluster.expect_running_once(0, "m"), 0);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_dead_host_s_machine_serves_elsewhere_and_never_twice() {
    let mut cluster = Cluster::of(3, "host");
    cluster.pack(0);
    let made = cluster.create(0, "m", &[], "echo once > /mark; while :; do sleep 1; done");
    let (id, home) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    let other = cluster.other_than(&[home]);
    cluster.kill_host(home);
    let (next, took) = cluster.wait_elsewhere(other, "m", home, FAILOVER);
    eprintln!("runs elsewhere after {took:?}");
    assert_eq!(cluster.exec(other, "m", &["/bin/cat", "/mark"]).ok().stdout, "once\n");
    let machine = cluster.inspect(other, "m").unwrap();
    assert_eq!(machine["placement"]["fresh"], true, "{machine}");
    cluster.start(home);
    cluster.wait_ready(home);
    cluster.wait_members(3);
    poll::until("the old copy is put aside", Duration::from_secs(30), || cluster.quarantined(home, &id).then_some(()));
    assert_eq!(cluster.expect_running_once(home, "m"), next);
    poll::stays("one copy runs", Duration::from_secs(3), || cluster.copies(&id) == [next]);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_dead_host_s_disk_is_kept_wherever_its_machine_went_since() {
    let mut cluster = Cluster::of(3, "since");
    cluster.pack(0);
    let made = cluster.create(0, "m", &[], "echo once > /mark; while :; do sleep 1; done");
    let (id, home) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    let other = cluster.other_than(&[home]);
    cluster.kill_host(home);
    let (next, _) = cluster.wait_elsewhere(other, "m", home, FAILOVER);
    let last = cluster.other_than(&[home, next]);
    cluster.cli(next, &["machine", "move", "m", "--to", &format!("n{}", last + 1), "--wait"]).ok();
    // Whom it left by a move has nothing to keep.
    let disk = cluster.lab.host(next).data_dir.join("machines").join(&id);
    poll::until("the moved copy is gone", Duration::from_secs(30), || (!disk.exists()).then_some(()));
    assert!(!cluster.quarantined(next, &id));
    cluster.start(home);
    cluster.wait_ready(home);
    cluster.wait_members(3);
    poll::until("the old copy is put aside", Duration::from_secs(30), || cluster.quarantined(home, &id).then_some(()));
    assert_eq!(cluster.expect_running_once(home, "m"), last);
}

/// Beats of all hosts but one, the earliest.
fn first_elsewhere(cluster: &Cluster, id: &str, home: usize) -> u64 {
    let hosts = (0..cluster.lab.hosts().len()).filter(|at| *at != home);
    hosts.flat_map(|at| cluster.beats(at, id)).min().expect("it beats elsewhere")
}

/// Asserts that the first owner's last beat, which it gives, was before the first beat of any other.
fn expect_no_overlap(cluster: &Cluster, id: &str, home: usize) -> u64 {
    let (last, first) = (*cluster.beats(home, id).last().unwrap(), first_elsewhere(cluster, id, home));
    assert!(last < first, "the old owner beat at {last}, the new one from {first} on (hundredths of a second)");
    last
}

#[test]
#[ignore = "needs root and namespaces"]
fn an_exclusive_machine_whose_daemon_stays_dead_beats_once() {
    let mut cluster = Cluster::of(3, "alone");
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--exclusive"], BEAT);
    let (id, home) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    let other = cluster.other_than(&[home]);
    poll::until("it beats", Duration::from_secs(10), || (cluster.beats(home, &id).len() > 5).then_some(()));
    cluster.kill_daemon(home);
    let (next, took) = cluster.wait_elsewhere(other, "m", home, FAILOVER);
    eprintln!("runs elsewhere after {took:?}");
    poll::until("it beats there", Duration::from_secs(10), || (cluster.beats(next, &id).len() > 20).then_some(()));
    // Its supervisor lives, and has frozen it on its own.
    let last = expect_no_overlap(&cluster, &id, home);
    cluster.start(home);
    cluster.wait_ready(home);
    cluster.wait_members(3);
    poll::until("the old copy is put aside", Duration::from_secs(30), || cluster.quarantined(home, &id).then_some(()));
    assert_eq!(cluster.expect_running_once(home, "m"), next);
    assert_eq!(cluster.beats(home, &id).last(), Some(&last), "the old copy ran on beside the new one");
}

#[test]
#[ignore = "needs root and namespaces"]
fn an_exclusive_machine_never_beats_twice_in_a_partition() {
    let cluster = Cluster::of(3, "excl");
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--exclusive"], BEAT);
    let (id, home) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    // The same without the promise: it must be caught beating twice, or the test could catch nothing.
    let control = cluster.create(0, "control", &[], BEAT);
    cluster.cli(0, &["machine", "move", "control", "--to", &format!("n{}", home + 1), "--wait"]);
    cluster.wait_on(0, "control", home, Duration::from_secs(10));
    poll::until("it beats", Duration::from_secs(10), || (cluster.beats(home, &id).len() > 5).then_some(()));
    let other = cluster.other_than(&[home]);
    cluster.isolate(home);
    let (next, took) = cluster.wait_elsewhere(other, "m", home, FAILOVER);
    eprintln!("runs elsewhere after {took:?}");
    poll::until("it beats there", Duration::from_secs(10), || (cluster.beats(next, &id).len() > 20).then_some(()));
    let last = expect_no_overlap(&cluster, &id, home);
    let control = control["id"].as_str().unwrap();
    let (elsewhere, _) = cluster.wait_elsewhere(other, "control", home, FAILOVER);
    poll::until("the control beats twice", Duration::from_secs(10), || {
        let first = *cluster.beats(elsewhere, control).first()?;
        cluster.beats(home, control).last().filter(|last| **last > first).map(drop)
    });
    cluster.heal();
    cluster.wait_members(3);
    poll::until("the old copy is put aside", Duration::from_secs(30), || cluster.quarantined(home, &id).then_some(()));
    assert_eq!(cluster.expect_running_once(home, "m"), next);
    assert_eq!(cluster.beats(home, &id).last(), Some(&last), "the old copy ran on after the partition");
}

#[test]
#[ignore = "needs root and namespaces"]
fn an_exclusive_machine_pauses_without_a_quorum_and_goes_on() {
    let mut cluster = Cluster::of(3, "pause");
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--exclusive"], BEAT);
    let (id, home) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    let others: Vec<usize> = (0..3).filter(|at| *at != home).collect();
    others.iter().for_each(|at| cluster.kill_daemon(*at));
    let count = |cluster: &Cluster| cluster.beats(home, &id).len();
    // Beats come every 50 ms, looks every 20 ms or later.
    let (mut last, mut unchanged) = (count(&cluster), 0);
    poll::until("it freezes", Duration::from_secs(20), || {
        let now = count(&cluster);
        unchanged = if now == last { unchanged + 1 } else { 0 };
        last = now;
        (unchanged > 30).then_some(())
    });
    let frozen = count(&cluster);
    others.iter().for_each(|at| cluster.start(*at));
    let (after, _) = cluster.wait_on(home, "m", home, Duration::from_secs(30));
    assert_eq!(pid(&after), pid(&made), "paused, not killed");
    poll::until("it beats on", Duration::from_secs(20), || (count(&cluster) > frozen + 10).then_some(()));
    assert_eq!(cluster.expect_running_once(home, "m"), home);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_daemon_that_hangs_for_20_seconds_makes_no_second_owner() {
    let cluster = Cluster::of(3, "hang");
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--exclusive"], BEAT);
    let (id, home) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    let other = cluster.other_than(&[home]);
    poll::until("it beats", Duration::from_secs(10), || (cluster.beats(home, &id).len() > 5).then_some(()));
    cluster.lab.signal_daemon(home, Signal::SIGSTOP);
    let (next, took) = cluster.wait_elsewhere(other, "m", home, FAILOVER);
    poll::stays("it stays there while the daemon hangs", HANG.saturating_sub(took), || {
        cluster.inspect(other, "m").is_none_or(|machine| owner(&machine) == Some(next))
    });
    cluster.lab.signal_daemon(home, Signal::SIGCONT);
    cluster.wait_members(3);
    assert_eq!(cluster.expect_running_once(other, "m"), next);
    expect_no_overlap(&cluster, &id, home);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_machine_that_has_run_to_its_end_runs_nowhere_again_until_it_is_started() {
    let mut cluster = Cluster::of(3, "ended");
    cluster.pack(0);
    let script = "echo ran >> /runs; while ! [ -e /go ]; do sleep 0.05; done; exit 4";
    let made = cluster.create(0, "once", &["--restart", "never"], script);
    let (id, home) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    cluster.exec(0, "once", &["/bin/sh", "-c", ": > /go"]).ok();
    let over = |machine: &serde_json::Value| {
        machine["status"]["state"] == "exited" && machine["status"]["exit_code"] == 4 && machine["desired"] == "stopped"
    };
    cluster.wait_machine(0, "once", "has ended for all to see", Duration::from_secs(10), over);
    let listed = cluster.cli(0, &["machine", "list", "--state", "exited"]).ok().stdout;
    assert!(listed.contains("once") && listed.contains("its program ended with 4"), "{listed}");

    // Moved, it is there and does not run.
    let to = cluster.other_than(&[home]);
    cluster.create(0, "other", &[], IDLE);
    for name in ["once", "other"] {
        let there = cluster.inspect(0, name).is_some_and(|machine| owner(&machine) == Some(to));
        if !there {
            cluster.cli(0, &["machine", "move", name, "--to", &format!("n{}", to + 1), "--wait"]).ok();
        }
    }
    cluster.wait_on(0, "other", to, Duration::from_secs(10));
    cluster.wait_machine(0, "once", "has ended, at its new place", Duration::from_secs(10), |machine| {
        over(machine) && owner(machine) == Some(to)
    });
    assert_eq!(cluster.copies(&id), Vec::<usize>::new());
    let runs = cluster.lab.host(to).data_dir.join("machines").join(&id).join("upper/runs");
    assert_eq!(std::fs::read_to_string(runs).unwrap(), "ran\n", "once, at its first place");

    // Its node dies: what runs there is taken over, and this is not.
    cluster.kill_host(to);
    let at = cluster.other_than(&[to]);
    cluster.wait_elsewhere(at, "other", to, FAILOVER);
    poll::stays("it runs nowhere", Duration::from_secs(8), || {
        cluster.copies(&id).is_empty() && cluster.inspect(at, "once").is_none_or(|machine| over(&machine))
    });
    assert!(cluster.inspect(at, "once").is_some_and(|machine| over(&machine)), "it is known to have ended");
    // Who wants it again has it again.
    cluster.cli(at, &["machine", "start", "once", "--wait", "--timeout", "60s"]).ok();
    assert_ne!(cluster.expect_running_once(at, "once"), to);
}

#[test]
#[ignore = "needs root and namespaces"]
fn what_a_machine_waited_for_is_told_until_its_node_is_back() {
    let mut cluster = Cluster::of(3, "waits");
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--node", "n2"], IDLE);
    cluster.kill_daemon(1);
    let waits = |machine: &serde_json::Value| machine["waiting"].as_str().is_some_and(|why| why.contains("n2"));
    cluster.wait_machine(0, "m", "waits for n2", FAILOVER, waits);
    cluster.start(1);
    cluster.wait_ready(1);
    let runs = |machine: &serde_json::Value| pid(machine) == pid(&made) && machine.get("waiting").is_none();
    cluster.wait_machine(0, "m", "runs on, and waits for nothing", Duration::from_secs(30), runs);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_supervisor_that_hangs_in_a_partition_makes_no_second_owner() {
    let cluster = Cluster::of(3, "stuck");
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--exclusive"], BEAT);
    let (id, home) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    let other = cluster.other_than(&[home]);
    poll::until("it beats", Duration::from_secs(10), || (cluster.beats(home, &id).len() > 5).then_some(()));
    let supervisors = processes::supervisors_of(&cluster.lab.host(home).data_dir.join("machines").join(&id));
    // The log writer is its child.
    let supervisor = *supervisors.iter().min().expect("a supervisor");
    cluster.isolate(home);
    kill(Pid::from_raw(supervisor), Signal::SIGSTOP).expect("SIGSTOP");
    let (next, took) = cluster.wait_elsewhere(other, "m", home, FAILOVER);
    eprintln!("runs elsewhere after {took:?}");
    poll::until("it beats there", Duration::from_secs(10), || (cluster.beats(next, &id).len() > 20).then_some(()));
    let last = expect_no_overlap(&cluster, &id, home);
    // Nobody but the daemon was left to end it.
    let words = "its supervisor did not hold it before its lease ended";
    assert!(cluster.log(home).contains(words), "the daemon did not fence it");
    cluster.heal();
    cluster.wait_members(3);
    poll::until("the old copy is put aside", Duration::from_secs(30), || cluster.quarantined(home, &id).then_some(()));
    assert_eq!(cluster.expect_running_once(home, "m"), next);
    assert_eq!(cluster.beats(home, &id).last(), Some(&last), "the old copy ran on after the partition");
}
