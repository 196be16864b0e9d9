use std::sync::atomic::{AtomicU64, Ordering};

use fabric::ids::Digest;
use fabric::limits::LEASE_TTL;
use fabric::model::{MachineSpec, Resources, Restart};

use super::*;
use crate::power::Switch;

/// A clock that a test sets, in seconds.
#[derive(Debug, Default)]
struct Set(AtomicU64);

impl Clock for Set {
    fn boottime(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
    fn wall(&self) -> Duration {
        self.boottime()
    }
}

fn launch(lease_deadline: Option<Duration>) -> Launch {
    let spec = MachineSpec {
        image: "image".parse().unwrap(),
        command: Vec::new(),
        env: Vec::new(),
        resources: Resources::default(),
        publish: Vec::new(),
        labels: Default::default(),
        exclusive: lease_deadline.is_some(),
        restart: Restart::Always,
        pinned: None,
    };
    Launch {
        id: MachineId([1; 16]),
        epoch: 1,
        requested_restarts: 0,
        tenant: "default".parse().unwrap(),
        name: "m".parse().unwrap(),
        spec,
        image: Digest([0; 32]),
        rootfs: PathBuf::new(),
        image_command: Vec::new(),
        image_env: Vec::new(),
        image_workdir: String::new(),
        lease_deadline,
    }
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

#[test]
fn machines_outlive_the_daemon_and_end_with_the_power() {
    let (kernel, clock, switch) = (Kernel::default(), Arc::new(Set::default()), Switch::default());
    let first = kernel.attach(clock.clone(), switch.on(), None);
    paused().block_on(first.start(&launch(None))).unwrap();
    switch.off();
    assert!(paused().block_on(first.list()).is_err(), "the first daemon is gone");
    let second = kernel.attach(clock.clone(), switch.on(), None);
    assert!(paused().block_on(second.list()).unwrap()[0].is_up());
    kernel.power_cut();
    let found = paused().block_on(second.list()).unwrap();
    assert!(!found[0].is_up() && kernel.running(clock.boottime()).is_empty());
}

#[test]
fn a_lease_that_ends_freezes_the_machine_without_anybody_asking() {
    let (kernel, clock, switch) = (Kernel::default(), Arc::new(Set::default()), Switch::default());
    let runtime = kernel.attach(clock.clone(), switch.on(), None);
    let id = launch(None).id;
    paused().block_on(runtime.start(&launch(Some(LEASE_TTL)))).unwrap();
    assert_eq!(kernel.running(LEASE_TTL - Duration::from_secs(2)).len(), 1);
    assert_eq!(kernel.running(LEASE_TTL - Duration::from_secs(1)).len(), 0);
    paused().block_on(runtime.renew(id, 2 * LEASE_TTL, false)).unwrap();
    assert_eq!(kernel.running(LEASE_TTL).len(), 0, "it stays frozen until it is thawed");
    paused().block_on(runtime.renew(id, 2 * LEASE_TTL, true)).unwrap();
    assert_eq!(kernel.running(LEASE_TTL).len(), 1);
    paused().block_on(runtime.freeze(id)).unwrap();
    paused().block_on(runtime.renew(id, 3 * LEASE_TTL, true)).unwrap();
    assert_eq!(kernel.running(LEASE_TTL).len(), 0, "a renewal never undoes a freeze by order");
}

#[test]
fn a_supervisor_that_hangs_freezes_nothing_and_does_later_what_it_was_told() {
    let (kernel, clock, switch) = (Kernel::default(), Arc::new(Set::default()), Switch::default());
    let runtime = kernel.attach(clock.clone(), switch.on(), None);
    let id = launch(None).id;
    paused().block_on(runtime.start(&launch(Some(LEASE_TTL)))).unwrap();
    kernel.hang();
    assert_eq!(kernel.running(2 * LEASE_TTL).len(), 1, "its deadline goes by");
    let told = paused().block_on(runtime.freeze(id));
    assert!(matches!(told, Err(RuntimeError::Timeout { what: "freeze", .. })), "{told:?}");
    assert_eq!(kernel.running(Duration::ZERO).len(), 1);
    kernel.unhang(Duration::ZERO);
    assert_eq!(kernel.running(Duration::ZERO).len(), 0, "what it was told waited for it");
    paused().block_on(runtime.thaw(id)).unwrap();
    kernel.hang();
    assert!(paused().block_on(runtime.fence(id)).unwrap(), "the daemon needs no answer to kill");
    assert!(!paused().block_on(runtime.list()).unwrap()[0].is_up());
}
