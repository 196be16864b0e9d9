//! The cluster as a whole: its birth, feature level, CAs and join tokens.

use std::collections::BTreeSet;
use std::time::Duration;

use fabric::ids::{ClusterId, Digest, TokenId};
use fabric::limits::TOKENS_MAX;
use fabric::model::{Name, NodeRecord, Quota, Role, TenantRecord};
use fabric::rpc::Refusal;

use super::{CaRecord, State, TokenRecord, check_name};
use crate::codes;
use crate::command::{Ca, Outcome};
use crate::limits::{CA_BYTES_MAX, CAS_MAX, PRUNED_PER_ENTRY_MAX, TOKEN_GRACE, TOKEN_TTL_MAX, TOKEN_USES_MAX};

pub(super) fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

impl State {
    pub(super) fn init_cluster(
        &mut self,
        cluster_id: ClusterId,
        feature_level: u32,
        ca: &Ca,
        node: &NodeRecord,
        tenant: &Name,
    ) -> Result<Outcome, Refusal> {
        if self.initialized() {
            // A crash between the entry and its answer makes `init` ask again.
            return match self.nodes.get(&node.id) {
                Some(record) if self.settings.cluster_id == cluster_id => {
                    Ok(Outcome::Admitted { node: Box::new(record.clone()) })
                }
                _ => Err(Refusal::new(
                    codes::INITIALIZED,
                    format!("cluster {} exists", self.settings.cluster_id.short()),
                )
                .field("cluster_id", cluster_id)
                .hint("join it: `smartnode token create` on one of its nodes prints the command")),
            };
        }
        check_ca(ca)?;
        check_name("tenant", tenant)?;
        self.check_node(node)?;
        if node.role != Role::Voter {
            return Err(Refusal::new(codes::INVALID, "the first node votes").field("role", "worker"));
        }
        self.settings.cluster_id = cluster_id;
        self.settings.epoch = 1;
        self.settings.feature_level = feature_level;
        self.trust_ca(ca);
        let tenant = TenantRecord {
            name: tenant.clone(),
            parent: None,
            quota: Quota::default(),
            created_ms: self.now_ms(),
            revision: self.revision(),
        };
        self.tenants.insert(tenant.name.clone(), tenant);
        Ok(self.insert_node(node, Role::Voter))
    }

    pub(super) fn set_feature_level(&mut self, level: u32) -> Result<Outcome, Refusal> {
        let current = self.settings.feature_level;
        if level < current {
            return Err(Refusal::new(codes::INVALID, format!("the feature level is {current} and never sinks"))
                .field("level", level));
        }
        self.settings.feature_level = level;
        Ok(Outcome::Done { revision: self.revision() })
    }

    pub(super) fn add_ca(&mut self, ca: &Ca) -> Result<Outcome, Refusal> {
        check_ca(ca)?;
        if let Some(known) = self.cas.get(&Digest::of(&ca.cert_der)) {
            return Ok(Outcome::Done { revision: known.revision });
        }
        if self.cas.len() >= CAS_MAX {
            return Err(Refusal::new(codes::LIMIT, format!("{CAS_MAX} CAs are trusted already"))
                .hint("finish the rotation under way first"));
        }
        self.trust_ca(ca);
        Ok(Outcome::Done { revision: self.revision() })
    }

    fn trust_ca(&mut self, ca: &Ca) {
        let record = CaRecord {
            cert_der: ca.cert_der.clone(),
            key_pkcs8: Some(ca.key_pkcs8.clone()),
            added_ms: self.now_ms(),
            revision: self.revision(),
        };
        self.cas.insert(Digest::of(&ca.cert_der), record);
    }

    pub(super) fn create_token(
        &mut self,
        id: TokenId,
        secret_hash: Digest,
        role: Role,
        uses: u32,
        ttl_ms: u64,
    ) -> Result<Outcome, Refusal> {
        if !(1..=TOKEN_USES_MAX).contains(&uses) {
            return Err(
                Refusal::new(codes::INVALID, format!("a token admits 1 to {TOKEN_USES_MAX} nodes")).field("uses", uses)
            );
        }
        if !(1_000..=millis(TOKEN_TTL_MAX)).contains(&ttl_ms) {
            let days = TOKEN_TTL_MAX.as_secs() / (24 * 3600);
            return Err(Refusal::new(codes::INVALID, format!("a token lives 1 second to {days} days"))
                .field("ttl", format!("{} s", ttl_ms / 1000)));
        }
        if self.tokens.contains_key(&id) {
            return Err(Refusal::new(codes::EXISTS, format!("token {} exists", id.short())));
        }
        let ended = self.ended_tokens();
        if self.tokens.len() - ended.len() >= TOKENS_MAX {
            return Err(Refusal::new(codes::LIMIT, format!("there are {TOKENS_MAX} tokens already"))
                .hint("revoke some: `smartnode token list`, `smartnode token revoke ID`"));
        }
        for id in ended {
            self.tokens.remove(&id);
        }
        let (now, revision) = (self.now_ms(), self.revision());
        let token = TokenRecord {
            id,
            secret_hash,
            role,
            uses,
            admitted: BTreeSet::new(),
            created_ms: now,
            expires_ms: now.saturating_add(ttl_ms),
            revision,
        };
        self.tokens.insert(id, token);
        Ok(Outcome::Done { revision })
    }

    pub(super) fn revoke_token(&mut self, id: TokenId) -> Result<Outcome, Refusal> {
        match self.tokens.remove(&id) {
            Some(_) => Ok(Outcome::Removed),
            None => Err(Refusal::new(codes::NOT_FOUND, format!("there is no token {}", id.short()))
                .field("token", id)
                .hint("`smartnode token list` shows them")),
        }
    }

    /// Tokens that ended long enough ago to be forgotten.
    fn ended_tokens(&self) -> Vec<TokenId> {
        let now = self.now_ms();
        let over = |token: &&TokenRecord| token.expires_ms.saturating_add(millis(TOKEN_GRACE)) <= now;
        self.tokens.values().filter(over).take(PRUNED_PER_ENTRY_MAX).map(|token| token.id).collect()
    }

    /// The token that a joiner shows, if it may still be used for anything.
    pub(super) fn check_token(&self, id: TokenId, secret_hash: Digest) -> Result<&TokenRecord, Refusal> {
        let wrong = || {
            Refusal::new(codes::TOKEN_WRONG, "this cluster has no such token, or its secret is wrong")
                .hint("copy the whole token, or make another: `smartnode token create`")
        };
        // Hashes are compared, not secrets, so the time of the comparison tells nothing of use.
        self.tokens.get(&id).filter(|token| token.secret_hash == secret_hash).ok_or_else(wrong)
    }
}

fn check_ca(ca: &Ca) -> Result<(), Refusal> {
    for (field, bytes) in [("cert_der", &ca.cert_der), ("key_pkcs8", &ca.key_pkcs8)] {
        if !(1..=CA_BYTES_MAX).contains(&bytes.len()) {
            return Err(Refusal::new(codes::INVALID, format!("a CA's {field} has 1 to {CA_BYTES_MAX} bytes"))
                .field(field, format!("{} bytes", bytes.len())));
        }
    }
    Ok(())
}
