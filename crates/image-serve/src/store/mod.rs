//! Holds the image until CRIU reads it.
//!
//! CRIU reads in another order than it wrote, so what it has not asked for must be held. Small
//! files rest in ordinary memory and may be read any number of times. What is larger rests in
//! pipes of our own: its pages are moved in and out, and are the system's again as CRIU reads.
//! Where pipes cannot be had it rests in anonymous memory. If the image is a regular file, it
//! stays there. A file may rest in several of these places.

mod incoming;
mod packed;
mod pipes;

pub(crate) use incoming::Incoming;
pub(crate) use pipes::{NoPipe, Pipes, Resting};

use pipe_io::{Bytes, Region};
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
    Pipe(Resting, u64),
    /// In anonymous memory.
    Region(Region),
    /// In ordinary memory, to be read any number of times. To become an `Arc<[u8]>` it would be
    /// copied, with memory that may not be there.
    Kept(Arc<Vec<u8>>),
    /// In the regular file that the image is: offset and length.
    Range(u64, u64),
}

/// A file, or what has come of it.
pub(crate) type Pieces = VecDeque<Piece>;

/// The files of an image.
#[derive(Debug, Default)]
pub(crate) struct Store {
    files: HashMap<FileName, File>,
}

#[derive(Debug)]
struct File {
    /// `None` if it was handed out and is gone.
    pieces: Option<Pieces>,
    /// Whether all of it has come.
    complete: bool,
}

/// A file on its way to CRIU.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) name: FileName,
    /// What is still to be sent.
    pub(crate) pieces: Pieces,
    /// Whether no more will come.
    pub(crate) complete: bool,
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
    File(Handed),
    /// It was handed out before, and was too large to be kept.
    Gone,
    /// There is none of this name.
    None,
}

impl Piece {
    /// The piece once more, if it can be read any number of times.
    pub(crate) fn again(&self) -> Option<Piece> {
        match self {
            Piece::Kept(bytes) => Some(Piece::Kept(Arc::clone(bytes))),
            Piece::Range(offset, length) => Some(Piece::Range(*offset, *length)),
            Piece::Pipe(..) | Piece::Region(_) => None,
        }
    }

    /// Reads a pipe's bytes into anonymous memory. All of them are there, so it never waits.
    fn move_to_memory(&mut self) -> io::Result<()> {
        let Piece::Pipe(resting, bytes) = self else { return Ok(()) };
        let mut pipe = &*resting;
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
        if let Piece::Pipe(resting, _) = std::mem::replace(self, Piece::Region(region)) {
            resting.give_up();
        }
        Ok(())
    }
}

impl Store {
    /// Forgets a file, if there is one of this name.
    pub(crate) fn remove(&mut self, name: &FileName) {
        self.files.remove(name);
    }

    /// Takes a complete file. An earlier one of the same name does not count any more.
    pub(crate) fn insert(&mut self, name: FileName, pieces: Pieces) {
        let file = File { pieces: Some(pieces), complete: true };
        self.files.insert(name, file);
    }

    /// The names of all files.
    pub(crate) fn names(&self) -> impl Iterator<Item = &FileName> {
        self.files.keys()
    }

    /// A file, where it rests.
    pub(crate) fn pieces(&self, name: &FileName) -> Option<&Pieces> {
        self.files.get(name)?.pieces.as_ref()
    }

    /// Takes what has come of a file.
    pub(crate) fn begin(&mut self, name: FileName, pieces: Pieces) {
        let file = File { pieces: Some(pieces), complete: false };
        self.files.insert(name, file);
    }

    /// Takes the next piece of a file that has begun, for those who will yet ask for it. Some may
    /// read it already: `read` says so.
    pub(crate) fn push(&mut self, name: &FileName, piece: Option<Piece>, read: bool) {
        let Some(file) = self.files.get_mut(name) else { return };
        match (&mut file.pieces, piece) {
            (Some(pieces), Some(piece)) => pieces.push_back(piece),
            // It is there once, and somebody has it.
            (pieces, None) if read => *pieces = None,
            _ => {}
        }
    }

    /// Notes that a file that has begun is complete.
    pub(crate) fn complete(&mut self, name: &FileName) {
        if let Some(file) = self.files.get_mut(name) {
            file.complete = true;
        }
    }

    /// Takes back the last piece of a file, if there is one.
    pub(crate) fn take_last(&mut self, name: &FileName) -> Option<(Piece, bool)> {
        let file = self.files.get_mut(name)?;
        let piece = file.pieces.as_mut()?.pop_back()?;
        Some((piece, std::mem::replace(&mut file.complete, false)))
    }

    /// Whether a file of this name is complete.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.iter().any(|(key, file)| key.as_str() == name && file.complete)
    }

    /// Hands out a file: a small one as often as it is asked for, a large one once. Of one that is
    /// not complete, the rest is to be handed out as it comes.
    pub(crate) fn hand_out(&mut self, name: &FileName) -> Found {
        let Some(file) = self.files.get_mut(name) else { return Found::None };
        let complete = file.complete;
        let Some(pieces) = &file.pieces else { return Found::Gone };
        let again: Option<Pieces> = pieces.iter().map(Piece::again).collect();
        match again.or_else(|| file.pieces.take()) {
            Some(pieces) => Found::File(Handed { name: name.clone(), pieces, complete }),
            None => Found::Gone,
        }
    }

    /// Replaces a file that rests in ordinary memory by what `change` makes of it; `None` if there
    /// is no such file.
    pub(crate) fn change<E>(
        &mut self,
        name: &str,
        change: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Option<Result<(), E>> {
        let (_, file) = self.files.iter_mut().find(|(key, _)| key.as_str() == name)?;
        let pieces = file.pieces.as_mut()?.make_contiguous();
        let bytes: &[u8] = match pieces {
            [] => &[],
            [Piece::Kept(bytes)] => bytes,
            _ => return None,
        };
        Some(change(bytes).map(|changed| file.pieces = Some([Piece::Kept(changed.into())].into())))
    }

    /// Empties one pipe into memory, for its descriptor; `false` if there is none.
    pub(crate) fn give_up_a_pipe(&mut self) -> io::Result<bool> {
        let files = self.files.values_mut();
        give_up_a_pipe(files.filter_map(|file| file.pieces.as_mut()).flatten())
    }

    /// How many bytes rest in pipes, in anonymous memory, in ordinary memory, and in the regular
    /// file that the image is.
    pub(crate) fn census(&self) -> Census {
        let mut census = Census::default();
        for piece in self.files.values().filter_map(|file| file.pieces.as_ref()).flatten() {
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
            return write!(f, "{} stay in the file that stdin is", Bytes(*ranges));
        }
        let (pipes, memory) = (Bytes(*pipes), Bytes(regions + kept));
        write!(f, "holding {pipes} in pipes, {memory} in memory")
    }
}
