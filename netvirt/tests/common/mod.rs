//! Namespaces that play machines.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use netvirt::netns::Netns;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A name for a namespace that no other test has.
pub fn unique(name: &str) -> String {
    static NAMES: AtomicU32 = AtomicU32::new(0);
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    format!("snov-{}-{number}-{name}", std::process::id())
}

/// A namespace. Its name is gone when this is dropped.
pub struct Host {
    pub name: String,
    pub namespace: Netns,
}

impl Host {
    pub fn new(name: &str) -> Self {
        let name = unique(name);
        let namespace = Netns::make(&name).unwrap();
        ip(&format!("-n {name} link set lo up"));
        Host { name, namespace }
    }

    pub fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    fn command(&self, program: &str) -> tokio::process::Command {
        // Entered by file: `ip netns exec` would make a mount namespace of its own as well.
        let mut command = tokio::process::Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).args(program.split_whitespace()).kill_on_drop(true);
        command
    }

    /// Starts a command inside, and waits until it says so much.
    pub async fn start(&self, program: &str, ready: &str) -> Child {
        let mut child = self.command(program).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let look = async { while !lines.next_line().await.unwrap().expect("it has ended").contains(ready) {} };
        tokio::time::timeout(PATIENCE, look).await.expect("it does not begin");
        // Whoever writes to a closed pipe dies.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        child
    }

    /// Runs a command inside, and gives whether it did what it should and what it says.
    pub async fn try_run(&self, program: &str) -> (bool, String) {
        let done =
            tokio::time::timeout(PATIENCE, self.command(program).output()).await.expect("it does not end").unwrap();
        (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    }

    /// Runs a command inside and gives what it says.
    pub async fn run(&self, program: &str) -> String {
        let (well, said) = self.try_run(program).await;
        assert!(well, "{program}: {said}");
        said
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Netns::remove(&self.name);
    }
}
