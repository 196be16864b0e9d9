//! A node's runtime in a temporary directory, and an image made of this host's shell. Cleans up after a failure too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fabric::ids::{Digest, MachineId, NodeId};
use fabric::model::{Labels, MachineSpec, MachineState, MachineStatus, Resources, Restart};
use smartnode::runtime::container::{ContainerConfig, ContainerRuntime, machine_dir};
use smartnode::runtime::{Launch, LogLine, LogQuery, Runtime};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout};

/// A condition is waited for this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

const PROGRAMS: [&str; 18] = [
    "sh", "sleep", "cat", "id", "ls", "touch", "mkdir", "head", "yes", "dd", "hostname", "stat", "perl", "mount",
    "kill", "tail", "wc", "grep",
];

/// A runtime with its own data directory and node id.
pub struct World {
    pub runtime: ContainerRuntime,
    pub data: PathBuf,
    pub node: NodeId,
    rootfs: PathBuf,
    temporary: tempfile::TempDir,
}

fn open(data: &Path, node: NodeId) -> ContainerRuntime {
    let exe = Some(PathBuf::from(env!("CARGO_BIN_EXE_smartnode")));
    ContainerRuntime::open(ContainerConfig { data: data.to_owned(), node, exe }).unwrap()
}

impl World {
    pub fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let rootfs = temporary.path().join("image");
        make_image(&rootfs);
        let data = temporary.path().join("data");
        let node = NodeId(Digest::of(temporary.path().to_str().unwrap().as_bytes()).0);
        World { runtime: open(&data, node), data, node, rootfs, temporary }
    }

    /// A daemon that knows nothing of the former one's machines.
    pub fn new_daemon(&self) -> ContainerRuntime {
        open(&self.data, self.node)
    }

    pub fn prefix(&self) -> String {
        format!("smartnode-{}", self.node.short())
    }

    pub fn dir(&self, id: MachineId) -> PathBuf {
        machine_dir(&self.data, id)
    }

    /// A launch of a shell script.
    pub fn script(&self, n: u8, script: &str) -> Launch {
        Launch {
            id: MachineId([n; 16]),
            epoch: 1,
            requested_restarts: 0,
            tenant: "default".parse().unwrap(),
            name: format!("machine-{n}").parse().unwrap(),
            spec: MachineSpec {
                image: "shell".parse().unwrap(),
                command: vec!["sh".into(), "-c".into(), script.into()],
                env: vec![("COLOUR".into(), "blue".into())],
                resources: Resources::default(),
                publish: vec![],
                labels: Labels::new(),
                exclusive: false,
                restart: Restart::Never,
                pinned: None,
            },
            image: Digest([0; 32]),
            rootfs: self.rootfs.clone(),
            image_command: vec![],
            image_env: vec![],
            image_workdir: String::new(),
            lease_deadline: None,
        }
    }

    /// Starts it and gives its id.
    pub async fn start(&self, launch: &Launch) -> MachineId {
        self.runtime.start(launch).await.unwrap();
        launch.id
    }

    /// Waits for a state.
    pub async fn expect(&self, id: MachineId, state: MachineState) -> MachineStatus {
        let deadline = Instant::now() + PATIENCE;
        let mut changes = self.runtime.watch();
        loop {
            let status = self.runtime.status(id).await.unwrap();
            if status.state == state {
                return status;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(timeout(left, changes.changed()).await.is_ok(), "expected {state:?}, found {status:?}");
        }
    }

    /// Every line that is kept.
    pub async fn log(&self, id: MachineId) -> Vec<LogLine> {
        let mut lines = self.runtime.logs(id, LogQuery::default()).await.unwrap();
        let mut all = vec![];
        while let Some(line) = lines.recv().await {
            all.push(line);
        }
        all
    }

    /// Waits for a line.
    pub async fn expect_line(&self, id: MachineId, wanted: &str) {
        let mut lines = self.runtime.logs(id, LogQuery { tail: None, follow: true }).await.unwrap();
        let search = async {
            while let Some(line) = lines.recv().await {
                if line.text == wanted {
                    return true;
                }
            }
            false
        };
        assert_eq!(timeout(PATIENCE, search).await, Ok(true), "no line {wanted:?}: {:?}", self.log(id).await);
    }

    /// Runs a program inside: standard output and exit code.
    pub async fn exec(&self, id: MachineId, argv: &[&str]) -> (String, i32) {
        let argv: Vec<String> = argv.iter().map(|arg| (*arg).to_owned()).collect();
        let mut stream = self.runtime.exec(id, &argv).await.unwrap();
        let mut out = String::new();
        let mut err = String::new();
        timeout(PATIENCE, stream.stdout.read_to_string(&mut out)).await.unwrap().unwrap();
        timeout(PATIENCE, stream.stderr.read_to_string(&mut err)).await.unwrap().unwrap();
        let code = timeout(PATIENCE, stream.exit).await.unwrap().unwrap();
        (if err.is_empty() { out } else { format!("{out}{err}") }, code)
    }

    /// Pid of a machine's supervisor.
    pub fn supervisor(&self, id: MachineId) -> i32 {
        let text = fs::read_to_string(self.dir(id).join("supervisor.pid")).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    }

    /// Control groups with this node's prefix, in every hierarchy.
    pub fn groups(&self) -> BTreeSet<PathBuf> {
        let roots = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        let prefixed = roots.chain(["/sys/fs/cgroup".into()]).map(|root| root.join(self.prefix()));
        let below = prefixed.filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        below.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    /// Processes of this world: machines' by their control group, supervisors by their working directory.
    pub fn processes(&self) -> Vec<String> {
        let mut found = vec![];
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let path = entry.path();
            let cwd = fs::read_link(path.join("cwd")).unwrap_or_default();
            let groups = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
            if cwd.starts_with(self.temporary.path()) || groups.contains(&self.prefix()) {
                let name = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
                found.push(format!("{}: {}", path.display(), name.replace('\0', " ")));
            }
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.data.join("machines")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path().join("supervisor.pid")).unwrap_or_default();
            let mut words = text.split(' ');
            let (Some(pid), Some(start)) = (words.next(), words.next()) else { continue };
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Only the process that wrote this file, not one that has its pid now.
            if stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)) == Some(start)
                && let Ok(pid) = pid.parse()
            {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < deadline && !self.groups().is_empty() {
            for group in self.groups() {
                for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
                    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap_or(i32::MAX));
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
                let _ = fs::write(group.join("freezer.state"), "THAWED");
                if fs::remove_dir(&group).is_err() {
                    std::thread::yield_now();
                }
                let _ = group.parent().map(fs::remove_dir);
            }
        }
    }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn copy(from: &Path, root: &Path) {
    let to = root.join(from.strip_prefix("/").unwrap());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if !to.exists() {
        fs::copy(from, to).unwrap();
    }
}

/// The programs with their libraries, as `image from-host` will pack them.
fn make_image(root: &Path) {
    fs::create_dir_all(root.join("bin")).unwrap();
    for program in PROGRAMS {
        let path = ["/usr/bin", "/bin"].iter().map(|dir| Path::new(dir).join(program)).find(|path| path.exists());
        let path = path.unwrap_or_else(|| panic!("this host has no {program}"));
        fs::copy(&path, root.join("bin").join(program)).unwrap();
        let ldd = Command::new("ldd").arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&ldd.stdout).into_owned();
        for word in text.split_whitespace().filter(|word| word.starts_with('/')) {
            copy(Path::new(word), root);
        }
    }
    let modules = Path::new("/usr/lib/x86_64-linux-gnu/perl-base");
    let to = root.join(modules.strip_prefix("/").unwrap());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let copied = Command::new("cp").arg("-a").arg(modules).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Time on the clock of leases.
pub fn boottime() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap().into()
}
