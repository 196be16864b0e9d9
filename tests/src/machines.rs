//! Machines in stories: made from this host's shell, watched through the CLI, their disks read from outside.
#![expect(clippy::disallowed_methods, reason = "reads the disks of machines")]

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use smartnode::lab::processes;

use crate::cluster::{Cluster, Reply};
use crate::poll;

/// Name of the image of [`Cluster::pack`].
pub const IMAGE: &str = "base";

/// Writes the time since boot to its disk, twenty times a second.
pub const BEAT: &str = "while :; do read up rest < /proc/uptime; echo $up >> /beat; sleep 0.05; done";

/// Counts on its disk, one line a number; goes on where the disk ends.
pub const COUNT: &str = "n=0; [ -f /count ] && while read line; do n=$line; done < /count; \
     while :; do n=$((n+1)); echo $n >> /count; sleep 0.02; done";

/// Lives, and does nothing.
pub const IDLE: &str = "while :; do sleep 1; done";

impl Cluster {
    /// Packs a shell and a few programs of this host into the image that the stories use.
    ///
    /// # Panics
    /// When it cannot be packed.
    pub fn pack(&self, at: usize) {
        let programs = ["/bin/sh", "/bin/sleep", "/bin/cat", "/bin/dd", "/bin/ls", "/usr/bin/env"];
        let words = [&["image", "from-host", IMAGE][..], &programs[..]].concat();
        self.cli(at, &words).ok();
    }

    /// Makes a machine that runs a shell script, and waits until it runs.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub fn create(&self, at: usize, name: &str, flags: &[&str], script: &str) -> Value {
        let head = ["machine", "create", name, "--image", IMAGE, "--wait", "--timeout", "60s", "-o", "json"];
        let words = [&head[..], flags, &["--", "/bin/sh", "-c", script]].concat();
        self.cli(at, &words).ok().json()
    }

    /// What a host knows of a machine; none when it does not answer or there is none.
    pub fn inspect(&self, at: usize, name: &str) -> Option<Value> {
        let reply = self.cli(at, &["machine", "inspect", name, "-o", "json"]);
        (reply.code == 0).then(|| reply.json())
    }

    /// Runs a program in a machine.
    pub fn exec(&self, at: usize, name: &str, argv: &[&str]) -> Reply {
        self.cli(at, &[&["machine", "exec", name, "--"][..], argv].concat())
    }

    /// Waits for something about a machine, and gives the machine with the time that it took.
    ///
    /// # Panics
    /// When it does not come true in time, with what was seen last.
    pub fn wait_machine(
        &self,
        at: usize,
        name: &str,
        what: &str,
        limit: Duration,
        is: impl Fn(&Value) -> bool,
    ) -> (Value, Duration) {
        let mut last = Value::Null;
        poll::until_or(
            limit,
            || {
                last = self.inspect(at, name)?;
                is(&last).then(|| last.clone())
            },
            || format!("{name}: {what}; n{} says {:?}", at + 1, self.cli(at, &["machine", "inspect", name])),
        )
    }

    /// Waits until a machine runs on a node other than `not`, and gives that node's position.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub fn wait_elsewhere(&self, at: usize, name: &str, not: usize, limit: Duration) -> (usize, Duration) {
        let what = format!("runs elsewhere than on n{}", not + 1);
        let (machine, took) =
            self.wait_machine(at, name, &what, limit, |machine| is_running(machine) && owner(machine) != Some(not));
        (owner(&machine).expect("it runs somewhere"), took)
    }

    /// Waits until a machine runs on a node.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub fn wait_on(&self, at: usize, name: &str, on: usize, limit: Duration) -> (Value, Duration) {
        let what = format!("runs on n{}", on + 1);
        self.wait_machine(at, name, &what, limit, |machine| is_running(machine) && owner(machine) == Some(on))
    }

    /// Hosts on which a process of the machine lives.
    pub fn copies(&self, id: &str) -> Vec<usize> {
        let lives = |at: &usize| {
            let directory = self.lab.host(*at).data_dir.join("machines").join(id);
            !processes::supervisors_of(&directory).is_empty()
        };
        (0..self.lab.hosts().len()).filter(lives).collect()
    }

    /// Waits until exactly one host, its owner, runs the machine, and every live host names that owner.
    ///
    /// # Panics
    /// When it is not so within a minute.
    pub fn expect_running_once(&self, at: usize, name: &str) -> usize {
        let mut seen = String::new();
        let look = || {
            let machine = self.inspect(at, name)?;
            let copies = self.copies(machine["id"].as_str()?);
            seen = format!("copies on {copies:?}, {machine}");
            let on = owner(&machine)?;
            (is_running(&machine) && copies == [on]).then_some(on)
        };
        let limit = Duration::from_secs(60);
        let found = poll::until_or(limit, look, || format!("{name} runs exactly once"));
        found.0
    }

    /// Places of a machine's disks on a host: the one in use, and those put aside.
    fn disks(&self, at: usize, id: &str) -> Vec<PathBuf> {
        let data = &self.lab.host(at).data_dir;
        let aside = std::fs::read_dir(data.join("quarantine")).into_iter().flatten().flatten();
        let aside = aside
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(id)));
        [data.join("machines").join(id)].into_iter().chain(aside).collect()
    }

    /// Whether a host has put a disk of the machine aside.
    pub fn quarantined(&self, at: usize, id: &str) -> bool {
        self.disks(at, id).len() > 1
    }

    /// Beats of [`BEAT`] that a host's copies have written, in hundredths of a second since boot.
    pub fn beats(&self, at: usize, id: &str) -> Vec<u64> {
        let texts =
            self.disks(at, id).into_iter().filter_map(|disk| std::fs::read_to_string(disk.join("upper/beat")).ok());
        let mut beats: Vec<u64> =
            texts.flat_map(|text| text.lines().filter_map(hundredths).collect::<Vec<_>>()).collect();
        beats.sort_unstable();
        beats
    }

    /// The numbers that [`COUNT`] has on its disk, read in the machine.
    ///
    /// # Panics
    /// When the machine cannot be asked.
    pub fn counted(&self, at: usize, name: &str) -> Vec<u64> {
        let text = self.exec(at, name, &["/bin/cat", "/count"]).ok().stdout;
        text.lines().map(|line| line.parse().expect("a number a line")).collect()
    }

    /// Asserts that the counter has all of its numbers, each once, and waits until it is past `least`.
    ///
    /// # Panics
    /// When a number is missing or double.
    pub fn expect_count_past(&self, at: usize, name: &str, least: u64) {
        poll::until(&format!("{name} counts past {least}"), Duration::from_secs(30), || {
            let numbers = self.counted(at, name);
            let fault = (1..).zip(&numbers).find(|(want, is)| want != *is);
            assert!(fault.is_none(), "{name}: want {:?}, found {:?}", fault.map(|f| f.0), fault.map(|f| f.1));
            (numbers.len() as u64 > least).then_some(())
        });
    }
}

/// `12.34` as 1234.
fn hundredths(line: &str) -> Option<u64> {
    let (seconds, rest) = line.split_once('.').filter(|(_, rest)| rest.len() == 2)?;
    Some(seconds.parse::<u64>().ok()? * 100 + rest.parse::<u64>().ok()?)
}

/// Whether the owner of a machine sees it running, and has said so.
pub fn is_running(machine: &Value) -> bool {
    machine["status"]["state"] == "running" && machine["placement"]["confirmed"] == true
}

/// Position of a machine's owner.
pub fn owner(machine: &Value) -> Option<usize> {
    let number: usize = machine["placement"]["node"].as_str()?.strip_prefix('n')?.parse().ok()?;
    Some(number - 1)
}

/// The machine's process on its owner's host.
pub fn pid(machine: &Value) -> Option<u64> {
    machine["status"]["pid"].as_u64()
}
