//! What CRIU has said of its dump so far.

use crate::error::Error;
use criu_protocol::{CPUINFO, Connection, Event, INVENTORY, ProtocolError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wire_format::FileName;

/// A dump that goes on, or has ended.
#[derive(Debug)]
pub(crate) struct Dump {
    connection: Connection,
    /// The file whose pipe is due.
    announced: Option<FileName>,
    /// Whether a file was sent.
    begun: bool,
    /// Whether a file was sent that CRIU has only when the process is frozen.
    frozen: bool,
    /// Whether the file was sent that CRIU sends last.
    inventory: bool,
    hung_up: bool,
}

/// What a dump has brought.
#[derive(Debug)]
pub(crate) enum News {
    /// The process is frozen from now on.
    Frozen,
    /// A file, and the pipe that it comes through.
    File(FileName, OwnedFd),
}

impl Dump {
    pub(crate) fn new(connection: Connection) -> Dump {
        Dump {
            connection,
            announced: None,
            begun: false,
            frozen: false,
            inventory: false,
            hung_up: false,
        }
    }

    /// What CRIU has said next, or `None` if it has not, or has hung up.
    pub(crate) fn news(&mut self) -> Result<Option<News>, Error> {
        while !self.hung_up {
            match self.connection.next_event()? {
                None => return Ok(None),
                Some(Event::HangUp) => self.hung_up = true,
                Some(Event::Pipe(pipe)) => {
                    let name = self.announced.take().ok_or(ProtocolError::NoPipe)?;
                    return Ok(Some(News::File(name, pipe)));
                }
                Some(Event::Request(name)) => {
                    let name = name.map_err(ProtocolError::Name)?;
                    let froze = !self.frozen && name.as_str() != CPUINFO;
                    self.begun = true;
                    self.frozen |= froze;
                    self.inventory |= name.as_str() == INVENTORY;
                    self.announced = Some(name);
                    if froze {
                        return Ok(Some(News::Frozen));
                    }
                }
            }
        }
        Ok(None)
    }

    pub(crate) fn has_hung_up(&self) -> bool {
        self.hung_up
    }

    /// Whether all was sent that makes an image: `inventory.img`, or `cpuinfo.img` alone, which
    /// is what `criu cpuinfo dump` makes.
    pub(crate) fn has_sent_all(&self) -> bool {
        self.inventory || (self.begun && !self.frozen)
    }
}

impl AsFd for Dump {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
