//! Who is at the fabric's port without belonging there: handshakes that never end, and a member that talks nonsense.
#![expect(clippy::disallowed_methods, reason = "runs a peer of its own beside the daemons")]

use std::sync::{Arc, RwLock};
use std::time::Duration;

use fabric::identity::{Credentials, NodeKey, Trust};
use fabric::ids::NodeId;
use fabric::model::{Capacity, Labels};
use fabric::rpc::{CallError, Rpc};
use fabric::seams::real;
use fabric::token::JoinToken;
use fabric::transport::join::{self, JoinError, Joiner};
use fabric::transport::{Handlers, Transport, TransportConfig};
use fabric::wire;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use smartnode_tests::{Cluster, poll};

/// Handshakes begun and never finished, in all and at once.
const HALF_OPEN: usize = 2_000;
const AT_ONCE: usize = 1_000;
/// More memory than this must not go to strangers (a debug build with its logs, and room for chance).
const MEMORY_KIB: u64 = 64 * 1024;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Resident memory of a daemon in KiB.
fn memory_kib(cluster: &Cluster, at: usize) -> u64 {
    let pid = cluster.lab.daemon_pid(at).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
#[ignore = "needs root and namespaces"]
fn handshakes_that_never_end_take_nothing_from_the_others() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut cluster = Cluster::hosts(3, "half");
    cluster.init();
    let text = cluster.token(1);
    let token: JoinToken = text.parse().unwrap();
    let peer = (cluster.lab.host(0).address, 7420).into();
    // The third host hears nothing of what the first one answers.
    cluster.lab.cut(0, 2).unwrap();
    let before = memory_kib(&cluster, 0);
    let keys = cluster.path("stranger");
    let knock = || {
        let seams = real::seams(&keys).unwrap();
        let key = NodeKey::load_or_generate(&*seams.disk, &*seams.entropy).unwrap();
        let joiner = Joiner {
            name: "stranger".parse().unwrap(),
            address: "10.77.0.99:7420".parse().unwrap(),
            capacity: Capacity::default(),
            zone: String::new(),
            labels: Labels::new(),
        };
        runtime().block_on(async {
            for _ in 0..HALF_OPEN / AT_ONCE {
                let asked = (0..AT_ONCE).map(|_| join::ask(&seams, peer, &token, &key, joiner.clone()));
                for answer in futures_util::future::join_all(asked).await {
                    assert!(matches!(answer, Err(JoinError::Unreachable { .. })), "{answer:?}");
                }
            }
        });
    };
    std::thread::scope(|scope| {
        let strangers = scope.spawn(|| cluster.in_network(Some(2), knock));
        poll::until("the strangers give up", Duration::from_secs(120), || {
            // Meanwhile the node serves its users.
            cluster.cli(0, &["status"]).ok();
            strangers.is_finished().then_some(())
        });
        strangers.join().unwrap();
    });
    let grown = memory_kib(&cluster, 0).saturating_sub(before);
    assert!(grown < MEMORY_KIB, "{grown} KiB went to strangers");
    // And a host that is honest gets in, with the use that nobody has burnt.
    cluster.join(1, &text);
    cluster.wait_ready(1);
    cluster.wait_members(2);
    assert!(!cluster.log(0).contains("panicked"));
}

/// Requests that members know, and some that nobody does.
const KINDS: [u16; 19] =
    [0, 1, 20, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 300, 301, 302, 350, 999, u16::MAX];

/// Bodies that no program of ours would send.
fn nonsense() -> Vec<Vec<u8>> {
    let frame = |change: fn(&mut Vec<u8>)| {
        let mut frame = vec![0; wire::HEADER_BYTES + 64];
        frame[..4].copy_from_slice(&wire::MAGIC);
        frame[4] = wire::PROTOCOL as u8;
        frame[12] = 64;
        change(&mut frame);
        frame
    };
    vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 1 << 20],
        frame(|_| ()),
        frame(|frame| frame[4] = 2),
        frame(|frame| frame[8] = 200),
        frame(|frame| frame[12..16].copy_from_slice(&u32::MAX.to_le_bytes())),
        frame(|frame| frame.truncate(20)),
    ]
}

/// Says every nonsense as every request, datagram and message: how often it was refused, and what was not.
async fn babble(transport: &Transport, to: NodeId) -> (usize, Vec<String>) {
    let (mut refused, mut odd) = (0, Vec::new());
    for body in nonsense() {
        for kind in KINDS {
            match transport.call(to, kind, body.clone(), Duration::from_secs(5)).await {
                Err(CallError::Refused(refusal)) if !refusal.message.is_empty() => refused += 1,
                other => odd.push(format!("{kind} with {} bytes: {other:?}", body.len())),
            }
            let _ = transport.send_uni(to, kind, &body, Duration::from_secs(5)).await;
        }
        transport.send_datagram(to, body.into());
    }
    (refused, odd)
}

#[test]
#[ignore = "needs root and namespaces"]
fn a_member_that_talks_nonsense_is_answered_and_harms_nobody() {
    let mut cluster = Cluster::of(3, "babble");
    let leader = cluster.leader(0);
    let liar = cluster.other_than(&[leader]);
    let third = cluster.other_than(&[leader, liar]);
    cluster.stop(liar);
    let id = cluster.cli(leader, &["status", "-o", "json"]).ok().json()["node_id"].as_str().unwrap().to_owned();
    let to: NodeId = id.parse().unwrap();
    let data = cluster.lab.host(liar).data_dir.clone();
    let (from, address) = (cluster.lab.host(liar).address, cluster.lab.host(leader).address);
    // The stopped member's own certificate opens every door; what is said there is another matter.
    let (refused, odd) = cluster.in_network(Some(liar), || {
        let seams = real::seams(&data).unwrap();
        let key = NodeKey::load(&*seams.disk).unwrap().unwrap();
        let credentials = Credentials::load(&*seams.disk, key).unwrap().unwrap();
        let trust = Arc::new(RwLock::new(Trust::load(&*seams.disk).unwrap().unwrap()));
        runtime().block_on(async {
            let config = TransportConfig { listen: (from, 7420).into() };
            let transport = Transport::start(&config, &seams, &credentials, trust, Handlers::default()).unwrap();
            transport.learn(to, (address, 7420).into());
            let told = babble(&transport, to).await;
            transport.close().await;
            told
        })
    });
    eprintln!("{refused} refusals; otherwise: {odd:?}");
    // What needs no words is answered whatever the words are (the tombstones, a status): never a time-out or a cut.
    let cut = odd.iter().filter(|said| !said.contains("Ok(")).collect::<Vec<_>>();
    assert!(cut.is_empty(), "{cut:?}");
    assert!(refused > KINDS.len() * nonsense().len() / 2, "{refused} refusals");
    assert_eq!(cluster.leader(third), leader, "the leader is the same");
    cluster.cli(third, &["tenant", "create", "calm"]).ok();
    for at in [leader, third] {
        assert!(!cluster.log(at).contains("panicked"), "{}", cluster.log(at));
    }
    cluster.start(liar);
    cluster.wait_ready(liar);
    cluster.wait_tolerance(liar);
}
