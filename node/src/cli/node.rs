//! node list, inspect, cordon, uncordon, drain, remove.

use axum::http::Method;
use fabric::human;
use serde_json::json;

use super::args::NodeCommand;
use super::cluster::{list_all, list_query};
use super::error::CliError;
use super::output::{self, Row};
use super::session::Session;
use crate::api::client::segment;
use crate::api::types::{Answer, Node, Operation};

impl Row for Node {
    const COLUMNS: &'static [&'static str] =
        &["name", "state", "role", "raft", "zone", "machines", "free cpu", "free memory", "address", "id"];
    fn name(&self) -> String {
        self.name.clone()
    }
    fn cells(&self, now_ms: u64) -> Vec<String> {
        let lower = |text: String| text.to_lowercase();
        let mut state = lower(format!("{:?}", self.liveness));
        if self.absent_until_ms.is_some_and(|until| until > now_ms) {
            state.push_str(",absent");
        }
        if self.draining {
            state.push_str(",draining");
        } else if self.cordoned {
            state.push_str(",cordoned");
        }
        // A host that cannot run machines offers nothing.
        let none = self.capacity.memory_bytes == 0;
        let of = |free: String, all: String| format!("{free} of {all}");
        vec![
            self.name.clone(),
            state,
            lower(format!("{:?}", self.role)),
            self.gossip.as_ref().map_or_else(|| "-".into(), |gossip| lower(format!("{:?}", gossip.raft))),
            if self.zone.is_empty() { "-".into() } else { self.zone.clone() },
            self.machines.to_string(),
            if none {
                "-".into()
            } else {
                of(human::cpu(self.free.cpu_millis.into()), human::cpu(self.capacity.cpu_millis.into()))
            },
            if none {
                "-".into()
            } else {
                of(human::bytes(self.free.memory_bytes), human::bytes(self.capacity.memory_bytes))
            },
            self.address.clone(),
            self.id.chars().take(10).collect(),
        ]
    }
}

fn path(node: &str, rest: &str) -> String {
    format!("/v1/nodes/{}{rest}", segment(node))
}

/// `node`.
pub async fn run(session: &mut Session, command: NodeCommand) -> Result<(), CliError> {
    let output = session.global.output;
    let none = json!({});
    match command {
        NodeCommand::List(args) => {
            output::list(output, &list_all::<Node>(session, "/v1/nodes", &list_query(&args)).await?)
        }
        NodeCommand::Inspect(args) => {
            let node: Answer<Node> = session.client.get(&path(&args.node, "")).await?;
            output::inspect(output, &node, &node.item.name)
        }
        NodeCommand::Cordon(args) => {
            let node: Answer<Node> = session.write(Method::POST, &path(&args.node, "/cordon"), &none).await?;
            output::one(output, &node, &node.item.name, || format!("{}\n", node.item.name))
        }
        NodeCommand::Uncordon(args) => {
            let node: Answer<Node> = session.write(Method::POST, &path(&args.node, "/uncordon"), &none).await?;
            output::one(output, &node, &node.item.name, || format!("{}\n", node.item.name))
        }
        NodeCommand::Drain(args) => {
            let operation: Operation = session.write(Method::POST, &path(&args.node, "/drain"), &none).await?;
            let operation = if session.waits() { session.follow(operation).await? } else { operation };
            output::one(output, &operation, &operation.id, || format!("{}\n", operation.id))
        }
        NodeCommand::Remove { node, force } => {
            session.confirm(&format!("Remove the node {node} for good"))?;
            let query = if force { "?force=true" } else { "" };
            session.write_only(Method::DELETE, &path(&node, query), &none).await?;
            session.say_done(&format!("node {node} is removed"))
        }
    }
}
