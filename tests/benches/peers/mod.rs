//! Other systems on this host, each with directories, namespaces and processes of its own that are removed when dropped.

pub mod etcd;
pub mod lxd;
pub mod podman;
pub mod serf;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Runs a command to its end, and gives what it says. Ctrl-C is for the benchmark, which cleans up with such commands.
pub fn run(command: &mut Command) -> Result<String> {
    run_with(command, "")
}

/// The same with something on stdin.
pub fn run_with(command: &mut Command, input: &str) -> Result<String> {
    let words = format!("{command:?}");
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {words}"))?;
    child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A process in the background that ends with this value.
pub struct Process(Child);

impl Process {
    /// Starts it in a process group of its own.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.process_group(0).stdin(Stdio::null()).spawn();
        Ok(Process(child.with_context(|| format!("cannot run {command:?}"))?))
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
