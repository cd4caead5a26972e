//! Everything that can end a capture early, in the words that the user reads.

use cli::{ChildError, Failure, OutputError, Place, reason};
use criu_protocol::{ListenError, ProtocolError};
use std::fmt;
use std::io;
use wire_format::FileName;

/// Why there is no image.
#[derive(Debug)]
pub(crate) enum Error {
    /// CRIU cannot be listened for.
    Listen(ListenError),
    /// What CRIU said makes no sense.
    Protocol(ProtocolError),
    /// The stream cannot be written.
    Output(OutputError),
    /// A file from CRIU cannot be read.
    File(FileName, io::Error),
    /// An external file cannot be read.
    External(Place, io::Error),
    /// CRIU has sent what is no pipe, for this file.
    NotAPipe(FileName),
    /// CRIU sends a file that has the name of an external one.
    NameClash(FileName),
    /// CRIU hung up without having sent `inventory.img`.
    DumpFailed,
    /// CRIU has sent processes without their memory.
    NoMemory,
    /// CRIU ended within `inventory.img`.
    InventoryCut,
    /// With `--end-at-inventory`: CRIU has sent this file when all of the image was there.
    LateFile(FileName),
    /// With `--end-at-inventory`: CRIU hung up before all of the image was in the stream. What
    /// was still in the pipes is the memory of a process that may run again.
    DidNotWait,
    /// The command behind `--` has not done its part.
    Command(ChildError),
    /// The system refuses something basic.
    System(io::Error),
}

impl Error {
    /// Whether the dump is known to have failed only by what CRIU left undone: then the command
    /// that has started CRIU says more.
    pub(crate) fn is_effect_of_criu_s_end(&self) -> bool {
        matches!(
            self,
            Error::Protocol(ProtocolError::Truncated)
                | Error::DumpFailed
                | Error::InventoryCut
                | Error::DidNotWait
        )
    }

    pub(crate) fn into_failure(self) -> Failure<Error> {
        match &self {
            Error::Command(error) => {
                let status = error.exit_status();
                Failure::Command(self, status)
            }
            _ => Failure::Failed(self),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Listen(error) => error.fmt(f),
            Error::Protocol(error) => write!(f, "CRIU: {error}"),
            Error::Output(error) => error.fmt(f),
            Error::File(name, error) => write!(f, "CRIU: {name}: {}", reason(error)),
            Error::External(place, error) => write!(f, "{place}: {}", reason(error)),
            Error::NotAPipe(name) => write!(f, "CRIU: {name}: came without a pipe"),
            Error::NameClash(name) => {
                write!(f, "CRIU: {name}: the name of an external file")
            }
            Error::DumpFailed => f.write_str(
                "CRIU: hung up before inventory.img: the dump failed, there is no image",
            ),
            Error::NoMemory => f.write_str(
                "CRIU: no pages-N.img: the memory of the processes went elsewhere, there is no image",
            ),
            Error::InventoryCut => {
                f.write_str("CRIU: inventory.img is cut short: the dump failed, there is no image")
            }
            Error::LateFile(name) => {
                write!(f, "CRIU: {name}: sent after inventory.img, which is to be the last file")
            }
            Error::DidNotWait => f.write_str(
                "CRIU: hung up before the stream had ended: it was killed, or no action script \
                 held it at post-dump",
            ),
            Error::Command(error) => error.fmt(f),
            Error::System(error) => f.write_str(&reason(error)),
        }
    }
}

impl From<OutputError> for Error {
    fn from(error: OutputError) -> Error {
        Error::Output(error)
    }
}

impl From<ProtocolError> for Error {
    fn from(error: ProtocolError) -> Error {
        Error::Protocol(error)
    }
}

impl From<ChildError> for Error {
    fn from(error: ChildError) -> Error {
        Error::Command(error)
    }
}
