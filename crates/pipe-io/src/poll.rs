//! Waiting until something can be done.

use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::time::TimeSpec;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

pub use nix::poll::{PollFd, PollFlags};

/// What poll says of an output whose reader has gone: a pipe has an error then, a UNIX socket a
/// hang-up. Both are told without being asked for.
pub const READER_GONE: PollFlags = PollFlags::POLLERR.union(PollFlags::POLLHUP);

/// Waits until one of the descriptors is ready, for ever if need be.
pub fn wait(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    call(fds, PollTimeout::NONE).map(drop)
}

/// Waits until one of the descriptors is ready, but no longer than that; `true` when one is.
pub fn wait_for(fds: &mut [PollFd<'_>], limit: Duration) -> io::Result<bool> {
    /// Nobody sees it out.
    const LONGEST: Duration = Duration::from_secs(1 << 30);

    let until = Instant::now() + limit.min(LONGEST);
    loop {
        // Not by `poll`, which knows milliseconds.
        let left = TimeSpec::from_duration(until.saturating_duration_since(Instant::now()));
        match nix::poll::ppoll(fds, Some(left), None) {
            Err(Errno::EINTR) => {}
            result => return Ok(result? > 0),
        }
    }
}

/// Looks at the descriptors without waiting; `true` when one of them is ready.
pub fn look(fds: &mut [PollFd<'_>]) -> io::Result<bool> {
    Ok(call(fds, PollTimeout::ZERO)? > 0)
}

/// Whether a read would return at once: with bytes, an end or an error.
pub fn is_readable(fd: impl AsFd) -> io::Result<bool> {
    look(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)])
}

/// Whether a write of a page would return at once: with success or an error.
pub fn is_writable(fd: impl AsFd) -> io::Result<bool> {
    look(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)])
}

/// Waits until a read would return at once.
pub fn wait_readable(fd: impl AsFd) -> io::Result<()> {
    wait(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)])
}

/// Waits until a write of a page would return at once.
pub fn wait_writable(fd: impl AsFd) -> io::Result<()> {
    wait(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)])
}

fn call(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<i32> {
    loop {
        match nix::poll::poll(fds, timeout) {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
