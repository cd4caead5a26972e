//! Writing an image stream.

use crate::{Counters, Place, reason};
use pipe_io::poll::{self, PollFd, PollFlags};
use pipe_io::{Endpoint, Kind, MoveError, Mover, Rest, pipe, splice};
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire_format::{Body, FileName, ImageId, StreamWriter};

/// An image stream on its way to stdout.
///
/// Markers are collected; [`StreamOutput::flush`] lets them go, and so does the payload that
/// follows one. Flush before waiting for anything.
#[derive(Debug)]
pub struct StreamOutput {
    writer: StreamWriter<Endpoint>,
    mover: Mover,
    counters: Arc<Counters>,
    counted: u64,
    /// How long sources have had nothing.
    starved: Duration,
    rest: Rest,
    /// Whether the last splice that could move nothing had nothing to move, and no lack of room.
    waits_for_source: bool,
    /// Of a pipe, in bytes.
    capacity: u64,
}

/// The stream cannot be written.
#[derive(Debug)]
pub struct OutputError(pub io::Error);

/// Why payload could not be moved to the stream.
#[derive(Debug)]
pub enum SourceError {
    /// After so many bytes, what it comes from failed or (`None`) ended.
    Source(u64, Option<io::Error>),
    /// The stream is at fault.
    Output(OutputError),
}

impl StreamOutput {
    /// Starts a stream; what goes into it is counted as shard 0.
    pub fn new(endpoint: Endpoint, counters: Arc<Counters>) -> StreamOutput {
        let capacity = pipe::capacity(&endpoint).unwrap_or(0) as u64;
        StreamOutput {
            writer: StreamWriter::new(endpoint, None),
            mover: Mover::default(),
            counters,
            counted: 0,
            starved: Duration::ZERO,
            rest: Rest::of_the_only_one(capacity),
            waits_for_source: false,
            capacity,
        }
    }

    /// Gives the stream an identity, as long as it has no marker.
    pub fn identify(&mut self, image_id: ImageId) {
        self.writer.identify(image_id);
    }

    /// Makes the stream an increment of that image, as long as it has no marker.
    pub fn descend_from(&mut self, parent_id: ImageId) {
        self.writer.descend_from(parent_id);
    }

    /// Writes a marker of another stream, renumbered.
    pub fn marker(&mut self, body: Body) -> Result<(), OutputError> {
        self.writer.marker(body).map_err(OutputError)
    }

    /// The same with a marker that may say that all files have been named.
    pub fn put(&mut self, body: Body, all_named: bool) -> Result<(), OutputError> {
        self.writer.put(body, all_named).map_err(OutputError)
    }

    /// Begins a file, or goes on with it.
    pub fn file(&mut self, name: &FileName) -> Result<(), OutputError> {
        self.writer.file(name).map_err(OutputError)
    }

    /// Announces data of a file. [`StreamOutput::payload`] must move it next.
    pub fn data(&mut self, name: &FileName, length: u32) -> Result<(), OutputError> {
        self.writer.data(name, length).map_err(OutputError)
    }

    /// Writes data of a file from memory.
    pub fn bytes(&mut self, name: &FileName, bytes: &[u8]) -> Result<(), OutputError> {
        /// What one marker announces at most.
        const PIECE: usize = 1 << 30;

        for piece in bytes.chunks(PIECE) {
            self.data(name, piece.len() as u32)?;
            self.flush()?;
            let mut to = self.writer.get_ref();
            to.write_all(piece).map_err(OutputError)?;
            self.count(0);
        }
        Ok(())
    }

    /// Writes some of the last `left` bytes of announced data from memory, together with markers.
    pub fn held_payload(&mut self, bytes: &[u8], left: u32) -> Result<(), OutputError> {
        self.writer.payload(bytes).map_err(OutputError)?;
        self.count(u64::from(left).saturating_sub(bytes.len() as u64));
        Ok(())
    }

    /// Moves the data that was announced, all of it.
    pub fn payload(&mut self, from: &Endpoint, length: u32) -> Result<(), SourceError> {
        let mut left = length;
        while left > 0 {
            left -= self.some_payload(from, length, left)?;
        }
        Ok(())
    }

    /// Moves some of the last `left` bytes of announced data, and returns how many.
    pub fn some_payload(
        &mut self,
        from: &Endpoint,
        length: u32,
        left: u32,
    ) -> Result<u32, SourceError> {
        self.some_payload_of(from, length, left, left)
    }

    /// The same, but not more than `most` bytes: the rest comes from elsewhere.
    pub fn some_payload_of(
        &mut self,
        from: &Endpoint,
        length: u32,
        left: u32,
        most: u32,
    ) -> Result<u32, SourceError> {
        self.flush().map_err(SourceError::Output)?;
        let before = u64::from(length - left);
        match self.move_some(from, left.min(most).into()) {
            Ok(0) => Err(SourceError::Source(before, None)),
            Ok(moved) => {
                // Not more than `left`.
                let moved = moved as u32;
                self.count((left - moved).into());
                Ok(moved)
            }
            Err(MoveError::Input(error)) => Err(SourceError::Source(before, Some(error))),
            Err(MoveError::Output(error)) => Err(SourceError::Output(OutputError(error))),
        }
    }

    /// How long payload was waited for since this was asked last.
    pub fn take_starved(&mut self) -> Duration {
        std::mem::take(&mut self.starved)
    }

    /// Moves some bytes. While the source has none, it is noticed if the stream's reader goes.
    fn move_some(&mut self, from: &Endpoint, length: u64) -> Result<usize, MoveError> {
        if from.kind() == Kind::Pipe && self.endpoint().kind() == Kind::Pipe {
            return self.splice_some(from, length as usize);
        }
        if matches!(from.kind(), Kind::Pipe | Kind::Socket) {
            self.await_source(from)?;
        }
        self.mover.some(from, self.writer.get_ref(), length)
    }

    /// The same from a pipe to a pipe, whose reader is left alone while it copies.
    fn splice_some(&mut self, from: &Endpoint, length: usize) -> Result<usize, MoveError> {
        /// A poll that need not wait takes less.
        const AT_ONCE: Duration = Duration::from_micros(5);

        let mut has_waited = false;
        loop {
            self.rest.sleep();
            let spliced = self.rest.meet(
                || splice::splice_now(from, self.writer.get_ref(), length),
                |moved| splice::usual_time(moved.as_ref().copied().unwrap_or(0)),
            );
            match spliced {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // It does not tell which of the two it was.
                    self.waits_for_source ^= std::mem::replace(&mut has_waited, true);
                    if self.waits_for_source {
                        self.await_source(from)?;
                    } else {
                        let start = Instant::now();
                        poll::wait_writable(self.writer.get_ref()).map_err(MoveError::Output)?;
                        if start.elapsed() > AT_ONCE {
                            self.rest.begin(self.capacity);
                        }
                    }
                }
                Ok(moved) => {
                    self.rest.begin(moved as u64);
                    return Ok(moved);
                }
                Err(error) => return Err(MoveError::Output(error)),
            }
        }
    }

    /// Waits until the source has something, or the stream's reader has gone, which is an error.
    fn await_source(&mut self, from: &Endpoint) -> Result<(), MoveError> {
        let mut fds = [
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.writer.get_ref().as_fd(), PollFlags::empty()),
        ];
        let start = Instant::now();
        poll::wait(&mut fds).map_err(MoveError::Input)?;
        let [_, output] = fds;
        self.starved += start.elapsed();
        match output.revents().is_some_and(|events| events.intersects(poll::READER_GONE)) {
            true => Err(MoveError::Output(ErrorKind::BrokenPipe.into())),
            false => Ok(()),
        }
    }

    /// Ends a file.
    pub fn file_eof(&mut self, name: &FileName) -> Result<(), OutputError> {
        self.writer.file_eof(name).map_err(OutputError)
    }

    /// Ends `inventory.img`, and says that all files of the image have been named.
    pub fn file_eof_all_named(&mut self, name: &FileName) -> Result<(), OutputError> {
        self.writer.file_eof_all_named(name).map_err(OutputError)
    }

    /// Lets the collected markers go.
    pub fn flush(&mut self) -> Result<(), OutputError> {
        self.writer.flush().map_err(OutputError)?;
        Ok(())
    }

    /// Ends the image, and closes the stream when its reader has taken it all.
    pub fn finish(self) -> Result<(), OutputError> {
        self.finish_while(None).map(drop)
    }

    /// The same; `false` if `party` hangs up before the reader has all.
    pub fn finish_while(mut self, party: Option<BorrowedFd<'_>>) -> Result<bool, OutputError> {
        self.writer.image_eof().map_err(OutputError)?;
        self.flush()?;
        self.count(0);
        let taken = self.writer.into_inner().close_while(party).map_err(OutputError)?;
        self.counters.end(0);
        Ok(taken)
    }

    /// What the stream is written to.
    pub fn endpoint(&self) -> &Endpoint {
        self.writer.get_ref()
    }

    /// Counts what was written, of which `outstanding` bytes are still to come.
    fn count(&mut self, outstanding: u64) {
        let written = self.writer.written() - outstanding;
        self.counters.add(0, written - self.counted);
        self.counted = written;
    }
}

impl OutputError {
    /// Nobody reads the stream any more.
    pub fn reader_gone() -> OutputError {
        OutputError(io::ErrorKind::BrokenPipe.into())
    }
}

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Place::Stdout, reason(&self.0))
    }
}

impl std::error::Error for OutputError {}
