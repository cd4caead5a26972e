//! Everything that can end a split early, in the words that the user reads.

use cli::{CommandError, InputError, Place, reason};
use std::fmt;
use std::io;

/// Why the shards are not an image.
#[derive(Debug)]
pub(crate) enum Error {
    /// The stream is not an image, or cannot be read.
    Input(InputError),
    /// A shard cannot be written.
    Shard(Place, io::Error),
    /// A command has not done its part.
    Command(CommandError),
    /// The system refuses something basic.
    System(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Input(error) => error.fmt(f),
            Error::Shard(place, error) => write!(f, "{place}: {}", reason(error)),
            Error::Command(error) => error.fmt(f),
            Error::System(error) => f.write_str(&reason(error)),
        }
    }
}

impl From<InputError> for Error {
    fn from(error: InputError) -> Error {
        Error::Input(error)
    }
}

impl From<CommandError> for Error {
    fn from(error: CommandError) -> Error {
        Error::Command(error)
    }
}
