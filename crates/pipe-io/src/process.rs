//! Starting programs, and waiting for them.

use nix::sys::signal::SigSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

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

/// Lets all signals reach the program that will be started: it would inherit what we block, and
/// outlive its SIGTERM.
pub fn unblock_signals(command: &mut Command) {
    let unblock = || SigSet::empty().thread_set_mask().map_err(io::Error::from);
    // SAFETY: between fork and exec it makes one system call, with memory of its own stack.
    unsafe { command.pre_exec(unblock) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll;
    use nix::sys::signal::Signal;
    use std::process::Stdio;

    #[test]
    fn a_program_does_not_inherit_what_we_block() {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTERM);
        blocked.thread_block().unwrap();
        let mut grep = Command::new("grep");
        grep.args(["-q", "^SigBlk:.0*$", "/proc/self/status"]);
        assert!(!grep.status().unwrap().success());
        unblock_signals(&mut grep);
        assert!(grep.status().unwrap().success());
    }

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
