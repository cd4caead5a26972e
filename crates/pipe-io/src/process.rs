//! Starting programs, and waiting for them.

use crate::inherit;
use crate::pipe::Pipe;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, raise, signal};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getppid, setsid};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::thread;

/// A descriptor that [`crate::poll`] finds readable when the process has ended. It names this
/// process for ever, as a number does not.
#[derive(Debug)]
pub struct ExitWatch(OwnedFd);

impl ExitWatch {
    /// Watches a child that was not waited for yet.
    pub fn new(pid: u32) -> io::Result<ExitWatch> {
        // Kernels before Linux 5.3 have no pidfd, and some sandboxes refuse it.
        pidfd(pid).or_else(|_| exit_pipe(pid)).map(ExitWatch)
    }

    /// Watches a process that need not be a child, and that [`ExitWatch::send`] reaches.
    ///
    /// # Errors
    ///
    /// Also where there is no pidfd: nothing else names a process for ever.
    pub fn of_any(pid: Pid) -> io::Result<ExitWatch> {
        pidfd(pid.as_raw() as u32).map(ExitWatch)
    }

    /// Sends a signal to this process, and never to another that has its number now. That it has
    /// ended is no error. Only for one that was made by [`ExitWatch::of_any`].
    pub fn send(&self, signal: Signal) -> io::Result<()> {
        let (fd, signal) = (self.0.as_raw_fd(), signal as libc::c_int);
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: takes numbers; without a structure it tells the receiver what `kill` would.
        match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) } {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers and gives a new descriptor, or -1.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number as i32) })
}

/// A pipe that a thread hangs up on when the child has ended. The child is left to be waited for.
fn exit_pipe(pid: u32) -> io::Result<OwnedFd> {
    /// It makes one system call after the other.
    const STACK: usize = 128 << 10;

    let Pipe { read, write } = Pipe::new()?;
    let child = Pid::from_raw(pid as i32);
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    let wait = move || {
        // Signals are for other threads.
        let _ = SigSet::all().thread_block();
        // When somebody else has waited for it, it has ended too.
        while waitid(Id::Pid(child), flags) == Err(Errno::EINTR) {}
        drop(write);
    };
    thread::Builder::new().name("exit".into()).stack_size(STACK).spawn(wait)?;
    Ok(read)
}

impl AsFd for ExitWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Starts the program as our own caller would have started it: with the signals that were ignored
/// and blocked when we were started, with as many descriptors allowed, and without those of the
/// descriptors 0, 1 and 2 that we were started without. `given` are the ones of these that the
/// command sets itself.
///
/// The standard library would start it with those blocked that we block, which makes it outlive its
/// SIGTERM, and with SIGPIPE never ignored.
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

/// Starts the program so that it is told by SIGTERM when the thread that has started it dies.
pub fn with_us(command: &mut Command) {
    let us = getpid();
    let follow = move || {
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        match getppid() == us {
            true => Ok(()),
            // It has died before that could be told.
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    };
    // SAFETY: between fork and exec it makes two system calls, without memory.
    unsafe { command.pre_exec(follow) };
}

/// Lets us live on when the thread that has started us dies, also where it has used [`with_us`]. To
/// be called by the first thread.
pub fn without_starter() -> io::Result<()> {
    Ok(prctl::set_pdeathsig(None)?)
}

/// Starts the program with this signal blocked, besides what is so by then: one that takes signals
/// itself may be sent it before it has begun to.
pub fn blocking(command: &mut Command, signal: Signal) {
    let block = move || SigSet::from(signal).thread_block().map_err(io::Error::from);
    // SAFETY: between fork and exec it makes one system call, with memory of its own stack.
    unsafe { command.pre_exec(block) };
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

/// Ends this process by a signal, as another one has ended by it, without a core of our own. Returns
/// where that is not possible: the first process of a PID namespace survives its own signals.
pub fn die_of(number: Signal) {
    let _ = prctl::set_dumpable(false);
    // Rust has a handler for some.
    // SAFETY: the default action is no handler.
    let _ = unsafe { signal(number, SigHandler::SigDfl) };
    let mut this = SigSet::empty();
    this.add(number);
    let _ = this.thread_unblock();
    let _ = raise(number);
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
    use nix::sys::prctl;
    use nix::sys::signal::Signal;
    use std::process::Stdio;

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
    fn a_program_may_have_no_more_descriptors_than_our_caller_allows() {
        let limit = |command: &mut Command| command.output().unwrap().stdout;
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -S -n"]);
        let before = limit(&mut command);
        inherit::raise_descriptor_limit();
        as_our_caller(&mut command, &[]);
        assert_eq!(limit(&mut command), before);
    }

    #[test]
    fn a_program_sleeps_as_our_caller_would() {
        let slack = || prctl::get_timerslack().unwrap();
        let before = slack();
        inherit::sleep_precisely();
        assert_eq!(slack(), 1);
        let mut command = Command::new("cat");
        as_our_caller(&mut command, &[]);
        let read = command.arg("/proc/self/timerslack_ns").output().unwrap();
        if read.status.success() {
            assert_eq!(String::from_utf8(read.stdout).unwrap().trim(), before.to_string());
        }
        prctl::set_timerslack(before as u64).unwrap();
    }

    #[test]
    fn a_process_that_ends_is_seen() {
        for watch in [ExitWatch::new, |pid| exit_pipe(pid).map(ExitWatch)] {
            let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            let watch = watch(child.id()).unwrap();
            assert!(!poll::is_readable(&watch).unwrap());
            drop(child.stdin.take());
            poll::wait_readable(&watch).unwrap();
            assert!(child.wait().unwrap().success());
        }
    }
}
