//! Writing: bodies, revisions, idempotency keys, dry runs.

use axum::http::Method;
use raft_store::codes;
use serde_json::{Value, json};

use super::Served;
use super::fake::{OPERATOR, name};
use crate::api::failure::{Class, Failure};
use crate::api::types::{Machine, NewTokenAnswer};

const MACHINES: &str = "/v1/tenants/acme/machines";

async fn post(served: &Served, path: &str, headers: &str, body: &str) -> (u16, String, Value) {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OPERATOR}\r\nConnection: close\r\n\
         Content-Length: {length}\r\n{headers}\r\n{body}"
    );
    let answer = served.raw(&request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), serde_json::from_str(body).unwrap_or(Value::Null))
}

fn create(machine: &str) -> Value {
    json!({"name": machine, "spec": {"image": "http"}})
}

#[tokio::test]
async fn a_machine_is_made_with_defaults_and_a_place_in_the_answer() {
    let served = Served::new().await;
    let (status, head, machine) = post(&served, MACHINES, "", &create("web").to_string()).await;
    assert_eq!(status, 201);
    assert!(head.contains("etag: \"1\""), "{head}");
    assert_eq!(machine["spec"]["cpu_millis"], 100);
    assert_eq!(machine["placement"]["node"], "n1");
    assert_eq!(machine["status"]["state"], "unknown");
    let pinned = json!({"name": "tied", "spec": {"image": "http", "node": "n1"}});
    let made: Machine = served.root().send(Method::POST, MACHINES, &pinned).await.unwrap();
    assert_eq!(made.spec.node.as_deref(), Some("n1"));
}

#[tokio::test]
async fn a_body_that_is_not_understood_names_the_field() {
    let served = Served::new().await;
    let long = "x".repeat(64);
    let cases = [
        (json!({"name": "web", "spec": {"image": "i", "colour": "red"}}), "colour", "unknown-field"),
        (json!({"name": "web", "spec": {"image": "i"}, "colour": 1}), "colour", "unknown-field"),
        (json!({"name": "web", "spec": {}}), "image", codes::INVALID),
        (json!({"name": "Web!", "spec": {"image": "i"}}), "name", codes::INVALID),
        (json!({"name": long, "spec": {"image": "i"}}), "name", codes::INVALID),
        (json!({"name": "web", "spec": {"image": "i", "memory_bytes": 1}}), "memory_bytes", codes::INVALID),
        (json!({"name": "web", "spec": {"image": "i", "cpu_millis": 0}}), "cpu_millis", codes::INVALID),
        (json!({"name": "web", "spec": {"image": "i", "command": vec!["x"; 300]}}), "command", codes::INVALID),
        (json!({"name": "web", "spec": {"image": "i", "labels": {"a b": "c"}}}), "labels", codes::INVALID),
        (json!({"name": "web", "spec": {"image": "i", "node": "n9"}}), "node", codes::NOT_FOUND),
        (json!({"name": "web", "desired": "deleted", "spec": {"image": "i"}}), "desired", codes::INVALID),
    ];
    for (body, field, code) in cases {
        let (status, _, problem) = post(&served, MACHINES, "", &body.to_string()).await;
        assert_eq!(problem["field"], field, "{body} gave {problem}");
        assert_eq!((problem["code"].as_str(), status), (Some(code), if code == codes::NOT_FOUND { 404 } else { 422 }));
        assert!(problem["detail"].as_str().unwrap().len() < 400);
    }
    for broken in ["{", "[]", "\u{0}", "{\"name\": 1}"] {
        let (status, _, problem) = post(&served, MACHINES, "", broken).await;
        assert_eq!((status, problem["code"].as_str()), (422, Some(codes::INVALID)), "{broken}");
    }
    assert!(served.fake.state.lock().unwrap().machines.is_empty());
}

#[tokio::test]
async fn a_write_with_a_known_key_is_not_done_twice() {
    let served = Served::new().await;
    let key = "Idempotency-Key: abc\r\n";
    let (first, _, made) = post(&served, MACHINES, key, &create("web").to_string()).await;
    let (again, _, same) = post(&served, MACHINES, key, &create("web").to_string()).await;
    assert_eq!((first, again, &made["id"]), (201, 201, &same["id"]));
    let (other, _, problem) = post(&served, MACHINES, "Idempotency-Key: abd\r\n", &create("web").to_string()).await;
    assert_eq!((other, problem["code"].as_str()), (409, Some(codes::EXISTS)));
    // The same key at another path is another key.
    post(&served, &format!("{MACHINES}/web/stop"), key, "").await;
    let keys: Vec<_> = served.fake.state.lock().unwrap().writes.iter().map(|write| write.idempotency).collect();
    assert!(keys[0].is_some() && keys[0] == keys[1] && keys[0] != keys[2] && keys[0] != keys[3]);
    let long = format!("Idempotency-Key: {}\r\n", "x".repeat(300));
    assert_eq!(post(&served, MACHINES, &long, &create("x").to_string()).await.0, 422);
    // Every write of the client has one.
    let _: Machine = served.root().send(Method::POST, &format!("{MACHINES}/web/start"), &json!({})).await.unwrap();
    assert!(served.fake.state.lock().unwrap().writes.last().unwrap().idempotency.is_some());
}

#[tokio::test]
async fn a_write_against_an_old_revision_is_refused() {
    let served = Served::new().await;
    served.fake.add("web");
    let path = format!("{MACHINES}/web/stop");
    assert_eq!(post(&served, &path, "If-Match: \"1\"\r\n", "").await.0, 200);
    let (status, _, problem) = post(&served, &path, "If-Match: \"1\"\r\n", "").await;
    assert_eq!((status, problem["code"].as_str()), (412, Some(codes::REVISION)));
    assert_eq!(post(&served, &path, "If-Match: *\r\n", "").await.0, 200);
    assert_eq!(post(&served, &path, "If-Match: W/\"x\"\r\n", "").await.0, 422);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let served = Served::new().await;
    let (status, _, machine) = post(&served, &format!("{MACHINES}?dry_run=true"), "", &create("web").to_string()).await;
    assert_eq!((status, machine["name"].as_str()), (200, Some("web")));
    assert!(served.fake.state.lock().unwrap().machines.is_empty());
    served.fake.add("web");
    let mut root = served.root();
    root.send_only(Method::DELETE, &format!("{MACHINES}/web?dry_run=true"), &json!({})).await.unwrap();
    assert!(served.fake.state.lock().unwrap().machines.contains_key(&name("web")));
    root.send_only(Method::POST, "/v1/self/stop?dry_run=true", &json!({})).await.unwrap();
    assert!(!served.fake.state.lock().unwrap().stopped);
    root.send_only(Method::POST, "/v1/self/stop", &json!({})).await.unwrap();
    assert!(served.fake.state.lock().unwrap().stopped);
}

#[tokio::test]
async fn a_token_comes_with_the_command_that_uses_it() {
    let served = Served::new().await;
    let mut root = served.root();
    let body = json!({"role": "worker", "uses": 3});
    let made: NewTokenAnswer = root.send(Method::POST, "/v1/tokens", &body).await.unwrap();
    assert_eq!(made.join, "smartnode join 10.0.0.1:7420 10.0.0.2:7420 --token sn1-secret");
    for bad in [json!({"uses": 0}), json!({"ttl_ms": 1}), json!({"ttl_ms": 1u64 << 50}), json!({"role": "king"})] {
        let failure = root.send_only(Method::POST, "/v1/tokens", &bad).await.unwrap_err();
        assert_eq!(failure.class, Class::Invalid, "{bad}");
    }
    let failure = root.send_only(Method::DELETE, "/v1/tokens/zz", &json!({})).await.unwrap_err();
    assert_eq!(failure.class, Class::Invalid);
}

#[tokio::test]
async fn what_is_in_use_stays_unless_forced() {
    let served = Served::new().await;
    let mut root = served.root();
    let failure = root.send_only(Method::DELETE, "/v1/nodes/n1", &json!({})).await.unwrap_err();
    assert_eq!((failure.class, failure.class.exit()), (Class::Conflict, 5));
    assert_eq!(failure.refusal.hint.as_deref(), Some("smartnode node drain n1"));
    root.send_only(Method::DELETE, "/v1/nodes/n1?force=true", &json!({})).await.unwrap();
}

#[tokio::test]
async fn a_time_out_is_told_apart_from_a_refusal() {
    let served = Served::new().await;
    served.fake.fail(Failure::timeout("the ledger", fabric::limits::WRITE_TIMEOUT));
    let failure = served.root().send_only(Method::POST, MACHINES, &create("web")).await.unwrap_err();
    assert_eq!((failure.class, failure.class.exit()), (Class::Timeout, 6));
    assert!(failure.refusal.hint.unwrap().contains("may still have been done"));
}
