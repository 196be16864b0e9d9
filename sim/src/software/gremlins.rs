//! A gremlin at every node sends its peers what no program of ours would, over connections that they accept: noise, frames
//! with a good checksum around noise, proper questions about nothing that there is and with a flipped bit under a good
//! checksum, datagrams of noise, streams that end in their middle. In the calm it asks them proper questions, which they
//! must answer.
//!
//! The judgement is `invariants/garbage.rs`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::ids::{Digest, MachineId, NodeId};
use fabric::membership::link::GOSSIP;
use fabric::rpc::{CallError, Kind, Rpc};
use fabric::transport::{Class, Transport};
use fabric::wire;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use smartnode::node::Node;
use smartnode::node::asks::{
    CONNECT, ConnectAskV1, EXEC, ExecAskV1, LOGS, LogsAskV1, NAMED, NamedAskV1, ROOM, RoomAskV1, STATUS, StatusAskV1,
};
use tokio::time::sleep;

use crate::actor::{Boot, HostId};
use crate::invariants::garbage::Garbage;
use crate::software::roster::Roster;

/// Pause between two pranks of one gremlin.
const PAUSE: Duration = Duration::from_millis(900);
/// How long it waits for what comes of one.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long a proper question may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Most bytes of a prank.
const BYTES_MAX: usize = 2_000;
/// A frame's head up to its checksum.
const HEAD_BYTES: usize = wire::HEADER_BYTES - 32;
/// Types of messages, and one more.
const TYPES: std::ops::Range<u16> = 0..400;

/// The gremlins. Clones share what they know.
#[derive(Debug, Clone)]
pub struct Gremlins {
    roster: Roster,
    garbage: Arc<Mutex<Garbage>>,
}

impl Gremlins {
    /// Gremlins among these hosts.
    pub fn new(roster: Roster) -> Self {
        Gremlins { roster, garbage: Arc::default() }
    }

    fn garbage(&self) -> MutexGuard<'_, Garbage> {
        self.garbage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works at one node until its boot ends.
    pub async fn work(&self, boot: &Boot, node: &Node) {
        let transport = &node.context().transport;
        let mut rng = StdRng::seed_from_u64(boot.seed ^ 3);
        loop {
            sleep(PAUSE).await;
            let others = self.roster.others(boot.host);
            let Some((_, peer)) = others.choose(&mut rng).copied() else { continue };
            if boot.recorder.world_us() < boot.calm_us {
                prank(transport, peer, &mut rng).await;
                self.garbage().sent();
                continue;
            }
            let mut answered = BTreeSet::new();
            for (host, peer) in others {
                if answers(transport, peer).await {
                    answered.insert(host);
                }
            }
            boot.recorder.event(format_args!("is answered by {answered:?}"));
            self.garbage().answered(boot.host, answered);
        }
    }

    /// After the calm: what does not hold of the hosts in `up`.
    pub fn verdict(&self, up: &[HostId]) -> Vec<String> {
        self.garbage().check(up)
    }

    /// Pranks that were played.
    pub fn played(&self) -> u64 {
        self.garbage().count()
    }
}

/// Whether a peer gives what every node answers, and refuses in words a stream that every node refuses.
async fn answers(transport: &Transport, peer: NodeId) -> bool {
    let question = wire::encode(&StatusAskV1 { machines: Vec::new() });
    let answer = transport.call(peer, STATUS, question, ANSWER).await;
    let stream = transport.open(peer, Class::Session, LOGS, vec![0], ANSWER).await;
    answer.is_ok() && matches!(&stream, Err(CallError::Refused(refusal)) if refusal.code != "busy")
}

fn noise(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..BYTES_MAX)];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// A frame of this type with a good checksum around any body: what its reader gets to see of it is up to the types.
fn framed(message: u16, body: &[u8]) -> Vec<u8> {
    let mut head = wire::MAGIC.to_vec();
    for word in [wire::PROTOCOL, message, 1, 0] {
        head.extend_from_slice(&word.to_le_bytes());
    }
    head.extend_from_slice(&(body.len() as u32).to_le_bytes());
    sealed(&head, body)
}

fn sealed(head: &[u8], body: &[u8]) -> Vec<u8> {
    let sum = *blake3::Hasher::new().update(head).update(body).finalize().as_bytes();
    [head, &sum, body].concat()
}

/// Nearly a proper question: about what there is not, and half of the time with a flipped bit under a good checksum.
fn question(rng: &mut StdRng) -> (Kind, Vec<u8>) {
    let machine = MachineId(rng.random());
    let (kind, frame) = match rng.random_range(0..6) {
        0 => (STATUS, wire::encode(&StatusAskV1 { machines: vec![machine; rng.random_range(0..3_000)] })),
        1 => (ROOM, wire::encode(&RoomAskV1 { machine })),
        2 => (NAMED, wire::encode(&NamedAskV1 { images: vec![Digest(rng.random()); rng.random_range(0..500)] })),
        3 => {
            (EXEC, wire::encode(&ExecAskV1 { machine, argv: vec![String::new(); rng.random_range(0..9)], stdin: true }))
        }
        4 => (LOGS, wire::encode(&LogsAskV1 { machine, tail: Some(rng.random()), follow: true })),
        _ => (CONNECT, wire::encode(&ConnectAskV1 { machine, port: rng.random() })),
    };
    let (head, mut body) = (&frame[..HEAD_BYTES], frame[wire::HEADER_BYTES..].to_vec());
    if rng.random_bool(0.5) && !body.is_empty() {
        let at = rng.random_range(0..body.len());
        body[at] ^= 1 << rng.random_range(0..8);
    }
    (kind, sealed(head, &body))
}

/// Something that a peer must be able to bear.
async fn prank(transport: &Transport, peer: NodeId, rng: &mut StdRng) {
    let kind = match rng.random_range(0..4) {
        0 => GOSSIP,
        1 => rng.random_range(300..310),
        2 => rng.random_range(340..360),
        _ => rng.random_range(98..116),
    };
    let (kind, body) = match rng.random_range(0..3) {
        0 => (kind, noise(rng)),
        1 => (kind, framed(rng.random_range(TYPES), &noise(rng))),
        _ => question(rng),
    };
    match rng.random_range(0..4) {
        0 => drop(transport.call(peer, kind, body, PATIENCE).await),
        1 => drop(transport.send_uni(peer, kind, &body, PATIENCE).await),
        2 => transport.send_datagram(peer, body.into()),
        _ => drop(transport.open(peer, Class::Session, kind, body, PATIENCE).await),
    }
}
