//! The two processes of a command.
//!
//! The one that the caller has started, the *front*, passes signals on and ends as the other does.
//! That other, the *holder*, does all of the work. If the front is killed, with SIGKILL too, the
//! holder notices, gives up and clears away; if the holder is killed, CRIU's script gets no answer,
//! which is a no, and the front clears away: it has become the parent of all that the holder had
//! started. So a process that is held is let run on whichever of the two dies.

use crate::events::{Event, taken_signals};
use crate::family::{HasEnded, Processes, Stat, signal_all};
use crate::link::word::{self, Word};
use crate::scratch::Scratch;
use crate::tell::Voice;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid};
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::process::{self, Forked};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

/// What makes a command give up, as in the filters, unless it was ignored at the start.
const ENDING: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGALRM,
    Signal::SIGXCPU,
    Signal::SIGUSR2,
];

/// For how long a CRIU that was told no may go on: it freezes a tree for up to ten seconds before
/// it notices anything.
pub(crate) const CRIU_GRACE: Duration = Duration::from_secs(15);
/// For how long the others may after SIGTERM.
pub(crate) const GRACE: Duration = Duration::from_secs(3);
/// For how long anything may after SIGKILL: what takes longer cannot be killed.
pub(crate) const AFTER_KILL: Duration = Duration::from_secs(5);

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit status.
    Status(u8),
    /// By this signal, for whoever waits to see.
    Signal(Signal),
}

/// What the holder tells the front, which is to know if the holder dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// CRIU runs, and is not to be killed with the rest.
    Criu(Pid),
    /// The other end of a migration is told to let the tree run.
    Going,
    /// CRIU has ended, and whether it has succeeded: the holder has taken its status.
    CriuEnded {
        /// Whether its status was 0.
        success: bool,
    },
    /// The tree may go: what CRIU does now is what was wanted.
    LetGo,
    /// How the command ends.
    Outcome(Outcome),
}

/// What to say if the holder dies.
#[derive(Clone, Copy, Debug)]
pub struct LastWords {
    /// When CRIU has succeeded after [`Fact::LetGo`].
    pub done: &'static str,
    /// When it has failed, or may not go on.
    pub failed: &'static str,
    /// When it has failed after [`Fact::Going`].
    pub in_doubt: &'static str,
    /// Whether the other end of a migration is to hear of it, on standard output.
    pub over_link: bool,
}

/// The holder's end of the line to the front.
#[derive(Debug)]
pub struct Reins {
    signals: SignalFd,
    /// While there is one.
    front: Option<UnixStream>,
}

/// Runs `hold` in a second process, and ends as that says.
///
/// # Errors
///
/// When there can be no second process.
pub fn in_two_processes(
    voice: Voice,
    scratch: Scratch,
    last_words: LastWords,
    hold: impl FnOnce(Reins, Scratch) -> Outcome,
) -> io::Result<ExitCode> {
    process::keep_statuses_of_children();
    prctl::set_child_subreaper(true)?;
    let signals = take_signals()?;
    let (front, holder) = UnixStream::pair()?;
    front.set_nonblocking(true)?;
    holder.set_nonblocking(true)?;
    match process::fork()? {
        Forked::Child => {
            drop(front);
            // It is not inherited.
            prctl::set_child_subreaper(true)?;
            // One that was made before would go on telling of the front's signals.
            drop(signals);
            let mut teller = holder.try_clone()?;
            let reins = Reins { signals: take_signals()?, front: Some(holder) };
            let outcome = hold(reins, scratch);
            let _ = teller.write_all(Fact::Outcome(outcome).to_string().as_bytes());
            Ok(match outcome {
                Outcome::Status(status) => ExitCode::from(status),
                Outcome::Signal(_) => ExitCode::FAILURE,
            })
        }
        Forked::Parent(pid) => {
            drop(holder);
            // With all that is the holder's alone.
            drop(hold);
            let front = Front {
                voice,
                scratch,
                last_words,
                signals,
                holder: front,
                pid,
                facts: Vec::new(),
                text: Vec::new(),
            };
            Ok(front.wait())
        }
    }
}

/// Blocks the signals that a command answers, and takes them from a descriptor.
fn take_signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in ENDING.into_iter().filter(|it| !pipe_io::inherit::is_ignored(*it)) {
        signals.add(signal);
    }
    signals.add(Signal::SIGUSR1);
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

impl Reins {
    /// For a command that is one process, which the caller has started: it takes the signals
    /// itself.
    pub fn without_front() -> io::Result<Reins> {
        Ok(Reins { signals: take_signals()?, front: None })
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.signals.as_fd()).chain(self.front.iter().map(AsFd::as_fd))
    }

    pub(crate) fn take_events(&mut self, events: &mut Vec<Event>) {
        let mut buffer = [0; 64];
        while let Some(mut front) = self.front.as_ref() {
            match front.read(&mut buffer) {
                Ok(0) => {
                    self.front = None;
                    events.push(Event::FrontGone);
                }
                Ok(read) => events.extend(
                    buffer
                        .iter()
                        .take(read)
                        .filter_map(|number| Signal::try_from(i32::from(*number)).ok())
                        .map(Event::Signal),
                ),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        for signal in taken_signals(&self.signals) {
            events.push(match signal {
                Signal::SIGCHLD => Event::ChildEnded,
                signal => Event::Signal(signal),
            });
        }
    }

    /// Tells the front.
    pub fn tell(&mut self, fact: Fact) {
        if let Some(mut front) = self.front.as_ref() {
            let _ = front.write_all(fact.to_string().as_bytes());
        }
    }
}

/// The process that the caller has started.
struct Front {
    voice: Voice,
    scratch: Scratch,
    last_words: LastWords,
    signals: SignalFd,
    holder: UnixStream,
    pid: Pid,
    facts: Vec<Fact>,
    text: Vec<u8>,
}

impl Front {
    fn wait(mut self) -> ExitCode {
        let status = loop {
            let mut fds = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.holder.as_fd(), PollFlags::POLLIN),
            ];
            // After the holder's end its end of the line stays readable.
            if poll::wait(&mut fds).is_err() {
                return ExitCode::FAILURE;
            }
            for signal in taken_signals(&self.signals) {
                if signal != Signal::SIGCHLD {
                    let _ = self.holder.write_all(&[signal as i32 as u8]);
                }
            }
            let silent = self.hear();
            match process::reap(self.pid) {
                Ok(Some(status)) => break status,
                // The moment between the end of its descriptors and its own.
                Ok(None) if silent => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) => {}
                Err(_) => return ExitCode::FAILURE,
            }
        };
        self.hear();
        let outcome = self.facts.iter().rev().find_map(|fact| match fact {
            Fact::Outcome(outcome) => Some(*outcome),
            _ => None,
        });
        match outcome {
            Some(outcome) => outcome.end(),
            None => self.take_over(status),
        }
    }

    /// Hears what the holder tells; `true` if that was all.
    fn hear(&mut self) -> bool {
        let mut buffer = [0; 256];
        let silent = loop {
            match self.holder.read(&mut buffer) {
                Ok(0) => break true,
                Ok(read) => self.text.extend(buffer.iter().take(read)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.text.drain(..=end).collect();
            self.facts.extend(std::str::from_utf8(&line).ok().and_then(Fact::parse));
        }
        silent
    }

    /// Clears away what a holder that has died has left, and sees how CRIU ends.
    fn take_over(self, status: ExitStatus) -> ExitCode {
        // There may have been several, one after the other: the last one counts.
        let (mut running, mut has_succeeded) = (None, false);
        for fact in &self.facts {
            match fact {
                Fact::Criu(pid) => (running, has_succeeded) = (Some(*pid), false),
                Fact::CriuEnded { success } => (running, has_succeeded) = (None, *success),
                _ => {}
            }
        }
        let let_go = self.facts.contains(&Fact::LetGo);
        let criu_status = self.end_all(running, let_go);
        self.scratch.remove();
        let success =
            let_go && (has_succeeded || criu_status.is_some_and(|status| status.success()));
        if self.last_words.over_link {
            let reason = "the process that did the work has died".to_owned();
            word::say(&match (success, let_go) {
                (true, _) => Word::Restored,
                (false, true) => Word::Unsure(reason),
                (false, false) => Word::Failed(reason),
            });
        }
        if success {
            self.voice.last(self.last_words.done);
            return ExitCode::SUCCESS;
        }
        let killed = match criu_status.and_then(|status| status.signal()) {
            Some(_) => "; CRIU was killed: TCP connections of the tree may be dead",
            None => "",
        };
        self.voice.last(format_args!(
            "FAILED: the process {} that did the work {}; {}{killed}",
            self.pid,
            HasEnded(status),
            match self.facts.contains(&Fact::Going) {
                true => self.last_words.in_doubt,
                false => self.last_words.failed,
            }
        ));
        ExitCode::FAILURE
    }

    /// Ends all that is left, CRIU last, and returns CRIU's status, unless the holder has taken it.
    /// Once the tree was let go nothing but CRIU is waited for: what there is besides may be the
    /// tree.
    fn end_all(&self, criu: Option<Pid>, let_go: bool) -> Option<ExitStatus> {
        const LOOK: Duration = Duration::from_millis(10);

        let began = Instant::now();
        let mut criu_status = None;
        let mut told = false;
        loop {
            while let Ok(Some((pid, status))) = process::reap_any() {
                if Some(pid) == criu {
                    criu_status = Some(status);
                }
            }
            let processes = Processes::now();
            let mut left = processes.below(getpid());
            // What is not a child of ours has been waited for, and the number may be another's.
            let running = criu.filter(|_| criu_status.is_none());
            let running =
                running.filter(|criu| Stat::of(*criu).is_some_and(|it| it.parent == getpid()));
            if let Some(criu) = running {
                let spared = processes.from(criu);
                left.retain(|pid| !spared.contains(pid));
            }
            let time = began.elapsed();
            let is_over = running.is_none() && (left.is_empty() || let_go);
            if is_over || time >= CRIU_GRACE + AFTER_KILL {
                return criu_status;
            }
            match time {
                _ if let_go => {}
                _ if time >= GRACE => signal_all(&left, Signal::SIGKILL),
                _ if !told => signal_all(&left, Signal::SIGTERM),
                _ => {}
            }
            told = true;
            if let Some(criu) = running.filter(|_| time >= CRIU_GRACE) {
                let _ = kill(criu, Signal::SIGKILL);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Outcome {
    /// Ends this process so.
    pub fn end(self) -> ExitCode {
        match self {
            Outcome::Status(status) => ExitCode::from(status),
            Outcome::Signal(signal) => {
                process::die_of(signal);
                // The first process of a PID namespace survives that.
                ExitCode::from((128 + signal as i32) as u8)
            }
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fact::Criu(pid) => writeln!(f, "criu {pid}"),
            Fact::Going => writeln!(f, "going"),
            Fact::CriuEnded { success } => writeln!(f, "criu-ended {}", u8::from(*success)),
            Fact::LetGo => writeln!(f, "let-go"),
            Fact::Outcome(Outcome::Status(status)) => writeln!(f, "status {status}"),
            Fact::Outcome(Outcome::Signal(signal)) => writeln!(f, "signal {}", *signal as i32),
        }
    }
}

impl Fact {
    fn parse(line: &str) -> Option<Fact> {
        let mut words = line.split_ascii_whitespace();
        let fact = words.next()?;
        let number = words.next().and_then(|word| word.parse::<i32>().ok());
        match (fact, number) {
            ("criu", Some(pid)) => Some(Fact::Criu(Pid::from_raw(pid))),
            ("going", None) => Some(Fact::Going),
            ("criu-ended", Some(number)) => Some(Fact::CriuEnded { success: number == 1 }),
            ("let-go", None) => Some(Fact::LetGo),
            ("status", Some(status)) => Some(Fact::Outcome(Outcome::Status(status as u8))),
            ("signal", Some(number)) => {
                Some(Fact::Outcome(Outcome::Signal(Signal::try_from(number).ok()?)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_arrive_as_they_were_told() {
        let facts = [
            Fact::Criu(Pid::from_raw(42)),
            Fact::Going,
            Fact::CriuEnded { success: true },
            Fact::CriuEnded { success: false },
            Fact::LetGo,
            Fact::Outcome(Outcome::Status(75)),
            Fact::Outcome(Outcome::Signal(Signal::SIGTERM)),
        ];
        for fact in facts {
            assert_eq!(Fact::parse(&fact.to_string()), Some(fact));
        }
    }
}
