//! Threads that move the image between a pipe of this machine's and a connection. Each tells what
//! becomes of it by lines, as the programs do.

use super::frames::{self, Broken};
use pipe_io::pipe::Pipe;
use pipe_io::{Endpoint, MoveError, reason};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::thread;

/// It needs little: it moves page references.
const STACK: usize = 128 << 10;

/// What a relay tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// All of the shard has gone through, and its end.
    Through,
    /// The connection does not work any more, for this reason.
    Lost(String),
    /// Whoever the shard is for, or comes from, has gone: that is not the connection's fault.
    Left,
    /// A line of the other end's, behind the shard.
    Said(String),
}

impl Report {
    pub(crate) fn parse(line: &str) -> Option<Report> {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        match first {
            "through" => Some(Report::Through),
            "lost" => Some(Report::Lost(rest.to_owned())),
            "left" => Some(Report::Left),
            "said" => Some(Report::Said(rest.to_owned())),
            _ => None,
        }
    }

    fn line(&self) -> String {
        match self {
            Report::Through => "through\n".into(),
            Report::Lost(reason) => format!("lost {reason}\n"),
            Report::Left => "left\n".into(),
            Report::Said(line) => format!("said {line}\n"),
        }
    }
}

/// Sends what comes out of a pipe. Returns where the relay's reports come out.
pub(crate) fn send(from: OwnedFd, to: OwnedFd) -> io::Result<OwnedFd> {
    start(from, to, |from, to, mut reports| {
        let report = match frames::send(&from, &to) {
            Ok(()) => Report::Through,
            Err(MoveError::Output(error)) => Report::Lost(reason(&error)),
            Err(MoveError::Input(_)) => Report::Left,
        };
        tell(&mut reports, &report);
    })
}

/// Receives a shard, and passes it on into a pipe. With `listen`, it goes on to receive lines.
pub(crate) fn receive(from: OwnedFd, to: OwnedFd, listen: bool) -> io::Result<OwnedFd> {
    start(from, to, move |from, to, mut reports| {
        let result = frames::receive(&from, &to);
        drop(to);
        let report = match result {
            Ok(()) => Report::Through,
            Err(Broken::Cut) => Report::Lost("it ended in the middle of the image".into()),
            Err(Broken::Input(error)) => Report::Lost(reason(&error)),
            Err(Broken::Output) => Report::Left,
        };
        tell(&mut reports, &report);
        if listen && report == Report::Through {
            let lost = pass_on_lines(from, &mut reports);
            tell(&mut reports, &Report::Lost(lost));
        }
    })
}

/// Passes on lines to their end, and returns why that was.
fn pass_on_lines(mut from: Endpoint, reports: &mut File) -> String {
    /// No line of a link that comes here is nearly as long.
    const LONGEST: usize = 200;

    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match from.read(&mut byte) {
            Ok(0) => return "it has ended".into(),
            Ok(_) if byte == *b"\n" => {
                let text = String::from_utf8_lossy(&line).into_owned();
                tell(reports, &Report::Said(text));
                line.clear();
            }
            Ok(_) if line.len() >= LONGEST => return "what comes is no line".into(),
            Ok(_) => line.extend(byte),
            Err(error) => return reason(&error),
        }
    }
}

fn tell(reports: &mut File, report: &Report) {
    let _ = reports.write_all(report.line().as_bytes());
}

fn start(
    from: OwnedFd,
    to: OwnedFd,
    work: impl FnOnce(Endpoint, Endpoint, File) + Send + 'static,
) -> io::Result<OwnedFd> {
    let endpoint = |fd| Endpoint::new(fd).map_err(io::Error::other);
    let (from, to) = (endpoint(from)?, endpoint(to)?);
    from.grow();
    to.grow();
    let Pipe { read, write } = Pipe::new()?;
    let run = move || work(from, to, File::from(write));
    thread::Builder::new().name("relay".into()).stack_size(STACK).spawn(run)?;
    Ok(read)
}
