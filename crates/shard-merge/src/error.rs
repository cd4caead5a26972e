//! Everything that can end a merge early, in the words that the user reads.

use crate::claims::ClaimError;
use cli::{CommandError, OutputError, Place, reason};
use std::fmt;
use std::io;
use wire_format::{FileName, GrammarError, ReadError};

/// Why the shards cannot be put together.
#[derive(Debug)]
pub enum Error {
    /// A shard cannot be read.
    Read(Place, ReadError),
    /// At this byte of the shard stands a marker that may not stand there.
    Grammar(Place, u64, GrammarError),
    /// All shards have ended, and none held this marker.
    Missing(u64),
    /// A file of which this shard has content, and the metadata shard, or the others, too.
    OtherSide(Place, FileName),
    /// The shards do not belong together.
    Claim(ClaimError),
    /// A command has not done its part.
    Command(CommandError),
    /// The stream cannot be written.
    Output(OutputError),
    /// The system refuses something basic.
    System(io::Error),
}

impl Error {
    /// A shard that the system does not let us open.
    pub fn open(place: Place, error: io::Error) -> Error {
        Error::Read(place, ReadError::Io(error))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Read(place, ReadError::Io(error)) => write!(f, "{place}: {}", reason(error)),
            Error::Read(place, error) => write!(f, "{place}: {error}"),
            Error::Grammar(place, position, error) => {
                write!(f, "{place}: byte {position}: {error}")
            }
            Error::Missing(seq) => {
                write!(f, "marker {seq} is in none of the shards: one is missing or truncated")
            }
            Error::OtherSide(place, name) => {
                write!(f, "{place}: the file {name} is both metadata and not")
            }
            Error::Claim(error) => error.fmt(f),
            Error::Command(error) => error.fmt(f),
            Error::Output(error) => error.fmt(f),
            Error::System(error) => f.write_str(&reason(error)),
        }
    }
}

impl From<OutputError> for Error {
    fn from(error: OutputError) -> Error {
        Error::Output(error)
    }
}

impl From<ClaimError> for Error {
    fn from(error: ClaimError) -> Error {
        Error::Claim(error)
    }
}
