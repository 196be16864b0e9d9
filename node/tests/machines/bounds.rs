//! What a machine may not use, see or do.

use std::time::Duration;

use fabric::model::{MachineState, Restart};
use smartnode::runtime::Runtime;

use crate::world::{World, until};

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn too_much_memory_kills_and_says_so() {
    let world = World::new();
    let mut launch = world.script(1, "exec perl -e 'my $x = \"x\" x (1 << 28); sleep 60'");
    launch.spec.resources.burst_memory_bytes = Some(64 << 20);
    let id = world.start(&launch).await;
    let status = world.expect(id, MachineState::Exited).await;
    assert_eq!(status.exit_code, Some(137));
    assert_eq!(status.reason.as_deref(), Some("out of memory: killed at its cap of 64 MiB"));
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_fork_bomb_stays_within_its_pids() {
    let world = World::new();
    let mut launch = world.script(1, "i=0; while [ $i -lt 50 ]; do sleep 60 & i=$((i+1)); done; wait");
    launch.spec.resources.pids_max = 16;
    launch.spec.restart = Restart::Never;
    let id = world.start(&launch).await;
    until("it has met the bound", async || {
        let text = std::fs::read_to_string(world.dir(id).join("log")).unwrap_or_default();
        text.to_lowercase().contains("fork")
    })
    .await;
    world.runtime.stop(id, Duration::ZERO).await.unwrap();
    until("no process is left", async || world.processes().is_empty()).await;
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn root_inside_is_nobody_outside() {
    let world = World::new();
    let id = world.start(&world.script(1, "touch /mine; sleep 60")).await;
    // Sees only itself and may not reach the kernel.
    let script = "mount -t tmpfs none /tmp 2>&1; cat /proc/interrupts 2>&1 | wc -c; echo 1 2>&1 > /proc/sys/kernel/panic; \
                  stat -c %u /bin/sh; stat -c %u /mine; grep -c . /proc/net/dev; grep CapEff /proc/self/status; \
                  grep NoNewPrivs /proc/self/status; grep '^Seccomp:' /proc/self/status; cat /proc/self/oom_score_adj";
    let (out, _) = world.exec(id, &["sh", "-c", script]).await;
    assert!(out.contains("permission denied") || out.contains("not permitted"), "{out}");
    assert!(out.contains("Read-only file system") || out.contains("Permission denied"), "{out}");
    for line in ["\n0\nsh:", "\n0\n0\n", "CapEff:\t00000000a00425fb", "NoNewPrivs:\t1", "Seccomp:\t2", "500"] {
        assert!(out.contains(line), "{line:?} in {out}");
    }
    // Loopback alone: two header lines and one interface.
    assert!(out.contains("\n3\n"), "{out}");
    // Its files belong to nobody of this host.
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(world.runtime.writable_layer(id).join("mine")).unwrap().uid();
    assert!(owner >= 0x1000_0000, "{owner}");
    let pid = world.runtime.status(id).await.unwrap().pid.unwrap();
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), owner);
    // Another machine's root is somebody else again.
    let other = world.start(&world.script(2, "touch /mine; sleep 60")).await;
    let theirs = world.runtime.writable_layer(other).join("mine");
    until("the other file is there", async || theirs.exists()).await;
    assert_ne!(std::fs::metadata(theirs).unwrap().uid(), owner);
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_link_of_the_image_leads_nowhere_else() {
    let world = World::new();
    let launch = world.script(1, "sleep 60");
    let outside = world.data.join("outside");
    std::fs::create_dir(&outside).unwrap();
    let _ = std::fs::remove_dir_all(launch.rootfs.join("etc"));
    std::os::unix::fs::symlink(&outside, launch.rootfs.join("etc")).unwrap();
    let _ = world.runtime.start(&launch).await;
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn cpu_is_capped_and_counted() {
    let world = World::new();
    let mut launch = world.script(1, "while true; do :; done");
    launch.spec.resources.burst_cpu_millis = Some(200);
    let id = world.start(&launch).await;
    let begun = tokio::time::Instant::now();
    until("it has used 0.2 s", async || world.runtime.status(id).await.unwrap().cpu_micros > 200_000).await;
    // A fifth of a core: 0.2 s of it take about 1 s; uncapped, 0.2 s. The first period may be used whole.
    assert!(begun.elapsed() > Duration::from_millis(600), "{:?}", begun.elapsed());
    assert!(world.runtime.status(id).await.unwrap().memory_bytes > 0);
}
