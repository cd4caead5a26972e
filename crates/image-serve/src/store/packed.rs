//! Small files, copied into the store side by side so that they fill whole pages.

use super::Piece;
use super::pipes::Filling;
use pipe_io::{Region, pipe};
use std::io::{self, Write};

/// A piece that is filled by copying.
#[derive(Debug)]
pub(crate) enum Packed {
    /// Anonymous memory.
    Region(Region),
    /// A pipe, and what is to go into it next.
    Pipe(Filling, Staged),
}

/// Bytes on their way into a pipe. It takes them by whole pages: a page that a write has left
/// half empty is not filled by the next.
#[derive(Debug)]
pub(crate) struct Staged {
    buffer: Box<[u8]>,
    length: usize,
}

/// How much is staged, in bytes; divides the capacity of every pipe that we hold.
const STAGE: usize = 64 << 10;

impl Packed {
    /// Fills this memory.
    pub(crate) fn region(region: Region) -> Packed {
        Packed::Region(region)
    }

    /// Fills this pipe, which is empty.
    pub(crate) fn pipe(filling: Filling) -> Packed {
        Packed::Pipe(filling, Staged { buffer: vec![0; STAGE].into(), length: 0 })
    }

    /// What can be filled next; empty when all is.
    pub(crate) fn unfilled(&mut self) -> &mut [u8] {
        match self {
            Packed::Region(region) => region.unfilled(),
            Packed::Pipe(filling, _) if filling.bytes >= filling.capacity => &mut [],
            Packed::Pipe(_, staged) => staged.buffer.get_mut(staged.length..).unwrap_or_default(),
        }
    }

    /// Notes that the next `bytes` were filled.
    pub(crate) fn fill(&mut self, bytes: usize) -> io::Result<()> {
        match self {
            Packed::Region(region) => region.fill(bytes),
            Packed::Pipe(filling, staged) => {
                staged.length += bytes;
                if staged.length == STAGE {
                    staged.flush(filling)?;
                }
            }
        }
        Ok(())
    }

    /// The piece, filled as far as it is.
    pub(crate) fn settle(self) -> io::Result<Piece> {
        match self {
            Packed::Region(region) => Ok(Piece::Region(region)),
            Packed::Pipe(mut filling, mut staged) => {
                staged.flush(&mut filling)?;
                pipe::shrink(&filling.write, filling.bytes as usize);
                Ok(Piece::Pipe(filling.read, filling.bytes))
            }
        }
    }
}

impl Staged {
    /// Never waits: there is room for as many whole pages as were not yet written.
    fn flush(&mut self, filling: &mut Filling) -> io::Result<()> {
        (&filling.write).write_all(self.buffer.get(..self.length).unwrap_or_default())?;
        filling.bytes += self.length as u64;
        self.length = 0;
        Ok(())
    }
}
