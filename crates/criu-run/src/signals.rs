//! The signals that `criu-run` answers, or passes on.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use pipe_io::poll::{self, PollFd, PollFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Those that say that this program itself is wrong, or that stop it.
const LEFT_ALONE: [Signal; 11] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGABRT,
    Signal::SIGTRAP,
    Signal::SIGSYS,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGPIPE,
];

/// All others that have a name, which are taken from a descriptor.
pub(crate) struct Signals {
    fd: SignalFd,
    checkpoint_on: Signal,
}

impl Signals {
    /// From now on.
    pub(crate) fn take(checkpoint_on: Signal) -> io::Result<Signals> {
        let mut signals = SigSet::all();
        LEFT_ALONE.into_iter().for_each(|signal| signals.remove(signal));
        signals.thread_block()?;
        let fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Signals { fd, checkpoint_on })
    }

    /// Those that have come.
    pub(crate) fn taken(&self) -> Vec<Signal> {
        let mut signals = Vec::new();
        while let Ok(Some(taken)) = self.fd.read_signal() {
            signals.extend(Signal::try_from(taken.ssi_signo as i32));
        }
        signals
    }

    /// Whether a signal ends us while there is no program that it could be for.
    pub(crate) fn asks_for_end(&self, signal: Signal) -> bool {
        let ending = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
        signal == self.checkpoint_on
            || (ending.contains(&signal) && !pipe_io::inherit::is_ignored(signal))
    }

    /// Waits for a signal, or until this can be read, and returns whether it can.
    pub(crate) fn wait_with(&self, other: Option<&impl AsFd>) -> io::Result<bool> {
        const LONG: Duration = Duration::from_secs(60);

        let mut fds = vec![PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        fds.extend(other.map(|other| PollFd::new(other.as_fd(), PollFlags::POLLIN)));
        poll::wait_for(&mut fds, LONG)?;
        Ok(fds.get(1).and_then(PollFd::any).unwrap_or(false))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
