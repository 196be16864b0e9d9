//! The supervisor's loop: one place where the machine's state changes.
#![expect(clippy::disallowed_methods, reason = "the supervisor works in the machine's own directory")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fabric::human;
use fabric::model::MachineState;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::WaitStatus;

use super::control::{Connection, Listener, Waits, socket_in};
use super::logger;
use super::machine::{Machine, Message, Output, reap};
use crate::runtime::Frozen;
use crate::runtime::cgroup::{Group, Host};
use crate::runtime::lease::{self, Act, Freeze};
use crate::runtime::limits::{BACKOFF_FIRST, FREEZE_RECHECK, FREEZE_TIMEOUT, KILL_TIMEOUT};
use crate::runtime::line::{Request, StatusLine};
use crate::runtime::policy::{self, Next};
use crate::runtime::process::Process;
use crate::runtime::record::{self, ENDED, LAUNCH, LaunchRecord, PID, SOCKET};
use crate::runtime::{rootfs, sys};

/// Grace when the supervisor itself is asked to end: the host shuts down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// How long a supervisor waits for the lock of its machine's directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

fn boottime() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME");
    Duration::from(now)
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Supervises the machine of `dir` until it ends for good.
///
/// # Errors
/// When it could not even begin; the daemon's connection is told so too.
pub fn supervise(dir: &Path) -> io::Result<()> {
    // The parent ends, so that the daemon has nothing to reap and the supervisor belongs to nobody.
    if sys::fork()?.is_some() {
        return Ok(());
    }
    nix::unistd::setsid()?;
    let mut daemon = Connection::new(sys::first_connection());
    match Supervisor::begin(dir) {
        Ok((mut supervisor, lock)) => {
            supervisor.connections.push(daemon);
            supervisor.start();
            let result = supervisor.run();
            supervisor.finish();
            drop(lock);
            result
        }
        Err(error) => {
            daemon.say(&StatusLine::down(MachineState::Failed, Some(error.to_string())).to_string());
            Err(error)
        }
    }
}

struct Supervisor {
    launch: LaunchRecord,
    group: Box<dyn Group>,
    output: Output,
    /// What the log writer waits at: it is told when the machine has ended as it should.
    farewell: OwnedFd,
    mounted: bool,
    own_network: File,
    signals: SignalFd,
    timer: sys::BootTimer,
    listener: Listener,
    connections: Vec<Connection>,
    machine: Option<Machine>,
    /// What pid 1 said about the end of its program, until it is reaped.
    said: Option<Message>,
    status: StatusLine,
    started_at: Duration,
    freeze: Freeze,
    wait: Duration,
    restart_at: Duration,
    /// Asked to end: kill at this time.
    kill_at: Option<Duration>,
    killed: bool,
    told: String,
}

impl Supervisor {
    fn begin(dir: &Path) -> io::Result<(Self, Flock<File>)> {
        nix::unistd::chdir(dir)?;
        let _ = nix::sys::prctl::set_name(c"smartnode-sup");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(PID)?;
        let lock = lock(file)?;
        let launch: LaunchRecord = fabric::wire::decode(&fs::read(LAUNCH)?).map_err(io::Error::other)?;
        if launch.spec.exclusive && launch.lease_deadline_ns.is_none() {
            return Err(io::Error::other("an exclusive machine needs a lease"));
        }
        let host = Host::detect().map_err(io::Error::other)?;
        let group = host.group(&launch.prefix, &launch.id.to_string());
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let (output, farewell) = start_logger(&*group)?;
        rootfs::own_mounts()?;
        group.create(&launch.spec.resources)?;
        let listener = Listener::bind()?;
        let _ = fs::remove_file(ENDED);
        let me = Process::of(std::process::id()).ok_or_else(|| io::Error::other("no /proc"))?;
        lock.set_len(0)?;
        (&*lock).write_all(me.to_string().as_bytes())?;
        let mut status = StatusLine::down(MachineState::Preparing, None);
        status.deadline = launch.lease_deadline_ns.map(Duration::from_nanos);
        let supervisor = Supervisor {
            group,
            output,
            farewell,
            mounted: false,
            own_network: File::open("/proc/self/ns/net")?,
            signals: SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
            timer: sys::BootTimer::new()?,
            listener,
            connections: vec![],
            machine: None,
            said: None,
            status,
            started_at: Duration::ZERO,
            freeze: Freeze::No,
            wait: BACKOFF_FIRST,
            restart_at: Duration::ZERO,
            kill_at: None,
            killed: false,
            told: String::new(),
            launch,
        };
        Ok((supervisor, lock))
    }

    fn run(&mut self) -> io::Result<()> {
        while !self.is_over() {
            let next = self.decide(boottime());
            self.tell();
            if self.is_over() {
                break;
            }
            self.timer.arm(next)?;
            self.wait()?;
        }
        Ok(())
    }

    /// Nothing runs and nothing will.
    fn is_over(&self) -> bool {
        use MachineState::{Exited, Failed, Stopped};
        self.machine.is_none() && matches!(self.status.state, Stopped | Exited | Failed)
    }

    fn held(&self) -> bool {
        self.status.frozen.by_lease || self.status.frozen.by_order
    }

    /// Does everything whose time has come; gives the time of what comes next.
    fn decide(&mut self, now: Duration) -> Option<Duration> {
        let mut next = self.decide_lease(now);
        let mut also = |at: Duration| next = Some(next.map_or(at, |next: Duration| next.min(at)));
        if self.freeze == Freeze::Asked {
            also(now + FREEZE_RECHECK);
        }
        if let Some(at) = self.kill_at
            && !self.killed
        {
            if at > now {
                also(at);
            } else {
                self.kill();
            }
        }
        let startable = self.status.deadline.is_none_or(|deadline| lease::may_start(now, deadline));
        if self.status.state == MachineState::Restarting && self.machine.is_none() && !self.held() && startable {
            if self.restart_at > now {
                also(self.restart_at);
            } else {
                self.status.restarts = self.status.restarts.saturating_add(1);
                self.start();
            }
        }
        next
    }

    fn decide_lease(&mut self, now: Duration) -> Option<Duration> {
        self.look_at_freezer(now);
        let deadline = self.status.deadline?;
        let freeze = if self.machine.is_none() { Freeze::Confirmed } else { self.freeze };
        if !lease::may_start(now, deadline) {
            // Whoever froze it, it stays so until the lease is renewed.
            self.status.frozen.by_lease = true;
        }
        match lease::decide(now, deadline, freeze) {
            Act::Wait(until) => Some(until),
            Act::Hold => None,
            Act::Freeze => {
                self.apply_freeze();
                Some(now + FREEZE_RECHECK)
            }
            Act::Kill => {
                if !self.killed {
                    self.kill();
                    self.status.reason = Some("killed: it could not be frozen before its lease ended".into());
                }
                None
            }
        }
    }

    /// Makes the kernel's freezer agree with who holds the machine.
    fn apply_freeze(&mut self) {
        if self.machine.is_none() {
            return;
        }
        let result = match (self.held(), self.freeze) {
            (true, Freeze::No) => self.group.set_frozen(true).map(|()| self.freeze = Freeze::Asked),
            (false, Freeze::Asked | Freeze::Confirmed) => {
                self.group.set_frozen(false).map(|()| self.freeze = Freeze::No)
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            super::report(&error);
        }
    }

    fn look_at_freezer(&mut self, now: Duration) {
        if self.freeze == Freeze::Asked && self.group.is_frozen().unwrap_or(false) {
            self.freeze = Freeze::Confirmed;
        }
        let still = self.freeze == Freeze::Confirmed || self.machine.is_none();
        let mut undo = false;
        for connection in &mut self.connections {
            let Waits::Freeze(until) = connection.waits else { continue };
            if still {
                connection.say("ok");
            } else if now >= until {
                connection.say("err the kernel did not freeze every process in time");
                undo = true;
            } else {
                continue;
            }
            connection.waits = Waits::Nothing;
        }
        if undo {
            self.status.frozen.by_order = false;
            self.apply_freeze();
        }
    }

    fn start(&mut self) {
        self.said = None;
        self.killed = false;
        self.freeze = Freeze::No;
        self.status.reason = None;
        self.started_at = boottime();
        if self.status.deadline.is_some_and(|deadline| !lease::may_start(self.started_at, deadline)) {
            self.fail("its lease is over".into());
            return;
        }
        match Machine::launch(&self.launch, &*self.group, &self.output, &mut self.mounted) {
            Ok(machine) => {
                self.status.pid = u32::try_from(machine.pid.as_raw()).ok();
                self.machine = Some(machine);
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn fail(&mut self, reason: String) {
        self.status.state = MachineState::Failed;
        self.status.reason = Some(reason);
        self.status.pid = None;
    }

    fn kill(&mut self) {
        self.killed = true;
        if let Some(machine) = &self.machine {
            machine.kill();
            self.group.kill();
        }
    }

    /// Pid 1 is reaped, so nothing of the machine runs.
    fn ended(&mut self, machine: &Machine, status: WaitStatus) {
        while let Some(message) = machine.message() {
            self.take(message);
        }
        let code = match self.said.take() {
            Some(Message::Exited(code)) => code,
            Some(Message::Failed(reason)) => {
                self.fail(reason);
                127
            }
            _ => {
                let code = sys::exit_code(status).unwrap_or(1);
                if self.status.started_ms.is_none() && !self.killed {
                    self.fail(format!("its pid 1 ended with {code} before the program ran"));
                }
                code
            }
        };
        // The next run starts thawed; who held this one still holds that one back.
        let _ = self.group.set_frozen(false);
        self.freeze = Freeze::No;
        self.status.pid = None;
        self.status.started_ms = None;
        self.status.exit_code = Some(code);
        if code == 128 + libc::SIGKILL && self.group.oom_kills() > machine.oom_kills_before {
            let cap = self.launch.spec.resources.burst_memory_bytes;
            let cap = cap.map_or_else(|| "the host's memory".into(), |bytes| format!("its cap of {} MiB", bytes >> 20));
            self.status.reason = Some(format!("out of memory: killed at {cap}"));
        }
        if self.kill_at.is_some() {
            self.status.state = MachineState::Stopped;
            return;
        }
        if self.status.state == MachineState::Failed {
            return;
        }
        let now = boottime();
        let uptime = now.saturating_sub(self.started_at);
        match policy::after(self.launch.spec.restart, code, uptime, self.wait) {
            Next::Restart { wait, next_wait } => {
                self.status.state = MachineState::Restarting;
                let why = self.status.reason.take().unwrap_or_else(|| format!("its program ended with {code}"));
                let (attempt, wait_words) = (self.status.restarts.saturating_add(1), human::duration(wait));
                self.status.reason = Some(format!("{why}; attempt {attempt} after {wait_words}"));
                self.wait = next_wait;
                self.restart_at = now + wait;
            }
            // It was cut short by its lease: nobody may take that for the program's own end.
            Next::End if self.killed => self.status.state = MachineState::Failed,
            Next::End => self.status.state = MachineState::Exited,
        }
    }

    fn take(&mut self, message: Message) {
        if message == Message::Running {
            self.status.state = MachineState::Running;
            self.status.started_ms = Some(unix_ms());
        } else {
            self.said = Some(message);
        }
    }

    /// Waits for the first of: a signal, the timer, pid 1, a request.
    fn wait(&mut self) -> io::Result<()> {
        let idle = self.own_network.as_fd();
        let of_machine = self.machine.as_ref().map_or(idle, Machine::fd);
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![
            readable(self.signals.as_fd()),
            readable(self.timer.fd()),
            readable(self.listener.fd()),
            // Without a machine, a descriptor that nothing is asked of.
            PollFd::new(of_machine, if self.machine.is_some() { PollFlags::POLLIN } else { PollFlags::empty() }),
        ];
        fds.extend(self.connections.iter().map(|connection| readable(connection.fd())));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        drop(fds);
        self.timer.clear();
        if ready[3]
            && let Some(message) = self.machine.as_ref().and_then(Machine::message)
        {
            self.take(message);
        }
        if ready[0] {
            self.take_signals();
        }
        for (at, _) in ready[4..].iter().enumerate().filter(|(_, ready)| **ready) {
            for line in self.connections[at].lines() {
                self.serve(at, &line);
            }
        }
        self.connections.retain(|connection| !connection.over);
        if ready[2] {
            self.listener.accept(&mut self.connections);
        }
        Ok(())
    }

    fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGTERM as u32 && self.kill_at.is_none() {
                self.stop(libc::SIGTERM, SHUTDOWN_GRACE);
            }
        }
        while let Some((pid, status)) = reap() {
            if self.machine.as_ref().is_some_and(|machine| machine.pid == pid)
                && let Some(machine) = self.machine.take()
            {
                self.ended(&machine, status);
            }
        }
    }

    fn serve(&mut self, at: usize, line: &str) {
        let request = match line.parse::<Request>() {
            Ok(request) => request,
            Err(error) => return self.connections[at].say(&format!("err {error}")),
        };
        match request {
            Request::Status => {
                let line = self.status.to_string();
                self.connections[at].say(&line);
            }
            Request::Watch => {
                let line = self.status.to_string();
                self.connections[at].watches = true;
                self.connections[at].say(&line);
            }
            Request::Stop { signal, grace } => {
                self.connections[at].waits = Waits::Stop;
                self.stop(signal, grace);
            }
            Request::Freeze => {
                self.status.frozen.by_order = true;
                self.apply_freeze();
                self.connections[at].waits = Waits::Freeze(boottime() + FREEZE_TIMEOUT);
            }
            Request::Thaw => {
                self.status.frozen.by_order = false;
                self.decide_lease(boottime());
                self.apply_freeze();
                self.connections[at].say("ok");
            }
            Request::Renew { deadline, thaw } => {
                let answer = self.renew(deadline, thaw);
                self.connections[at].say(&answer);
            }
            Request::Shorten { deadline } => {
                // The loop looks at the deadline next, and freezes if its time has come.
                let held = self.status.deadline;
                self.status.deadline = held.map(|held| held.min(deadline));
                self.connections[at].say(if held.is_some() { "ok" } else { "err it is not exclusive" });
            }
            Request::Record => {
                let written = record::replace(Path::new("."), LAUNCH, &fabric::wire::encode(&self.launch));
                let answer = written.map_or_else(|error| format!("err {error}"), |()| "ok".into());
                self.connections[at].say(&answer);
            }
            Request::Socket { v6 } => self.give_socket(at, v6),
        }
    }

    fn stop(&mut self, signal: i32, grace: Duration) {
        let now = boottime();
        let Some(machine) = &self.machine else {
            self.status.state = MachineState::Stopped;
            self.kill_at = Some(now);
            return;
        };
        // A frozen machine cannot hear a signal, and must not be thawed for it.
        let grace = if self.held() { Duration::ZERO } else { grace };
        if !grace.is_zero() {
            machine.signal(signal);
        }
        let at = now + grace;
        self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
    }

    fn renew(&mut self, deadline: Duration, thaw: bool) -> String {
        let Some(held) = self.status.deadline else { return "err it is not exclusive".into() };
        let deadline = held.max(deadline);
        self.status.deadline = Some(deadline);
        if thaw && lease::may_start(boottime(), deadline) {
            self.status.frozen.by_lease = false;
            self.apply_freeze();
        }
        "ok".into()
    }

    fn give_socket(&mut self, at: usize, v6: bool) {
        let made = match &self.machine {
            Some(machine) if self.status.state == MachineState::Running => {
                File::open(format!("/proc/{}/ns/net", machine.pid))
                    .and_then(|network| socket_in(network.as_fd(), self.own_network.as_fd(), v6))
            }
            _ => Err(io::Error::other("it is not running")),
        };
        match made {
            Ok(socket) => self.connections[at].say_with("ok", &socket),
            Err(error) => self.connections[at].say(&format!("err {error}")),
        }
    }

    /// Sends the status to those who watch, if it has changed. A lease that is only renewed is no news.
    fn tell(&mut self) {
        let line = StatusLine { deadline: None, ..self.status.clone() }.to_string();
        if line == self.told {
            return;
        }
        let whole = self.status.to_string();
        self.connections.iter_mut().filter(|connection| connection.watches).for_each(|c| c.say(&whole));
        self.told = line;
    }

    /// Leaves nothing but the disk, the log and the last status.
    fn finish(&mut self) {
        let give_up = boottime() + KILL_TIMEOUT;
        while let Err(error) = self.group.remove() {
            self.group.kill();
            if boottime() > give_up {
                super::report(&error);
                break;
            }
            // What was executed beside the machine is dying: look again soon.
            let _ = poll(&mut [], PollTimeout::from(2u8));
            while reap().is_some() {}
        }
        let _ = nix::unistd::write(&self.farewell, &[1]);
        self.status.frozen = Frozen::default();
        let last = self.status.to_string();
        let temporary = format!("{ENDED}.tmp");
        if fs::write(&temporary, &last).and_then(|()| fs::rename(&temporary, ENDED)).is_err() {
            super::report(&io::Error::other("cannot write the last status"));
        }
        let _ = fs::remove_file(SOCKET);
        for connection in &mut self.connections {
            if connection.waits == Waits::Stop {
                connection.say("ok");
            } else if connection.watches {
                connection.say(&last);
            }
        }
    }
}

/// Locks the machine's directory for this process. A dead supervisor, and who buries its remains, has it for some
/// milliseconds still.
fn lock(file: File) -> io::Result<Flock<File>> {
    let give_up = boottime() + LOCK_PATIENCE;
    let mut file = file;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EAGAIN)) if boottime() < give_up => file = back,
            Err(_) => return Err(io::Error::other("another supervisor has this machine")),
        }
        let _ = poll(&mut [], PollTimeout::from(5u8));
    }
}

/// Forks the log writer; gives the ends that the machine writes to, and the one at which the writer waits for the end of
/// this process.
fn start_logger(group: &dyn Group) -> io::Result<(Output, OwnedFd)> {
    let (out_read, stdout) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (err_read, stderr) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (end_read, farewell) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    if sys::fork()?.is_none() {
        let _ = nix::sys::prctl::set_name(c"smartnode-log");
        let ends: io::Result<[OwnedFd; 3]> = sys::keep_only([&out_read, &err_read, &end_read]);
        let result = ends.and_then(|ends| logger::run(ends, || bury(group)));
        sys::exit_now(i32::from(result.is_err()));
    }
    Ok((Output { stdout, stderr }, farewell))
}

/// Ends what a killed supervisor left. Most of it has died of the parent-death signal; a frozen process dies when it is
/// thawed, and only after every one has its SIGKILL. Not when a successor has the machine already.
fn bury(group: &dyn Group) {
    let Ok(file) = OpenOptions::new().write(true).open(PID) else { return };
    // The kernel may close the dead supervisor's end of the pipe, which is what woke this process, before its lock.
    let Ok(_alone) = lock(file) else { return };
    let give_up = boottime() + KILL_TIMEOUT;
    while let Err(error) = group.remove() {
        group.kill();
        if boottime() > give_up {
            return super::report(&error);
        }
        let _ = poll(&mut [], PollTimeout::from(2u8));
    }
}
