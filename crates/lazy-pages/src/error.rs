//! Everything that can end serving memory on demand, in the words that the user reads.

use criu_protocol::ListenError;
use nix::errno::Errno;
use pipe_io::reason;
use pipe_io::userfault::Unavailable;
use std::fmt;
use std::io;

/// Why memory cannot be served on demand, or no longer.
#[derive(Debug)]
pub enum Error {
    /// There is no memory on demand here.
    Unavailable(Unavailable),
    /// The process that guards the memory cannot be started.
    NoKeeper(io::Error),
    /// The kernel cannot name a process for ever, which guarding its memory takes.
    NoPidfd(io::Error),
    /// The keeper has died.
    KeeperDied,
    /// CRIU cannot be listened for.
    Listen(ListenError),
    /// What CRIU said on this socket makes no sense.
    Protocol,
    /// CRIU hands over the memory of a process that the image does not have.
    Stranger(i32),
    /// CRIU's processes cannot be seen from here, so nobody could end them.
    Unseen,
    /// CRIU has gone before it let the processes run.
    NotRestored,
    /// The image is not what it was when it was checked.
    Changed,
    /// The image cannot be read.
    Image(io::Error),
    /// A page cannot be brought.
    Bring(Errno),
    /// Nothing is at an address where memory must be.
    NotThere(u64),
    /// The system refuses something basic.
    System(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unavailable(unavailable) => write!(f, "userfaultfd: {unavailable}"),
            Error::NoKeeper(error) => {
                write!(f, "the keeper cannot be started: {}", reason(error))
            }
            Error::NoPidfd(error) => {
                write!(f, "pidfd_open: {}: --lazy takes Linux 5.3", reason(error))
            }
            Error::KeeperDied => f.write_str("the keeper has died"),
            Error::Listen(error) => error.fmt(f),
            Error::Protocol => f.write_str("CRIU: lazy-pages.socket: what it says makes no sense"),
            Error::Stranger(pid) => {
                write!(f, "CRIU: lazy-pages.socket: process {pid} is not in the image")
            }
            Error::Unseen => f.write_str(
                "CRIU: lazy-pages.socket: comes from a PID namespace that cannot be seen from here",
            ),
            Error::NotRestored => f.write_str("CRIU: hung up before the processes were restored"),
            Error::Changed => f.write_str("stdin: the image was changed while it was in use"),
            Error::Image(error) => write!(f, "stdin: {}", reason(error)),
            Error::Bring(error) => write!(f, "memory: {}", reason(&(*error).into())),
            Error::NotThere(address) => {
                write!(f, "memory: nothing is at {address:#x}, where the image has pages")
            }
            Error::System(error) => f.write_str(&reason(error)),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Unavailable(error) => Some(error),
            Error::Listen(error) => Some(error),
            Error::NoKeeper(error)
            | Error::NoPidfd(error)
            | Error::Image(error)
            | Error::System(error) => Some(error),
            Error::Bring(error) => Some(error),
            Error::KeeperDied
            | Error::Protocol
            | Error::Stranger(_)
            | Error::Unseen
            | Error::NotRestored
            | Error::Changed
            | Error::NotThere(_) => None,
        }
    }
}

impl From<Unavailable> for Error {
    fn from(error: Unavailable) -> Error {
        Error::Unavailable(error)
    }
}
