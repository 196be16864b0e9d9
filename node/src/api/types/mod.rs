//! JSON shapes of the admin API, shared by the server and the command line.
//!
//! They are apart from the domain's types, so that either may change without the other; `From` and `TryFrom` join them.
//! Input refuses unknown fields. Times are Unix milliseconds, sizes bytes, ids hexadecimal text.

mod cluster;
mod machine;
mod node;
mod problem;
mod stream;
mod tenant;
mod token;

pub use cluster::*;
pub use machine::*;
pub use node::*;
pub use problem::*;
pub use stream::*;
pub use tenant::*;
pub use token::*;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::backend::{One, Page};

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    /// The items, in the order of their names.
    pub items: Vec<T>,
    /// Pass it as `cursor` for the next part; absent when this was the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// How old the answer may be.
    pub staleness_ms: u64,
    /// Names of nodes that did not tell what they observe.
    pub unreachable: Vec<String>,
    /// The node that was asked is a worker: it knows what concerns itself, so others may be missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

impl<T> List<T> {
    /// The wire form of a page; `key` gives an item's key, from which the next part goes on.
    pub fn of<V: Into<T>>(page: Page<V>, key: impl Fn(&V) -> String) -> Self {
        let next_cursor = page.items.last().filter(|_| page.more).map(key);
        List {
            items: page.items.into_iter().map(Into::into).collect(),
            next_cursor,
            staleness_ms: page.staleness_ms,
            unreachable: page.unreachable.iter().map(ToString::to_string).collect(),
            partial: page.partial,
        }
    }
}

/// One thing, and how old the answer may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Answer<T> {
    /// It.
    #[serde(flatten)]
    pub item: T,
    /// How old the answer may be.
    pub staleness_ms: u64,
    /// Names of nodes that did not tell what they observe.
    pub unreachable: Vec<String>,
}

impl<T> Answer<T> {
    /// The wire form.
    pub fn of<V: Into<T>>(one: One<V>) -> Self {
        Answer {
            item: one.item.into(),
            staleness_ms: one.staleness_ms,
            unreachable: one.unreachable.iter().map(ToString::to_string).collect(),
        }
    }
}
