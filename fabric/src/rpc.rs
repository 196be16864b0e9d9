//! Requests between nodes, as their callers see them: one framed question, one framed answer, a deadline.
//!
//! [`Rpc`] is what the ledger and the node use, so that their tests need no network; `transport` implements it on QUIC.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::ids::NodeId;
use crate::model::Role;
use crate::records;

/// What a request is about. A number is never reused; ranges as in [`crate::wire::Record`].
pub type Kind = u16;

/// A refusal by the peer: it heard the request, and says no.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct RefusalV1 {
    /// Stable, in `kebab-case`; the API's `code`.
    pub code: String,
    /// For people.
    pub message: String,
    /// Field of the request that is at fault.
    pub field: Option<String>,
    /// Its value, shortened.
    pub value: Option<String>,
    /// What to do next.
    pub hint: Option<String>,
}
/// Current version of a refusal.
pub type Refusal = RefusalV1;

records!(RefusalV1 = (2, 1));

impl RefusalV1 {
    /// A refusal with a code and a message.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        RefusalV1 { code: code.into(), message: message.into(), field: None, value: None, hint: None }
    }
    /// Adds the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// Adds the field and its value.
    pub fn field(mut self, field: &str, value: impl ToString) -> Self {
        self.field = Some(field.into());
        self.value = Some(value.to_string().chars().take(80).collect());
        self
    }
}

impl From<crate::model::check::Invalid> for RefusalV1 {
    fn from(invalid: crate::model::check::Invalid) -> Self {
        RefusalV1::new("invalid", invalid.to_string()).field(invalid.field, &invalid.value)
    }
}

/// Why a call has no answer. An unknown outcome is told apart from a refusal: the request may have been done.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CallError {
    /// Nothing was sent, or the connection broke before it could have been served.
    #[error("node {node:?} cannot be reached: {cause}")]
    Unreachable {
        /// The peer.
        node: NodeId,
        /// Why.
        cause: String,
    },
    /// No answer in time: the outcome is unknown.
    #[error("node {node:?} did not answer within {after:?}")]
    Timeout {
        /// The peer.
        node: NodeId,
        /// The deadline.
        after: Duration,
    },
    /// The connection broke after sending: the outcome is unknown.
    #[error("the connection to node {node:?} broke before it answered: {cause}")]
    Broken {
        /// The peer.
        node: NodeId,
        /// Why.
        cause: String,
    },
    /// The peer said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The peer's answer cannot be read.
    #[error("node {node:?} answered with {cause}")]
    Garbled {
        /// The peer.
        node: NodeId,
        /// What was wrong.
        cause: String,
    },
}

/// An authenticated peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Who it is, by its certificate.
    pub id: NodeId,
    /// What its certificate admits it as.
    pub role: Role,
}

/// A future that may cross threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Asks peers.
#[async_trait]
pub trait Rpc: Send + Sync {
    /// Sends `body` (at most `FRAME_BYTES_MAX`) and waits for the answer until `timeout`.
    async fn call(&self, to: NodeId, kind: Kind, body: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, CallError>;
}

/// Serves one kind of request.
pub type Handler = Arc<dyn Fn(Peer, Vec<u8>) -> BoxFuture<Result<Vec<u8>, Refusal>> + Send + Sync>;

/// Who serves which kind of request. Built once, before the node listens.
#[derive(Default, Clone)]
pub struct Router {
    handlers: BTreeMap<Kind, Handler>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.handlers.keys()).finish()
    }
}

impl Router {
    /// Registers the server of a kind.
    ///
    /// # Panics
    /// When the kind has one already: two meanings of one number are a defect of the program.
    pub fn on<F, Fut>(&mut self, kind: Kind, handler: F)
    where
        F: Fn(Peer, Vec<u8>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<u8>, Refusal>> + Send + 'static,
    {
        let boxed: Handler = Arc::new(move |peer, body| Box::pin(handler(peer, body)));
        assert!(self.handlers.insert(kind, boxed).is_none(), "request kind {kind} has two servers");
    }

    /// Serves one request.
    ///
    /// # Errors
    /// The handler's refusal, or `unknown-request` for a kind that this program does not know.
    pub async fn serve(&self, peer: Peer, kind: Kind, body: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        match self.handlers.get(&kind) {
            Some(handler) => handler(peer, body).await,
            None => Err(Refusal::new("unknown-request", format!("this node knows no request of kind {kind}"))
                .hint("upgrade this node")),
        }
    }
}
