//! Starting programs, and waiting for them.

use crate::inherit;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{Pid, setsid};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

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

/// Starts the program as our own caller would have started it: with the signals that were ignored
/// and blocked when we were started, and without those of the descriptors 0, 1 and 2 that we were
/// started without. `given` are the ones of these that the command sets itself.
///
/// The standard library would start it with no signal blocked, and SIGPIPE never ignored.
pub fn as_our_caller(command: &mut Command, given: &'static [RawFd]) {
    let become_so = || {
        inherit::become_as_at_start(given);
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls with memory of its own stack.
    unsafe { command.pre_exec(become_so) };
}

/// Starts the program in a session of its own, out of the reach of a terminal's signals.
pub fn in_a_new_session(command: &mut Command) {
    let detach = || setsid().map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec it makes one system call, without memory.
    unsafe { command.pre_exec(detach) };
}

/// Starts the program with these signals ignored. What is deaf to them keeps on with what it does
/// when they are sent to all processes of a group, a session or a control group.
pub fn ignoring(command: &mut Command, signals: &'static [Signal]) {
    let ignore = || signals.iter().try_for_each(|it| ignore(*it).map_err(io::Error::from));
    // SAFETY: between fork and exec it makes a system call for each signal, without memory.
    unsafe { command.pre_exec(ignore) };
}

fn ignore(number: Signal) -> nix::Result<()> {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { signal(number, SigHandler::SigIgn) }.map(drop)
}

/// Makes children waitable: a caller that ignores SIGCHLD (a disposition which survives exec) has
/// the kernel discard their statuses.
pub fn keep_statuses_of_children() {
    // SAFETY: the default action is no handler.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// Takes the status of a child that has ended, whichever it is; `None` if none has.
///
/// # Errors
///
/// `ECHILD` if there are no children.
pub fn reap_any() -> io::Result<Option<(Pid, ExitStatus)>> {
    wait_now(-1)
}

/// Takes the status of this child if it has ended.
pub fn reap(child: Pid) -> io::Result<Option<ExitStatus>> {
    Ok(wait_now(child.as_raw())?.map(|(_, status)| status))
}

/// nix's `waitpid` fails for a child that a real-time signal has killed, and its status is lost.
fn wait_now(which: libc::pid_t) -> io::Result<Option<(Pid, ExitStatus)>> {
    let mut status = 0;
    // SAFETY: the kernel writes one int, to a valid place.
    match unsafe { libc::waitpid(which, &mut status, libc::WNOHANG) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some((Pid::from_raw(pid), ExitStatus::from_raw(status)))),
    }
}

/// The two processes after [`fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The one that was there before, and its new child.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Makes a second process of this program. Fails where it has more than one thread, as the other
/// threads would be missing from the child in the middle of what they do.
pub fn fork() -> io::Result<Forked> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("more than one thread"));
    }
    // SAFETY: there is no other thread, as was just seen, and nobody else could have started one.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Forked::Parent(child)),
        nix::unistd::ForkResult::Child => Ok(Forked::Child),
    }
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
    fn a_program_is_started_as_our_caller_would() {
        let mut command = Command::new("grep");
        as_our_caller(&mut command, &[]);
        // Rust ignores SIGPIPE in this process, and `cargo test` was started without that.
        command.args(["-q", "^SigIgn:.*0...$", "/proc/self/status"]);
        let ours = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(ours.lines().any(|line| line.starts_with("SigIgn:") && line.contains("1")));
        assert_eq!(command.status().unwrap().success(), !inherit::is_ignored(Signal::SIGPIPE));
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
