//! A file on its way into the store.

use super::packed::Packed;
use super::pipes::{Filling, Pipes};
use super::{Piece, Pieces};
use crate::error::Error;
use cli::{PayloadError, StreamInput};
use pipe_io::{Kind, Region, pipe, poll};
use std::io::{self, ErrorKind, Read};
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
    /// What is copied, and comes behind the pieces.
    packed: Option<Packed>,
    /// What is moved, and comes behind what is packed.
    filling: Option<Filling>,
    /// How much of it is in anonymous memory.
    in_memory: u64,
    /// Whether the last pipe was full of full pages.
    dense: bool,
    /// Whether some of it was handed on.
    begun: bool,
}

/// Files up to this size, in bytes, rest in ordinary memory and may be asked for again. CRIU does
/// so with `inventory.img` and the like, which have some hundred bytes.
const KEPT_MAX: u64 = 128 << 10;

/// Anonymous memory is taken in pieces of this size, in bytes, each given back when CRIU has
/// read it.
const REGION: usize = 8 << 20;

/// A file has this much in anonymous memory before it gets huge pages, in bytes: the last one may
/// be used for its first bytes only, and then is an eighth of what is held.
const SMALL_PAGES: u64 = 16 << 20;

impl Incoming {
    /// The file of this name begins.
    pub(crate) fn new(name: FileName, keep: bool) -> Incoming {
        Incoming {
            name,
            keep,
            kept: Vec::new(),
            pieces: Pieces::new(),
            packed: None,
            filling: None,
            in_memory: 0,
            dense: false,
            begun: false,
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
            self.settle_kept()?;
            let offset = input.skip_payload(length)?;
            self.pieces.push_back(Piece::Range(offset, length));
            return Ok(());
        }
        self.settle_kept()?;
        let mut left = length;
        while left > 0 {
            left -= self.take_some(input, left, pipes)?;
        }
        Ok(())
    }

    fn is_small(&self, more: u64) -> bool {
        let so_far = self.kept.len() as u64;
        let is_first = self.pieces.is_empty() && !self.is_open() && !self.begun;
        self.keep || (is_first && so_far + more <= KEPT_MAX)
    }

    fn is_open(&self) -> bool {
        self.filling.is_some() || self.packed.is_some()
    }

    /// Reads into ordinary memory. It grows as bytes come, not as they are announced.
    fn keep(&mut self, input: &mut StreamInput, length: u64) -> Result<(), Error> {
        const STEP: u64 = 64 << 10;
        let mut left = length;
        while left > 0 {
            let (before, step) = (self.kept.len(), left.min(STEP) as usize);
            self.kept.try_reserve(step).map_err(|_| self.no_memory())?;
            self.kept.resize(before + step, 0);
            let read = input.read_some(self.kept.get_mut(before..).unwrap_or_default());
            self.kept.truncate(before + read.as_ref().copied().unwrap_or(0));
            left -= read? as u64;
        }
        Ok(())
    }

    fn settle_kept(&mut self) -> Result<(), Error> {
        /// What grew past this, in bytes, may be a mapping of its own, by malloc(3). To be made
        /// for the size that it has now, it is copied.
        const GROWN: usize = 64 << 10;

        let mut kept = std::mem::take(&mut self.kept);
        if kept.is_empty() {
            return Ok(());
        }
        if kept.len() > GROWN {
            let mut exact = Vec::new();
            exact.try_reserve_exact(kept.len()).map_err(|_| self.no_memory())?;
            exact.extend_from_slice(&kept);
            kept = exact;
        } else {
            kept.shrink_to_fit();
        }
        self.pieces.push_back(Piece::Kept(kept.into()));
        Ok(())
    }

    /// Takes in some bytes, to a pipe if one is to be had.
    fn take_some(
        &mut self,
        input: &mut StreamInput,
        length: u64,
        pipes: &mut Pipes,
    ) -> Result<u64, Error> {
        if self.filling.is_none() && !pipes.copies() {
            self.filling = self.get_pipe(pipes)?;
        }
        let Some(filling) = &mut self.filling else { return self.copy_some(input, length, pipes) };
        match input.move_payload_now(&filling.write, length) {
            Ok(Some(moved)) => {
                filling.bytes += moved;
                pipes.took_in(moved, false);
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
        }
    }

    fn get_pipe(&self, pipes: &mut Pipes) -> Result<Option<Filling>, Error> {
        pipes.get().map_err(|no_pipe| Error::NoPipe(self.name.clone(), no_pipe))
    }

    /// Copies some bytes into the store.
    fn copy_some(
        &mut self,
        input: &mut StreamInput,
        length: u64,
        pipes: &mut Pipes,
    ) -> Result<u64, Error> {
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        let copied = self.pack(pipes, wanted, |room| Ok(input.read_some(room)?))?;
        pipes.took_in(copied, true);
        Ok(copied)
    }

    /// Packs what `read` puts into the room that it is given, up to `wanted` bytes, behind all that
    /// is packed.
    fn pack(
        &mut self,
        pipes: &mut Pipes,
        wanted: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, Error>,
    ) -> Result<u64, Error> {
        if self.packed.as_mut().is_some_and(|packed| packed.unfilled().is_empty()) {
            self.settle_packed(pipes)?;
        }
        let mut packed = match self.packed.take() {
            Some(packed) => packed,
            None => self.new_packed(pipes)?,
        };
        let room = packed.unfilled();
        let wanted = wanted.min(room.len());
        let copied = read(room.get_mut(..wanted).unwrap_or_default())?;
        packed.fill(copied).map_err(|error| self.no_room(error))?;
        if matches!(packed, Packed::Region(_)) {
            self.in_memory += copied as u64;
        }
        self.packed = Some(packed);
        Ok(copied as u64)
    }

    fn new_packed(&self, pipes: &mut Pipes) -> Result<Packed, Error> {
        if pipes.only() {
            // `None` is for those who may use memory.
            if let Some(filling) = self.get_pipe(pipes)? {
                return Ok(Packed::pipe(filling));
            }
        }
        let region = match self.in_memory < SMALL_PAGES {
            true => pipes.memory(REGION),
            false => Region::huge_pages(REGION),
        };
        region.map(Packed::region).map_err(|error| self.no_room(error))
    }

    fn settle_packed(&mut self, pipes: &mut Pipes) -> Result<(), Error> {
        if let Some(mut packed) = self.packed.take() {
            match &mut packed {
                Packed::Pipe(filling, _) => pipes.was_filled(filling, false),
                Packed::Region(region) => {
                    region.split_off_unfilled().into_iter().for_each(|rest| pipes.spare(rest));
                }
            }
            self.pieces.push_back(packed.settle().map_err(|error| self.no_room(error))?);
        }
        Ok(())
    }

    /// Puts a full pipe away; its bytes are copied if its pages are half empty.
    fn settle_full(&mut self, pipes: &mut Pipes) -> Result<(), Error> {
        let Some(filling) = self.filling.take() else { return Ok(()) };
        // Five sixths: so held memory stays within 1.25 times the image, with a little to spare
        // for what the kernel needs of its own.
        self.dense = filling.bytes.saturating_mul(6) >= filling.capacity * 5;
        pipes.was_filled(&filling, !self.dense);
        if self.dense { self.settle_pipe(filling, pipes) } else { self.condense(filling, pipes) }
    }

    /// Puts the last pipe of the file away, which isn't full. How full its pages are cannot be
    /// seen, so unless those before it were full it is not trusted.
    fn settle_last(&mut self, pipes: &mut Pipes) -> Result<(), Error> {
        let Some(filling) = self.filling.take() else { return Ok(()) };
        pipes.was_filled(&filling, false);
        match self.dense && pipe::shrink(&filling.write, filling.bytes as usize) {
            true => self.settle_pipe(filling, pipes),
            false => self.condense(filling, pipes),
        }
    }

    fn settle_pipe(&mut self, filling: Filling, pipes: &mut Pipes) -> Result<(), Error> {
        self.settle_packed(pipes)?;
        self.pieces.push_back(Piece::Pipe(filling.read, filling.bytes));
        Ok(())
    }

    /// Packs the contents of a pipe.
    fn condense(&mut self, filling: Filling, pipes: &mut Pipes) -> Result<(), Error> {
        let Filling { read, write, bytes, .. } = filling;
        drop(write);
        let name = self.name.clone();
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        while left > 0 {
            let copied = self.pack(pipes, left, |room| match (&read).read(room) {
                Ok(0) => Err(Error::Hold(name.clone(), ErrorKind::UnexpectedEof.into())),
                copied => copied.map_err(|error| Error::Hold(name.clone(), error)),
            })?;
            left = left.saturating_sub(copied as usize);
        }
        Ok(())
    }

    /// Hands on what has its place already. More may come behind it.
    pub(crate) fn hand_on(&mut self) -> Pieces {
        self.begun |= !self.pieces.is_empty();
        std::mem::take(&mut self.pieces)
    }

    /// The file is complete.
    pub(crate) fn complete(mut self, pipes: &mut Pipes) -> Result<(FileName, Pieces), Error> {
        self.settle_kept()?;
        self.settle_last(pipes)?;
        self.settle_packed(pipes)?;
        Ok((self.name, self.pieces))
    }

    fn no_memory(&self) -> Error {
        self.no_room(ErrorKind::OutOfMemory.into())
    }

    fn no_room(&self, error: io::Error) -> Error {
        Error::Hold(self.name.clone(), error)
    }
}

fn is_full(filling: &Filling) -> Result<bool, Error> {
    Ok(!poll::is_writable(&filling.write).map_err(Error::System)?)
}
