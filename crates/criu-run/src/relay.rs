//! What stands between the program and a standard descriptor that CRIU cannot carry: a process that
//! moves what comes through a pipe.
//!
//! A process of its own, so that the program's output has a reader whatever becomes of us.

use nix::unistd::Pid;
use pipe_io::inherit::{self, Direction};
use pipe_io::pipe::Pipe;
use pipe_io::{Endpoint, Mover, process};
use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// The name by which it is started.
const RELAY: &str = "criu-run-relay";

/// Moves standard input to standard output, if it was started for that, until either ends.
pub(crate) fn run_if_named() -> Option<ExitCode> {
    if env::args_os().next()? != RELAY {
        return None;
    }
    let endpoint = |number, direction| {
        let fd = inherit::take(number, direction).ok()?;
        // A terminal is what it is there for.
        Some(fd)
    };
    let (from, to) = (endpoint(0, Direction::Input)?, endpoint(1, Direction::Output)?);
    Some(match relay(from, to) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn relay(from: OwnedFd, to: OwnedFd) -> io::Result<()> {
    match (Endpoint::new(from.try_clone()?), Endpoint::new(to.try_clone()?)) {
        (Ok(from), Ok(to)) => {
            let mut mover = Mover::default();
            while mover.some(&from, &to, u64::MAX).map_err(io::Error::other)? > 0 {}
            Ok(())
        }
        // What is no endpoint, as a terminal, is read and written.
        _ => {
            let (mut from, mut to) = (std::fs::File::from(from), pipe_io::Patient(to));
            io::copy(&mut from, &mut to).map(drop)
        }
    }
}

/// A relay that was started.
pub(crate) struct Relay {
    /// The end of its pipe that the program has.
    pub(crate) end: OwnedFd,
    pub(crate) pid: Pid,
}

/// Starts a relay from our standard input, or to our standard output or error.
pub(crate) fn start(number: i32) -> io::Result<Relay> {
    let direction = if number == 0 { Direction::Input } else { Direction::Output };
    let ours = inherit::duplicate(number, direction).map_err(io::Error::other)?;
    let Pipe { read, write } = Pipe::new()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(RELAY).stderr(Stdio::null());
    let end = match direction {
        Direction::Input => {
            command.stdin(ours).stdout(write);
            read
        }
        Direction::Output => {
            command.stdin(read).stdout(ours);
            write
        }
    };
    process::as_our_caller(&mut command, &[0, 1, 2]);
    process::in_a_new_session(&mut command);
    let pid = Pid::from_raw(command.spawn()?.id() as i32);
    Ok(Relay { end, pid })
}
