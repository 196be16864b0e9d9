//! Runs the simulator's binary: one process per seed, as a run demands.

use std::process::{Child, Command, Output, Stdio};

/// A run that has been started.
pub struct Run {
    arguments: String,
    child: Child,
}

/// Starts a run with these arguments, separated by blanks.
pub fn start(arguments: &str) -> Run {
    command(&format!("run {arguments}"))
}

/// Starts the simulator with these arguments, separated by blanks.
pub fn command(arguments: &str) -> Run {
    let child = Command::new(env!("CARGO_BIN_EXE_smartnode-sim"))
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the simulator starts");
    Run { arguments: arguments.to_owned(), child }
}

impl Run {
    /// Waits for its end.
    pub fn output(self) -> Output {
        self.child.wait_with_output().expect("the simulator ends")
    }

    /// Waits for its end and returns its exit code, what it printed and what it said besides.
    pub fn told(self) -> (Option<i32>, String, String) {
        let output = self.output();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Waits for its end and returns what it printed, which must be a success.
    pub fn success(self) -> String {
        let arguments = self.arguments.clone();
        let output = self.output();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "smartnode-sim {arguments}\n{out}\n{err}");
        out
    }
}
