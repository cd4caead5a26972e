//! A process that shares our descriptors: those that we have now, and those that we shall have.
//!
//! What one of the two opens is open in the other, and what one closes is closed. So nothing that
//! we hold is closed by our death, however sudden, as long as the other lives.

use crate::userfault::{self, UserFault};
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Starts a process that shares our descriptors, runs `run` in it, and ends it with the status that
/// this returns. It begins as a copy of us, but has none of our memory from then on.
///
/// `run` must not close what it did not open while we live: it would be closed here too. So it
/// takes nothing that closes a descriptor when it is dropped. Call this before there is a second
/// thread: in the copy there would be none, and its locks would stay locked.
pub fn start(run: impl FnOnce() -> u8) -> io::Result<Pid> {
    let flags = (libc::CLONE_FILES | libc::SIGCHLD) as libc::c_ulong;
    // s390x has the stack first, which is 0 everywhere: the child goes on with a copy of ours.
    let (first, second) = if cfg!(target_arch = "s390x") { (0, flags) } else { (flags, 0) };
    // SAFETY: a fork: the child has a copy of all memory, and no other thread was there to hold
    // a lock in it.
    let pid = unsafe { libc::syscall(libc::SYS_clone, first, second, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = catch_unwind(AssertUnwindSafe(run)).unwrap_or(u8::MAX);
            // SAFETY: ends the process without running anything of the copy that it is.
            unsafe { libc::_exit(status.into()) }
        }
        pid => Ok(Pid::from_raw(pid as libc::pid_t)),
    }
}

/// For the process that was started, when the one that started it has died: takes over all
/// memory on demand that it has left, and closes all else but the standard descriptors and `kept`.
/// Whoever waits at the other end of something sees that its owner has died.
///
/// Call this once, when nobody shares the descriptors any more.
pub fn inherit(kept: &[RawFd]) -> io::Result<Vec<UserFault>> {
    let memories = userfault::numbers()?;
    for number in open_numbers()? {
        if number > 2 && !kept.contains(&number) && !memories.contains(&number) {
            // SAFETY: by this function's contract whoever owned the descriptor has died; it may
            // be the one that listed them, which is closed already.
            unsafe { libc::close(number) };
        }
    }
    Ok(memories.into_iter().map(own).collect())
}

fn own(number: RawFd) -> UserFault {
    // SAFETY: it is open, as it was listed, and by the contract of `inherit` whoever owned it has
    // died.
    UserFault::new(unsafe { OwnedFd::from_raw_fd(number) })
}

fn open_numbers() -> io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    Ok(numbers)
}
