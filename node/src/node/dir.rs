//! What a node keeps about itself: which cluster it belongs to, and how far it got in becoming a member.
//!
//! The file `cluster` is the commit point of `init` and `join`: everything else is written before it, so that a crash at
//! any step leaves either nothing that counts, or a member. Its key, certificate and trust have files of their own.

use std::io;
use std::net::SocketAddr;

use fabric::ids::{ClusterId, NodeId};
use fabric::model::{Labels, Name, Role};
use fabric::records;
use fabric::seams::Disk;
use fabric::wire::{self, WireError};
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::config::LogFormat;

/// Its name in the data directory.
pub const FILE: &str = "cluster";
/// Peers remembered for the next start.
pub const PEERS_MAX: usize = 64;

/// What the operator said about how this node is run, by flag or file, at its last start or before: for the next one, and
/// for clients that look for its socket. None means the default.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct ToldV1 {
    /// UDP address for peers.
    pub listen: Option<SocketAddr>,
    /// TCP address of the admin port.
    pub admin_listen: Option<SocketAddr>,
    /// Absolute path of the admin port's socket.
    pub admin_socket: Option<String>,
    /// Further names that the Host header may have.
    pub admin_names: Option<Vec<String>>,
    /// How the log is written.
    pub log_format: Option<LogFormat>,
}
/// Current version of what was said.
pub type Told = ToldV1;

/// A node's own description, as of its last start.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ClusterFileV1 {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node's name, as admitted.
    pub name: Name,
    /// What it was admitted as.
    pub role: Role,
    /// Failure domain.
    pub zone: String,
    /// Operator's labels.
    pub labels: Labels,
    /// `ip:port` at which peers reach it.
    pub advertise: String,
    /// The framed first command of a cluster whose `init` has not been committed yet.
    pub founding: Option<Vec<u8>>,
    /// Its ledger is begun, and must be there from now on.
    pub begun: bool,
    /// Peers seen last, for the next start.
    pub peers: Vec<(NodeId, String)>,
    /// How it is run.
    pub told: ToldV1,
    /// Its membership is over: it has left, or its peers have said that it was removed. Its key is of no more use.
    pub removed: bool,
}
/// Current version of the file.
pub type ClusterFile = ClusterFileV1;

records!(ClusterFileV1 = (360, 1));

/// Why the data directory cannot be used.
#[derive(Debug, Error)]
pub enum DirError {
    /// The disk failed.
    #[error("cannot {what} {file} in the data directory")]
    Disk {
        /// Read or write.
        what: &'static str,
        /// The file.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A later program wrote it.
    #[error("the data directory was written by a newer smartnode: upgrade this program, or use another --data-dir")]
    Newer(#[source] WireError),
    /// Bits have changed.
    #[error("{file} in the data directory is damaged")]
    Damaged {
        /// The file.
        file: &'static str,
        /// How it shows.
        #[source]
        source: WireError,
    },
}

impl ClusterFileV1 {
    /// Reads the file; none when this directory belongs to no cluster.
    ///
    /// # Errors
    /// See [`DirError`].
    pub fn load(disk: &dyn Disk) -> Result<Option<Self>, DirError> {
        let content = disk.read(FILE).map_err(|source| DirError::Disk { what: "read", file: FILE, source })?;
        content.map(|frame| wire::decode::<Self>(&frame).map_err(newer_or_damaged)).transpose()
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// When the disk fails; the old content is still there then.
    pub fn save(&self, disk: &dyn Disk) -> Result<(), DirError> {
        let frame = wire::encode(self);
        disk.write(FILE, &frame).map_err(|source| DirError::Disk { what: "write", file: FILE, source })
    }
}

fn newer_or_damaged(source: WireError) -> DirError {
    match source {
        WireError::Protocol(_) => DirError::Newer(source),
        WireError::Type { found_type, found_version, want_type, want_version }
            if found_type == want_type && found_version > want_version =>
        {
            DirError::Newer(source)
        }
        source => DirError::Damaged { file: FILE, source },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use fabric::seams::real::Directory;

    pub(crate) fn file() -> ClusterFile {
        ClusterFile {
            cluster: ClusterId([1; 16]),
            name: "n1".parse().unwrap(),
            role: Role::Voter,
            zone: "z".into(),
            labels: Labels::new(),
            advertise: "127.0.0.1:7420".into(),
            founding: Some(vec![1, 2]),
            begun: false,
            peers: vec![(NodeId([2; 32]), "127.0.0.1:7430".into())],
            told: Told { admin_listen: Some(([127, 0, 0, 1], 7431).into()), ..Told::default() },
            removed: true,
        }
    }

    #[test]
    fn it_survives_and_tells_damage_from_a_newer_version() {
        let temporary = tempfile::tempdir().unwrap();
        let disk = Directory::open(temporary.path()).unwrap();
        assert_eq!(ClusterFile::load(&disk).unwrap(), None);
        file().save(&disk).unwrap();
        assert_eq!(ClusterFile::load(&disk).unwrap(), Some(file()));

        let mut frame = wire::encode(&file());
        frame[60] ^= 1;
        disk.write(FILE, &frame).unwrap();
        assert!(matches!(ClusterFile::load(&disk), Err(DirError::Damaged { .. })));

        let mut later = wire::encode(&file());
        later[4] = 2;
        let covered = [&later[..16], &later[wire::HEADER_BYTES..]].concat();
        later[16..wire::HEADER_BYTES].copy_from_slice(&fabric::ids::Digest::of(&covered).0);
        disk.write(FILE, &later).unwrap();
        assert!(matches!(ClusterFile::load(&disk), Err(DirError::Newer(_))));
    }
}
