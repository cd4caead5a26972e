//! Waiting for programs that we have started.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// A descriptor that [`crate::poll`] finds readable when the process has ended. It names this
/// process for ever, as a number does not.
#[derive(Debug)]
pub struct ExitWatch(OwnedFd);

impl ExitWatch {
    /// Watches a child that was not waited for yet.
    pub fn new(pid: u32) -> io::Result<ExitWatch> {
        // SAFETY: takes two numbers and gives a new descriptor, or -1.
        let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        Ok(ExitWatch(unsafe { OwnedFd::from_raw_fd(number as i32) }))
    }
}

impl AsFd for ExitWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_that_ends_is_seen() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let watch = ExitWatch::new(child.id()).unwrap();
        assert!(!poll::is_readable(&watch).unwrap());
        drop(child.stdin.take());
        poll::wait_readable(&watch).unwrap();
        assert!(child.wait().unwrap().success());
    }
}
