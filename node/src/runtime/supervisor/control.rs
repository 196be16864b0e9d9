//! Connections to the supervisor's socket: lines in, lines out, all bounded, none waited for.

use std::io;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen, recv, send,
    sendmsg, socket,
};

use crate::runtime::limits::{CONTROL_CONNECTIONS_MAX, CONTROL_LINE_BYTES_MAX};
use crate::runtime::record::SOCKET;

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// Nothing.
    Nothing,
    /// The end of the machine.
    Stop,
    /// The confirmation of a freeze, until this time.
    Freeze(Duration),
}

/// One connection of a daemon.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    begun: Vec<u8>,
    /// It is sent every change.
    pub watches: bool,
    /// Its unanswered request.
    pub waits: Waits,
    /// To be closed: the peer is gone, too slow, or does not keep the protocol.
    pub over: bool,
}

impl Connection {
    /// Wraps a socket.
    pub fn new(socket: OwnedFd) -> Self {
        Connection { socket, begun: vec![], watches: false, waits: Waits::Nothing, over: false }
    }

    /// The descriptor to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes what has arrived; gives the whole lines.
    pub fn lines(&mut self) -> Vec<String> {
        let mut chunk = [0; CONTROL_LINE_BYTES_MAX];
        match recv(self.socket.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => self.over = true,
            Ok(count) => self.begun.extend_from_slice(&chunk[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.over = true,
        }
        let mut lines = vec![];
        while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        if self.begun.len() > CONTROL_LINE_BYTES_MAX {
            self.over = true;
        }
        lines
    }

    /// Sends a line. A peer that does not read is cut off.
    pub fn say(&mut self, line: &str) {
        let text = format!("{line}\n");
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if send(self.socket.as_raw_fd(), text.as_bytes(), flags) != Ok(text.len()) {
            self.over = true;
        }
    }

    /// Sends a line with a descriptor.
    pub fn say_with(&mut self, line: &str, fd: &OwnedFd) {
        let text = format!("{line}\n");
        let fds = [fd.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&fds)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let bytes = [IoSlice::new(text.as_bytes())];
        if sendmsg::<()>(self.socket.as_raw_fd(), &bytes, &message, flags, None) != Ok(text.len()) {
            self.over = true;
        }
    }
}

/// The listening socket in the current directory.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Replaces what a former supervisor left.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn bind() -> io::Result<Self> {
        let _ = nix::unistd::unlink(SOCKET);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // Its directory is 0700; the mode is the second lock.
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let bound = bind(listener.as_raw_fd(), &UnixAddr::new(SOCKET)?);
        nix::sys::stat::umask(before);
        bound?;
        listen(&listener, Backlog::new(16)?)?;
        Ok(Listener(listener))
    }

    /// The descriptor to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes one waiting connection; beyond the bound it is closed at once.
    pub fn accept(&self, connections: &mut Vec<Connection>) {
        use std::os::fd::FromRawFd;
        let Ok(fd) = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else { return };
        #[expect(unsafe_code, reason = "nix gives a bare number here")]
        // SAFETY: just made by accept4, known to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if connections.len() < CONTROL_CONNECTIONS_MAX {
            connections.push(Connection::new(socket));
        }
    }
}

/// A TCP socket of another network namespace, not connected yet: a socket belongs to the namespace it was made in.
///
/// # Errors
/// When there are too many open files.
///
/// # Panics
/// When the way back to the own namespace fails: a supervisor must not live on in a machine's network.
pub fn socket_in(namespace: BorrowedFd<'_>, own: BorrowedFd<'_>, v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let made = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None);
    setns(own, CloneFlags::CLONE_NEWNET).expect("the own network namespace is open");
    Ok(made?)
}
