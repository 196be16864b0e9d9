//! Reading: lists, parts of lists, failures of every class, waiting.

use std::time::Duration;

use axum::http::Method;
use fabric::model::MachineState;
use raft_store::codes;
use serde_json::{Value, json};

use super::Served;
use super::fake::{OPERATOR, name};
use crate::api::backend::{OperationState, Read};
use crate::api::failure::{Class, Failure};
use crate::api::types::{Answer, List, Machine, Node, Operation, Problem, Status};

const MACHINES: &str = "/v1/tenants/acme/machines";

#[tokio::test]
async fn every_class_of_failure_is_a_problem_with_its_status_and_exit_code() {
    let served = Served::new().await;
    served.fake.add("web");
    let failures = [
        (codes::NOT_FOUND, 404, 3),
        (codes::DENIED, 403, 4),
        (codes::EXISTS, 409, 5),
        (codes::IN_USE, 409, 5),
        (codes::CAPACITY, 409, 5),
        (codes::QUOTA, 409, 5),
        (codes::REVISION, 412, 5),
        (codes::INVALID, 422, 1),
        ("timeout", 504, 6),
        ("no-leader", 503, 7),
        ("unreachable", 503, 7),
        ("internal", 500, 1),
    ];
    for (code, status, exit) in failures {
        served.fake.fail(Failure::new(code, "the words").hint("the next command"));
        let path = format!("{MACHINES}/web");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OPERATOR}\r\nConnection: close\r\n\r\n"
        );
        let answer = served.raw(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{code}: {answer}");
        assert!(answer.contains("content-type: application/problem+json"), "{answer}");
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        let problem: Problem = serde_json::from_str(body).unwrap();
        assert_eq!((problem.code.as_str(), problem.detail.as_str(), problem.status), (code, "the words", status));
        let failure = Failure::from(problem);
        assert_eq!(failure.class.exit(), exit, "{code}");
        assert_eq!(failure.refusal.hint.as_deref(), Some("the next command"));
    }
}

#[tokio::test]
async fn a_failure_says_the_names_of_nodes() {
    let served = Served::new().await;
    let failure = Failure::new("timeout", "node 1111111111 did not answer within 5s").hint("look again");
    served.fake.fail(failure);
    let failure = served.root().get::<Value>(&format!("{MACHINES}/web")).await.unwrap_err();
    assert_eq!(failure.refusal.message, "node n1 did not answer within 5s");
    assert_eq!((failure.class, failure.refusal.hint.as_deref()), (Class::Timeout, Some("look again")));
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let served = Served::new().await;
    let mut root = served.root();
    for (path, hint) in [
        ("/v1/nodes/n9", "smartnode node list"),
        ("/v1/tenants/acme/machines/none", "smartnode machine list"),
        ("/v1/tenants/none", "smartnode tenant list"),
        ("/v1/nothing", "the paths are described in /v1/openapi.json"),
    ] {
        let failure = root.get::<Value>(path).await.unwrap_err();
        assert_eq!((failure.class, failure.refusal.hint.as_deref()), (Class::NotFound, Some(hint)), "{path}");
    }
    let failure = root.send_only(Method::PUT, "/v1/status", &json!({})).await.unwrap_err();
    assert_eq!(failure.class.status(), 405);
}

#[tokio::test]
async fn a_list_comes_in_parts_that_join_without_gaps() {
    let served = Served::new().await;
    for at in 0..7 {
        served.fake.add(&format!("m{at}"));
    }
    let mut root = served.root();
    let (mut names, mut cursor) = (vec![], String::new());
    loop {
        let part: List<Machine> = root.get(&format!("{MACHINES}?limit=3{cursor}")).await.unwrap();
        assert!(part.items.len() <= 3 && part.staleness_ms == 4 && part.unreachable == ["n3"]);
        names.extend(part.items.into_iter().map(|machine| machine.name));
        match part.next_cursor {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    served.fake.change(|state| {
        let record = state.machines.get_mut(&name("m3")).unwrap();
        record.spec.labels.insert("tier".into(), "a b".into());
    });
    served.fake.observe("m3", MachineState::Running, None);
    let path = format!("{MACHINES}?label=tier%3Da+b&label=tier&state=running");
    let found: List<Machine> = root.get(&path).await.unwrap();
    assert_eq!(found.items.len(), 1);
    for bad in ["limit=0", "limit=1001", "limit=x", "state=dancing", "consistency=eventual", "colour=red"] {
        let failure = root.get::<Value>(&format!("{MACHINES}?{bad}")).await.unwrap_err();
        assert_eq!(failure.class.status(), 422, "{bad}");
        assert!(failure.refusal.field.is_some(), "{bad}");
    }
}

#[tokio::test]
async fn a_read_may_ask_to_be_linearizable_and_has_an_etag() {
    let served = Served::new().await;
    served.fake.add("web");
    let path = format!("{MACHINES}/web?consistency=linearizable");
    let machine: Answer<Machine> = served.root().get(&path).await.unwrap();
    assert_eq!((machine.item.name.as_str(), machine.staleness_ms), ("web", 4));
    let last: Read = served.fake.state.lock().unwrap().reads.last().cloned().unwrap();
    assert!(last.linearizable);
    let request = format!(
        "GET {MACHINES}/web HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OPERATOR}\r\nConnection: close\r\n\r\n"
    );
    assert!(served.raw(&request).await.contains("etag: \"1\"\r\n"));
    let node: Answer<Node> = served.root().get("/v1/nodes/n2").await.unwrap();
    assert_eq!((node.item.name.as_str(), node.item.revision), ("n2", 3));
}

#[tokio::test]
async fn a_request_may_wait_for_a_state() {
    let served = Served::new().await;
    served.fake.add("web");
    let mut client = served.root();
    let waiting = tokio::spawn(async move {
        client.get_or_gone::<Answer<Machine>>(&format!("{MACHINES}/web?wait=running&timeout_ms=20000")).await
    });
    tokio::task::yield_now().await;
    served.fake.observe("web", MachineState::Preparing, None);
    served.fake.observe("web", MachineState::Running, None);
    assert_eq!(waiting.await.unwrap().unwrap().unwrap().item.status.pid, Some(7));

    let mut root = served.root();
    let path = format!("{MACHINES}/web?wait=stopped&timeout_ms=1");
    let failure = root.get::<Value>(&path).await.unwrap_err();
    assert_eq!((failure.class.status(), failure.class.exit()), (504, 6));
    assert!(failure.refusal.message.contains("machine web is running"), "{failure}");

    served.fake.observe("web", MachineState::Failed, Some(3));
    let failure = root.get::<Value>(&format!("{MACHINES}/web?wait=running")).await.unwrap_err();
    assert_eq!(failure.class, Class::Conflict, "what will not get there by itself is not waited for");
    assert!(failure.refusal.message.contains("exit code 3"), "{failure}");
    served.fake.change(|state| state.machines.values_mut().for_each(|record| record.restarts += 1));
    let failure = root.get::<Value>(&format!("{MACHINES}/web?wait=running&timeout_ms=1")).await.unwrap_err();
    assert_eq!(failure.class.status(), 504, "another run was asked for since");

    root.send_only(Method::DELETE, &format!("{MACHINES}/web"), &json!({})).await.unwrap();
    let gone = root.get_or_gone::<Answer<Machine>>(&format!("{MACHINES}/web?wait=gone")).await.unwrap();
    assert!(gone.is_none());
}

#[tokio::test]
async fn status_opens_with_its_tolerance_and_may_wait_for_it() {
    let served = Served::new().await;
    let status: Status = served.root().get("/v1/status").await.unwrap();
    assert_eq!(status.summary, "losing n1 stops writes: add two nodes");
    let mut client = served.root();
    let waiting = tokio::spawn(async move { client.get::<Status>("/v1/status?wait_tolerance=1").await });
    tokio::task::yield_now().await;
    served.fake.change(|state| state.tolerance = 1);
    assert_eq!(waiting.await.unwrap().unwrap().tolerance, 1);
}

#[tokio::test]
async fn an_operation_is_followed_to_its_end() {
    let served = Served::new().await;
    served.fake.add("web");
    let mut root = served.root();
    let begun: Operation = root.send(Method::POST, &format!("{MACHINES}/web/move"), &json!({})).await.unwrap();
    assert_eq!((begun.kind.as_str(), begun.phase.as_str(), begun.progress_permille), ("move", "sync", 500));
    let path = format!("/v1/operations/{}", begun.id);
    let early = root.get::<Operation>(&format!("{path}?wait=done&timeout_ms=1")).await.unwrap_err();
    assert_eq!(early.class, Class::Timeout);
    let mut client = served.root();
    let waiting = tokio::spawn(async move { client.get::<Operation>(&format!("{path}?wait=done")).await });
    tokio::task::yield_now().await;
    served.fake.change(|state| state.operation.as_mut().unwrap().state = OperationState::Done);
    assert_eq!(waiting.await.unwrap().unwrap().state, crate::api::types::OperationState::Done);
    let listed: List<Operation> = root.get("/v1/operations").await.unwrap();
    assert_eq!(listed.items.len(), 1);
}

#[tokio::test]
async fn readiness_says_what_is_missing() {
    let served = Served::new().await;
    assert_eq!(served.tcp(None).get_text("/readyz").await.unwrap(), "ready\n");
    served.fake.fail(Failure::new("not-ready", "waiting for a leader"));
    let failure = served.tcp(None).get_text("/readyz").await.unwrap_err();
    assert_eq!((failure.class.status(), failure.refusal.message.as_str()), (503, "waiting for a leader"));
}

/// The aim is 10,000 reads a second in the release build with two cores; this only catches a slip of the handlers' path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_do_not_queue_behind_each_other() {
    let served = Served::new().await;
    served.fake.add("web");
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let mut client = served.root();
            tokio::spawn(async move {
                for _ in 0..250 {
                    client.get::<Answer<Machine>>(&format!("{MACHINES}/web")).await.unwrap();
                }
            })
        })
        .collect();
    let all = async {
        for task in tasks {
            task.await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("2,000 reads within 20 s, even here");
}
