//! Options of a node: flags over environment over `smartnode.toml` over what the data directory remembers of earlier starts
//! over defaults. Unknown keys are refused.
#![expect(clippy::disallowed_methods, reason = "reads the configuration before there are seams")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use fabric::model::{Labels, Name, check};
use fabric::wire;
use serde::Deserialize;
use thiserror::Error;

use crate::node::dir::{self, ClusterFile, Told};
use crate::units;

/// Where the file is unless named.
pub const CONFIG_FILE: &str = "/etc/smartnode/smartnode.toml";
/// Where a node keeps its data unless told otherwise.
pub const DATA_DIR: &str = "/var/lib/smartnode";
/// The admin socket of a node with the default data directory.
pub const ADMIN_SOCKET: &str = "/run/smartnode/admin.sock";
/// The node writes the certificates of its cluster's CAs into this file of its data directory.
pub const CA_FILE: &str = "ca.pem";
/// Locked by the daemon that uses the data directory.
pub const LOCK_FILE: &str = "lock";
/// Unix socket of the admin port in another data directory than the usual one.
pub const SOCKET_FILE: &str = "admin.sock";
/// Port of the fabric (UDP).
pub const FABRIC_PORT: u16 = 7420;
/// Port of the admin API (TCP, loopback).
pub const ADMIN_PORT: u16 = 7421;
/// Largest configuration file.
const CONFIG_BYTES_MAX: u64 = 64 * 1024;
/// A unix socket's path has at most this many bytes on Linux.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// How the daemon writes its log.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Deserialize,
    clap::ValueEnum,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Where the data and the configuration are: for every command.
#[derive(Debug, Clone, Default, Args)]
pub struct PlaceArgs {
    /// The node's data directory [default: /var/lib/smartnode]
    #[arg(long, global = true, env = "SMARTNODE_DATA_DIR", value_name = "PATH", help_heading = "Global options")]
    pub data_dir: Option<PathBuf>,
    /// Configuration file [default: /etc/smartnode/smartnode.toml, if it is there]
    #[arg(long, global = true, env = "SMARTNODE_CONFIG", value_name = "PATH", help_heading = "Global options")]
    pub config: Option<PathBuf>,
}

/// Flags of init, join and start.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Node options")]
pub struct NodeArgs {
    /// The node's name, for good [default: the host's name]
    #[arg(long, env = "SMARTNODE_NAME", value_name = "NAME")]
    pub name: Option<Name>,
    /// UDP address to listen on for peers [default: 0.0.0.0:7420]
    #[arg(long, env = "SMARTNODE_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address at which peers reach this node [default: the source address of the route to them]
    #[arg(long, env = "SMARTNODE_ADVERTISE", value_name = "IP:PORT")]
    pub advertise: Option<SocketAddr>,
    /// TCP address of the admin port; with TLS unless it is a loopback one [default: 127.0.0.1:7421]
    #[arg(long, env = "SMARTNODE_ADMIN_LISTEN", value_name = "IP:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// Unix socket of the admin port [default: /run/smartnode/admin.sock, or admin.sock in another data directory]
    #[arg(long, env = "SMARTNODE_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Further host names under which the admin port may be used (repeatable)
    #[arg(long = "admin-name", env = "SMARTNODE_ADMIN_NAMES", value_delimiter = ',', value_name = "HOST")]
    pub admin_names: Vec<String>,
    /// Failure domain: machines of one group (label service) are spread over zones; can be changed at a start
    #[arg(long, env = "SMARTNODE_ZONE", value_name = "ZONE")]
    pub zone: Option<String>,
    /// Label of the node (repeatable); can be changed at a start [env: SMARTNODE_LABELS=K=V,K=V]
    #[arg(long = "label", value_name = "K=V", value_parser = units::key_value)]
    pub labels: Vec<(String, String)>,
    /// Labels from the environment, where a comma parts them
    #[arg(long = "labels", hide = true, env = "SMARTNODE_LABELS", value_delimiter = ',', value_parser = units::key_value)]
    pub all_labels: Vec<(String, String)>,
    /// How the log is written [default: text]
    #[arg(long, env = "SMARTNODE_LOG_FORMAT", value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// `smartnode.toml`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    data_dir: Option<PathBuf>,
    name: Option<Name>,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
    admin_listen: Option<SocketAddr>,
    admin_socket: Option<PathBuf>,
    admin_names: Option<Vec<String>>,
    zone: Option<String>,
    labels: Option<Labels>,
    log_format: Option<LogFormat>,
}

/// Options of a node, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeOptions {
    /// Where the node keeps everything.
    pub data_dir: PathBuf,
    /// Its name; none means the host's name at `init` and `join`, the recorded one at `start`.
    pub name: Option<Name>,
    /// UDP address for peers.
    pub listen: SocketAddr,
    /// Where peers reach it; none means the route's source address.
    pub advertise: Option<SocketAddr>,
    /// TCP address of the admin port.
    pub admin_listen: SocketAddr,
    /// Unix socket of the admin port.
    pub admin_socket: PathBuf,
    /// Further names that the Host header may have.
    pub admin_names: Vec<String>,
    /// Failure domain; none means none at `init` and `join`, the recorded one at `start`, where another one replaces it.
    pub zone: Option<String>,
    /// Labels; none means none at `init` and `join`, the recorded ones at `start`.
    pub labels: Option<Labels>,
    /// How the log is written.
    pub log_format: LogFormat,
    /// What of this was said, now or at an earlier start: for the next one.
    pub told: Told,
}

/// What a daemon is started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Create a cluster, or go on with the one that this directory created.
    Init,
    /// Join through one of the peers, or go on as the member that this directory is.
    Join {
        /// `host:port` of members.
        peers: Vec<String>,
        /// The join token as text.
        token: String,
    },
    /// Run from the data directory.
    Start,
}

/// Why there are no options.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file says something that is not understood.
    #[error("{path}: {words}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        words: String,
    },
    /// An option breaks a rule.
    #[error("{option}: {words}")]
    Invalid {
        /// Its key.
        option: &'static str,
        /// The rule.
        words: String,
    },
}

impl ConfigFile {
    /// Parses the text of a file.
    ///
    /// # Errors
    /// Line, column and what is wrong there; an unknown key is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
    }

    /// Reads the named file, or the usual one if it is there.
    ///
    /// # Errors
    /// When a named file is not there, or either is not understood.
    pub fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(CONFIG_FILE));
        let fail = |source| ConfigError::Read { path: path.to_owned(), source };
        let size = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(fail(error)),
        };
        if size > CONFIG_BYTES_MAX {
            return Err(fail(io::Error::new(io::ErrorKind::FileTooLarge, "it exceeds 64 KiB")));
        }
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // A user who may not read the node's configuration can still be its client.
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(Self::default());
            }
            Err(error) => return Err(fail(error)),
        };
        Self::parse(&text).map_err(|words| ConfigError::Parse { path: path.to_owned(), words })
    }
}

impl PlaceArgs {
    /// The data directory and the admin socket, as every client needs them. A daemon that was told its socket has written
    /// it down, so that goes before the file, which may have been changed since.
    ///
    /// # Errors
    /// Those of the file, and a path that cannot be made absolute.
    pub fn resolve(&self) -> Result<(PathBuf, PathBuf), ConfigError> {
        let file = ConfigFile::load(self.config.as_deref())?;
        let data_dir = self.data_dir(&file)?;
        let configured = file.admin_socket.map(|path| absolute("admin_socket", &path)).transpose()?;
        let socket = remembered(&data_dir).admin_socket.map(PathBuf::from).or(configured);
        let socket = socket.unwrap_or_else(|| default_socket(&data_dir));
        Ok((data_dir, socket))
    }

    /// Absolute, since machines' supervisors have a working directory of their own.
    fn data_dir(&self, file: &ConfigFile) -> Result<PathBuf, ConfigError> {
        let named = self.data_dir.as_deref().or(file.data_dir.as_deref());
        absolute("data_dir", named.unwrap_or(Path::new(DATA_DIR)))
    }
}

fn absolute(option: &'static str, path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path)
        .map_err(|error| ConfigError::Invalid { option, words: format!("{}: {error}", path.display()) })
}

/// A socket's path as it is written down.
fn socket_path(path: &Path) -> Result<String, ConfigError> {
    let path = absolute("admin_socket", path)?.into_os_string().into_string();
    path.map_err(|path| ConfigError::Invalid {
        option: "admin_socket",
        words: format!("{} is not UTF-8", path.display()),
    })
}

/// What earlier starts were told. Nothing where that cannot be read: a client may lack the right, and the daemon itself
/// says what is wrong with its directory.
fn remembered(data_dir: &Path) -> Told {
    let frame = std::fs::read(data_dir.join(dir::FILE)).ok();
    let file = frame.and_then(|frame| wire::decode::<ClusterFile>(&frame).ok());
    file.map(|file| file.told).unwrap_or_default()
}

fn default_socket(data_dir: &Path) -> PathBuf {
    if data_dir == Path::new(DATA_DIR) { ADMIN_SOCKET.into() } else { data_dir.join(SOCKET_FILE) }
}

impl NodeOptions {
    /// Flags and environment over the file over what is remembered over defaults.
    ///
    /// # Errors
    /// Those of the file, and options that break a rule.
    pub fn resolve(place: &PlaceArgs, flags: NodeArgs) -> Result<Self, ConfigError> {
        let file = ConfigFile::load(place.config.as_deref())?;
        let data_dir = place.data_dir(&file)?;
        let before = remembered(&data_dir);
        Self::merge(data_dir, flags, file, before)
    }

    fn merge(data_dir: PathBuf, flags: NodeArgs, file: ConfigFile, before: Told) -> Result<Self, ConfigError> {
        let typed = if flags.labels.is_empty() { flags.all_labels } else { flags.labels };
        let labels = if typed.is_empty() { file.labels } else { Some(typed.into_iter().collect()) };
        let names = if flags.admin_names.is_empty() { file.admin_names } else { Some(flags.admin_names) };
        let socket = flags.admin_socket.or(file.admin_socket).map(|path| socket_path(&path)).transpose()?;
        let told = Told {
            listen: flags.listen.or(file.listen).or(before.listen),
            admin_listen: flags.admin_listen.or(file.admin_listen).or(before.admin_listen),
            admin_socket: socket.or(before.admin_socket),
            admin_names: names.or(before.admin_names),
            log_format: flags.log_format.or(file.log_format).or(before.log_format),
        };
        let options = NodeOptions {
            name: flags.name.or(file.name),
            listen: told.listen.unwrap_or((Ipv4Addr::UNSPECIFIED, FABRIC_PORT).into()),
            advertise: flags.advertise.or(file.advertise),
            admin_listen: told.admin_listen.unwrap_or((Ipv4Addr::LOCALHOST, ADMIN_PORT).into()),
            admin_socket: told.admin_socket.as_ref().map_or_else(|| default_socket(&data_dir), PathBuf::from),
            admin_names: told.admin_names.clone().unwrap_or_default(),
            zone: flags.zone.or(file.zone),
            labels,
            log_format: told.log_format.unwrap_or_default(),
            told,
            data_dir,
        };
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |option, words: String| Err(ConfigError::Invalid { option, words });
        if self.admin_socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let words = format!("{} is longer than {SOCKET_PATH_BYTES_MAX} bytes", self.admin_socket.display());
            return invalid("admin_socket", words);
        }
        if let Some(address) = self.advertise.filter(|address| address.ip().is_unspecified() || address.port() == 0) {
            return invalid("advertise", format!("peers cannot reach {address}"));
        }
        // The ledger's own checks: what it refuses must not get into a data directory.
        let zone = self.zone.as_deref().map_or(Ok(()), check::zone);
        let checked = zone.and_then(|()| self.labels.as_ref().map_or(Ok(()), check::labels));
        checked.or_else(|error| invalid(error.field, format!("{}: {}", error.value, error.rule)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn merge(flags: NodeArgs, text: &str) -> Result<NodeOptions, ConfigError> {
        after(flags, text, Told::default())
    }

    fn after(flags: NodeArgs, text: &str, before: Told) -> Result<NodeOptions, ConfigError> {
        let file = ConfigFile::parse(text).unwrap();
        let data_dir = PlaceArgs::default().data_dir(&file)?;
        NodeOptions::merge(data_dir, flags, file, before)
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let flags = NodeArgs { zone: Some("b".into()), ..NodeArgs::default() };
        let options = merge(flags, "zone = \"a\"\nlisten = \"127.0.0.1:7000\"\nlabels = { disk = \"ssd\" }").unwrap();
        assert_eq!(options.zone.as_deref(), Some("b"));
        assert_eq!(options.listen.to_string(), "127.0.0.1:7000");
        assert_eq!(options.admin_listen.to_string(), "127.0.0.1:7421");
        assert_eq!(options.admin_socket, Path::new(ADMIN_SOCKET));
        assert_eq!(options.labels.unwrap()["disk"], "ssd");
    }

    #[test]
    fn another_data_directory_has_its_own_socket() {
        let options = merge(NodeArgs::default(), "data_dir = \"/srv/n1\"").unwrap();
        assert_eq!(options.admin_socket, Path::new("/srv/n1/admin.sock"));
    }

    #[test]
    fn what_was_said_once_is_kept_until_something_else_is_said() {
        let typed = NodeArgs { listen: Some(([0, 0, 0, 0], 30_500).into()), ..NodeArgs::default() };
        let text = "admin_listen = \"127.0.0.1:30501\"\nadmin_names = [\"n1\"]\nadmin_socket = \"/run/n1.sock\"";
        let first = merge(typed, text).unwrap();

        let again = after(NodeArgs::default(), "", first.told.clone()).unwrap();
        assert_eq!(again, first);
        assert_eq!(again.listen.to_string(), "0.0.0.0:30500");
        assert_eq!(again.admin_listen.to_string(), "127.0.0.1:30501");
        assert_eq!((again.admin_socket.to_str(), &*again.admin_names), (Some("/run/n1.sock"), &["n1".to_owned()][..]));

        let typed = NodeArgs { log_format: Some(LogFormat::Json), ..NodeArgs::default() };
        let other = after(typed, "listen = \"0.0.0.0:30600\"", again.told).unwrap();
        assert_eq!(
            (other.listen.port(), other.admin_listen.port(), other.log_format),
            (30_600, 30_501, LogFormat::Json)
        );
    }

    #[test]
    fn clients_find_the_socket_that_the_data_directory_remembers() {
        let data = tempfile::tempdir().unwrap();
        let place = PlaceArgs { data_dir: Some(data.path().into()), config: None };
        assert_eq!(place.resolve().unwrap().1, data.path().join(SOCKET_FILE));
        let told = Told { admin_socket: Some("/run/n1.sock".into()), ..Told::default() };
        let file = ClusterFile { told, ..crate::node::dir::tests::file() };
        std::fs::write(data.path().join(dir::FILE), wire::encode(&file)).unwrap();
        assert_eq!(place.resolve().unwrap().1, Path::new("/run/n1.sock"));
        let options = NodeOptions::resolve(&place, NodeArgs::default()).unwrap();
        assert_eq!(options.admin_socket, Path::new("/run/n1.sock"));
    }

    #[test]
    fn a_relative_data_directory_is_made_absolute() {
        let here = std::env::current_dir().unwrap();
        let place = PlaceArgs { data_dir: Some("n1".into()), config: None };
        let (data_dir, socket) = place.resolve().unwrap();
        assert_eq!((&data_dir, &socket), (&here.join("n1"), &here.join("n1/admin.sock")));
        let flags = NodeArgs { admin_socket: Some("a.sock".into()), ..NodeArgs::default() };
        let options = NodeOptions::merge(data_dir, flags, ConfigFile::default(), Told::default()).unwrap();
        assert_eq!((options.data_dir, options.admin_socket), (here.join("n1"), here.join("a.sock")));
        assert!(PlaceArgs { data_dir: Some("".into()), config: None }.resolve().is_err());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let words = ConfigFile::parse("name = \"n1\"\nlissten = \"x\"").unwrap_err();
        assert!(words.contains("lissten") && words.contains("line 2"), "{words}");
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for bad in ["advertise = \"0.0.0.0:7420\"", "labels = { \"a b\" = \"c\" }", "zone = \"rack 1\""] {
            assert!(merge(NodeArgs::default(), bad).is_err(), "{bad}");
        }
        let long = format!("data_dir = \"/{}\"", "x".repeat(120));
        assert!(merge(NodeArgs::default(), &long).unwrap_err().to_string().contains("admin_socket"));
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_a_panic(text in "(?s).{0,200}") {
            let _ = ConfigFile::parse(&text);
        }
    }
}
