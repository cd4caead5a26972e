//! Everything that can keep images from being combined, in the words that the user reads.

use cli::{InputError, OutputError, Place, reason};
use criu_protocol::PagemapError;
use criu_protocol::page_server::Memory;
use std::fmt;
use std::io;
use wire_format::{FileName, ImageId};

/// Why there is no whole image.
#[derive(Debug)]
pub(crate) enum Error {
    /// An image cannot be opened.
    Open(Place, io::Error),
    /// It is no image, or cannot be read.
    Input(InputError),
    /// A file of an image cannot be read again.
    Read(Place, FileName, io::Error),
    /// The first image is an increment of another one.
    BaseIsIncrement(Place, ImageId),
    /// An image after the first one is whole.
    NotAnIncrement(Place),
    /// It is an increment of the second image, which is not the one before it.
    Order(Place, Place),
    /// It is an increment of an image that is not among these.
    MissingLink(Place, ImageId),
    /// The operand has no image at all.
    Empty(Place),
    /// A pagemap of it makes no sense.
    Pagemap(Place, FileName, PagemapError),
    /// Two pagemaps of it have the same pages.
    SharedPages(Place, FileName),
    /// A file with pages of it has so many bytes, in the place of those that its pagemap lists.
    Length(Place, FileName, u64, u64),
    /// It builds on pages of this memory at this address, which no image before it has.
    NoPages(Place, Memory, u64),
    /// There is no memory to hold what comes from a pipe.
    Hold(io::Error),
    /// The stream cannot be written.
    Output(OutputError),
    /// The system refuses something basic.
    System(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Open(place, error) => write!(f, "{place}: {}", reason(error)),
            Error::Input(error) => error.fmt(f),
            Error::Read(place, name, error) => write!(f, "{place}: {name}: {}", reason(error)),
            Error::BaseIsIncrement(place, parent) => write!(
                f,
                "{place}: an increment of image {parent}, where the first one must be whole"
            ),
            Error::NotAnIncrement(place) => {
                write!(f, "{place}: not an increment, and only the first one may be whole")
            }
            Error::Order(place, parent) => {
                write!(f, "{place}: an increment of {parent}, which is not the one before it")
            }
            Error::MissingLink(place, parent) => {
                write!(f, "{place}: an increment of image {parent}, which is not the one before it")
            }
            Error::Empty(place) => write!(f, "{place}: truncated after 0 bytes"),
            Error::Pagemap(place, name, error) => write!(f, "{place}: {name}: {error}"),
            Error::SharedPages(place, name) => {
                write!(f, "{place}: {name}: belongs to two pagemaps")
            }
            Error::Length(place, name, found, listed) => {
                write!(f, "{place}: {name}: has {found} bytes, and its pagemap lists {listed}")
            }
            Error::NoPages(place, memory, start) => {
                write!(f, "{place}: {memory}: no image before it has the page at {start:#x}")
            }
            Error::Hold(error) => write!(f, "memory: {}", reason(error)),
            Error::Output(error) => error.fmt(f),
            Error::System(error) => f.write_str(&reason(error)),
        }
    }
}

impl std::error::Error for Error {}

impl From<InputError> for Error {
    fn from(error: InputError) -> Error {
        Error::Input(error)
    }
}

impl From<OutputError> for Error {
    fn from(error: OutputError) -> Error {
        Error::Output(error)
    }
}
