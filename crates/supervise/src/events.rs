//! What a command that holds a process waits for, all at once: nothing else in it waits.

use crate::gate::{Gate, Question};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use pipe_io::poll::{self, PollFd, PollFlags};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::family::Role;
use crate::front::Reins;

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// A program has said a line.
    Line(Role, String),
    /// A program has closed what it speaks through.
    Silent(Role),
    /// A child has ended: `Family::reap` tells which.
    ChildEnded,
    /// A signal came.
    Signal(Signal),
    /// The process that the caller sees has been killed.
    FrontGone,
    /// CRIU's script asks.
    Asked(Question),
}

/// All that can happen.
#[derive(Debug)]
pub struct Events {
    reins: Reins,
    gate: Option<Gate>,
    speakers: Vec<Speaker>,
}

/// A pipe that a program writes lines into.
#[derive(Debug)]
struct Speaker {
    role: Role,
    pipe: File,
    line: Vec<u8>,
}

impl Events {
    /// With the signals and the death of the process in front.
    pub fn new(reins: Reins) -> Events {
        Events { reins, gate: None, speakers: Vec::new() }
    }

    /// The process in front.
    pub fn reins(&mut self) -> &mut Reins {
        &mut self.reins
    }

    /// Answers CRIU's script from now on.
    pub fn open_gate(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }

    /// Answers no from now on.
    pub fn shut_gate(&mut self) {
        self.gate = None;
    }

    /// Listens to a program: `pipe` is the end that it does not write to, and nobody else's.
    pub fn listen(&mut self, role: Role, pipe: OwnedFd) -> std::io::Result<()> {
        let endpoint = pipe_io::Endpoint::new(pipe).map_err(std::io::Error::other)?;
        endpoint.set_nonblocking()?;
        let pipe = File::from(endpoint.as_fd().try_clone_to_owned()?);
        self.speakers.push(Speaker { role, pipe, line: Vec::new() });
        Ok(())
    }

    /// Waits until something happens, no longer than until `until`. What a program has said comes
    /// before its end.
    pub fn wait(&mut self, until: Instant) -> std::io::Result<Vec<Event>> {
        self.block(until.saturating_duration_since(Instant::now()))?;
        let mut events = Vec::new();
        self.reins.take_events(&mut events);
        // After the signals: the last lines of a child whose SIGCHLD was taken are there by now.
        let mut said = Vec::new();
        self.speakers.retain_mut(|speaker| speaker.hear(&mut said));
        if let Some(gate) = &mut self.gate {
            said.extend(gate.questions().into_iter().map(Event::Asked));
        }
        said.append(&mut events);
        Ok(said)
    }

    fn block(&self, limit: Duration) -> std::io::Result<()> {
        fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
            PollFd::new(fd, PollFlags::POLLIN)
        }

        let mut fds: Vec<PollFd<'_>> = self.reins.fds().map(readable).collect();
        fds.extend(self.speakers.iter().map(|it| readable(it.pipe.as_fd())));
        fds.extend(self.gate.iter().flat_map(Gate::fds).map(readable));
        poll::wait_for(&mut fds, limit).map(drop)
    }
}

impl Speaker {
    /// Hears what was said; `false` when there is no more.
    fn hear(&mut self, events: &mut Vec<Event>) -> bool {
        /// How often to read at once: one that never stops speaking is not all that is heard.
        const AT_ONCE: usize = 16;

        let mut buffer = [0; 1 << 14];
        for _ in 0..AT_ONCE {
            match self.pipe.read(&mut buffer) {
                Ok(0) => {
                    self.end_line(events);
                    events.push(Event::Silent(self.role));
                    return false;
                }
                Ok(read) => self.take(buffer.get(..read).unwrap_or_default(), events),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }

    fn take(&mut self, bytes: &[u8], events: &mut Vec<Event>) {
        /// What is longer is no line, and is heard in parts.
        const LONGEST: usize = 1 << 14;

        for byte in bytes {
            if *byte == b'\n' || self.line.len() >= LONGEST {
                self.end_line(events);
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
    }

    fn end_line(&mut self, events: &mut Vec<Event>) {
        if !self.line.is_empty() {
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
            events.push(Event::Line(self.role, line));
        }
    }
}

/// Takes the signals that have come.
pub(crate) fn taken_signals(source: &SignalFd) -> Vec<Signal> {
    let mut signals = Vec::new();
    while let Ok(Some(taken)) = source.read_signal() {
        signals.extend(Signal::try_from(taken.ssi_signo as i32));
    }
    signals
}
