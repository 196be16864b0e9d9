//! Serves spares, and as a spare follows: the long-polled view of what concerns this node, and a copy of the whole state
//! (without CA keys) for reads, fetched when asked for.
//!
//! Both travel as pages of a blob named by its digest, so that one scheme serves any size, resumes, and tells "nothing
//! new" in one small answer.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use fabric::ids::{Digest, NodeId};
use fabric::limits::CHUNK_BYTES;
use fabric::model::Role;
use fabric::rpc::{Peer, Refusal};
use fabric::wire;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::messages::{PAGE, PageRequestV1, PageV1, SubjectV1};
use super::{Inner, Ledger, LedgerError, Part, Replica};
use crate::codes;
use crate::feed::{Blob, Frames, LedgerMember, Mine};
use crate::snapshot::{CaKeys, Reader};
use crate::state::State;
use crate::store::encode_state;
use crate::tuning::{
    CUT_OFF, FEED_WAIT, FULL_COPY_EVERY, NEWS_PAUSE, PAGE_TIMEOUT, READ_TIMEOUT, REPLICA_BYTES_MAX, RETRY_MAX,
    RETRY_MIN,
};
use crate::types::Member;

/// What is known of the page that is wanted next.
struct Want {
    subject: SubjectV1,
    known: (u64, u64),
    have: Option<Digest>,
    min_index: u64,
    wait: Duration,
}

/// A subject as it was fetched.
struct Fetched {
    at: (u64, u64),
    at_ms: u64,
    digest: Digest,
    /// None when it is what this node has already.
    bytes: Option<Vec<u8>>,
}

impl Ledger {
    /// The records that concern this node, from its own copy or, on a spare, from its feed.
    pub fn mine(&self) -> Mine {
        let fed = self.inner.view.borrow().clone();
        let own = self.inner.own_view(self.inner.me);
        if own.at >= fed.at { own } else { (*fed).clone() }
    }

    /// On a spare: makes sure that what [`Ledger::read`] looks at is at most `age` old. Elsewhere there is nothing to do.
    ///
    /// # Errors
    /// When no voter or standby gave a copy within 5 s. A worker gets none.
    pub async fn refresh(&self, age: Duration) -> Result<(), LedgerError> {
        self.inner.refresh(age, 0).await
    }
}

impl Inner {
    fn members(&self) -> Vec<LedgerMember> {
        let machine = self.shared.read();
        let member = |node: NodeId, joined: &String, voter: bool| LedgerMember {
            node,
            address: machine.state.nodes.get(&node).map_or_else(|| joined.clone(), |record| record.address.clone()),
            voter,
        };
        let voters: BTreeSet<Member> = machine.membership.voter_ids().collect();
        let nodes = machine.membership.nodes();
        nodes.map(|(id, joined)| member(id.0, joined, voters.contains(id))).collect()
    }

    fn own_view(&self, node: NodeId) -> Mine {
        let members = self.members();
        let machine = self.shared.read();
        Mine::of(&machine.state, node, machine.at(), members)
    }

    /// Serves [`PAGE`].
    pub(super) async fn serve_page(&self, peer: Peer, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let asked: PageRequestV1 =
            wire::decode(body).map_err(|error| Refusal::new(codes::INVALID, error.to_string()))?;
        if self.part() == Part::Spare {
            return Err(Refusal::new(codes::SPARE, "this node is outside Raft itself"));
        }
        if asked.subject == SubjectV1::State && peer.role != Role::Voter {
            return Err(Refusal::new(codes::DENIED, "a worker is told what concerns itself, and no more"));
        }
        // Who hears no leader holds what a spare waits for no more, and would hold the spare itself back.
        let cut_off = self.staleness().is_none_or(|age| age > CUT_OFF);
        if asked.subject == SubjectV1::Mine && cut_off {
            return Err(Refusal::new(codes::BEHIND, "this node hears no leader"));
        }
        let later_page = asked.have.filter(|_| asked.offset > 0).and_then(|digest| self.blobs().find(digest));
        let blob = match later_page {
            Some(blob) => blob,
            None => {
                let deadline = Instant::now() + Duration::from_millis(asked.wait_ms).min(FEED_WAIT);
                self.wait_for(asked.known.1.max(asked.min_index)).await?;
                self.next_blob(peer, &asked, deadline).await
            }
        };
        if blob.at < asked.known {
            return Err(Refusal::new(codes::BEHIND, "this node's copy is older than what you have"));
        }
        Ok(wire::encode(&page(&blob, &asked)))
    }

    async fn wait_for(&self, index: u64) -> Result<(), Refusal> {
        let waited = self.wait_applied(index, Instant::now() + PAGE_TIMEOUT / 2).await;
        waited.map_err(|_| Refusal::new(codes::BEHIND, "this node's copy is older than what you ask for"))
    }

    /// The subject's blob: at once when it is not what the peer has, else when it changes, at the latest at `deadline`.
    async fn next_blob(&self, peer: Peer, asked: &PageRequestV1, deadline: Instant) -> Blob {
        let mut applied = self.shared.applied.subscribe();
        loop {
            applied.mark_unchanged();
            let blob = match asked.subject {
                SubjectV1::Mine => self.view_blob(peer.id),
                SubjectV1::State => self.state_blob(asked.min_index).await,
            };
            let news = asked.have != Some(blob.digest) || asked.subject == SubjectV1::State;
            if news || timeout_at(deadline, applied.changed()).await.is_err() {
                return blob;
            }
            // Entries come in bursts; one look at the end of each is enough.
            sleep(RETRY_MAX / 4).await;
        }
    }

    fn view_blob(&self, node: NodeId) -> Blob {
        let view = self.own_view(node);
        let bytes = Bytes::from(view.encode());
        let blob = Blob { at: view.at, at_ms: view.at_ms, digest: Mine::digest(&bytes), bytes };
        self.blobs().keep(blob.clone());
        blob
    }

    /// A copy of the state without CA keys, made at most a few times a second unless a newer one is needed.
    async fn state_blob(&self, min_index: u64) -> Blob {
        let recent = *self.full.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((made, digest)) = recent
            && let Some(blob) = self.blobs().find(digest)
            && blob.at.1 >= min_index
            && (made.elapsed() < FULL_COPY_EVERY || blob.at == self.shared.read().at())
        {
            return blob;
        }
        let (at, state) = {
            let machine = self.shared.read();
            (machine.at(), machine.state.records())
        };
        let chunks = encode_state(&state, CaKeys::Without).await.chunks;
        let bytes = Bytes::from(chunks.concat());
        let blob = Blob { at, at_ms: state.settings.at_ms, digest: Digest::of(&bytes), bytes };
        self.blobs().keep(blob.clone());
        *self.full.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((Instant::now(), blob.digest));
        blob
    }

    /// Fetches all pages of a subject from `target`.
    async fn fetch(&self, target: NodeId, want: &Want) -> Option<Fetched> {
        let mut request = PageRequestV1 {
            subject: want.subject,
            known: want.known,
            have: want.have,
            min_index: want.min_index,
            wait_ms: want.wait.as_millis() as u64,
            offset: 0,
        };
        let mut bytes: Vec<u8> = Vec::new();
        let deadline = want.wait + PAGE_TIMEOUT;
        loop {
            let answer = self.rpc.call(target, PAGE, wire::encode(&request), deadline).await.ok()?;
            let page: PageV1 = wire::decode(&answer).ok()?;
            if page.at < want.known || page.total > REPLICA_BYTES_MAX {
                return None;
            }
            if request.offset == 0 && want.have == Some(page.digest) {
                return Some(Fetched { at: page.at, at_ms: page.at_ms, digest: page.digest, bytes: None });
            }
            if request.have != Some(page.digest) || page.offset != bytes.len() as u64 {
                if page.offset != 0 {
                    return None;
                }
                bytes.clear();
            }
            bytes.extend_from_slice(&page.data);
            if bytes.len() as u64 >= page.total {
                let whole = bytes.len() as u64 == page.total && Digest::of(&bytes) == page.digest;
                let PageV1 { at, at_ms, digest, .. } = page;
                return whole.then_some(Fetched { at, at_ms, digest, bytes: Some(bytes) });
            }
            if page.data.is_empty() {
                return None;
            }
            request = PageRequestV1 { have: Some(page.digest), offset: bytes.len() as u64, wait_ms: 0, ..request };
        }
    }

    /// The members but this node, by the newer of what it was told as a spare and of its own log.
    pub(super) fn members_known(&self) -> Vec<NodeId> {
        let view = self.view.borrow().clone();
        let mut members: Vec<NodeId> = if view.at > self.shared.read().at() {
            view.members.iter().map(|member| member.node).collect()
        } else {
            self.server_metrics().membership_config.nodes().map(|(member, _)| member.0).collect()
        };
        members.retain(|node| *node != self.me);
        members
    }

    /// Whom a spare asks, those that were told to be members first.
    pub(super) fn sources(&self) -> Vec<NodeId> {
        let mut sources: Vec<NodeId> = self.view.borrow().members.iter().map(|member| member.node).collect();
        let hints = self.surroundings.ledger_nodes();
        let members = self.server_metrics().membership_config.nodes().map(|(member, _)| member.0).collect::<Vec<_>>();
        for node in hints.into_iter().chain(members) {
            if !sources.contains(&node) {
                sources.push(node);
            }
        }
        sources.retain(|node| *node != self.me);
        sources
    }

    pub(super) async fn refresh(&self, age: Duration, min_index: u64) -> Result<(), LedgerError> {
        let fresh = |ledger: &Inner| {
            let replica = ledger.replica();
            replica.as_ref().is_some_and(|copy| copy.fetched.elapsed() <= age && copy.at.1 >= min_index)
        };
        if self.part() != Part::Spare || fresh(self) {
            return Ok(());
        }
        if self.role == Role::Worker {
            return Err(LedgerError::Refused(Refusal::new(codes::DENIED, "a worker has no copy of the whole ledger")));
        }
        let fetching = async {
            // One fetch at a time; those who waited for it find a fresh copy.
            let Ok(_permit) = self.fetching.acquire().await else { return false };
            if fresh(self) {
                return true;
            }
            for target in self.sources() {
                if self.refresh_from(target, min_index).await {
                    return true;
                }
            }
            false
        };
        match timeout(READ_TIMEOUT, fetching).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => {
                Err(LedgerError::NoLeader { after: READ_TIMEOUT, unreachable: self.unreachable_voters() })
            }
        }
    }

    async fn refresh_from(&self, target: NodeId, min_index: u64) -> bool {
        let (known, have) = self.replica().as_ref().map_or(((0, 0), None), |copy| (copy.at, Some(copy.digest)));
        let asked = Instant::now();
        let want = Want { subject: SubjectV1::State, known, have, min_index, wait: Duration::ZERO };
        let Some(Fetched { at, digest, bytes, .. }) = self.fetch(target, &want).await else { return false };
        let state = match bytes {
            None => None,
            Some(bytes) => match read_state(&bytes) {
                Some(state) => Some(state),
                None => return false,
            },
        };
        let mut replica = self.replica();
        match (state, replica.as_mut()) {
            (Some(state), _) => {
                *replica = Some(Arc::new(Replica { at, digest, fetched: asked, state: Arc::new(state) }))
            }
            (None, Some(copy)) => {
                let state = copy.state.clone();
                *copy = Arc::new(Replica { at, digest, fetched: asked, state });
            }
            (None, None) => return false,
        }
        drop(replica);
        self.saw(at.1);
        true
    }

    /// One round of the feed, for a view of `min_index` at least: whether it was answered.
    async fn follow_once(&self, target: NodeId, min_index: u64, wait: Duration) -> bool {
        let (known, have) = {
            let view = self.view.borrow();
            (view.at, (view.at != (0, 0)).then(|| Mine::digest(&view.encode())))
        };
        let want = Want { subject: SubjectV1::Mine, known, have, min_index, wait };
        let Some(fetched) = self.fetch(target, &want).await else { return false };
        self.heard_feed();
        self.take_in(&fetched) && self.show(fetched.at).await
    }

    /// Makes a page's view this node's, unless it has a newer one by now: the feed and a read that is in a hurry ask side
    /// by side. Without bytes it is the one that was here when the page was asked for. Whether this node knows as much now.
    fn take_in(&self, fetched: &Fetched) -> bool {
        let Fetched { at, at_ms, digest, ref bytes } = *fetched;
        let _alone = self.taking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = self.view.borrow().clone();
        if at <= known.at {
            return true;
        }
        let Some(bytes) = bytes else {
            if Mine::digest(&known.encode()) != digest {
                return false; // another came in between, and what this page confirms is gone
            }
            self.publish(Mine { at, at_ms, ..(*known).clone() });
            return true;
        };
        let Ok(view) = Mine::decode((at, at_ms), bytes) else { return false };
        // On disk before anybody acts on it: a restart must not fall behind what was acted on.
        if let Err(error) = view.save(&*self.disk, self.me) {
            tracing::warn!(%error, "the feed's view could not be kept");
            return false;
        }
        self.publish(view);
        true
    }

    /// Readers first, then those who wait for the view.
    fn publish(&self, view: Mine) {
        self.keep_fed(&view);
        self.view.send_replace(Arc::new(view));
    }

    /// On a worker: returns once its view is of `index` at least. The feed tells of changes alone, and an index may come
    /// with none, so the members are asked, whoever led last before the others.
    pub(super) async fn wait_fed(&self, index: u64, deadline: Instant) -> Result<(), LedgerError> {
        let reached = |ledger: &Inner| ledger.view.borrow().at.1 >= index;
        let asking = async {
            while !reached(self) {
                // One asks for all: those who waited for it find what they need.
                let Ok(_permit) = self.fetching.acquire().await else { return };
                let hint = self.heard().hint;
                let others = self.sources().into_iter().filter(|source| Some(*source) != hint);
                for target in hint.into_iter().chain(others) {
                    if reached(self) || self.follow_once(target, index, Duration::ZERO).await {
                        break;
                    }
                }
                if !reached(self) {
                    sleep(RETRY_MIN).await;
                }
            }
        };
        let mut view = self.view.subscribe();
        let fed = view.wait_for(|view| view.at.1 >= index);
        let waiting = async {
            tokio::select! { biased;
                _ = fed => {}
                () = asking => {}
            }
        };
        let late = |_| LedgerError::NoLeader { after: READ_TIMEOUT, unreachable: self.unreachable_voters() };
        timeout_at(deadline, waiting).await.map_err(late)
    }

    /// Makes [`Ledger::read`] as new as the feed, and says so only then: whether it is. A node that never had more than the
    /// feed reads that; whoever reads a whole copy has it fetched anew.
    async fn show(&self, at: (u64, u64)) -> bool {
        if self.replica().is_none() && self.shared.read().applied.is_none() {
            self.saw(at.1);
            return true;
        }
        self.refresh(Duration::MAX, at.1).await.is_ok()
    }
}

fn read_state(bytes: &[u8]) -> Option<State> {
    let mut reader = Reader::default();
    for frame in Frames(bytes) {
        reader.push(frame.ok()?).ok()?;
    }
    reader.finish().ok()
}

fn page(blob: &Blob, asked: &PageRequestV1) -> PageV1 {
    // A page of another blob than the peer began with starts that one anew.
    let same = asked.have == Some(blob.digest);
    let offset = if same { asked.offset } else { 0 };
    let rest = blob.bytes.get(offset as usize..).unwrap_or_default();
    let data = if same && asked.offset == 0 { Vec::new() } else { rest[..rest.len().min(CHUNK_BYTES)].to_vec() };
    PageV1 { at: blob.at, at_ms: blob.at_ms, digest: blob.digest, total: blob.bytes.len() as u64, offset, data }
}

/// While this node is a spare: follows the feed of whoever answers.
pub(super) async fn follow(inner: Weak<Inner>) {
    let mut turn = 0;
    let mut pause = RETRY_MAX;
    loop {
        let Some(ledger) = inner.upgrade() else { return };
        let sources = if ledger.part() == Part::Spare { ledger.sources() } else { Vec::new() };
        let answered = match sources.get(turn % sources.len().max(1)) {
            Some(target) => ledger.follow_once(*target, 0, FEED_WAIT).await,
            None => false,
        };
        drop(ledger);
        if answered {
            pause = RETRY_MAX;
        } else {
            turn += 1;
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX * 8);
        }
    }
}

/// Passes on the index of what was applied here to those who watch for news: at once, and while entries come in bursts
/// every `NEWS_PAUSE`, since each of the many watchers looks at the state every time.
pub(super) async fn tell(inner: Weak<Inner>) {
    let Some(mut applied) = inner.upgrade().map(|ledger| ledger.shared.applied.subscribe()) else { return };
    while applied.changed().await.is_ok() {
        let index = *applied.borrow_and_update();
        let Some(ledger) = inner.upgrade() else { return };
        ledger.saw(index);
        drop(ledger);
        sleep(NEWS_PAUSE).await;
    }
}
