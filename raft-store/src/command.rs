//! What may be asked of the ledger, by whom, and what it answers.
//!
//! These are the entries of the Raft log, so they are immutable once released: a change is a `...V2` beside them.
//! Nothing here decides; `state` does. Ids and secrets in a command were drawn by the node that received the request,
//! because the state machine may not draw.

#![expect(missing_docs, reason = "rkyv's derive makes undocumented structs of an enum's variants")]

use std::fmt;

use fabric::human::count;
use fabric::ids::{ClusterId, Digest, IdempotencyKey, MachineId, MoveId, NodeId, TokenId};
use fabric::model::{Capacity, Desired, Labels, MachineSpec, Name, NodeRecord, Quota, Role, Tombstone};
use fabric::records;
use fabric::rpc::Refusal;
use rkyv::{Archive, Deserialize, Serialize};

use crate::limits::FEATURE_LEVEL;

/// A cluster CA: certificate and private key.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq)]
pub struct CaV1 {
    /// Certificate, DER.
    pub cert_der: Vec<u8>,
    /// Private key, PKCS#8 DER. Reaches voters and standbys only.
    pub key_pkcs8: Vec<u8>,
}
/// Current version of a CA.
pub type Ca = CaV1;

impl fmt::Debug for CaV1 {
    /// The key never reaches a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({:?})", Digest::of(&self.cert_der))
    }
}

/// A change of labels.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelPatchV1 {
    /// Labels to add or replace.
    pub set: Labels,
    /// Keys to take away; a key that is not there is no error.
    pub remove: Vec<String>,
}
/// Current version of a change of labels.
pub type LabelPatch = LabelPatchV1;

/// A change of a node's record; `None` leaves a field as it is.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePatchV1 {
    /// No new machines.
    pub cordoned: Option<bool>,
    /// Machines are to be moved away.
    pub draining: Option<bool>,
    /// Operator's labels.
    pub labels: LabelPatch,
    /// Failure domain.
    pub zone: Option<String>,
    /// `ip:port` where it listens.
    pub address: Option<String>,
    /// What it declares to have.
    pub capacity: Option<Capacity>,
}
/// Current version of a change of a node.
pub type NodePatch = NodePatchV1;

/// One machine of a placement batch.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct PlaceItemV1 {
    /// The machine.
    pub machine: MachineId,
    /// The machine's last epoch as the proposer saw it.
    pub expected_epoch: u64,
    /// At most `PLACE_CANDIDATES_MAX` nodes, best first. Empty when the scheduler found none.
    pub candidates: Vec<NodeId>,
    /// Why there is no candidate, for the user; unused when there are some.
    pub reason: Option<String>,
}
/// Current version of an item of a batch.
pub type PlaceItem = PlaceItemV1;

/// A request to change the ledger.
///
/// `expected_revision` is the caller's `If-Match`: the command is refused with code `revision` when the object has
/// another one.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum CommandV1 {
    /// The first entry: makes the cluster.
    InitCluster {
        /// Drawn by `init`.
        cluster_id: ClusterId,
        /// The level at which the cluster begins.
        feature_level: u32,
        /// The first CA.
        ca: Ca,
        /// The first node.
        node: Box<NodeRecord>,
        /// The first tenant.
        tenant: Name,
    },
    /// Admits a node by a join token; idempotent by (token, node).
    AdmitNode {
        /// The token.
        token: TokenId,
        /// Hash of the secret that the joiner showed.
        secret_hash: Digest,
        /// The joiner. Role and stamps are taken from the token and the ledger.
        node: Box<NodeRecord>,
    },
    /// Changes a node's record.
    UpdateNode {
        /// The node.
        node: NodeId,
        /// What changes.
        patch: Box<NodePatch>,
        /// See [`CommandV1`].
        expected_revision: Option<u64>,
    },
    /// Removes a node for good.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// The CA's word for it, which is gossiped.
        tombstone: Tombstone,
        /// Even while machines are placed there.
        force: bool,
        /// See [`CommandV1`].
        expected_revision: Option<u64>,
    },
    /// A node will be away and come back: takeovers wait.
    PlanAbsence {
        /// The node.
        node: NodeId,
        /// For how long, milliseconds, at most `ABSENCE_MAX`.
        for_ms: u64,
    },
    /// A node is back.
    EndAbsence {
        /// The node.
        node: NodeId,
    },
    /// Makes a join token.
    CreateToken {
        /// Drawn by the caller.
        id: TokenId,
        /// Hash of its secret; the secret itself is never stored.
        secret_hash: Digest,
        /// What it admits as.
        role: Role,
        /// How many nodes it admits.
        uses: u32,
        /// How long it lives, milliseconds.
        ttl_ms: u64,
    },
    /// Takes a token away.
    RevokeToken {
        /// The token.
        id: TokenId,
    },
    /// Makes a tenant.
    CreateTenant {
        /// Unique in the cluster.
        name: Name,
        /// The tenant above it.
        parent: Option<Name>,
        /// Its limits.
        quota: Quota,
    },
    /// Removes a tenant that owns nothing.
    DeleteTenant {
        /// The tenant.
        name: Name,
        /// See [`CommandV1`].
        expected_revision: Option<u64>,
    },
    /// Changes a tenant's limits.
    SetQuota {
        /// The tenant.
        name: Name,
        /// The new limits.
        quota: Quota,
        /// See [`CommandV1`].
        expected_revision: Option<u64>,
    },
    /// Makes a machine that is not yet placed.
    CreateMachine {
        /// Drawn by the caller.
        id: MachineId,
        /// Its tenant.
        tenant: Name,
        /// Unique within the tenant.
        name: Name,
        /// What it is.
        spec: Box<MachineSpec>,
        /// The wanted state: running or stopped.
        desired: Desired,
    },
    /// Changes the wanted state; `Deleted` is final.
    SetDesired {
        /// The machine.
        machine: MachineId,
        /// The wanted state.
        desired: Desired,
        /// The run (by `restarts`) that its owner shows as over, where it is wanted running already: another one is asked
        /// for, unless somebody has done so since. The ledger may learn of the end later.
        over: Option<u64>,
        /// See [`CommandV1`].
        expected_revision: Option<u64>,
    },
    /// Changes a machine's labels.
    UpdateLabels {
        /// The machine.
        machine: MachineId,
        /// What changes.
        patch: LabelPatch,
        /// See [`CommandV1`].
        expected_revision: Option<u64>,
    },
    /// Asks for one restart.
    RestartMachine {
        /// The machine.
        machine: MachineId,
        /// See [`CommandV1`].
        expected_revision: Option<u64>,
    },
    /// The owner has destroyed a machine that is to be deleted.
    Forget {
        /// The machine.
        machine: MachineId,
        /// The owner's epoch.
        epoch: u64,
    },
    /// Gives machines an owner: first fit of each.
    Place {
        /// At most `PLACE_BATCH_MAX`.
        items: Vec<PlaceItem>,
    },
    /// The owner runs the machine (or has it as wanted): former owners may forget their copies.
    Confirm {
        /// The machine.
        machine: MachineId,
        /// The owner's epoch.
        epoch: u64,
    },
    /// The owner cannot run the machine.
    Failed {
        /// The machine.
        machine: MachineId,
        /// The owner's epoch.
        epoch: u64,
        /// Why, in the user's words.
        reason: String,
        /// Not to be placed again for so long, in the cluster's time.
        back_off_ms: u64,
        /// Its disk is here, and may have been written to: it stays.
        here: bool,
    },
    /// The owner has stopped the machine and gives it up without a fault of either (a drain).
    Release {
        /// The machine.
        machine: MachineId,
        /// The owner's epoch.
        epoch: u64,
    },
    /// Gives the machine of a dead owner to another node.
    Takeover {
        /// The machine.
        machine: MachineId,
        /// The dead owner's epoch.
        epoch: u64,
        /// The dead owner.
        from: NodeId,
        /// At most `PLACE_CANDIDATES_MAX` nodes, best first.
        candidates: Vec<NodeId>,
        /// Term of the leader that judged the lease expired.
        judged_term: u64,
        /// What became of the owner, for the audit.
        reason: String,
    },
    /// Announces a move and reserves room at its destination.
    MoveBegin {
        /// The machine.
        machine: MachineId,
        /// The owner's epoch.
        from_epoch: u64,
        /// Drawn by the caller.
        id: MoveId,
        /// The destination.
        to: NodeId,
    },
    /// Decides a move for the destination. Only the source may say so.
    MoveSwitch {
        /// The machine.
        machine: MachineId,
        /// The move.
        id: MoveId,
        /// The source's epoch.
        from_epoch: u64,
    },
    /// Decides a move for the source.
    MoveAbort {
        /// The machine.
        machine: MachineId,
        /// The move.
        id: MoveId,
        /// The source's epoch.
        from_epoch: u64,
    },
    /// Names an image, or gives a name another content; machines keep the content that they were created with.
    PutImage {
        /// Its tenant.
        tenant: Name,
        /// Unique within the tenant.
        name: Name,
        /// blake3 of its manifest.
        digest: Digest,
        /// Bytes of its chunks.
        size_bytes: u64,
        /// See [`CommandV1`].
        expected_revision: Option<u64>,
    },
    /// Forgets an image that no machine names.
    DeleteImage {
        /// Its tenant.
        tenant: Name,
        /// Its name.
        name: Name,
        /// See [`CommandV1`].
        expected_revision: Option<u64>,
    },
    /// Raises the feature level. It never sinks.
    SetFeatureLevel {
        /// The new level.
        level: u32,
    },
    /// Trusts one more CA.
    AddCa {
        /// The CA.
        ca: Ca,
    },
    /// The machine's program has ended by itself, and its restart policy does not want it again: from now on it is to be
    /// stopped, wherever it goes. Its supervisor has told the code; what was killed, with its supervisor or by its lease, is
    /// not told.
    Ended {
        /// The machine.
        machine: MachineId,
        /// The owner's epoch.
        epoch: u64,
        /// The requested restarts that the run which ended had seen: a later request stands.
        restarts: u64,
        /// Exit code, or 128 + signal.
        code: i32,
    },
}
/// Current version of a command.
pub type Command = CommandV1;

impl CommandV1 {
    /// What is done, for the audit: stable, `kebab-case`.
    pub fn verb(&self) -> &'static str {
        use CommandV1::*;
        match self {
            InitCluster { .. } => "init-cluster",
            AdmitNode { .. } => "admit-node",
            UpdateNode { .. } => "update-node",
            RemoveNode { .. } => "remove-node",
            PlanAbsence { .. } => "plan-absence",
            EndAbsence { .. } => "end-absence",
            CreateToken { .. } => "create-token",
            RevokeToken { .. } => "revoke-token",
            CreateTenant { .. } => "create-tenant",
            DeleteTenant { .. } => "delete-tenant",
            SetQuota { .. } => "set-quota",
            CreateMachine { .. } => "create-machine",
            SetDesired { desired: Desired::Running, .. } => "start-machine",
            SetDesired { desired: Desired::Stopped, .. } => "stop-machine",
            SetDesired { desired: Desired::Deleted, .. } => "delete-machine",
            UpdateLabels { .. } => "update-labels",
            RestartMachine { .. } => "restart-machine",
            Forget { .. } => "forget-machine",
            Place { .. } => "place",
            Confirm { .. } => "confirm",
            Ended { .. } => "ended",
            Failed { .. } => "failed",
            Release { .. } => "release",
            Takeover { .. } => "takeover",
            MoveBegin { .. } => "move-begin",
            MoveSwitch { .. } => "move-switch",
            MoveAbort { .. } => "move-abort",
            PutImage { .. } => "put-image",
            DeleteImage { .. } => "delete-image",
            SetFeatureLevel { .. } => "set-feature-level",
            AddCa { .. } => "add-ca",
        }
    }

    /// What it is done to, for the audit. Ids that a retry would draw anew (a machine's at its creation) do not appear,
    /// so that verb and subject recognise a repeated request.
    pub fn about(&self) -> String {
        use CommandV1::*;
        match self {
            InitCluster { cluster_id, .. } => cluster_id.to_string(),
            AdmitNode { node, .. } => node.id.to_string(),
            UpdateNode { node, .. } | RemoveNode { node, .. } | PlanAbsence { node, .. } | EndAbsence { node } => {
                node.to_string()
            }
            CreateToken { .. } => String::new(),
            RevokeToken { id } => id.to_string(),
            CreateTenant { name, .. } | DeleteTenant { name, .. } | SetQuota { name, .. } => name.to_string(),
            CreateMachine { tenant, name, .. } => format!("{tenant}/{name}"),
            PutImage { tenant, name, .. } | DeleteImage { tenant, name, .. } => format!("{tenant}/{name}"),
            SetDesired { machine, .. }
            | UpdateLabels { machine, .. }
            | RestartMachine { machine, .. }
            | Forget { machine, .. }
            | Confirm { machine, .. }
            | Ended { machine, .. }
            | Failed { machine, .. }
            | Release { machine, .. }
            | Takeover { machine, .. }
            | MoveBegin { machine, .. }
            | MoveSwitch { machine, .. }
            | MoveAbort { machine, .. } => machine.to_string(),
            Place { items } => count(items.len(), "machine"),
            SetFeatureLevel { level } => level.to_string(),
            AddCa { ca } => Digest::of(&ca.cert_der).to_string(),
        }
    }

    /// Why this program must not apply the command and has to halt: it asks for what only a later program knows. A
    /// refusal instead would make this replica differ from the later ones.
    pub fn halts(&self) -> Option<String> {
        match self {
            CommandV1::SetFeatureLevel { level } | CommandV1::InitCluster { feature_level: level, .. }
                if *level > FEATURE_LEVEL =>
            {
                Some(format!("feature level {level}, this program knows up to {FEATURE_LEVEL}: upgrade this node"))
            }
            _ => None,
        }
    }
}

/// Who asks. The leader fills in `node` from the connection's certificate, so it cannot be claimed.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ActorV1 {
    /// The node that the request came through.
    pub node: NodeId,
    /// Whose credential, for the audit: `root@n1`, `token 1f2e...`, `fabric`.
    pub subject: String,
    /// The tenant whose token was shown; none for operators and the fabric itself.
    pub tenant: Option<Name>,
}
/// Current version of an actor.
pub type Actor = ActorV1;

impl ActorV1 {
    /// The fabric itself, on `node`.
    pub fn fabric(node: NodeId) -> Self {
        ActorV1 { node, subject: "fabric".into(), tenant: None }
    }
}

/// A command as it stands in the log.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct EnvelopeV1 {
    /// Who asks.
    pub actor: Actor,
    /// A repeated key gets the recorded answer.
    pub idempotency: Option<IdempotencyKey>,
    /// The leader's time, Unix milliseconds. The state makes it monotone.
    pub at_ms: u64,
    /// What is asked.
    pub command: Command,
}
/// Current version of an envelope.
pub type Envelope = EnvelopeV1;

/// What became of one item of a placement.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum PlaceResultV1 {
    /// It has an owner.
    Placed {
        /// The machine.
        machine: MachineId,
        /// Its owner.
        node: NodeId,
        /// The owner's epoch.
        epoch: u64,
    },
    /// It has not; the machine's `waiting` says so too when no node could take it.
    Refused {
        /// The machine.
        machine: MachineId,
        /// Why.
        refusal: Refusal,
    },
}
/// Current version of a placement's result.
pub type PlaceResult = PlaceResultV1;

/// What was done.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum OutcomeV1 {
    /// The object is as asked.
    Done {
        /// Its revision; unchanged when it was so before.
        revision: u64,
    },
    /// A machine was made.
    Created {
        /// Its id.
        id: MachineId,
        /// Its revision.
        revision: u64,
    },
    /// A node is admitted.
    Admitted {
        /// Its record.
        node: Box<NodeRecord>,
    },
    /// A batch was decided, item by item in the order asked.
    Placed {
        /// One for each item.
        items: Vec<PlaceResult>,
    },
    /// A machine has this owner now.
    Owner {
        /// The owner; none when it waits for a place.
        node: Option<NodeId>,
        /// Its last epoch.
        epoch: u64,
        /// Its revision.
        revision: u64,
    },
    /// The object is gone.
    Removed,
    /// A move has begun.
    Moving {
        /// The move: another one than was asked for when its request is known by its key.
        id: MoveId,
        /// The source's epoch.
        epoch: u64,
    },
}
/// Current version of an outcome.
pub type Outcome = OutcomeV1;

/// An outcome or a refusal, as it is recorded and sent.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum AnswerV1 {
    /// Done.
    Done(Outcome),
    /// Refused.
    Refused(Refusal),
}
/// Current version of an answer.
pub type Answer = AnswerV1;

impl From<Result<Outcome, Refusal>> for AnswerV1 {
    fn from(result: Result<Outcome, Refusal>) -> Self {
        match result {
            Ok(outcome) => AnswerV1::Done(outcome),
            Err(refusal) => AnswerV1::Refused(refusal),
        }
    }
}

impl From<AnswerV1> for Result<Outcome, Refusal> {
    fn from(answer: AnswerV1) -> Self {
        match answer {
            AnswerV1::Done(outcome) => Ok(outcome),
            AnswerV1::Refused(refusal) => Err(refusal),
        }
    }
}

records!(EnvelopeV1 = (100, 1), OutcomeV1 = (101, 1), AnswerV1 = (102, 1));

#[cfg(test)]
mod tests;
