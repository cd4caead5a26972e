//! How many pipes may be held.

use super::Choice;
use pipe_io::Endpoint;
use pipe_io::inherit::raise_descriptor_limit;
use pipe_io::pipe::{self, Pipe};
use std::io;

/// Makes pipes to hold pieces in, until there are no more to be had.
#[derive(Debug)]
pub(crate) struct Pipes {
    choice: Choice,
    /// How many more descriptors may be used for pipes.
    descriptors: u64,
    /// Bytes that are to go to memory before pipes are tried again.
    detour: u64,
}

/// A pipe that is being filled.
#[derive(Debug)]
pub(crate) struct Filling {
    pub(crate) read: Endpoint,
    pub(crate) write: Endpoint,
    pub(crate) capacity: u64,
    /// How many bytes are in it.
    pub(crate) bytes: u64,
}

/// The capacity that we want of the first pipe of a file, in bytes. Each next one is twice as
/// large, so that the last, of which we cannot see how full its pages are, is never most of it.
const FIRST: usize = 1 << 20;

/// The largest capacity that we want of a pipe, in bytes. With CAP_SYS_RESOURCE it is had: at the
/// 1 MiB of others an image of 10 GB takes 10,000 descriptors in the place of 300. Larger ones
/// save no more that counts.
const MOST: usize = 32 << 20;

/// A pipe of less holds too little for a descriptor. New pipes come so small to a user who has
/// more than `pipe-user-pages-soft` allows.
const LEAST: usize = 256 << 10;

/// After a pipe that was full of half-filled pages, so many bytes go to memory: a writer that
/// writes in such pieces will go on doing so, but need not for ever.
const DETOUR: u64 = 16 << 20;

impl Pipes {
    pub(crate) fn new(choice: Choice) -> Pipes {
        // For the socket, the signals, and what CRIU opens at once.
        let limit = raise_descriptor_limit();
        let reserve = (limit / 8).clamp(24, 512);
        Pipes { choice, descriptors: limit.saturating_sub(reserve), detour: 0 }
    }

    /// A pipe for the piece of this index in its file, or `None` where memory must do.
    pub(crate) fn get(&mut self, index: usize) -> io::Result<Option<Filling>> {
        let wanted = match self.choice {
            Choice::Memory => false,
            Choice::Pipe => true,
            Choice::Auto => self.detour == 0 && self.descriptors > 0,
        };
        if !wanted {
            return Ok(None);
        }
        match make(MOST.min(FIRST << index.min(16))) {
            Ok(pipe) if pipe.capacity >= LEAST as u64 || self.choice == Choice::Pipe => {
                self.descriptors = self.descriptors.saturating_sub(1);
                Ok(Some(pipe))
            }
            Err(error) if self.choice == Choice::Pipe => Err(error),
            // No use in trying again: they come back only when CRIU has read.
            Ok(_) | Err(_) => {
                self.descriptors = 0;
                Ok(None)
            }
        }
    }

    /// Notes that a pipe was full of half-filled pages.
    pub(crate) fn was_sparse(&mut self) {
        self.detour = DETOUR;
    }

    /// Notes that bytes went to memory.
    pub(crate) fn went_to_memory(&mut self, bytes: u64) {
        self.detour = self.detour.saturating_sub(bytes);
    }

    /// Whether what a pipe cannot hold well must stay in pipes all the same.
    pub(crate) fn only(&self) -> bool {
        self.choice == Choice::Pipe
    }
}

fn make(wanted: usize) -> io::Result<Filling> {
    let Pipe { read, write } = Pipe::new()?;
    let capacity = pipe::grow(&write, wanted)? as u64;
    let endpoint = |fd| Endpoint::new(fd).map_err(io::Error::other);
    Ok(Filling { read: endpoint(read)?, write: endpoint(write)?, capacity, bytes: 0 })
}
