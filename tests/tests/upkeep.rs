//! What the fabric does about its machines without being asked: cleaning up, holding on through a planned absence, trying
//! again with patience.
#![expect(clippy::disallowed_methods, reason = "looks at the disks and control groups of nodes")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smartnode::lab::processes;
use smartnode_tests::machines::{BEAT, COUNT, IDLE, IMAGE, is_running, owner, pid};
use smartnode_tests::{Cluster, poll};

/// Two rounds of the clean-up and the grace of images.
const CLEANED: Duration = Duration::from_secs(90);
/// Time in which the death of a node is confirmed and its machines run elsewhere.
const FAILOVER: Duration = Duration::from_secs(45);

/// Files below a directory of a node's image store.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found
}

/// The machine's control group in the freezer's hierarchy (version 1).
fn freezer(id: &str) -> Option<PathBuf> {
    let groups = fs::read_dir("/sys/fs/cgroup/freezer").ok()?.flatten();
    groups.map(|prefix| prefix.path().join(id)).find(|group| group.is_dir())
}

/// The mount namespace of a process.
fn mounts(process: &Path) -> Option<PathBuf> {
    fs::read_link(process.join("ns/mnt")).ok()
}

/// Whether some process keeps the mount namespace alive.
fn lives(namespace: &Path) -> bool {
    let mut processes = fs::read_dir("/proc").expect("there is /proc").flatten();
    processes.any(|process| mounts(&process.path()).is_some_and(|mounts| mounts == namespace))
}

#[test]
#[ignore = "needs root and namespaces"]
fn what_a_crash_left_of_a_machine_is_removed() {
    let mut cluster = Cluster::of(1, "orphan");
    cluster.pack(0);
    let made = cluster.create(0, "m", &[], IDLE);
    let id = made["id"].as_str().unwrap().to_owned();
    let directory = cluster.lab.host(0).data_dir.join("machines").join(&id);
    let group = freezer(&id).expect("this story is about control groups of version 1");
    let supervisors = processes::supervisors_of(&directory);
    let inside = pid(&made).unwrap().to_string();
    fs::write(group.join("freezer.state"), "FROZEN").unwrap();
    cluster.kill_daemon(0);
    // One that sees the other die would end the machine.
    processes::kill_together(&supervisors);
    // Frozen processes do not hear that they were killed, and nobody knows of them any more.
    fs::remove_dir_all(&directory).unwrap();
    let namespace = mounts(&Path::new("/proc").join(&inside)).expect("a frozen process has its mounts");
    assert!(lives(&namespace) && group.exists());
    cluster.start(0);
    cluster.wait_ready(0);
    // The machine is still wanted: its next start finds the frozen group of its last and clears it away.
    let (again, _) = cluster.wait_machine(0, "m", "runs again", CLEANED, |machine| {
        is_running(machine) && pid(machine).is_some_and(|pid| pid.to_string() != inside)
    });
    assert_eq!(again["status"]["restarts"], 0, "no start was in vain: {again}");
    poll::until("its mounts are gone with its processes", CLEANED, || (!lives(&namespace)).then_some(()));
    cluster.cli(0, &["machine", "delete", "m", "--yes", "--wait"]).ok();
    poll::until("its control group is gone", CLEANED, || freezer(&id).is_none().then_some(()));
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_deleted_image_is_gone_from_every_disk_and_one_in_use_stays() {
    let mut cluster = Cluster::of(3, "images");
    cluster.pack(0);
    cluster.cli(0, &["image", "from-host", "other", "/bin/sh", "/bin/ls", "/usr/bin/perl"]).ok();
    let made = cluster.create(0, "m", &[], "echo kept > /kept; while :; do sleep 1; done");
    let home = owner(&made).unwrap();
    let images: Vec<PathBuf> = (0..3).map(|at| cluster.lab.host(at).data_dir.join("images")).collect();
    let count = |what: &str| -> Vec<usize> {
        images.iter().map(|images| fs::read_dir(images.join(what)).map_or(0, Iterator::count)).collect()
    };
    poll::until("each node has both", FAILOVER, || (count("manifests") == [2, 2, 2]).then_some(()));
    let chunks = |at: usize| files(&images[at].join("chunks")).len();
    let before: Vec<usize> = (0..3).map(chunks).collect();
    // A daemon that has just started knows of its machines' images all the same.
    cluster.kill_daemon(home);
    cluster.start(home);
    cluster.wait_ready(home);
    cluster.cli(home, &["image", "delete", "other", "--yes"]).ok();
    poll::until("one image is left", CLEANED, || (count("manifests") == [1, 1, 1]).then_some(()));
    poll::until("its chunks are gone", CLEANED, || (0..3).all(|at| chunks(at) < before[at]).then_some(()));
    poll::until("its files are gone", CLEANED, || count("rootfs").iter().all(|n| *n <= 1).then_some(()));
    let (after, _) = cluster.wait_on(home, "m", home, Duration::from_secs(10));
    assert_eq!(pid(&after), pid(&made));
    cluster.cli(0, &["machine", "restart", "m", "--wait"]).ok();
    assert_eq!(cluster.exec(0, "m", &["/bin/cat", "/kept"]).ok().stdout, "kept\n");

    cluster.cli(0, &["machine", "delete", "m", "--yes", "--wait"]).ok();
    cluster.cli(0, &["image", "delete", IMAGE, "--yes"]).ok();
    poll::until("nothing is left", CLEANED, || (0..3).all(|at| chunks(at) == 0).then_some(()));
    assert_eq!((count("manifests"), count("rootfs")), (vec![0; 3], vec![0; 3]));
}

#[test]
#[ignore = "needs root and namespaces"]
fn an_exclusive_machine_beats_on_over_an_announced_stop() {
    let mut cluster = Cluster::of(3, "absent");
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--exclusive"], BEAT);
    let (id, home) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    let other = cluster.other_than(&[home]);
    poll::until("it beats", Duration::from_secs(10), || (cluster.beats(home, &id).len() > 5).then_some(()));
    cluster.cli(home, &["stop"]).ok();
    assert_eq!(cluster.wait_ended(home), 0);
    poll::stays("it keeps its place", Duration::from_secs(12), || {
        cluster.inspect(other, "m").is_none_or(|machine| owner(&machine) == Some(home))
    });
    cluster.start(home);
    cluster.wait_ready(home);
    let absent = |cluster: &Cluster| {
        let node = cluster.cli(home, &["node", "inspect", &format!("n{}", home + 1), "-o", "json"]);
        node.code != 0 || node.stdout.contains("absent_until_ms")
    };
    poll::until("the absence is ended", Duration::from_secs(20), || (!absent(&cluster)).then_some(()));
    let count = cluster.beats(home, &id).len();
    poll::until("it beats on", Duration::from_secs(10), || (cluster.beats(home, &id).len() > count + 20).then_some(()));
    let (after, _) = cluster.wait_on(home, "m", home, Duration::from_secs(10));
    assert_eq!((pid(&after), &after["placement"]["epoch"]), (pid(&made), &made["placement"]["epoch"]), "{after}");
    let beats = cluster.beats(home, &id);
    let gap = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(gap < 150, "it stood still for {gap} hundredths of a second");

    // Back on its lease alone: cut off, it is frozen as soon as any other, long before the absence would have ended.
    cluster.isolate(home);
    let (next, took) = cluster.wait_elsewhere(other, "m", home, FAILOVER);
    eprintln!("runs elsewhere after {took:?}");
    poll::until("it beats there", Duration::from_secs(10), || (cluster.beats(next, &id).len() > 5).then_some(()));
    let (last, first) = (*cluster.beats(home, &id).last().unwrap(), cluster.beats(next, &id)[0]);
    assert!(last < first, "the old owner beat at {last}, the new one from {first} on (hundredths of a second)");
}

#[test]
#[ignore = "needs root and namespaces"]
fn an_absence_that_runs_out_freezes_the_machine_before_another_node_starts_it() {
    let mut cluster = Cluster::of(3, "late");
    cluster.pack(0);
    let made = cluster.create(0, "m", &["--exclusive"], BEAT);
    let (id, home) = (made["id"].as_str().unwrap().to_owned(), owner(&made).unwrap());
    let other = cluster.other_than(&[home]);
    poll::until("it beats", Duration::from_secs(10), || (cluster.beats(home, &id).len() > 5).then_some(()));
    cluster.cli(home, &["stop", "--absence", "15s"]).ok();
    assert_eq!(cluster.wait_ended(home), 0);
    let stopped = *cluster.beats(home, &id).last().unwrap();
    let (next, _) = cluster.wait_elsewhere(other, "m", home, FAILOVER);
    poll::until("it beats there", Duration::from_secs(10), || (cluster.beats(next, &id).len() > 5).then_some(()));
    let (last, first) = (*cluster.beats(home, &id).last().unwrap(), cluster.beats(next, &id)[0]);
    assert!(last < first, "the old owner beat at {last}, the new one from {first} on (hundredths of a second)");
    assert!(last - stopped > 1_000, "it beat for {} hundredths of a second of an absence of 15 s", last - stopped);
    cluster.start(home);
    cluster.wait_ready(home);
    assert_eq!(cluster.expect_running_once(other, "m"), next);
    assert_eq!(cluster.beats(home, &id).last().copied().unwrap_or(last), last, "the old copy ran on");
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_stopped_machine_is_moved_with_its_disk() {
    let cluster = Cluster::of(3, "still");
    cluster.pack(0);
    let made = cluster.create(0, "count", &[], COUNT);
    let from = owner(&made).unwrap();
    let to = cluster.other_than(&[from]);
    poll::until("it counts", Duration::from_secs(10), || (cluster.counted(0, "count").len() > 5).then_some(()));
    cluster.cli(0, &["machine", "stop", "count", "--wait"]).ok();
    let disk = |at: usize| cluster.lab.host(at).data_dir.join("machines").join(made["id"].as_str().unwrap());
    let last = fs::read_to_string(disk(from).join("upper/count")).unwrap().lines().count() as u64;
    cluster.cli(0, &["machine", "move", "count", "--to", &format!("n{}", to + 1), "--wait"]).ok();
    poll::until("the source has cleaned up", Duration::from_secs(20), || (!disk(from).exists()).then_some(()));
    poll::until("nothing is staged", CLEANED, || {
        let staged = fs::read_dir(cluster.lab.host(to).data_dir.join("staging")).map_or(0, Iterator::count);
        (staged == 0).then_some(())
    });
    assert!(disk(to).join("upper/count").exists());
    cluster.cli(0, &["machine", "start", "count", "--wait"]).ok();
    cluster.expect_count_past(0, "count", last);
    assert_eq!(cluster.expect_running_once(0, "count"), to);
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_machine_that_loses_its_supervisor_again_and_again_is_started_with_patience() {
    let cluster = Cluster::of(1, "patience");
    cluster.pack(0);
    let made = cluster.create(0, "m", &[], IDLE);
    let directory = cluster.lab.host(0).data_dir.join("machines").join(made["id"].as_str().unwrap());
    let limit = Duration::from_secs(20);
    for attempt in 1..=5u64 {
        let (before, _) = cluster.wait_machine(0, "m", "runs", limit, is_running);
        processes::supervisors_of(&directory).into_iter().for_each(processes::kill);
        if attempt == 5 {
            // 100 ms doubled each time: 1.6 s, in which it says what it waits for.
            let next = |machine: &serde_json::Value| {
                let why = machine["status"]["reason"].as_str().unwrap_or_default();
                machine["status"]["state"] == "restarting" && why.contains("killed") && why.contains("attempt 5 in")
            };
            cluster.wait_machine(0, "m", "says when it is started", limit, next);
        }
        let again = |machine: &serde_json::Value| is_running(machine) && pid(machine) != pid(&before);
        let (machine, took) = cluster.wait_machine(0, "m", "runs again", limit, again);
        assert_eq!(machine["status"]["restarts"].as_u64(), Some(attempt), "{machine}");
        assert!(attempt < 5 || took > Duration::from_millis(900), "the start {attempt} came after {took:?}");
    }
    // What is waited for can be told to go.
    processes::supervisors_of(&directory).into_iter().for_each(processes::kill);
    cluster.cli(0, &["machine", "delete", "m", "--yes", "--wait", "--timeout", "5s"]).ok();
}
