//! A TAP device: a network interface whose other end is this program (Linux `Documentation/networking/tuntap.rst`).
//!
//! Each frame comes and goes with a [`crate::vnet`] header, so that TCP hands over up to 64 KiB at once and leaves its
//! checksum open.
#![expect(unsafe_code, reason = "this file calls the kernel")]

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::uio::writev;
use nix::unistd::read;
use tokio::io::unix::AsyncFd;

/// Longest name of an interface, in bytes.
const NAME_BYTES_MAX: usize = 15;
/// A TAP without another header than `virtio_net_hdr`, and not one that somebody made before.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
/// Frames that wait in the kernel: each may have 64 KiB, and what waits long is felt as delay.
const QUEUE_FRAMES: libc::c_int = 32;
/// Checksums of TCP and UDP may be open, TCP may come in trains, over IPv4 and IPv6, with ECN too (`TUN_F_*`).
const OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

mod ask {
    nix::ioctl_write_int!(tunsetiff, b'T', 202);
    nix::ioctl_write_int!(tunsetoffload, b'T', 208);
    nix::ioctl_write_ptr!(tunsetvnetle, b'T', 220, libc::c_int);
    nix::ioctl_write_ptr_bad!(siocsiftxqlen, libc::SIOCSIFTXQLEN, libc::ifreq);
}

/// One end of a TAP device.
#[derive(Debug)]
pub struct Tap {
    file: AsyncFd<OwnedFd>,
}

impl Tap {
    /// Makes the device `name` in the network namespace of the calling thread; it is gone when this is dropped. Needs a
    /// tokio runtime with IO.
    ///
    /// # Errors
    /// When the name is none, or the kernel refuses: without the right (`CAP_NET_ADMIN`), when there is no `/dev/net/tun`,
    /// or when somebody holds a device of that name.
    pub fn open(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(['/', '\0', '%', ' ']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name of an interface")));
        }
        let mut options = OpenOptions::new();
        #[expect(clippy::disallowed_methods, reason = "a device of the kernel, not a file")]
        let file =
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open("/dev/net/tun")?;
        // SAFETY: all-zero bytes are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *place = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = FLAGS as libc::c_short;
        let fd = file.as_raw_fd();
        // SAFETY: `TUNSETIFF` takes the address of an `ifreq`, which lives until the call has returned.
        unsafe { ask::tunsetiff(fd, (&raw mut request) as libc::c_ulong) }?;
        // SAFETY: `TUNSETVNETLE` takes the address of an int, and `TUNSETOFFLOAD` a number.
        unsafe {
            ask::tunsetvnetle(fd, &1)?;
            ask::tunsetoffload(fd, OFFLOADS.into())?;
        }
        request.ifr_ifru.ifru_mtu = QUEUE_FRAMES; // an int, as the length of a queue is: they share their place
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        // SAFETY: `SIOCSIFTXQLEN` takes the address of an `ifreq`, in which the device is named.
        unsafe { ask::siocsiftxqlen(socket.as_raw_fd(), &request) }?;
        // SAFETY: an `OwnedFd` keeps its descriptor until it is dropped, and `Tap` lets nobody change it.
        let file = unsafe { AsyncFd::register(file.into()) }?;
        Ok(Tap { file })
    }

    /// The next frame that the kernel sends, with its header; gives its length. `buffer` has `FRAME_BYTES_MAX`: what does
    /// not fit would be cut.
    ///
    /// # Errors
    /// When the device is gone.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.file.readable().await?;
            let tried = ready.try_io(|file| read(file.get_ref().as_fd(), buffer).map_err(io::Error::from));
            if let Ok(done) = tried {
                return done;
            }
        }
    }

    /// Hands a frame to the kernel, in pieces, the first with the header. It is dropped when the kernel has no room for it,
    /// as a card does, and when the interface is down.
    ///
    /// # Errors
    /// When the device is gone, or the frame is none that the kernel takes.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        match writev(self.file.get_ref().as_fd(), pieces) {
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EIO) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_are_none_are_refused() {
        for name in ["", "sixteen-letters!", "a/b", "tap%d", "a b"] {
            assert_eq!(Tap::open(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }
}
