//! `smartnode demo` from its beginning to its end, and that it leaves nothing behind.
#![expect(clippy::disallowed_methods, reason = "looks at the host: /proc, namespaces, control groups")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use smartnode_tests::{poll, smartnode};

/// Everything of a demo that can be seen on the host: its namespaces, directory and processes carry its process id.
fn traces(pid: u32) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut note = |directory: &str, prefix: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        found.extend(names.filter(|name| name.starts_with(prefix)).map(|name| format!("{directory}/{name}")));
    };
    note("/run/netns", &format!("sndemo{pid}"));
    let temporary = std::env::temp_dir();
    note(&temporary.to_string_lossy(), &format!("smartnode-demo-{pid}"));
    let mark = temporary.join(format!("smartnode-demo-{pid}/"));
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.contains(&*mark.to_string_lossy()) {
            found.insert(format!("process {}: {words}", process.file_name().display()));
        }
    }
    found
}

/// Control groups of nodes, on either version.
fn groups() -> BTreeSet<String> {
    let below = |directory: &Path| -> Vec<_> {
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let root = Path::new("/sys/fs/cgroup");
    let all = below(root).into_iter().flat_map(|one| below(&one).into_iter().chain([one]));
    let names =
        all.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("smartnode-")));
    names.map(|path| path.display().to_string()).collect()
}

#[test]
#[ignore = "needs root and namespaces"]
fn the_demo_shows_everything_and_leaves_nothing() {
    let before = groups();
    let mut demo = Command::new(smartnode());
    demo.args(["demo", "-o", "json"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let demo = demo.spawn().unwrap();
    let pid = demo.id();
    let output = demo.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["join_ms", "machine_start_ms", "detect_ms", "failover_ms", "move_outage_ms"] {
        assert!(report[key].is_u64(), "{key} is missing in {report}\n{said}");
    }
    assert_eq!(traces(pid), BTreeSet::new());
    // Nodes of other tests come and go meanwhile: what is new may be theirs, but then it goes, too.
    poll::until("its control groups are gone", Duration::from_secs(60), || groups().is_subset(&before).then_some(()));
}

#[test]
#[ignore = "needs root and namespaces"]
fn an_interrupted_demo_leaves_nothing() {
    let mut demo = Command::new(smartnode());
    let mut demo = demo.arg("demo").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = demo.id();
    let daemons = || traces(pid).iter().filter(|trace| trace.starts_with("process")).count();
    poll::until("two nodes run", Duration::from_secs(30), || (daemons() >= 2).then_some(()));
    kill(Pid::from_raw(pid as i32), Signal::SIGINT).unwrap();
    let ended = || demo.try_wait().unwrap();
    let (status, _) = poll::until("it ends", Duration::from_secs(30), ended);
    assert_eq!(status.code(), Some(1));
    assert_eq!(traces(pid), BTreeSet::new());
}
