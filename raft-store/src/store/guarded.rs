//! Using a file that may have rotted: redb panics over some damage where it should refuse it.
//!
//! The whole file is checked only after a crash: that costs a read of everything. What the start reads anyway (the
//! tables, every entry of the log, the snapshot) is read inside [`guarded`], and so is every transaction, so that damage is
//! named like any other, and nobody waits for what a panic has carried away.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use super::{StoreError, damaged};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs what uses the file. A panic in it becomes the error that names the file, and a line of the log.
///
/// What `read` was working on is dropped with the panic, so nothing half-done is seen afterwards.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |panic| {
            if GUARDED.get() {
                tracing::warn!(%panic, "the ledger's file could not be used");
            } else {
                others(panic);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    GUARDED.set(outer);
    result.unwrap_or_else(|panic| Err(damaged("a page", words(&*panic))))
}

/// What a panic said, on one line.
fn words(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    said.unwrap_or("it cannot be read").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use fabric::seams::real::{KernelClock, KernelEntropy};
    use openraft::storage::{IOFlushed, RaftLogStorage};
    use openraft::type_config::TypeConfigExt;

    use super::super::suite::disk::MemoryDisk;
    use super::super::{FILE, LogStore, StateMachine, Store};
    use super::*;
    use crate::types::{Entry, Proposal, TC, log_id};

    /// What a start reads.
    fn start(disk: &MemoryDisk) -> Result<(), StoreError> {
        let store = Store::open(disk, &KernelEntropy, false)?;
        StateMachine::load(store, std::sync::Arc::new(KernelClock)).map(drop)
    }

    async fn filled(disk: &MemoryDisk) {
        let store = Store::open(disk, &KernelEntropy, false).unwrap();
        let machine = StateMachine::load(store.clone(), std::sync::Arc::new(KernelClock)).unwrap();
        let mut log = LogStore::new(store, std::sync::Arc::new(disk.clone()), machine.shared.halt.clone());
        for index in 0..60 {
            let payload = openraft::EntryPayload::Normal(Proposal(bytes::Bytes::from(vec![7; 300])));
            let (tell, told) = TC::oneshot();
            let entry = Entry { log_id: log_id(1, index), payload };
            log.append(vec![entry], IOFlushed::signal(tell)).await.unwrap();
            told.await.unwrap().unwrap();
        }
    }

    #[test]
    fn a_flipped_byte_anywhere_is_an_error_or_nothing_and_never_a_panic() {
        let disk = MemoryDisk::new(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(filled(&disk));
        drop(start(&disk));
        let whole = disk.bytes(FILE);
        let (mut refused, mut caught) = (0, 0);
        // The beginning of each page is where its structure is.
        let offsets = (0..whole.len()).filter(|at| at % 4096 < 64 || at % 509 == 0).filter(|at| at % 3 == 0);
        for at in offsets {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            disk.set_bytes(FILE, bytes);
            match start(&disk) {
                Ok(()) => {}
                Err(StoreError::Damaged { file, what, .. }) => {
                    assert_eq!(file, FILE);
                    refused += 1;
                    caught += u32::from(what == "a page");
                }
                Err(_) => refused += 1,
            }
        }
        assert!(caught > 0 && refused > caught, "{caught} of {refused} were panics");
        // The file as it was is whole still.
        disk.set_bytes(FILE, whole);
        start(&disk).unwrap();
    }

    #[test]
    fn a_panic_is_told_on_one_line_as_damage_of_the_file() {
        let error = guarded::<()>(|| panic!("two\n lines")).unwrap_err();
        assert!(
            error.to_string().starts_with("a page in the ledger's file ledger.redb is damaged (two lines)"),
            "{error}"
        );
        assert!(!GUARDED.get());
    }
}
