//! One file on its way in.

use crate::error::Error;
use crate::inventory::Inventory;
use cli::Place;
use criu_protocol::INVENTORY;
use pipe_io::pipe::{self, Pipe};
use pipe_io::{Endpoint, Kind, MoveError, Mover};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wire_format::FileName;

/// A file that is being written into the image.
#[derive(Debug)]
pub(crate) struct Inflow {
    pub(crate) name: FileName,
    /// The pipe that its bytes are in.
    pipe: Endpoint,
    grown: bool,
    /// The capacity of the pipe in bytes, if it was asked for.
    capacity: Option<usize>,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    /// CRIU writes into the pipe.
    Criu,
    /// CRIU does, and the file tells whether the dump has succeeded.
    CriuInventory(Inventory),
    /// Somebody writes into the pipe that a descriptor named.
    External(Place),
    /// The descriptor is no pipe. Its bytes are fetched into one, so that they can be counted
    /// before they are announced.
    Fetched { place: Place, source: Endpoint, into: Endpoint, mover: Mover },
}

/// What an inflow has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Available {
    /// So many bytes in its pipe.
    pub(crate) bytes: u32,
    /// Whether the file is complete with them.
    pub(crate) end: bool,
    /// Whether they fill half of the pipe, and its writer may be waiting.
    pub(crate) is_full: bool,
}

impl Inflow {
    /// The pipe that CRIU has sent for a file.
    pub(crate) fn criu(name: FileName, pipe: OwnedFd) -> Result<Inflow, Error> {
        let origin = match name.as_str() {
            INVENTORY => Origin::CriuInventory(Inventory::default()),
            _ => Origin::Criu,
        };
        match Endpoint::new(pipe) {
            Ok(pipe) if pipe.kind() == Kind::Pipe && pipe::is_read_end(&pipe) => {
                Ok(Inflow { name, pipe, grown: false, capacity: None, origin })
            }
            _ => Err(Error::NotAPipe(name)),
        }
    }

    /// An external file.
    pub(crate) fn external(name: FileName, place: Place, source: Endpoint) -> io::Result<Inflow> {
        if source.kind() == Kind::Pipe {
            let origin = Origin::External(place);
            return Ok(Inflow { name, pipe: source, grown: true, capacity: None, origin });
        }
        let Pipe { read, write } = Pipe::new()?;
        let endpoint = |fd| Endpoint::new(fd).map_err(io::Error::other);
        let (pipe, into) = (endpoint(read)?, endpoint(write)?);
        into.grow();
        let origin = Origin::Fetched { place, source, into, mover: Mover::default() };
        Ok(Inflow { name, pipe, grown: true, capacity: None, origin })
    }

    /// Whether the file is CRIU's.
    pub(crate) fn is_criu(&self) -> bool {
        matches!(self.origin, Origin::Criu | Origin::CriuInventory(_))
    }

    /// Sees what is there. `hung_up` says that nobody can write any more, which must have been
    /// found out before this call.
    pub(crate) fn fetch(&mut self, hung_up: bool) -> Result<Available, Error> {
        if let Origin::Fetched { place, source, into, mover } = &mut self.origin {
            let capacity = pipe::capacity(&*into).map_err(Error::System)?;
            return match mover.some(source, into, capacity as u64) {
                Ok(bytes) => Ok(Available { bytes: bytes as u32, end: bytes == 0, is_full: false }),
                Err(MoveError::Input(error)) => Err(Error::External(place.clone(), error)),
                Err(MoveError::Output(error)) => Err(Error::System(error)),
            };
        }
        let queued = pipe::queued(&self.pipe).map_err(|error| self.failed(error))?;
        self.grow_if_worth_it(queued);
        let mut bytes = queued;
        if let Origin::CriuInventory(inventory) = &mut self.origin {
            bytes = inventory.look(&self.pipe, queued).map_err(Error::System)?;
        }
        // No more comes after the hang-up.
        let end = hung_up && bytes == queued;
        let is_full = self.is_full(queued);
        match &self.origin {
            Origin::CriuInventory(inventory) if end && !inventory.is_whole() => {
                Err(Error::InventoryCut)
            }
            // A pipe holds at most 2 GiB.
            _ => Ok(Available { bytes: bytes as u32, end, is_full }),
        }
    }

    /// Most files are smaller than any pipe, and need not ask.
    fn is_full(&mut self, queued: usize) -> bool {
        if queued < pipe::page() {
            return false;
        }
        self.capacity = self.capacity.or_else(|| pipe::capacity(&self.pipe).ok());
        self.capacity.is_some_and(|capacity| queued >= capacity / 2)
    }

    /// Most of CRIU's files are a few hundred bytes, and a large pipe for each would cost more
    /// than it brings. One that has filled half a small pipe is not such a file.
    fn grow_if_worth_it(&mut self, queued: usize) {
        const SMALL: usize = 32 << 10;
        if !self.grown && queued >= SMALL {
            self.pipe.grow();
            self.grown = true;
            self.capacity = None;
        }
    }

    /// The error that reading this file has met; `None` if bytes are gone that were there.
    pub(crate) fn failed(&self, error: impl Into<Option<io::Error>>) -> Error {
        let error = error.into().unwrap_or(io::ErrorKind::UnexpectedEof.into());
        match &self.origin {
            Origin::Criu | Origin::CriuInventory(_) => Error::File(self.name.clone(), error),
            Origin::External(place) | Origin::Fetched { place, .. } => {
                Error::External(place.clone(), error)
            }
        }
    }

    /// What to take the announced bytes from.
    pub(crate) fn pipe(&self) -> &Endpoint {
        &self.pipe
    }
}

impl AsFd for Inflow {
    /// What to poll for more bytes.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.origin {
            Origin::Fetched { source, .. } => source.as_fd(),
            _ => self.pipe.as_fd(),
        }
    }
}
