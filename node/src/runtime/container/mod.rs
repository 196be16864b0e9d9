//! The container runtime: the daemon's side.
//!
//! It holds no truth: what runs is what supervisors say, what exists is what the directories hold, so a daemon that starts
//! anew finds everything again. It starts supervisors, listens to each over a connection of its own, and buries what a
//! dead one leaves.
#![expect(clippy::disallowed_methods, reason = "machines' directories hold mounts and sockets: no seam fits them")]

mod client;
mod entry;
mod exec;
mod logs;
mod sweep;
mod usage;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fabric::ids::{MachineId, NodeId};
use fabric::model::{MachineState, MachineStatus};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::process::Command;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use self::client::{ClientError, ask};
use self::entry::Shared;
use super::cgroup::Host;
use super::limits::{CONNECT_TIMEOUT, CONTROL_TIMEOUT, GRACE_MAX, KILL_TIMEOUT, START_TIMEOUT};
use super::line::{Request, StatusLine};
use super::process::Process;
use super::record::{ENDED, ERRORS, LAUNCH, LaunchRecord, UPPER, WORK};
use super::supervisor::ARGV0;
use super::{Duplex, ExecStream, Launch, LogLine, LogQuery, Observed, Runtime, RuntimeError};

/// Where machines live and whose they are.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// The node's data directory.
    pub data: PathBuf,
    /// The node: its id is in the name of everything that is made on the host.
    pub node: NodeId,
    /// The binary that is executed anew as supervisor; none is the running one, even if its file has been replaced.
    pub exe: Option<PathBuf>,
}

/// Runs machines as containers.
#[derive(Debug, Clone)]
pub struct ContainerRuntime {
    shared: Arc<Shared>,
    exe: PathBuf,
}

/// Adds to an error what was being done.
pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let what = what.into();
    move |source| RuntimeError::Io { what, source }
}

impl ContainerRuntime {
    /// Opens the machines of a data directory. Nothing is started or stopped; [`Runtime::list`] finds what runs.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] names what the host lacks.
    pub fn open(config: ContainerConfig) -> Result<Self, RuntimeError> {
        let data = std::path::absolute(&config.data).map_err(io_error("find the data directory"))?;
        let exe = config.exe.unwrap_or_else(|| "/proc/self/exe".into());
        let make = |dir: &Path| {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(io_error(format!("make {}", dir.display())))
        };
        make(&data)?;
        if let Some(missing) = super::preflight::preflight_in(&data, &exe).missing() {
            return Err(RuntimeError::Unsupported(missing));
        }
        let host = Host::detect().map_err(RuntimeError::Unsupported)?;
        let shared = Shared::new(data, format!("smartnode-{}", config.node.short()), host);
        make(&shared.machines())?;
        make(&shared.quarantine())?;
        Ok(ContainerRuntime { shared, exe })
    }

    fn write_launch(&self, launch: &Launch) -> Result<LaunchRecord, RuntimeError> {
        let start = |reason: &str| RuntimeError::Start { id: launch.id, reason: reason.into() };
        if launch.command().is_empty() {
            return Err(start("neither the machine nor its image names a program: give a command"));
        }
        if launch.spec.exclusive && launch.lease_deadline.is_none() {
            return Err(start("an exclusive machine needs a lease"));
        }
        let record = LaunchRecord::of(launch, &self.shared.prefix)
            .ok_or_else(|| start("the image's directory has a name that is not UTF-8"))?;
        let dir = self.shared.dir(launch.id);
        let make = || -> io::Result<()> {
            let directory = |dir: &Path, mode| fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
            directory(&dir, 0o700)?;
            write_durably(&dir, LAUNCH, &fabric::wire::encode(&record))?;
            directory(&dir.join(UPPER), 0o755)?;
            directory(&dir.join(WORK), 0o700)
        };
        make().map_err(io_error(format!("prepare {}", dir.display())))?;
        Ok(record)
    }

    /// Executes this binary anew as supervisor and listens to it.
    async fn spawn(&self, record: LaunchRecord) -> Result<watch::Receiver<entry::Seen>, RuntimeError> {
        let id = record.id;
        let _ = fs::remove_file(self.shared.dir(id).join(ENDED));
        // Known as up before anything of it exists: a sweep must not take its control group for a left-over.
        // Nor may it be without a deadline before its supervisor has said a word.
        let deadline = record.lease_deadline_ns.map(Duration::from_nanos);
        let line = StatusLine { deadline, ..StatusLine::down(MachineState::Preparing, None) };
        let seen = self.shared.insert(record, line, true);
        match self.spawn_supervisor(id).await {
            Ok(feed) => Shared::listen(&self.shared, id, feed),
            Err(error) => {
                self.shared.not_started(id, &error);
                return Err(io_error("start a supervisor")(error));
            }
        }
        Ok(seen)
    }

    async fn spawn_supervisor(&self, id: MachineId) -> io::Result<client::Feed> {
        let dir = self.shared.dir(id);
        let (ours, theirs) = UnixStream::pair()?;
        let theirs: OwnedFd = theirs.into_std()?.into();
        let errors = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(ERRORS))?;
        let mut command = Command::new(&self.exe);
        command.arg0(ARGV0).arg(&dir).stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(errors);
        let mut child = command.spawn()?;
        // It holds the other end of the socket, which must not stay open here too.
        drop(command);
        // It forks at once and the child of ours ends.
        tokio::spawn(async move { child.wait().await });
        client::Feed::ask(ours).await
    }

    /// Asks the supervisor; `what` names the request in errors.
    async fn ask(
        &self,
        id: MachineId,
        request: Request,
        what: &'static str,
        patience: Duration,
    ) -> Result<Option<OwnedFd>, RuntimeError> {
        self.shared.adopt().await?;
        if !self.shared.seen(id)?.up {
            return Err(self.shared.wrong_state(id, "start it first"));
        }
        ask(&self.shared.dir(id), request, patience).await.map_err(|error| match error {
            ClientError::Refused(reason) => RuntimeError::Supervisor { id, reason },
            ClientError::Timeout => RuntimeError::Timeout { id, what, after: patience },
            ClientError::Gone(source) => RuntimeError::Io { what: format!("{what}: machine {id:?} has ended"), source },
        })
    }

    /// Kills what runs and waits until nothing is left; a machine that is down already is fine.
    async fn put_down(&self, id: MachineId, signal: i32, grace: Duration) -> Result<(), RuntimeError> {
        self.shared.adopt().await?;
        let grace = grace.min(GRACE_MAX);
        let mut watching = self.shared.watch(id)?;
        if watching.borrow().up {
            let patience = grace + KILL_TIMEOUT;
            match self.ask(id, Request::Stop { signal, grace }, "stop", patience).await {
                // Gone in between: what is left is waited for below.
                Ok(_) | Err(RuntimeError::Io { .. } | RuntimeError::State { .. }) => {}
                Err(RuntimeError::Timeout { .. }) => self.kill_hung(id),
                Err(error) => return Err(error),
            }
            if timeout(KILL_TIMEOUT, watching.wait_for(|seen| !seen.up)).await.is_ok() {
                return Ok(());
            }
            self.kill_hung(id);
            if timeout(KILL_TIMEOUT, watching.wait_for(|seen| !seen.up)).await.is_err() {
                return Err(RuntimeError::Timeout { id, what: "stop", after: patience + KILL_TIMEOUT });
            }
        }
        Ok(())
    }

    /// Its supervisor hangs: it does not end the machine, so the two end together.
    fn kill_hung(&self, id: MachineId) {
        tracing::warn!(machine = %id.short(), "its supervisor does not answer and is killed, the machine with it");
        self.shared.kill(id);
    }

    /// A machine that has ended by itself is up until its supervisor has cleared away.
    async fn wait_if_ending(&self, id: MachineId) -> Result<(), RuntimeError> {
        use MachineState::{Exited, Failed, Stopped};
        let Ok(mut watching) = self.shared.watch(id) else { return Ok(()) };
        if !matches!(watching.borrow().line.state, Exited | Failed | Stopped) {
            return Ok(());
        }
        let gone = timeout(KILL_TIMEOUT, watching.wait_for(|seen| !seen.up)).await;
        gone.map(drop).map_err(|_| RuntimeError::Timeout { id, what: "end", after: KILL_TIMEOUT })
    }

    async fn process(&self, id: MachineId) -> Result<Process, RuntimeError> {
        self.shared.adopt().await?;
        let seen = self.shared.seen(id)?;
        let pid = seen.line.pid.filter(|_| seen.up && seen.line.shown_state() == MachineState::Running);
        pid.and_then(Process::of).ok_or_else(|| self.shared.wrong_state(id, "it must be running"))
    }

    async fn dial(&self, id: MachineId, v6: bool, port: u16) -> Result<io::Result<TcpStream>, RuntimeError> {
        let passed = self.ask(id, Request::Socket { v6 }, "connect", CONTROL_TIMEOUT).await?;
        let Some(socket) = passed else {
            return Err(RuntimeError::Supervisor { id, reason: "it passed no socket".into() });
        };
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        let ip = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let connected = timeout(CONNECT_TIMEOUT, socket.connect(SocketAddr::new(ip, port))).await;
        Ok(connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
    }
}

/// Replaces a file of a machine's directory; the file and the directory are on the disk when this returns.
fn write_durably(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    super::record::replace(dir, name, content)?;
    dir.parent().map_or(Ok(()), |machines| fs::File::open(machines)?.sync_all())
}

#[async_trait]
impl Runtime for ContainerRuntime {
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.shared.adopt().await?;
        Ok(self.shared.observed())
    }

    async fn prepare(&self, launch: &Launch) -> Result<(), RuntimeError> {
        self.shared.adopt().await?;
        if self.shared.seen(launch.id).is_ok_and(|seen| seen.up) {
            return Err(self.shared.wrong_state(launch.id, "stop it first"));
        }
        let record = self.write_launch(launch)?;
        let _ = fs::remove_file(self.shared.dir(launch.id).join(ENDED));
        self.shared.insert(record, StatusLine::down(MachineState::Stopped, None), false);
        Ok(())
    }

    async fn start(&self, launch: &Launch) -> Result<(), RuntimeError> {
        let id = launch.id;
        self.shared.adopt().await?;
        self.wait_if_ending(id).await?;
        let mut watching = match self.shared.watch(id) {
            Ok(watching) if watching.borrow().up => {
                if self.shared.epoch(id) != Some(launch.epoch) {
                    return Err(self.shared.wrong_state(id, "it runs at another epoch: stop it first"));
                }
                watching
            }
            _ => {
                // A crash may have left its frozen processes, and whoever joins a frozen group stands still.
                self.shared.bury(id).await?;
                let record = self.write_launch(launch)?;
                self.spawn(record).await?
            }
        };
        let settled = |seen: &entry::Seen| !seen.up || seen.line.state != MachineState::Preparing;
        let waited = timeout(START_TIMEOUT, watching.wait_for(settled)).await;
        let Ok(settled) = waited else {
            return Err(RuntimeError::Timeout { id, what: "start", after: START_TIMEOUT });
        };
        let line = settled.map_err(|_| RuntimeError::NotFound(id))?.line.clone();
        match line.state {
            MachineState::Failed | MachineState::Preparing => {
                let reason = line.reason.unwrap_or_else(|| "its supervisor ended without a word".into());
                Err(RuntimeError::Start { id, reason })
            }
            _ => Ok(()),
        }
    }

    async fn stop(&self, id: MachineId, grace: Duration) -> Result<(), RuntimeError> {
        self.put_down(id, libc::SIGTERM, grace).await
    }

    async fn destroy(&self, id: MachineId) -> Result<(), RuntimeError> {
        match self.put_down(id, libc::SIGKILL, Duration::ZERO).await {
            Ok(()) | Err(RuntimeError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        self.shared.bury(id).await?;
        let gone = self.shared.set_aside(id)?;
        self.shared.forget(id);
        // The machine is destroyed once it is out of the listing. The kernel may still be letting go of its mounts, which
        // keeps a directory from going: the next sweep takes it along.
        if let Some(gone) = gone
            && let Err(error) = sweep::remove_tree(gone).await
        {
            tracing::warn!(machine = %id, %error, "what is left of a destroyed machine goes with the next sweep");
        }
        Ok(())
    }

    async fn quarantine(&self, id: MachineId) -> Result<(), RuntimeError> {
        match self.put_down(id, libc::SIGKILL, Duration::ZERO).await {
            Ok(()) => {}
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.shared.bury(id).await?;
        self.shared.keep_aside(id)?;
        self.shared.forget(id);
        Ok(())
    }

    async fn freeze(&self, id: MachineId) -> Result<(), RuntimeError> {
        self.ask(id, Request::Freeze, "freeze", CONTROL_TIMEOUT).await.map(drop)
    }

    async fn thaw(&self, id: MachineId) -> Result<(), RuntimeError> {
        self.ask(id, Request::Thaw, "thaw", CONTROL_TIMEOUT).await.map(drop)
    }

    async fn renew(&self, id: MachineId, deadline: Duration, thaw: bool) -> Result<(), RuntimeError> {
        self.ask(id, Request::Renew { deadline, thaw }, "renew", CONTROL_TIMEOUT).await?;
        self.shared.set_deadline(id, |held| held.max(deadline));
        Ok(())
    }

    async fn shorten(&self, id: MachineId, deadline: Duration) -> Result<(), RuntimeError> {
        self.ask(id, Request::Shorten { deadline }, "shorten", CONTROL_TIMEOUT).await?;
        self.shared.set_deadline(id, |held| held.min(deadline));
        Ok(())
    }

    async fn fence(&self, id: MachineId) -> Result<bool, RuntimeError> {
        self.shared.adopt().await?;
        self.shared.fence(id)
    }

    async fn status(&self, id: MachineId) -> Result<MachineStatus, RuntimeError> {
        self.shared.adopt().await?;
        self.shared.status(id)
    }

    async fn exec(&self, id: MachineId, argv: &[String]) -> Result<ExecStream, RuntimeError> {
        let process = self.process(id).await?;
        exec::start(&self.exe, process, &self.shared.dir(id), argv).map_err(io_error("start a program in a machine"))
    }

    async fn logs(&self, id: MachineId, query: LogQuery) -> Result<mpsc::Receiver<LogLine>, RuntimeError> {
        self.shared.adopt().await?;
        self.shared.seen(id)?;
        logs::read(self.shared.dir(id), query).map_err(io_error(format!("read the log of machine {id:?}")))
    }

    async fn connect(&self, id: MachineId, port: u16) -> Result<Box<dyn Duplex>, RuntimeError> {
        self.process(id).await?;
        let v4 = match self.dial(id, false, port).await? {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => error,
        };
        // A program may listen on IPv6 alone.
        match self.dial(id, true, port).await? {
            Ok(stream) => Ok(Box::new(stream)),
            Err(_) => Err(RuntimeError::Connect { id, port, source: v4 }),
        }
    }

    fn writable_layer(&self, id: MachineId) -> PathBuf {
        self.shared.dir(id).join(UPPER)
    }

    async fn layer_bytes(&self, id: MachineId) -> Result<u64, RuntimeError> {
        let upper = self.writable_layer(id);
        let counted = tokio::task::spawn_blocking(move || usage::tree_bytes(&upper)).await;
        let counted = counted.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        counted.map_err(io_error(format!("measure the disk of machine {id:?}")))
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    async fn sweep(&self, keep: Duration) -> Result<(), RuntimeError> {
        // What a former daemon left running is no left-over.
        self.shared.adopt().await?;
        self.shared.sweep(keep).await
    }
}

/// The path of a machine's directory below a data directory, for tools that look from outside.
pub fn machine_dir(data: &Path, id: MachineId) -> PathBuf {
    data.join("machines").join(id.to_string())
}
