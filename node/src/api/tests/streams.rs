//! Events, logs, exec, forward.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Served;
use super::fake::TENANT;
use crate::api::client::Lines;
use crate::api::failure::Class;
use crate::api::frames::ExecFrame;
use crate::api::types::{Event, LogLine, Problem};

async fn cursors(mut lines: Lines) -> Vec<String> {
    let mut seen = vec![];
    while let Some(event) = lines.event::<Event>().await.unwrap() {
        assert_eq!(event.message, "made\nhere");
        seen.push(event.cursor);
    }
    seen
}

#[tokio::test]
async fn events_go_on_where_a_client_left_off() {
    let served = Served::new().await;
    let all = cursors(served.root().lines("/v1/events", None).await.unwrap()).await;
    assert_eq!(all, ["6", "7", "8", "9", "10"]);
    let rest = cursors(served.root().lines("/v1/events", Some("8")).await.unwrap()).await;
    assert_eq!(rest, ["9", "10"]);
    let rest = cursors(served.root().lines("/v1/events?since=9&follow=false", None).await.unwrap()).await;
    assert_eq!(rest, ["10"]);
    let Err(old) = served.root().lines("/v1/events", Some("1")).await else { panic!("an expired cursor") };
    assert_eq!((old.class, old.class.status()), (Class::Gone, 410));
    let own = cursors(served.tcp(Some(TENANT)).lines("/v1/events", None).await.unwrap()).await;
    assert_eq!(own, ["6", "8", "10"], "a tenant sees its own events");
    let one = cursors(served.root().lines("/v1/events?tenant=acme&follow=false", None).await.unwrap()).await;
    assert_eq!(one, own, "and an operator may ask for them alone");
    let Err(other) = served.tcp(Some(TENANT)).lines("/v1/events?tenant=other", None).await else { panic!("denied") };
    assert_eq!(other.refusal.code, "denied");
}

#[tokio::test]
async fn a_log_comes_line_by_line_and_says_when_its_owner_is_lost() {
    let served = Served::new().await;
    served.fake.add("web");
    let path = "/v1/tenants/acme/machines/web/logs";
    let mut lines = served.root().lines(&format!("{path}?tail=2"), None).await.unwrap();
    let mut texts = vec![];
    while let Some(line) = lines.next().await.unwrap() {
        let line: LogLine = serde_json::from_slice(&line).unwrap();
        texts.push(format!("{} {}", line.stream, line.text));
    }
    assert_eq!(texts, ["stdout line 8", "stderr line 9"]);
    let mut lines = served.root().lines(&format!("{path}?follow=true&tail=0"), None).await.unwrap();
    let last: Problem = serde_json::from_slice(&lines.next().await.unwrap().unwrap()).unwrap();
    assert_eq!((last.code.as_str(), lines.next().await.unwrap()), ("unreachable", None));
    assert_eq!(last.detail, "node n1 does not answer");
    let Err(missing) = served.root().lines("/v1/tenants/acme/machines/none/logs", None).await else { panic!("none") };
    assert_eq!(missing.class, Class::NotFound);
}

#[tokio::test]
async fn exec_carries_input_both_outputs_and_the_exit_code() {
    let served = Served::new().await;
    served.fake.add("web");
    let path = "/v1/tenants/acme/machines/web/exec";
    let body = serde_json::json!({"argv": ["tr", "a-z", "A-Z"], "stdin": true});
    for mut client in [served.root(), served.tcp(Some(TENANT))] {
        let mut stream = client.upgrade(path, &body).await.unwrap();
        ExecFrame::Stdin(b"hello".to_vec()).write(&mut stream).await.unwrap();
        let read = ExecFrame::read(&mut stream).await.unwrap();
        assert_eq!(read, Some(ExecFrame::Stdout(b"HELLO".to_vec())));
        ExecFrame::Stdin(vec![]).write(&mut stream).await.unwrap();
        assert_eq!(ExecFrame::read(&mut stream).await.unwrap(), Some(ExecFrame::Stderr(b"bye".to_vec())));
        assert_eq!(ExecFrame::read(&mut stream).await.unwrap(), Some(ExecFrame::Exit(3)));
        assert_eq!(ExecFrame::read(&mut stream).await.unwrap(), None);
    }
    let nothing = serde_json::json!({"argv": []});
    let failure = served.root().upgrade(path, &nothing).await.unwrap_err();
    assert_eq!((failure.class, failure.refusal.field.as_deref()), (Class::Invalid, Some("argv")));
    let missing = served.root().upgrade("/v1/tenants/acme/machines/none/exec", &body).await.unwrap_err();
    assert_eq!(missing.class, Class::NotFound);
    let plain = served.root().send_only(axum::http::Method::POST, path, &body).await.unwrap_err();
    assert!(plain.refusal.message.contains("upgrade"), "{plain}");
}

#[tokio::test]
async fn forward_carries_a_connection_with_its_half_close() {
    let served = Served::new().await;
    served.fake.add("web");
    let path = "/v1/tenants/acme/machines/web/forward";
    let none = serde_json::json!({});
    let mut stream = served.root().upgrade(&format!("{path}?port=80"), &none).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "80:ping");
    for bad in ["", "?port=0", "?port=70000"] {
        let failure = served.root().upgrade(&format!("{path}{bad}"), &none).await.unwrap_err();
        assert_eq!(failure.refusal.field.as_deref(), Some("port"), "{bad}");
    }
}
