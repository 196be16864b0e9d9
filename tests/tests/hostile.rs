//! Bad input at the real sockets: each a clear error, and the node goes on.

use std::io::Write;
use std::time::Duration;

use smartnode_tests::http::{self, Answer};
use smartnode_tests::{Cluster, poll, smartnode};

#[test]
#[ignore = "needs root and namespaces"]
fn the_admin_port_refuses_what_is_huge_slow_or_unknown() {
    let cluster = Cluster::of(1, "http");
    let socket = cluster.lab.host(0).admin_socket();
    let collection = "/v1/tenants/default/machines";

    let unknown = http::ask(&socket, "POST", collection, &[], r#"{"name":"a","spec":{"image":"i","colour":"red"}}"#);
    assert_eq!(unknown.status, 422, "{unknown:?}");
    assert!(unknown.body.contains("colour"), "{unknown:?}");
    for broken in ["", "{", "[]", "null", "\u{0}", r#"{"name":7}"#] {
        let answer = http::ask(&socket, "POST", collection, &[], broken);
        assert!((400..500).contains(&answer.status), "{broken:?}: {answer:?}");
        assert!(answer.head.to_lowercase().contains("application/problem+json"), "{broken:?}: {answer:?}");
    }

    let head = |length: usize| {
        format!(
            "POST {collection} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    };
    let mut stream = http::open(&socket, &head(1 << 40));
    let huge = Answer::read(&mut stream);
    assert_eq!(huge.status, 413, "{huge:?}");
    // Its whole head and a byte of its body, and then nothing: cut off by the port.
    let mut slow = http::open(&socket, &head(100));
    slow.write_all(b"{").expect("the port reads");
    // Half a head, to be cut off as well; until then others are served.
    let half = http::open(&socket, "POST /v1/ten");
    assert_eq!(http::ask(&socket, "GET", "/v1/status", &[], "").status, 200);
    let answer = Answer::read(&mut slow);
    assert_eq!(answer.status, 408, "{answer:?}");
    drop(half);
    assert_eq!(http::ask(&socket, "GET", "/v1/nothing", &[], "").status, 404);
    assert_eq!(http::ask(&socket, "TRACE", "/v1/status", &[], "").status, 405);
    cluster.cli(0, &["status"]).ok();
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_local_user_without_rights_is_told_so() {
    let cluster = Cluster::of(1, "user");
    let host = cluster.lab.host(0);
    let socket = format!("unix:{}", host.admin_socket().display());
    let program = smartnode();
    let program = program.to_str().unwrap();
    let ask = |arguments: &[&str]| {
        let words = ["--reuid=65534", "--regid=65534", "--clear-groups", program, "--admin", &socket];
        cluster.run_on(0, "setpriv", &[&words[..], arguments].concat())
    };
    for arguments in [&["status"][..], &["token", "create"], &["machine", "list"], &["stop"]] {
        let reply = ask(arguments);
        // Denied by the port or by the kernel, on the way to the program or the socket.
        assert!(matches!(reply.code, 4 | 126 | 127) || reply.stderr.contains("denied"), "{reply:?}");
    }
    // At the TCP port nobody is known by name.
    for path in ["/v1/status", "/v1/tokens", "/v1/tenants/default/machines"] {
        let words = ["-s", "-o", "/dev/null", "-w", "%{http_code}", &format!("http://127.0.0.1:7421{path}")];
        assert_eq!(cluster.run_on(0, "curl", &words).stdout, "401", "{path}");
    }
    let words =
        ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: evil.example", "http://127.0.0.1:7421/v1/status"];
    let foreign = cluster.run_on(0, "curl", &words).stdout;
    assert!(matches!(foreign.as_str(), "400" | "403" | "421"), "{foreign}");
    for name in ["node.key", "admin.token", "node.crt"] {
        let mode = cluster.run_on(0, "stat", &["-c", "%a %n", host.data_dir.join(name).to_str().unwrap()]).ok().stdout;
        assert!(mode.starts_with("600 "), "{mode}");
    }
    cluster.cli(0, &["status"]).ok();
}

#[test]
#[ignore = "needs root and namespaces"]
fn garbage_at_the_fabric_port_changes_nothing() {
    let cluster = Cluster::of(2, "noise");
    // From the switch, where no node lives.
    let script = format!(
        "for i in $(seq 1 2000); do head -c $((i % 1400 + 1)) /dev/urandom > /dev/udp/{}/7420; done",
        cluster.lab.host(0).address
    );
    let namespace = format!("--net=/run/netns/{}", cluster.lab.switch());
    let mut noise = std::process::Command::new("nsenter")
        .args([&namespace, "bash", "-c", &script])
        .spawn()
        .expect("a source of noise");
    poll::until("the noise ends", Duration::from_secs(60), || {
        for at in 0..2 {
            // On a busy host one may be suspected for a moment; none may be given up.
            let nodes = cluster.cli(at, &["node", "list", "-o", "json"]).ok().json();
            assert!(!nodes.to_string().contains(r#""liveness":"down""#), "n{} under noise: {nodes}", at + 1);
        }
        noise.try_wait().expect("it is ours")
    });
    cluster.cli(1, &["tenant", "create", "calm"]).ok();
    assert!(!cluster.log(0).contains("panicked"));
}
