//! Where something happened, as messages name it.

use std::fmt;
use std::os::fd::RawFd;
use wire_format::FileName;

/// A descriptor's part in the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Descriptor 0, read as an image stream.
    Stdin,
    /// Descriptor 1, written as an image stream.
    Stdout,
    /// A shard.
    Shard {
        /// Its place on the command line, counted from 0.
        index: usize,
        /// Its descriptor.
        fd: RawFd,
    },
    /// A file that is not CRIU's, woven into the image.
    External {
        /// Its name in the image.
        name: FileName,
        /// The descriptor that it is read from or written to.
        fd: RawFd,
    },
    /// Where progress lines go.
    Progress {
        /// Its descriptor.
        fd: RawFd,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Stdin => f.write_str("stdin"),
            Place::Stdout => f.write_str("stdout"),
            Place::Shard { index, fd } => write!(f, "shard {index} (fd {fd})"),
            Place::External { name, fd } => write!(f, "external file {name} (fd {fd})"),
            Place::Progress { fd } => write!(f, "progress (fd {fd})"),
        }
    }
}
