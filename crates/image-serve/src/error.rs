//! Everything that can end serving early, in the words that the user reads.

use crate::network_lock::LockError;
use crate::remap::RemapError;
use crate::store::NoPipe;
use cli::{ChildError, ClosingError, Failure, InputError, Place, reason};
use criu_protocol::{ListenError, ProtocolError};
use lazy_pages::PagemapError;
use std::fmt;
use std::io;
use wire_format::FileName;

/// Why the image was not served.
#[derive(Debug)]
pub(crate) enum Error {
    /// CRIU cannot be listened for.
    Listen(ListenError),
    /// The stream is not an image, or cannot be read.
    Input(InputError),
    /// An external file cannot be written.
    External(Place, io::Error),
    /// An external file came again after its end; what was written cannot be taken back.
    ExternalAgain(Place),
    /// The image has no such external file.
    NoSuchFile(Place),
    /// The image cannot be held: no memory.
    Hold(FileName, io::Error),
    /// The image cannot be held in pipes alone, as the user wants it.
    NoPipe(FileName, NoPipe),
    /// Ports cannot be moved.
    Remap(RemapError),
    /// What CRIU said makes no sense.
    Protocol(ProtocolError),
    /// CRIU has sent what is no pipe, for this file.
    NotAPipe(FileName),
    /// A file cannot be sent to CRIU.
    Send(FileName, io::Error),
    /// CRIU wants a file that it was given already, and that is too large to be kept.
    Gone(FileName),
    /// CRIU has closed a file without having read any of it.
    Unread(FileName),
    /// The same, and it has CRIU's network lock, which could not be put in place either.
    NoLock(FileName, LockError),
    /// A file begins after all were said to have been named, and CRIU has begun.
    Late(FileName),
    /// CRIU has gone before all of the image had come.
    LeftEarly,
    /// CRIU has gone without having read the image.
    NotRestored,
    /// Memory cannot be served on demand.
    Lazy(lazy_pages::Error),
    /// A pagemap does not say what can come late.
    Pagemap(FileName, PagemapError),
    /// The pages of a process are not there, or not as many as its pagemap has.
    Pages(FileName, FileName),
    /// CRIU reads this file as if no memory were to come late.
    NotLazy(FileName),
    /// The command behind `--` has not done its part.
    Command(ChildError),
    /// The system refuses something basic.
    System(io::Error),
}

/// What restores all that a stream cannot.
const FROM_DIRECTORY: &str =
    "(restore from a directory: criu-restore --directory, or image-extract and criu restore)";

impl Error {
    /// Whether the restore is known to have failed only by what CRIU left undone: then the command
    /// that has started CRIU says more.
    pub(crate) fn is_effect_of_criu_s_end(&self) -> bool {
        matches!(
            self,
            Error::NotRestored
                | Error::LeftEarly
                | Error::Protocol(ProtocolError::Truncated)
                | Error::Lazy(lazy_pages::Error::NotRestored)
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
            Error::Input(error) => error.fmt(f),
            Error::External(place, error) => write!(f, "{place}: {}", reason(error)),
            Error::ExternalAgain(place) => write!(f, "{place}: comes twice in the image"),
            Error::NoSuchFile(place) => write!(f, "{place}: not in the image"),
            Error::Hold(name, error) => write!(f, "{name}: cannot be held: {}", reason(error)),
            Error::NoPipe(name, no_pipe) => write!(f, "{name}: {no_pipe}"),
            Error::Remap(error) => error.fmt(f),
            Error::Protocol(error) => write!(f, "CRIU: {error}"),
            Error::NotAPipe(name) => write!(f, "CRIU: {name}: came without a pipe"),
            Error::Send(name, error) => write!(f, "CRIU: {name}: {}", reason(error)),
            Error::Gone(name) => {
                write!(
                    f,
                    "CRIU: {name}: asked for again, and cannot be read twice {FROM_DIRECTORY}"
                )
            }
            Error::Unread(name) => write!(
                f,
                "CRIU: {name}: closed unread: CRIU has failed (see its log), or cannot read it \
                 from a pipe {FROM_DIRECTORY}"
            ),
            Error::NoLock(name, error) => write!(
                f,
                "CRIU: {name}: closed unread, and nft could not put CRIU's lock in place: {error} \
                 {FROM_DIRECTORY}"
            ),
            Error::Late(name) => {
                write!(f, "{name}: begins after all files were said to have been named")
            }
            Error::LeftEarly => f.write_str("CRIU: hung up before all of the image had come"),
            Error::NotRestored => {
                f.write_str("CRIU: hung up without asking for inventory.img: nothing was restored")
            }
            Error::Lazy(error) => error.fmt(f),
            Error::Pagemap(name, error) => write!(f, "{name}: {error}"),
            Error::Pages(name, pagemap) => write!(f, "{name}: not what {pagemap} says"),
            Error::NotLazy(name) => write!(
                f,
                "CRIU: {name}: asked for without a connection to lazy-pages.socket: \
                 criu restore needs --lazy-pages, and its working directory is ours (-W)"
            ),
            Error::Command(error) => error.fmt(f),
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

impl From<ProtocolError> for Error {
    fn from(error: ProtocolError) -> Error {
        Error::Protocol(error)
    }
}

impl From<lazy_pages::Error> for Error {
    fn from(error: lazy_pages::Error) -> Error {
        Error::Lazy(error)
    }
}

impl From<ChildError> for Error {
    fn from(error: ChildError) -> Error {
        Error::Command(error)
    }
}
