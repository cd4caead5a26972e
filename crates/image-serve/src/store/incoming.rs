//! A file on its way into the store.

use super::pipes::{Filling, Pipes};
use super::{Piece, Pieces};
use crate::error::Error;
use cli::{PayloadError, StreamInput};
use pipe_io::{Kind, Region, pipe, poll};
use std::io::{self, Read};
use wire_format::FileName;

/// A file that is not complete.
#[derive(Debug)]
pub(crate) struct Incoming {
    name: FileName,
    /// Whether it is to rest in ordinary memory, however large.
    keep: bool,
    /// The file, as long as it is small.
    kept: Vec<u8>,
    pieces: Pieces,
    filling: Option<Filling>,
    region: Option<Region>,
    /// How much of it is in anonymous memory.
    in_memory: u64,
    /// Whether the last pipe was full of full pages.
    dense: bool,
}

/// Files up to this size, in bytes, rest in ordinary memory and may be asked for again. CRIU does
/// so with `inventory.img` and the like, which have some hundred bytes.
const KEPT_MAX: u64 = 128 << 10;

/// Anonymous memory is taken in pieces of this size, in bytes, each given back when CRIU has
/// read it.
const REGION: usize = 8 << 20;

impl Incoming {
    /// The file of this name begins.
    pub(crate) fn new(name: FileName, keep: bool) -> Incoming {
        Incoming {
            name,
            keep,
            kept: Vec::new(),
            pieces: Pieces::new(),
            filling: None,
            region: None,
            in_memory: 0,
            dense: false,
        }
    }

    /// Takes in the next `length` bytes of the file.
    pub(crate) fn take_in(
        &mut self,
        input: &mut StreamInput,
        length: u64,
        pipes: &mut Pipes,
    ) -> Result<(), Error> {
        if self.is_small(length) {
            return self.keep(input, length);
        }
        if input.endpoint().kind() == Kind::File && !self.keep {
            self.settle_kept();
            let offset = input.skip_payload(length)?;
            self.pieces.push_back(Piece::Range(offset, length));
            return Ok(());
        }
        self.settle_kept();
        let mut left = length;
        while left > 0 {
            left -= self.take_some(input, left, pipes)?;
        }
        Ok(())
    }

    fn is_small(&self, more: u64) -> bool {
        let so_far = self.kept.len() as u64;
        self.keep || (self.pieces.is_empty() && !self.is_open() && so_far + more <= KEPT_MAX)
    }

    fn is_open(&self) -> bool {
        self.filling.is_some() || self.region.is_some()
    }

    /// Reads into ordinary memory. It grows as bytes come, not as they are announced.
    fn keep(&mut self, input: &mut StreamInput, length: u64) -> Result<(), Error> {
        const STEP: u64 = 64 << 10;
        let mut left = length;
        while left > 0 {
            let before = self.kept.len();
            self.kept.resize(before + left.min(STEP) as usize, 0);
            let read = input.read_some(self.kept.get_mut(before..).unwrap_or_default());
            self.kept.truncate(before + read.as_ref().copied().unwrap_or(0));
            left -= read? as u64;
        }
        Ok(())
    }

    fn settle_kept(&mut self) {
        if !self.kept.is_empty() {
            let kept = std::mem::take(&mut self.kept);
            self.pieces.push_back(Piece::Kept(kept.into()));
        }
    }

    /// Takes in some bytes, to a pipe if one is to be had.
    fn take_some(
        &mut self,
        input: &mut StreamInput,
        length: u64,
        pipes: &mut Pipes,
    ) -> Result<u64, Error> {
        if self.filling.is_none() {
            self.filling = pipes.get(self.pieces.len()).map_err(|error| self.no_room(error))?;
            if self.filling.is_some() {
                self.settle_region()?;
            }
        }
        match &mut self.filling {
            None => self.read_some(input, length, pipes),
            Some(filling) => match input.move_payload_now(&filling.write, length) {
                Ok(Some(moved)) => {
                    filling.bytes += moved;
                    Ok(moved)
                }
                Ok(None) if is_full(filling)? => {
                    self.settle_full(pipes)?;
                    Ok(0)
                }
                Ok(None) => {
                    poll::wait_readable(input.endpoint()).map_err(Error::System)?;
                    Ok(0)
                }
                Err(PayloadError::Input(error)) => Err(Error::Input(error)),
                Err(PayloadError::Output(error)) => Err(self.no_room(error)),
            },
        }
    }

    /// Reads some bytes into anonymous memory.
    fn read_some(
        &mut self,
        input: &mut StreamInput,
        length: u64,
        pipes: &mut Pipes,
    ) -> Result<u64, Error> {
        if self.region.as_mut().is_some_and(|region| region.unfilled().is_empty()) {
            self.settle_region()?;
        }
        let region = match &mut self.region {
            Some(region) => region,
            none => {
                // A huge page that is used for its first bytes only is a waste that the first
                // pieces of a file do not risk.
                let region = match self.in_memory {
                    0 => Region::small_pages(REGION),
                    _ => Region::huge_pages(REGION),
                };
                let name = self.name.clone();
                none.insert(region.map_err(|error| Error::Hold(name, error))?)
            }
        };
        let room = region.unfilled();
        let wanted = usize::try_from(length).unwrap_or(usize::MAX).min(room.len());
        let read = input.read_some(room.get_mut(..wanted).unwrap_or_default())?;
        region.fill(read);
        self.in_memory += read as u64;
        pipes.went_to_memory(read as u64);
        Ok(read as u64)
    }

    fn settle_region(&mut self) -> Result<(), Error> {
        if let Some(region) = self.region.take() {
            self.pieces.push_back(Piece::Region(region));
        }
        Ok(())
    }

    /// Puts a full pipe away; its bytes go to memory if its pages are half empty.
    fn settle_full(&mut self, pipes: &mut Pipes) -> Result<(), Error> {
        let Some(filling) = self.filling.take() else { return Ok(()) };
        // Four fifths: so held memory stays within 1.25 times the image.
        self.dense = filling.bytes * 5 >= filling.capacity * 4;
        if self.dense || pipes.only() {
            self.pieces.push_back(Piece::Pipe(filling.read, filling.bytes));
            return Ok(());
        }
        pipes.was_sparse();
        self.condense(filling)
    }

    /// Puts the last pipe of the file away, which isn't full. How full its pages are cannot be
    /// seen, so unless those before it were full it is not trusted.
    fn settle_last(&mut self, pipes: &mut Pipes) -> Result<(), Error> {
        let Some(filling) = self.filling.take() else { return Ok(()) };
        let trusted = self.dense && pipe::shrink(&filling.write, filling.bytes as usize);
        if trusted || pipes.only() {
            self.pieces.push_back(Piece::Pipe(filling.read, filling.bytes));
            return Ok(());
        }
        self.condense(filling)
    }

    /// Moves the contents of a pipe to memory.
    fn condense(&mut self, filling: Filling) -> Result<(), Error> {
        let Filling { read, write, bytes, .. } = filling;
        drop(write);
        let no_room = |error| Error::Hold(self.name.clone(), error);
        let mut region = Region::small_pages(bytes as usize).map_err(no_room)?;
        let mut left = bytes as usize;
        while left > 0 {
            let room = region.unfilled();
            let moved = (&read).read(room.get_mut(..left).unwrap_or_default()).map_err(no_room)?;
            region.fill(moved);
            left = left.saturating_sub(moved.max(1));
        }
        self.pieces.push_back(Piece::Region(region));
        Ok(())
    }

    /// The file is complete.
    pub(crate) fn complete(mut self, pipes: &mut Pipes) -> Result<(FileName, Pieces), Error> {
        self.settle_kept();
        self.settle_last(pipes)?;
        self.settle_region()?;
        Ok((self.name, self.pieces))
    }

    fn no_room(&self, error: io::Error) -> Error {
        Error::Hold(self.name.clone(), error)
    }
}

fn is_full(filling: &Filling) -> Result<bool, Error> {
    Ok(!poll::is_writable(&filling.write).map_err(Error::System)?)
}
