//! Start, look inside, stop, restart, read the log, connect, destroy.

use std::time::Duration;

use fabric::model::{MachineState, Restart};
use smartnode::runtime::{LogQuery, LogSource, Runtime, RuntimeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::world::{PATIENCE, World, until};

const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo $i > /count; echo count $i; sleep 0.05; done";

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_machine_starts_is_looked_into_and_leaves_nothing() {
    let world = World::new();
    let id = world.start(&world.script(1, COUNTER)).await;
    let status = world.expect(id, MachineState::Running).await;
    assert!(status.pid.is_some() && status.started_ms.is_some());
    world.expect_line(id, "count 3").await;
    let (out, code) = world.exec(id, &["sh", "-c", "echo $COLOUR $HOSTNAME; hostname; id -u; exit 7"]).await;
    assert_eq!((out.as_str(), code), ("blue machine-1\nmachine-1\n0\n", 7));
    let (out, _) = world.exec(id, &["sh", "-c", "cat /proc/1/comm; ls -a /dev"]).await;
    assert!(out.contains("smartnode-sup") && out.contains("urandom") && out.contains("ptmx"), "{out}");
    assert_eq!(world.exec(id, &["no-such-program"]).await.1, 127);
    world.runtime.destroy(id).await.unwrap();
    assert!(matches!(world.runtime.status(id).await, Err(RuntimeError::NotFound(_))));
    assert_eq!(world.groups(), Default::default());
    until("no process is left", async || world.processes().is_empty()).await;
    assert_eq!(std::fs::read_dir(world.data.join("machines")).unwrap().count(), 0);
    world.runtime.destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn stop_is_heard_and_after_the_grace_enforced() {
    let world = World::new();
    let polite = "trap 'echo bye; exit 3' TERM; echo ready; while true; do sleep 0.02; done";
    let id = world.start(&world.script(1, polite)).await;
    world.expect_line(id, "ready").await;
    world.runtime.stop(id, Duration::from_secs(10)).await.unwrap();
    let status = world.expect(id, MachineState::Stopped).await;
    assert_eq!(status.exit_code, Some(3));
    world.expect_line(id, "bye").await;

    let deaf = world.start(&world.script(2, "trap '' TERM; echo ready; while true; do sleep 0.02; done")).await;
    world.expect_line(deaf, "ready").await;
    world.runtime.stop(deaf, Duration::from_millis(100)).await.unwrap();
    assert_eq!(world.expect(deaf, MachineState::Stopped).await.exit_code, Some(137));
    assert_eq!(world.groups(), Default::default());
    world.runtime.stop(deaf, Duration::ZERO).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn the_disk_outlives_a_stop_and_is_gone_after_quarantine() {
    let world = World::new();
    let launch = world.script(1, "echo once >> /data; cat /data; sleep 60");
    let id = world.start(&launch).await;
    world.expect_line(id, "once").await;
    world.runtime.stop(id, Duration::ZERO).await.unwrap();
    assert_eq!(std::fs::read_to_string(world.runtime.writable_layer(id).join("data")).unwrap(), "once\n");
    world.start(&launch).await;
    until("the file has two lines", async || {
        std::fs::read_to_string(world.runtime.writable_layer(id).join("data")).unwrap() == "once\nonce\n"
    })
    .await;
    world.runtime.quarantine(id).await.unwrap();
    assert!(matches!(world.runtime.status(id).await, Err(RuntimeError::NotFound(_))));
    let kept: Vec<_> = std::fs::read_dir(world.data.join("quarantine")).unwrap().flatten().collect();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].path().join("upper/data").exists());
    world.runtime.sweep(Duration::from_secs(3600)).await.unwrap();
    assert!(kept[0].path().exists());
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn restart_policies_are_kept_and_counted() {
    let world = World::new();
    let mut launch = world.script(1, "echo run; exit 5");
    launch.spec.restart = Restart::OnFailure;
    let id = world.start(&launch).await;
    until("three restarts", async || world.runtime.status(id).await.unwrap().restarts >= 3).await;
    let status = world.runtime.status(id).await.unwrap();
    assert_eq!(status.exit_code, Some(5));
    world.runtime.stop(id, Duration::ZERO).await.unwrap();
    world.expect(id, MachineState::Stopped).await;

    let mut launch = world.script(2, "exit 0");
    launch.spec.restart = Restart::OnFailure;
    let id = world.start(&launch).await;
    let status = world.expect(id, MachineState::Exited).await;
    assert_eq!((status.exit_code, status.restarts), (Some(0), 0));
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn what_cannot_start_says_why() {
    let world = World::new();
    let mut launch = world.script(1, "");
    launch.spec.command = vec!["/no/such/program".into()];
    let error = world.runtime.start(&launch).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/program: No such file"), "{error}");
    assert_eq!(world.runtime.status(launch.id).await.unwrap().state, MachineState::Failed);
    let mut launch = world.script(2, "");
    launch.rootfs = "/no/such/image".into();
    let error = world.runtime.start(&launch).await.unwrap_err();
    assert!(error.to_string().contains("open the image"), "{error}");
    assert_eq!(world.groups(), Default::default());
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_flood_of_output_is_rotated_and_hinders_nobody() {
    let world = World::new();
    let id = world.start(&world.script(1, "echo first >&2; yes 0123456789abcdef")).await;
    let dir = world.dir(id);
    until("the log has been rotated", async || dir.join("log.1").exists()).await;
    // Still obeys while it floods.
    world.runtime.freeze(id).await.unwrap();
    world.runtime.thaw(id).await.unwrap();
    let mut lines = world.runtime.logs(id, LogQuery { tail: Some(5), follow: false }).await.unwrap();
    let line = lines.recv().await.unwrap();
    assert_eq!((line.source, line.text.as_str()), (LogSource::Stdout, "0123456789abcdef"));
    world.runtime.stop(id, Duration::ZERO).await.unwrap();
    let bytes: u64 = ["log", "log.1"].iter().map(|name| std::fs::metadata(dir.join(name)).unwrap().len()).sum();
    assert!(bytes <= 8 << 20, "{bytes}");
}

const SERVER: &str = r#"use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 8080, Listen => 5, ReuseAddr => 1) or die;
$| = 1; print "listening\n";
while (my $c = $s->accept()) { my $l = <$c>; print $c "you said $l"; close $c; }"#;

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_port_inside_is_reached_from_outside() {
    let world = World::new();
    let mut launch = world.script(1, "");
    launch.spec.command = vec!["perl".into(), "-e".into(), SERVER.into()];
    let id = world.start(&launch).await;
    world.expect_line(id, "listening").await;
    let mut stream = world.runtime.connect(id, 8080).await.unwrap();
    stream.write_all(b"hello\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "you said hello\n");
    let error = world.runtime.connect(id, 8081).await.err().unwrap();
    assert!(matches!(error, RuntimeError::Connect { port: 8081, .. }), "{error}");
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn exec_has_pipes_and_dies_with_its_caller() {
    let world = World::new();
    let id = world.start(&world.script(1, "sleep 60")).await;
    let mut stream = world.runtime.exec(id, &["cat".to_owned()]).await.unwrap();
    stream.stdin.write_all(b"through the pipe").await.unwrap();
    stream.stdin.shutdown().await.unwrap();
    drop(std::mem::replace(&mut stream.stdin, Box::new(tokio::io::sink())));
    let mut out = String::new();
    timeout(PATIENCE, stream.stdout.read_to_string(&mut out)).await.unwrap().unwrap();
    assert_eq!((out.as_str(), stream.exit.await), ("through the pipe", Ok(0)));

    let stream = world.runtime.exec(id, &["sleep".to_owned(), "1234".to_owned()]).await.unwrap();
    let runs = || world.processes().iter().any(|line| line.ends_with("sleep 1234 "));
    until("it runs", async || runs()).await;
    drop(stream);
    until("it is gone", async || !runs()).await;
}

/// Start latency is a budget of the product (100 ms from the request, of which the runtime has a fraction).
#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_supervisor_is_small() {
    let world = World::new();
    let id = world.start(&world.script(1, "sleep 60")).await;
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", world.supervisor(id))).unwrap();
    let private = smaps.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    let kib: u64 = private.trim().trim_end_matches(" kB").trim().parse().unwrap();
    assert!(kib < 4096, "{kib} KiB");
    world.runtime.destroy(id).await.unwrap();
}
