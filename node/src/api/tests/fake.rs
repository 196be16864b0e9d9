//! A node in memory: a tenant, a few machines, and levers for what tests need.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use fabric::ids::{ClusterId, Digest, IdempotencyKey, MachineId, NodeId, OperationId, TokenId};
use fabric::model::*;
use fabric::rpc::Refusal;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use raft_store::codes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::api::backend::*;
use crate::api::failure::Failure;
use crate::api::frames::ExecFrame;
use crate::fixtures;

pub const OPERATOR: &str = "operator-token";
pub const TENANT: &str = "acme-token";
/// Events kept begin after this cursor.
pub const FIRST_EVENT: u64 = 5;

#[derive(Default)]
pub struct State {
    pub machines: BTreeMap<Name, MachineRecord>,
    pub statuses: BTreeMap<Name, MachineStatus>,
    pub outcomes: BTreeMap<IdempotencyKey, Name>,
    pub revision: u64,
    pub tolerance: u32,
    pub operation: Option<OperationView>,
    pub stopped: bool,
    pub writes: Vec<Write>,
    pub reads: Vec<Read>,
    /// The next call that asks for it fails so.
    pub failure: Option<Failure>,
}

pub struct Fake {
    pub state: Mutex<State>,
    changes: watch::Sender<u64>,
}

impl Default for Fake {
    fn default() -> Self {
        Fake { state: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn spec() -> MachineSpec {
    MachineSpec {
        image: name("http"),
        command: vec![],
        env: vec![],
        resources: Resources::default(),
        publish: vec![],
        labels: Labels::new(),
        exclusive: false,
        restart: Restart::Always,
        pinned: None,
    }
}

fn node_record(of: &str) -> NodeRecord {
    NodeRecord {
        id: NodeId([of.as_bytes()[1]; 32]),
        name: name(of),
        public_key: [0; 32],
        role: Role::Voter,
        zone: String::new(),
        labels: Labels::new(),
        capacity: Capacity { cpu_millis: 2000, memory_bytes: 4 << 30, disk_bytes: 0 },
        address: "127.0.0.1:7420".into(),
        cordoned: false,
        draining: false,
        absent_until_ms: None,
        admitted_ms: 1,
        revision: 3,
    }
}

impl Fake {
    /// Changes the state and wakes who waits.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changes.send_modify(|version| *version += 1);
    }

    pub fn add(&self, machine: &str) {
        let new = NewMachine { name: name(machine), spec: spec(), desired: Desired::Running };
        self.change(|state| drop(Self::insert(state, &name("acme"), new)));
    }

    /// Fails the next write or read of a machine.
    pub fn fail(&self, failure: Failure) {
        self.change(|state| state.failure = Some(failure));
    }

    /// The owner reports.
    pub fn observe(&self, machine: &str, observed: MachineState, exit_code: Option<i32>) {
        self.change(|state| {
            let record = state.machines.get_mut(&name(machine)).unwrap();
            record.ended = exit_code.filter(|_| observed == MachineState::Exited);
            let id = record.id;
            let status = MachineStatus {
                pid: Some(7),
                started_ms: Some(2),
                exit_code,
                memory_floor: "guaranteed".into(),
                ..fixtures::status(id, observed)
            };
            state.statuses.insert(name(machine), status);
        });
    }

    fn insert(state: &mut State, tenant: &Name, new: NewMachine) -> MachineRecord {
        state.revision += 1;
        let placement = Placement {
            node: NodeId([b'1'; 32]),
            epoch: 1,
            since_ms: 1,
            confirmed: false,
            fresh: false,
            previous: None,
            moving: None,
        };
        let record = MachineRecord {
            id: MachineId([state.revision as u8; 16]),
            tenant: tenant.clone(),
            name: new.name.clone(),
            spec: new.spec,
            image: Digest::of(b"image"),
            desired: new.desired,
            restarts: 0,
            epoch: 1,
            placement: Some(placement),
            failures: 0,
            not_before_ms: 0,
            waiting: None,
            ended: None,
            created_ms: 1,
            revision: state.revision,
        };
        state.machines.insert(new.name, record.clone());
        record
    }

    fn view(state: &State, record: &MachineRecord) -> MachineView {
        MachineView {
            record: record.clone(),
            node: Some(name("n1")),
            pinned: record.spec.pinned.map(|_| name("n1")),
            moving_to: None,
            status: state.statuses.get(&record.name).cloned(),
        }
    }

    fn find<'a>(state: &'a mut State, machine: &Name) -> Result<&'a mut MachineRecord> {
        state.machines.get_mut(machine).ok_or_else(|| Failure::not_found("machine", machine))
    }

    /// What every write to a machine goes through.
    fn write(&self, write: &Write, machine: &Name, change: impl FnOnce(&mut MachineRecord)) -> Result<MachineView> {
        let mut state = self.state.lock().unwrap();
        state.writes.push(write.clone());
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        let revision = state.revision + 1;
        let record = Self::find(&mut state, machine)?;
        if write.if_revision.is_some_and(|wanted| wanted != record.revision) {
            return Err(Refusal::new(codes::REVISION, format!("machine {machine} is at {}", record.revision)).into());
        }
        let mut changed = record.clone();
        if !write.dry_run {
            change(&mut changed);
            changed.revision = revision;
            *record = changed.clone();
            state.revision = revision;
        }
        Ok(Self::view(&state, &changed))
    }

    fn operation_view(kind: &str, subject: &str) -> OperationView {
        OperationView {
            id: OperationId([9; 16]),
            kind: kind.into(),
            tenant: Some(name("acme")),
            subject: subject.into(),
            state: OperationState::Running,
            phase: "sync".into(),
            progress_permille: 500,
            predicted_outage_ms: Some(300),
            created_ms: 1,
            updated_ms: 2,
            error: None,
        }
    }
}

fn page<T>(items: impl Iterator<Item = (String, T)>, query: &Query) -> Page<T> {
    let mut rest = items.filter(|(key, _)| query.after.as_ref().is_none_or(|after| key > after)).map(|(_, item)| item);
    let items: Vec<T> = rest.by_ref().take(query.limit).collect();
    Page { items, more: rest.next().is_some(), staleness_ms: 4, unreachable: vec![name("n3")], partial: false }
}

fn one<T>(item: T) -> One<T> {
    One { item, staleness_ms: 4, unreachable: vec![] }
}

fn event(at: u64) -> EventView {
    EventView {
        cursor: at.to_string(),
        at_ms: at,
        kind: "machine-created".into(),
        tenant: if at.is_multiple_of(2) { Some(name("acme")) } else { None },
        subject: format!("m{at}"),
        actor: None,
        message: "made\nhere".into(),
    }
}

#[async_trait]
impl Backend for Fake {
    fn root(&self) -> Caller {
        Caller { subject: "root@n1".into(), rights: Rights::Operator }
    }
    async fn authenticate(&self, token: &str) -> Result<Caller> {
        let rights = match token {
            OPERATOR => Rights::Operator,
            TENANT => Rights::Tenant(name("acme")),
            "node-token" => Rights::Node(NodeId([b'2'; 32])),
            _ => return Err(Failure::new("unauthenticated", "nobody holds this token")),
        };
        Ok(Caller { subject: format!("token {token}"), rights })
    }
    fn is_below(&self, _: &Name, _: &Name) -> bool {
        false
    }
    fn in_names(&self, words: &str) -> String {
        words.replace("1111111111", "n1")
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
    async fn ready(&self) -> Result<()> {
        match self.state.lock().unwrap().failure.clone() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
    async fn status(&self, _: &Read) -> Result<StatusView> {
        Ok(StatusView {
            cluster: ClusterId([1; 16]),
            node: NodeId([b'1'; 32]),
            name: name("n1"),
            address: "127.0.0.1:7420".into(),
            role: Role::Voter,
            raft: RaftRole::Leader,
            leader: Some(name("n1")),
            term: 1,
            applied: 9,
            epoch: 1,
            tolerance: self.state.lock().unwrap().tolerance,
            tolerance_words: "losing n1 stops writes: add two nodes".into(),
            voters: vec![VoterView { name: name("n1"), alive: true }],
            standbys: vec![],
            nodes: [1, 0, 0],
            machines: [0, 0],
            no_machines: None,
            feature_level: 1,
            started_ms: 1,
            staleness_ms: 0,
        })
    }
    async fn metrics(&self) -> Result<String> {
        Ok("# TYPE smartnode_terms gauge\nsmartnode_terms 1\n".into())
    }
    async fn stop(&self, _: &Caller, _: u64) -> Result<()> {
        self.change(|state| state.stopped = true);
        Ok(())
    }
    async fn leave(&self, _: &Write, _: bool) -> Result<OperationView> {
        Ok(Self::operation_view("leave", "n1"))
    }
    async fn create_token(&self, _: &Write, token: NewToken) -> Result<MadeToken> {
        let view =
            TokenView { id: TokenId([7; 8]), role: token.role, expires_ms: 1, uses_left: token.uses, created_ms: 0 };
        Ok(MadeToken { view, token: "sn1-secret".into(), peers: vec!["10.0.0.1:7420".into(), "10.0.0.2:7420".into()] })
    }
    async fn list_tokens(&self, _: &Read, query: &Query) -> Result<Page<TokenView>> {
        Ok(page(std::iter::empty(), query))
    }
    async fn revoke_token(&self, _: &Write, id: TokenId) -> Result<()> {
        Err(Failure::not_found("token", id))
    }
    async fn list_nodes(&self, read: &Read, query: &Query) -> Result<Page<NodeView>> {
        let names = ["n1", "n2", "n3"];
        let mut views = vec![];
        for node in names {
            views.push((node.to_owned(), self.node(read, node).await?.item));
        }
        Ok(page(views.into_iter(), query))
    }
    async fn node(&self, _: &Read, node: &str) -> Result<One<NodeView>> {
        if !["n1", "n2", "n3"].contains(&node) {
            return Err(Failure::not_found("node", node));
        }
        Ok(one(NodeView {
            record: node_record(node),
            liveness: Liveness::Alive,
            liveness_since_ms: 1,
            state: None,
            free: Capacity::default(),
            machines: 0,
        }))
    }
    async fn cordon(&self, write: &Write, node: &str, cordoned: bool) -> Result<One<NodeView>> {
        let read = Read { caller: write.caller.clone(), linearizable: false };
        let mut answer = self.node(&read, node).await?;
        answer.item.record.cordoned = cordoned;
        Ok(answer)
    }
    async fn drain(&self, _: &Write, node: &str) -> Result<OperationView> {
        Ok(OperationView { tenant: None, ..Self::operation_view("drain", node) })
    }
    async fn remove_node(&self, _: &Write, node: &str, force: bool) -> Result<()> {
        let refusal = Refusal::new(codes::IN_USE, format!("node {node} owns 2 machines"));
        if force { Ok(()) } else { Err(refusal.hint(format!("smartnode node drain {node}")).into()) }
    }
    async fn create_tenant(&self, _: &Write, name: Name, parent: Option<Name>, quota: Quota) -> Result<TenantRecord> {
        Ok(TenantRecord { name, parent, quota, created_ms: 1, revision: 2 })
    }
    async fn list_tenants(&self, _: &Read, query: &Query) -> Result<Page<TenantRecord>> {
        Ok(page(std::iter::empty(), query))
    }
    async fn tenant(&self, _: &Read, tenant: &Name) -> Result<One<TenantRecord>> {
        Err(Failure::not_found("tenant", tenant))
    }
    async fn delete_tenant(&self, _: &Write, tenant: &Name) -> Result<()> {
        Err(Failure::new(codes::IN_USE, format!("tenant {tenant} has machines")))
    }
    async fn create_machine(&self, write: &Write, tenant: &Name, new: NewMachine) -> Result<MachineView> {
        let mut state = self.state.lock().unwrap();
        state.writes.push(write.clone());
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        let known = write.idempotency.and_then(|key| state.outcomes.get(&key).cloned());
        if let Some(known) = known {
            let record = state.machines[&known].clone();
            return Ok(Self::view(&state, &record));
        }
        if state.machines.contains_key(&new.name) {
            return Err(Refusal::new(codes::EXISTS, format!("machine {} is there already", new.name)).into());
        }
        if let Some(key) = write.idempotency {
            state.outcomes.insert(key, new.name.clone());
        }
        let record = Self::insert(&mut state, tenant, new);
        if write.dry_run {
            state.machines.remove(&record.name);
        }
        Ok(Self::view(&state, &record))
    }
    async fn list_machines(&self, read: &Read, _: &Name, query: &Query) -> Result<Page<MachineView>> {
        let mut state = self.state.lock().unwrap();
        state.reads.push(read.clone());
        let wanted = |view: &MachineView| {
            let labels = &view.record.spec.labels;
            let has = |(key, value): &(String, Option<String>)| match value {
                Some(value) => labels.get(key) == Some(value),
                None => labels.contains_key(key),
            };
            query.labels.iter().all(has)
                && query.state.is_none_or(|state| view.status.as_ref().is_some_and(|status| status.state == state))
        };
        let views = state.machines.values().map(|record| (record.name.to_string(), Self::view(&state, record)));
        Ok(page(views.filter(|(_, view)| wanted(view)), query))
    }
    async fn machine(&self, read: &Read, _: &Name, machine: &Name) -> Result<One<MachineView>> {
        let mut state = self.state.lock().unwrap();
        state.reads.push(read.clone());
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        let record = Self::find(&mut state, machine)?.clone();
        Ok(one(Self::view(&state, &record)))
    }
    async fn set_desired(&self, write: &Write, _: &Name, machine: &Name, desired: Desired) -> Result<MachineView> {
        let view = self.write(write, machine, |record| record.desired = desired)?;
        if desired == Desired::Deleted && !write.dry_run {
            self.state.lock().unwrap().machines.remove(machine);
        }
        Ok(view)
    }
    async fn update_labels(&self, write: &Write, _: &Name, machine: &Name, labels: Labels) -> Result<MachineView> {
        self.write(write, machine, |record| record.spec.labels = labels)
    }
    async fn restart(&self, write: &Write, _: &Name, machine: &Name) -> Result<MachineView> {
        self.write(write, machine, |record| record.restarts += 1)
    }
    async fn move_machine(&self, write: &Write, _: &Name, machine: &Name, _: Option<&str>) -> Result<OperationView> {
        self.write(write, machine, |_| ())?;
        let view = Self::operation_view("move", machine.as_str());
        self.state.lock().unwrap().operation = Some(view.clone());
        Ok(view)
    }
    async fn logs(
        &self,
        _: &Read,
        _: &Name,
        machine: &Name,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine>>> {
        Self::find(&mut self.state.lock().unwrap(), machine)?;
        let lines = (0..10u64).map(|at| Ok(LogLine { at_ms: at, stderr: at == 9, text: format!("line {at}") }));
        let lines: Vec<_> = lines.skip(10 - query.tail.unwrap_or(10).min(10)).collect();
        let lost = query.follow.then(|| Err(Failure::unreachable("node 1111111111 does not answer")));
        Ok(stream::iter(lines).chain(stream::iter(lost)).boxed())
    }
    async fn exec(&self, _: &Read, _: &Name, machine: &Name, query: ExecQuery) -> Result<Duplex> {
        Self::find(&mut self.state.lock().unwrap(), machine)?;
        let (near, mut far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            // `cat` in capitals, then the number of arguments as code.
            while let Ok(Some(ExecFrame::Stdin(bytes))) = ExecFrame::read(&mut far).await {
                if bytes.is_empty() {
                    break;
                }
                ExecFrame::Stdout(bytes.to_ascii_uppercase()).write(&mut far).await.unwrap();
            }
            ExecFrame::Stderr(b"bye".to_vec()).write(&mut far).await.unwrap();
            ExecFrame::Exit(query.argv.len() as i32).write(&mut far).await.unwrap();
        });
        Ok(Box::new(near))
    }
    async fn connect(&self, _: &Read, _: &Name, machine: &Name, port: u16) -> Result<Duplex> {
        Self::find(&mut self.state.lock().unwrap(), machine)?;
        let (near, mut far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let mut all = String::new();
            far.read_to_string(&mut all).await.unwrap();
            far.write_all(format!("{port}:{all}").as_bytes()).await.unwrap();
        });
        Ok(Box::new(near))
    }
    async fn image_from_host(&self, _: &Write, tenant: &Name, name: Name, _: Vec<String>) -> Result<ImageRecord> {
        let digest = Digest::of(b"image");
        Ok(ImageRecord { tenant: tenant.clone(), name, digest, size_bytes: 1, created_ms: 1, revision: 1 })
    }
    async fn list_images(&self, _: &Read, _: &Name, query: &Query) -> Result<Page<ImageRecord>> {
        Ok(page(std::iter::empty(), query))
    }
    async fn delete_image(&self, _: &Write, _: &Name, image: &Name) -> Result<()> {
        Err(Failure::new(codes::IN_USE, format!("image {image} is used by machine web")))
    }
    async fn operation(&self, _: &Read, id: OperationId) -> Result<OperationView> {
        let state = self.state.lock().unwrap();
        state.operation.clone().filter(|view| view.id == id).ok_or_else(|| Failure::not_found("operation", id))
    }
    async fn list_operations(&self, _: &Read, query: &Query) -> Result<Page<OperationView>> {
        let state = self.state.lock().unwrap();
        Ok(page(state.operation.iter().map(|view| (view.id.to_string(), view.clone())), query))
    }
    async fn cancel_operation(&self, _: &Write, id: OperationId) -> Result<OperationView> {
        Err(Failure::new("conflict", format!("operation {id} has switched already")))
    }
    async fn events(&self, _: &Read, since: Option<String>, _: bool) -> Result<BoxStream<'static, Result<EventView>>> {
        let since = since.map_or(FIRST_EVENT, |cursor| cursor.parse().unwrap_or(0));
        if since < FIRST_EVENT {
            return Err(Failure::new("expired-cursor", "events before 5 are no longer kept").hint("begin without one"));
        }
        Ok(stream::iter((since + 1..=10).map(|at| Ok(event(at)))).boxed())
    }
}
