//! Why the filters could not be chained.

use pipe_io::reason;
use std::fmt;
use std::io;
use std::path::PathBuf;
use supervise::family::Role;

/// What this command itself could not do. What the filters cannot do they say themselves.
#[derive(Debug)]
pub(crate) enum Error {
    /// A filter is not installed.
    NoFilter(Role),
    /// A filter could not be started.
    NotStarted(Role, io::Error),
    /// The images directory could not be made.
    Directory(PathBuf, io::Error),
    /// The system refuses something basic.
    System(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoFilter(role) => write!(f, "{role}: neither beside this command nor in PATH"),
            Error::NotStarted(role, error) => {
                write!(f, "{role} could not be started: {}", reason(error))
            }
            Error::Directory(path, error) => write!(f, "{}: {}", path.display(), reason(error)),
            Error::System(error) => f.write_str(&reason(error)),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::NoFilter(_) => None,
            Error::NotStarted(_, error) | Error::Directory(_, error) | Error::System(error) => {
                Some(error)
            }
        }
    }
}
