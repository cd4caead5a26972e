//! Why a checkpoint or a restore has failed, in the words that the user reads.

use crate::family::{HasEnded, Role};
use crate::ids::Taken;
use crate::link::word::{OneLine, Version};
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
    /// The other host has not said in time that it is ready.
    NoAnswer(String, Duration),
    /// The other host has said something else than what was due.
    Said(String, String),
    /// The other host has this version, which is not ours.
    OtherVersion(String, Version),
    /// A connection does not work any more.
    Unlinked(Role, String),
    /// The other host could not do its part.
    There(String, String),
    /// The other host was told to let the tree run, and has not said in time that it does.
    NoWord(String, Duration),
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
            Cause::NoAnswer(host, limit) => {
                write!(f, "{host} has not answered within {} s", limit.as_secs())
            }
            Cause::Said(host, line) => {
                write!(f, "{host} has said '{}', which is no answer of criu-migrate", OneLine(line))
            }
            Cause::OtherVersion(host, theirs) => {
                let ours = Version::ours();
                write!(f, "{host} has a criu-migrate of {theirs}, and this is {ours}")
            }
            Cause::Unlinked(role, reason) => write!(f, "{role} is lost: {reason}"),
            Cause::There(host, reason) => write!(f, "at {host}: {}", OneLine(reason)),
            Cause::NoWord(host, limit) => write!(
                f,
                "{host} has not said within {} s whether the tree runs there",
                limit.as_secs()
            ),
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
