//! Join tokens.

use raft_store::limits::{TOKEN_TTL_MAX, TOKEN_USES_MAX};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Role;
use crate::api::backend::{MadeToken, NewToken, TokenView};
use crate::api::failure::Failure;

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What it admits as.
    #[serde(default)]
    pub role: Role,
    /// Valid this long.
    #[serde(default = "hour_ms")]
    pub ttl_ms: u64,
    /// Admits this many nodes.
    #[serde(default = "once")]
    pub uses: u32,
}

fn hour_ms() -> u64 {
    3_600_000
}
fn once() -> u32 {
    1
}

impl CreateToken {
    /// Checks the limits.
    ///
    /// # Errors
    /// `invalid`, with the field.
    pub fn check(self) -> Result<NewToken, Failure> {
        if !(1_000..=TOKEN_TTL_MAX.as_millis() as u64).contains(&self.ttl_ms) {
            let days = TOKEN_TTL_MAX.as_secs() / (24 * 3600);
            return Err(Failure::invalid("ttl_ms", self.ttl_ms, format!("1 second to {days} days")));
        }
        if !(1..=TOKEN_USES_MAX).contains(&self.uses) {
            return Err(Failure::invalid("uses", self.uses, format!("1 to {TOKEN_USES_MAX}")));
        }
        Ok(NewToken { role: self.role.into(), ttl_ms: self.ttl_ms, uses: self.uses })
    }
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// What it admits as.
    pub role: Role,
    /// When it expires.
    pub expires_ms: u64,
    /// Admissions left.
    pub uses_left: u32,
    /// When it was made.
    pub created_ms: u64,
}

impl From<TokenView> for Token {
    fn from(view: TokenView) -> Self {
        Token {
            id: view.id.to_string(),
            role: view.role.into(),
            expires_ms: view.expires_ms,
            uses_left: view.uses_left,
            created_ms: view.created_ms,
        }
    }
}

/// A new token: the only time its secret is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewTokenAnswer {
    /// The token.
    pub token: String,
    /// The command that joins a node with it.
    pub join: String,
    /// Its id.
    pub id: String,
    /// What it admits as.
    pub role: Role,
    /// When it expires.
    pub expires_ms: u64,
    /// Admissions left.
    pub uses_left: u32,
}

impl From<MadeToken> for NewTokenAnswer {
    fn from(made: MadeToken) -> Self {
        let join = format!("smartnode join {} --token {}", made.peers.join(" "), made.token);
        let view = Token::from(made.view);
        NewTokenAnswer {
            token: made.token,
            join,
            id: view.id,
            role: view.role,
            expires_ms: view.expires_ms,
            uses_left: view.uses_left,
        }
    }
}
