//! Who may die without whom: daemon, supervisor, machine.

use std::time::Duration;

use fabric::model::{MachineState, Restart};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smartnode::runtime::{Runtime, RuntimeError};

use crate::world::{World, until};

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_new_daemon_adopts_what_runs() {
    let mut world = World::new();
    let id = world.start(&world.script(1, "trap 'exit 4' TERM; echo ready; while true; do sleep 0.02; done")).await;
    world.expect_line(id, "ready").await;
    let stopped = world.start(&world.script(2, "exit 9")).await;
    world.expect(stopped, MachineState::Exited).await;
    let before = world.runtime.status(id).await.unwrap();
    let successor = world.new_daemon();
    // Sweeping before listing must not take running machines for left-overs.
    successor.sweep(Duration::ZERO).await.unwrap();
    let found = successor.list().await.unwrap();
    assert_eq!(found.iter().map(|observed| observed.id).collect::<Vec<_>>(), [id, stopped]);
    assert_eq!((found[0].status.pid, found[0].status.started_ms), (before.pid, before.started_ms));
    assert_eq!((found[0].epoch, found[0].is_up()), (1, true));
    assert_eq!((found[1].status.exit_code, found[1].is_up()), (Some(9), false));
    drop(std::mem::replace(&mut world.runtime, successor));
    // Starting again is no second start.
    world.runtime.start(&world.script(1, "")).await.unwrap();
    assert_eq!(world.runtime.status(id).await.unwrap().pid, before.pid);
    let mut later = world.script(1, "");
    later.epoch = 2;
    assert!(matches!(world.runtime.start(&later).await, Err(RuntimeError::State { .. })));
    world.runtime.stop(id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(world.runtime.status(id).await.unwrap().exit_code, Some(4));
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_launch_record_that_rots_under_a_running_machine_is_written_again() {
    let world = World::new();
    let id = world.start(&world.script(1, "sleep 4321")).await;
    let before = world.runtime.list().await.unwrap();
    let record = world.dir(id).join("launch");
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, b"rot").unwrap();
    let found = world.new_daemon().list().await.unwrap();
    assert_eq!((found[0].epoch, found[0].image), (1, before[0].image));
    assert!(found[0].is_up());
    assert_eq!(std::fs::read(&record).unwrap(), whole);
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_machine_dies_with_its_supervisor() {
    let world = World::new();
    let mut launch = world.script(1, "sleep 4321");
    launch.spec.restart = Restart::Always;
    let id = world.start(&launch).await;
    kill(Pid::from_raw(world.supervisor(id)), Signal::SIGKILL).unwrap();
    let status = world.expect(id, MachineState::Failed).await;
    assert!(status.reason.unwrap().contains("supervisor was killed"));
    until("no process is left", async || world.processes().is_empty()).await;
    assert_eq!(world.groups(), Default::default());
    // And it can be started again.
    world.start(&launch).await;
    world.expect(id, MachineState::Running).await;
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_frozen_machine_dies_with_its_supervisor_even_without_a_daemon() {
    let mut world = World::new();
    let id = world.start(&world.script(1, "sleep 4321")).await;
    world.runtime.freeze(id).await.unwrap();
    let supervisor = world.supervisor(id);
    // The daemon that listens is replaced by one that finds the remains only.
    world.runtime = world.new_daemon();
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
    until("the supervisor is gone", async || {
        let stat = std::fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    })
    .await;
    let found = world.runtime.list().await.unwrap();
    assert_eq!(found[0].status.state, MachineState::Failed);
    until("no process is left", async || world.processes().is_empty()).await;
    assert_eq!(world.groups(), Default::default());
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_frozen_machine_dies_with_its_supervisor_though_nobody_listens() {
    let world = World::new();
    let id = world.start(&world.script(1, "sleep 4321")).await;
    world.runtime.freeze(id).await.unwrap();
    // No daemon hears of it: this one hangs, as far as the machine can tell.
    let supervisor = world.supervisor(id);
    let quiet = std::thread::spawn({
        let groups = world.groups();
        move || {
            kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
            let begun = std::time::Instant::now();
            while groups.iter().any(|group| group.exists()) && begun.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
            groups.iter().all(|group| !group.exists())
        }
    });
    // The test's runtime has one thread: joining here keeps the daemon's side from doing anything.
    assert!(quiet.join().unwrap(), "its control groups are still there");
    until("no process is left", async || world.processes().is_empty()).await;
    world.expect(id, MachineState::Failed).await;
    // A successor is not taken for the remains.
    world.start(&world.script(1, "sleep 4321")).await;
    world.expect(id, MachineState::Running).await;
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn hung_supervisors_hold_a_new_daemon_up_once_and_not_one_after_the_other() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for number in 1..=4 {
        let id = world.start(&world.script(number, "sleep 4321")).await;
        world.expect(id, MachineState::Running).await;
        ids.push(id);
    }
    ids[1..].iter().for_each(|id| kill(Pid::from_raw(world.supervisor(*id)), Signal::SIGSTOP).unwrap());
    let begun = std::time::Instant::now();
    world.runtime = world.new_daemon();
    let found = world.runtime.list().await.unwrap();
    let took = begun.elapsed();
    // Each that hangs costs its time-out of five seconds.
    assert!((5..10).contains(&took.as_secs()), "{took:?}");
    let up: Vec<_> = found.iter().filter(|machine| machine.is_up()).map(|machine| machine.id).collect();
    assert_eq!((up, found.len()), (ids[..1].to_vec(), 4), "who hangs is ended, and no other");
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_disk_kept_aside_long_enough_is_removed_and_nothing_of_others() {
    let world = World::new();
    let id = world.start(&world.script(1, "echo once > /mark; sleep 4321")).await;
    world.runtime.quarantine(id).await.unwrap();
    let aside = world.data.join("quarantine");
    let old = aside.join(format!("{id}-1-1700000000"));
    std::fs::create_dir_all(old.join("upper/deep")).unwrap();
    std::fs::create_dir(aside.join("notes")).unwrap();
    world.runtime.sweep(Duration::from_secs(7 * 24 * 3600)).await.unwrap();
    assert!(!old.exists() && aside.join("notes").exists());
    assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 2, "the disk of today is kept");
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn what_pid_one_leaves_behind_is_reaped_and_killed() {
    let world = World::new();
    let script = "(sleep 0.05; echo orphan) & (sleep 4321 &) ; echo done; sleep 0.3";
    let id = world.start(&world.script(1, script)).await;
    let status = world.expect(id, MachineState::Exited).await;
    assert_eq!(status.exit_code, Some(0));
    world.expect_line(id, "orphan").await;
    until("no process is left", async || world.processes().is_empty()).await;
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn damaged_and_foreign_things_are_told_apart() {
    let mut world = World::new();
    let id = world.start(&world.script(1, "exit 0")).await;
    world.expect(id, MachineState::Exited).await;
    std::fs::write(world.dir(id).join("launch"), b"rubbish").unwrap();
    std::fs::create_dir(world.data.join("machines/notes")).unwrap();
    // A group of this node without a machine, and one of another node.
    let roots = ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup"];
    let root = roots.iter().find(|root| std::path::Path::new(root).is_dir()).unwrap();
    let left_over = std::path::Path::new(root).join(world.prefix()).join("abandoned");
    let foreign = std::path::Path::new(root).join(format!("{}x", world.prefix())).join("theirs");
    std::fs::create_dir_all(&left_over).unwrap();
    std::fs::create_dir_all(&foreign).unwrap();
    world.runtime = world.new_daemon();
    let found = world.runtime.list().await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].status.reason.as_ref().unwrap().contains("damaged"));
    world.runtime.sweep(Duration::ZERO).await.unwrap();
    assert!(!left_over.exists() && foreign.exists());
    std::fs::remove_dir(&foreign).unwrap();
    std::fs::remove_dir(foreign.parent().unwrap()).unwrap();
    world.runtime.destroy(id).await.unwrap();
    assert!(world.data.join("machines/notes").exists());
}

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn looking_while_machines_come_and_go_disturbs_none() {
    let world = World::new();
    let runtime = world.runtime.clone();
    let looking = tokio::spawn(async move {
        loop {
            runtime.list().await.unwrap();
            runtime.sweep(Duration::ZERO).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    for round in 0..3 {
        for n in 1..=8 {
            let launch = world.script(n, if n % 2 == 0 { "exit 0" } else { "sleep 60" });
            world.runtime.start(&launch).await.unwrap_or_else(|error| panic!("round {round}, {n}: {error}"));
        }
        for n in (1..=8).step_by(2) {
            let id = world.script(n, "").id;
            world.expect(id, MachineState::Running).await;
            world.runtime.stop(id, Duration::ZERO).await.unwrap();
        }
    }
    looking.abort();
}
