//! Why a checkpoint or a restore has failed, in the words that the user reads.

use crate::family::{HasEnded, Role};
use crate::ids::Taken;
use nix::sys::signal::Signal;
use pipe_io::reason;
use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

/// What failed first.
#[derive(Debug)]
pub enum Cause {
    /// A signal asked for the end.
    Signal(Signal),
    /// The process that the caller sees was killed.
    FrontKilled,
    /// It took too long. The last is what was waited for.
    TimeLimit(Duration, String),
    /// A program could not be started.
    NotStarted(Role, io::Error),
    /// A program has ended as it should not have.
    Ended(Role, ExitStatus),
    /// The program succeeded without having read all of what it was given.
    ReadTooLittle(Role),
    /// CRIU has ended without having asked whether it may.
    DidNotAsk,
    /// CRIU has not read this file, as it can read it from no stream.
    Lost(String),
    /// A process id of the tree is not free.
    Taken(Taken),
    /// The system refuses something basic.
    System(io::Error),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Signal(signal) => write!(f, "{signal}"),
            Cause::FrontKilled => f.write_str("the process that was started was killed"),
            Cause::TimeLimit(limit, awaited) => {
                write!(f, "{} s were not enough; waited for {awaited}", limit.as_secs())
            }
            Cause::NotStarted(role, error) => {
                write!(f, "{role} could not be started: {}", reason(error))
            }
            Cause::Ended(role, status) => write!(f, "{role} {}", HasEnded(*status)),
            Cause::ReadTooLittle(role) => write!(f, "{role} ended early"),
            Cause::DidNotAsk => f.write_str("criu ended without having run its action script"),
            Cause::Lost(name) => write!(
                f,
                "CRIU closed {name} without reading it: --directory restores what no stream can"
            ),
            Cause::Taken(taken) => taken.fmt(f),
            Cause::System(error) => f.write_str(&reason(error)),
        }
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Cause::NotStarted(_, error) | Cause::System(error) => Some(error),
            _ => None,
        }
    }
}
