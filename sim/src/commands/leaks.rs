//! Software that breaks replay on purpose, so that a test sees the simulator refuse it.
//!
//! No path here is one of a file: where nothing refuses a leak, it does no harm.
#![expect(clippy::disallowed_methods, reason = "this is what must not be done")]

use std::collections::BTreeMap;
use std::fs;
use std::net::ToSocketAddrs as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use fabric::rpc::BoxFuture;
use smartnode_sim::actor::{Boot, HostId, Software};

const NOWHERE: &str = "/nonexistent/leak";

/// Reaches past the seams, by this, when it boots.
#[derive(Debug)]
pub struct Leak(fn());

/// The host's wall clock.
pub const WALL_CLOCK: Leak = Leak(|| _ = std::time::SystemTime::now());
/// A thread.
pub const THREAD: Leak = Leak(|| drop(std::thread::spawn(|| {})));
/// A process, as std usually starts one.
pub const PROCESS: Leak = Leak(|| drop(Command::new(NOWHERE).spawn()));
/// A process of another user, for which std forks.
pub const FORK: Leak = Leak(|| drop(Command::new(NOWHERE).uid(0).spawn()));
/// A socket of the host.
pub const SOCKET: Leak = Leak(|| drop(std::net::UdpSocket::bind("127.0.0.1:0")));
/// What the host's name service says.
pub const NAME: Leak = Leak(|| drop(("localhost", 1).to_socket_addrs()));
/// A file of the host.
pub const FILE: Leak = Leak(|| drop(fs::read(NOWHERE)));
/// What the host says of a file.
pub const METADATA: Leak = Leak(|| drop(fs::metadata(NOWHERE)));
/// Another name for a file of the host.
pub const RENAME: Leak = Leak(|| drop(fs::rename(NOWHERE, "/nonexistent/other")));
/// The end of a file of the host.
pub const REMOVAL: Leak = Leak(|| drop(fs::remove_file(NOWHERE)));
/// A new directory of the host.
pub const DIRECTORY: Leak = Leak(|| drop(fs::create_dir(NOWHERE)));
/// What is in a directory of the host.
pub const LISTING: Leak = Leak(|| drop(fs::read_dir(NOWHERE)));

impl Software for Leak {
    fn boot(&self, _: Boot) -> BoxFuture<()> {
        let reach = self.0;
        Box::pin(async move { reach() })
    }

    fn ended(&self, _: HostId) {}

    fn verdict(&self, _: &[HostId]) -> Vec<String> {
        vec!["nobody stopped the leak".to_owned()]
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}
