//! What does not belong here: strangers, pages of other sites, bodies that never end.

use std::time::Duration;

use super::Served;
use super::fake::{OPERATOR, TENANT};
use crate::api::failure::Class;
use crate::api::types::{List, Machine, Node, Status};
use crate::limits::*;

fn request(line: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("{line} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

fn authorized() -> String {
    format!("Authorization: Bearer {OPERATOR}\r\n")
}

#[tokio::test]
async fn the_tcp_port_always_needs_a_right_token() {
    let served = Served::new().await;
    let missing = served.tcp(None).get::<Status>("/v1/status").await.unwrap_err();
    assert_eq!((missing.class, missing.class.status(), missing.class.exit()), (Class::Unauthenticated, 401, 4));
    assert!(missing.refusal.hint.unwrap().contains("--token-file"));
    assert_eq!(served.tcp(Some("x")).get::<Status>("/v1/status").await.unwrap_err().class, Class::Unauthenticated);
    assert_eq!(served.tcp(Some(OPERATOR)).get::<Status>("/v1/status").await.unwrap().node, "n1");
    // Only whether it lives is told to anybody.
    assert_eq!(served.tcp(None).get_text("/healthz").await.unwrap(), "ok\n");
    let basic = served.raw(&request("GET /v1/status", "Host: localhost\r\nAuthorization: Basic eDp5\r\n", "")).await;
    assert!(basic.starts_with("HTTP/1.1 401") && basic.to_lowercase().contains("www-authenticate: bearer"), "{basic}");
}

#[tokio::test]
async fn a_tenant_sees_its_own_and_nothing_else() {
    let served = Served::new().await;
    let mut tenant = served.tcp(Some(TENANT));
    tenant.get::<List<Machine>>("/v1/tenants/acme/machines").await.unwrap();
    for path in ["/v1/tenants/other/machines", "/v1/nodes", "/v1/tokens", "/v1/tenants", "/metrics"] {
        let failure = tenant.get::<serde_json::Value>(path).await.unwrap_err();
        assert_eq!((failure.class, failure.class.status()), (Class::Denied, 403), "{path}");
        assert!(failure.refusal.hint.is_some());
    }
    // Files of a host are no tenant's.
    let body = serde_json::json!({"name": "x", "from_host": ["/etc/shadow"]});
    let path = "/v1/tenants/acme/images";
    let failure = tenant.send_only(axum::http::Method::POST, path, &body).await.unwrap_err();
    assert_eq!(failure.class, Class::Denied);
}

#[tokio::test]
async fn root_of_a_worker_commands_that_node_alone() {
    let served = Served::new().await;
    let mut worker = served.tcp(Some("node-token"));
    worker.get::<List<Node>>("/v1/nodes").await.unwrap();
    let none = serde_json::json!({});
    worker.send_only(axum::http::Method::POST, "/v1/nodes/n2/cordon", &none).await.unwrap();
    for path in ["/v1/nodes/n1/cordon", "/v1/tokens", "/v1/tenants/acme/machines/web/stop"] {
        let failure = worker.send_only(axum::http::Method::POST, path, &none).await.unwrap_err();
        assert_eq!(failure.class, Class::Denied, "{path}");
    }
}

#[tokio::test]
async fn another_host_name_and_a_foreign_page_are_refused() {
    let served = Served::new().await;
    for (headers, status) in [
        ("Host: 127.0.0.1:7421\r\n", "200"),
        ("Host: localhost\r\n", "200"),
        ("Host: [::1]:7421\r\n", "200"),
        ("Host: N1.example:7421\r\n", "200"),
        ("Host: evil.example\r\n", "403"),
        ("Host: localhost.evil.example\r\n", "403"),
        ("Host: localhost\r\nHost: evil.example\r\n", "403"),
        ("Host: localhost\r\nOrigin: http://localhost:7421\r\n", "200"),
        ("Host: localhost\r\nOrigin: https://evil.example\r\n", "403"),
        ("Host: localhost\r\nOrigin: null\r\n", "403"),
    ] {
        let answer = served.raw(&request("GET /v1/status", &(headers.to_owned() + &authorized()), "")).await;
        let answered = answer.split(' ').nth(1).unwrap_or("");
        // hyper itself refuses a doubled Host in some versions, which is as good.
        assert!(answered == status || (status == "403" && answered == "400"), "{headers:?} gave {answer}");
    }
}

#[tokio::test]
async fn a_huge_body_is_refused_before_it_is_read() {
    let served = Served::new().await;
    let claimed = format!(
        "POST /v1/tokens HTTP/1.1\r\nHost: localhost\r\n{}Connection: close\r\nContent-Length: 1000000000\r\n\r\n",
        authorized()
    );
    assert!(served.raw(&claimed).await.starts_with("HTTP/1.1 413"));
    let body = serde_json::json!({"role": "voter", "x": "y".repeat(API_BODY_BYTES_MAX)});
    let failure = served.root().send_only(axum::http::Method::POST, "/v1/tokens", &body).await.unwrap_err();
    assert_eq!(failure.class, Class::TooLarge);
    let head =
        format!("GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(4 * API_HEAD_BYTES_MAX));
    assert!(served.cut_off(&head).await.starts_with("HTTP/1.1 431"));
}

/// Time is the test's, so that nobody waits; the sockets are real.
#[tokio::test(start_paused = true)]
async fn a_slow_body_and_a_slow_head_are_cut_off() {
    let served = Served::new().await;
    let slow = format!(
        "POST /v1/tokens HTTP/1.1\r\nHost: localhost\r\n{}Connection: close\r\nContent-Length: 100\r\n\r\n{{",
        authorized()
    );
    let begun = tokio::time::Instant::now();
    let answer = served.raw(&slow).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("slow-request"), "{answer}");
    assert!(begun.elapsed() < API_BODY_TIMEOUT + Duration::from_secs(1));
    let begun = tokio::time::Instant::now();
    let answer = served.raw("GET /v1/status HTTP/1.1\r\nHost: local").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(begun.elapsed() < API_HEAD_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn garbage_is_answered_and_the_port_goes_on() {
    let served = Served::new().await;
    for garbage in ["\r\n\r\n", "GET\r\n\r\n", "\u{1}\u{2}\u{3}\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let answer = served.raw(garbage).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(served.root().get::<Status>("/v1/status").await.unwrap().node, "n1");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a file of somebody else")]
async fn a_file_in_the_place_of_the_socket_is_left_alone() {
    use crate::api::{AdminPort, PortConfig, PortError};
    let served = Served::new().await;
    let path = served.directory.path().join("letter.txt");
    std::fs::write(&path, "dear reader").unwrap();
    let config = PortConfig { socket: Some(path.clone()), ..PortConfig::default() };
    let started = AdminPort::start(config, served.fake.clone()).await;
    assert!(matches!(started, Err(PortError::Socket { .. })), "{started:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "dear reader");
}

#[tokio::test]
async fn a_second_daemon_does_not_take_the_socket_and_a_dead_one_s_is_taken() {
    use crate::api::{AdminPort, PortConfig, PortError};
    let served = Served::new().await;
    let socket = served.directory.path().join("admin.sock");
    let config = PortConfig { socket: Some(socket.clone()), ..PortConfig::default() };
    let second = AdminPort::start(config.clone(), served.fake.clone()).await;
    assert!(matches!(second, Err(PortError::SocketInUse { .. })), "{second:?}");
    let tcp = PortConfig { listen: served.port.tcp(), ..PortConfig::default() };
    assert!(matches!(AdminPort::start(tcp, served.fake.clone()).await, Err(PortError::Tcp { .. })));
    let open = PortConfig { listen: Some("0.0.0.0:0".parse().unwrap()), ..PortConfig::default() };
    assert!(matches!(AdminPort::start(open, served.fake.clone()).await, Err(PortError::NotLoopback { .. })));
    served.port.stop().await;
    let gone = served.root().get::<Status>("/v1/status").await.unwrap_err();
    assert_eq!((gone.class, gone.class.exit()), (Class::Unreachable, 7));
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let _third = AdminPort::start(config, served.fake.clone()).await.unwrap();
    served.root().get::<Status>("/v1/status").await.unwrap();
}
