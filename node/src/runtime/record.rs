//! What a machine's directory holds, and the framed record of its launch.
//!
//! ```text
//! <data>/machines/<id>/launch            framed LaunchRecord, replaced whole before every start
//!                      upper/ work/      writable layer of the overlay
//!                      lower/ merged/    mount points, used in the supervisor's mount namespace only
//!                      log log.1         captured output
//!                      supervisor.sock   control socket, 0600
//!                      supervisor.pid    "pid start-time" of the supervisor
//!                      supervisor.err    what the supervisor itself had to say
//!                      ended             last status line, written when the supervisor ends as it should
//! <data>/quarantine/<id>-<epoch>-<unix seconds>/
//! ```
//!
//! The record says of which epoch the writable layer is. So it is on the disk before there is a layer, and before every
//! start: a layer without a good record is of unknown age, and neither started nor taken for a new one.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use fabric::ids::{Digest, MachineId};
use fabric::model::{MachineSpec, Name};
use fabric::records;
use rkyv::{Archive, Deserialize, Serialize};

use super::Launch;
use super::limits::{UID_BASE_FIRST, UID_RANGES, UIDS_PER_MACHINE};

/// File of the launch record.
pub const LAUNCH: &str = "launch";
/// Directory of the writable layer.
pub const UPPER: &str = "upper";
/// Overlayfs's work directory.
pub const WORK: &str = "work";
/// Mount point of the image.
pub const LOWER: &str = "lower";
/// Mount point of the whole root.
pub const MERGED: &str = "merged";
/// Current log file.
pub const LOG: &str = "log";
/// Previous log file.
pub const LOG_OLD: &str = "log.1";
/// Control socket.
pub const SOCKET: &str = "supervisor.sock";
/// Pid and start time of the supervisor.
pub const PID: &str = "supervisor.pid";
/// Standard error of the supervisor.
pub const ERRORS: &str = "supervisor.err";
/// The last status.
pub const ENDED: &str = "ended";

/// Replaces a file of a machine's directory, durably.
///
/// # Errors
/// When the disk refuses; the file is the old one or the new one then.
#[expect(clippy::disallowed_methods, reason = "machines' directories hold mounts and sockets: no seam fits them")]
pub fn replace(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    fs::File::open(dir)?.sync_all()
}

/// A launch as it is kept in the machine's directory.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LaunchRecordV1 {
    /// Prefix of everything that this node makes on the host: `smartnode-<NodeId, short>`.
    pub prefix: String,
    /// The machine.
    pub id: MachineId,
    /// The placement's epoch.
    pub epoch: u64,
    /// Requested restarts that the launch has seen.
    pub requested_restarts: u64,
    /// Its tenant.
    pub tenant: Name,
    /// Its name.
    pub name: Name,
    /// Its spec.
    pub spec: MachineSpec,
    /// Digest of its image.
    pub image: Digest,
    /// Directory of the unpacked image.
    pub rootfs: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub workdir: String,
    /// Lease deadline in nanoseconds on `CLOCK_BOOTTIME`, for an exclusive machine.
    pub lease_deadline_ns: Option<u64>,
}
/// Current version of the launch record.
pub type LaunchRecord = LaunchRecordV1;

records!(LaunchRecordV1 = (300, 1));

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl LaunchRecord {
    /// The record of a launch. An image directory that is not UTF-8 has no record.
    pub fn of(launch: &Launch, prefix: &str) -> Option<Self> {
        let mut env = vec![
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), "/root".to_owned()),
            ("HOSTNAME".to_owned(), launch.name.to_string()),
        ];
        for (key, value) in launch.image_env.iter().chain(&launch.spec.env) {
            match env.iter_mut().find(|(have, _)| have == key) {
                Some(entry) => entry.1.clone_from(value),
                None => env.push((key.clone(), value.clone())),
            }
        }
        let workdir = if launch.image_workdir.is_empty() { "/" } else { &launch.image_workdir };
        Some(LaunchRecord {
            prefix: prefix.to_owned(),
            id: launch.id,
            epoch: launch.epoch,
            requested_restarts: launch.requested_restarts,
            tenant: launch.tenant.clone(),
            name: launch.name.clone(),
            spec: launch.spec.clone(),
            image: launch.image,
            rootfs: launch.rootfs.to_str()?.to_owned(),
            command: launch.command().to_vec(),
            env,
            workdir: workdir.to_owned(),
            lease_deadline_ns: launch.lease_deadline.map(nanos),
        })
    }

    /// First user id outside that is used inside.
    ///
    /// It follows from the machine alone, so that the files of a writable layer keep their owners when it moves.
    pub fn uid_base(&self) -> u32 {
        let hash = blake3::hash(&self.id.0);
        let word = u32::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], hash.as_bytes()[3]]);
        UID_BASE_FIRST + (word % UID_RANGES) * UIDS_PER_MACHINE
    }
}

/// A time on `CLOCK_BOOTTIME` as the record and the control protocol write it.
pub fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) fn sample() -> LaunchRecord {
    use fabric::model::{Labels, Resources, Restart};
    LaunchRecord::of(
        &Launch {
            id: MachineId([7; 16]),
            epoch: 3,
            requested_restarts: 1,
            tenant: "default".parse().unwrap(),
            name: "web".parse().unwrap(),
            spec: MachineSpec {
                image: "shell".parse().unwrap(),
                command: vec!["/bin/sh".into()],
                env: vec![("A".into(), "spec".into()), ("HOME".into(), "/data".into())],
                resources: Resources::default(),
                publish: vec![],
                labels: Labels::new(),
                exclusive: false,
                restart: Restart::Always,
                pinned: None,
            },
            image: Digest([1; 32]),
            rootfs: "/images/one".into(),
            image_command: vec!["/bin/true".into()],
            image_env: vec![("A".into(), "image".into())],
            image_workdir: String::new(),
            lease_deadline: None,
        },
        "smartnode-0101010101",
    )
    .unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_survives_its_frame() {
        let record = sample();
        let bytes = fabric::wire::encode(&record);
        assert_eq!(fabric::wire::decode::<LaunchRecord>(&bytes), Ok(record));
        assert!(fabric::wire::decode::<LaunchRecord>(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn the_specs_environment_wins_and_the_command_falls_back_to_the_images() {
        let record = sample();
        let value = |key: &str| record.env.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        assert_eq!(value("A"), Some("spec"));
        assert_eq!(value("HOME"), Some("/data"));
        assert_eq!(value("HOSTNAME"), Some("web"));
        assert_eq!(record.command, ["/bin/sh"]);
        assert_eq!(record.workdir, "/");
    }

    #[test]
    fn user_ids_are_the_machines_own_and_in_range() {
        let mut record = sample();
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..=255 {
            record.id = MachineId([n; 16]);
            let base = record.uid_base();
            assert!(
                (UID_BASE_FIRST..0x8000_0000 - UIDS_PER_MACHINE).contains(&base)
                    && base.is_multiple_of(UIDS_PER_MACHINE)
            );
            seen.insert(base);
        }
        assert!(seen.len() > 250, "{}", seen.len());
    }
}
