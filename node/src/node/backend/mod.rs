//! The admin port's view of the node: [`Backend`] over ledger, membership, gossip and runtime.
//!
//! Reads come from this node's copy of the ledger (linearizable on request); what owners observe is asked for in
//! parallel under a deadline. Writes go to the leader and answer once they are committed.

mod cluster;
mod flows;
mod happenings;
mod machines;
mod observed;
mod status;
mod streams;
mod views;

pub use cluster::ca_key;
pub use flows::serve_room;
pub use observed::local as statuses;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fabric::ids::{OperationId, TokenId};
use fabric::model::{Desired, ImageRecord, Labels, Name, Quota, Role, TenantRecord};
use fabric::rpc::Refusal;
use futures_util::stream::BoxStream;
use raft_store::command::{Actor, Command, Envelope, Outcome};
use raft_store::ledger::Applied;
use raft_store::state::{EntryContext, State};
use tokio::sync::watch;

use super::context::Context;
use crate::api::backend::*;
use crate::api::failure::Failure;

/// A copy of the ledger that is younger is not fetched again for a read.
const COPY_AGE: Duration = Duration::from_secs(1);
/// A read waits so long for such a copy.
const COPY_PATIENCE: Duration = Duration::from_millis(500);

/// The node as its admin port uses it. Cheap to clone.
#[derive(Clone)]
pub struct NodeBackend {
    context: Arc<Context>,
    changes: watch::Receiver<u64>,
    token: Arc<super::local_token::Known>,
}

impl NodeBackend {
    /// Over a started node; `changes` grows with everything that a waiting client could wait for.
    pub fn new(context: Arc<Context>, changes: watch::Receiver<u64>) -> Self {
        NodeBackend { context, changes, token: Arc::default() }
    }

    fn actor(&self, caller: &Caller) -> Result<Actor> {
        let tenant = match &caller.rights {
            Rights::Operator => None,
            Rights::Tenant(tenant) => Some(tenant.clone()),
            Rights::Node(node) if *node == self.context.me => None,
            Rights::Node(_) => return Err(Failure::denied("these rights are another node's")),
        };
        Ok(Actor { node: self.context.me, subject: caller.subject.clone(), tenant })
    }

    /// One ledger write for a client.
    async fn write(&self, write: &Write, command: Command) -> Result<Outcome> {
        Ok(self.write_at(write, command).await?.outcome)
    }

    /// The same, with the index of its entry.
    async fn write_at(&self, write: &Write, command: Command) -> Result<Applied> {
        let actor = self.actor(&write.caller)?;
        if write.dry_run {
            return self.rehearse(actor, command);
        }
        let applied = self.context.ledger.write(actor, write.idempotency, command).await?;
        self.context.caught_up(applied.index).await;
        Ok(applied)
    }

    /// What the command would do, on a copy of the state.
    fn rehearse(&self, actor: Actor, command: Command) -> Result<Applied> {
        let mut copy: State = self.context.ledger.read(State::clone);
        let entry = EntryContext { index: copy.settings.index + 1, term: 0, at_ms: self.context.now_ms() };
        let envelope = Envelope { actor, idempotency: None, at_ms: entry.at_ms, command };
        Ok(Applied { index: entry.index, outcome: copy.apply(entry, &envelope)? })
    }

    /// Makes sure that what is read next reflects every write acknowledged before, when the client asks for that.
    /// Otherwise a node outside Raft, or one that its leader does not reach, fetches a copy now and then; one that cannot
    /// tells of what it has, and how old that is.
    async fn fresh(&self, read: &Read) -> Result<()> {
        if read.linearizable {
            self.context.ledger.linearizable().await?;
        } else {
            let _ = tokio::time::timeout(COPY_PATIENCE, self.context.ledger.refresh(COPY_AGE)).await;
        }
        Ok(())
    }

    /// An empty list would hide that a tenant is not there. A worker knows no tenants.
    fn check_tenant(&self, tenant: &Name) -> Result<()> {
        let known = self.context.ledger.read(|state| state.tenants.contains_key(tenant));
        if known || self.context.role == Role::Worker {
            return Ok(());
        }
        Err(Failure::not_found("tenant", tenant))
    }

    fn staleness_ms(&self) -> u64 {
        staleness_ms(&self.context)
    }

    /// An operation whose failure speaks of nodes by their names.
    fn named(&self, mut view: OperationView) -> OperationView {
        if let Some(error) = &mut view.error {
            error.message = self.in_names(&error.message);
        }
        view
    }

    fn one<T>(&self, item: T) -> One<T> {
        One { item, staleness_ms: self.staleness_ms(), unreachable: Vec::new() }
    }

    /// Cuts a list, sorted by its keys, to the page asked for.
    fn page<T>(&self, query: &Query, all: impl Iterator<Item = (String, T)>) -> Page<T> {
        let after = |key: &String| query.after.as_ref().is_none_or(|after| key > after);
        let limit = query.limit.max(1);
        let mut items: Vec<T> = all.filter(|(key, _)| after(key)).take(limit + 1).map(|(_, item)| item).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let partial = self.context.role == Role::Worker;
        Page { items, more, staleness_ms: self.staleness_ms(), unreachable: Vec::new(), partial }
    }
}

/// How old this node's copy of the ledger may be; a copy that never heard a leader is as old as this daemon.
fn staleness_ms(context: &Context) -> u64 {
    let staleness = context.ledger.staleness();
    staleness.unwrap_or_else(|| context.started.elapsed()).as_millis() as u64
}

/// An outcome of another shape than the command promises: a defect, told instead of guessed around.
fn unexpected(outcome: &Outcome) -> Failure {
    Failure::internal(format!("the ledger answered with {outcome:?}"))
}

#[async_trait]
impl Backend for NodeBackend {
    fn root(&self) -> Caller {
        let rights = match self.context.role {
            Role::Voter => Rights::Operator,
            Role::Worker => Rights::Node(self.context.me),
        };
        Caller { subject: format!("root@{}", self.context.name), rights }
    }

    async fn authenticate(&self, token: &str) -> Result<Caller> {
        super::local_token::authenticate(&self.context, &self.token, self, token).ok_or_else(|| {
            Failure::new("unauthenticated", "this token opens nothing here")
                .hint("use the one in <data-dir>/admin.token, or the unix socket as root")
        })
    }

    fn is_below(&self, tenant: &Name, root: &Name) -> bool {
        views::is_below(&self.context, tenant, root)
    }

    fn in_names(&self, words: &str) -> String {
        self.context.ledger.read(|state| {
            let node = |short: &str| state.nodes.values().find(|node| node.id.short() == short);
            views::in_names(words, |short| node(short).map(|node| node.name.to_string()))
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    async fn ready(&self) -> Result<()> {
        status::ready(&self.context)
    }

    async fn status(&self, read: &Read) -> Result<StatusView> {
        self.fresh(read).await?;
        Ok(status::view(&self.context))
    }

    async fn metrics(&self) -> Result<String> {
        Ok(status::metrics(&self.context).await)
    }

    async fn stop(&self, caller: &Caller, absence_ms: u64) -> Result<()> {
        self.stop_daemon(caller, absence_ms).await
    }

    async fn leave(&self, write: &Write, purge: bool) -> Result<OperationView> {
        self.leave_cluster(write, purge).await
    }

    async fn create_token(&self, write: &Write, token: NewToken) -> Result<MadeToken> {
        self.make_token(write, token).await
    }

    async fn list_tokens(&self, read: &Read, query: &Query) -> Result<Page<TokenView>> {
        self.fresh(read).await?;
        Ok(self.tokens(query))
    }

    async fn revoke_token(&self, write: &Write, id: TokenId) -> Result<()> {
        self.write(write, Command::RevokeToken { id }).await.map(drop)
    }

    async fn list_nodes(&self, read: &Read, query: &Query) -> Result<Page<NodeView>> {
        self.fresh(read).await?;
        Ok(self.nodes(query))
    }

    async fn node(&self, read: &Read, node: &str) -> Result<One<NodeView>> {
        self.fresh(read).await?;
        Ok(self.one(views::node(&self.context, views::find_node(&self.context, node)?)))
    }

    async fn cordon(&self, write: &Write, node: &str, cordoned: bool) -> Result<One<NodeView>> {
        self.set_cordon(write, node, cordoned).await
    }

    async fn drain(&self, write: &Write, node: &str) -> Result<OperationView> {
        self.begin_drain(write, node).await
    }

    async fn remove_node(&self, write: &Write, node: &str, force: bool) -> Result<()> {
        let node = views::find_node(&self.context, node)?.id;
        self.remove(write, node, force).await
    }

    async fn create_tenant(
        &self,
        write: &Write,
        name: Name,
        parent: Option<Name>,
        quota: Quota,
    ) -> Result<TenantRecord> {
        self.make_tenant(write, name, parent, quota).await
    }

    async fn list_tenants(&self, read: &Read, query: &Query) -> Result<Page<TenantRecord>> {
        self.fresh(read).await?;
        let all = self.context.ledger.read(|state| state.tenants.clone());
        Ok(self.page(query, all.into_iter().map(|(name, tenant)| (name.to_string(), tenant))))
    }

    async fn tenant(&self, read: &Read, name: &Name) -> Result<One<TenantRecord>> {
        self.fresh(read).await?;
        let found = self.context.ledger.read(|state| state.tenants.get(name).cloned());
        found.map(|tenant| self.one(tenant)).ok_or_else(|| Failure::not_found("tenant", name))
    }

    async fn delete_tenant(&self, write: &Write, name: &Name) -> Result<()> {
        let command = Command::DeleteTenant { name: name.clone(), expected_revision: write.if_revision };
        self.write(write, command).await.map(drop)
    }

    async fn create_machine(&self, write: &Write, tenant: &Name, machine: NewMachine) -> Result<MachineView> {
        self.make_machine(write, tenant, machine).await
    }

    async fn list_machines(&self, read: &Read, tenant: &Name, query: &Query) -> Result<Page<MachineView>> {
        self.fresh(read).await?;
        self.check_tenant(tenant)?;
        self.machines(tenant, query).await
    }

    async fn machine(&self, read: &Read, tenant: &Name, name: &Name) -> Result<One<MachineView>> {
        self.fresh(read).await?;
        self.inspect(tenant, name).await
    }

    async fn set_desired(&self, write: &Write, tenant: &Name, name: &Name, desired: Desired) -> Result<MachineView> {
        self.want(write, tenant, name, desired).await
    }

    async fn update_labels(&self, write: &Write, tenant: &Name, name: &Name, labels: Labels) -> Result<MachineView> {
        self.relabel(write, tenant, name, labels).await
    }

    async fn restart(&self, write: &Write, tenant: &Name, name: &Name) -> Result<MachineView> {
        self.restart_once(write, tenant, name).await
    }

    async fn move_machine(&self, write: &Write, tenant: &Name, name: &Name, to: Option<&str>) -> Result<OperationView> {
        self.begin_move(write, tenant, name, to).await
    }

    async fn logs(
        &self,
        read: &Read,
        tenant: &Name,
        name: &Name,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine>>> {
        self.fresh(read).await?;
        self.open_logs(tenant, name, query).await
    }

    async fn exec(&self, read: &Read, tenant: &Name, name: &Name, query: ExecQuery) -> Result<Duplex> {
        self.fresh(read).await?;
        self.open_exec(tenant, name, query).await
    }

    async fn connect(&self, read: &Read, tenant: &Name, name: &Name, port: u16) -> Result<Duplex> {
        self.fresh(read).await?;
        self.open_port(tenant, name, port).await
    }

    async fn image_from_host(
        &self,
        write: &Write,
        tenant: &Name,
        name: Name,
        paths: Vec<String>,
    ) -> Result<ImageRecord> {
        self.pack_image(write, tenant, name, paths).await
    }

    async fn list_images(&self, read: &Read, tenant: &Name, query: &Query) -> Result<Page<ImageRecord>> {
        self.fresh(read).await?;
        self.check_tenant(tenant)?;
        let all = self.context.ledger.read(|state| state.images.clone());
        let own = all.into_iter().filter(|((owner, _), _)| owner == tenant);
        Ok(self.page(query, own.map(|((_, name), image)| (name.to_string(), image))))
    }

    async fn delete_image(&self, write: &Write, tenant: &Name, name: &Name) -> Result<()> {
        let expected_revision = write.if_revision;
        let command = Command::DeleteImage { tenant: tenant.clone(), name: name.clone(), expected_revision };
        self.write(write, command).await.map(drop)
    }

    async fn operation(&self, _read: &Read, id: OperationId) -> Result<OperationView> {
        let found = self.context.operations.get(id);
        found.map(|view| self.named(view)).ok_or_else(|| Failure::not_found("operation", id))
    }

    async fn list_operations(&self, _read: &Read, query: &Query) -> Result<Page<OperationView>> {
        let all = self.context.operations.list();
        let page = self.page(query, all.into_iter().map(|operation| (operation.id.to_string(), self.named(operation))));
        // They are this node's own.
        Ok(Page { partial: false, ..page })
    }

    async fn cancel_operation(&self, write: &Write, id: OperationId) -> Result<OperationView> {
        let view = self.context.operations.get(id).ok_or_else(|| Failure::not_found("operation", id))?;
        if view.state != OperationState::Running {
            return Err(Refusal::new("conflict", format!("the operation has ended: {}", view.phase)).into());
        }
        if !write.dry_run {
            self.context.operations.cancel(id);
        }
        Ok(view)
    }

    async fn events(
        &self,
        _read: &Read,
        since: Option<String>,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<EventView>>> {
        self.open_events(since, follow).await
    }
}
