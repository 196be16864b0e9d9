//! Freezing: by order, and by a lease that runs out.

use std::time::Duration;

use fabric::ids::MachineId;
use fabric::limits::{LEASE_FREEZE_MARGIN, LEASE_KILL_MARGIN};
use fabric::model::MachineState;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smartnode::runtime::{Launch, Observed, Runtime, RuntimeError};

use crate::world::{World, boottime, until};

/// Notes the time of every tick in a file.
const HEARTBEAT: &str = "while true; do read up rest < /proc/uptime; \
                         echo $up >> /beats; sleep 0.02; done";

fn exclusive(world: &World, ttl: Duration) -> Launch {
    let mut launch = world.script(1, HEARTBEAT);
    launch.spec.exclusive = true;
    launch.lease_deadline = Some(boottime() + ttl);
    launch
}

fn beats(world: &World, id: MachineId) -> Vec<f64> {
    let text = std::fs::read_to_string(world.runtime.writable_layer(id).join("beats")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

async fn observed(world: &World, id: MachineId) -> Observed {
    world.runtime.list().await.unwrap().into_iter().find(|observed| observed.id == id).unwrap()
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn frozen_by_order_it_stands_still_until_thawed() {
    let world = World::new();
    let id = world.start(&world.script(1, HEARTBEAT)).await;
    until("it beats", async || beats(&world, id).len() > 3).await;
    world.runtime.freeze(id).await.unwrap();
    let before = beats(&world, id);
    assert_eq!(world.expect(id, MachineState::Frozen).await.state, MachineState::Frozen);
    assert!(matches!(world.runtime.exec(id, &["id".into()]).await, Err(RuntimeError::State { .. })));
    // Time passes for a machine beside it and not for this one.
    let other = world.start(&world.script(2, HEARTBEAT)).await;
    until("the other beats", async || beats(&world, other).len() > 5).await;
    assert_eq!(beats(&world, id), before);
    world.runtime.thaw(id).await.unwrap();
    until("it beats again", async || beats(&world, id).len() > before.len()).await;
    // A frozen machine is stopped too, without its grace.
    world.runtime.freeze(id).await.unwrap();
    world.runtime.stop(id, Duration::from_secs(60)).await.unwrap();
    assert_eq!(world.runtime.status(id).await.unwrap().state, MachineState::Stopped);
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn what_forks_without_end_is_frozen_all_the_same() {
    let world = World::new();
    let id = world.start(&world.script(1, "while true; do (sleep 0.001 &); id > /dev/null; done")).await;
    for _ in 0..100 {
        world.runtime.freeze(id).await.unwrap();
        world.runtime.thaw(id).await.unwrap();
    }
    for n in 2..30 {
        // At once after the start, while the program is still forking for the first time.
        let id = world.start(&world.script(n, "sleep 60")).await;
        world.runtime.freeze(id).await.unwrap();
        world.runtime.destroy(id).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_lease_that_runs_out_freezes_in_time_and_a_renewal_thaws() {
    let world = World::new();
    let launch = exclusive(&world, Duration::from_millis(2_200));
    let deadline = launch.lease_deadline.unwrap();
    let id = world.start(&launch).await;
    world.expect(id, MachineState::Frozen).await;
    let frozen_at = boottime();
    assert!(frozen_at >= deadline - LEASE_FREEZE_MARGIN, "not before it has to");
    assert!(frozen_at < deadline - LEASE_KILL_MARGIN, "{:?} before the end", deadline - frozen_at);
    until("the lease is long over", async || boottime() > deadline + Duration::from_millis(300)).await;
    let last = *beats(&world, id).last().unwrap();
    assert!(last <= (deadline - LEASE_KILL_MARGIN).as_secs_f64() + 0.01, "the last beat {last}, the end {deadline:?}");
    assert!(observed(&world, id).await.frozen.by_lease);

    // A deadline without the word to thaw, and one that is over already, change nothing.
    world.runtime.renew(id, boottime() + Duration::from_secs(30), false).await.unwrap();
    assert!(observed(&world, id).await.frozen.by_lease);
    let pid = world.runtime.status(id).await.unwrap().pid;
    world.runtime.renew(id, boottime() + Duration::from_secs(30), true).await.unwrap();
    world.expect(id, MachineState::Running).await;
    assert_eq!(world.runtime.status(id).await.unwrap().pid, pid);
    let count = beats(&world, id).len();
    until("it beats again", async || beats(&world, id).len() > count).await;
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_renewal_never_undoes_a_freeze_by_order_nor_a_thaw_an_expired_lease() {
    let world = World::new();
    let id = world.start(&exclusive(&world, Duration::from_millis(2_000))).await;
    world.runtime.freeze(id).await.unwrap();
    world.runtime.renew(id, boottime() + Duration::from_millis(2_000), true).await.unwrap();
    assert_eq!(world.runtime.status(id).await.unwrap().state, MachineState::Frozen);
    until("the lease has run out", async || observed(&world, id).await.frozen.by_lease).await;
    world.runtime.thaw(id).await.unwrap();
    let seen = observed(&world, id).await;
    assert!(seen.frozen.by_lease && seen.status.state == MachineState::Frozen, "{seen:?}");
    world.runtime.renew(id, boottime() + Duration::from_secs(9), true).await.unwrap();
    world.expect(id, MachineState::Running).await;
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_deadline_that_is_taken_back_is_kept() {
    let world = World::new();
    let id = world.start(&exclusive(&world, Duration::from_secs(60))).await;
    let shorter = boottime() + Duration::from_secs(9);
    world.runtime.shorten(id, shorter).await.unwrap();
    world.runtime.shorten(id, shorter + Duration::from_secs(9)).await.unwrap();
    assert_eq!(observed(&world, id).await.lease_deadline, Some(shorter), "never longer by this");
    assert_eq!(world.new_daemon().list().await.unwrap()[0].lease_deadline, Some(shorter), "by its supervisor's word");
    world.runtime.shorten(id, boottime() + LEASE_FREEZE_MARGIN).await.unwrap();
    world.expect(id, MachineState::Frozen).await;
    assert!(observed(&world, id).await.frozen.by_lease);
    world.runtime.renew(id, boottime() + Duration::from_secs(9), true).await.unwrap();
    world.expect(id, MachineState::Running).await;
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_machine_whose_supervisor_hangs_is_fenced_and_stopped_all_the_same() {
    let world = World::new();
    let hang = |id| kill(Pid::from_raw(world.supervisor(id)), Signal::SIGSTOP).unwrap();
    let id = world.start(&exclusive(&world, Duration::from_secs(3))).await;
    hang(id);
    let deadline = observed(&world, id).await.lease_deadline.unwrap();
    until("the lease is over and it still beats", async || {
        beats(&world, id).last().is_some_and(|beat| *beat > deadline.as_secs_f64())
    })
    .await;
    assert!(world.runtime.fence(id).await.unwrap());
    assert!(world.expect(id, MachineState::Failed).await.reason.unwrap().contains("supervisor was killed"));
    assert!(observed(&world, id).await.lost);
    until("no process is left", async || world.processes().is_empty()).await;
    assert!(!world.runtime.fence(id).await.unwrap(), "it is down");

    // One that the kernel holds is spared, and stopping what hangs ends it.
    let id = world.start(&exclusive(&world, Duration::from_secs(60))).await;
    world.runtime.freeze(id).await.unwrap();
    hang(id);
    assert!(!world.runtime.fence(id).await.unwrap());
    world.runtime.stop(id, Duration::ZERO).await.unwrap();
    assert!(!observed(&world, id).await.is_up());
    until("no process is left", async || world.processes().is_empty()).await;
    assert_eq!(world.groups(), Default::default());
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn what_its_lease_has_killed_has_not_ended_by_itself() {
    let world = World::new();
    let launch = exclusive(&world, Duration::from_secs(3));
    let (id, deadline) = (world.start(&launch).await, launch.lease_deadline.unwrap());
    // Its supervisor wakes when it is too late to freeze.
    let signal = |signal| kill(Pid::from_raw(world.supervisor(id)), signal).unwrap();
    signal(Signal::SIGSTOP);
    until("the lease is over", async || boottime() > deadline).await;
    signal(Signal::SIGCONT);
    let status = world.expect(id, MachineState::Failed).await;
    assert!(status.reason.unwrap().contains("could not be frozen"));
    assert_eq!(status.exit_code, Some(137));
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn without_a_lease_nothing_exclusive_starts() {
    let world = World::new();
    let mut launch = exclusive(&world, Duration::from_millis(100));
    let error = world.runtime.start(&launch).await.unwrap_err();
    assert!(error.to_string().contains("lease is over"), "{error}");
    launch.lease_deadline = None;
    assert!(matches!(world.runtime.start(&launch).await, Err(RuntimeError::Start { .. })));
    launch.spec.exclusive = false;
    let id = world.start(&launch).await;
    let error = world.runtime.renew(id, boottime() + Duration::from_secs(9), true).await.unwrap_err();
    assert!(error.to_string().contains("not exclusive"), "{error}");
}
