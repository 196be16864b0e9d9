//! Which requests of peers the ledger answers.

use std::future::Future;
use std::sync::{Arc, OnceLock, Weak};

use fabric::rpc::{Kind, Peer, Refusal, Router};
use tokio::time::Instant;

use super::Inner;
use super::messages::{FORWARD, JUDGE, PAGE, READ_INDEX, RELAY, RELAY_READ_INDEX, RELAY_RENEW, RENEW};
use crate::network::{APPEND, PRE_VOTE, SNAPSHOT, TRANSFER, VOTE};

type Slot = Arc<OnceLock<Weak<Inner>>>;

fn on<F, Fut>(router: &mut Router, slot: &Slot, kind: Kind, serve: F)
where
    F: Fn(Arc<Inner>, Peer, Vec<u8>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<u8>, Refusal>> + Send,
{
    let slot = slot.clone();
    router.on(kind, move |peer, body| {
        let ledger = slot.get().and_then(Weak::upgrade);
        let serve = serve.clone();
        async move {
            match ledger {
                Some(ledger) => match ledger.halted() {
                    // A stopped voter is as good as dead, and says so at once instead of letting peers wait.
                    Some(reason) => Err(Refusal::new("halted", format!("the ledger of this node stopped: {reason}"))),
                    None => serve(ledger, peer, body).await,
                },
                None => Err(Refusal::new("not-started", "the ledger of this node does not run yet")),
            }
        }
    });
}

pub(super) fn register(router: &mut Router, slot: &Slot) {
    on(router, slot, APPEND, |ledger, peer, body| async move {
        let (answer, led) = ledger.server.append(peer, &body).await?;
        if led {
            let mut heard = ledger.heard();
            heard.at = Some(Instant::now());
            heard.hint = None;
        }
        Ok(answer)
    });
    on(router, slot, VOTE, |ledger, peer, body| async move { ledger.server.vote(peer, &body, false).await });
    on(router, slot, PRE_VOTE, |ledger, peer, body| async move { ledger.server.vote(peer, &body, true).await });
    on(router, slot, SNAPSHOT, |ledger, peer, body| async move { ledger.server.snapshot(peer, &body).await });
    on(router, slot, TRANSFER, |ledger, peer, body| async move { ledger.server.transfer(peer, &body).await });
    on(router, slot, FORWARD, |ledger, peer, body| async move { ledger.serve_forward(peer, &body).await });
    on(router, slot, READ_INDEX, |ledger, peer, body| async move { ledger.serve_read_index(peer, &body).await });
    on(router, slot, RELAY, |ledger, peer, body| async move { ledger.serve_relay(peer, &body).await });
    on(router, slot, RELAY_READ_INDEX, |ledger, _, body| async move { ledger.serve_relayed_read_index(&body).await });
    on(router, slot, RENEW, |ledger, peer, body| async move { ledger.serve_renew(peer, &body).await });
    on(router, slot, RELAY_RENEW, |ledger, peer, body| async move { ledger.serve_relayed_renew(peer, &body).await });
    on(router, slot, JUDGE, |ledger, _, body| async move { ledger.serve_judge(&body) });
    on(router, slot, PAGE, |ledger, peer, body| async move { ledger.serve_page(peer, &body).await });
}
