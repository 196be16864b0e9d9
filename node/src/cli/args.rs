//! The verbs and flags. Only what this version can do: later ones are absent, not refused.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::error::{CliError, Exit};
use crate::api::client::Address;
use crate::api::types::{MachineState, Publish, Restart, Role};
use crate::config::{NodeArgs, PlaceArgs, Start};
use crate::limits::IDEMPOTENCY_KEY_BYTES_MAX;
use crate::units;

/// A cluster fabric without a central controller.
#[derive(Debug, Parser)]
#[command(
    name = "smartnode",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Shape of the data on stdout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// As the API gives it.
    Json,
    /// The same in YAML.
    Yaml,
    /// Names alone, one a line.
    Name,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Data directory and configuration.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// A context of ~/.config/smartnode/contexts.toml: admin, ca, token_file and tenant under a name
    #[arg(long, global = true, env = "SMARTNODE_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Admin port to ask: unix:PATH, http://HOST:PORT or https://HOST:PORT [default: this node's socket]
    #[arg(long, global = true, env = "SMARTNODE_ADMIN", value_name = "URL")]
    pub admin: Option<Address>,
    /// File with the API token, - for standard input [default: admin.token in the data directory, if needed]
    #[arg(long, global = true, env = "SMARTNODE_TOKEN_FILE", value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// File with the cluster's CA, for https [default: ca.pem in the data directory]
    #[arg(long, global = true, env = "SMARTNODE_CA", value_name = "PATH")]
    pub ca: Option<PathBuf>,
    /// Tenant of machines and images, and whose events to tell [default: default; events: all]
    #[arg(long, global = true, env = "SMARTNODE_TENANT", value_name = "NAME")]
    pub tenant: Option<String>,
    /// Shape of the data on stdout
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "SHAPE")]
    pub output: Output,
    /// Say nothing but errors on stderr
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Wait until it is done, with its progress on stderr
    #[arg(long, global = true)]
    pub wait: bool,
    /// Give up waiting after this long
    #[arg(long, global = true, value_name = "DURATION", value_parser = units::duration, default_value = "60s")]
    pub timeout: Duration,
    /// Do not ask before something is destroyed
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Check everything, change nothing; what cannot be rehearsed (init, join, start, exec, forward, demo) refuses it
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Key of what is changed: repeated with it within a day, through any node, nothing is done twice; what changes nothing
    /// in the cluster refuses it [default: a new one]
    #[arg(long, global = true, value_name = "KEY", value_parser = idempotency_key)]
    pub idempotency_key: Option<String>,
}

fn idempotency_key(text: &str) -> Result<String, String> {
    let fits =
        (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| text.to_owned())
        .ok_or_else(|| format!("a key is 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters without spaces"))
}

impl Global {
    /// The tenant of machines and images.
    pub fn tenant(&self) -> &str {
        self.tenant.as_deref().unwrap_or("default")
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a cluster on this host, and run its first node
    Init(InitArgs),
    /// Join a cluster through any of its nodes, and run
    Join(JoinArgs),
    /// Run the node of the data directory
    Start(StartArgs),
    /// Stop this node's daemon; its machines go on
    Stop(StopArgs),
    /// Take this node out of its cluster for good
    Leave(LeaveArgs),
    /// The cluster as this node sees it, first what it tolerates
    Status(StatusArgs),
    /// Version of this program
    Version,
    /// Completions for a shell, on stdout
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// The systemd unit of this node
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Tokens that admit nodes
    #[command(subcommand)]
    Token(TokenCommand),
    /// Nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Machines
    #[command(subcommand)]
    Machine(MachineCommand),
    /// Images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Tenants
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// What has happened
    Events(EventsArgs),
    /// A throw-away fabric of three nodes on this host: what it does when a node dies, and how long it takes
    Demo,
    /// The program of the demo's machine
    #[command(hide = true)]
    CounterServer {
        /// Port to serve.
        #[arg(long)]
        port: u16,
        /// File of the count.
        #[arg(long)]
        file: PathBuf,
    },
}

/// A daemon to be started.
#[derive(Debug)]
pub struct NodeRun {
    /// Its options as typed.
    pub node: NodeArgs,
    /// In the background.
    pub detach: bool,
    /// What for.
    pub start: Start,
}

/// Flags of every command that starts a daemon.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Run in the background; return when the node is ready
    #[arg(long)]
    detach: bool,
}

/// `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    #[command(flatten)]
    run: RunArgs,
}

/// `start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    run: RunArgs,
}

/// `join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// Members to ask, host:port
    #[arg(required = true, value_name = "PEER", num_args = 1..)]
    peers: Vec<String>,
    /// The join token, - for standard input
    #[arg(long, env = "SMARTNODE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: String,
    #[command(flatten)]
    run: RunArgs,
}

impl InitArgs {
    /// As a daemon to be started.
    pub fn into_node(self) -> NodeRun {
        NodeRun { node: self.run.node, detach: self.run.detach, start: Start::Init }
    }
}

impl StartArgs {
    /// As a daemon to be started.
    pub fn into_node(self) -> NodeRun {
        NodeRun { node: self.run.node, detach: self.run.detach, start: Start::Start }
    }
}

impl JoinArgs {
    /// As a daemon to be started; reads the token where it is `-`.
    ///
    /// # Errors
    /// When standard input holds no token.
    pub fn into_node(self) -> Result<NodeRun, CliError> {
        let token = match self.token.as_str() {
            "-" => super::session::first_line_of_stdin()?,
            token => token.trim().to_owned(),
        };
        if token.is_empty() {
            return Err(
                CliError::new(Exit::Usage, "the join token is empty").hint("on a member: smartnode token create")
            );
        }
        let start = Start::Join { peers: self.peers, token };
        Ok(NodeRun { node: self.run.node, detach: self.run.detach, start })
    }
}

/// `stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// How long the cluster is to hold this node's machines where they are
    #[arg(long, value_name = "DURATION", value_parser = units::duration, default_value = "60s")]
    pub absence: Duration,
}

/// `leave`.
#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// Delete the node's data, too
    #[arg(long)]
    pub purge: bool,
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Wait until this many voters may be lost
    #[arg(long, value_name = "N")]
    pub wait_tolerance: Option<u32>,
}

/// `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with new events
    #[arg(short, long)]
    pub follow: bool,
    /// Only what came after this cursor, which any node gave (-o name prints cursors)
    #[arg(long, value_name = "CURSOR")]
    pub since: Option<String>,
}

/// `service`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Write the unit
    Install(UnitArgs),
    /// Remove the unit
    Uninstall(UnitArgs),
}

/// Where units are.
#[derive(Debug, Args)]
pub struct UnitArgs {
    /// Directory of the unit
    #[arg(long, value_name = "PATH", default_value = "/etc/systemd/system")]
    pub unit_dir: PathBuf,
}

/// `token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a join token; prints the command to run on the new node
    Create {
        /// voter: may vote and hold the CA key; worker: runs machines, never votes
        #[arg(long, default_value = "voter", value_parser = role, value_name = "ROLE")]
        role: Role,
        /// Valid this long
        #[arg(long, default_value = "1h", value_parser = units::duration, value_name = "DURATION")]
        ttl: Duration,
        /// Admits this many nodes
        #[arg(long, default_value_t = 1, value_name = "N")]
        uses: u32,
    },
    /// Live tokens, without their secrets
    List(ListArgs),
    /// Revoke a token
    Revoke {
        /// Its id.
        id: String,
    },
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "voter" => Ok(Role::Voter),
        "worker" => Ok(Role::Worker),
        other => Err(format!("{other:?} is no role: voter or worker")),
    }
}

/// `tenant`.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Make a tenant
    Create {
        /// Its name.
        name: String,
        /// The tenant above it
        #[arg(long, value_name = "NAME")]
        parent: Option<String>,
    },
    /// Tenants
    List(ListArgs),
    /// One tenant
    Inspect {
        /// Its name.
        name: String,
    },
    /// Delete an empty tenant
    Delete {
        /// Its name.
        name: String,
    },
}

/// `node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Admitted nodes
    List(ListArgs),
    /// One node
    Inspect(NodeName),
    /// Place no new machines there
    Cordon(NodeName),
    /// Place machines there again
    Uncordon(NodeName),
    /// Cordon, and move every machine away
    Drain(NodeName),
    /// Remove a node: its certificate is void everywhere
    Remove {
        /// Name or id.
        node: String,
        /// Although it owns machines: they start elsewhere
        #[arg(long)]
        force: bool,
    },
}

/// A node.
#[derive(Debug, Args)]
pub struct NodeName {
    /// Name or id.
    pub node: String,
}

/// Conditions of a list.
#[derive(Debug, Default, Args)]
pub struct ListArgs {
    /// K=V or K; repeated ones must all hold
    #[arg(short, long = "label", value_name = "K[=V]")]
    pub labels: Vec<String>,
}

/// `image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Pack programs and files of this host, with the shared libraries that they need
    FromHost {
        /// Name of the image.
        name: String,
        /// Absolute paths.
        #[arg(required = true, num_args = 1.., value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Images of the tenant
    List(ListArgs),
    /// Delete an image that no machine uses
    Delete {
        /// Its name.
        name: String,
    },
}

/// `machine`.
#[derive(Debug, Subcommand)]
pub enum MachineCommand {
    /// Make a machine and find it a place
    Create(Box<CreateArgs>),
    /// Machines of the tenant
    List(MachineListArgs),
    /// One machine: what was asked for, where it is, what it does
    Inspect(MachineName),
    /// Start a machine
    Start(MachineName),
    /// Stop a machine; its disk stays
    Stop(MachineName),
    /// Stop and start a machine once
    Restart(MachineName),
    /// Delete a machine and its disk
    Delete(MachineName),
    /// Run a program in a machine; ends with that program's code
    Exec {
        /// Name of the machine.
        name: String,
        /// Program and arguments.
        #[arg(required = true, last = true, value_name = "CMD")]
        argv: Vec<String>,
    },
    /// What a machine printed
    Logs {
        /// Name of the machine.
        name: String,
        /// Go on with new lines
        #[arg(short, long)]
        follow: bool,
        /// The last this many lines
        #[arg(long, value_name = "LINES")]
        tail: Option<u64>,
        /// When each line was printed, in front of it
        #[arg(long)]
        timestamps: bool,
    },
    /// Listen here, and lead connections to a TCP port of a machine, wherever it is
    Forward {
        /// Name of the machine.
        name: String,
        /// Port of the machine, with the local one in front if they differ (0 picks a free one).
        #[arg(value_name = "[LOCAL:]PORT", value_parser = units::forward)]
        ports: (u16, u16),
    },
    /// Move a machine to another node: stop, copy its disk, start
    Move {
        /// Name of the machine.
        name: String,
        /// Name or id of the destination [default: the best node]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
}

/// A machine.
#[derive(Debug, Args)]
pub struct MachineName {
    /// Name of the machine.
    pub name: String,
}

/// `machine list`.
#[derive(Debug, Default, Args)]
pub struct MachineListArgs {
    /// Conditions.
    #[command(flatten)]
    pub list: ListArgs,
    /// Observed state
    #[arg(long, value_name = "STATE", value_parser = state)]
    pub state: Option<MachineState>,
    /// Name or id of the owner
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
}

fn state(text: &str) -> Result<MachineState, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|error| error.to_string())
}

/// `machine create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the machine.
    pub name: String,
    /// Image of the tenant
    #[arg(long, value_name = "IMAGE")]
    pub image: String,
    /// Run on this node only
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Guaranteed cores [default: 0.1]
    #[arg(long, value_name = "CORES", value_parser = units::cpu_millis)]
    pub cpu: Option<u32>,
    /// Guaranteed memory [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub memory: Option<u64>,
    /// Cap on cores [default: the node's]
    #[arg(long, value_name = "CORES", value_parser = units::cpu_millis)]
    pub burst_cpu: Option<u32>,
    /// Cap on memory [default: the node's]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub burst_memory: Option<u64>,
    /// Port of the owner's host that leads to one of the machine (repeatable)
    #[arg(long, value_name = "[IP:]HOST:PORT", value_parser = units::publish)]
    pub publish: Vec<Publish>,
    /// Environment variable (repeatable)
    #[arg(short, long = "env", value_name = "K=V", value_parser = units::key_value)]
    pub environment: Vec<(String, String)>,
    /// Label (repeatable)
    #[arg(short, long = "label", value_name = "K=V", value_parser = units::key_value)]
    pub labels: Vec<(String, String)>,
    /// Never runs twice, even in a partition: pauses when its node loses the quorum
    #[arg(long)]
    pub exclusive: bool,
    /// When a machine that ended is started again: always, on-failure or never
    #[arg(long, value_name = "POLICY", default_value = "always", value_parser = restart)]
    pub restart: Restart,
    /// Program and arguments [default: the image's]
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

fn restart(text: &str) -> Result<Restart, String> {
    match text {
        "always" => Ok(Restart::Always),
        "on-failure" => Ok(Restart::OnFailure),
        "never" => Ok(Restart::Never),
        other => Err(format!("{other:?} is no policy: always, on-failure or never")),
    }
}
