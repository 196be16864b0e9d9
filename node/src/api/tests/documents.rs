//! The OpenAPI document is checked in: a change of the API shows in its diff.
#![expect(clippy::disallowed_methods, reason = "compares with a file of the source tree")]

use super::Served;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.v1.json");
/// Set to write the file anew.
const REGENERATE: &str = "SMARTNODE_WRITE_OPENAPI";

#[test]
fn the_checked_in_document_is_the_one_that_is_served() {
    let made = crate::api::openapi_json();
    if std::env::var_os(REGENERATE).is_some() {
        std::fs::write(FILE, made).unwrap();
    }
    let kept = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(
        kept == made,
        "openapi.v1.json is not what the code says: run this test with {REGENERATE}=1, and look at the diff"
    );
}

#[test]
fn the_document_is_openapi_3_1_and_describes_every_path_once() {
    let document: serde_json::Value = serde_json::from_str(crate::api::openapi_json()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let paths = document["paths"].as_object().unwrap();
    for path in ["/v1/status", "/v1/tenants/{tenant}/machines/{name}", "/v1/operations/{id}", "/v1/events"] {
        assert!(paths.contains_key(path), "{path}");
    }
    // Every reference leads somewhere.
    let text = crate::api::openapi_json();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn it_is_served_and_so_are_the_metrics() {
    let served = Served::new().await;
    let mut root = served.root();
    assert_eq!(root.get_text("/v1/openapi.json").await.unwrap(), crate::api::openapi_json());
    let metrics = root.get_text("/metrics").await.unwrap();
    assert!(metrics.contains("smartnode_terms 1") && metrics.contains("smartnode_http_answers_total{status=\"200\"}"));
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
}
