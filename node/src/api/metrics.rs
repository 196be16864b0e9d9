//! Counters of the admin port itself, and the text that carries them with the node's.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The content type of OpenMetrics text.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Status of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    /// The HTTP status.
    status: u16,
}

/// Counters of the port.
#[derive(Debug)]
pub struct HttpMetrics {
    registry: Registry,
    answers: Family<Answered, Counter>,
    /// Open connections.
    pub connections: Gauge<i64, AtomicI64>,
    /// Connections refused because there were too many.
    pub refused: Counter,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("smartnode_http");
        let answers = Family::<Answered, Counter>::default();
        let connections = Gauge::default();
        let refused = Counter::default();
        registry.register("answers", "Answers of the admin port", answers.clone());
        registry.register("connections", "Open connections of the admin port", connections.clone());
        registry.register("connections_refused", "Connections refused at the bound", refused.clone());
        HttpMetrics { registry, answers, connections, refused }
    }
}

impl HttpMetrics {
    /// Counts an answer.
    pub fn answered(&self, status: u16) {
        self.answers.get_or_create(&Answered { status }).inc();
    }

    /// The node's text, these counters, and the end mark.
    pub fn text(&self, node: &str) -> String {
        let mut out = String::with_capacity(node.len() + 1024);
        out.push_str(node);
        // Writing to a String does not fail.
        let _ = text::encode_registry(&mut out, &self.registry);
        let _ = text::encode_eof(&mut out);
        out
    }
}
