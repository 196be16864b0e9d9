//! Nodes, tokens and tenants through the admin port.

use std::time::Duration;

use fabric::identity::CaKey;
use fabric::ids::{Digest, NodeId, TokenId};
use fabric::limits::WRITE_TIMEOUT;
use fabric::model::{Name, Quota, TenantRecord};
use fabric::rpc::Refusal;
use fabric::seams::draw;
use fabric::token::JoinToken;
use raft_store::codes;
use raft_store::command::{Command, NodePatch, Outcome};
use tokio::time::Instant;

use super::{NodeBackend, views};
use crate::api::backend::*;
use crate::api::failure::Failure;
use crate::node::admission;

/// How often it is looked whether a node that is to be removed has given up its seat among the voters.
const SEAT_LOOK: Duration = Duration::from_millis(100);
/// Peers named in a join command.
const JOIN_PEERS_MAX: usize = 3;

impl NodeBackend {
    pub(super) async fn make_token(&self, write: &Write, new: NewToken) -> Result<MadeToken> {
        let entropy = &*self.context.seams.entropy;
        let ca = self.newest_ca()?;
        let token = JoinToken { id: TokenId(draw(entropy)), secret: draw(entropy), ca };
        let command = Command::CreateToken {
            id: token.id,
            secret_hash: token.secret_hash(),
            role: new.role,
            uses: new.uses,
            ttl_ms: new.ttl_ms,
        };
        let applied = self.write_at(write, command).await?;
        let now_ms = self.context.ledger.now_ms();
        let recorded = self.context.ledger.read(|state| state.tokens.get(&token.id).map(token_view));
        // The entry of a request that is repeated is another one than what it was answered speaks of.
        if recorded.is_none() && applied.outcome != (Outcome::Done { revision: applied.index }) {
            return Err(told_before().into());
        }
        let view = recorded.unwrap_or(TokenView {
            id: token.id,
            role: new.role,
            expires_ms: now_ms + new.ttl_ms,
            uses_left: new.uses,
            created_ms: now_ms,
        });
        Ok(MadeToken { view, token: token.to_string(), peers: self.join_peers() })
    }

    fn newest_ca(&self) -> Result<Digest> {
        let newest = self
            .context
            .ledger
            .read(|state| state.cas.iter().max_by_key(|(_, ca)| ca.revision).map(|(digest, _)| *digest));
        newest.ok_or_else(|| Failure::new("not-ready", "the cluster's CA is not known here yet"))
    }

    /// This node and up to two other live ones.
    fn join_peers(&self) -> Vec<String> {
        let others = self.context.membership.active();
        let others = others.into_iter().filter(|(node, _)| *node != self.context.me).map(|(_, address)| address);
        let all = std::iter::once(self.context.advertise).chain(others);
        all.take(JOIN_PEERS_MAX).map(|address| address.to_string()).collect()
    }

    pub(super) fn tokens(&self, query: &Query) -> Page<TokenView> {
        let now_ms = self.context.ledger.now_ms();
        let live: Vec<TokenView> = self
            .context
            .ledger
            .read(|state| state.tokens.values().filter(|token| token.expires_ms > now_ms).map(token_view).collect());
        self.page(query, live.into_iter().map(|token| (token.id.to_string(), token)))
    }

    pub(super) fn nodes(&self, query: &Query) -> Page<NodeView> {
        let mut records: Vec<_> = self.context.ledger.read(|state| state.nodes.values().cloned().collect());
        records.sort_by(|a, b| a.name.cmp(&b.name));
        let labelled = records.into_iter().filter(|record| {
            query.labels.iter().all(|(key, value)| {
                let have = record.labels.get(key);
                have.is_some() && value.as_ref().is_none_or(|value| have == Some(value))
            })
        });
        self.page(query, labelled.map(|record| (record.name.to_string(), views::node(&self.context, record))))
    }

    pub(super) async fn set_cordon(&self, write: &Write, node: &str, cordoned: bool) -> Result<One<NodeView>> {
        let node = views::find_node(&self.context, node)?.id;
        // Uncordoning ends a drain too; cordoning alone begins none.
        let draining = (!cordoned).then_some(false);
        let patch = NodePatch { cordoned: Some(cordoned), draining, ..NodePatch::default() };
        let command = Command::UpdateNode { node, patch: Box::new(patch), expected_revision: write.if_revision };
        self.write(write, command).await?;
        Ok(self.one(views::node(&self.context, views::find_node(&self.context, &node.to_string())?)))
    }

    /// Removes a node, once it does not vote any more.
    pub(super) async fn remove(&self, write: &Write, node: NodeId, force: bool) -> Result<()> {
        let tombstone = admission::tombstone(&self.context, node).await?;
        let command = Command::RemoveNode { node, tombstone, force, expected_revision: write.if_revision };
        let deadline = Instant::now() + WRITE_TIMEOUT;
        loop {
            match self.write(write, command.clone()).await {
                Err(failure) if failure.refusal.code == codes::VOTES && Instant::now() < deadline => {
                    tokio::time::sleep(SEAT_LOOK).await;
                }
                removed => return removed.map(drop),
            }
        }
    }

    pub(super) async fn make_tenant(
        &self,
        write: &Write,
        name: Name,
        parent: Option<Name>,
        quota: Quota,
    ) -> Result<TenantRecord> {
        let command = Command::CreateTenant { name: name.clone(), parent: parent.clone(), quota };
        self.write(write, command).await?;
        let found = self.context.ledger.read(|state| state.tenants.get(&name).cloned());
        Ok(found.unwrap_or(TenantRecord { name, parent, quota, created_ms: self.context.now_ms(), revision: 0 }))
    }
}

/// The newest CA key that this node's copy of the ledger holds.
pub fn ca_key(context: &crate::node::context::Context) -> Option<CaKey> {
    let parts = context.ledger.read(|state| {
        let with_key =
            state.cas.values().filter_map(|ca| Some((ca.revision, ca.cert_der.clone(), ca.key_pkcs8.clone()?)));
        with_key.max_by_key(|(revision, ..)| *revision)
    });
    let (_, certificate, key) = parts?;
    CaKey::from_parts(certificate, &key).ok()
}

/// A token's secret is drawn for its first answer and kept nowhere: a repeated request can neither be told it nor get another.
fn told_before() -> Refusal {
    Refusal::new(codes::EXISTS, "this request has made its token before, and only that answer had the secret")
        .hint("make another with a new key, and revoke the one that nobody has: smartnode token list")
}

fn token_view(token: &raft_store::state::TokenRecord) -> TokenView {
    TokenView {
        id: token.id,
        role: token.role,
        expires_ms: token.expires_ms,
        uses_left: token.uses.saturating_sub(token.admitted.len() as u32),
        created_ms: token.created_ms,
    }
}

/// The refusal of a request that only makes sense for this very node.
pub(super) fn only_here(what: &str) -> Refusal {
    Refusal::new("denied", format!("{what} is for the root of this node"))
}
