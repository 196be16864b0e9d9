//! openraft's own conformance suite on our store.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::{LogStore, StateMachine, Store};
use crate::types::{Member, TC};

#[path = "../../tests/common/disk.rs"]
#[expect(dead_code, reason = "shared with the integration tests")]
pub(super) mod disk;

impl From<u64> for Member {
    fn from(number: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[24..].copy_from_slice(&number.to_be_bytes());
        Member(fabric::ids::NodeId(bytes))
    }
}

struct Builder;

impl StoreBuilder<TC, LogStore, StateMachine> for Builder {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError<TC>> {
        let disk = std::sync::Arc::new(disk::MemoryDisk::new(1));
        let store = Store::open(&*disk, &fabric::seams::real::KernelEntropy, false).unwrap();
        let machine = StateMachine::load(store.clone(), std::sync::Arc::new(fabric::seams::real::KernelClock)).unwrap();
        Ok(((), LogStore::new(store, disk, machine.shared.halt.clone()), machine))
    }
}

#[test]
fn the_store_passes_openrafts_conformance_suite() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { Suite::test_all(Builder).await.unwrap() });
}
