//! Start, look inside, stop, restart, adopt, destroy.
#![expect(clippy::disallowed_methods, reason = "tests work with real files")]

use fabric::model::MachineState;
use smartnode::runtime::{Runtime, RuntimeError};

use crate::world::{World, until};

const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo $i > /count; echo count $i; sleep 0.05; done";

#[tokio::test]
#[ignore = "needs root and namespaces"]
async fn a_machine_starts_is_looked_into_and_leaves_nothing() {
    let world = World::new();
    let begun = tokio::time::Instant::now();
    let id = world.start(&world.script(1, COUNTER)).await;
    println!("start to running: {:?}", begun.elapsed());
    let status = world.expect(id, MachineState::Running).await;
    assert!(status.pid.is_some() && status.started_ms.is_some());
    world.expect_line(id, "count 3").await;
    let (out, code) = world.exec(id, &["sh", "-c", "echo $COLOUR $HOSTNAME; hostname; id -u; exit 7"]).await;
    assert_eq!((out.as_str(), code), ("blue machine-1\nmachine-1\n0\n", 7));
    let (out, _) = world.exec(id, &["sh", "-c", "ls /proc | grep -c '^[0-9]*$'; cat /proc/1/comm; ls -a /dev"]).await;
    assert!(out.contains("smartnode-sup") && out.contains("urandom") && out.contains("ptmx"), "{out}");
    world.runtime.destroy(id).await.unwrap();
    assert!(matches!(world.runtime.status(id).await, Err(RuntimeError::NotFound(_))));
    assert_eq!(world.groups(), Default::default());
    until("no process is left", || world.processes().is_empty()).await;
    assert_eq!(std::fs::read_dir(world.data.join("machines")).unwrap().count(), 0);
}
