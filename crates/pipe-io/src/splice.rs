//! Moving pages from one descriptor to another inside the kernel.

use nix::errno::Errno;
use nix::fcntl::{self, SpliceFFlags};
use std::io;
use std::os::fd::AsFd;

/// Moves up to `length` bytes, of which one side must be a pipe; waits for the first of them.
/// Returns 0 at the end of the input.
///
/// A descriptor that somebody else made non-blocking makes the call so: then it fails with
/// [`io::ErrorKind::WouldBlock`], which says neither "input empty" nor "output full".
pub fn splice(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    call(from, to, length, SpliceFFlags::empty())
}

/// Like [`splice`], but never waits for a pipe.
pub fn splice_now(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    call(from, to, length, SpliceFFlags::SPLICE_F_NONBLOCK)
}

/// Duplicates up to `length` queued bytes of one pipe into another, without taking them out and
/// without waiting.
pub fn tee_now(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    let (from, to) = (from.as_fd(), to.as_fd());
    uninterrupted(|| fcntl::tee(from, to, length, SpliceFFlags::SPLICE_F_NONBLOCK))
}

fn call(
    from: impl AsFd,
    to: impl AsFd,
    length: usize,
    flags: SpliceFFlags,
) -> io::Result<usize> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let flags = flags | SpliceFFlags::SPLICE_F_MOVE;
    uninterrupted(|| fcntl::splice(from, None, to, None, length, flags))
}

fn uninterrupted(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
