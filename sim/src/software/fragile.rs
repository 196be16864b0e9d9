//! Software that fails when a host comes back: the control of `swarm`, `replay` and `shrink`, which need runs that fail.

use std::collections::BTreeMap;

use fabric::rpc::BoxFuture;

use crate::actor::{Boot, HostId, Software};

/// Does not survive a restart.
#[derive(Debug)]
pub struct Fragile;

impl Software for Fragile {
    fn boot(&self, boot: Boot) -> BoxFuture<()> {
        Box::pin(async move {
            if boot.number > 1 {
                boot.recorder.violation("F1: it booted again");
            }
        })
    }

    fn ended(&self, _: HostId) {}

    fn verdict(&self, _: &[HostId]) -> Vec<String> {
        Vec::new()
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}
