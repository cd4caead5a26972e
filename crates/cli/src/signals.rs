//! A thread that answers signals, wherever the program itself is blocked.
//!
//! The signals are blocked in every thread, and this one takes them one by one. So there is no
//! handler, no system call of the data path is cut short, and no moment at which a signal is
//! lost. One that ends the program is raised again when the cleaning up is done, with its
//! default action: the status tells the shell which it was.

use crate::{Counters, child, cleanup, commands};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use pipe_io::{Bytes, Rate};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

const ENDING: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGALRM,
    Signal::SIGXCPU,
    Signal::SIGUSR2,
];

/// Starts the thread. With `live`, and stderr a terminal, it also shows the rate every second.
pub(crate) fn attend(program: &'static str, counters: Arc<Counters>, live: bool) -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGUSR1);
    // What was ignored at the start, as `nohup` has it, stays so.
    ENDING
        .into_iter()
        .filter(|signal| !pipe_io::inherit::is_ignored(*signal))
        .for_each(|signal| signals.add(signal));
    signals.thread_block()?;
    // Past `ulimit -f` a write then fails, as on a full disk, and the program says so and cleans up.
    SigSet::from(Signal::SIGXFSZ).thread_block()?;
    let source = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let live = live && io::stderr().is_terminal();
    thread::Builder::new().name("signals".into()).stack_size(1 << 17).spawn(move || {
        let mut line = live.then(|| Live::new(program, &counters));
        loop {
            let timeout = if live { PollTimeout::from(1000_u16) } else { PollTimeout::NONE };
            let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => line.iter_mut().for_each(|line| line.show(&counters)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            while let Ok(Some(taken)) = source.read_signal() {
                match Signal::try_from(taken.ssi_signo as i32) {
                    Ok(Signal::SIGUSR1) => say(&format!("{}\n", counters.json())),
                    Ok(signal) => end_by(signal),
                    Err(_) => {}
                }
            }
        }
    })?;
    Ok(())
}

fn end_by(signal: Signal) {
    let _child = child::end();
    let _commands = commands::end_all(signal);
    let _lock = cleanup::remove_all();
    let mut this = SigSet::empty();
    this.add(signal);
    let _ = this.thread_unblock();
    let _ = raise(signal);
    // The first process of a PID namespace survives that.
    std::process::exit(128 + signal as i32);
}

/// Bytes and rate, on one line that is written over every second.
struct Live {
    program: &'static str,
    since: Instant,
    total: u64,
}

impl Live {
    fn new(program: &'static str, counters: &Counters) -> Live {
        Live { program, since: Instant::now(), total: counters.total() }
    }

    fn show(&mut self, counters: &Counters) {
        let total = counters.total();
        let rate = Rate(total.saturating_sub(self.total), self.since.elapsed());
        (self.total, self.since) = (total, Instant::now());
        say(&format!("\r{}: {}, {rate}\x1b[K", self.program, Bytes(total)));
    }
}

/// Says something on stderr if somebody listens: a reader that stalls must not keep us from the
/// signal that ends the program.
fn say(text: &str) {
    /// What a pipe that can be written to takes without waiting.
    const ATOMIC: usize = 4096;

    for piece in text.as_bytes().chunks(ATOMIC) {
        if !pipe_io::poll::is_writable(io::stderr()).unwrap_or(false) {
            return;
        }
        let _ = io::stderr().write_all(piece);
    }
}
