//! What users ask for that cannot be: each refused with the value that offends and the next step, and the node goes on.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use smartnode_tests::machines::{IDLE, IMAGE};
use smartnode_tests::{Cluster, http, poll};

const MACHINES: &str = "/v1/tenants/default/machines";

/// Asks for something wrong, and checks that the answer says so: the status, the offending words, and a hint.
fn refused(socket: &Path, request: &str, body: &str, status: u16, words: &str) {
    let (method, path) = request.split_once(' ').unwrap();
    let answer = http::ask(socket, method, path, &[], body);
    let what = format!("{request} {:.120}: {:.600}", body, answer.body);
    assert_eq!(answer.status, status, "{what}");
    assert!(answer.head.to_lowercase().contains("application/problem+json"), "{what}");
    let problem = answer.json();
    assert!(problem["code"].is_string() && problem["hint"].is_string(), "{what}");
    assert!(problem["detail"].as_str().unwrap().contains(words) || problem["value"] == words, "no {words:?} in {what}");
}

/// Specs that break a rule, each with the words that name the offence.
fn specs() -> Vec<(Value, &'static str)> {
    let many = |count: usize| (0..count).map(|at| (format!("k{at}"), json!("v"))).collect::<serde_json::Map<_, _>>();
    vec![
        (json!({"cpu_millis": 0}), "0"),
        (json!({"cpu_millis": 2_000_000}), "2000"),
        (json!({"cpu_millis": -1}), "-1"),
        (json!({"cpu_millis": "much"}), "much"),
        (json!({"memory_bytes": 1}), "1"),
        (json!({"memory_bytes": 1_u64 << 62}), "4611686018427387904"),
        (json!({"burst_cpu_millis": 1}), "at least the guarantee"),
        (json!({"burst_memory_bytes": 5}), "at least the guarantee"),
        (json!({"pids_max": 0}), "1 to 1000000"),
        (json!({"labels": many(33)}), "33 labels"),
        (json!({"labels": {"bad key": "v"}}), "bad key"),
        (json!({"labels": {"a": "v".repeat(256)}}), "at most 255"),
        (json!({"command": vec!["x"; 257]}), "257 items"),
        (json!({"command": ["x".repeat(40_000)]}), "40000 bytes"),
        (json!({"env": {"A=B": "c"}}), "A=B"),
        (json!({"env": many(257)}), "257 variables"),
        (json!({"publish": [{"host_port": 0, "machine_port": 1}]}), "0:1"),
        (json!({"publish": [{"host_port": 70_000, "machine_port": 1}]}), "70000"),
        (json!({"publish": [{"host_port": 80, "machine_port": 1, "proto": "udp"}]}), "proto"),
        (json!({"publish": [{"host_port": 80, "machine_port": 1, "ip": "nowhere"}]}), "nowhere"),
        (json!({"colour": "red"}), "colour"),
        (json!({"restart": "sometimes"}), "sometimes"),
    ]
}

fn refuses_machines(socket: &Path) {
    let create = format!("POST {MACHINES}");
    let named = |name: &str, spec: Value| json!({"name": name, "spec": spec}).to_string();
    for (mut spec, words) in specs() {
        spec["image"] = json!(IMAGE);
        refused(socket, &create, &named("two", spec), 422, words);
    }
    let plain = json!({"image": IMAGE});
    for name in ["Two!", "", "-a", &"x".repeat(64)] {
        refused(socket, &create, &named(name, plain.clone()), 422, name);
    }
    refused(socket, &create, &"[".repeat(20_000), 422, "sequence");
    refused(socket, &create, r#"{"name":"a","name":"b"}"#, 422, "name");
    refused(socket, &create, &named("one", plain.clone()), 409, "one");
    refused(socket, &create, &named("two", json!({"image": "none"})), 404, "none");
    refused(socket, &create, &named("two", json!({"image": IMAGE, "node": "n9"})), 404, "n9");
    refused(socket, "POST /v1/tenants/nobody/machines", &named("two", plain), 404, "nobody");
    refused(socket, &format!("POST {MACHINES}/nothing/start"), "{}", 404, "nothing");
    refused(socket, &format!("POST {MACHINES}/one/move"), r#"{"to":"n9"}"#, 404, "n9");
    refused(socket, &format!("PATCH {MACHINES}/one"), r#"{"labels":{"bad key":"v"}}"#, 422, "bad key");
    refused(socket, &format!("GET {MACHINES}?limit=many"), "", 422, "many");
    refused(socket, &format!("GET {MACHINES}?state=happy"), "", 422, "happy");
    refused(socket, &format!("GET {MACHINES}?colour=red"), "", 422, "colour");
}

fn refuses_the_rest(socket: &Path) {
    for (request, body, status, words) in [
        ("POST /v1/tokens", r#"{"uses":0}"#, 422, "1 to 5000"),
        ("POST /v1/tokens", r#"{"uses":1000000}"#, 422, "1000000"),
        ("POST /v1/tokens", r#"{"ttl_ms":0}"#, 422, "30 days"),
        ("POST /v1/tokens", r#"{"role":"king"}"#, 422, "king"),
        ("DELETE /v1/tokens/nothing", "{}", 422, "nothing"),
        ("POST /v1/tenants", r#"{"name":"default"}"#, 409, "default"),
        ("POST /v1/tenants", r#"{"name":"UPPER"}"#, 422, "UPPER"),
        ("POST /v1/tenants", r#"{"name":"a","parent":"nobody"}"#, 404, "nobody"),
        ("DELETE /v1/tenants/default", "{}", 409, "1 machine,"),
        ("DELETE /v1/tenants/nobody", "{}", 404, "nobody"),
        ("POST /v1/tenants/default/images", r#"{"name":"x","from_host":["/bin/nothing"]}"#, 404, "/bin/nothing"),
        ("POST /v1/tenants/default/images", r#"{"name":"x","from_host":["bin/sh"]}"#, 422, "bin/sh"),
        ("POST /v1/tenants/default/images", r#"{"name":"x","from_host":["/proc/self"]}"#, 422, "/proc/self"),
        ("POST /v1/tenants/default/images", r#"{"name":"x","from_host":[]}"#, 422, "0"),
        ("DELETE /v1/tenants/default/images/base", "{}", 409, "base"),
        ("DELETE /v1/tenants/default/images/none", "{}", 404, "none"),
        ("POST /v1/nodes/n9/cordon", "{}", 404, "n9"),
        ("POST /v1/nodes/n9/drain", "{}", 404, "n9"),
        ("DELETE /v1/nodes/n9", "{}", 404, "n9"),
        ("DELETE /v1/nodes/n1", "{}", 409, "n1"),
        ("GET /v1/operations/nothing", "", 422, "nothing"),
        ("GET /v1/status?consistency=maybe", "", 422, "maybe"),
        ("POST /v1/self/stop", r#"{"absence_ms":1000000000000}"#, 422, "1000000000000"),
    ] {
        refused(socket, request, body, status, words);
    }
}

#[test]
#[ignore = "needs root and namespaces"]
fn what_cannot_be_is_refused_by_name_and_with_a_next_step() {
    let cluster = Cluster::of(1, "input");
    cluster.pack(0);
    cluster.create(0, "one", &[], IDLE);
    let socket = cluster.lab.host(0).admin_socket();
    refuses_machines(&socket);
    refuses_the_rest(&socket);
    // The node's own keys, by their directory and by one that holds it.
    let data = &cluster.lab.host(0).data_dir;
    for path in [data.as_path(), data.parent().unwrap(), &data.join("admin.token")] {
        let path = path.to_str().unwrap();
        let body = json!({"name": "x", "from_host": [path]}).to_string();
        refused(&socket, "POST /v1/tenants/default/images", &body, 403, path);
    }
    let dry = cluster.cli(0, &["image", "from-host", "dry", "/bin/ls", "--dry-run"]).ok();
    assert!(dry.stderr.contains("would hold"), "{dry:?}");
    assert_eq!(cluster.cli(0, &["image", "list", "-o", "name"]).ok().stdout, format!("{IMAGE}\n"));
    let key = format!("Idempotency-Key: {}", "k".repeat(256));
    let long = http::ask(&socket, "POST", "/v1/tenants", &[&key], r#"{"name":"k"}"#);
    assert_eq!(long.status, 422, "{long:?}");
    assert_eq!(cluster.cli(0, &["tenant", "list", "-o", "name"]).ok().stdout, "default\n", "none of it was done");
    // A token whose answer was lost cannot be told again.
    let make = || http::ask(&socket, "POST", "/v1/tokens", &["Idempotency-Key: once"], "{}");
    assert_eq!(make().status, 201);
    let again = make();
    assert!(
        again.status == 409 && again.json()["hint"].as_str().is_some_and(|hint| hint.contains("revoke")),
        "{again:?}"
    );
    assert_eq!(cluster.cli(0, &["token", "list", "-o", "name"]).ok().stdout.lines().count(), 1);
    assert_eq!(cluster.expect_running_once(0, "one"), 0);
    assert!(!cluster.log(0).contains("panicked"));
}

/// Connections that say nothing: more than the port takes.
const IDLE_CONNECTIONS: usize = 1_200;

#[test]
#[ignore = "needs root and namespaces"]
fn idle_connections_take_the_port_from_nobody_for_long() {
    let cluster = Cluster::of(1, "idle");
    let connect = || TcpStream::connect_timeout(&([127, 0, 0, 1], 7421).into(), Duration::from_secs(2)).ok();
    let held: Vec<_> = cluster.in_network(Some(0), || (0..IDLE_CONNECTIONS).map_while(|_| connect()).collect());
    assert!(held.len() > 1_000, "only {} connections", held.len());
    // The socket has room of its own.
    for _ in 0..10 {
        cluster.cli(0, &["status"]).ok();
    }
    // And who says nothing is sent away, so that the port serves again while they still hold on.
    let words = ["-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:7421/healthz"];
    let served = || (cluster.run_on(0, "curl", &words).stdout == "200").then_some(());
    let ((), took) = poll::until("the port serves strangers again", Duration::from_secs(40), served);
    eprintln!("served after {took:?} beside {} idle connections", held.len());
}
