//! The daemon: builds the real seams, becomes a member if asked to, runs the node and its admin port until told to stop.
#![expect(clippy::disallowed_methods, reason = "builds the real world: sockets, lock file, host name")]

use std::fs::OpenOptions;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use fabric::identity::{CERTIFICATE_FILE, IdentityError, KEY_FILE};
use fabric::limits::ABSENCE;
use fabric::model::{Capacity, Name};
use fabric::rpc::BoxFuture;
use fabric::seams::{Clock, Disk, Seams, real};
use fabric::token::JoinToken;
use fabric::transport::join::JoinError;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};

use super::asks::IMAGE;
use super::dir::{ClusterFile, DirError};
use super::founding::{self, FoundingError, Own};
use super::{Node, NodeConfig, Parts, StartError, lease, local_token};
use crate::api::failure::{Class, Failure};
use crate::api::{AdminPort, PortConfig, PortError};
use crate::cli::{CliError, Exit};
use crate::config::{CA_FILE, LOCK_FILE, NodeOptions, Start};
use crate::host::{DiskSpace, Host, Pressure, ThisHost};
use crate::images::service::ImageStore;
use crate::moving::marker;
use crate::reconcile::publish::HostPorts;
use crate::runtime::Runtime;
use crate::runtime::absent::NoMachines;
use crate::runtime::container::{ContainerConfig, ContainerRuntime};
use crate::transfer::HostLayers;

/// A node that leaves has ended this long after its removal.
const PARTING: std::time::Duration = std::time::Duration::from_secs(3);

/// Runs a node until it is told to stop.
pub fn run(options: NodeOptions, start: Start) -> BoxFuture<Result<(), CliError>> {
    Box::pin(async move {
        let data_dir = options.data_dir.clone();
        run_node(options, start).await.map_err(|error| hint_at_room(error, &data_dir))
    })
}

/// Whatever a full disk has stopped needs the same next step.
fn hint_at_room(error: CliError, data_dir: &Path) -> CliError {
    let full = std::io::Error::from(nix::errno::Errno::ENOSPC).to_string();
    if !error.cause.contains(&full) {
        return error;
    }
    error.hint(format!("make room in {}, then run it again (a member: smartnode start)", data_dir.display()))
}

async fn run_node(options: NodeOptions, start: Start) -> Result<(), CliError> {
    let seams = real::seams(&options.data_dir).map_err(|error| CliError::unusable(&options.data_dir, &error))?;
    let lock = lock(&options.data_dir)?;
    is_not_removed(&seams, &options)?;
    let here = ThisHost::new(&options.data_dir);
    // Tried before anybody is asked: a node that cannot listen is not to be admitted.
    try_ports(&options)?;
    keys_are_private(&options.data_dir)?;
    become_member(&seams, &here, &options, start).await?;
    keeps_its_name(&seams, &options)?;
    remember(&seams, &options)?;
    local_token::ensure(&*seams.disk, &*seams.entropy)
        .map_err(|error| CliError::unusable(&options.data_dir, &error))?;

    let me = super::member(&*seams.disk).map_err(|error| not_started(&error, &options.data_dir))?;
    let parts = parts(&options, here, me, seams.clock.clone())?;
    let config = NodeConfig {
        listen: options.listen,
        advertise: options.advertise,
        data_dir: options.data_dir.clone(),
        zone: options.zone.clone(),
        labels: options.labels.clone(),
        snapshot_every: None,
    };
    let node = Node::start(seams, parts, config).await;
    let node = node.map_err(|error| not_started(&error, &options.data_dir))?;
    let pem = node.context().trust.read().unwrap_or_else(PoisonError::into_inner).to_pem();
    if let Err(error) = node.context().seams.disk.write(CA_FILE, pem.as_bytes()) {
        tracing::warn!(%error, "the file {CA_FILE} for clients on other hosts could not be written");
    }
    let port = PortConfig {
        socket: Some(options.admin_socket.clone()),
        listen: Some(options.admin_listen),
        tls: Some(node.context().transport.admin_tls()),
        names: options.admin_names.clone(),
    };
    let served = AdminPort::start(port, Arc::new(node.backend())).await;
    let admin = match served {
        Ok(admin) => admin,
        Err(error) => {
            node.stop().await;
            return Err(port_in_use(&error));
        }
    };
    let context = node.context().clone();
    tracing::info!(node = %context.name, id = %context.me.short(), address = %context.advertise, "ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let ended = until_told(&context).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    admin.stop().await;
    node.stop().await;
    let ended = conclude(&context, ended?);
    drop(lock);
    ended
}

/// What ended a daemon without a failure of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It was told to, by a signal or by the admin port.
    Told,
    /// Its peers say that this node was removed.
    Removed,
}

/// Removes or marks the data of a node whose membership is over.
fn conclude(context: &super::context::Context, ended: Ended) -> Result<(), CliError> {
    match (ended, context.left.get()) {
        (_, Some(true)) => {
            super::purge::purge(&context.data_dir);
            Ok(())
        }
        (_, Some(false)) => {
            note_removal(&*context.seams.disk);
            Ok(())
        }
        (Ended::Removed, None) => {
            note_removal(&*context.seams.disk);
            Err(expelled("this node was removed from the cluster, its peers say", &context.data_dir))
        }
        (Ended::Told, None) => Ok(()),
    }
}

/// Makes later starts fail at once, instead of when the first peer answers. Called when no task of the node writes the file.
fn note_removal(disk: &dyn Disk) {
    let noted = ClusterFile::load(disk)
        .and_then(|file| file.map_or(Ok(()), |file| ClusterFile { removed: true, ..file }.save(disk)));
    if let Err(error) = noted {
        // The next start hears of it from peers again.
        tracing::warn!(%error, "that this node is no member any more could not be written down");
    }
}

/// Returns when the node was told to stop, by a signal or by the admin port; or fails when it can take part no longer. A
/// voter whose ledger has stopped must not stay alive in membership, or others would count on it.
async fn until_told(context: &Arc<super::context::Context>) -> Result<Ended, CliError> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let watchdog = watchdog(context.clone());
    tokio::select! {
        biased;
        () = context.shutdown.cancelled() => return Ok(Ended::Told),
        reason = context.ledger.halted() => {
            let cause = format!("the ledger of this node has stopped: {reason}");
            return Err(CliError::new(Exit::Failed, cause).hint("machines go on; mend the cause, then: smartnode start"));
        }
        () = context.transport.expelled() => {
            // A node that leaves hears of its removal while it says its last words.
            let left = tokio::time::timeout(PARTING, context.shutdown.cancelled()).await;
            return Ok(if left.is_ok() { Ended::Told } else { Ended::Removed });
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = watchdog => {}
    }
    tracing::info!("told to stop; machines go on");
    // A cluster without a leader cannot take machines over either, so stopping unannounced is safe.
    let wait = std::time::Duration::from_secs(2);
    if !matches!(tokio::time::timeout(wait, lease::leave(context, ABSENCE)).await, Ok(Ok(()))) {
        tracing::warn!("the absence could not be announced");
    }
    Ok(Ended::Told)
}

/// Tells systemd that the node is alive, if it asks for that. Never returns.
async fn watchdog(context: Arc<super::context::Context>) {
    if let Some(interval) = sd_notify::watchdog_enabled() {
        loop {
            tokio::time::sleep(interval / 2).await;
            // A node whose state cannot be read is stuck: systemd should know.
            let _ = context.ledger.status();
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
    std::future::pending().await
}

async fn become_member(seams: &Seams, host: &ThisHost, options: &NodeOptions, start: Start) -> Result<(), CliError> {
    match start {
        Start::Start => Ok(()),
        Start::Init => {
            let own = own(options, advertise(options, None)?)?;
            let founded = founding::init(seams, host, &own);
            let cluster = founded.map_err(|error| not_founded(&error, &options.data_dir))?;
            tracing::info!(%cluster, advertise = %own.advertise, "this node founds the cluster, or has founded it");
            Ok(())
        }
        Start::Join { peers, token } => {
            let token: JoinToken = token.parse().map_err(|error| {
                CliError::of(Exit::Usage, &error).hint("copy the whole token: smartnode token create prints a new one")
            })?;
            let peers = resolve(&peers).await?;
            let own = own(options, advertise(options, peers.first().copied())?)?;
            let joined = founding::join(seams, host, &own, &peers, &token).await;
            let cluster = joined.map_err(|error| not_founded(&error, &options.data_dir))?;
            tracing::info!(%cluster, advertise = %own.advertise, "this node is a member");
            Ok(())
        }
    }
}

fn own(options: &NodeOptions, advertise: SocketAddr) -> Result<Own, CliError> {
    let name = match &options.name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    Ok(Own {
        name,
        advertise,
        zone: options.zone.clone().unwrap_or_default(),
        labels: options.labels.clone().unwrap_or_default(),
    })
}

/// The host's name up to its first dot, lower-case.
fn host_name() -> Result<Name, CliError> {
    let name = nix::unistd::gethostname().map_err(std::io::Error::from)?;
    let name = name.to_string_lossy().split('.').next().unwrap_or_default().to_lowercase();
    name.parse().map_err(|error| {
        CliError::of(Exit::Usage, &error).hint("the host's name is no node name: give one with --name")
    })
}

/// Where peers reach this node: as named, or the address it listens on, or the source address of the route to a peer.
fn advertise(options: &NodeOptions, peer: Option<SocketAddr>) -> Result<SocketAddr, CliError> {
    if let Some(named) = options.advertise {
        return Ok(named);
    }
    if !options.listen.ip().is_unspecified() {
        return Ok(options.listen);
    }
    // Connecting a UDP socket sends nothing; it only asks the kernel for the route. 192.0.2.1 is never a host (RFC 5737).
    let towards = peer.unwrap_or_else(|| SocketAddr::from(([192, 0, 2, 1], 9)));
    let any: IpAddr = if towards.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let route = || -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.connect(towards)?;
        Ok(socket.local_addr()?.ip())
    };
    match route() {
        Ok(ip) if !ip.is_loopback() => Ok(SocketAddr::new(ip, options.listen.port())),
        _ => Err(CliError::new(Exit::Usage, "this host has no route that says at which address peers reach it")
            .hint("name it: --advertise IP:PORT")),
    }
}

async fn resolve(peers: &[String]) -> Result<Vec<SocketAddr>, CliError> {
    let mut found = Vec::new();
    for peer in peers {
        let with_port =
            if peer.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
                peer.clone()
            } else {
                format!("{peer}:{}", crate::config::FABRIC_PORT)
            };
        let addresses = tokio::net::lookup_host(&with_port).await;
        found.extend(addresses.map_err(|error| {
            CliError::new(Exit::Unreachable, format!("peer {peer:?} cannot be found: {error}"))
                .hint("name it as IP:PORT")
        })?);
    }
    Ok(found)
}

fn parts(
    options: &NodeOptions,
    host: ThisHost,
    node: fabric::ids::NodeId,
    clock: Arc<dyn Clock>,
) -> Result<Parts, CliError> {
    let data = options.data_dir.clone();
    let opened = ContainerRuntime::open(ContainerConfig { data: data.clone(), node, exe: None });
    let (runtime, host): (Arc<dyn Runtime>, Arc<dyn Host>) = match opened {
        Ok(runtime) => (Arc::new(runtime), Arc::new(host)),
        Err(error) => {
            tracing::warn!(%error, "this node takes part in the fabric and runs no machines");
            (Arc::new(NoMachines::new(error.to_string())), Arc::new(NothingToOffer(host)))
        }
    };
    let images = data.join("images");
    // The store itself is made once the transport is there; its directory is tried now, while an error can be told.
    std::fs::create_dir_all(&images).map_err(|error| CliError::unusable(&images, &error))?;
    Ok(Parts {
        host,
        layers: Arc::new(HostLayers::new(runtime.clone(), data.join("staging"), clock)),
        ports: Arc::new(HostPorts(runtime.clone())),
        runtime,
        images: Box::new(move |transport| match ImageStore::open(&images, transport, IMAGE) {
            Ok(store) => Arc::new(store),
            Err(error) => {
                tracing::error!(%error, "the image store cannot be used");
                Arc::new(crate::images::service::NoImages::new(error.to_string()))
            }
        }),
    })
}

/// A host that cannot run machines offers nothing, so that none are placed there.
#[derive(Debug)]
struct NothingToOffer(ThisHost);

impl Host for NothingToOffer {
    fn total(&self) -> Capacity {
        Capacity::default()
    }
    fn pressure(&self) -> Pressure {
        self.0.pressure()
    }
    fn disk(&self) -> Option<DiskSpace> {
        self.0.disk()
    }
    fn has_reserve(&self) -> bool {
        self.0.has_reserve()
    }
    fn set_reserve(&self, bytes: u64) -> std::io::Result<()> {
        self.0.set_reserve(bytes)
    }
}

/// Whether the ports can be had.
fn try_ports(options: &NodeOptions) -> Result<(), CliError> {
    let said = |address: SocketAddr, error| format!("cannot listen on {address}: {error}");
    std::net::UdpSocket::bind(options.listen)
        .map_err(|error| CliError::new(Exit::Conflict, said(options.listen, error)).hint(OTHER_PORT))?;
    std::net::TcpListener::bind(options.admin_listen)
        .map_err(|error| CliError::new(Exit::Conflict, said(options.admin_listen, error)).hint(OTHER_ADMIN_PORT))?;
    Ok(())
}

fn lock(data_dir: &Path) -> Result<Flock<std::fs::File>, CliError> {
    let path = data_dir.join(LOCK_FILE);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = opened.map_err(|error| CliError::unusable(data_dir, &error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| CliError::in_use(data_dir))
}

/// Files of the data directory that open the cluster or this node to whoever reads them.
const SECRETS: [&str; 2] = [KEY_FILE, local_token::FILE];

/// Refuses keys that others than their owner can read, as ssh does: who has read one meanwhile is not known here.
fn keys_are_private(data_dir: &Path) -> Result<(), CliError> {
    use std::os::unix::fs::MetadataExt;
    let wide = |path: &std::path::PathBuf| std::fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o077 != 0);
    let secrets = SECRETS.into_iter().chain(raft_store::ledger::SECRETS);
    match secrets.map(|name| data_dir.join(name)).find(wide) {
        None => Ok(()),
        Some(path) => {
            let words = format!("{} holds a secret and is open to other users of this host", path.display());
            Err(CliError::new(Exit::Denied, words).hint(format!("chmod 600 {}", path.display())))
        }
    }
}

fn cluster_file(seams: &Seams, options: &NodeOptions) -> Result<Option<ClusterFile>, CliError> {
    ClusterFile::load(&*seams.disk).map_err(|error| not_started(&error.into(), &options.data_dir))
}

/// Refuses a directory whose membership is over: peers would say so only after this node had called itself ready.
fn is_not_removed(seams: &Seams, options: &NodeOptions) -> Result<(), CliError> {
    match cluster_file(seams, options)? {
        Some(file) if file.removed => {
            Err(expelled("this node was removed from the cluster, or has left it", &options.data_dir))
        }
        _ => Ok(()),
    }
}

/// Writes down how this node is run, for its next start and for clients that look for its socket.
fn remember(seams: &Seams, options: &NodeOptions) -> Result<(), CliError> {
    match cluster_file(seams, options)? {
        Some(mut file) if file.told != options.told => {
            file.told = options.told.clone();
            file.save(&*seams.disk).map_err(|error| not_started(&error.into(), &options.data_dir))
        }
        _ => Ok(()),
    }
}

/// Refuses another name than the one that the ledger knows: taking it silently for the old one would mislead.
fn keeps_its_name(seams: &Seams, options: &NodeOptions) -> Result<(), CliError> {
    match (cluster_file(seams, options)?, &options.name) {
        (Some(file), Some(name)) if file.name != *name => {
            let words = format!("this node is called {}, and a node keeps its name; asked for was {name}", file.name);
            Err(CliError::new(Exit::Conflict, words).hint(
                "leave --name away (zone, labels and addresses can be changed at each start), or leave and join anew",
            ))
        }
        _ => Ok(()),
    }
}

fn not_member(error: &StartError) -> CliError {
    CliError::of(Exit::NotFound, error)
        .hint("smartnode init founds a cluster, smartnode join PEER --token T enters one")
}

const OTHER_PORT: &str = "is another node on this port? Choose one with --listen IP:PORT";
const OTHER_ADMIN_PORT: &str = "choose another with --admin-listen IP:PORT or --admin-socket PATH";

/// This node's membership is over, whatever its data directory says.
fn expelled(cause: &str, data_dir: &Path) -> CliError {
    let data = data_dir.display();
    CliError::new(Exit::Denied, cause).hint(format!(
        "to join anew, move {data} aside (or rm -rf {data}: its machines' disks go too), then: smartnode join PEER --token T"
    ))
}

fn not_started(error: &StartError, data_dir: &Path) -> CliError {
    match error {
        StartError::NotMember => not_member(error),
        StartError::Transport(_) => {
            CliError::of(Exit::Conflict, error).hint(OTHER_PORT)
        }
        StartError::Ledger(damage) if damage.is_damage() => CliError::of(Exit::Failed, error).hint(rejoin(data_dir)),
        StartError::Dir(DirError::Damaged { .. }) => CliError::of(Exit::Failed, error).hint(rejoin(data_dir)),
        StartError::Missing { file: KEY_FILE } => CliError::of(Exit::Failed, error).hint(rejoin(data_dir)),
        StartError::Missing { .. } => CliError::of(Exit::Failed, error).hint(RENEW),
        StartError::Identity(identity) => identity_lost(error, identity, data_dir),
        StartError::Boot(_) => CliError::of(Exit::Failed, error).hint(format!(
            "its stamps must grow, and follow the clock: if this host's clock is right (date), rm {} and: smartnode start",
            data_dir.join("boot").display()
        )),
        // Without the notes a machine could be started here that another node has taken, or on an old copy of its disk: it
        // must be settled first.
        StartError::Moves { file, .. } => CliError::of(Exit::Failed, error).hint(format!(
            "when no machine that was moving {} this node is its any more (on another one: smartnode machine list), \
             rm {} and: smartnode start",
            if *file == marker::OUT { "from" } else { "to" },
            data_dir.join(file).display()
        )),
        StartError::Founding(_) => CliError::of(Exit::Unreachable, error).hint("run the same command again"),
        _ => CliError::of(Exit::Failed, error),
    }
}

fn port_in_use(error: &PortError) -> CliError {
    CliError::of(Exit::Conflict, error).hint(OTHER_ADMIN_PORT)
}

/// What is left to do when what makes a node itself is gone.
fn rejoin(data_dir: &Path) -> String {
    format!(
        "on another node: smartnode node remove NAME --force; then here move {} aside and: smartnode join PEER --token T",
        data_dir.display()
    )
}

const RENEW: &str = "a new certificate is given for a token (smartnode token create, on another node): \
     smartnode join PEER --token T; the node stays what it is";

/// Files of a node's identity are damaged: without its key it is nobody, all others can be had again.
fn identity_lost(error: &dyn std::error::Error, identity: &IdentityError, data_dir: &Path) -> CliError {
    let told = CliError::of(Exit::Failed, error);
    match identity {
        IdentityError::Disk { .. } => told,
        IdentityError::Damaged { file: KEY_FILE, .. } => told.hint(rejoin(data_dir)),
        IdentityError::Damaged { .. } => told.hint(RENEW),
        _ => CliError { cause: format!("{CERTIFICATE_FILE} cannot be used: {}", told.cause), ..told }.hint(RENEW),
    }
}

fn not_founded(error: &FoundingError, data_dir: &Path) -> CliError {
    let refused = |refusal: &fabric::rpc::Refusal| {
        let failure = Failure::from(refusal.clone());
        // A token that opens nothing is a matter of rights, whatever the ledger calls it.
        let exit = if refusal.code.starts_with("token-") { Exit::Denied } else { failure.class.into() };
        let hint =
            refusal.hint.clone().unwrap_or_else(|| "smartnode token create, on a member, prints a new command".into());
        CliError::new(exit, format!("the cluster refuses this node: {}", refusal.message)).hint(hint)
    };
    match error {
        FoundingError::Join(JoinError::Refused(refusal)) => refused(refusal),
        FoundingError::Join(JoinError::Untrusted { source: IdentityError::ForeignToken { .. }, .. }) => {
            CliError::of(Exit::Denied, error).hint("make a token on a member of the cluster that you want to join")
        }
        FoundingError::Join(JoinError::Untrusted { source: IdentityError::Expired(_), .. }) => {
            CliError::of(Exit::Denied, error).hint("if this node's clock is ahead: timedatectl set-ntp true")
        }
        FoundingError::Join(JoinError::Untrusted { .. }) => CliError::of(Exit::Denied, error),
        FoundingError::Join(JoinError::Clock { .. }) => {
            CliError::of(Exit::Failed, error).hint("timedatectl set-ntp true")
        }
        FoundingError::Join(JoinError::NoAnswer { .. }) => CliError::of(Exit::Timeout, error),
        FoundingError::Join(_) => {
            CliError::of(Exit::Unreachable, error).hint("is the peer up, its address right, and its UDP port open?")
        }
        FoundingError::OtherCluster { .. } => {
            CliError::of(Exit::Conflict, error).hint("give this node another --data-dir, or leave that cluster first")
        }
        FoundingError::Dir(DirError::Damaged { .. }) | FoundingError::NoKey => {
            CliError::of(Exit::Failed, error).hint(rejoin(data_dir))
        }
        FoundingError::Identity(identity) => identity_lost(error, identity, data_dir),
        _ => CliError::of(Class::Internal.into(), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NodeArgs, PlaceArgs};

    /// The options of a node whose data directory is `data`, and its seams.
    fn node(data: &Path, args: NodeArgs) -> (NodeOptions, Seams) {
        let place = PlaceArgs { data_dir: Some(data.into()), config: None };
        (NodeOptions::resolve(&place, args).unwrap(), real::seams(data).unwrap())
    }

    #[test]
    fn a_start_writes_down_how_it_was_told_to_run() {
        let data = tempfile::tempdir().unwrap();
        let listen: SocketAddr = ([127, 0, 0, 1], 30_500).into();
        let (options, seams) = node(data.path(), NodeArgs { listen: Some(listen), ..NodeArgs::default() });
        remember(&seams, &options).expect("no member yet");
        super::super::dir::tests::file().save(&*seams.disk).unwrap();
        remember(&seams, &options).unwrap();
        let (again, _) = node(data.path(), NodeArgs::default());
        assert_eq!(again, options);
        assert_eq!(again.listen, listen);
    }

    #[tokio::test]
    async fn a_removed_node_is_refused_at_once_whatever_it_is_started_for() {
        let data = tempfile::tempdir().unwrap();
        let (options, seams) = node(data.path(), NodeArgs::default());
        let file = ClusterFile { removed: false, ..super::super::dir::tests::file() };
        file.save(&*seams.disk).unwrap();
        is_not_removed(&seams, &options).expect("a member");
        note_removal(&*seams.disk);
        assert_eq!(ClusterFile::load(&*seams.disk).unwrap(), Some(ClusterFile { removed: true, ..file }));
        let join = Start::Join { peers: vec!["127.0.0.1:1".into()], token: "sn1-x".into() };
        for start in [Start::Start, Start::Init, join] {
            let error = run(options.clone(), start).await.expect_err("its membership is over");
            assert!(error.exit == Exit::Denied && error.cause.contains("was removed from the cluster"), "{error}");
            let hint = error.hint.unwrap();
            assert!(hint.contains(&format!("rm -rf {}", data.path().display())) && hint.contains("join"), "{hint}");
        }
    }

    #[test]
    fn what_holds_a_secret_is_private_and_the_note_of_the_ledger_may_be_read() {
        let data = tempfile::tempdir().unwrap();
        let place = |name: &str, mode| {
            let file =
                OpenOptions::new().create(true).truncate(false).write(true).mode(mode).open(data.path().join(name));
            drop(file.unwrap());
        };
        place("ledger-id", 0o644);
        place("ledger.redb", 0o600);
        keys_are_private(data.path()).expect("nothing is given away");
        place("feed", 0o644);
        let error = keys_are_private(data.path()).expect_err("a view holds secrets");
        assert!(error.exit == Exit::Denied && error.to_string().contains("feed"), "{error}");
    }
}
