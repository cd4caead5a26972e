//! Where the image rests until CRIU reads it.
//!
//! CRIU reads in another order than it wrote, so all of the image must be there first. Small
//! files rest in ordinary memory and may be read any number of times. What is larger rests in
//! pipes of our own: its pages are moved in and out, and are the system's again as CRIU reads.
//! Where pipes cannot be had it rests in anonymous memory. If the image is a regular file, it
//! stays there. A file may rest in several of these places.

mod incoming;
mod packed;
mod pipes;

pub(crate) use incoming::Incoming;
pub(crate) use pipes::{NoPipe, Pipes};

use pipe_io::{Endpoint, Region};
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use wire_format::FileName;

/// What the user wants to hold the image in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// Pipes, and memory where they cannot be had
    Auto,
    /// Pipes, or fail
    Pipe,
    /// Memory
    Memory,
}

/// A part of a file.
#[derive(Debug)]
pub(crate) enum Piece {
    /// So many bytes in a pipe, of which this is the end where they come out.
    Pipe(Endpoint, u64),
    /// In anonymous memory.
    Region(Region),
    /// In ordinary memory, to be read any number of times. To become an `Arc<[u8]>` it would be
    /// copied, with memory that may not be there.
    Kept(Arc<Vec<u8>>),
    /// In the regular file that the image is: offset and length.
    Range(u64, u64),
}

/// A complete file.
pub(crate) type Pieces = VecDeque<Piece>;

/// The complete files of an image.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// `None` for a file that was handed out and is gone.
    files: HashMap<FileName, Option<Pieces>>,
}

/// Empties one pipe of these pieces into memory, for its descriptor; `false` if there is none.
pub(crate) fn give_up_a_pipe<'a>(
    mut pieces: impl Iterator<Item = &'a mut Piece>,
) -> io::Result<bool> {
    match pieces.find(|piece| matches!(piece, Piece::Pipe(..))) {
        Some(piece) => piece.move_to_memory().map(|()| true),
        None => Ok(false),
    }
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Found {
    /// The file.
    File(Pieces),
    /// It was handed out before, and was too large to be kept.
    Gone,
    /// There is none of this name.
    None,
}

impl Piece {
    /// The piece once more, if it can be read any number of times.
    fn again(&self) -> Option<Piece> {
        match self {
            Piece::Kept(bytes) => Some(Piece::Kept(Arc::clone(bytes))),
            Piece::Range(offset, length) => Some(Piece::Range(*offset, *length)),
            Piece::Pipe(..) | Piece::Region(_) => None,
        }
    }

    /// Reads a pipe's bytes into anonymous memory. All of them are there, so it never waits.
    fn move_to_memory(&mut self) -> io::Result<()> {
        let Piece::Pipe(pipe, bytes) = self else { return Ok(()) };
        let mut left = usize::try_from(*bytes).map_err(io::Error::other)?;
        let mut region = Region::small_pages(left)?;
        while left > 0 {
            let room = region.unfilled();
            match pipe.read(room.get_mut(..left).unwrap_or_default())? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => {
                    region.fill(read);
                    left = left.saturating_sub(read);
                }
            }
        }
        *self = Piece::Region(region);
        Ok(())
    }
}

impl Store {
    /// Forgets a file, if there is one of this name, and returns how many pipes it was in.
    pub(crate) fn remove(&mut self, name: &FileName) -> usize {
        let pieces = self.files.remove(name).flatten().unwrap_or_default();
        pieces.iter().filter(|piece| matches!(piece, Piece::Pipe(..))).count()
    }

    /// Takes a complete file. An earlier one of the same name does not count any more.
    pub(crate) fn insert(&mut self, name: FileName, pieces: Pieces) {
        self.files.insert(name, Some(pieces));
    }

    /// The names of all files.
    pub(crate) fn names(&self) -> impl Iterator<Item = &FileName> {
        self.files.keys()
    }

    /// A file, where it rests.
    pub(crate) fn pieces(&self, name: &FileName) -> Option<&Pieces> {
        self.files.get(name)?.as_ref()
    }

    /// Hands out a file: a small one as often as it is asked for, a large one once.
    pub(crate) fn hand_out(&mut self, name: &FileName) -> Found {
        let Some(file) = self.files.get_mut(name) else { return Found::None };
        let Some(pieces) = file else { return Found::Gone };
        if let Some(again) = pieces.iter().map(Piece::again).collect() {
            return Found::File(again);
        }
        file.take().map_or(Found::Gone, Found::File)
    }

    /// Replaces a file that rests in ordinary memory by what `change` makes of it; `None` if there
    /// is no such file.
    pub(crate) fn change<E>(
        &mut self,
        name: &str,
        change: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Option<Result<(), E>> {
        let (_, file) = self.files.iter_mut().find(|(key, _)| key.as_str() == name)?;
        let pieces = file.as_mut()?.make_contiguous();
        let bytes: &[u8] = match pieces {
            [] => &[],
            [Piece::Kept(bytes)] => bytes,
            _ => return None,
        };
        Some(change(bytes).map(|changed| *file = Some([Piece::Kept(changed.into())].into())))
    }

    /// Empties one pipe into memory, for its descriptor; `false` if there is none.
    pub(crate) fn give_up_a_pipe(&mut self) -> io::Result<bool> {
        give_up_a_pipe(self.files.values_mut().flatten().flatten())
    }

    /// How many bytes rest in pipes, in anonymous memory, in ordinary memory, and in the regular
    /// file that the image is.
    pub(crate) fn census(&self) -> Census {
        let mut census = Census::default();
        for piece in self.files.values().flatten().flatten() {
            match piece {
                Piece::Pipe(_, bytes) => census.pipes += bytes,
                Piece::Region(region) => census.regions += region.bytes().len() as u64,
                Piece::Kept(bytes) => census.kept += bytes.len() as u64,
                Piece::Range(_, length) => census.ranges += length,
            }
        }
        census
    }
}

/// Bytes by where they rest.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pipes: u64,
    regions: u64,
    kept: u64,
    ranges: u64,
}

impl std::fmt::Display for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Census { pipes, regions, kept, ranges } = self;
        if *ranges > 0 {
            return write!(f, "{ranges} bytes stay in the file that stdin is");
        }
        write!(f, "holding {pipes} bytes in pipes, {} in memory", regions + kept)
    }
}
