//! What stands between the program and a standard descriptor that CRIU cannot carry: a process that
//! moves what comes through a pipe.
//!
//! A process of its own, so that the program's output has a reader whatever becomes of us.

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pipe_io::inherit::{self, Direction};
use pipe_io::pipe::Pipe;
use pipe_io::{Patient, process};
use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

/// The name by which it is started.
const RELAY: &str = "criu-run-relay";

/// A relay of output is deaf to what is sent to all processes of a control group or a terminal: it
/// ends with the output.
const DEAF_TO: &[Signal] = &[
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Moves standard input to standard output, if it was started for that, until either ends.
pub(crate) fn run_if_named() -> Option<ExitCode> {
    if env::args_os().next()? != RELAY {
        return None;
    }
    let from = inherit::take(0, Direction::Input).ok()?;
    let to = inherit::take(1, Direction::Output).ok()?;
    Some(match relay(from, to) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn relay(from: OwnedFd, to: OwnedFd) -> io::Result<()> {
    let (mut from, mut to) = (File::from(from), Patient(to));
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // Whoever has made it so shares it with us.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                pipe_io::poll::wait_readable(&from)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        write_all(&mut to, buffer.get(..read).unwrap_or_default())?;
    }
}

/// Writes all of it. On a disk that is full it waits until there is room: the program would be
/// told, but by SIGPIPE, of which it would die.
fn write_all(to: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    const LOOK_FOR_ROOM: Duration = Duration::from_secs(1);

    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_full(&error) => thread::sleep(LOOK_FOR_ROOM),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_full(error: &io::Error) -> bool {
    [Errno::ENOSPC, Errno::EDQUOT].iter().any(|it| error.raw_os_error() == Some(*it as i32))
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
    process::as_our_caller(&mut command, &[0, 1, 2]);
    process::in_a_new_session(&mut command);
    let end = match direction {
        Direction::Input => {
            // What is typed after our end is for others.
            process::with_us(&mut command);
            command.stdin(ours).stdout(write);
            read
        }
        Direction::Output => {
            process::ignoring(&mut command, DEAF_TO);
            command.stdin(read).stdout(ours);
            write
        }
    };
    let pid = Pid::from_raw(command.spawn()?.id() as i32);
    Ok(Relay { end, pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is full for a while.
    struct Full {
        times: usize,
        written: Vec<u8>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.times > 0 {
                self.times -= 1;
                return Err(Errno::ENOSPC.into());
            }
            let some = bytes.len().min(3);
            self.written.extend(&bytes[..some]);
            Ok(some)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_waited_for_and_nothing_is_lost() {
        let mut disk = Full { times: 1, written: Vec::new() };
        write_all(&mut disk, b"a line of output").unwrap();
        assert_eq!(disk.written, b"a line of output");
    }
}
