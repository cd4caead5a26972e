//! Everything that can end an extraction early, in the words that the user reads.

use cli::{ClosingError, InputError, Place, reason};
use std::fmt;
use std::io;
use std::path::PathBuf;
use wire_format::{FileName, ImageId};

/// Why the image was not unpacked.
#[derive(Debug)]
pub(crate) enum Error {
    /// The stream is not an image, or cannot be read.
    Input(InputError),
    /// A directory cannot be used.
    Path(PathBuf, io::Error),
    /// A file in this directory cannot be made or written.
    File(PathBuf, FileName, io::Error),
    /// A file in this directory that would replace one which has another part.
    SameFile(PathBuf, FileName, Place),
    /// A file that would take the place of a filter's socket.
    SocketName(FileName),
    /// An external file cannot be written.
    External(Place, io::Error),
    /// An external file came again after its end; what was written cannot be taken back.
    ExternalAgain(Place),
    /// The image has no file of this name.
    NoSuchFile(FileName),
    /// It is not the image that it is to be, but this one.
    AnotherImage(ImageId, Option<ImageId>),
    /// The list cannot be printed.
    Stdout(io::Error),
    /// The system refuses something basic.
    System(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Input(error) => error.fmt(f),
            Error::Path(path, error) => write!(f, "{}: {}", path.display(), reason(error)),
            Error::File(directory, name, error) => {
                let path = directory.join("");
                write!(f, "{}{name}: {}", path.display(), reason(error))
            }
            Error::SameFile(directory, name, place) => {
                write!(f, "{}{name}: the same file as {place}", directory.join("").display())
            }
            Error::SocketName(name) => {
                write!(f, "{name}: the name of a filter's socket, not of a file in an image")
            }
            Error::External(place, error) => write!(f, "{place}: {}", reason(error)),
            Error::ExternalAgain(place) => write!(f, "{place}: comes twice in the image"),
            Error::NoSuchFile(name) => write!(f, "{name}: not in the image"),
            Error::AnotherImage(wanted, Some(id)) => {
                write!(f, "stdin: the image is {id}, not {wanted}")
            }
            Error::AnotherImage(wanted, None) => {
                write!(f, "stdin: the image has no id, and is to be {wanted}")
            }
            Error::Stdout(error) => write!(f, "stdout: {}", reason(error)),
            Error::System(error) => f.write_str(&reason(error)),
        }
    }
}

impl From<ClosingError> for Error {
    fn from(ClosingError(place, error): ClosingError) -> Error {
        Error::External(place, error)
    }
}

impl From<InputError> for Error {
    fn from(error: InputError) -> Error {
        Error::Input(error)
    }
}
