//! One file on its way to CRIU.

use crate::error::Error;
use crate::store::{self, Piece, Pieces};
use pipe_io::{Endpoint, Kind, pipe, splice};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use wire_format::FileName;

/// A file that is being sent.
#[derive(Debug)]
pub(crate) struct Outflow {
    /// The number of the client that has opened it.
    pub(crate) client: usize,
    name: FileName,
    pieces: Pieces,
    /// How much of the first piece was sent.
    sent: usize,
    pipe: Endpoint,
    /// How long the pipe is left to its reader before it is filled again.
    pub(crate) rest: Duration,
}

/// How many pieces, or parts of them, one file may send before the others have their turn: a
/// reader that keeps up would keep us from answering anybody else.
const TURNS: usize = 16;

impl Outflow {
    /// Sends a file through the pipe that CRIU has sent for it. The pipe is ours alone, as CRIU
    /// closes its own descriptor of this end.
    pub(crate) fn new(
        client: usize,
        name: FileName,
        pieces: Pieces,
        pipe: OwnedFd,
    ) -> Result<Outflow, Error> {
        match Endpoint::new(pipe) {
            Ok(pipe) if pipe.kind() == Kind::Pipe && pipe.set_nonblocking().is_ok() => {
                if pieces.iter().any(|piece| !matches!(piece, Piece::Kept(_))) {
                    pipe.grow();
                }
                let rest = pipe::rest(pipe::capacity(&pipe).unwrap_or(0));
                Ok(Outflow { client, name, pieces, sent: 0, pipe, rest })
            }
            _ => Err(Error::NotAPipe(name)),
        }
    }

    /// Sends what there is room for; `true` when all is sent, or nobody wants the rest.
    pub(crate) fn pour(&mut self, image: &Endpoint) -> Result<bool, Error> {
        let mut turns = TURNS;
        while let Some(piece) = self.pieces.front() {
            if turns == 0 {
                return Ok(false);
            }
            turns -= 1;
            if self.sent as u64 >= length(piece) {
                self.pieces.pop_front();
                self.sent = 0;
                continue;
            }
            match send(piece, self.sent, &self.pipe, image) {
                Ok(0) => return Err(self.failed(ErrorKind::UnexpectedEof.into())),
                Ok(moved) => {
                    self.sent += moved;
                    // The pipe is full. Another attempt would find out no more, and would have to
                    // wait for a reader that holds the pipe's mutex as long as it copies.
                    if (self.sent as u64) < length(piece) {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                // CRIU has read what it wanted.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(true),
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(true)
    }

    /// Empties one pipe of what is still to be sent into memory, for its descriptor; `false` if
    /// there is none.
    pub(crate) fn give_up_a_pipe(&mut self) -> io::Result<bool> {
        if let Some(Piece::Pipe(_, bytes)) = self.pieces.front_mut() {
            // What was sent is not there any more.
            *bytes = bytes.saturating_sub(self.sent as u64);
            self.sent = 0;
        }
        store::give_up_a_pipe(self.pieces.iter_mut())
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::Send(self.name.clone(), error)
    }
}

impl AsFd for Outflow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

fn length(piece: &Piece) -> u64 {
    match piece {
        Piece::Pipe(_, bytes) => *bytes,
        Piece::Region(region) => region.bytes().len() as u64,
        Piece::Kept(bytes) => bytes.len() as u64,
        Piece::Range(_, length) => *length,
    }
}

/// Sends some of what is left of a piece, without waiting.
fn send(piece: &Piece, sent: usize, pipe: &Endpoint, image: &Endpoint) -> io::Result<usize> {
    match piece {
        Piece::Pipe(store, bytes) => {
            let left = bytes.saturating_sub(sent as u64);
            splice::splice_now(store, pipe, usize::try_from(left).unwrap_or(usize::MAX))
        }
        // The memory is not changed any more, only given back: its pages live on in the pipe.
        Piece::Region(region) => {
            splice::vmsplice_now(pipe, region.bytes().get(sent..).unwrap_or_default())
        }
        Piece::Kept(bytes) => pipe.write_now(bytes.get(sent..).unwrap_or_default()),
        Piece::Range(offset, length) => {
            let left = length.saturating_sub(sent as u64);
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            splice::splice_file_now(image, offset + sent as u64, pipe, left)
        }
    }
}
