//! Moving pages from one descriptor to another inside the kernel.

use nix::errno::Errno;
use nix::fcntl::{self, SpliceFFlags};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::time::Duration;

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

/// How long it takes at most to move so many bytes from pipe to pipe when nobody else has one of
/// them, with cold caches: with warm ones it is some 15 ns a page.
pub fn usual_time(bytes: usize) -> Duration {
    Duration::from_nanos(bytes as u64 / 32)
}

/// Like [`splice_now`], from a regular file, at `offset` and not at the file's own position.
pub fn splice_file_now(
    from: impl AsFd,
    offset: u64,
    to: impl AsFd,
    length: usize,
) -> io::Result<usize> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    uninterrupted(|| {
        let mut offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        fcntl::splice(from, Some(&mut offset), to, None, length, flags)
    })
}

/// Puts memory into a pipe by reference, without waiting. It must not be changed before it was
/// read at the other end; giving it back to the system is no change.
pub fn vmsplice_now(to: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let to = to.as_fd();
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
    uninterrupted(|| fcntl::vmsplice(to, &[IoSlice::new(bytes)], flags))
}

/// Duplicates up to `length` queued bytes of one pipe into another, without taking them out and
/// without waiting.
pub fn tee_now(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    let (from, to) = (from.as_fd(), to.as_fd());
    uninterrupted(|| fcntl::tee(from, to, length, SpliceFFlags::SPLICE_F_NONBLOCK))
}

fn call(from: impl AsFd, to: impl AsFd, length: usize, flags: SpliceFFlags) -> io::Result<usize> {
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
