//! Holds openraft's ticks back while there is nothing that they could find out: every node pays for each of them, fifty a
//! second, and most nodes of a cluster are no voters.
//!
//! Ticks send a leader's heartbeats and end a follower's patience. Whoever is no voter needs none. A follower needs none
//! while it hears its leader: an append that was accepted renews the leader's lease (`ELECTION_MAX`), so nothing can be due
//! before that.

use std::sync::Weak;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::sleep;

use super::Inner;
use crate::tuning::{HEARTBEAT, LEADER_SILENT};

/// Whether ticks are needed by a node in this state; `silent`: it has heard no leader for [`LEADER_SILENT`].
fn needed(state: ServerState, silent: bool) -> bool {
    match state {
        ServerState::Learner | ServerState::Shutdown => false,
        ServerState::Follower => silent,
        ServerState::Candidate | ServerState::Leader => true,
    }
}

/// Switches ticks on and off as long as the ledger runs.
pub(super) async fn drive(inner: Weak<Inner>) {
    let Some(mut metrics) = inner.upgrade().map(|ledger| ledger.raft.server_metrics()) else { return };
    loop {
        let Some(ledger) = inner.upgrade() else { return };
        let state = metrics.borrow_watched().state;
        let silent = ledger.heard().at.is_none_or(|at| at.elapsed() >= LEADER_SILENT);
        ledger.raft.runtime_config().tick(needed(state, silent));
        drop(ledger);
        tokio::select! {
            biased;
            changed = metrics.changed() => if changed.is_err() { return },
            () = sleep(HEARTBEAT), if state == ServerState::Follower => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::ELECTION_MAX;

    #[test]
    fn only_who_could_act_is_woken() {
        for silent in [false, true] {
            assert!(!needed(ServerState::Learner, silent));
            assert!(needed(ServerState::Leader, silent) && needed(ServerState::Candidate, silent));
            assert_eq!(needed(ServerState::Follower, silent), silent);
        }
        // The silence is seen, one look late, before the leader's lease can have ended.
        assert!(LEADER_SILENT + HEARTBEAT < ELECTION_MAX);
    }
}
