//! Leases (design section 7): a node's time-bound right to run its exclusive machines.
//!
//! [`Book`] is the leader's side, [`Holder`] the node's. Both are pure: every time is a `CLOCK_BOOTTIME` reading of the
//! node that calls, passed in. The two sides never compare readings; they only count lengths, with rates that differ by
//! at most 1 % each, so the leader waits TTL x 1.03 for what the holder counts as TTL. The holder counts from sending its
//! request, the leader from granting it, which is later.
//!
//! Why no takeover overlaps a lease: a grant follows a ReadIndex round begun after the request arrived, so a deposed
//! leader's last grant was asked for before its successor's first entry was applied; from that moment the successor waits
//! a whole TTL x 1.03 before it judges anybody. A judgement is bound to its term by `apply`. From its proposal until its
//! outcome is applied the owner gets no grant. What the driver owes: it calls [`Book::grant`] only after that ReadIndex
//! round, and proposes a takeover only between [`Book::begin_takeover`] and [`Book::end_takeover`].

use std::collections::BTreeMap;
use std::time::Duration;

use fabric::ids::NodeId;
use fabric::limits::{HEARD_FROM_OWNER, LEASE_FREEZE_MARGIN, LEASE_KILL_MARGIN, LEASE_TTL};
use fabric::records;
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::limits::LEASE_SLACK_PERCENT;

/// A length as the other side's slower clock may count it.
fn with_slack(length: Duration) -> Duration {
    length + length * LEASE_SLACK_PERCENT / 100
}

/// What a leader grants.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantV1 {
    /// Term of the leader.
    pub term: u64,
    /// Length, milliseconds, counted by the holder from the sending of its request.
    pub ttl_ms: u64,
    /// Revision of the holder's placements, by the leader's state after its ReadIndex round: a frozen machine thaws only by
    /// a view at least this new. Entries that change no placement of the holder do not raise it.
    pub revision: u64,
}
/// Current version of a grant.
pub type Grant = GrantV1;
records!(GrantV1 = (103, 1));

/// Why a renewal has no grant. The holder asks again.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum NoGrant {
    /// Another node leads, or nobody.
    #[error("this node does not lead")]
    NotLeading,
    /// The leader has not applied an entry of its own term yet.
    #[error("the leader is too new to grant leases")]
    TooNew,
    /// A takeover from this holder is proposed: its outcome comes first.
    #[error("a takeover from this node is being decided")]
    TakeoverPending,
}

/// Whether an owner may still hold its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does not, and the leader of `term` says so.
    Expired {
        /// The term that a takeover must name.
        term: u64,
    },
    /// It may, until then at least.
    Held {
        /// This node's boot time.
        until: Duration,
    },
    /// This node does not lead, or leads since too short a time to know.
    Unknown,
}

/// What a leader knows of leases in its term.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tenure {
    term: u64,
    /// When an entry of the term was applied here.
    since: Option<Duration>,
    /// Holder -> when it was last granted.
    granted: BTreeMap<NodeId, Duration>,
    /// Owner -> takeovers proposed and not yet decided.
    pending: BTreeMap<NodeId, u32>,
}

/// The leader's side. Every replica keeps one, since each may come to lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    ttl: Duration,
    tenure: Option<Tenure>,
    /// Planned absences: node -> end of the length as this node counts it.
    absent: BTreeMap<NodeId, Duration>,
    /// When this node last heard from another.
    heard: BTreeMap<NodeId, Duration>,
}

impl Default for Book {
    fn default() -> Self {
        Book::new(LEASE_TTL)
    }
}

impl Book {
    /// A book for leases of length `ttl`; tests shorten it.
    pub fn new(ttl: Duration) -> Self {
        Book { ttl, tenure: None, absent: BTreeMap::new(), heard: BTreeMap::new() }
    }

    /// This node leads in `term`. What was granted in other terms is forgotten.
    pub fn lead(&mut self, term: u64) {
        if self.term() != Some(term) {
            self.tenure = Some(Tenure { term, since: None, granted: BTreeMap::new(), pending: BTreeMap::new() });
        }
    }

    /// This node does not lead any more.
    pub fn step_down(&mut self) {
        self.tenure = None;
    }

    /// The term in which this node leads.
    pub fn term(&self) -> Option<u64> {
        self.tenure.as_ref().map(|tenure| tenure.term)
    }

    /// An entry of `term` was applied here at `now`. The first one of the own term counts.
    pub fn applied(&mut self, now: Duration, term: u64) {
        if let Some(tenure) = self.tenure.as_mut().filter(|tenure| tenure.term == term) {
            tenure.since.get_or_insert(now);
        }
    }

    /// Something of `node` arrived: a renewal, an acknowledgement, any request.
    pub fn heard(&mut self, now: Duration, node: NodeId) {
        self.heard.insert(node, now);
    }

    /// A planned absence was applied here, or found in a snapshot. Called on every replica. The node counts its length
    /// from sending the command, so counting from now on is safe even when the entry is old.
    pub fn absence(&mut self, now: Duration, node: NodeId, length: Duration) {
        let until = now + with_slack(length);
        let known = self.absent.entry(node).or_insert(until);
        *known = until.max(*known);
    }

    /// The end of an absence was applied here, and the node itself had asked for it: it counts on its lease alone again.
    /// An end that somebody else declared must not be passed on here, since the node does not know of it.
    pub fn absence_ended(&mut self, node: NodeId) {
        self.absent.remove(&node);
    }

    /// A removed node keeps what it was granted until that ends, and is granted nothing more by its missing certificate.
    /// Forgets what has ended, so that the book does not grow with every node that ever was.
    pub fn sweep(&mut self, now: Duration) {
        let (ttl, kept) = (with_slack(self.ttl), HEARD_FROM_OWNER);
        self.absent.retain(|_, until| *until > now);
        self.heard.retain(|_, at| *at + kept > now);
        if let Some(tenure) = &mut self.tenure {
            tenure.granted.retain(|_, at| *at + ttl > now);
        }
    }

    /// Grants `node` a lease at `now`. Call it only after a ReadIndex round begun after the request's arrival;
    /// `revision` is that of the node's placements in the state applied after that round.
    ///
    /// # Errors
    /// See [`NoGrant`].
    pub fn grant(&mut self, now: Duration, node: NodeId, revision: u64) -> Result<Grant, NoGrant> {
        let ttl_ms = self.ttl.as_millis() as u64;
        let tenure = self.tenure.as_mut().ok_or(NoGrant::NotLeading)?;
        if tenure.since.is_none() {
            return Err(NoGrant::TooNew);
        }
        if tenure.pending.contains_key(&node) {
            return Err(NoGrant::TakeoverPending);
        }
        tenure.granted.insert(node, now);
        Ok(Grant { term: tenure.term, ttl_ms, revision })
    }

    /// Whether a machine may be taken from `owner`. A machine that is not exclusive needs no lease, so only recent signs
    /// of life and a planned absence protect it.
    pub fn judge(&self, now: Duration, owner: NodeId, exclusive: bool) -> Verdict {
        let Some(Tenure { term, since: Some(since), granted, .. }) = &self.tenure else { return Verdict::Unknown };
        let lease = with_slack(self.ttl);
        // Whoever led before may have granted until this leader's first entry was applied.
        if exclusive && now < *since + lease {
            return Verdict::Unknown;
        }
        let ends = [
            granted.get(&owner).filter(|_| exclusive).map(|at| *at + lease),
            self.absent.get(&owner).copied(),
            self.heard.get(&owner).map(|at| *at + HEARD_FROM_OWNER),
        ];
        match ends.into_iter().flatten().max() {
            Some(until) if until > now => Verdict::Held { until },
            _ => Verdict::Expired { term: *term },
        }
    }

    /// Judges, and when the lease has expired holds back renewals of `owner` until [`Book::end_takeover`]. In one step,
    /// so that no renewal comes between. Gives the term that the command must name.
    ///
    /// # Errors
    /// The verdict that forbids a takeover.
    pub fn begin_takeover(&mut self, now: Duration, owner: NodeId, exclusive: bool) -> Result<u64, Verdict> {
        match self.judge(now, owner, exclusive) {
            Verdict::Expired { term } => {
                if let Some(tenure) = &mut self.tenure {
                    *tenure.pending.entry(owner).or_default() += 1;
                }
                Ok(term)
            }
            other => Err(other),
        }
    }

    /// The outcome of one takeover from `owner`, begun in `term`, was applied here, or it was never proposed. A time-out
    /// of the proposal is not an outcome.
    pub fn end_takeover(&mut self, term: u64, owner: NodeId) {
        let Some(tenure) = self.tenure.as_mut().filter(|tenure| tenure.term == term) else { return };
        if let Some(count) = tenure.pending.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                tenure.pending.remove(&owner);
            }
        }
    }
}

/// What an exclusive machine's supervisor does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Leave it alone. A frozen machine thaws only by [`Holder::may_thaw`].
    Run,
    /// Freeze it.
    Freeze,
    /// Kill it unless it is frozen.
    KillUnlessFrozen,
}

/// What the supervisor of an exclusive machine does at `now` under a lease that ends at `deadline`.
pub fn phase(now: Duration, deadline: Duration) -> Phase {
    if now + LEASE_KILL_MARGIN >= deadline {
        Phase::KillUnlessFrozen
    } else if now + LEASE_FREEZE_MARGIN >= deadline {
        Phase::Freeze
    } else {
        Phase::Run
    }
}

/// The node's side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    lease_ends: Option<Duration>,
    absence_ends: Option<Duration>,
    revision: u64,
}

impl Holder {
    /// A grant arrived for the request that was sent at `sent`. Grants may arrive out of order.
    pub fn granted(&mut self, sent: Duration, grant: &Grant) {
        let ends = sent + Duration::from_millis(grant.ttl_ms);
        if self.lease_ends.is_none_or(|known| known < ends) {
            self.lease_ends = Some(ends);
        }
        self.revision = self.revision.max(grant.revision);
    }

    /// The ledger acknowledged a planned absence of this length, whose command was sent at `sent`. It extends a lease
    /// that is alive at `now` and says whether it did: one that has ended may have been taken over before the absence was
    /// written, and only a grant revives it.
    pub fn absent(&mut self, now: Duration, sent: Duration, length: Duration) -> bool {
        let alive = self.deadline().is_some_and(|deadline| now < deadline);
        if alive {
            self.absence_ends = Some(sent + length);
        }
        alive
    }

    /// This node is back: it counts on its lease alone. Before the end of the absence is written to the ledger, since the
    /// leader stops counting on it then. Supervisors get the shorter deadline first.
    pub fn returned(&mut self) {
        self.absence_ends = None;
    }

    /// When the right to run ends; none when there never was one.
    pub fn deadline(&self) -> Option<Duration> {
        self.lease_ends.max(self.absence_ends)
    }

    /// Whether a frozen machine may go on: the lease is alive, and a view of the ledger at least as new as the last change
    /// of this node's placements before the grant (`view`, an index) names this node as owner in the machine's epoch.
    pub fn may_thaw(&self, now: Duration, view: u64, named_owner: bool) -> bool {
        let alive = self.deadline().is_some_and(|deadline| phase(now, deadline) == Phase::Run);
        alive && named_owner && view >= self.revision
    }
}

#[cfg(test)]
mod tests;
