//! Everything that can end a capture early, in the words that the user reads.

use cli::{ChildError, Failure, OutputError, reason};
use criu_protocol::page_server::{CommandError, Memory, OrderError};
use criu_protocol::{ListenError, PagemapError};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use wire_format::{FileName, ImageId};

/// Why there is no image.
#[derive(Debug)]
pub(crate) enum Error {
    /// The UNIX socket cannot be listened on.
    Listen(ListenError),
    /// The TCP address cannot be listened on.
    Address(SocketAddr, io::Error),
    /// A directory or a file in it cannot be read.
    Path(PathBuf, io::Error),
    /// A file of another image.
    Leftover(PathBuf),
    /// The dump before, in this directory, is not that of this image.
    OtherParent(PathBuf, ImageId),
    /// An increment of the dump in this directory was begun before.
    Begun(PathBuf),
    /// What is in the directory has the name of a file that came over the connection.
    NameClash(PathBuf),
    /// More files came at once than the kernel remembers.
    TooManyFiles(PathBuf),
    /// The connection failed.
    Connection(io::Error),
    /// CRIU hung up before it said that the memory was complete.
    HungUp,
    /// A command of CRIU's makes no sense.
    Command(CommandError),
    /// It makes none where it stands.
    Order(OrderError),
    /// Pages of this memory make no sense together.
    Pages(Memory, PagemapError),
    /// Pages are left out, and nobody has said that we hold them.
    NoParent(Memory),
    /// The stream cannot be written.
    Output(OutputError),
    /// The memory has come, and `inventory.img` has not.
    DumpFailed,
    /// The command has failed.
    Child(ChildError),
    /// A name of ours that no file may have. It cannot happen.
    Name(wire_format::NameError),
    /// The system refuses something basic.
    System(io::Error),
}

impl Error {
    /// A file in this directory.
    pub(crate) fn file(directory: &std::path::Path, name: &FileName, error: io::Error) -> Error {
        Error::Path(directory.join(name.as_str()), error)
    }

    pub(crate) fn into_failure(self) -> Failure<Error> {
        match &self {
            Error::Child(error) => {
                let status = error.exit_status();
                Failure::Command(self, status)
            }
            _ => Failure::Failed(self),
        }
    }

    /// Whether this is what follows when CRIU ends, so that its own status says more.
    pub(crate) fn is_effect_of_criu_s_end(&self) -> bool {
        matches!(self, Error::HungUp | Error::Connection(_) | Error::DumpFailed)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Listen(error) => error.fmt(f),
            Error::Address(address, error) => write!(f, "{address}: {}", reason(error)),
            Error::Path(path, error) => write!(f, "{}: {}", path.display(), reason(error)),
            Error::Leftover(path) => write!(
                f,
                "{}: a file of another image; the directory must have none",
                path.display()
            ),
            Error::OtherParent(path, id) => {
                write!(f, "{}: is not the dump of image {id}", path.display())
            }
            Error::Begun(path) => write!(
                f,
                "{}: an increment of it was begun before, so take a whole image now",
                path.display()
            ),
            Error::NameClash(path) => {
                write!(f, "{}: came over the connection, too", path.display())
            }
            Error::TooManyFiles(path) => write!(
                f,
                "{}: too many new files at once to follow (see fs.inotify.max_queued_events)",
                path.display()
            ),
            Error::Connection(error) => write!(f, "CRIU: {}", reason(error)),
            Error::HungUp => f.write_str(
                "CRIU: hung up before all memory had come: the dump failed, there is no image",
            ),
            Error::Command(error) => write!(f, "CRIU: {error}"),
            Error::Order(error) => write!(f, "CRIU: {error}"),
            Error::Pages(memory, error) => write!(f, "CRIU: {memory}: {error}"),
            Error::NoParent(memory) => {
                write!(f, "CRIU: {memory}: pages are left out, without --parent")
            }
            Error::Output(error) => error.fmt(f),
            Error::DumpFailed => f.write_str(
                "CRIU: has written no inventory.img: the dump failed, there is no image",
            ),
            Error::Child(error) => error.fmt(f),
            Error::Name(error) => error.fmt(f),
            Error::System(error) => f.write_str(&reason(error)),
        }
    }
}

impl std::error::Error for Error {}

impl From<OutputError> for Error {
    fn from(error: OutputError) -> Error {
        Error::Output(error)
    }
}

impl From<ChildError> for Error {
    fn from(error: ChildError) -> Error {
        Error::Child(error)
    }
}

impl From<wire_format::NameError> for Error {
    fn from(error: wire_format::NameError) -> Error {
        Error::Name(error)
    }
}
