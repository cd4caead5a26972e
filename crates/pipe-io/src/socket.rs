//! Sockets: what is still on its way, and descriptors that are passed.

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What one call received.
#[derive(Debug)]
pub struct Received {
    /// How many bytes; 0 when the peer has hung up.
    pub length: usize,
    /// The descriptors that came with the last of these bytes.
    pub fds: Vec<OwnedFd>,
    /// The process that sent them, as our PID namespace knows it (0: not at all), after
    /// [`ask_for_senders`].
    pub sender: Option<i32>,
}

/// Has the kernel tell with everything that is received which process has sent it. Connections that
/// are accepted later from a socket that listens do as this one.
pub fn ask_for_senders(socket: impl AsFd) -> io::Result<()> {
    Ok(setsockopt(&socket, sockopt::PassCred, &true)?)
}

/// Sends a few bytes, and a descriptor with them.
pub fn send(socket: impl AsFd, bytes: &[u8], fd: impl AsFd) -> io::Result<usize> {
    let fds = [fd.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let slices = [IoSlice::new(bytes)];
    loop {
        let socket = socket.as_fd().as_raw_fd();
        match sendmsg::<()>(socket, &slices, &rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// Receives what is there, up to the end of the buffer, without waiting.
///
/// The kernel ends a message behind the byte that carried descriptors. Fails with `ENOBUFS` if
/// descriptors came that the program could not take, because it has too many open.
pub fn receive_now(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    const FDS_MAX: usize = 4;

    let socket = socket.as_fd().as_raw_fd();
    let mut control = cmsg_space!([RawFd; FDS_MAX], UnixCredentials);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    loop {
        let message = match recvmsg::<()>(socket, &mut slices, Some(&mut control), flags) {
            Ok(message) => message,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut fds = Vec::new();
        let mut sender = None;
        for item in message.cmsgs()? {
            match item {
                ControlMessageOwned::ScmRights(numbers) => {
                    fds.extend(numbers.into_iter().map(own));
                }
                ControlMessageOwned::ScmCredentials(process) => sender = Some(process.pid()),
                _ => {}
            }
        }
        return Ok(Received { length: message.bytes, fds, sender });
    }
}

/// How many bytes of what was sent the peer has not taken yet: of a UNIX socket what is queued, as
/// the memory that it takes, and of a TCP connection what its system has not acknowledged.
pub fn unsent(socket: impl AsFd) -> io::Result<usize> {
    nix::ioctl_read_bad!(outq, libc::TIOCOUTQ, libc::c_int);

    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which has the number of TIOCOUTQ, writes one int, to a valid place, and
    // keeps nothing.
    unsafe { outq(socket.as_fd().as_raw_fd(), &mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
