//! Throw-away hosts on this host: what `smartnode demo` and the tests run their fabrics on.
//!
//! As root each host is a network namespace with a veth to a switch (a bridge in a namespace of its own), so that hosts
//! can be cut off one by one and nothing of it shows on the real network. Without root the hosts are loopback addresses.
//! Everything made here carries the lab's prefix and is removed when the lab is dropped, after a failure too.
#![expect(clippy::disallowed_methods, reason = "drives real processes and namespaces; never part of a node")]

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use thiserror::Error;

pub mod processes;

/// Most hosts in one lab.
pub const HOSTS_MAX: usize = 32;
/// The daemons' empty configuration file, in the lab's directory.
const CONFIG: &str = "smartnode.toml";

/// Why the lab could not do something.
#[derive(Debug, Error)]
pub enum LabError {
    /// A program could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{command} failed: {stderr}")]
    Failed {
        /// What was run.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// A directory or file could not be made.
    #[error("cannot use {path}")]
    File {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How hosts are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Network namespaces; needs root.
    Namespaces,
    /// Loopback addresses.
    Loopback,
}

impl Isolation {
    /// Namespaces where they can be made, else loopback.
    pub fn detect() -> Self {
        let root = nix::unistd::geteuid().is_root();
        let quiet = |mut command: Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let works = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments);
            quiet(command).is_ok_and(|status| status.success())
        };
        let namespaces = root && works("unshare", &["--net", "true"]) && works("ip", &["netns", "list"]);
        if namespaces { Isolation::Namespaces } else { Isolation::Loopback }
    }
}

/// One throw-away host.
#[derive(Debug)]
pub struct Host {
    /// `n1`, `n2`, ...
    pub name: String,
    /// Its address; the fabric listens on port 7420 of it.
    pub address: IpAddr,
    /// The node's data directory.
    pub data_dir: PathBuf,
    /// What the daemon writes to stderr.
    pub log: PathBuf,
    namespace: Option<String>,
    daemon: Option<Child>,
}

/// The hosts and what connects them.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    root: PathBuf,
    program: PathBuf,
    isolation: Isolation,
    hosts: Vec<Host>,
}

fn run(command: &mut Command) -> Result<Output, LabError> {
    // Ctrl-C at the terminal is for whoever owns the lab: what cleans up must not be hit by it.
    command.process_group(0).stdin(Stdio::null());
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| LabError::Spawn { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(output);
    }
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Failed { command: format!("{program} {}", arguments.join(" ")), stderr })
}

fn ip(arguments: &str) -> Result<Output, LabError> {
    run(Command::new("ip").args(arguments.split_whitespace()))
}

impl Lab {
    /// An empty lab whose files live in `root` and whose daemons are `program`. `tag` is at most 6 letters.
    ///
    /// # Errors
    /// When the switch cannot be made.
    pub fn new(tag: &str, root: &Path, program: &Path, isolation: Isolation) -> Result<Self, LabError> {
        let file = |source| LabError::File { path: root.to_owned(), source };
        fs::create_dir_all(root).map_err(file)?;
        // Given to every daemon, so that the configuration of this host's own node has no part in it.
        fs::write(root.join(CONFIG), "").map_err(file)?;
        let prefix = format!("sn{tag}{}", std::process::id());
        let (root, program) = (root.to_owned(), program.to_owned());
        let lab = Lab { prefix, root, program, isolation, hosts: Vec::new() };
        if isolation == Isolation::Namespaces {
            let switch = lab.switch();
            ip(&format!("netns add {switch}"))?;
            ip(&format!("-n {switch} link add br0 type bridge"))?;
            ip(&format!("-n {switch} address add 10.77.0.254/24 dev br0"))?;
            ip(&format!("-n {switch} link set br0 up"))?;
            ip(&format!("-n {switch} link set lo up"))?;
        }
        Ok(lab)
    }

    /// The namespace of the switch, from which a client outside the fabric reaches all hosts.
    pub fn switch(&self) -> String {
        format!("{}sw", self.prefix)
    }

    /// How hosts are kept apart.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Adds the next host.
    ///
    /// # Errors
    /// When its namespace or directory cannot be made.
    pub fn add_host(&mut self) -> Result<&mut Host, LabError> {
        let number = self.hosts.len() + 1;
        assert!(number <= HOSTS_MAX, "a lab has at most {HOSTS_MAX} hosts");
        let name = format!("n{number}");
        let (address, namespace) = match self.isolation {
            Isolation::Loopback => (Ipv4Addr::new(127, 77, 0, number as u8), None),
            Isolation::Namespaces => (Ipv4Addr::new(10, 77, 0, number as u8), Some(format!("{}{name}", self.prefix))),
        };
        let data_dir = self.root.join(&name);
        fs::create_dir_all(&data_dir).map_err(|source| LabError::File { path: data_dir.clone(), source })?;
        let log = self.root.join(format!("{name}.log"));
        let made = namespace.clone();
        // Listed before it is whole, so that it is torn down even if the rest fails.
        self.hosts.push(Host { name, address: address.into(), data_dir, log, namespace, daemon: None });
        if let Some(namespace) = made {
            let (switch, up) = (self.switch(), format!("v{number}"));
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("-n {switch} link add {up} type veth peer name eth0 netns {namespace}"))?;
            ip(&format!("-n {switch} link set {up} master br0 up"))?;
            ip(&format!("-n {namespace} address add {address}/24 dev eth0"))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        Ok(self.hosts.last_mut().expect("just added"))
    }

    /// A host by its position, from 0.
    ///
    /// # Panics
    /// When there is no such host.
    pub fn host(&self, at: usize) -> &Host {
        &self.hosts[at]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A command that runs on a host.
    pub fn on(&self, at: usize, program: &Path) -> Command {
        self.hosts[at].command(program)
    }

    /// The `smartnode` client on a host, talking to that host's daemon.
    pub fn client(&self, at: usize, arguments: &[&str]) -> Command {
        let mut command = self.on(at, &self.program);
        command.env("SMARTNODE_ADMIN", format!("unix:{}", self.hosts[at].admin_socket().display())).args(arguments);
        command
    }

    /// Starts the daemon of a host in the foreground of this process: `init`, `join ...` or `start`, with the flags that
    /// every node of a lab needs.
    ///
    /// # Errors
    /// When it cannot be started; what it then says is in the host's log.
    pub fn start_daemon(&mut self, at: usize, arguments: &[&str]) -> Result<(), LabError> {
        let (program, config) = (self.program.clone(), self.root.join(CONFIG));
        let host = &mut self.hosts[at];
        let log = File::options().create(true).append(true).open(&host.log);
        let log = log.map_err(|source| LabError::File { path: host.log.clone(), source })?;
        let (address, name) = (host.address, host.name.clone());
        let admin: IpAddr = if host.namespace.is_some() { Ipv4Addr::LOCALHOST.into() } else { address };
        let mut command = host.command(&program);
        command.args(arguments).arg("--data-dir").arg(&host.data_dir);
        command.args(["--name", &name, "--listen", &format!("{address}:7420")]);
        command.args(["--advertise", &format!("{address}:7420")]);
        if !arguments.contains(&"--admin-listen") {
            command.args(["--admin-listen", &format!("{admin}:7421")]);
        }
        command.arg("--admin-socket").arg(host.admin_socket()).arg("--config").arg(config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let spawned = command.spawn();
        let source = |source| LabError::Spawn { program: program.display().to_string(), source };
        host.daemon = Some(spawned.map_err(source)?);
        Ok(())
    }

    /// SIGKILL for the daemon alone.
    pub fn kill_daemon(&mut self, at: usize) {
        if let Some(mut daemon) = self.hosts[at].daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// Sends a signal to the daemon.
    pub fn signal_daemon(&self, at: usize, signal: nix::sys::signal::Signal) {
        if let Some(daemon) = &self.hosts[at].daemon {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.id() as i32), signal);
        }
    }

    /// Power loss of a host, as far as processes go: daemon, supervisors and machines at once.
    pub fn kill_host(&mut self, at: usize) {
        let supervisors = processes::supervisors_of(&self.hosts[at].data_dir);
        if let Some(daemon) = &mut self.hosts[at].daemon {
            let _ = daemon.kill();
        }
        for pid in &supervisors {
            processes::kill(*pid);
        }
        processes::kill_machines(&self.hosts[at].data_dir);
        if let Some(mut daemon) = self.hosts[at].daemon.take() {
            let _ = daemon.wait();
        }
    }

    /// The daemon's exit status if it has ended.
    pub fn daemon_ended(&mut self, at: usize) -> Option<std::process::ExitStatus> {
        self.hosts[at].daemon.as_mut()?.try_wait().ok().flatten()
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self, at: usize) -> Option<u32> {
        self.hosts[at].daemon.as_ref().map(Child::id)
    }

    /// Drops what host `from` sends to host `to`: call it both ways for a full cut. Namespaces only.
    ///
    /// # Errors
    /// When nft refuses.
    pub fn cut(&self, from: usize, to: usize) -> Result<(), LabError> {
        let (source, target) = (self.hosts[from].address, &self.hosts[to]);
        let rules = format!(
            "add table ip lab\nadd chain ip lab door {{ type filter hook input priority 0; }}\n\
             add rule ip lab door ip saddr {source} drop\n"
        );
        self.nft(target, &rules)
    }

    /// Ends every cut at a host's door.
    ///
    /// # Errors
    /// When nft refuses.
    pub fn heal(&self, at: usize) -> Result<(), LabError> {
        self.nft(&self.hosts[at], "add table ip lab\ndelete table ip lab\n")
    }

    fn nft(&self, host: &Host, rules: &str) -> Result<(), LabError> {
        let path = self.root.join(format!("{}.nft", host.name));
        fs::write(&path, rules).map_err(|source| LabError::File { path: path.clone(), source })?;
        run(host.command(Path::new("nft")).arg("-f").arg(&path)).map(drop)
    }

    /// Ends every process of the lab and removes its namespaces. Files stay for who made the root directory.
    pub fn tear_down(&mut self) {
        for at in 0..self.hosts.len() {
            self.kill_host(at);
            processes::remove_leftovers(&self.hosts[at].data_dir);
        }
        for host in &self.hosts {
            if let Some(namespace) = &host.namespace {
                let _ = ip(&format!("netns delete {namespace}"));
            }
        }
        if self.isolation == Isolation::Namespaces {
            let _ = ip(&format!("netns delete {}", self.switch()));
        }
        self.hosts.clear();
    }
}

impl Host {
    /// The admin port's unix socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.data_dir.join("admin.sock")
    }

    /// The host's network namespace, if it has one.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = self.bare(program);
        // What the caller's environment says to a node is not meant for these, except how much they log.
        for (key, _) in std::env::vars_os() {
            if key.as_encoded_bytes().starts_with(b"SMARTNODE_") && key != "SMARTNODE_LOG" {
                command.env_remove(key);
            }
        }
        command
    }

    fn bare(&self, program: &Path) -> Command {
        match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                // nsenter by file: `ip netns exec` would also give the daemon a mount namespace of its own, and what it
                // mounts there could not be seen from the test.
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
                command
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.tear_down();
    }
}
