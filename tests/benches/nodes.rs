//! What the measures ask of nodes: over the admin socket, since a process for each question would be what is measured.

use std::time::{Duration, Instant};

use serde_json::Value;
use smartnode_tests::{Cluster, http, poll};

/// Between two looks of what is timed.
pub const LOOK: Duration = Duration::from_millis(2);
/// Nothing that is measured takes longer, or it is given up.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Milliseconds since then.
pub fn ms_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// Looks every 2 ms.
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    poll::until_every(LOOK, LIMIT, condition, || what.to_owned()).0
}

/// All nodes, as one sees them; none when it does not answer.
pub fn list(cluster: &Cluster, at: usize) -> Option<Vec<Value>> {
    let text = http::get(&cluster.lab.host(at).admin_socket(), "/v1/nodes")?;
    let list: Value = serde_json::from_str(&text).ok()?;
    list["items"].as_array().cloned()
}

/// Whether `asked` says of node `of` that it has this liveness.
pub fn says(cluster: &Cluster, asked: usize, of: usize, liveness: &str) -> bool {
    let name = format!("n{}", of + 1);
    let is = |node: &Value| node["name"] == *name && node["liveness"] == liveness;
    list(cluster, asked).is_some_and(|nodes| nodes.iter().any(is))
}

/// Waits until every host of `asked` says so.
pub fn until_all_say(cluster: &Cluster, asked: &[usize], of: usize, liveness: &str) {
    for at in asked {
        until(&format!("n{} says that n{} is {liveness}", at + 1, of + 1), || {
            says(cluster, *at, of, liveness).then_some(())
        });
    }
}

/// Whether a node takes machines: it is in the ledger as `asked` sees it, alive and with capacity, and is ready itself.
pub fn is_schedulable(cluster: &Cluster, asked: usize, of: usize) -> bool {
    let name = format!("n{}", of + 1);
    let is = |node: &Value| {
        let free = node["free"]["memory_bytes"].as_u64().unwrap_or_default();
        node["name"] == *name && node["liveness"] == "alive" && free > 0
    };
    http::get(&cluster.lab.host(of).admin_socket(), "/readyz").is_some()
        && list(cluster, asked).is_some_and(|nodes| nodes.iter().any(is))
}

/// Waits until every node has a copy of the one image.
pub fn until_image_everywhere(cluster: &Cluster) {
    for at in 0..cluster.lab.hosts().len() {
        until("every node has the image", || {
            let nodes = list(cluster, at)?;
            nodes.iter().all(|node| node["gossip"]["images"].as_u64() > Some(0)).then_some(())
        });
    }
}
